from datetime import UTC, datetime

import pytest

from prometheus_client import CollectorRegistry

from given import a_job
from launcher import sight
from launcher.activity import Doing
from launcher.metrics import AtWork, JobMetrics
from launcher.sight import Facts, Sight, Vital


@pytest.fixture
def registry():
    return CollectorRegistry()


def value(registry, name, **labels):
    return registry.get_sample_value(f"spacelift_launcher_{name}", labels)


@pytest.mark.parametrize(
    ("waited", "counted"),
    [(3.5, 3.5), (0.0, 0.0), (-2.0, 0.0)],
)
def test_waiting(registry, waited, counted):
    """
    How long a job has waited is what the control plane says, and never negative.
    """
    with Sight([JobMetrics(registry)]).job(Facts.of(a_job(), waited)):
        sight.claimed(sight.now())

    assert 1 == value(registry, "queue_wait_seconds_count")
    assert counted == value(registry, "queue_wait_seconds_sum")


@pytest.mark.parametrize("waited", [None, float("nan"), float("inf")])
def test_waiting_unknown(registry, waited):
    """
    An earlier control plane does not say, and a broken one says nonsense.
    """
    with Sight([JobMetrics(registry)]).job(Facts.of(a_job(), waited)):
        sight.claimed(sight.now())

    assert 0 == value(registry, "queue_wait_seconds_count")
    assert 1 == value(registry, "stage_seconds_count", stage="claim")


def doing(phase):
    return Doing(run="r", job="j", phase=phase, since=datetime.now(UTC))


def test_jobs_at_work(registry):
    """
    Slots are counted by what they do, and jobs at work are asked for the worst.
    """
    slots = {0: None, 1: doing(""), 2: doing("APPLYING"), 3: doing("APPLYING")}
    seen = Sight()
    registry.register(AtWork(seen, lambda: slots))

    assert (4, 3) == (value(registry, "workers"), value(registry, "workers_busy"))
    assert (1, 2, 0) == tuple(
        value(registry, "jobs_running", state=state)
        for state in ("PREPARING", "APPLYING", "PLANNING")
    )
    assert value(registry, "lease_slack_seconds") is None
    assert 0 == value(registry, "log_oldest_unsent_seconds")
    with seen.job(Facts.of(a_job())):
        with (
            sight.vital(Vital.LEASE_SLACK, lambda: 70.0),
            sight.vital(Vital.LEASE_SLACK, lambda: 20.0),
            sight.vital(Vital.LOG_AGE, lambda: 3.0),
            sight.vital(Vital.LOG_AGE, lambda: 9.0),
            sight.vital(Vital.LOG_BACKLOG, lambda: 100.0),
            sight.vital(Vital.LOG_BACKLOG, lambda: 11.0),
            sight.vital(Vital.LOGIN_EXPIRES, lambda: 1e9),
        ):
            assert [20.0, 9.0, 111.0, 1e9] == [
                value(registry, name)
                for name in (
                    "lease_slack_seconds",
                    "log_oldest_unsent_seconds",
                    "log_backlog_bytes",
                    "registry_login_expires_seconds",
                )
            ]
    assert value(registry, "lease_slack_seconds") is None
