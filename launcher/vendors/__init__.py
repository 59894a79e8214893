"""
The tools that stacks are written for, each a table of commands.

A vendor says which commands a phase consists of, which files and variables they
need, and how to read the plan that the planning phase leaves in the workspace.
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.errors import JobInvalid
from launcher.vendors import ansible, terraform
from launcher.vendors.table import Plan, VendorTable
from launcher.wire.jobs import Phase, Vendor


__all__ = ["Plan", "VendorTable", "table"]

_TABLES = {
    "ansible": ansible.table,
    "opentofu": terraform.opentofu,
    "terraform": terraform.terraform,
}


def table(vendor: Vendor, phases: Iterable[Phase]) -> VendorTable:
    """
    The table of *vendor*, its options filled in, with commands for all *phases*.

    Raises:
        JobInvalid: nobody knows the vendor, an option is missing or wrong, or it has
            nothing to do in one of the phases.
    """
    make = _TABLES.get(vendor.vendor)
    if make is None:
        known = ", ".join(sorted(_TABLES))
        raise JobInvalid(
            f"vendor {vendor.vendor!r} is unknown to this worker; it knows {known}"
        )
    found = make(vendor)
    for phase in phases:
        if phase not in found.commands:
            raise JobInvalid(f"this worker cannot {phase} with {found.name} yet")
    return found
