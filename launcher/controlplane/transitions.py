"""
How a run moves: the guard, the history, the stack's lock, and who comes next.

Every function here works inside the caller's transaction.  A run that changes things
gets the lock of its stack (`stacks.blocker`) when it becomes READY and gives it back
when it ends; only then does the next in the queue become READY.
"""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from launcher.controlplane import bell, job_kinds
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.errors import RequestRefused
from launcher.controlplane.lifecycle import BLOCKS, LIFECYCLE, Event, after
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction, every, one
from launcher.wire.jobs import RunState


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


def schedule(tx: Transaction, stack: str) -> None:
    """
    Let every run of *stack* start that need not wait any more.

    Of those that `BLOCKS`, the oldest may start when no other is under way.  It waits
    for its turn even when a younger one is ready: deployments keep their order.
    """
    if _is_disabled(tx, stack):
        return
    queued = (
        sa.select(t.runs)
        .where(t.runs.c.stack == stack, t.runs.c.state == RunState.QUEUED)
        .order_by(t.runs.c.number)
        .with_for_update()
    )
    ready = t.runs.c.commit_hash.is_not(None) & sa.not_(t.runs.c.needs_approval)
    free = queued.where(t.runs.c.type.not_in(BLOCKS), ready)
    for run in every(tx.connection, t.Run, free):
        _start(tx, run)
    oldest = one(tx.connection, t.Run, queued.where(t.runs.c.type.in_(BLOCKS)).limit(1))
    if oldest is None or oldest.commit_hash is None or oldest.needs_approval:
        return
    locked = tx.change(
        sa.update(t.stacks)
        .where(t.stacks.c.slug == stack, t.stacks.c.blocker.is_(None))
        .values(blocker=oldest.id)
    )
    if locked:
        _start(tx, oldest)


def _is_disabled(tx: Transaction, stack: str) -> bool:
    query = sa.select(t.stacks.c.disabled).where(t.stacks.c.slug == stack)
    return bool(tx.connection.execute(query).scalar_one())


def _start(tx: Transaction, run: t.Run) -> None:
    open_job(tx, move(tx, run, Event.SCHEDULE), job_kinds.first(run.type))


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
    if run.type in BLOCKS:
        schedule(tx, run.stack)
