"""What a vendor's table consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from launcher.errors import JobInvalid
from launcher.wire.jobs import Phase, Vendor
from launcher.wire.messages import ResourceChange, StackOutput


T = TypeVar("T")

PLAN_FILE = "spacelift.plan.json"
"""Where every planning phase leaves the plan, in the project's folder."""
SENSITIVE = "(sensitive)"
"""What stands for a value that nobody is to see."""
OUTPUTS_FILE = "spacelift.outputs.json"
"""Where an apply leaves what the stack tells others, in the project's folder."""

LONGEST_TARGET = 1024
MOST_TARGETS = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    has_changes: bool
    changes: tuple[ResourceChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a run wants of its vendor, beside the phases."""

    destroys: bool = False
    """The plan is about destroying everything."""
    refresh: bool = True
    lock: bool = True
    targets: tuple[str, ...] = ()
    """Only these addresses are planned; empty means all."""
    command: str = ""
    """What a task performs."""
    terraformrc: bool = False
    """Our file of the tool's settings is there."""


def no_outputs(_: bytes) -> tuple[StackOutput, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorTable:
    name: str
    uses_ansible_image: bool = False
    commands: Mapping[Phase, tuple[str, ...]]
    read_plan: Callable[[bytes], Plan]
    """Reads `PLAN_FILE`; raises ValueError when it is not what it should be."""
    read_values: Callable[[bytes], Plan] | None = None
    """
    Reads it with the values before and after, those that the tool calls sensitive
    replaced by `SENSITIVE`; None where a plan has no values.
    """
    read_outputs: Callable[[bytes], tuple[StackOutput, ...]] = no_outputs
    """Reads `OUTPUTS_FILE`; raises ValueError, too."""
    has_outputs: bool = False
    skipped_plan: bytes | None = None
    """A plan for who does not want to plan; None where an apply needs a real one."""
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files of ours that the commands need, by path below the workspace."""
    plan_files: tuple[str, ...] = (PLAN_FILE,)
    """Names of all files that make up a plan."""
    wanted: tuple[str, ...] = ()
    """Paths below the workspace of which the first one that is there completes it."""
    complete: Callable[[bytes | None], VendorTable] | None = None
    """Makes the table of what was wanted, None where there is no such file; raises
    JobInvalid.  None when it is complete."""


def option(vendor: Vendor, name: str, kind: type[T], default: T) -> T:
    """One option of a stack's vendor, of the right type."""
    value = vendor.typed_config.get(name, default)
    if not isinstance(value, kind):
        raise JobInvalid(
            f"option {name!r} of vendor {vendor.vendor} is not a {kind.__name__}"
        )
    return value


def check_targets(targets: tuple[str, ...]) -> None:
    """
    Addresses come from people, and end up in a command.

    Raises:
        JobInvalid: there are too many, or one is none.
    """
    if len(targets) > MOST_TARGETS:
        raise JobInvalid(f"a replan has at most {MOST_TARGETS} targets")
    for target in targets:
        if not 0 < len(target) <= LONGEST_TARGET or not target.isprintable():
            raise JobInvalid(f"{target[:80]!r} is not the address of a resource")
