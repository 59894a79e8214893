"""How many workers each pool has, and how many runs wait for one."""

from __future__ import annotations

import threading
import time

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from launcher.controlplane.clock import now
from launcher.controlplane.pools import GONE_AFTER
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store


KNOWN_SECONDS = 1.0
"""For how long an answer is given again, however many ask."""

_CLAIMED = sa.select(t.jobs.c.worker).where(t.jobs.c.state == t.JobState.CLAIMED)
_OF_POOL = (
    sa.select(sa.func.count())
    .select_from(t.workers)
    .where(t.workers.c.pool == t.pools.c.name)
)
_BUSY = t.workers.c.id.in_(_CLAIMED)
_SEEN = t.workers.c.seen_at > sa.bindparam("since")
_THERE = sa.or_(_BUSY, _SEEN)
_COUNTS = (
    sa.select(
        t.pools.c.name.label("pool"),
        sa.select(sa.func.count())
        .select_from(t.jobs)
        .join(t.runs, t.runs.c.id == t.jobs.c.run)
        .join(t.stacks, t.stacks.c.slug == t.runs.c.stack)
        .where(t.jobs.c.state == t.JobState.OPEN, t.stacks.c.pool == t.pools.c.name)
        .scalar_subquery()
        .label("runs_pending"),
        _OF_POOL.where(_THERE).scalar_subquery().label("workers"),
        _OF_POOL.where(_BUSY).scalar_subquery().label("workers_busy"),
        _OF_POOL.where(_THERE, t.workers.c.drained)
        .scalar_subquery()
        .label("workers_drained"),
        _OF_POOL.where(_SEEN, ~_BUSY, ~t.workers.c.drained)
        .scalar_subquery()
        .label("workers_free"),
    )
    .where(t.pools.c.configured)
    .order_by(t.pools.c.name)
)


@dataclass(frozen=True, slots=True)
class PoolCount:
    """One pool, at one moment."""

    pool: str
    runs_pending: int
    workers: int
    """Those that are there: they wait, or have a job."""
    workers_busy: int
    workers_drained: int
    workers_free: int
    """Those that wait for a run and would get one."""


class PoolCounts:
    """Counts when somebody asks.  Safe to use from several threads."""

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._counted: list[PoolCount] = []
        self._counted_at = -KNOWN_SECONDS

    def now(self) -> list[PoolCount]:
        """
        Every pool that is configured, by name, as of `KNOWN_SECONDS` ago at most.

        Raises:
            StoreAway: it cannot be counted.
        """
        with self._lock:
            if self._clock() - self._counted_at >= KNOWN_SECONDS:
                with self._store.glance() as connection:
                    since = {"since": now() - GONE_AFTER}
                    rows = connection.execute(_COUNTS, since).all()
                self._counted = [PoolCount(*row) for row in rows]
                self._counted_at = self._clock()
            return self._counted
