"""What the real spacectl sends about runs, replayed word for word."""

import json

import pytest

from controlplane.site import Refused, eventually


def test_a_task_from_the_command_line(site, spacectl, worker):
    """[capability 74] `stack task` and `stack task list`, with its metadata."""
    run = spacectl(
        "M.taskCreate",
        {"Spacelift-User-Provided-Run-Metadata": "why"},
        stack=site.slug,
        command="ls -la /x",
        noinit=True,
    )["taskCreate"]["id"]
    held = worker.take()
    assert held.job["run"]["user_provided_metadata"] == ["why"]
    held.performed()
    (row,) = spacectl("Q.tasksTable", stackId=site.slug, before=None)["stack"]["tasks"]
    assert (row["id"], row["command"], row["state"]) == (run, "ls -la /x", "FINISHED")
    (row,) = spacectl("Q.tasksJSON", stackId=site.slug, before=None)["stack"]["tasks"]
    assert row["type"] == "TASK"
    older = spacectl("Q.tasksTable", stackId=site.slug, before=run)["stack"]["tasks"]
    assert older == []


def test_a_replan_from_the_command_line(site, api, spacectl, worker):
    """[capability 86] [capability 87] `stack changes`, then `stack replan`."""
    run = api.trigger()
    changes = lambda: spacectl("Q.runChanges", stack=site.slug, run=run)  # noqa: E731
    assert changes()["stack"]["run"]["changesV3"] == []
    worker.take().handed_over()
    (change,) = changes()["stack"]["run"]["changesV3"]
    (resource,) = change["resources"]
    assert resource == {
        "address": "null_resource.a",
        "previousAddress": "",
        "metadata": {"type": "added"},
    }
    replanned = spacectl(
        "M.runTargetedReplan", stack=site.slug, run=run, targets=["null_resource.a"]
    )
    assert replanned["runTargetedReplan"]["id"] == run
    assert worker.take().job["run"]["targets"] == ["null_resource.a"]


def test_a_retry_from_the_command_line(site, api, spacectl, worker):
    """The same once more, of the very same commit; what went well needs none."""
    first = spacectl("M.taskCreate", stack=site.slug, command="false", noinit=True)[
        "taskCreate"
    ]["id"]
    held = worker.take()
    with pytest.raises(Refused, match="PREPARING cannot be retried"):
        spacectl("M.runRetry", stack=site.slug, run=first)
    held.settle("failed")
    row = spacectl("Q.tasksTable", stackId=site.slug, before=None)["stack"]["tasks"][0]
    again = spacectl("M.runRetry", stack=site.slug, run=first)["runRetry"]["id"]
    assert again != first
    retried = worker.take()
    assert retried.run == again
    assert retried.job["run"]["command"] == "false"
    assert retried.job["skip_init"]
    assert retried.job["run"]["commit"] == held.job["run"]["commit"]
    assert row["commit"]["hash"] == held.job["run"]["commit"]["hash"]
    retried.performed()
    with pytest.raises(Refused, match="FINISHED cannot be retried"):
        spacectl("M.runRetry", stack=site.slug, run=again)
    with pytest.raises(Refused, match="not found"):
        spacectl("M.runRetry", stack=site.slug, run="01NOPE")


def test_a_promotion_from_the_command_line(site, api, spacectl, repository):
    """[capability 89] A finished preview is deployed, where the stack allows it."""
    worker = site.worker()
    preview = api.trigger(type="PROPOSED")
    held = worker.take()
    with pytest.raises(Refused, match="PREPARING cannot be promoted"):
        spacectl("M.runPromote", stack=site.slug, run=preview)
    held.planned()
    held.settle("finished")
    with pytest.raises(Refused, match="does not allow run promotion"):
        spacectl("M.runPromote", stack=site.slug, run=preview)
    site.configure(repository, run_promotion=True)
    repository.commit("Something newer")
    tracked = spacectl("M.runPromote", stack=site.slug, run=preview)["runPromote"]["id"]
    promoted = worker.take()
    assert (promoted.run, promoted.job["run"]["type"]) == (tracked, "TRACKED")
    assert promoted.job["run"]["commit"]["hash"] == held.job["run"]["commit"]["hash"]
    with pytest.raises(Refused, match="only a preview"):
        spacectl("M.runPromote", stack=site.slug, run=tracked)


def test_a_priority_from_the_command_line(site, api, spacectl, worker):
    """[capability 60] `stack prioritize` overtakes what is in the queue already."""
    first, second = (api.trigger(type="PROPOSED") for _ in range(2))
    for run in (first, second):
        eventually(lambda: api.state(run) == "READY")
    changed = spacectl(
        "M.runPrioritizeSet", stackId=site.slug, runId=second, prioritize=True
    )
    assert changed["runPrioritizeSet"]["id"] == second
    assert worker.take().run == second


def test_a_github_token_is_no_way_in(site, spacectl):
    """The answer says what is."""
    spacectl.api.jwt = ""
    with pytest.raises(Refused, match="use an API key"):
        spacectl("M.oauthUser", token="gh")


def test_the_trail_tells_who_did_what(site, api, spacectl, worker):
    """Newest first, page by page, and with nothing secret in it."""
    run = spacectl(
        "M.taskCreate", stack=site.slug, command="echo hunter2", noinit=False
    )["taskCreate"]["id"]
    worker.take()
    spacectl("M.runStop", run=run, stack=site.slug, note="Stopped by spacectl")

    def page(**changes):
        given = {
            "first": 50,
            "after": None,
            "fullTextSearch": None,
            "predicates": None,
            "orderBy": {"field": "createdAt", "direction": "DESC"},
            **changes,
        }
        return spacectl("Q.searchAuditTrailEntries", input=given)[
            "searchAuditTrailEntries"
        ]

    found = page(fullTextSearch=run.lower())
    nodes = [edge["node"] for edge in found["edges"]]
    assert [node["action"] for node in nodes] == ["run.stop", "run.create"]
    assert nodes[0]["actor"] == {"run": None, "username": "api::ci"}
    assert nodes[0]["affectedResource"] == {"resourceId": run, "resourceType": "RUN"}
    assert nodes[0]["relatedResource"]["resourceId"] == site.slug
    assert json.loads(nodes[0]["body"]) == {"note": "Stopped by spacectl"}
    assert "hunter2" not in json.dumps(nodes)
    one = page(first=1, fullTextSearch=run)
    assert one["pageInfo"]["hasNextPage"]
    rest = page(first=1, fullTextSearch=run, after=one["pageInfo"]["endCursor"])
    assert rest["edges"][0]["node"] == nodes[1]
    assert not rest["pageInfo"]["hasNextPage"]
    assert page(fullTextSearch="%_nothing%")["edges"] == []
