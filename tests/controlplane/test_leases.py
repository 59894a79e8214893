"""Leases: what becomes of a job whose worker is not heard of any more."""

import time

import pytest
import sqlalchemy as sa

from controlplane.site import Held, configuration, eventually, running, stack
from launcher.controlplane.leases import Leases, LeaseTerms, Overdue
from launcher.controlplane.services import Limits
from launcher.controlplane.store import tables as t


LEASE_SECONDS = 3.0
"""Long enough for a job to be handed over on a busy machine."""


def quick(**changes):
    terms = {
        "lease_seconds": LEASE_SECONDS,
        "renew_seconds": 0.1,
        "stop_grace_seconds": 0.3,
        "write_limit_seconds": 60.0,
        "sweep_seconds": 0.05,
    }
    return Limits(lease_terms=LeaseTerms(**{**terms, **changes}))


@pytest.fixture
def quick_site(tmp_path, repository):
    """A control plane whose leases are short."""
    with running(tmp_path, configuration([stack(repository)]), quick()) as site:
        yield site


def test_the_terms_are_those_of_the_design():
    """90 seconds, renewed every 20; a write is waited for past its timeout."""
    terms = LeaseTerms()
    assert (terms.lease_seconds, terms.renew_seconds) == (90, 20)
    assert terms.write_limit_seconds == (70 + 15) * 60


def test_a_lost_plan_fails(quick_site):
    """After lease and grace the run fails, and its worker has nothing to say."""
    api, worker = quick_site.api(), quick_site.worker()
    run, following = api.trigger(), api.trigger()
    offer = eventually(lambda: worker.poll(10))
    began = time.monotonic()
    held = Held(worker, worker.claim(offer["job"]))
    assert held.claimed["lease_seconds"] == LEASE_SECONDS
    held.planned()
    eventually(lambda: api.state(run) == "FAILED")
    assert time.monotonic() - began > LEASE_SECONDS
    assert "worker was lost" in api.history(run)[0]["note"]
    assert api.read_log(run, "PLANNING") == "planning\n"
    for what, body in [
        ("renew", b""),
        ("state", {"state": "APPLYING", "log_offset": 0}),
        ("plan", {"has_changes": True}),
    ]:
        assert held.refused(what, body) == (409, "stale_token")
    path = f"{held.path}/log?offset=0"
    assert worker.refused("PUT", path, b"x", token=held.token) == (409, "stale_token")
    late = {"verdict": "finished", "log_length": 0}
    assert held.refused("settle", late) == (409, "stale_token")
    assert api.state(run) == "FAILED"
    with quick_site.plane.store.read() as connection:
        kept = connection.execute(sa.select(t.late_reports.c.job)).scalars().all()
    assert kept == [held.job["id"]]
    assert worker.take().run == following


def test_renewing_keeps_a_job(quick_site):
    """As long as the worker is heard of nothing happens."""
    api = quick_site.api()
    run = api.trigger()
    held = quick_site.worker().take()
    until = time.monotonic() + LEASE_SECONDS + 1
    while time.monotonic() < until:
        held.post("renew", b"")
    assert api.state(run) == "PREPARING"


def test_a_lost_apply_is_waited_for(quick_site):
    """Nobody knows what it has done: the stack stays locked until it is settled."""
    api, worker = quick_site.api(), quick_site.worker()
    run = api.trigger()
    following = api.trigger()
    worker_job = worker.take()
    worker_job.handed_over()
    api.change("confirm", run)
    held = worker.take()
    held.enter("APPLYING")
    note = lambda: api.history(run)[0]["note"] or ""  # noqa: E731
    eventually(lambda: "worker unreachable" in note())
    held.log(b"still here\n")
    held.post("renew", b"")
    assert note() == ""
    eventually(lambda: "worker unreachable" in note())
    eventually(lambda: any(one.hopeless for one in leases(quick_site).overdue()))
    quick_site.plane.claims.sweep()
    assert api.states(run)[-1] == "APPLYING"
    assert api.state(following) == "QUEUED"
    held.settle("finished")
    assert api.state(run) == "FINISHED"
    assert leases(quick_site).overdue() == []
    assert note() == ""
    assert worker.take().run == following


def test_a_renewal_at_the_last_moment_counts(site, api, worker):
    """Between the sweeper's look and its consequences the worker may come back."""
    run = api.trigger()
    held = worker.take()
    found = Overdue(held.job["id"], hopeless=True, over_limit=True)
    site.plane.claims._expire(found)
    assert api.state(run) == "PREPARING"
    assert held.post("renew", b"") == {"stop": None}


def test_leases_begin_anew_with_a_restart(tmp_path, repository):
    """A worker has a whole lease to come back, and not for ever."""
    given = configuration([stack(repository)])
    with running(tmp_path, given) as site:
        run = site.api().trigger()
        held = site.worker().take()
    with running(tmp_path, given, quick()) as site:
        api = site.api()
        held.worker.base, held.worker.http = site.workers, site.connections()
        assert held.post("renew", b"") == {"stop": None}
        eventually(lambda: api.state(run) == "FAILED")


def leases(site):
    return site.plane.claims._leases


def test_even_an_apply_is_given_up_in_the_end(tmp_path, repository):
    """After the run's timeout and some time the run fails and the stack is free."""
    limits = quick(write_limit_seconds=1.2)
    with running(tmp_path, configuration([stack(repository)]), limits) as site:
        api, worker = site.api(), site.worker()
        run = api.trigger()
        worker.take().handed_over()
        api.change("confirm", run)
        held = worker.take()
        held.enter("APPLYING")
        eventually(lambda: api.state(run) == "FAILED")
        late = {"verdict": "finished", "log_length": 0}
        assert held.refused("settle", late) == (409, "stale_token")


def test_leases_use_one_clock():
    """A lease runs out by the clock it was begun with, and renewing moves it."""
    at = [0.0]
    leases = Leases(
        LeaseTerms(lease_seconds=90, stop_grace_seconds=60, write_limit_seconds=1000),
        clock=lambda: at[0],
    )
    leases.begin("a")
    at[0] = 90
    assert leases.overdue() == []
    at[0] = 91
    (overdue,) = leases.overdue()
    assert (overdue.job, overdue.hopeless, overdue.over_limit) == ("a", False, False)
    at[0] = 151
    assert leases.overdue()[0].hopeless
    leases.renew("a")
    assert leases.overdue() == []
    leases.begin("a")
    at[0] = 1001
    assert leases.overdue()[0].over_limit
    leases.end("a")
    leases.renew("a")
    assert not leases.still_overdue("a")
    assert leases.overdue() == []
