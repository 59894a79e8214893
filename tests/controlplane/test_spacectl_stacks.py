"""What the real spacectl sends about stacks, replayed word for word."""

import base64

import pytest

from controlplane.site import Refused, configuration
from launcher.controlplane.actors import Actor


def other_actor():
    return Actor.of_api_key("somebody-else")


def test_a_locked_stack_is_its_owners(site, api, spacectl, worker):
    """[capability 82] Others may look and preview; what changes things is refused."""
    admin = site.plane.stack_admin
    admin.lock(site.slug, other_actor(), note="moving house")
    shown = spacectl("Q.stackShowFull", stackId=site.slug)["stack"]
    assert shown["lockedBy"] == "api::somebody-else"
    with pytest.raises(Refused, match="locked by api::somebody-else: moving house"):
        api.trigger()
    with pytest.raises(Refused, match="locked"):
        spacectl("M.taskCreate", stack=site.slug, command="x", noinit=False)
    with pytest.raises(Refused, match="locked by api::somebody-else already"):
        spacectl("M.stackLock", stack=site.slug, note="mine")
    api.trigger(type="PROPOSED")
    worker.take()
    assert spacectl("M.stackUnlock", stack=site.slug) == {
        "stackUnlock": {"id": site.slug}
    }
    assert spacectl("M.stackLock", stack=site.slug, note="") == {
        "stackLock": {"id": site.slug}
    }
    api.trigger()
    worker.take()
    spacectl("M.stackUnlock", stack=site.slug)
    with pytest.raises(Refused, match="is not locked"):
        spacectl("M.stackUnlock", stack=site.slug)
    with pytest.raises(Refused, match="not found"):
        spacectl("M.stackLock", stack="nope", note="")


def test_a_lock_holds_autodeploy_back(site, api, repository):
    """[capability 82] What was to be applied at once waits for a confirmation."""
    site.configure(repository, autodeploy=True)
    worker = site.worker()
    api.trigger()
    held = worker.take()
    site.plane.stack_admin.lock(site.slug, other_actor())
    assert held.planned()["next"] == "hand_over"


def test_a_disabled_stack_begins_nothing(site, api, spacectl, worker):
    """What has begun goes on, what waits is still there when it is enabled again."""
    first, second = api.trigger(), api.trigger()
    held = worker.take()
    changed = spacectl("M.stackDisable", stack=site.slug)["stackDisable"]
    assert changed == {"id": site.slug, "isDisabled": True}
    with pytest.raises(Refused, match="is disabled"):
        api.trigger(type="PROPOSED")
    held.settle("failed")
    assert worker.poll(0.1) is None
    assert (api.state(first), api.state(second)) == ("FAILED", "QUEUED")
    changed = spacectl("M.stackEnable", stack=site.slug)["stackEnable"]
    assert changed == {"id": site.slug, "isDisabled": False}
    assert worker.take().run == second


def test_a_deleted_stack_stays_deleted(site, api, spacectl, repository, worker):
    """Whatever the file says, until it has been out of the file."""
    run = api.trigger()
    held = worker.take()
    with pytest.raises(Refused, match="is under way"):
        spacectl("M.stackDelete", id=site.slug, destroyResources=False)
    held.settle("failed")
    gone = spacectl("M.stackDelete", id=site.slug, destroyResources=False)
    assert gone == {"stackDelete": {"id": site.slug}}
    assert spacectl("Q.stackExists", id=site.slug) == {"stack": None}
    site.configure(repository)
    assert spacectl("Q.stackExists", id=site.slug) == {"stack": None}
    pools = [{"name": site.pool}, {"name": "other"}]
    site.apply(configuration([], worker_pools=pools))
    site.configure(repository)
    assert spacectl("Q.stackExists", id=site.slug)["stack"]["id"] == site.slug
    assert api.state(run) == "FAILED"


def test_resources_are_destroyed_before_their_stack(site, api, spacectl, worker):
    """[capability 76] The stack goes when the run that destroys has finished."""
    spacectl("M.stackDelete", id=site.slug, destroyResources=True)
    shown = lambda: spacectl("Q.stackShowFull", stackId=site.slug)["stack"]  # noqa: E731
    assert shown()["deleting"]
    worker.take().handed_over()
    run = shown()["blocker"]["id"]
    api.change("discard", run)
    assert not shown()["deleting"], "somebody thought better of it"
    spacectl("M.stackDelete", id=site.slug, destroyResources=True)
    worker.take().handed_over()
    api.change("confirm", shown()["blocker"]["id"])
    waiting = api.trigger()
    worker.take().destroyed()
    assert spacectl("Q.stackExists", id=site.slug) == {"stack": None}
    assert state_of(site, waiting) == "DISCARDED"


def state_of(site, run):
    import sqlalchemy as sa

    from launcher.controlplane.store import tables as t

    with site.plane.store.read() as connection:
        query = sa.select(t.runs.c.state).where(t.runs.c.id == run)
        return connection.execute(query).scalar_one()


def test_a_stack_is_pinned_to_a_commit(site, api, spacectl, worker, repository):
    """Runs take it until the stack follows its branch again."""
    older = repository.git("rev-parse", "HEAD")
    newer = repository.commit("Newer than that")
    with pytest.raises(Refused, match='commit "abcdef0" was not found'):
        spacectl("M.stackSetCurrentCommit", stack=site.slug, sha="abcdef0")
    pinned = spacectl("M.stackSetCurrentCommit", stack=site.slug, sha=older[:12])
    assert pinned["stackSetCurrentCommit"]["trackedCommit"]["hash"] == older
    api.trigger()
    held = worker.take()
    assert held.job["run"]["commit"]["hash"] == older
    held.settle("failed")
    shown = spacectl("Q.stackShowFull", stackId=site.slug)["stack"]
    assert shown["trackedCommitSetBy"] == "api::ci"
    assert spacectl("M.stackSyncCommit", stack=site.slug) == {
        "stackSyncCommit": {"id": site.slug}
    }
    api.trigger()
    assert worker.take().job["run"]["commit"]["hash"] == newer


def test_the_environment_from_the_command_line(site, api, spacectl, repository):
    """Set, listed, used by the next run, and deleted; secrets are not repeated."""
    contexts = [
        {
            "name": "auto",
            "labels": ["autoattach:*"],
            "environment": [{"name": "AUTO", "value": "a"}],
        },
    ]
    site.configure(
        repository,
        contexts=contexts,
        environment=[{"name": "FILED", "value": "f"}],
    )
    worker = site.worker()

    def setvar(name, value, *, secret=False, kind="ENVIRONMENT_VARIABLE"):
        config = {"id": name, "type": kind, "value": value, "writeOnly": secret}
        operation = (
            "M.stackConfigAddFile" if kind == "FILE_MOUNT" else "M.stackConfigAddVar"
        )
        return spacectl(operation, stack=site.slug, config=config)["stackConfigAdd"]

    assert setvar("FOO", "bar") == {"id": "FOO", "writeOnly": False, "value": "bar"}
    assert setvar("wo_KEY", "hunter2", secret=True)["value"] is None
    content = base64.b64encode(b'{"a":1}\n').decode()
    assert setvar("dir/f.txt", content, kind="FILE_MOUNT")["id"] == "dir/f.txt"
    with pytest.raises(Refused, match="configuration file"):
        setvar("FILED", "other")
    for wrong in ("", "1A", "a b", "A\n"):
        with pytest.raises(Refused, match="not the name of a variable"):
            setvar(wrong, "x")
    for wrong in ("/etc/passwd", "../x", "a/../../b", "", "a\nb", "./a"):
        with pytest.raises(Refused):
            setvar(wrong, content, kind="FILE_MOUNT")
    with pytest.raises(Refused, match="base64"):
        setvar("g", "no base64!", kind="FILE_MOUNT")
    listed = spacectl("Q.environmentList", stack=site.slug)["stack"]
    elements = {
        each["element"]["id"]: each["element"] for each in listed["runtimeConfig"]
    }
    assert set(elements) == {"FILED", "FOO", "wo_KEY", "dir/f.txt"}
    assert elements["FOO"]["value"] == "bar"
    assert elements["dir/f.txt"]["value"] == content
    assert (elements["wo_KEY"]["value"], elements["wo_KEY"]["writeOnly"]) == (
        None,
        True,
    )
    (auto,) = [each for each in listed["attachedContexts"] if each["isAutoattached"]]
    assert auto["config"][0]["id"] == "AUTO"
    api.trigger(type="PROPOSED")
    held = worker.take()
    given = {each["name"]: each["value"] for each in held.job["environment"]}
    assert given == {"AUTO": "a", "FILED": "f", "FOO": "bar"}
    (file,) = held.job["mounted_files"]
    assert base64.b64decode(file["content"]) == b'{"a":1}\n'
    assert setvar("FOO", "baz")["value"] == "baz"
    site.configure(repository, environment=[{"name": "FILED", "value": "g"}])
    api.trigger(type="PROPOSED")
    given = {e["name"]: e["value"] for e in worker.take().job["environment"]}
    assert given == {"FILED": "g", "FOO": "baz"}, "a reload keeps what was added"
    delete = lambda name: spacectl(  # noqa: E731
        "M.stackConfigDelete", stack=site.slug, id=name
    )["stackConfigDelete"]
    assert delete("FOO") == {"id": "FOO"}
    assert delete("FOO") is None
    with pytest.raises(Refused, match="configuration file"):
        delete("FILED")
    assert delete("dir/f.txt") == {"id": "dir/f.txt"}
    listed = spacectl("Q.environmentList", stack=site.slug)["stack"]["runtimeConfig"]
    assert [each["element"]["id"] for each in listed] == ["FILED", "wo_KEY"]


def test_what_the_file_gets_later_is_the_files(site, api, spacectl, repository):
    """A name that was added and is in the file now has the file's value."""
    config = {
        "id": "X",
        "type": "ENVIRONMENT_VARIABLE",
        "value": "added",
        "writeOnly": False,
    }
    spacectl("M.stackConfigAddVar", stack=site.slug, config=config)
    site.configure(repository, environment=[{"name": "X", "value": "filed"}])
    api.trigger(type="PROPOSED")
    (given,) = site.worker().take().job["environment"]
    assert given["value"] == "filed"


def test_outputs_are_the_newest_applys(site, api, spacectl, worker):
    """Sensitive ones have no value to show; a plan cannot report any."""
    outputs = lambda: spacectl("Q.stackOutputs", stackId=site.slug)["stack"]["outputs"]  # noqa: E731
    assert outputs() == []
    api.trigger()
    held = worker.take()
    report = {
        "outputs": [
            {"name": "url", "value": '"https://x"'},
            {"name": "key", "value": '"hunter2"', "sensitive": True},
            {"name": "kept", "value": None, "sensitive": True},
        ]
    }
    assert held.refused("outputs", report) == (409, "wrong_state")
    held.handed_over()
    (run,) = spacectl("Q.runsLatest", stackId=site.slug, before=None)["stack"]["runs"]
    api.change("confirm", run["id"])
    held = worker.take()
    held.enter("APPLYING")
    many = {"outputs": [{"name": f"o{number}"} for number in range(1001)]}
    assert held.refused("outputs", many) == (413, "too_large")
    held.post("outputs", report)
    held.post("outputs", report)
    held.settle("finished")
    assert outputs() == [
        {"id": "kept", "sensitive": True, "description": "", "value": None},
        {"id": "key", "sensitive": True, "description": "", "value": None},
        {"id": "url", "sensitive": False, "description": "", "value": '"https://x"'},
    ]


def test_resources_are_what_was_applied(site, api, spacectl, worker):
    """A plan alone makes none; a destroy run takes all of them away."""
    listed = lambda: spacectl("Q.stackResources", id=site.slug)["stack"]["entities"]  # noqa: E731
    run = api.trigger()
    worker.take().handed_over()
    assert listed() == []
    api.change("confirm", run)
    worker.take().applied()
    (one,) = listed()
    assert (one["address"], one["type"], one["name"]) == (
        "null_resource.a",
        "null_resource",
        "a",
    )
    assert one["creator"] == one["updater"] == {"id": run}
    assert one["vendor"]["terraform"]["address"] == "null_resource.a"
    everything = spacectl("Q.allStackResources")["stacks"]
    assert {each["id"]: len(each["entities"]) for each in everything}[site.slug] == 1
    run = api.trigger(type="DESTROY")
    worker.take().handed_over()
    api.change("confirm", run)
    worker.take().destroyed()
    assert listed() == []


def test_there_is_no_state_to_pull(site, spacectl):
    """And the answer says where it is; an unknown stack is not found."""
    with pytest.raises(Refused, match="in its backend"):
        spacectl("M.stateDownloadUrl", input={"stackId": site.slug})
    with pytest.raises(Refused, match="not found"):
        spacectl("M.stateDownloadUrl", input={"stackId": "nope"})
