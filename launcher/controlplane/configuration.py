"""Making the database agree with the configuration file."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
import structlog

from launcher.controlplane import bell, stack_config
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.desired_state import ApiKey, DesiredState, WorkerPool
from launcher.controlplane.keys import Keyring, hash_secret, secret_matches
from launcher.controlplane.lifecycle import TERMINAL
from launcher.controlplane.outbox import set_webhooks
from launcher.controlplane.policies import set_policies
from launcher.controlplane.removal import remove
from launcher.controlplane.revisions import store_revision
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction, one
from launcher.errors import StoreUnusable


log = structlog.get_logger()

VENDORS = frozenset({"ansible", "terraform"})
"""What the launcher of this version can run; others are warned about."""
_KEY_CHECK = b"the database belongs to this key"


class Configuration:
    """Applies desired states, all or nothing."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring

    def apply(self, desired: DesiredState) -> None:
        """
        Make the database what *desired* says; runs that are active go on.

        Raises:
            StoreUnusable: the key file is not the one the database was made with.
        """
        for spec in desired.stacks:
            if spec.vendor not in VENDORS:
                log.warning("vendor.unknown", stack=spec.slug, vendor=spec.vendor)
        # Hashing is slow on purpose: not inside the transaction.
        keys = self._hashed(desired.api_keys)
        with self._store.write() as tx:
            tx.alone("configuration")
            self._claim_database(tx, desired.account)
            _set_api_keys(tx, keys)
            _set_pools(tx, desired.worker_pools)
            set_policies(tx, desired.policies)
            set_webhooks(tx, self._keyring, desired.webhooks)
            for spec in desired.stacks:
                self._set_stack(tx, spec)
            _remove_stacks(tx, {spec.slug for spec in desired.stacks})
            _prune_revisions(tx)
            for pool in desired.worker_pools:
                tx.wake(bell.of_pool(pool.name))
        log.info(
            "configuration.applied",
            account=desired.account,
            api_keys=len(desired.api_keys),
            worker_pools=len(desired.worker_pools),
            policies=len(desired.policies),
            stacks=len(desired.stacks),
        )

    def _claim_database(self, tx: Transaction, account: str) -> None:
        found = tx.connection.execute(sa.select(t.installation)).one_or_none()
        if found is None:
            mark = self._keyring.mark(_KEY_CHECK)
            tx.connection.execute(
                sa.insert(t.installation).values(id=1, key_mark=mark, account=account)
            )
            return
        require_own(self._keyring, found.key_mark)
        tx.change(sa.update(t.installation).values(account=account))

    def _hashed(self, keys: Sequence[ApiKey]) -> list[dict[str, str]]:
        with self._store.read() as connection:
            rows = connection.execute(sa.select(t.api_keys)).all()
        known = {row.id: (row.secret_hash, row.generation) for row in rows}
        found = []
        for key in keys:
            secret_hash, generation = known.get(key.id, (None, ""))
            if secret_hash is None or not secret_matches(key.secret, secret_hash):
                secret_hash, generation = hash_secret(key.secret), new_id()
            found.append(
                {
                    "id": key.id,
                    "secret_hash": secret_hash,
                    "generation": generation,
                    "role": key.role,
                }
            )
        return found

    def _set_stack(self, tx: Transaction, spec: StackSpec) -> None:
        columns = t.stacks.c
        query = sa.select(t.stacks).where(columns.slug == spec.slug)
        query = query.with_for_update(key_share=True)
        known = one(tx.connection, t.Stack, query)
        if known is None:
            tx.connection.execute(
                sa.insert(t.stacks).values(
                    slug=spec.slug, pool=spec.worker_pool, revision=0, created_at=now()
                )
            )
            known = one(tx.connection, t.Stack, query)
            assert known is not None  # noqa: S101 (it was inserted)
        added = stack_config.stored(tx.connection, self._keyring, spec.slug)
        merged = stack_config.with_added(spec, added)
        store_revision(tx, self._keyring, known, merged)
        edges = t.stack_dependencies
        tx.change(sa.delete(edges).where(edges.c.stack == spec.slug))
        for dependency in spec.depends_on:
            tx.connection.execute(
                sa.insert(edges).values(stack=spec.slug, upstream=dependency.stack)
            )
        if known.deleted:
            log.warning("stack.stays_deleted", stack=spec.slug)
        tx.change(
            sa.update(t.stacks)
            .where(columns.slug == spec.slug)
            .values(
                pool=spec.worker_pool,
                removed_at=columns.removed_at if known.deleted else None,
            )
        )


def require_own(keyring: Keyring, mark: bytes) -> None:
    """
    Check that a database with this *mark* was made with the keys of *keyring*.

    Raises:
        StoreUnusable: it was not.
    """
    if not owns(keyring, mark):
        raise StoreUnusable("the database was made with another key file")


def owns(keyring: Keyring, mark: bytes) -> bool:
    """Whether a database with this *mark* was made with the keys of *keyring*."""
    return keyring.mark(_KEY_CHECK) == mark


def _set_api_keys(tx: Transaction, wanted: Sequence[dict[str, str]]) -> None:
    tx.change(sa.delete(t.api_keys))
    for key in wanted:
        tx.connection.execute(sa.insert(t.api_keys).values(key))


def _set_pools(tx: Transaction, wanted: Sequence[WorkerPool]) -> None:
    columns = t.pools.c
    known = set(tx.connection.execute(sa.select(columns.name)).scalars())
    for name in known - {pool.name for pool in wanted}:
        tx.change(sa.delete(t.pools).where(columns.name == name))
        log.warning("pool.removed", pool=name)
    for pool in wanted:
        values = {
            "description": pool.description,
            "labels": list(pool.labels),
            "configured": True,
            "drift_limit": pool.drift_limit,
        }
        if pool.name in known:
            tx.change(
                sa.update(t.pools).where(columns.name == pool.name).values(values)
            )
        else:
            row = {**values, "name": pool.name, "created_at": now()}
            tx.connection.execute(sa.insert(t.pools).values(row))


def _remove_stacks(tx: Transaction, wanted: set[str]) -> None:
    columns = t.stacks.c
    # Who takes a deleted stack out of the file may put it in again.
    tx.change(
        sa.update(t.stacks)
        .where(columns.deleted, columns.slug.not_in(wanted))
        .values(deleted=False)
    )
    query = sa.select(columns.slug).where(columns.removed_at.is_(None))
    for slug in set(tx.connection.execute(query).scalars()) - wanted:
        remove(tx, slug, "the stack was removed")
        log.warning("stack.removed", stack=slug)


def _prune_revisions(tx: Transaction) -> None:
    """Keep secrets no longer than somebody needs them."""
    current = sa.select(t.stacks.c.revision)
    pinned = sa.select(t.runs.c.revision).where(
        t.runs.c.revision.is_not(None), t.runs.c.state.not_in(TERMINAL)
    )
    tx.change(
        sa.delete(t.revisions).where(
            t.revisions.c.id.not_in(current), t.revisions.c.id.not_in(pinned)
        )
    )
