"""
The tools that stacks are written for, each a table of commands.

A vendor says which commands a phase consists of, which files and variables they
need, and how to read the plan that the planning phase leaves in the workspace.
"""

from __future__ import annotations

import dataclasses
import shlex

from collections.abc import Iterable

from launcher.errors import JobInvalid
from launcher.vendors import ansible, terraform
from launcher.vendors.table import Asked, Plan, VendorTable, check_targets
from launcher.wire.jobs import Phase, Vendor


__all__ = ["Asked", "Plan", "VendorTable", "table"]

_TABLES = {
    "ansible": ansible.table,
    "opentofu": terraform.opentofu,
    "terraform": terraform.terraform,
}


def table(
    vendor: Vendor, phases: Iterable[Phase], asked: Asked | None = None
) -> VendorTable:
    """
    The table of *vendor*, its options filled in, with commands for all *phases*.

    Raises:
        JobInvalid: nobody knows the vendor, an option is missing or wrong, or it has
            nothing to do in one of the phases.
    """
    make, asked = _TABLES.get(vendor.vendor), asked or Asked()
    if make is None:
        known = ", ".join(sorted(_TABLES))
        raise JobInvalid(
            f"vendor {vendor.vendor!r} is unknown to this worker; it knows {known}"
        )
    check_targets(asked.targets)
    phases = tuple(phases)
    found = _checked(_performing(make(vendor, asked), asked), phases)
    complete = found.complete
    if complete is None:
        return found
    return dataclasses.replace(
        found,
        complete=lambda content: _checked(
            _performing(complete(content), asked), phases
        ),
    )


def _performing(found: VendorTable, asked: Asked) -> VendorTable:
    """What a task does is nobody's but its own."""
    if not asked.command.strip() or "\0" in asked.command:
        return found
    perform = (f"sh -c {shlex.quote(asked.command)}",)
    return dataclasses.replace(
        found, commands={**found.commands, Phase.PERFORM: perform}
    )


def _checked(found: VendorTable, phases: tuple[Phase, ...]) -> VendorTable:
    for phase in phases:
        if found.complete is None and phase not in found.commands:
            raise JobInvalid(
                "the task has no command"
                if phase is Phase.PERFORM
                else f"this worker cannot {phase} with {found.name} as it is set up"
            )
    return found
