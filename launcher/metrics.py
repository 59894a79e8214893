"""
What is counted and timed about jobs, for Prometheus.

Every label has a handful of values, all of which are written in this project: what
comes from a job, a repository or the control plane is never one.  Series are there
from the start, so that the first failure shows as an increase.
"""

from __future__ import annotations

import math

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from launcher import failures
from launcher.activity import Doing
from launcher.failures import FAILURES
from launcher.sight import ABANDONED, Ended, Facts, Seen, Sight, Stage, Vital
from launcher.wire.jobs import Phase, RunState, RunType
from launcher.wire.messages import Verdict


PREFIX = "spacelift_launcher_"

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1200, 3600)
_WAITING = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
_PHASES = (*Phase, "after_run")
_STATES = (
    RunState.PREPARING,
    RunState.INITIALIZING,
    RunState.PLANNING,
    RunState.APPLYING,
    RunState.PERFORMING,
    RunState.DESTROYING,
)
_OUTCOMES = (*(verdict.value for verdict in Verdict), ABANDONED)


class JobMetrics:
    """Implements `launcher.sight.Observer`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs = Counter(
            f"{PREFIX}jobs",
            "Jobs that came to an end here.",
            ["type", "outcome"],
            registry=registry,
        )
        for kind in RunType:
            for outcome in _OUTCOMES:
                self._jobs.labels(kind, outcome.lower())
        self._failures = Counter(
            f"{PREFIX}failures",
            "Jobs that failed, by why and whose matter it is: docs/failures.md.",
            ["code", "blame"],
            registry=registry,
        )
        for failure in FAILURES.values():
            self._failures.labels(failure.code, failure.blame)
        self._waited = Histogram(
            f"{PREFIX}queue_wait_seconds",
            "How long jobs had been waiting when this launcher took them.",
            buckets=_WAITING,
            registry=registry,
        )
        self._stages = Histogram(
            f"{PREFIX}stage_seconds",
            "How long the stages of jobs took.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        for stage in Stage:
            self._stages.labels(stage)
        self._phases = Histogram(
            f"{PREFIX}phase_seconds",
            "How long the phases of jobs took, hooks included.",
            ["phase"],
            buckets=_SECONDS,
            registry=registry,
        )
        for phase in _PHASES:
            self._phases.labels(phase)

    def claimed(self, job: Facts, at: int, /) -> None:
        if job.waited_seconds is not None and math.isfinite(job.waited_seconds):
            self._waited.observe(max(job.waited_seconds, 0.0))

    def seen(self, job: Facts, stage: Seen, /) -> None:
        self._stages.labels(stage.stage).observe(stage.seconds)
        if stage.phase in _PHASES:
            self._phases.labels(stage.phase).observe(stage.seconds)

    def ended(self, job: Facts, ended: Ended, /) -> None:
        self._jobs.labels(job.kind, ended.verdict.lower()).inc()
        if ended.code:
            failure = failures.of(ended.code)
            self._failures.labels(failure.code, failure.blame).inc()


class AtWork(Collector):
    """What is asked about the jobs at work whenever somebody looks."""

    def __init__(
        self, sight: Sight, doing: Callable[[], Mapping[int, Doing | None]]
    ) -> None:
        self._sight = sight
        self._doing = doing

    def collect(self) -> Iterator[GaugeMetricFamily]:
        slots = self._doing()
        states = [doing.phase or _STATES[0] for doing in slots.values() if doing]
        yield _gauge("workers", "Slots of this launcher.", len(slots))
        yield _gauge("workers_busy", "Slots with a job.", len(states))
        family = GaugeMetricFamily(
            f"{PREFIX}jobs_running", "Jobs at work, by state.", labels=["state"]
        )
        for state in _STATES:
            family.add_metric([state], states.count(state))
        yield family
        yield _gauge(
            "log_backlog_bytes",
            "What was printed and is not stored by the control plane yet.",
            sum(self._sight.vitals(Vital.LOG_BACKLOG)),
        )
        yield _gauge(
            "log_oldest_unsent_seconds",
            "How long the oldest of it has been waiting.",
            max(self._sight.vitals(Vital.LOG_AGE), default=0.0),
        )
        if ends := self._sight.vitals(Vital.LOGIN_EXPIRES):
            yield _gauge(
                "registry_login_expires_seconds",
                "When the first login of a job at work ends, in seconds since 1970.",
                min(ends),
            )
        # No job, no lease: then there is no sample, rather than one that means none.
        if slack := self._sight.vitals(Vital.LEASE_SLACK):
            yield _gauge(
                "lease_slack_seconds",
                "How much longer the control plane may be silent before a lease is"
                " lost: the least of all jobs at work.",
                min(slack),
            )


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", meaning, value=value)
