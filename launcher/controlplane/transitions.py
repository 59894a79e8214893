"""
How a run moves: the guard, the history, the stack's lock, and who comes next.

Every function here works inside the caller's transaction.  A tracked run gets
the lock of its stack (`stacks.blocker`) when it becomes READY and gives it back
when it ends; only then does the next in the queue become READY.
"""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from launcher.controlplane import bell
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.errors import RequestRefused
from launcher.controlplane.lifecycle import LIFECYCLE, Event, after
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction, one
from launcher.wire.jobs import RunState, RunType


def run_to_change(tx: Transaction, run: str) -> t.Run | None:
    """The run with this id, which nobody else can move until the commit."""
    query = sa.select(t.runs).where(t.runs.c.id == run).with_for_update()
    return one(tx.connection, t.Run, query)


def move(
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
    Let *event* happen to *run*; write it down, and wake who waits for it.

    Raises:
        RequestRefused: in its state this cannot happen to the run.
    """
    moved = dataclasses.replace(
        run,
        state=after(run.state, event),
        version=run.version + 1,
        updated_at=now(),
        unreachable_since=None,
    )
    changed = tx.change(
        sa.update(t.runs)
        .where(t.runs.c.id == run.id, t.runs.c.version == run.version)
        .values(
            state=moved.state,
            version=moved.version,
            updated_at=moved.updated_at,
            unreachable_since=None,
        )
    )
    if changed != 1:
        raise RequestRefused("the run has just changed; look again")
    record(
        tx, moved, username=username, note=note, job=job, log_start=log_start, text=text
    )
    if LIFECYCLE[moved.state].terminal:
        _leave(tx, moved)
    return moved


def record(
    tx: Transaction,
    run: t.Run,
    *,
    username: str | None = None,
    note: str | None = None,
    job: str | None = None,
    log_start: int = 0,
    text: str | None = None,
) -> None:
    """Write into the history that *run* is in its state now."""
    tx.connection.execute(
        sa.insert(t.transitions).values(
            run=run.id,
            version=run.version,
            state=run.state,
            at=run.updated_at,
            username=username,
            note=note,
            job=job,
            log_start=log_start,
            text=text,
        )
    )
    tx.wake(bell.of_run(run.id))


def make_ready(tx: Transaction, run: t.Run) -> None:
    """Offer *run* to the workers, or queue it behind others of its stack."""
    if run.type is RunType.TRACKED:
        schedule(tx, run.stack)
    else:
        open_job(tx, move(tx, run, Event.SCHEDULE), t.JobKind.PLAN)


def schedule(tx: Transaction, stack: str) -> None:
    """Let the oldest tracked run of *stack* start, unless another is active."""
    # One after the other, and only then a look: on PostgreSQL whoever waited for a
    # row that has left the queue meanwhile would find nobody else in it.
    tx.connection.execute(
        sa.select(t.stacks.c.slug).where(t.stacks.c.slug == stack).with_for_update()
    )
    query = (
        sa.select(t.runs)
        .where(
            t.runs.c.stack == stack,
            t.runs.c.type == RunType.TRACKED,
            t.runs.c.state == RunState.QUEUED,
        )
        .order_by(t.runs.c.number)
        .limit(1)
    )
    run = one(tx.connection, t.Run, query)
    if run is None or run.commit_hash is None:
        return
    locked = tx.change(
        sa.update(t.stacks)
        .where(t.stacks.c.slug == stack, t.stacks.c.blocker.is_(None))
        .values(blocker=run.id)
    )
    if locked:
        open_job(tx, move(tx, run, Event.SCHEDULE), t.JobKind.PLAN)


def open_job(tx: Transaction, run: t.Run, kind: t.JobKind) -> None:
    """Put a job of *run* where the workers of its stack's pool find it."""
    job = new_id()
    tx.connection.execute(
        sa.insert(t.jobs).values(
            id=job,
            run=run.id,
            kind=kind,
            state=t.JobState.OPEN,
            created_at=now(),
            log_length=0,
            image_digest="",
        )
    )
    tx.change(sa.update(t.runs).where(t.runs.c.id == run.id).values(job=job))
    pool = tx.connection.execute(
        sa.select(t.stacks.c.pool).where(t.stacks.c.slug == run.stack)
    ).scalar_one()
    tx.wake(bell.of_pool(pool))


def _leave(tx: Transaction, run: t.Run) -> None:
    tx.change(
        sa.update(t.jobs)
        .where(t.jobs.c.run == run.id, t.jobs.c.state == t.JobState.OPEN)
        .values(state=t.JobState.WITHDRAWN)
    )
    tx.change(
        sa.update(t.stacks).where(t.stacks.c.blocker == run.id).values(blocker=None)
    )
    # What somebody triggered it with may be nobody else's business.
    tx.change(sa.delete(t.runtime_configs).where(t.runtime_configs.c.run == run.id))
    if run.type is RunType.TRACKED:
        schedule(tx, run.stack)
