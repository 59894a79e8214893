"""Terraform and OpenTofu."""

from __future__ import annotations

import json

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
                f"{tool} plan -input=false -lock=true -out=spacelift.plan",
                f"{tool} show -json spacelift.plan >{PLAN_FILE}",
            ),
            Phase.APPLY: (f"{tool} apply -auto-approve -input=false spacelift.plan",),
        },
        read_plan=read_plan,
        environment={"TF_IN_AUTOMATION": "1"},
    )


def read_plan(content: bytes) -> Plan:
    """Changes of resources and outputs; data sources that are read do not count."""
    plan = json.loads(content)
    changes = tuple(
        ResourceChange(
            action=action, address=str(entry["address"]), type=str(entry["type"])
        )
        for entry in plan.get("resource_changes", [])
        if (action := _ACTIONS.get(tuple(entry["change"]["actions"])))
    )
    outputs = any(
        entry["actions"] != ["no-op"]
        for entry in plan.get("output_changes", {}).values()
    )
    return Plan(has_changes=bool(changes) or outputs, changes=changes)
