"""
Who holds a job: the checks before every request about one, and the refusals.

Every write carries the fencing token that came with the claim.  Once the token
is stale the job belongs to nobody: the write is refused and changes nothing.
"""

from __future__ import annotations

import hmac

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from launcher.controlplane.errors import RequestRefused, WorkerRefused
from launcher.controlplane.lifecycle import LIFECYCLE, Event
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction, one
from launcher.controlplane.transitions import move, stack_to_change
from launcher.wire.messages import ErrorCode


SEEN = (
    sa.select(t.runs, t.jobs)
    .join_from(t.runs, t.jobs, t.jobs.c.run == t.runs.c.id)
    .where(t.jobs.c.id == sa.bindparam("job_id"))
)
"""A job and its run, to be looked at: see `pair`."""
# The run first, as everybody does: two orders would be a deadlock.
LOCKED = SEEN.with_for_update(of=[t.runs, t.jobs])
"""The same, to be changed."""
_STACK_TO_CHANGE = stack_to_change(
    sa.select(t.runs.c.stack)
    .join(t.jobs, t.jobs.c.run == t.runs.c.id)
    .where(t.jobs.c.id == sa.bindparam("job_id"))
    .scalar_subquery()
)
_OF_RUN = len(t.runs.c)
_OF_BOTH = _OF_RUN + len(t.jobs.c)


def pair(row: Sequence[Any]) -> tuple[t.Job, t.Run]:
    """What `SEEN` has found; *row* may have more to the right."""
    run = dict(zip(t.runs.c.keys(), row[:_OF_RUN], strict=True))
    job = dict(zip(t.jobs.c.keys(), row[_OF_RUN:_OF_BOTH], strict=True))
    return t.Job(**job), t.Run(**run)


def locked(tx: Transaction, job_id: str, *, ends: bool = False) -> tuple[t.Job, t.Run]:
    """
    A job and its run, which nobody else can change until the commit.

    Who *ends* the run, or may, changes its stack, too.

    Raises:
        WorkerRefused: UNKNOWN_JOB.
    """
    if ends:
        lock_stack_of_job(tx, job_id)
    row = tx.connection.execute(LOCKED, {"job_id": job_id}).one_or_none()
    if row is None:
        raise unknown_job(job_id)
    return pair(row)


def lock_stack_of_job(tx: Transaction, job_id: str) -> None:
    """Do so before the job's run is locked, where that may end."""
    tx.connection.execute(_STACK_TO_CHANGE, {"job_id": job_id})


def current(tx: Transaction, pool: str, job_id: str, token: str) -> tuple[t.Job, t.Run]:
    """
    A job that *token* is good for, and its run, both to be changed.

    Raises:
        WorkerRefused: UNKNOWN_JOB, STALE_TOKEN.
    """
    job, run = locked(tx, job_id)
    require_current(job, pool, token)
    return job, run


def seen(
    connection: sa.Connection, pool: str, job_id: str, token: str
) -> tuple[t.Job, t.Run]:
    """
    A job that *token* is good for, and its run, only to be looked at.

    Raises:
        WorkerRefused: UNKNOWN_JOB, STALE_TOKEN.
    """
    row = connection.execute(SEEN, {"job_id": job_id}).one_or_none()
    if row is None:
        raise unknown_job(job_id)
    job, run = pair(row)
    require_current(job, pool, token)
    return job, run


def require_current(job: t.Job, pool: str, token: str) -> None:
    """
    Check that *token* is good for *job*.

    Raises:
        WorkerRefused: UNKNOWN_JOB to other pools, STALE_TOKEN.
    """
    if job.pool != pool:
        raise unknown_job(job.id)
    if job.state is not t.JobState.CLAIMED or not is_token(job, token):
        raise stale()


def is_token(job: t.Job, token: str) -> bool:
    """Whether *job* was handed out with *token*; it may be over meanwhile."""
    return job.token is not None and hmac.compare_digest(
        job.token.encode(), token.encode()
    )


def workspace_of(connection: sa.Connection, run: str) -> t.Workspace | None:
    """What the run's planning job has stored."""
    query = sa.select(t.workspaces).where(t.workspaces.c.run == run)
    return one(connection, t.Workspace, query)


def moved(
    tx: Transaction,
    run: t.Run,
    event: Event,
    *,
    username: str | None = None,
    note: str | None = None,
    job: str | None = None,
    log_start: int = 0,
    text: str | None = None,
    opens: t.JobKind | None = None,
) -> t.Run:
    """
    `transitions.move`, on behalf of a worker.

    Raises:
        WorkerRefused: WRONG_STATE.
    """
    try:
        return move(
            tx,
            run,
            event,
            username=username,
            note=note,
            job=job,
            log_start=log_start,
            text=text,
            opens=opens,
        )
    except RequestRefused as exc:
        raise wrong_state(str(exc)) from exc


def stop_reason(run: t.Run) -> str | None:
    """Why the worker should stop; None while it should not, or must not."""
    return run.stop_reason if LIFECYCLE[run.state].stoppable else None


def stale() -> WorkerRefused:
    return WorkerRefused(ErrorCode.STALE_TOKEN, "the job is no longer yours")


def unknown_worker() -> WorkerRefused:
    return WorkerRefused(ErrorCode.UNKNOWN_WORKER, "register first")


def unknown_job(job_id: str) -> WorkerRefused:
    return WorkerRefused(ErrorCode.UNKNOWN_JOB, f"there is no job {job_id!r}")


def wrong_state(sentence: str) -> WorkerRefused:
    return WorkerRefused(ErrorCode.WRONG_STATE, sentence)


def wrong_offset(job: t.Job) -> WorkerRefused:
    return WorkerRefused(
        ErrorCode.WRONG_OFFSET,
        "bytes of the log are missing",
        next_offset=job.log_length,
    )
