"""Creating runs: who may, what a run is made of, and its first entry in the history."""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa

from launcher.controlplane import audit, bell
from launcher.controlplane.actors import Actor
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.errors import (
    NotFound,
    RequestRefused,
    RuntimeConfigInvalid,
)
from launcher.controlplane.lifecycle import BLOCKS
from launcher.controlplane.runtime_config import RuntimeConfig, read_once
from launcher.controlplane.specs import Specs
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction
from launcher.controlplane.transitions import record
from launcher.wire.jobs import RunState, RunType


MAX_METADATA = 64 * 1024
"""Bytes of one metadata string, in UTF-8."""
MAX_COMMAND = 32 * 1024
MAX_TARGETS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What somebody wants to be run."""

    type: RunType = RunType.TRACKED
    sha: str = ""
    """Empty: what the stack is pinned to, or the newest commit of its branch."""
    metadata: str | None = None
    command: str = ""
    skip_init: bool = False
    runtime_config: str = field(default="", repr=False)
    """YAML, for this run only."""
    drift: bool = False
    local_workspace: str | None = None
    overrides: bytes | None = field(default=None, repr=False)
    external: tuple[str, ...] = ()
    """Names of what has to be completed outside before it begins."""


_INSERT = sa.insert(t.runs).returning(t.runs)


def create(
    tx: Transaction, specs: Specs, stack: str, actor: Actor, order: Order
) -> t.Run:
    """
    Put a new run into the queue; its commit is to be looked up.

    Raises:
        NotFound: there is no such stack.
        RequestRefused: the stack takes no such run now, or part of it is too large.
    """
    found = specs.current(tx.connection, stack)
    if found is None:
        raise NotFound(f"stack {stack!r} was not found")
    row, spec = found
    _require_open(row, actor, order.type)
    _check(order)
    once = _once(order.runtime_config, stack)
    at = now()
    pinned = row.pinned_commit or {}
    values = {
        "id": new_id(),
        "stack": spec.slug,
        "type": order.type,
        "state": RunState.QUEUED,
        "version": 1,
        "created_at": at,
        "updated_at": at,
        "triggered_by": actor.id,
        "requested_sha": (order.sha.strip() or pinned.get("hash", ""))[:255],
        "commit_branch": spec.branch,
        "commit_author": "",
        "commit_message": "",
        "commit_at": 0,
        "command": order.command,
        "skip_init": order.skip_init,
        "runtime_config": specs.sealed_text(order.runtime_config) if once else None,
        "drift": order.drift,
        "local_workspace": order.local_workspace,
        "overrides": order.overrides,
    }
    made = t.Run(**tx.connection.execute(_INSERT, values).mappings().one())
    if once is not None:
        specs.keep_runtime_configs(tx, {made.id: once})
    record(tx, made, username=actor.id)
    append_metadata(tx, made.id, order.metadata)
    audit.note(tx, actor, "run.create", stack, run=made.id, type=order.type)
    return made


def append_metadata(tx: Transaction, run: str, value: str | None) -> None:
    """
    Keep what a user said when interacting with *run*.

    Raises:
        RequestRefused: it is too long.
    """
    if not value:
        return
    if len(value.encode()) > MAX_METADATA:
        raise RequestRefused(f"run metadata has at most {MAX_METADATA} bytes")
    count = tx.connection.execute(
        sa.select(sa.func.count())
        .select_from(t.run_metadata)
        .where(t.run_metadata.c.run == run)
    ).scalar_one()
    tx.connection.execute(
        sa.insert(t.run_metadata).values(run=run, position=count, value=value)
    )
    tx.wake(bell.of_run(run))


def checked_targets(targets: list[str]) -> list[str]:
    """
    The addresses of a targeted replan, each once.

    Raises:
        RequestRefused: there are none, too many, or one is not an address.
    """
    if not 0 < len(targets) <= MAX_TARGETS:
        raise RequestRefused(f"a replan has 1 to {MAX_TARGETS} targets")
    for target in targets:
        if not target.strip() or len(target) > 1024 or not target.isprintable():
            raise RequestRefused(f"{target[:100]!r} is not the address of a resource")
    return list(dict.fromkeys(targets))


def _require_open(stack: t.Stack, actor: Actor, kind: RunType) -> None:
    if stack.disabled:
        raise RequestRefused(f"stack {stack.slug!r} is disabled")
    if kind in BLOCKS and stack.locked_by not in (None, actor.id):
        why = f": {stack.lock_note}" if stack.lock_note else ""
        raise RequestRefused(
            f"stack {stack.slug!r} is locked by {stack.locked_by}{why}"
        )


def _check(order: Order) -> None:
    if order.type is RunType.TASK and not order.command.strip():
        raise RequestRefused("a task needs a command")
    if "\0" in order.command or len(order.command.encode()) > MAX_COMMAND:
        raise RequestRefused(
            f"a command has at most {MAX_COMMAND} bytes, and no NUL among them"
        )


def _once(text: str, stack: str) -> RuntimeConfig | None:
    if not text.strip():
        return None
    try:
        return read_once(text, stack)
    except RuntimeConfigInvalid as exc:
        raise RequestRefused(str(exc)) from exc
