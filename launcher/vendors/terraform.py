"""Terraform and OpenTofu."""

from __future__ import annotations

import msgspec

from launcher.vendors.table import PLAN_FILE, Plan, VendorTable
from launcher.wire.jobs import Phase, Vendor
from launcher.wire.messages import ResourceChange


_ACTIONS = {
    ("create",): "added",
    ("update",): "changed",
    ("delete",): "deleted",
    ("delete", "create"): "replaced",
    ("create", "delete"): "replaced",
}
_TOOLS_PLAN = "spacelift.plan"
_UNCHANGED = {("no-op",), ("read",)}


def terraform(_: Vendor) -> VendorTable:
    return _table("terraform")


def opentofu(_: Vendor) -> VendorTable:
    return _table("tofu")


def _table(tool: str) -> VendorTable:
    return VendorTable(
        name=tool,
        commands={
            Phase.INITIALIZE: (f"{tool} init -input=false",),
            Phase.PLAN: (
                f"{tool} plan -input=false -lock=true -out={_TOOLS_PLAN}",
                f"{tool} show -json {_TOOLS_PLAN} >{PLAN_FILE}",
            ),
            Phase.APPLY: (f"{tool} apply -auto-approve -input=false {_TOOLS_PLAN}",),
        },
        read_plan=read_plan,
        environment={"TF_IN_AUTOMATION": "1"},
        plan_files=(PLAN_FILE, _TOOLS_PLAN),
    )


class _Import(msgspec.Struct):
    """Whatever it says, it says that something is imported."""


class _Change(msgspec.Struct):
    actions: tuple[str, ...]
    importing: _Import | None = None

    @property
    def changes(self) -> bool:
        return self.actions not in _UNCHANGED or self.importing is not None


class _Resource(msgspec.Struct):
    address: str
    type: str
    change: _Change
    previous_address: str = ""

    @property
    def changes(self) -> bool:
        # Imports and moves change the state, although nothing is done to the object.
        return self.change.changes or bool(self.previous_address)


class _Plan(msgspec.Struct):
    format_version: str
    resource_changes: tuple[_Resource, ...] = ()
    output_changes: dict[str, _Change] = {}


def read_plan(content: bytes) -> Plan:
    """Changes of resources and outputs; data sources that are read do not count."""
    plan = msgspec.json.decode(content, type=_Plan)
    return Plan(
        has_changes=any(entry.changes for entry in plan.resource_changes)
        or any(entry.changes for entry in plan.output_changes.values()),
        changes=tuple(
            ResourceChange(action=action, address=entry.address, type=entry.type)
            for entry in plan.resource_changes
            if (action := _ACTIONS.get(entry.change.actions))
        ),
    )
