"""
What a stack's runs have made: its outputs and its resources.

Outputs are kept sealed, since some are secret.  Resources are what plans that were
carried out by this control plane speak of; what a plan says of values never gets here.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from launcher.controlplane.errors import WorkerRefused
from launcher.controlplane.hand_over import plan_of
from launcher.controlplane.holding import current, wrong_state
from launcher.controlplane.keys import Keyring
from launcher.controlplane.lifecycle import LIFECYCLE
from launcher.controlplane.specs import OVERRIDES
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction
from launcher.wire.jobs import RunState, RunType, Variable
from launcher.wire.messages import Ack, ErrorCode, OutputsReport


Node = dict[str, Any]

MAX_OUTPUTS = 1000
MAX_NAME = 255


class Products:
    """Keeps and shows them."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring

    def report(self, pool: str, job_id: str, token: str, report: OutputsReport) -> Ack:
        """
        Keep the outputs of an apply; those of applies before it are forgotten.

        Raises:
            WorkerRefused: TOO_LARGE, or WRONG_STATE when nothing is being applied.
        """
        names = [output.name for output in report.outputs]
        if len(names) > MAX_OUTPUTS or any(len(name) > MAX_NAME for name in names):
            raise WorkerRefused(
                ErrorCode.TOO_LARGE,
                f"a stack has at most {MAX_OUTPUTS} outputs, each with a name of at"
                f" most {MAX_NAME} characters",
            )
        latest = {output.name: output for output in report.outputs}
        with self._store.write() as tx:
            _, run = current(tx, pool, job_id, token)
            if run.state is not RunState.APPLYING or run.type is not RunType.TRACKED:
                raise wrong_state(f"a run that is {run.state} has no outputs")
            columns = t.stack_outputs.c
            here = columns.stack == run.stack
            query = sa.select(columns.name, columns.mark, columns.changed_by)
            before = {row.name: row for row in tx.connection.execute(query.where(here))}
            tx.change(sa.delete(t.stack_outputs).where(here))
            for output in latest.values():
                mark = self._keyring.mark(msgspec.json.encode(output.value))
                known = before.get(output.name)
                same = known is not None and known.mark == mark
                sealed = None
                if output.value is not None:
                    purpose = _purpose(run.stack)
                    sealed = self._keyring.seal(output.value.encode(), purpose)
                tx.connection.execute(
                    sa.insert(t.stack_outputs).values(
                        stack=run.stack,
                        name=output.name,
                        changed_by=known.changed_by if known and same else run.id,
                        mark=mark,
                        sensitive=output.sensitive,
                        sealed=sealed,
                    )
                )
        return Ack()

    def inputs(
        self, connection: sa.Connection, spec: StackSpec
    ) -> tuple[list[Variable], list[str]]:
        """What *spec* refers to of other stacks, and what of that is not there."""
        found, missing = [], []
        for need in spec.depends_on:
            columns = t.stack_outputs.c
            query = sa.select(t.stack_outputs).where(columns.stack == need.stack)
            there = {row.name: row for row in connection.execute(query)}
            for reference in need.references:
                row = there.get(reference.output)
                if row is None or row.sealed is None:
                    named = f"{need.stack}.{reference.output} => {reference.variable}"
                    missing.append(named)
                    continue
                value = self._keyring.open(row.sealed, _purpose(need.stack)).decode()
                found.append(
                    Variable(
                        name=reference.variable,
                        value=_as_text(value),
                        secret=row.sensitive,
                    )
                )
        return found, missing

    def sealed_inputs(self, variables: list[Variable]) -> bytes | None:
        """As they are kept with a run."""
        if not variables:
            return None
        return self._keyring.seal(msgspec.json.encode(variables), OVERRIDES)

    def outputs(self, stack: str) -> list[Node]:
        """The outputs of *stack* by name; values of sensitive ones are not shown."""
        columns = t.stack_outputs.c
        query = sa.select(t.stack_outputs).where(columns.stack == stack)
        with self._store.read() as connection:
            rows = connection.execute(query.order_by(columns.name)).all()
        return [
            {
                "id": row.name,
                "sensitive": row.sensitive,
                "changedBy": row.changed_by,
                "description": "",
                "value": None
                if row.sensitive or row.sealed is None
                else self._keyring.open(row.sealed, _purpose(stack)).decode(),
            }
            for row in rows
        ]

    def resources(self, stack: str, vendor: str) -> list[Node]:
        """What *stack* has made, by address."""
        columns = t.resources.c
        query = sa.select(t.resources).where(columns.stack == stack)
        with self._store.read() as connection:
            rows = connection.execute(query.order_by(columns.address)).all()
        return [_entity(row, vendor) for row in rows]


def note_applied(tx: Transaction, run: t.Run) -> None:
    """Remember which resources *run*, whose plan was carried out, has changed."""
    if run.type is RunType.DESTROY:
        tx.change(sa.delete(t.resources).where(t.resources.c.stack == run.stack))
        return
    plan = plan_of(tx.connection, run.id)
    if run.type is not RunType.TRACKED or plan is None:
        return
    for change in plan.changes:
        address = change.address[:1024]
        row = sa.and_(
            t.resources.c.stack == run.stack, t.resources.c.address == address
        )
        if change.action == "deleted":
            tx.change(sa.delete(t.resources).where(row))
            continue
        changed = tx.change(sa.update(t.resources).where(row).values(updater=run.id))
        if not changed:
            tx.connection.execute(
                sa.insert(t.resources).values(
                    stack=run.stack,
                    address=address,
                    type=change.type,
                    creator=run.id if change.action == "added" else None,
                    updater=run.id,
                )
            )


def carried_out(before: RunState, after: RunState) -> bool:
    """Whether a run that moved like this has done what it had planned."""
    return LIFECYCLE[before].writes and after is RunState.FINISHED


def _as_text(value: str) -> str:
    """A string as it is, everything else as JSON."""
    try:
        parsed = msgspec.json.decode(value)
    except msgspec.MsgspecError:
        return value
    return parsed if isinstance(parsed, str) else value


def _purpose(stack: str) -> str:
    return f"outputs:{stack}"


def _entity(row: sa.Row[Any], vendor: str) -> Node:
    module, _, name = row.address.rpartition(".")
    return {
        "id": row.address,
        "address": row.address,
        "creator": {"id": row.creator} if row.creator else None,
        "drifted": None,
        "name": name,
        "parent": "",
        "thirdPartyMetadata": None,
        "type": row.type,
        "updater": {"id": row.updater} if row.updater else None,
        "vendor": _vendor(row, module, vendor),
    }


def _vendor(row: sa.Row[Any], module: str, vendor: str) -> Node:
    if vendor == "ansible":
        return {
            "__typename": "EntityVendorAnsible",
            "ansible": {"__typename": "AnsibleResource", "data": "{}"},
        }
    path, _, _ = module.rpartition(".")
    return {
        "__typename": "EntityVendorTerraform",
        "terraform": {
            "__typename": "TerraformResource",
            "address": row.address,
            "mode": "managed",
            "module": path,
            "provider": "",
            "tainted": False,
            "values": "{}",
        },
    }
