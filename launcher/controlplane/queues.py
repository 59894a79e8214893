"""
The queue of a worker pool: which jobs wait, and in which order.

Prioritized runs come first; then those that change things and block their stack;
then previews and tests; then those that look for drift.  Within a class the run
that was triggered first is first, however long its commit took to be found, and
an apply comes before the plans of younger runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from launcher.controlplane.lifecycle import BLOCKS
from launcher.controlplane.store import tables as t


@dataclass(frozen=True, slots=True)
class Queued:
    job: str
    run: str


_CLASS = sa.case((t.runs.c.drift, 2), (t.runs.c.type.in_(BLOCKS), 0), else_=1)
ORDER = (t.runs.c.prioritized.desc(), _CLASS, t.runs.c.created_at, t.runs.c.id)


def waiting(pool: str | sa.BindParameter[str]) -> sa.ColumnElement[bool]:
    """Of jobs, joined with their runs and stacks: those that wait in *pool*."""
    return sa.and_(t.jobs.c.state == t.JobState.OPEN, t.stacks.c.pool == pool)


_QUEUE = (
    sa.select(t.jobs.c.id, t.jobs.c.run, t.runs.c.drift)
    .join(t.runs, t.runs.c.id == t.jobs.c.run)
    .join(t.stacks, t.stacks.c.slug == t.runs.c.stack)
    .where(
        waiting(sa.bindparam("pool")),
        sa.or_(sa.bindparam("with_drift", type_=sa.Boolean), sa.not_(t.runs.c.drift)),
    )
    .order_by(*ORDER)
    .limit(sa.bindparam("most", type_=sa.Integer))
)


def queued(connection: sa.Connection, pool: str, most: int) -> list[Queued]:
    """The first jobs of the queue that may be given away now."""
    named = {"pool": pool, "most": most}
    rows = connection.execute(_QUEUE, {**named, "with_drift": True}).all()
    drifting = sum(row.drift for row in rows)
    room = _room_for_drift(connection, pool) if drifting else 0
    if drifting > room and len(rows) == most:
        # Those that have to wait must not hide who is behind them.
        behind = connection.execute(_QUEUE, {**named, "with_drift": False}).all()
        rows = [*rows, *(row for row in behind if row not in rows)]
    found = []
    for row in rows:
        if row.drift:
            room -= 1
            if room < 0:
                continue
        found.append(Queued(row.id, row.run))
    return found[:most]


def _room_for_drift(connection: sa.Connection, pool: str) -> int:
    """How many more runs that look for drift *pool* may have under way."""
    limit = connection.execute(
        sa.select(t.pools.c.drift_limit).where(t.pools.c.name == pool)
    ).scalar_one_or_none()
    if limit is None:
        return 1 << 30
    active = connection.execute(
        sa.select(sa.func.count())
        .select_from(t.jobs)
        .join(t.runs, t.runs.c.id == t.jobs.c.run)
        .where(
            t.jobs.c.state == t.JobState.CLAIMED,
            t.jobs.c.pool == pool,
            t.runs.c.drift,
        )
    ).scalar_one()
    return int(limit) - int(active)
