"""What is kept for how long, and what readers are told of what is gone."""

import pytest
import sqlalchemy as sa

from controlplane.site import Refused, configuration, running, stack
from launcher.controlplane import retention
from launcher.controlplane.desired_state import parse
from launcher.controlplane.desired_state import Retention
from launcher.controlplane.retention import DAY, trim
from launcher.controlplane.store import tables as t
from launcher.errors import ConfigurationError


DEFAULT = Retention()


@pytest.fixture
def later(monkeypatch):
    """Moves the clock of what removes."""
    real = retention.now

    def move(days):
        monkeypatch.setattr(retention, "now", lambda: real() + int(days * DAY))

    return move


def rows(site, table):
    with site.plane.store.read() as connection:
        return connection.execute(sa.select(table)).all()


def test_the_defaults_are_the_products():
    """Logs 60 days, workspaces 7, samples 7 days or 100."""
    assert DEFAULT == Retention(
        logs_days=60, workspaces_days=7, samples_days=7, samples=100
    )


def test_a_log_is_kept_for_sixty_days(site, api, worker, later):
    """[capability 46] Then its bytes are gone, and readers are told with one sentence."""
    run = api.trigger()
    held = worker.take()
    held.log(b"the output\n")
    held.settle("failed")
    other = api.trigger()
    active = worker.take()
    active.log(b"still running\n")
    later(59.9)
    site.plane.retention.apply(DEFAULT)
    assert api.read_log(run, "PREPARING") == "the output\n"
    later(60.1)
    site.plane.retention.apply(DEFAULT)
    site.plane.retention.apply(DEFAULT)
    gone = "This log was removed 60 days after its run had ended.\n"
    assert api.read_log(run, "PREPARING") == gone
    assert all(row.job != held.job["id"] for row in rows(site, t.log_chunks))
    active.enter("INITIALIZING")
    assert api.read_log(other, "PREPARING") == "still running\n"
    active.settle("failed")


def test_a_run_that_waits_for_too_long_ends(site, api, worker, later):
    """After seven days its workspace is gone, so the run says so and lets others go."""
    run = api.trigger()
    following = api.trigger()
    worker.take().handed_over()
    later(6.9)
    site.plane.retention.apply(DEFAULT)
    assert api.state(run) == "UNCONFIRMED"
    later(7.1)
    site.plane.retention.apply(DEFAULT)
    assert api.state(run) == "FAILED"
    note = "the stored workspace was removed after 7 days: trigger a new run"
    assert api.history(run)[0]["note"] == note
    with pytest.raises(Refused, match="FAILED"):
        api.change("confirm", run)
    site.plane.workspaces.remove_needless()
    assert all(row.run != run for row in rows(site, t.workspaces))
    next_one = worker.take()
    assert next_one.run == following
    next_one.settle("failed")


def test_what_is_being_applied_keeps_its_workspace(site, api, worker, later):
    """However old it is: somebody is about to read it."""
    run = api.trigger()
    worker.take().handed_over()
    api.change("confirm", run)
    held = worker.take()
    later(100)
    site.plane.retention.apply(DEFAULT)
    path = f"{held.path}/workspace"
    assert worker.raw("GET", path, token=held.token).data == b"workspace"
    held.applied()
    assert api.state(run) == "FINISHED"


def test_the_newest_rows_are_kept(site):
    """Of each policy so many samples, and none that is too old."""
    samples = sa.Table(
        "some_samples",
        sa.MetaData(),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("policy", sa.String(64)),
        sa.Column("at", sa.BigInteger),
    )
    now = retention.now()
    given = [
        {"key": f"{policy}{age}", "policy": policy, "at": now - int(age * DAY)}
        for policy, ages in {"a": (0, 1, 2, 3), "b": (1, 6.9, 7.1), "c": (8,)}.items()
        for age in ages
    ]
    with site.plane.store.write() as tx:
        samples.create(tx.connection)
        tx.connection.execute(sa.insert(samples), given)
    try:
        with site.plane.store.write() as tx:
            trim(tx, samples, per="policy", days=7, most=3)
        kept = {row.key for row in rows(site, samples)}
        assert kept == {"a0", "a1", "a2", "b1", "b6.9"}
    finally:
        with site.plane.store.write() as tx:
            samples.drop(tx.connection)


def test_it_is_configured_in_the_file(tmp_path):
    """Each of the numbers, within bounds."""
    text = "account: acme\nretention: {logs_days: 3, samples: 5}\n"
    assert parse(text, tmp_path, {}).retention == Retention(logs_days=3, samples=5)
    wrong = "account: acme\nretention: {logs_days: 0, samples: many, more: 1}\n"
    with pytest.raises(ConfigurationError) as caught:
        parse(wrong, tmp_path, {})
    for part in ("between 1 and", "whole number", "unknown key 'more'"):
        assert part in str(caught.value)


def test_it_is_applied_beside_the_requests(tmp_path, repository, monkeypatch):
    """Nobody has to ask for it; a new file counts from the next round."""
    given = configuration([stack(repository)])
    with running(tmp_path, given) as site:
        seen = []
        monkeypatch.setattr(site.plane.retention, "apply", seen.append)
        site.plane._lead(1)
        assert seen == []
        site.plane._lead(0)
        site.apply({**given, "retention": {"logs_days": 1}})
        site.plane._lead(60)
        assert [each.logs_days for each in seen] == [60, 1]
