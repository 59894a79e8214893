"""What the real spacectl sends, replayed word for word against the server."""

import json

from pathlib import Path

import pytest

from controlplane.site import Refused, configuration, eventually, running, stack
from controlplane.spacectl import OPERATIONS, Spacectl, predicate, search


def test_every_recorded_operation_is_replayed():
    """No operation is in the list without a test that sends it."""
    tests = Path(__file__).parent.glob("test_*.py")
    text = "".join(path.read_text() for path in tests)
    assert len(OPERATIONS) == 68
    assert [name for name in OPERATIONS if f'"{name}"' not in text] == []


def test_a_session(site):
    """The exchange, the version probe, and who one is."""
    spacectl = Spacectl(site.stranger())
    assert spacectl("Q.viewerProbe") == {"viewer": None}
    assert spacectl("Q.viewer") == {"viewer": None}
    for key, secret in [("ci", "wrong"), ("nobody", "wrong"), ("", "")]:
        with pytest.raises(Refused, match="unauthorized"):
            spacectl("M.apiKeyUser", id=key, secret=secret)
    secret = "hunter2-of-the-key"
    session = spacectl("M.apiKeyUser", id="ci", secret=secret)["apiKeyUser"]
    assert session["validUntil"] > 3000
    assert len(session["jwt"].split(".")) == 3
    with pytest.raises(Refused, match="unauthorized"):
        spacectl("Q.debugInfo")
    spacectl.api.jwt = session["jwt"]
    assert spacectl("Q.debugInfo") == {"debugInfo": {"selfHostedVersion": ""}}
    assert spacectl("Q.viewer") == {"viewer": {"id": "api::ci", "name": "ci"}}
    assert spacectl("Q.viewerProbe") == {"viewer": {"id": "api::ci"}}


def test_a_stack_is_found_by_its_id(site, spacectl):
    """Byte for byte, and null for what does not exist."""
    found = spacectl("Q.stackExists", id=site.slug)["stack"]
    assert found["id"] == site.slug
    for unknown in ("nope", site.slug.upper(), ""):
        assert spacectl("Q.stackExists", id=unknown) == {"stack": None}


def test_a_stack_is_found_by_a_run(site, api, spacectl):
    """The message for an unknown run is the one spacectl looks for."""
    run = api.trigger()
    assert spacectl("Q.runStack", runId=run)["runStack"]["id"] == site.slug
    with pytest.raises(Refused, match="^not found$"):
        spacectl("Q.runStack", runId="nope")


def test_a_stack_is_found_by_its_repository(tmp_path, repository):
    """The directory search: repository and project root, ANDed."""
    given = configuration(
        [
            stack(repository, "one", repository="acme/demo", project_root="infra/prod"),
            stack(repository, "two", repository="acme/demo", branch="next"),
            stack(repository, "three", repository="acme/other", labels=["x"]),
        ]
    )
    with running(tmp_path, given) as site:
        spacectl = Spacectl(site.api())

        def found(*predicates, **more):
            given = search(predicates=list(predicates) or None, **more)
            page = spacectl("Q.searchStacksShort", input=given)["searchStacks"]
            return [edge["node"]["id"] for edge in page["edges"]]

        repo = predicate("repository", "acme/demo")
        root = predicate("projectRoot", "infra/prod", "infra/prod/")
        assert found() == ["one", "three", "two"]
        assert found(repo) == ["one", "two"]
        assert found(repo, root) == ["one"]
        assert found(repo, predicate("branch", "next")) == ["two"]
        assert found(predicate("repository", "acme/demo", exclude=True)) == ["three"]
        assert found(predicate("repository", "acme/dem")) == []
        assert found(fullTextSearch="THREE") == ["three"]
        assert found(fullTextSearch="nothing like it") == []
        with pytest.raises(Refused, match="'colour'"):
            found(predicate("colour", "blue"))


def test_lists_are_paged(tmp_path, repository):
    """By the end cursor of the page before, until there is no next one."""
    names = [f"s{number:02}" for number in range(5)]
    given = configuration([stack(repository, name) for name in names])
    with running(tmp_path, given) as site:
        spacectl = Spacectl(site.api())
        seen, after, pages = [], None, 0
        while True:
            given = search(first=2, after=after)
            page = spacectl("Q.searchStacksFull", input=given)["searchStacks"]
            seen += [edge["node"]["id"] for edge in page["edges"]]
            pages += 1
            assert page["pageInfo"]["hasPreviousPage"] is (after is not None)
            if not page["pageInfo"]["hasNextPage"]:
                break
            after = page["pageInfo"]["endCursor"]
        assert (seen, pages) == (names, 3)


def test_a_stack_is_shown(tmp_path, repository):
    """All of its settings, and none of its secrets."""
    contexts = [
        {
            "name": "shared",
            "labels": ["autoattach:x"],
            "environment": [{"name": "HIDDEN", "secret_env": "CI_SECRET"}],
            "mounted_files": [{"path": "f", "content": "c"}],
        }
    ]
    one = stack(
        repository,
        labels=["x"],
        description="What it is for",
        vendor_config={"workspace": "w", "use_smart_sanitization": True},
        environment=[{"name": "wo_A", "value": "a"}],
        hooks={"before_init": ["echo"]},
    )
    with running(tmp_path, configuration([one], contexts=contexts)) as site:
        api = site.api()
        spacectl = Spacectl(api)
        api.trigger()
        held = site.worker().take()
        shown = spacectl("Q.stackShowFull", stackId=site.slug)["stack"]
        assert (
            spacectl("Q.stackShowBasic", stackId=site.slug)["stack"]["id"] == site.slug
        )
        full = spacectl("Q.stackFull", id=site.slug)["stack"]
        edges = spacectl("Q.searchStacksFull", input=search())["searchStacks"]["edges"]
        assert edges == [{"node": full}]
        assert shown["repository"] == "acme/testing-spacelift"
        assert shown["namespace"] == "acme"
        assert shown["beforeInit"] == ["echo"]
        assert shown["state"] == "PREPARING"
        assert shown["blocker"] == {"id": held.run}
        assert shown["trackedCommit"]["hash"] == held.job["run"]["commit"]["hash"]
        assert shown["workerPool"] == {"id": "default", "name": "default"}
        vendor = shown["vendorConfig"]
        assert vendor["__typename"] == "StackConfigVendorTerraform"
        assert (vendor["workspace"], vendor["useSmartSanitization"]) == ("w", True)
        (context,) = shown["attachedContexts"]
        hidden, file = context["config"]
        assert (hidden["id"], hidden["writeOnly"], hidden["checksum"]) == (
            "HIDDEN",
            True,
            "",
        )
        assert (file["id"], file["type"]) == ("f", "FILE_MOUNT")
        assert shown["config"][0]["id"] == "wo_A"
        assert "hunter2" not in json.dumps([shown, full])
        assert spacectl("Q.stackShowFull", stackId="nope") == {"stack": None}


@pytest.mark.parametrize("vendor", ["ansible", "pulumi", "cobol"])
def test_any_vendor_can_be_shown(tmp_path, repository, vendor):
    """One that this API has no type for is shown without options."""
    one = stack(repository, vendor=vendor, vendor_config={"playbook": 7, "x": []})
    with running(tmp_path, configuration([one])) as site:
        shown = Spacectl(site.api())("Q.stackShowFull", stackId=site.slug)["stack"]
        kind = shown["vendorConfig"] and shown["vendorConfig"]["__typename"]
        assert (
            kind
            == {
                "ansible": "StackConfigVendorAnsible",
                "pulumi": "StackConfigVendorPulumi",
                "cobol": None,
            }[vendor]
        )


def test_a_deployment_from_the_command_line(site, spacectl):
    """`stack deploy --tail --auto-confirm`, as the client does it."""
    worker = site.worker()
    run = spacectl(
        "M.runTriggerForce",
        {"Spacelift-User-Provided-Run-Metadata": "deploy-metadata"},
        stack=site.slug,
        sha=None,
        type="TRACKED",
        runtimeConfig=None,
        forceApply=None,
    )["runTrigger"]["id"]
    worker.take().handed_over()
    history = lambda: spacectl("Q.runHistory", run=run, stack=site.slug)  # noqa: E731
    states = [each["state"] for each in history()["stack"]["run"]["history"]]
    assert states[0] == "UNCONFIRMED"
    confirmed = spacectl("M.runConfirm", run=run, stack=site.slug)["runConfirm"]
    assert confirmed == {"id": run}
    applying = worker.take()
    assert applying.job["run"]["user_provided_metadata"] == [
        "deploy-metadata",
        '{"x":1}',
    ]
    applying.applied()
    newest = history()["stack"]["run"]["history"][0]
    assert (newest["state"], newest["terminal"]) == ("FINISHED", True)
    logs = spacectl(
        "Q.runLogs",
        run=run,
        stack=site.slug,
        state="PLANNING",
        stateVersion=5,
        token=None,
    )["stack"]["run"]["logs"]
    assert logs == {
        "exists": True,
        "finished": True,
        "hasMore": False,
        "messages": [{"message": "planning\n"}],
        "nextToken": None,
    }


def test_runs_are_ended_from_the_command_line(site, spacectl, worker):
    """Discard, cancel and stop, each where it belongs."""

    def trigger(kind):
        return spacectl(
            "M.runTrigger", stack=site.slug, sha=None, type=kind, runtimeConfig=None
        )["runTrigger"]["id"]

    discarded, canceled = trigger("TRACKED"), trigger("TRACKED")
    spacectl("M.runCancel", run=canceled, stack=site.slug)
    spacectl("M.runDiscard", run=discarded, stack=site.slug)
    stopped = trigger("PROPOSED")
    held = worker.take()
    spacectl("M.runStop", run=stopped, stack=site.slug, note="Stopped by spacectl")
    assert held.post("renew", b"")["stop"] == "Stopped by spacectl"
    held.settle("stopped")
    states = [spacectl.api.state(run) for run in (discarded, canceled, stopped)]
    assert states == ["DISCARDED", "CANCELED", "STOPPED"]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"runtimeConfig": {"yaml": "before_init: x\n"}}, "before_init must be a list"),
        ({"forceApply": "CASCADE"}, "forceApply"),
        ({"type": "TASK"}, "TASK cannot be triggered"),
    ],
)
def test_what_is_not_supported_is_said(site, spacectl, variables, sentence):
    """Nothing is silently ignored."""
    given = {"sha": None, "type": "TRACKED", "runtimeConfig": None, "forceApply": None}
    with pytest.raises(Refused, match=sentence):
        spacectl("M.runTriggerForce", stack=site.slug, **{**given, **variables})
    rows = spacectl("Q.runsTable", stackId=site.slug, before=None)
    assert rows == {"stack": {"runs": []}}


def test_runs_are_listed_newest_first(site, api, spacectl, worker, monkeypatch):
    """Pages are strictly older than what came before, and the last one is empty."""
    monkeypatch.setattr("launcher.controlplane.queries.PAGE", 2)
    runs = [api.trigger() for _ in range(3)]
    preview = api.trigger(type="PROPOSED")
    latest = spacectl("Q.runsLatest", stackId=site.slug, before=None)
    assert latest["stack"]["runs"][0]["id"] == runs[-1]
    for name in ("Q.runsTable", "Q.runsJSON"):
        seen, before = [], None
        while page := spacectl(name, stackId=site.slug, before=before)["stack"]["runs"]:
            seen += [run["id"] for run in page]
            before = page[-1]["id"]
        assert seen == runs[::-1]
    for name in ("Q.proposedRunsTable", "Q.proposedRunsJSON"):
        page = spacectl(name, stackId=site.slug, before=None)["stack"]["proposedRuns"]
        assert [run["id"] for run in page] == [preview]


def test_a_listed_run_says_what_it_would_change(site, api, spacectl, worker):
    """Title and author are the commit's, the numbers are the plan's."""
    run = api.trigger()
    held = worker.take()
    held.planned()
    (row,) = spacectl("Q.runsJSON", stackId=site.slug, before=None)["stack"]["runs"]
    assert row["id"] == run
    assert row["isMostRecent"]
    assert row["delta"] == {
        "addCount": 1,
        "changeCount": 0,
        "deleteCount": 0,
        "resources": 1,
    }
    assert row["commit"]["authorName"] == "Ann Author"
    assert row["title"] == held.job["run"]["commit"]["message"].splitlines()[0]
    assert row["triggeredBy"] == "api::ci"


def test_worker_pools_are_listed(site, api, spacectl, worker):
    """How many wait, how many work, and who they are."""
    pool = lambda: next(  # noqa: E731
        each
        for each in spacectl("Q.workerPools")["workerPools"]
        if each["id"] == site.pool
    )
    assert (pool()["pendingRuns"], pool()["busyWorkers"]) == (0, 0)
    run = api.trigger()
    eventually(lambda: api.state(run) == "READY")
    assert pool()["pendingRuns"] == 1
    worker.take()
    assert (pool()["pendingRuns"], pool()["busyWorkers"]) == (0, 1)
    assert pool()["workers"] == [{"id": worker.id}]
    (one,) = spacectl("Q.workers", workerPool=site.pool)["workerPool"]["workers"]
    assert (one["busy"], one["drained"]) == (True, False)
    assert json.loads(one["metadata"])["host"] == "here"
    assert spacectl("Q.workers", workerPool="nope") == {"workerPool": None}
