"""
How a run moves: the guard, the history, the stack's lock, and who comes next.

Every function here works inside the caller's transaction.  A run that changes things
gets the lock of its stack (`stacks.blocker`) when it becomes READY and gives it back
when it ends; only then does the next in the queue become READY.
"""

from __future__ import annotations

import dataclasses

from typing import Any

import sqlalchemy as sa

from launcher.controlplane import bell, job_kinds, outbox
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.errors import RequestRefused
from launcher.controlplane.lifecycle import BLOCKS, LIFECYCLE, Event, after
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction, every, one
from launcher.wire.jobs import RunState


_GOOD = (RunState.FINISHED.value, RunState.SKIPPED.value)
_WAITS = sa.exists().where(
    t.run_dependencies.c.run == t.runs.c.id, t.run_dependencies.c.status.is_(None)
)
"""Of a run: something that it depends on is not over yet."""


# Statements that every claim needs are made once: making one costs more than to
# execute it.
_RUN = sa.select(t.runs).where(t.runs.c.id == sa.bindparam("run_id")).with_for_update()
_MOVE = (
    sa.update(t.runs)
    .where(
        t.runs.c.id == sa.bindparam("run_id"),
        t.runs.c.version == sa.bindparam("version_before"),
    )
    .values(
        state=sa.bindparam("state"),
        version=sa.bindparam("version"),
        updated_at=sa.bindparam("updated_at"),
        # Pinned by the first claim, and never changed without a move.
        revision=sa.bindparam("revision"),
        inputs=sa.bindparam("inputs"),
        job=sa.bindparam("newest"),
        unreachable_since=None,
    )
    .returning(
        sa.select(t.stacks.c.pool)
        .where(t.stacks.c.slug == t.runs.c.stack)
        .scalar_subquery()
    )
)
_RECORD = sa.insert(t.transitions).returning(outbox.ANYBODY)
_OPEN = sa.insert(t.jobs)
_STACK_OF_RUN = sa.select(t.runs.c.stack).where(t.runs.c.id == sa.bindparam("run_id"))


def stack_to_change(slug: sa.ColumnElement[str]) -> sa.Select[Any]:
    """The stack, once nobody else can change it."""
    # Who only refers to it, as new runs do, is not kept waiting.
    return (
        sa.select(t.stacks)
        .where(t.stacks.c.slug == slug)
        .with_for_update(key_share=True)
    )


_STACK_TO_CHANGE = stack_to_change(sa.bindparam("stack"))
_STACK_OF_RUN_TO_CHANGE = stack_to_change(_STACK_OF_RUN.scalar_subquery())
_QUEUED = sa.and_(
    t.runs.c.stack == sa.bindparam("stack"), t.runs.c.state == RunState.QUEUED
)
_FREE = sa.and_(
    t.runs.c.type.not_in(BLOCKS),
    t.runs.c.commit_hash.is_not(None),
    sa.not_(t.runs.c.needs_approval),
    ~_WAITS,
)
_OLDEST = (
    sa.select(sa.func.min(t.runs.c.number))
    .where(_QUEUED, t.runs.c.type.in_(BLOCKS))
    .scalar_subquery()
)
_NEXT = (
    sa.select(t.runs)
    .where(_QUEUED, sa.or_(_FREE, t.runs.c.number == _OLDEST))
    .order_by(t.runs.c.number)
)
"""Those that may begin in any case, and the oldest of the others."""


def run_to_change(tx: Transaction, run: str) -> t.Run | None:
    """
    The run with this id, which nobody else can move until the commit.

    Its stack is locked before it, as everybody does who may end a run: the end of one
    begins the next one of the stack, and two orders would be a deadlock.
    """
    named = {"run_id": run}
    tx.connection.execute(_STACK_OF_RUN_TO_CHANGE, named)
    return one(tx.connection, t.Run, _RUN, named)


def lock_stack(tx: Transaction, stack: str) -> t.Stack | None:
    """Let nobody else change *stack*, or what is queued for it, until the commit."""
    return one(tx.connection, t.Stack, _STACK_TO_CHANGE, {"stack": stack})


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
    opens: t.JobKind | None = None,
) -> t.Run:
    """
    Let *event* happen to *run*; write it down, and wake who waits for it.

    A job of the kind that it *opens* is put where workers find it.

    Raises:
        RequestRefused: in its state this cannot happen to the run.
    """
    moved = dataclasses.replace(
        run,
        state=after(run.state, event),
        version=run.version + 1,
        updated_at=now(),
        unreachable_since=None,
        job=run.job if opens is None else new_id(),
    )
    row = tx.connection.execute(
        _MOVE,
        {
            "run_id": run.id,
            "version_before": run.version,
            "state": moved.state,
            "version": moved.version,
            "updated_at": moved.updated_at,
            "revision": moved.revision,
            "inputs": moved.inputs,
            "newest": moved.job,
        },
    ).one_or_none()
    if row is None:
        raise RequestRefused("the run has just changed; look again")
    (pool,) = row
    record(
        tx, moved, username=username, note=note, job=job, log_start=log_start, text=text
    )
    if opens is not None:
        _open(tx, moved, opens, pool)
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
    watched = tx.connection.execute(
        _RECORD,
        {
            "run": run.id,
            "version": run.version,
            "state": run.state,
            "at": run.updated_at,
            "username": username,
            "note": note,
            "job": job,
            "log_start": log_start,
            "text": text,
        },
    ).scalar_one()
    if watched:
        outbox.note(tx, run)
    tx.wake(bell.of_run(run.id))


def schedule(tx: Transaction, stack: str) -> None:
    """
    Let every run of *stack* start that need not wait any more.

    Of those that `BLOCKS`, the oldest may start when no other is under way.  It waits
    for its turn even when a younger one is ready: deployments keep their order.
    """
    # One after the other, and only then a look: on PostgreSQL whoever waited for a
    # row that has left the queue meanwhile would find nobody else in it.
    locked = lock_stack(tx, stack)
    if locked is not None:
        schedule_locked(tx, locked)


def schedule_locked(tx: Transaction, stack: t.Stack) -> None:
    """The same, of a *stack* that is locked."""
    if stack.disabled:
        return
    oldest = None
    for run in every(tx.connection, t.Run, _NEXT, {"stack": stack.slug}):
        if run.type in BLOCKS:
            oldest = run
        else:
            _start(tx, run)
    if oldest is None or oldest.commit_hash is None or oldest.needs_approval:
        return
    if tx.connection.execute(_unresolved(oldest.id)).first() is not None:
        return
    locked = tx.change(
        sa.update(t.stacks)
        .where(t.stacks.c.slug == stack.slug, t.stacks.c.blocker.is_(None))
        .values(blocker=oldest.id)
    )
    if locked:
        _start(tx, oldest)


def _start(tx: Transaction, run: t.Run) -> None:
    move(tx, run, Event.SCHEDULE, opens=job_kinds.first(run.type))


def _open(tx: Transaction, run: t.Run, kind: t.JobKind, pool: str) -> None:
    tx.connection.execute(
        _OPEN,
        {
            "id": run.job,
            "run": run.id,
            "kind": kind,
            "state": t.JobState.OPEN,
            "created_at": now(),
            "log_length": 0,
            "image_digest": "",
        },
    )
    tx.wake(bell.of_work(pool))


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
    if run.type in BLOCKS:
        schedule(tx, run.stack)
    _resolve(tx, run)


def _unresolved(run: str) -> sa.Select[tuple[str]]:
    columns = t.run_dependencies.c
    return sa.select(columns.name).where(columns.run == run, columns.status.is_(None))


def _resolve(tx: Transaction, run: t.Run) -> None:
    """Tell the runs that have waited for *run* how it has ended."""
    columns = t.run_dependencies.c
    query = sa.select(t.run_dependencies).where(
        columns.upstream, columns.name == run.id, columns.status.is_(None)
    )
    for row in tx.connection.execute(query).all():
        changed = run.state is RunState.FINISHED and (
            row.always or _has_changed(tx, run, row.outputs)
        )
        tx.change(
            sa.update(t.run_dependencies)
            .where(columns.run == row.run, columns.upstream, columns.name == run.id)
            .values(status=run.state, changed=changed)
        )
        _settle_dependent(tx, row.run)


def _has_changed(tx: Transaction, run: t.Run, outputs: list[str]) -> bool:
    columns = t.stack_outputs.c
    query = sa.select(columns.name).where(
        columns.stack == run.stack,
        columns.changed_by == run.id,
        columns.name.in_(outputs),
    )
    return tx.connection.execute(query).first() is not None


def _settle_dependent(tx: Transaction, run_id: str) -> None:
    columns = t.run_dependencies.c
    query = sa.select(t.run_dependencies).where(columns.run == run_id, columns.upstream)
    rows = tx.connection.execute(query).all()
    run = run_to_change(tx, run_id)
    if run is None or run.state is not RunState.QUEUED:
        return
    bad = [r.name for r in rows if r.status not in (None, *_GOOD)]
    if bad:
        move(tx, run, Event.CANCEL, note=f"run {bad[0]}, which it waited for, is over")
    elif all(row.status for row in rows) and not any(row.changed for row in rows):
        move(tx, run, Event.SKIP, note="nothing that it depends on has changed")
    elif all(row.status for row in rows):
        schedule(tx, run.stack)
