"""Which run may start, and what becomes of those that cannot."""

import os

import pytest
import sqlalchemy as sa

from controlplane.site import (
    Refused,
    Repository,
    configuration,
    eventually,
    policy,
    running,
    stack,
)
from launcher.controlplane import worker_api
from launcher.controlplane.actors import Actor
from launcher.controlplane.runs import Runs
from launcher.controlplane.store import tables as t
from launcher.wire.jobs import Commit


def test_tracked_runs_of_a_stack_go_one_after_the_other(api, worker):
    """The oldest first; a run that waits for a person holds the stack."""
    first, second, third = api.trigger(), api.trigger(), api.trigger()
    held = worker.take()
    assert held.run == first
    assert worker.poll(0.1) is None
    held.handed_over()
    assert worker.poll(0.1) is None
    assert [api.state(run) for run in (second, third)] == ["QUEUED", "QUEUED"]
    api.change("discard", first)
    held = worker.take()
    assert held.run == second
    held.settle("failed", reason="x")
    assert worker.take().run == third


def test_proposed_runs_wait_for_nobody(api, worker):
    """A preview is not kept by a deployment, nor the other way round."""
    tracked = api.trigger()
    previews = {api.trigger(type="PROPOSED") for _ in range(2)}
    assert {worker.take().run for _ in range(3)} == {tracked, *previews}


def test_stacks_do_not_wait_for_each_other(tmp_path, repository):
    """The lock is the stack's."""
    given = configuration([stack(repository, "one"), stack(repository, "two")])
    with running(tmp_path, given) as site:
        api, worker = site.api(), site.worker()
        runs = {api.trigger("one"), api.trigger("two")}
        assert {worker.take().run, worker.take().run} == runs


def test_the_blocker_is_shown(api, worker):
    """A stack tells which run holds it, and its state is that run's."""
    document = "query($id:ID!){stack(id: $id){state,blocker{id}}}"
    variables = {"id": api.slug}
    assert api(document, variables)["stack"] == {"state": "NONE", "blocker": None}
    run = api.trigger()
    held = worker.take()
    api.trigger()
    shown = api(document, variables)["stack"]
    assert shown == {"state": "PREPARING", "blocker": {"id": run}}
    held.settle("failed")
    eventually(lambda: api(document, variables)["stack"]["blocker"] != {"id": run})


@pytest.mark.parametrize(
    ("changes", "sha", "sentence"),
    [
        ({"branch": "nope"}, None, 'branch "nope" was not found in acme/{slug}'),
        ({}, "abcdef0", 'commit "abcdef0" was not found in acme/{slug}'),
        ({}, "$(reboot)", 'commit "$(reboot)" was not found in acme/{slug}'),
        (
            {"source": {"git": "file:///nowhere/at/all"}},
            None,
            "repository acme/{slug} cannot be read",
        ),
    ],
)
def test_a_run_without_a_commit_fails_visibly(
    tmp_path, repository, changes, sha, sentence
):
    """The run exists, fails at once, and says why as note and as log."""
    sentence = sentence.format(slug="testing-spacelift")
    with running(tmp_path, configuration([stack(repository, **changes)])) as site:
        api = site.api()
        run = api.trigger(sha=sha)
        eventually(lambda: api.state(run) == "FAILED")
        newest = api.history(run)[0]
        assert (newest["note"], newest["hasLogs"]) == (sentence, True)
        assert newest["terminal"]
        assert api.read_log(run, "FAILED") == f"{sentence}\n"
        assert api.states(run) == ["QUEUED", "FAILED"]


def test_a_shutdown_during_the_lookup_fails_nothing(tmp_path):
    """The run waits for the next start instead of failing for the server's sake."""
    slow = Repository(tmp_path / "slow")
    slow.commit()
    hangs = slow.path / ".git" / "packed-refs"
    os.mkfifo(hangs)
    given = configuration([stack(slow)])
    with running(tmp_path, given) as site:
        api = site.api()
        run = api.trigger()
        eventually(lambda: site.plane._git._running)
        assert api.state(run) == "QUEUED"
    hangs.unlink()
    with running(tmp_path, given) as site:
        api = site.api()
        eventually(lambda: api.state(run) == "READY")
        assert api.states(run) == ["QUEUED", "READY"]


def test_nobody_overtakes_a_slow_lookup(site, api):
    """The order is that of the triggers, however long a commit takes to find."""
    plane, actor = site.plane, Actor.of_api_key("ci")
    users = Runs(
        plane.store,
        plane.claims._specs,
        OneCommit(),
        lambda run, stack: None,
        plane.approvals,
    )
    slow, quick = (users.trigger(site.slug, actor).id for _ in range(2))
    users.look_up(quick)
    assert [api.state(run) for run in (slow, quick)] == ["QUEUED", "QUEUED"]
    users.look_up(slow)
    assert [api.state(run) for run in (slow, quick)] == ["READY", "QUEUED"]
    api.change("cancel", slow)
    assert api.state(quick) == "READY"


def test_a_crowd_is_looked_up_together(site, api, repository):
    """Each gets the commit that it asked for; one that cannot be found fails alone."""
    old = repository.git("rev-parse", "HEAD")
    new = repository.commit("A newer one")
    runs = site.plane.runs
    later, runs._look_up_later = runs._look_up_later, lambda run, stack: None
    try:
        shas = (old, "", old[:12], "0123456789", new)
        crowd = [api.trigger(type="PROPOSED", sha=sha) for sha in shas]
    finally:
        runs._look_up_later = later
    runs.look_up(*crowd)
    states = ["READY", "READY", "READY", "FAILED", "READY"]
    assert [api.state(run) for run in crowd] == states
    with site.plane.store.read() as connection:
        query = sa.select(t.runs.c.id, t.runs.c.commit_hash)
        found = {row.id: row.commit_hash for row in connection.execute(query)}
    assert [found[run] for run in crowd] == [old, new, old, None, new]


def test_an_approval_that_is_not_considered_costs_the_others_nothing(
    site, api, repository, monkeypatch
):
    """It is asked about later; those that were looked up with it go on."""
    always = policy("always", "approve { true }", "approval")
    one = stack(repository, site.slug, worker_pool=site.pool, policies=["always"])
    pools = [{"name": site.pool}, {"name": "other"}]
    site.apply(configuration([one], worker_pools=pools, policies=[always]))
    runs, approvals = site.plane.runs, site.plane.approvals
    monkeypatch.setattr(runs, "_look_up_later", lambda run, stack: None)
    crowd = [api.trigger(type="PROPOSED") for _ in range(3)]
    consider = approvals.consider

    def considered(run):
        if run == crowd[0]:
            raise RuntimeError("a bug")
        consider(run)

    with monkeypatch.context() as patch:
        patch.setattr(approvals, "consider", considered)
        runs.look_up(*crowd)
        assert [api.state(run) for run in crowd] == ["QUEUED", "READY", "READY"]
    approvals.consider_all()
    assert api.state(crowd[0]) == "READY"


class OneCommit:
    """Finds the same commit at once."""

    def of_branch(self, **_):
        return Commit(hash="0" * 40, branch="main", author="", message="", created_at=0)

    def file(self, **_):
        return None


def test_a_failed_lookup_frees_the_queue(api, worker):
    """A run that cannot start does not keep the next one from it."""
    bad, good = api.trigger(sha="abcdef0"), api.trigger()
    assert worker.take().run == good
    assert api.state(bad) == "FAILED"


def test_a_sha_is_deployed_as_asked(api, worker, repository):
    """An older commit is taken, and not the newest."""
    first = repository.git("rev-parse", "HEAD")
    second = repository.commit("Second")
    api.trigger(sha=first)
    held = worker.take()
    assert held.job["run"]["commit"]["hash"] == first
    held.settle("failed")
    api.trigger()
    assert worker.take().job["run"]["commit"]["hash"] == second


@pytest.mark.parametrize(
    ("what", "state"), [("cancel", "CANCELED"), ("discard", "DISCARDED")]
)
def test_a_run_that_has_not_started_can_be_ended(api, what, state):
    """Queued or ready, by the user, whose name is in the history."""
    ready, queued = api.trigger(), api.trigger()
    eventually(lambda: api.state(ready) == "READY")
    for run in (queued, ready):
        api.change(what, run)
        newest = api.history(run)[0]
        assert (newest["state"], newest["username"]) == (state, "api::ci")
    with pytest.raises(Refused, match=f"a run that is {state} cannot be"):
        api.change(what, ready)


@pytest.mark.parametrize("what", ["cancel", "discard", "confirm"])
def test_a_running_run_is_not_ended_like_that(api, worker, what):
    """What a worker has begun is stopped, not canceled."""
    run = api.trigger()
    worker.take()
    with pytest.raises(Refused, match="a run that is PREPARING cannot be"):
        api.change(what, run)


def test_stopping_is_for_what_runs(api, worker):
    """Elsewhere the refusal says what to do instead."""
    run = api.trigger()
    eventually(lambda: api.state(run) == "READY")
    with pytest.raises(Refused, match="cancel or discard it"):
        api.change("stop", run)
    worker.take().handed_over()
    with pytest.raises(Refused, match="discard it"):
        api.change("stop", run)
    api.change("confirm", run)
    with pytest.raises(Refused, match="a confirmed run cannot be stopped"):
        api.change("stop", run)
    held = worker.take()
    held.enter("APPLYING")
    with pytest.raises(Refused, match="infrastructure is being changed"):
        api.change("stop", run)


@pytest.mark.parametrize("what", ["confirm", "discard", "cancel", "stop"])
def test_unknown_runs_are_not_found(site, api, what):
    """Neither an invented id nor another stack's run can be changed."""
    with pytest.raises(Refused, match="not found"):
        api.change(what, "01NOPE")
    run = api.trigger()
    with pytest.raises(Refused, match="not found"):
        api.change(what, run, stack="other")


def test_metadata_is_kept_in_order(api, worker):
    """One string for each interaction, byte for byte, also beyond ASCII."""
    run = api.trigger(metadata='deploy: {"ä": "😀"}')
    worker.take().handed_over()
    document = "mutation($run:ID!$stack:ID!){runConfirm(stack: $stack, run: $run){id}}"
    header = {"Spacelift-User-Provided-Run-Metadata": "confirm".encode()}
    api(document, {"run": run, "stack": api.slug}, header)
    metadata = worker.take().job["run"]["user_provided_metadata"]
    assert metadata == ['deploy: {"ä": "😀"}', "confirm"]


def test_metadata_is_bounded(api):
    """64 KiB are taken, more is refused with a sentence, and so is no text."""
    api.trigger(metadata="x" * 65536)
    with pytest.raises(Refused, match="at most 65536 bytes"):
        api.trigger(metadata="x" * 65537)
    document = "mutation($stack:ID!){runTrigger(stack: $stack){id}}"
    header = {"Spacelift-User-Provided-Run-Metadata": b"\xff\xfe"}
    with pytest.raises(Refused, match="UTF-8"):
        api(document, {"stack": api.slug}, header)


def test_a_removed_stack_takes_its_waiting_runs_along(tmp_path, repository):
    """What a worker has begun goes on; nothing new begins."""
    one, two = stack(repository, "one"), stack(repository, "two")
    with running(tmp_path, configuration([one, two])) as site:
        api, worker = site.api(), site.worker()
        active, queued = api.trigger("one"), api.trigger("one")
        held = worker.take()
        site.apply(configuration([two]))
        assert api("query($id:ID!){stack(id: $id){id}}", {"id": "one"}) == {
            "stack": None
        }
        with pytest.raises(Refused, match="'one' was not found"):
            api.trigger("one")
        held.planned(changes=False)
        held.settle("finished")
        assert worker.poll(0.1) is None
        site.apply(configuration([one, two]))
        assert api.state(active, "one") == "FINISHED"
        assert api.history(queued, "one")[0]["note"] == "the stack was removed"


@pytest.mark.parametrize("waiting", [1, 20, 100, 1000, 10_000])
def test_a_crowd_that_waits_costs_no_more_than_a_few(waiting):
    """However many workers wait for a ring, they look a few times a second in all."""
    seconds = worker_api.look_again_seconds(waiting)
    assert seconds >= worker_api.LOOK_AGAIN_SECONDS
    assert waiting / seconds <= worker_api.LOOKS_PER_SECOND
