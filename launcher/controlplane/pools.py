"""Worker pools, their keys, and the workers that have registered with them."""

from __future__ import annotations

import functools
import threading

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
import structlog

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from launcher.controlplane.authority import Authority, Bearer
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.errors import WorkerRefused
from launcher.controlplane.holding import unknown_worker
from launcher.controlplane.lifecycle import Event
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction
from launcher.controlplane.transitions import move, run_to_change
from launcher.errors import ConfigurationError, PoolKeyUnusable
from launcher.sealing.keys import PoolPublicKey
from launcher.wire.jobs import RunState
from launcher.wire.messages import ErrorCode, Registration


log = structlog.get_logger()

SEEN_EVERY = 30 * 1_000_000_000
"""How exactly it is known when a worker was last seen, in nanoseconds."""
GONE_AFTER = 150 * 1_000_000_000
"""A worker that was silent for so long, and has no job, is not there."""
MAX_METADATA = 64 * 1024
MAX_CSR = 32 * 1024
_WAITING = (RunState.UNCONFIRMED, RunState.CONFIRMED)
STORED_EVERY = 10 * 1_000_000_000
"""How often what was seen is stored, in nanoseconds, at most."""
_BEARER = (
    sa.select(
        t.pools.c.public_key,
        t.workers.c.seen_at,
        t.workers.c.drained,
        t.workers.c.cycled,
    )
    .outerjoin(
        t.workers,
        sa.and_(
            t.workers.c.pool == t.pools.c.name,
            t.workers.c.id == sa.bindparam("worker"),
        ),
    )
    .where(
        t.pools.c.name == sa.bindparam("pool"),
        t.pools.c.generation == sa.bindparam("generation"),
        t.pools.c.configured,
    )
)
_SEE = (
    sa.update(t.workers)
    .where(t.workers.c.id == sa.bindparam("worker"))
    .values(seen_at=sa.bindparam("at"))
)
_KEY = sa.select(t.pools.c.generation, t.pools.c.public_key).where(
    t.pools.c.name == sa.bindparam("pool")
)
_RESET = (
    "the worker pool was reset after the plan was made: the stored workspace is"
    " sealed to its old key"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What people want of a worker that waits."""

    drained: bool
    """It gets no job."""
    cycled: bool
    """It is to begin anew."""


class Pools:
    """Who may speak for a pool, and which workers it has."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority
        self._bearer = functools.lru_cache(256)(authority.bearer)
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        """Workers that were seen, and when, which is still to be stored."""
        self._stored_at = 0

    def create(self, pool: str, key: PoolPublicKey) -> str:
        """
        Give *pool* its key and return a certificate for it, in PEM.

        With the key that it has already, the pool gets a fresh certificate and
        nothing else changes.  Before the control plane has ever been started no
        pool is known, and any may be named.

        Raises:
            ConfigurationError: there is no such pool, or it has another key.
        """
        with self._store.write() as tx:
            found = _pool(tx, pool)
            generation = found.generation
            if generation is None:
                generation = _begin_generation(tx, pool, key)
                log.info("pool.created", pool=pool)
            elif public_key(found.public_key).fingerprint != key.fingerprint:
                raise ConfigurationError(
                    f"worker pool {pool!r} has another key already; `pool reset` gives"
                    " it a new one and shuts the workers with the old one out"
                )
        return self._authority.pool_certificate(pool, generation, key)

    def reset(self, pool: str, key: PoolPublicKey) -> str:
        """
        Give *pool* another key; the one before opens nothing from then on.

        Runs that wait with a workspace sealed to the old key fail.  Returns a
        certificate for the new one, in PEM.

        Raises:
            ConfigurationError: there is no such pool, or it has this very key.
        """
        with self._store.write() as tx:
            found = _pool(tx, pool)
            if (
                found.public_key is not None
                and public_key(found.public_key).fingerprint == key.fingerprint
            ):
                raise ConfigurationError(
                    f"worker pool {pool!r} has this key already; a reset needs another"
                )
            new = _begin_generation(tx, pool, key)
            failed = _fail_waiting(tx, found.generation or "")
        log.warning("pool.reset", pool=pool, failed_runs=failed)
        return self._authority.pool_certificate(pool, new, key)

    def authenticate(self, certificate: bytes | None) -> str:
        """
        The name of the pool whose *certificate*, in DER, somebody has proven to own.

        Raises:
            WorkerRefused: UNAUTHORIZED.
        """
        pool, _ = self._authenticated(certificate, worker="")
        return pool

    def arrive(self, certificate: bytes | None, worker: str) -> tuple[str, Standing]:
        """
        The same for a *worker* that comes to wait; notes that it is there.

        Raises:
            WorkerRefused: UNAUTHORIZED, UNKNOWN_WORKER.
        """
        pool, found = self._authenticated(certificate, worker)
        if found.seen_at is None:
            raise unknown_worker()
        at = now()
        if at - found.seen_at > SEEN_EVERY:
            self._note_seen(worker, at)
        return pool, Standing(found.drained, found.cycled)

    def named_by(self, certificate: bytes | None) -> str:
        """
        The pool that *certificate* was issued for, whatever has become of it.

        Raises:
            WorkerRefused: UNAUTHORIZED: for none of ours.
        """
        return self._named(certificate).pool

    def _named(self, certificate: bytes | None) -> Bearer:
        bearer = self._bearer(certificate) if certificate else None
        if bearer is None:
            raise _unauthorized("no certificate of a worker pool was shown")
        return bearer

    def _authenticated(self, certificate: bytes | None, worker: str) -> tuple[str, Any]:
        """The pool, and what it knows of *worker*."""
        bearer = self._named(certificate)
        if not bearer.begins <= datetime.now(UTC) <= bearer.ends:
            raise _unauthorized(
                f"the worker pool's certificate is valid until {bearer.ends:%Y-%m-%d}"
                f" and from {bearer.begins:%Y-%m-%d} only"
            )
        named = {
            "pool": bearer.pool,
            "generation": bearer.generation,
            "worker": worker,
        }
        with self._store.glance() as connection:
            found = connection.execute(_BEARER, named).one_or_none()
        if found is None or (
            public_key(found.public_key).fingerprint != bearer.key.fingerprint
        ):
            raise _unauthorized("the worker pool was reset or removed")
        return bearer.pool, found

    def _note_seen(self, worker: str, at: int) -> None:
        """Store what is known of many workers in one change."""
        with self._lock:
            self._seen[worker] = at
            if at - self._stored_at < STORED_EVERY:
                return
            seen, self._seen, self._stored_at = self._seen, {}, at
        # In one order everywhere: two orders would be a deadlock.
        rows = [{"worker": each, "at": when} for each, when in sorted(seen.items())]
        with self._store.write(durable=False) as tx:
            tx.connection.execute(_SEE, rows)

    def certify(self, pool: str, csr: str) -> str:
        """
        A certificate for the key that *pool* has, for whoever has proven to be it.

        Raises:
            WorkerRefused: MALFORMED, WRONG_KEY.
        """
        try:
            key = requested_key(csr.encode())
        except (PoolKeyUnusable, ConfigurationError) as exc:
            raise WorkerRefused(ErrorCode.MALFORMED, str(exc)) from exc
        with self._store.glance() as connection:
            found = connection.execute(_KEY, {"pool": pool}).one()
        if public_key(found.public_key).fingerprint != key.fingerprint:
            raise WorkerRefused(
                ErrorCode.WRONG_KEY, "the request is not by the worker pool's key"
            )
        log.info("pool.certified", pool=pool)
        return self._authority.pool_certificate(pool, found.generation, key)

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
            "cycled": False,
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


def key_of(connection: sa.Connection, pool: str) -> tuple[str, PoolPublicKey]:
    """The current generation of *pool*, and what seals to it."""
    found = connection.execute(_KEY, {"pool": pool}).one()
    return str(found.generation), public_key(found.public_key)


def requested_key(csr: bytes) -> PoolPublicKey:
    """
    The key that a certificate signing request in PEM is by.

    Raises:
        ConfigurationError: it is not one, or its signature is wrong.
        PoolKeyUnusable: its key will not do.
    """
    try:
        request = x509.load_pem_x509_csr(csr)
        signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as exc:
        raise ConfigurationError(
            "the request is not a certificate signing request in PEM, as made by"
            " `openssl req -new -newkey rsa:4096 -nodes`"
        ) from exc
    key = PoolPublicKey.of(request)
    if not signed:
        raise ConfigurationError("the signature of the signing request is wrong")
    return key


@functools.lru_cache(256)
def public_key(pem: str) -> PoolPublicKey:
    """A pool's key as it is stored."""
    key = serialization.load_pem_public_key(pem.encode())
    if not isinstance(key, rsa.RSAPublicKey):
        raise TypeError("not a key that was stored here")
    return PoolPublicKey(key)


def _pool(tx: Transaction, name: str) -> sa.Row[Any]:
    query = sa.select(t.pools).where(t.pools.c.name == name).with_for_update()
    found = tx.connection.execute(query).one_or_none()
    if found is not None:
        return found
    if tx.connection.execute(sa.select(t.installation.c.id)).first() is not None:
        known = tx.connection.execute(sa.select(t.pools.c.name)).scalars().all()
        names = ", ".join(sorted(known)) or "none"
        raise ConfigurationError(
            f"there is no worker pool {name!r}; in the configuration: {names}"
        )
    tx.connection.execute(
        sa.insert(t.pools).values(
            name=name, description="", labels=[], configured=False, created_at=now()
        )
    )
    return tx.connection.execute(query).one()


def _begin_generation(tx: Transaction, pool: str, key: PoolPublicKey) -> str:
    generation = new_id()
    pem = key.rsa.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    tx.change(
        sa.update(t.pools)
        .where(t.pools.c.name == pool)
        .values(generation=generation, public_key=pem.decode())
    )
    return generation


def _fail_waiting(tx: Transaction, generation: str) -> int:
    """End the runs whose next job could not open what it starts from."""
    query = (
        sa.select(t.runs.c.id)
        .join(t.workspaces, t.workspaces.c.run == t.runs.c.id)
        .where(t.runs.c.state.in_(_WAITING), t.workspaces.c.generation == generation)
    )
    waiting = tx.connection.execute(query).scalars().all()
    for each in waiting:
        run = run_to_change(tx, each)
        if run is not None and run.state in _WAITING:
            move(tx, run, Event.FAIL, note=_RESET)
    return len(waiting)


def _unauthorized(sentence: str) -> WorkerRefused:
    return WorkerRefused(ErrorCode.UNAUTHORIZED, sentence)
