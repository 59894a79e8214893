"""How the log of a job is opened: which values it hides, and where it goes."""

from __future__ import annotations

import sys

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from launcher import environment
from launcher.lease import Lease
from launcher.model import Claim
from launcher.output.echo import Echo
from launcher.output.joblog import JobLog, LogOptions
from launcher.output.needles import SHORTEST
from launcher.ports import LogSink, Ports
from launcher.settings import Settings
from launcher.wire.jobs import Job, Variable


log = structlog.get_logger()

MOST_NOTES, LONGEST_NOTE = 50, 500

TIMESTAMPS = "feature:enable_log_timestamps"
WELL_KNOWN = "feature:enable_well_known_secret_masking"
"""Labels of a stack."""


@contextmanager
def opened(
    claim: Claim,
    ports: Ports,
    settings: Settings,
    lease: Lease,
    *,
    sink: LogSink,
    passed_through: tuple[Variable, ...],
) -> Iterator[JobLog]:
    """The job's log on its way to *sink*; all is stored when the block ends."""
    with JobLog(
        claim,
        sink,
        lease,
        hidden(claim, settings, passed_through),
        ports.spools.new(claim.job.id),
        options=options(claim.job, settings),
    ) as job_log:
        yield job_log


def warn_of_short_values(
    job: Job,
    settings: Settings,
    job_log: JobLog,
    passed_through: tuple[Variable, ...],
) -> None:
    """Say which values of the job are secret and too short to be masked."""
    if settings.logs.mask_short_values:
        return
    for name in environment.too_short_to_mask(job, passed_through):
        log.warning("mask.too_short", name=name)
        job_log.say(
            f"{name} is secret but has fewer than {SHORTEST} characters:"
            " it is not masked."
        )


def say_what_is_odd(
    job: Job, job_log: JobLog, passed_through: tuple[Variable, ...]
) -> None:
    """
    Tell the run's owner what was made of the job that may not be meant.

    Raises:
        JobInvalid: the values of its variables cannot be made.
    """
    for note in job.notes[:MOST_NOTES]:
        job_log.say(" ".join(note[:LONGEST_NOTE].split()))
    for name in environment.overruled(job, passed_through):
        job_log.say(f"{name} is set by the worker: the run's own value is not used.")
    for name, other in environment.unknown_references(job, passed_through):
        job_log.say(
            f"{name} mentions ${{{other}}}, which is no variable of this run:"
            " it is left as it is."
        )


def hidden(
    claim: Claim, settings: Settings, passed_through: tuple[Variable, ...]
) -> tuple[bytes, ...]:
    """Values that may not show in the log of a job, as far as its claim says."""
    return (
        *environment.secrets(claim.job, passed_through),
        claim.token.encode(),
        *of_launcher(settings),
    )


def options(job: Job, settings: Settings) -> LogOptions:
    echoed = settings.run.logs_on_standard_output
    return LogOptions(
        short_values=settings.logs.mask_short_values,
        well_known=settings.logs.mask_well_known or WELL_KNOWN in job.stack.labels,
        timestamps=TIMESTAMPS in job.stack.labels,
        flush_seconds=settings.logs.flush_timeout,
        echo=Echo(job, sys.stdout) if echoed else None,
    )


def of_launcher(settings: Settings) -> tuple[bytes, ...]:
    """What the launcher itself gets through with, and a job might get to see."""
    proxies = (settings.network.http_proxy, settings.network.https_proxy)
    token = settings.identity.token
    return (
        *(
            value
            for proxy in proxies
            if proxy
            for value in environment.in_url(proxy.reveal())
        ),
        *((token.reveal().encode(),) if token else ()),
    )
