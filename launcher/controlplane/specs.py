"""Stacks as they are configured now, and as they were when a run began."""

from __future__ import annotations

import threading

from collections import OrderedDict
from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from launcher.controlplane import stack_spec
from launcher.controlplane.keys import Keyring
from launcher.controlplane.runtime_config import RuntimeConfig, applied
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction, every, one
from launcher.wire.jobs import Variable


_KEPT = 512
_CURRENT = sa.select(t.stacks).where(
    t.stacks.c.slug == sa.bindparam("slug"), t.stacks.c.removed_at.is_(None)
)
_REVISION = sa.select(t.stacks.c.revision).where(
    t.stacks.c.slug == sa.bindparam("slug")
)
_KEEP_RUNTIME_CONFIG = sa.insert(t.runtime_configs)
_FORGET_RUNTIME_CONFIG = sa.delete(t.runtime_configs).where(
    t.runtime_configs.c.run == sa.bindparam("run_id")
)
_RUNTIME_CONFIG = sa.select(t.runtime_configs.c.sealed).where(
    t.runtime_configs.c.run == sa.bindparam("run_id")
)


class Specs:
    """Reads sealed specs; remembers the ones it has opened lately."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._opened: OrderedDict[int, StackSpec] = OrderedDict()
        self._lock = threading.Lock()

    def current(
        self, connection: sa.Connection, slug: str
    ) -> tuple[t.Stack, StackSpec] | None:
        """A stack that is configured, and how; None when it is not."""
        stack = one(connection, t.Stack, _CURRENT, {"slug": slug})
        return None if stack is None else (stack, self.at(connection, stack.revision))

    def all(self, connection: sa.Connection) -> list[tuple[t.Stack, StackSpec]]:
        """Every stack that is configured, by slug."""
        query = sa.select(t.stacks).where(t.stacks.c.removed_at.is_(None))
        stacks = every(connection, t.Stack, query.order_by(t.stacks.c.slug))
        return [(stack, self.at(connection, stack.revision)) for stack in stacks]

    def of_run(
        self,
        connection: sa.Connection,
        run: t.Run,
        config: RuntimeConfig | None = None,
    ) -> StackSpec:
        """
        The stack as *run* sees it, even when it was removed meanwhile.

        *config* is the run's, for those who have it at hand.
        """
        config = config or self.runtime_config(connection, run.id)
        spec = applied(self._configured(connection, run), config)
        for sealed in (run.inputs, run.overrides):
            if sealed is not None:
                spec = overridden(spec, self._keyring.open(sealed, OVERRIDES))
        return spec

    def runtime_config(self, connection: sa.Connection, run: str) -> RuntimeConfig:
        """What *run* is made from besides its stack, as far as it is known."""
        named = {"run_id": run}
        return self.opened_runtime_config(
            run, connection.execute(_RUNTIME_CONFIG, named).scalar_one_or_none()
        )

    def opened_runtime_config(self, run: str, sealed: bytes | None) -> RuntimeConfig:
        """The same, from what is stored with *run*."""
        if sealed is None:
            return RuntimeConfig()
        return msgspec.json.decode(
            self._keyring.open(sealed, _runtime_purpose(run)), type=RuntimeConfig
        )

    def keep_runtime_configs(
        self, tx: Transaction, configs: Mapping[str, RuntimeConfig]
    ) -> None:
        """Make each run, which had no configuration, from this from now on."""
        rows = [
            {
                "run": run,
                "sealed": self._keyring.seal(
                    msgspec.json.encode(config), _runtime_purpose(run)
                ),
            }
            for run, config in configs.items()
        ]
        tx.connection.execute(_KEEP_RUNTIME_CONFIG, rows)

    def forget_runtime_config(self, tx: Transaction, run: str) -> None:
        """Let *run* have none any more."""
        tx.change(_FORGET_RUNTIME_CONFIG, {"run_id": run})

    def sealed_text(self, text: str) -> bytes:
        """What a run was triggered with, as it is kept."""
        return self._keyring.seal(text.encode(), _ONCE)

    def opened_text(self, sealed: bytes | None) -> str:
        """The same again; empty when there was nothing."""
        return self._keyring.open(sealed, _ONCE).decode() if sealed else ""

    def _configured(self, connection: sa.Connection, run: t.Run) -> StackSpec:
        if run.revision is not None:
            return self.at(connection, run.revision)
        revision = connection.execute(_REVISION, {"slug": run.stack}).scalar_one()
        return self.at(connection, revision)

    def row(self, connection: sa.Connection, slug: str) -> t.Stack:
        """A stack that there is or was."""
        query = sa.select(t.stacks).where(t.stacks.c.slug == slug)
        return t.Stack(**connection.execute(query).mappings().one())

    def policies_of(
        self, connection: sa.Connection, run: t.Run, stack: t.Stack | None = None
    ) -> tuple[str, ...]:
        """
        Names of the policies that judge *run*: those of its stack as it is now.

        A policy counts from the moment it is attached, for runs under way, too.
        *stack* is for those who have it at hand.
        """
        if stack is not None and stack.removed_at is None:
            return self.at(connection, stack.revision).policies
        current = self.current(connection, run.stack)
        return (current[1] if current else self.of_run(connection, run)).policies

    def deploys_by_itself(self, connection: sa.Connection, run: t.Run) -> bool:
        """
        Whether *run* is applied without confirmation.

        What a policy was told about the run must hold; switching autodeploy off
        has to take effect at once, and so has locking the stack.
        """
        current = self.current(connection, run.stack)
        return (
            self.of_run(connection, run).autodeploy
            and current is not None
            and current[1].autodeploy
            and current[0].locked_by is None
            and not run.warnings
        )

    def at(self, connection: sa.Connection, revision: int) -> StackSpec:
        """The spec stored as *revision*, which never changes."""
        with self._lock:
            spec = self._opened.get(revision)
            if spec is not None:
                self._opened.move_to_end(revision)
                return spec
        row = connection.execute(
            sa.select(t.revisions.c.stack, t.revisions.c.sealed).where(
                t.revisions.c.id == revision
            )
        ).one()
        spec = stack_spec.decoded(self._keyring.open(row.sealed, purpose(row.stack)))
        with self._lock:
            self._opened[revision] = spec
            if len(self._opened) > _KEPT:
                self._opened.popitem(last=False)
        return spec


def _runtime_purpose(run: str) -> str:
    return f"runtime configuration:{run}"


_ONCE = "one-off runtime configuration"
OVERRIDES = "overrides"
"""What the variables for one run only are sealed for."""


def overridden(spec: StackSpec, overrides: bytes) -> StackSpec:
    """*spec* with variables for one run, which win over all others."""
    given = msgspec.json.decode(overrides, type=tuple[Variable, ...])
    names = {variable.name for variable in given}
    kept = tuple(v for v in spec.own.environment if v.name not in names)
    own = msgspec.structs.replace(spec.own, environment=(*kept, *given))
    return msgspec.structs.replace(spec, own=own)


def purpose(slug: str) -> str:
    """What the spec of a stack is sealed for."""
    return f"stack:{slug}"
