"""
What server processes on one database must know of each other.

Leases are judged by one process, on its monotonic clock: it watches the renewals,
which all processes count in the database.  So no clock but its own is compared,
and time in which nobody could watch, because the database or the process was away,
is not held against any worker: nobody could have renewed.
"""

from __future__ import annotations

import time

from collections.abc import Callable

import sqlalchemy as sa

from sqlalchemy.dialects.postgresql import insert

from launcher.controlplane.leases import Leases, LeaseTerms, Overdue
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store


class SharedLeases(Leases):
    """Leases of jobs that any process may have handed out, or may renew."""

    def __init__(
        self,
        store: Store,
        terms: LeaseTerms,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(terms, clock)
        self._store = store
        self._renewals: dict[str, int] = {}
        self._looked_at: float | None = None

    def begin(self, job: str) -> None:
        """Nothing to do: who watches finds the job in the database."""

    def renew(self, job: str) -> None:
        columns = t.leases.c
        statement = insert(t.leases).values(job=job, renewals=1)
        counted = statement.on_conflict_do_update(
            index_elements=[columns.job], set_={"renewals": columns.renewals + 1}
        )
        # The next renewal is 20 seconds away: no need to wait for the disk.
        with self._store.write(durable=False) as tx:
            tx.connection.execute(counted)

    def overdue(self) -> list[Overdue]:
        """Every lease that has run out, as seen by the process that watches."""
        self._look()
        return super().overdue()

    def still_overdue(self, job: str) -> bool:
        query = sa.select(t.leases.c.renewals).where(t.leases.c.job == job)
        with self._store.read() as connection:
            renewals = connection.execute(query).scalar_one_or_none() or 0
        return self._renewals.get(job) == renewals and super().still_overdue(job)

    def look_away(self) -> None:
        """Another process watches; what was seen here says nothing any more."""
        with self._lock:
            self._held.clear()
            self._renewals.clear()
            self._looked_at = None

    def _look(self) -> None:
        claimed = (
            sa.select(t.jobs.c.id, sa.func.coalesce(t.leases.c.renewals, 0))
            .join(t.leases, t.leases.c.job == t.jobs.c.id, isouter=True)
            .where(t.jobs.c.state == t.JobState.CLAIMED)
        )
        with self._store.read() as connection:
            seen = {job: int(count) for job, count in connection.execute(claimed)}
        at = self._clock()
        blind = self._blind_seconds(at)
        with self._lock:
            for job in self._held.keys() - seen.keys():
                del self._held[job]
            for lease in self._held.values():
                lease.renewed_at += blind
        for job, renewals in seen.items():
            if self._renewals.get(job) != renewals:
                super().begin(job)
        self._renewals = seen
        self._looked_at = at

    def _blind_seconds(self, at: float) -> float:
        """For how long nobody has watched although somebody should have."""
        if self._looked_at is None:
            return 0.0
        gap = at - self._looked_at
        return gap if gap > 2 * self.terms.sweep_seconds + 1.0 else 0.0

    def forget(self) -> None:
        """Remove the counts of jobs that nobody holds any more."""
        claimed = sa.select(t.jobs.c.id).where(t.jobs.c.state == t.JobState.CLAIMED)
        with self._store.write(durable=False) as tx:
            tx.change(sa.delete(t.leases).where(t.leases.c.job.not_in(claimed)))


class UsedSignatures:
    """Which signed requests any process has accepted."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def first(self, mark: bytes, until: float) -> bool:
        """Note *mark* until a moment, in seconds since 1970; False if it is known."""
        statement = (
            insert(t.used_signatures)
            .values(mark=mark, until=int(until))
            .on_conflict_do_nothing()
            .returning(t.used_signatures.c.until)
        )
        with self._store.write(durable=False) as tx:
            return tx.connection.execute(statement).first() is not None

    def forget(self) -> None:
        """Remove what need not be remembered any more."""
        columns = t.used_signatures.c
        with self._store.write(durable=False) as tx:
            tx.change(sa.delete(t.used_signatures).where(columns.until < time.time()))
