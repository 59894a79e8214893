"""
Ansible: the plan is the playbook in check mode.

A callback plugin of ours writes what would change to a file; parsing the recap
out of the log would let a task's message decide.
"""

from __future__ import annotations

import shlex

from importlib import resources

import msgspec

from launcher.errors import JobInvalid
from launcher.model import WORKSPACE
from launcher.vendors.table import PLAN_FILE, Asked, Plan, VendorTable, option
from launcher.wire.jobs import Phase, Vendor
from launcher.wire.messages import ResourceChange


_PLUGINS = ".spacelift/ansible"


_REQUIREMENTS = tuple(
    f"{folder}requirements.{ending}"
    for folder in ("", "roles/", "collections/")
    for ending in ("yml", "yaml")
)
# The file that a variable names has to be there; the usual ones need not.
_GALAXY = f"""\
found=${{SPACELIFT_ANSIBLE_REQUIREMENTS_FILE-}}
for file in {" ".join(_REQUIREMENTS)}; do
    [ -n "$found" ] || [ ! -f "$file" ] || found=$file
done
if [ -n "$found" ]; then ansible-galaxy install -r "$found"; else :; fi"""
_HOME = f"{WORKSPACE}/.ansible"
"""What is installed in one phase is there in the next, and after a pause."""


def _call(before: str, arguments: str, phase: str) -> str:
    """Words of variables are words, and nothing else in them means anything."""
    given = f"${{SPACELIFT_ANSIBLE_CLI_ARGS-}} ${{SPACELIFT_ANSIBLE_CLI_ARGS_{phase}-}}"
    return f"(set -f; {before}exec ansible-playbook {arguments} {given})"


def table(vendor: Vendor, asked: Asked) -> VendorTable:
    if asked.targets:
        raise JobInvalid("a playbook has no targets: Ansible cannot plan a part of it")
    playbook = option(vendor, "playbook", str, "playbook.yml")
    destroying = option(vendor, "destroy_playbook", str, "")
    if asked.destroys:
        if not destroying:
            raise JobInvalid(
                "Ansible does not know how to destroy what a playbook made; option"
                " 'destroy_playbook' of the stack's vendor has to name one that does"
            )
        playbook = destroying
    playbook, destroying = shlex.quote(playbook), shlex.quote(destroying)
    plugin = resources.files(__package__).joinpath("ansible_plan_callback.py")
    plugins = f'"{WORKSPACE}/{_PLUGINS}${{ANSIBLE_CALLBACK_PLUGINS:+:}}'
    plugins += '${ANSIBLE_CALLBACK_PLUGINS-}"'
    return VendorTable(
        name="ansible",
        uses_ansible_image=True,
        commands={
            Phase.INITIALIZE: ("ansible-playbook --version", _GALAXY),
            Phase.PLAN: (
                _call(
                    f'SPACELIFT_PLAN_FILE="$PWD/{PLAN_FILE}"'
                    f" ANSIBLE_CALLBACK_PLUGINS={plugins};"
                    " export SPACELIFT_PLAN_FILE ANSIBLE_CALLBACK_PLUGINS; ",
                    f"--check --diff {playbook}",
                    "plan",
                ),
            ),
            Phase.APPLY: (_call("", f"--diff {playbook}", "apply"),),
        }
        | (
            {Phase.DESTROY: (_call("", f"--diff {destroying}", "destroy"),)}
            if destroying != "''"
            else {}
        ),
        read_plan=read_plan,
        skipped_plan=b'{"changed":[],"skipped":true}',
        environment={"ANSIBLE_HOME": _HOME},
        files={f"{_PLUGINS}/spacelift_plan.py": plugin.read_bytes()},
    )


class _Task(msgspec.Struct):
    host: str
    task: str
    module: str


class _Plan(msgspec.Struct):
    changed: tuple[_Task, ...]
    skipped: bool = False


def read_plan(content: bytes) -> Plan:
    """One change for each task that would change a host; unknown ones if unplanned."""
    plan = msgspec.json.decode(content, type=_Plan)
    changes = tuple(
        ResourceChange(
            action="changed", address=f"{entry.host}: {entry.task}", type=entry.module
        )
        for entry in plan.changed
    )
    return Plan(has_changes=bool(changes) or plan.skipped, changes=changes)
