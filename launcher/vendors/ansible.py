"""
Ansible: the plan is the playbook in check mode.

A callback plugin of ours writes what would change to a file; parsing the recap
out of the log would let a task's message decide.
"""

from __future__ import annotations

import shlex

from importlib import resources

import msgspec

from launcher.model import WORKSPACE
from launcher.vendors.table import PLAN_FILE, Plan, VendorTable, option
from launcher.wire.jobs import Phase, Vendor
from launcher.wire.messages import ResourceChange


_PLUGINS = ".spacelift/ansible"


def table(vendor: Vendor) -> VendorTable:
    playbook = shlex.quote(option(vendor, "playbook", str, "playbook.yml"))
    plugin = resources.files(__package__).joinpath("ansible_plan_callback.py")
    plugins = f'"{WORKSPACE}/{_PLUGINS}${{ANSIBLE_CALLBACK_PLUGINS:+:}}'
    plugins += '${ANSIBLE_CALLBACK_PLUGINS-}"'
    return VendorTable(
        name="ansible",
        uses_ansible_image=True,
        commands={
            Phase.INITIALIZE: ("ansible-playbook --version",),
            Phase.PLAN: (
                (
                    f'SPACELIFT_PLAN_FILE="$PWD/{PLAN_FILE}" '
                    f"ANSIBLE_CALLBACK_PLUGINS={plugins} "
                    f"ansible-playbook --check --diff {playbook}"
                ),
            ),
            Phase.APPLY: (f"ansible-playbook --diff {playbook}",),
        },
        read_plan=read_plan,
        files={f"{_PLUGINS}/spacelift_plan.py": plugin.read_bytes()},
    )


class _Task(msgspec.Struct):
    host: str
    task: str
    module: str


class _Plan(msgspec.Struct):
    changed: tuple[_Task, ...]


def read_plan(content: bytes) -> Plan:
    """One change for each task that would change a host."""
    changes = tuple(
        ResourceChange(
            action="changed", address=f"{entry.host}: {entry.task}", type=entry.module
        )
        for entry in msgspec.json.decode(content, type=_Plan).changed
    )
    return Plan(has_changes=bool(changes), changes=changes)
