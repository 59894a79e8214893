"""Looking for drift by schedule: when, of what, and what follows."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfoNotFoundError

import pytest
import sqlalchemy as sa
import yaml

from controlplane.site import (
    ENVIRON,
    configuration,
    eventually,
    running,
    stack,
)
from launcher.controlplane import cron, services
from launcher.controlplane.desired_state import parse
from launcher.controlplane.drift import Drift
from launcher.controlplane.leases import LeaseTerms
from launcher.controlplane.services import Limits
from launcher.controlplane.store import tables as t
from launcher.errors import ConfigurationError


START = datetime(2026, 3, 28, 3, 30, tzinfo=UTC)
NIGHTLY = {"schedule": ["0 4 * * *"]}


@pytest.fixture
def looking(site, api, repository, monkeypatch):
    """A deployed stack with a schedule, and a clock for who looks."""
    real = Drift.trigger_due
    monkeypatch.setattr(Drift, "trigger_due", lambda self: None)

    def configure(deployed=True, **drift):
        site.configure(repository, drift_detection={**NIGHTLY, **drift})
        if deployed:
            run = api.trigger()
            held = site.worker().take()
            held.planned(changes=False)
            held.settle("finished")
            assert api.state(run) == "FINISHED"
        look(START)

    def look(at):
        real(site.plane.drift, at)
        with site.plane.store.read() as connection:
            query = sa.select(t.runs.c.id).where(
                t.runs.c.stack == site.slug, t.runs.c.drift
            )
            return list(connection.execute(query.order_by(t.runs.c.number)).scalars())

    look.configure = configure
    return look


def test_each_time_counts_once(site, api, looking, repository):
    """[capability 77] A preview of what was deployed last, when it is time, and not before."""
    looking.configure()
    commit = repository.git("rev-parse", "HEAD")
    repository.commit("Not deployed yet")
    assert looking(START + timedelta(minutes=29)) == []
    (run,) = looking(START + timedelta(minutes=30))
    assert looking(START + timedelta(minutes=31)) == [run]
    held = site.worker().take()
    assert (held.run, held.job["run"]["type"]) == (run, "PROPOSED")
    assert held.job["run"]["commit"]["hash"] == commit
    assert held.job["run"]["triggered_by"] == "drift-detection"
    held.planned()
    held.settle("finished")
    assert api.state(run) == "FINISHED"
    assert looking(START + timedelta(hours=20)) == [run]
    runs = looking(START + timedelta(days=3))
    assert len(runs) == 2, "what was missed meanwhile is made up for once"
    assert site.worker().take().run == runs[1], "without reconciling nothing else came"


def test_what_has_drifted_is_deployed_anew(site, api, looking):
    """[capability 77] A tracked run of the same commit follows, if it is wanted and needed."""
    looking.configure(reconcile=True)
    (first,) = looking(START + timedelta(hours=1))
    worker = site.worker()
    held = worker.take()
    held.planned(changes=False)
    held.settle("finished")
    assert worker.poll(0.1) is None, "nothing has drifted"
    _, second = looking(START + timedelta(days=1, hours=1))
    held = worker.take()
    assert held.run == second
    held.planned()
    held.settle("finished")
    site.plane._look_ups.want_all(site.plane.runs.without_commit())
    following = worker.take()
    about = following.job["run"]
    assert (about["type"], about["triggered_by"]) == ("TRACKED", "drift-detection")
    assert about["commit"] == held.job["run"]["commit"]
    assert following.planned()["next"] == "hand_over", "who confirms is not changed"


def test_no_older_commit_comes_back(site, api, looking, repository):
    """What was deployed while somebody looked stays, whatever the look has found."""
    looking.configure(reconcile=True)
    (look,) = looking(START + timedelta(hours=1))
    worker = site.worker()
    held = worker.take()
    repository.commit("Deployed meanwhile")
    newer = api.trigger()
    deploying = site.worker().take()
    assert deploying.run == newer
    deploying.planned(changes=False)
    deploying.settle("finished")
    held.planned()
    held.settle("finished")
    assert api.state(look) == "FINISHED"
    assert tracked(site) == [newer]


def test_a_retried_look_brings_no_older_commit_back(site, api, looking, repository):
    """A look of long ago that is done again says nothing about today."""
    looking.configure(reconcile=True)
    (look,) = looking(START + timedelta(hours=1))
    worker = site.worker()
    worker.take().settle("failed")
    repository.commit("Deployed meanwhile")
    newer = api.trigger()
    held = worker.take()
    held.planned(changes=False)
    held.settle("finished")
    api.change("retry", look)
    again = worker.take()
    again.planned()
    again.settle("finished")
    assert tracked(site) == [newer]


def test_one_deployment_waits_for_a_person(site, api, looking):
    """Without autodeploy, what has drifted asks once, and not every night anew."""
    looking.configure(reconcile=True, ignore_state=True)
    worker = site.worker()
    for day in range(3):
        looks = looking(START + timedelta(days=day, hours=1))
        assert len(looks) == day + 1
        held = worker.take()
        held.planned()
        held.settle("finished")
        if day == 0:
            site.plane._look_ups.want_all(site.plane.runs.without_commit())
            worker.take().handed_over()
    assert len(tracked(site)) == 1


@pytest.mark.parametrize("over", [False, True])
def test_what_is_destroyed_is_left_alone(site, api, looking, over):
    """Nothing is rebuilt that somebody wants gone, or has had destroyed."""
    looking.configure(reconcile=True, ignore_state=True)
    run = api.trigger(type="DESTROY")
    worker = site.worker()
    held = worker.take()
    if over:
        held.handed_over()
        api.change("confirm", run)
        held = worker.take()
        held.enter("DESTROYING")
        held.settle("finished")
        assert api.state(run) == "FINISHED"
    assert looking(START + timedelta(hours=1)) == []


def test_what_was_discarded_is_not_looked_at(site, api, looking, repository):
    """Whatever the state, what is looked at is the commit that was deployed last."""
    looking.configure(reconcile=True, ignore_state=True)
    deployed = repository.git("rev-parse", "HEAD")
    repository.commit("Not wanted")
    unwanted = api.trigger()
    worker = site.worker()
    worker.take().handed_over()
    api.change("discard", unwanted)
    (look,) = looking(START + timedelta(hours=1))
    held = worker.take()
    assert held.job["run"]["commit"]["hash"] == deployed


def tracked(site):
    """Tracked runs behind the one that was deployed at first."""
    with site.plane.store.read() as connection:
        query = sa.select(t.runs.c.id).where(
            t.runs.c.stack == site.slug, t.runs.c.type == "TRACKED"
        )
        found = connection.execute(query.order_by(t.runs.c.number)).scalars()
        return list(found)[1:]


def test_a_minute_is_a_minute_when_summer_time_ends():
    """Each hour has its turn once, and none before it has come."""
    every = datetime(2026, 10, 24, 23, 30, tzinfo=UTC)
    found = {
        # In UTC: two times of one zone are the same when their clocks are.
        cron.latest(
            ["0 * * * *"], "Europe/Berlin", every + timedelta(minutes=minute)
        ).astimezone(UTC)
        for minute in range(180)
    }
    expected = [datetime(2026, 10, 24, 23, tzinfo=UTC)]
    expected += [datetime(2026, 10, 25, hour, tzinfo=UTC) for hour in range(3)]
    assert sorted(found) == expected


def test_a_time_zone_that_is_gone_holds_up_nobody(site, looking, monkeypatch):
    """A machine that does not know it leaves that stack alone, and does the rest."""
    looking.configure()

    def unknown(*_):
        raise ZoneInfoNotFoundError("no such zone")

    monkeypatch.setattr(cron, "latest", unknown)
    assert looking(START + timedelta(hours=1)) == []


@pytest.mark.parametrize("why", ["never deployed", "failed", "under way", "disabled"])
def test_when_nobody_looks(site, api, looking, why):
    """A stack that is not as it was deployed by intention is left alone."""
    looking.configure(deployed=why != "never deployed")
    worker = site.worker()
    if why == "failed":
        api.trigger()
        worker.take().settle("failed")
    if why == "under way":
        api.trigger()
        worker.take()
    if why == "disabled":
        api(f'mutation{{stackDisable(id: "{site.slug}"){{id}}}}')
    assert looking(START + timedelta(hours=1)) == []


def test_the_state_may_be_ignored(looking):
    """Then a stack is looked at that has never been deployed."""
    looking.configure(deployed=False, ignore_state=True)
    assert len(looking(START + timedelta(hours=1))) == 1


def test_one_look_at_a_time(looking):
    """While one waits for a worker, no other joins the queue."""
    looking.configure()
    first = looking(START + timedelta(hours=1))
    assert looking(START + timedelta(days=1, hours=1)) == first


def test_a_changed_schedule_begins_anew(site, looking, repository):
    """No time counts that was before the schedule."""
    looking.configure()
    site.configure(repository, drift_detection={"schedule": ["0 2 * * *"]})
    assert looking(START + timedelta(hours=10)) == []
    assert len(looking(START + timedelta(days=1))) == 1
    site.configure(repository)
    looking(START + timedelta(days=2))
    site.configure(repository, drift_detection={"schedule": ["0 2 * * *"]})
    assert len(looking(START + timedelta(days=3))) == 1


def test_two_servers_look_once(site, looking, tmp_path):
    """For a moment both may believe to lead; the time counts once all the same."""
    looking.configure()
    plane = site.plane
    others = [Drift(plane.store, plane.drift._specs, lambda *_: None) for _ in range(2)]
    before = [row.looked_at for row in schedules(plane)]
    due = START + timedelta(hours=1)
    with plane.store.read() as connection:
        _, spec = plane.drift._specs.current(connection, site.slug)
    at = int(due.replace(minute=0).timestamp()) * 1_000_000_000
    for other in others:
        other._trigger(site.slug, spec.drift_detection, at)
    assert [row.looked_at for row in schedules(plane)] == [at] != before
    assert len(looking(due)) == 1


def schedules(plane):
    with plane.store.read() as connection:
        return connection.execute(sa.select(t.drift_schedules)).all()


def test_the_sweeper_looks(tmp_path, repository, monkeypatch):
    """Nobody has to ask: the process that leads looks at the clock."""
    monkeypatch.setattr(services, "FORGOTTEN_SECONDS", 0)
    asked = []
    monkeypatch.setattr(Drift, "trigger_due", lambda self: asked.append(self))
    limits = Limits(lease_terms=LeaseTerms(sweep_seconds=0.02))
    with running(tmp_path, configuration([stack(repository)]), limits):
        eventually(lambda: asked)


@pytest.mark.parametrize(
    ("zone", "now", "expected"),
    [
        ("UTC", "2026-03-28T04:00Z", "2026-03-28T04:00Z"),
        ("UTC", "2026-03-28T03:59Z", "2026-03-27T04:00Z"),
        ("America/New_York", "2026-03-28T08:00Z", "2026-03-28T08:00Z"),
        ("America/New_York", "2026-01-28T08:59Z", "2026-01-27T09:00Z"),
    ],
)
def test_a_schedule_is_meant_in_its_time_zone(zone, now, expected):
    """Summer time is the zone's, and the time itself counts."""
    read = lambda text: datetime.fromisoformat(text.replace("Z", "+00:00"))  # noqa: E731
    assert cron.latest(["0 4 * * *", "0 4 1 1 *"], zone, read(now)) == read(expected)


@pytest.mark.parametrize(
    ("drift", "pool", "sentence"),
    [
        ({}, {}, "a schedule is needed"),
        ({"schedule": []}, {}, "a schedule is needed"),
        ({"schedule": ["@daily"]}, {}, "has not 5 fields"),
        ({"schedule": ["* * * * * *"]}, {}, "has not 5 fields"),
        ({"schedule": ["61 * * * *"]}, {}, "is no schedule"),
        ({"schedule": ["0 0 31 2 *"]}, {}, "is no schedule"),
        ({**NIGHTLY, "timezone": "Mars/Base"}, {}, "no time zone"),
        ({**NIGHTLY, "timezone": "../../etc/passwd"}, {}, "no time zone"),
        ({**NIGHTLY, "reconcile": "yes"}, {}, "must be true or false"),
        ({**NIGHTLY, "cron": 1}, {}, "unknown key 'cron'"),
        (NIGHTLY, {"drift_run_limit": 0}, "takes no runs that look for drift"),
    ],
)
def test_a_wrong_schedule_refuses_the_file(tmp_path, repository, drift, pool, sentence):
    """With the line that it is in."""
    one = stack(repository, drift_detection=drift)
    wrong = configuration([one], worker_pools=[{"name": "default", **pool}])
    with pytest.raises(ConfigurationError, match=f"line [0-9]+: .*{sentence}"):
        parse(yaml.safe_dump(wrong), tmp_path, ENVIRON)
