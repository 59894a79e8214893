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
from launcher.output.joblog import JobLog, LogOptions, Resumption
from launcher.output.needles import SHORTEST
from launcher.output.stream import Position
from launcher.ports import Ports
from launcher.settings import Settings
from launcher.wire.jobs import Job


log = structlog.get_logger()

TIMESTAMPS = "feature:enable_log_timestamps"
"""A stack's label."""


@contextmanager
def opened(
    claim: Claim, ports: Ports, settings: Settings, lease: Lease
) -> Iterator[JobLog]:
    """The job's log, with its first lines; all of it is stored when the block ends."""
    job, passed_through = claim.job, settings.container.passed_through
    with JobLog(
        claim,
        ports.log,
        lease,
        hidden(claim, settings),
        ports.spools.new(job.id),
        options=options(job, settings),
    ) as job_log:
        if not settings.logs.mask_short_values:
            for name in environment.too_short_to_mask(job, passed_through):
                log.warning("mask.too_short", name=name)
                job_log.say(
                    f"{name} is secret but has fewer than {SHORTEST} characters:"
                    " it is not masked."
                )
        yield job_log


def resumed(
    claim: Claim,
    ports: Ports,
    settings: Settings,
    lease: Lease,
    resumption: Resumption,
    *,
    secrets: tuple[bytes, ...] = (),
) -> JobLog:
    """
    The log of a job that another process has begun; raw output goes on at `position`.

    That is where *resumption* says, if the spool is still there, or else the
    beginning of the raw output: then what the control plane has already is made
    again and left out.  *secrets* is what `JobLog.hide` was given meanwhile; it has
    to be complete, because nothing may be hidden in the middle of a section.
    """
    job, position = claim.job, resumption.position
    spool = ports.spools.left_behind(job.id, length=position.masked)
    if spool is None:
        log.warning("spool.lost", stored=resumption.stored)
        spool = ports.spools.new(job.id, start=resumption.stored)
        resumption = Resumption(
            position=Position(masked=resumption.begins), stored=resumption.stored
        )
    return JobLog(
        claim,
        ports.log,
        lease,
        (*hidden(claim, settings), *secrets),
        spool,
        options=options(job, settings),
        resumption=resumption,
    )


def hidden(claim: Claim, settings: Settings) -> tuple[bytes, ...]:
    """Values that may not show in the log of a job, as far as its claim says."""
    return (
        *environment.secrets(claim.job, settings.container.passed_through),
        claim.token.encode(),
        *of_launcher(settings),
    )


def options(job: Job, settings: Settings) -> LogOptions:
    echoed = settings.run.logs_on_standard_output
    return LogOptions(
        short_values=settings.logs.mask_short_values,
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
