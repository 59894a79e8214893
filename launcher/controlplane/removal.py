"""How a stack goes: out of the configuration, or by somebody's wish."""

from __future__ import annotations

import sqlalchemy as sa
import structlog

from launcher.controlplane.clock import now
from launcher.controlplane.lifecycle import LIFECYCLE, Event
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction, every
from launcher.controlplane.transitions import move


log = structlog.get_logger()

WAITING = tuple(
    state for state, traits in LIFECYCLE.items() if Event.DISCARD in traits.leads_to
)
"""States in which nobody works on a run, so that it goes with its stack."""


def remove(tx: Transaction, stack: str, note: str) -> None:
    """Let nothing new begin for *stack*; what a worker has begun goes on."""
    tx.change(
        sa.update(t.stacks).where(t.stacks.c.slug == stack).values(removed_at=now())
    )
    _discard_waiting(tx, stack, note)


def delete(tx: Transaction, stack: str) -> None:
    """Remove *stack*, and keep it removed while the configuration still has it."""
    tx.change(
        sa.update(t.stacks)
        .where(t.stacks.c.slug == stack)
        .values(deleted=True, destroyer=None)
    )
    remove(tx, stack, "the stack was deleted")
    log.warning("stack.deleted", stack=stack)


def delete_destroyed(tx: Transaction, run: t.Run) -> None:
    """Delete the stack that *run* has destroyed, if that is what it was for."""
    destroyer = tx.connection.execute(
        sa.select(t.stacks.c.destroyer).where(t.stacks.c.slug == run.stack)
    ).scalar_one()
    if destroyer == run.id:
        delete(tx, run.stack)


def _discard_waiting(tx: Transaction, stack: str, note: str) -> None:
    """What nobody is working on ends with its stack; the queue's end first."""
    query = (
        sa.select(t.runs)
        .where(t.runs.c.stack == stack, t.runs.c.state.in_(WAITING))
        .order_by(t.runs.c.number.desc())
        .with_for_update()
    )
    for run in every(tx.connection, t.Run, query):
        move(tx, run, Event.DISCARD, note=note)
