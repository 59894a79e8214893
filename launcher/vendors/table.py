"""What a vendor's table consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from launcher.errors import JobInvalid
from launcher.wire.jobs import Phase, Vendor
from launcher.wire.messages import ResourceChange


T = TypeVar("T")

PLAN_FILE = "spacelift.plan.json"
"""Where every planning phase leaves the plan, in the project's folder."""


@dataclass(frozen=True, slots=True)
class Plan:
    has_changes: bool
    changes: tuple[ResourceChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorTable:
    name: str
    uses_ansible_image: bool = False
    commands: Mapping[Phase, tuple[str, ...]]
    read_plan: Callable[[bytes], Plan]
    """Reads `PLAN_FILE`; raises ValueError when it is not what it should be."""
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files of ours that the commands need, by path below the workspace."""
    plan_files: tuple[str, ...] = (PLAN_FILE,)
    """Names of all files that make up a plan."""


def option(vendor: Vendor, name: str, kind: type[T], default: T) -> T:
    """One option of a stack's vendor, of the right type."""
    value = vendor.typed_config.get(name, default)
    if not isinstance(value, kind):
        raise JobInvalid(
            f"option {name!r} of vendor {vendor.vendor} is not a {kind.__name__}"
        )
    return value
