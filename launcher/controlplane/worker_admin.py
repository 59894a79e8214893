"""What people do with workers: drain them, and let a pool's come back anew."""

from __future__ import annotations

import sqlalchemy as sa
import structlog

from launcher.controlplane import audit, bell
from launcher.controlplane.actors import Actor
from launcher.controlplane.errors import NotFound
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction


log = structlog.get_logger()


class WorkerAdmin:
    """The use cases."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def drain(self, pool: str, worker: str, actor: Actor, *, drained: bool) -> None:
        """
        Give the worker no more jobs, or some again; what it has begun goes on.

        Raises:
            NotFound: the pool has no such worker.
        """
        with self._store.write() as tx:
            changed = tx.change(
                sa.update(t.workers)
                .where(t.workers.c.pool == pool, t.workers.c.id == worker)
                .values(drained=drained)
            )
            if not changed:
                raise NotFound(f"worker {worker!r} of pool {pool!r} was not found")
            action = "worker.drain" if drained else "worker.undrain"
            audit.note(tx, actor, action, pool=pool, worker=worker)
            tx.wake(bell.of_pool(pool))
        log.info("worker.drain_set", pool=pool, worker=worker, drained=drained)

    def cycle(self, pool: str, actor: Actor) -> None:
        """
        Tell every worker of the pool to end once it is idle.

        Raises:
            NotFound: there is no such pool.
        """
        with self._store.write() as tx:
            _require_pool(tx, pool)
            tx.change(
                sa.update(t.workers).where(t.workers.c.pool == pool).values(cycled=True)
            )
            audit.note(tx, actor, "worker_pool.cycle", pool=pool)
            tx.wake(bell.of_pool(pool))
        log.warning("pool.cycled", pool=pool, by=actor.id)


def _require_pool(tx: Transaction, pool: str) -> None:
    query = sa.select(t.pools.c.name).where(
        t.pools.c.name == pool, t.pools.c.configured
    )
    if tx.connection.execute(query).first() is None:
        raise NotFound(f"worker pool {pool!r} was not found")
