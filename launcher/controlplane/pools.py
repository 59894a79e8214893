"""Worker pools, their keys, and the workers that have registered with them."""

from __future__ import annotations

import base64
import secrets

import msgspec
import sqlalchemy as sa
import structlog

from launcher.controlplane.clock import new_id, now
from launcher.controlplane.desired_state import pool_name as checked_name
from launcher.controlplane.errors import WorkerRefused
from launcher.controlplane.keys import hash_token
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction, open_store
from launcher.errors import ConfigurationError
from launcher.wire.messages import ErrorCode, PoolToken, Registration


log = structlog.get_logger()

SEEN_EVERY = 30 * 1_000_000_000
"""How exactly it is known when a worker was last seen, in nanoseconds."""
GONE_AFTER = 150 * 1_000_000_000
"""A worker that was silent for so long, and has no job, is not there."""
MAX_METADATA = 64 * 1024


def create_token(database_url: str, pool_name: str, endpoint: str) -> str:
    """
    Make a new key for a pool and return it as a worker pool token.

    The pool's earlier key is worthless from then on.  Before the control plane
    has ever been started no pool is known, and any may be named.

    Raises:
        ConfigurationError: there is no such pool, or *endpoint* is not a URL.
        StoreUnusable: the database cannot be used.
    """
    try:
        checked_name(pool_name)
    except ValueError as exc:
        raise ConfigurationError(str(exc)) from exc
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(f"endpoint {endpoint!r} is not an http or https URL")
    store = open_store(database_url)
    try:
        key = Pools(store).new_key(pool_name)
    finally:
        store.close()
    token = PoolToken(endpoint=endpoint.rstrip("/"), pool=pool_name, key=key)
    return base64.b64encode(msgspec.json.encode(token)).decode()


def _set_key(tx: Transaction, name: str, key_hash: str) -> None:
    update = sa.update(t.pools).where(t.pools.c.name == name).values(key_hash=key_hash)
    if tx.change(update):
        return
    known = tx.connection.execute(sa.select(t.pools.c.name)).scalars().all()
    if tx.connection.execute(sa.select(t.installation.c.id)).first() is not None:
        names = ", ".join(sorted(known)) or "none"
        raise ConfigurationError(
            f"there is no worker pool {name!r}; in the configuration: {names}"
        )
    tx.connection.execute(
        sa.insert(t.pools).values(
            name=name,
            description="",
            labels=[],
            configured=False,
            key_hash=key_hash,
            created_at=now(),
        )
    )


class Pools:
    """Who may speak for a pool, and which workers it has."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def new_key(self, pool: str) -> str:
        """
        Make a key for *pool*; the one before is worthless from then on.

        Raises:
            ConfigurationError: there is no such pool.
        """
        key = secrets.token_urlsafe(32)
        with self._store.write() as tx:
            _set_key(tx, pool, hash_token(key))
        log.info("pool.key_created", pool=pool)
        return key

    def authenticate(self, key: str) -> str:
        """
        The name of the pool whose key this is.

        The database is asked for the key's hash: how long the search takes
        says nothing about the key.

        Raises:
            WorkerRefused: UNAUTHORIZED.
        """
        query = sa.select(t.pools.c.name).where(
            t.pools.c.key_hash == hash_token(key), t.pools.c.configured
        )
        with self._store.read() as connection:
            name = connection.execute(query).scalar_one_or_none()
        if not key or name is None:
            raise WorkerRefused(
                ErrorCode.UNAUTHORIZED, "the worker pool's key is not known"
            )
        return str(name)

    def register(self, pool: str, registration: Registration) -> str:
        """Note a worker and return its id: the same for the same slot."""
        size = sum(len(k) + len(v) for k, v in registration.metadata.items())
        if size > MAX_METADATA or len(registration.instance) > 255:
            raise WorkerRefused(ErrorCode.TOO_LARGE, "too much to note about a worker")
        columns = t.workers.c
        key = {
            "pool": pool,
            "instance": registration.instance,
            "slot": registration.slot,
        }
        values = {
            "version": registration.version[:255],
            "metadata": registration.metadata,
            "seen_at": now(),
        }
        with self._store.write() as tx:
            known = tx.connection.execute(
                sa.select(columns.id).filter_by(**key)
            ).scalar_one_or_none()
            worker = str(known) if known is not None else new_id()
            if known is None:
                row = {**key, **values, "id": worker, "registered_at": now()}
                tx.connection.execute(sa.insert(t.workers).values(row))
            else:
                tx.change(
                    sa.update(t.workers).where(columns.id == worker).values(values)
                )
        log.info("worker.registered", worker=worker, **key)
        return worker

    def see(self, pool: str, worker: str) -> None:
        """
        Note that a worker is there.

        Raises:
            WorkerRefused: UNKNOWN_WORKER.
        """
        columns = t.workers.c
        at = now()
        with self._store.read() as connection:
            seen = connection.execute(
                sa.select(columns.seen_at).where(
                    columns.id == worker, columns.pool == pool
                )
            ).scalar_one_or_none()
        if seen is None:
            raise WorkerRefused(ErrorCode.UNKNOWN_WORKER, "register first")
        if at - seen > SEEN_EVERY:
            with self._store.write() as tx:
                tx.change(
                    sa.update(t.workers).where(columns.id == worker).values(seen_at=at)
                )

    def forget_the_gone(self) -> None:
        """Drop workers that were silent for a day and hold no job."""
        day = 24 * 3600 * 1_000_000_000
        busy = sa.select(t.jobs.c.worker).where(t.jobs.c.state == t.JobState.CLAIMED)
        with self._store.write() as tx:
            tx.change(
                sa.delete(t.workers).where(
                    t.workers.c.seen_at < now() - day, t.workers.c.id.not_in(busy)
                )
            )
