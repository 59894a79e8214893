"""Storing a stack as it is configured from now on; what was before is kept for runs."""

from __future__ import annotations

import sqlalchemy as sa
import structlog

from launcher.controlplane import stack_spec
from launcher.controlplane.clock import now
from launcher.controlplane.keys import Keyring
from launcher.controlplane.specs import purpose
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction


log = structlog.get_logger()


def store_revision(
    tx: Transaction, keyring: Keyring, stack: t.Stack, spec: StackSpec
) -> int:
    """Make *spec* what *stack* is, unless it is already; return the revision."""
    encoded = stack_spec.encoded(spec)
    mark = keyring.mark(encoded)
    before = tx.connection.execute(
        sa.select(t.revisions.c.mark).where(t.revisions.c.id == stack.revision)
    ).scalar_one_or_none()
    if before == mark:
        return stack.revision
    revision: int = tx.connection.execute(
        sa.insert(t.revisions)
        .values(
            stack=spec.slug,
            mark=mark,
            sealed=keyring.seal(encoded, purpose(spec.slug)),
            created_at=now(),
        )
        .returning(t.revisions.c.id)
    ).scalar_one()
    tx.change(
        sa.update(t.stacks)
        .where(t.stacks.c.slug == spec.slug)
        .values(revision=revision)
    )
    log.info("stack.changed", stack=spec.slug, revision=revision)
    return revision
