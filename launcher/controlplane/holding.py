"""
Who holds a job: the checks before every request about one, and the refusals.

Every write carries the fencing token that came with the claim.  Once the token
is stale the job belongs to nobody: the write is refused and changes nothing.
"""

from __future__ import annotations

import hmac

import sqlalchemy as sa

from launcher.controlplane.errors import RequestRefused, WorkerRefused
from launcher.controlplane.lifecycle import LIFECYCLE, Event
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction, one
from launcher.controlplane.transitions import lock_stack, move
from launcher.wire.messages import ErrorCode


_JOB = sa.select(t.jobs).where(t.jobs.c.id == sa.bindparam("job_id"))
_JOB_TO_CHANGE = _JOB.with_for_update()
_RUN_OF_JOB = sa.select(t.runs).where(
    t.runs.c.id
    == sa.select(t.jobs.c.run)
    .where(t.jobs.c.id == sa.bindparam("job_id"))
    .scalar_subquery()
)
_RUN_TO_CHANGE = _RUN_OF_JOB.with_for_update()
_STACK_OF_JOB = (
    sa.select(t.runs.c.stack)
    .join(t.jobs, t.jobs.c.run == t.runs.c.id)
    .where(t.jobs.c.id == sa.bindparam("job_id"))
)


def locked(tx: Transaction, job_id: str, *, ends: bool = False) -> tuple[t.Job, t.Run]:
    """
    A job and its run, which nobody else can change until the commit.

    Who *ends* the run, or may, changes its stack, too.

    Raises:
        WorkerRefused: UNKNOWN_JOB.
    """
    # The run first, as everybody does: two orders would be a deadlock.
    named = {"job_id": job_id}
    if ends:
        stack = tx.connection.execute(_STACK_OF_JOB, named).scalar_one_or_none()
        if stack is None:
            raise unknown_job(job_id)
        lock_stack(tx, stack)
    run = one(tx.connection, t.Run, _RUN_TO_CHANGE, named)
    job = one(tx.connection, t.Job, _JOB_TO_CHANGE, named)
    if job is None or run is None:
        raise unknown_job(job_id)
    return job, run


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
    job = one(connection, t.Job, _JOB, {"job_id": job_id})
    if job is None:
        raise unknown_job(job_id)
    require_current(job, pool, token)
    run = one(connection, t.Run, _RUN_OF_JOB, {"job_id": job_id})
    if run is None:
        raise unknown_job(job_id)
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
        )
    except RequestRefused as exc:
        raise wrong_state(str(exc)) from exc


def stop_reason(run: t.Run) -> str | None:
    """Why the worker should stop; None while it should not, or must not."""
    return run.stop_reason if LIFECYCLE[run.state].stoppable else None


def stale() -> WorkerRefused:
    return WorkerRefused(ErrorCode.STALE_TOKEN, "the job is no longer yours")


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
