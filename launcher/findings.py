"""
What phases leave in the workspace for others to know: read from files, never printed.

The job has written all of it, so it is bounded, and fit for its reader or refused.
"""

from __future__ import annotations

import hashlib
import re
import shlex

from collections.abc import Callable
from typing import Any

import msgspec

from launcher.errors import WorkspaceUnusable
from launcher.model import WORKSPACE
from launcher.ports import Sandbox
from launcher.settings import PlanValues
from launcher.vendors import Plan, VendorTable
from launcher.vendors.table import OUTPUTS_FILE, PLAN_FILE, SENSITIVE
from launcher.wire.messages import ResourceChange, StackOutput


_LARGEST_PLAN = 128 << 20
_LARGEST_OUTPUTS = 8 << 20
_ENDING = ".custom.spacelift.json"
_LIST = f"{WORKSPACE}/.spacelift-custom"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}" + re.escape(_ENDING))
_LARGEST_WITH_VALUES = 32 << 20
MOST_VALUES_BYTES = 8 << 20
MOST_CUSTOM = 20
LARGEST_CUSTOM = 1 << 20
MOST_CUSTOM_BYTES = 4 << 20

# A shell of its own, which no function or option of a hook reaches.  Names that
# could mean something else in a list are not in it.
_LISTING = f"""\
cd -- "$1" || exit 0
for file in *{_ENDING}; do
    [ -f "$file" ] && [ ! -L "$file" ] || continue
    case $file in
    *[!A-Za-z0-9_.-]* | .*) echo "A file is left out: its name has odd characters." ;;
    *) printf "%s\\n" "$file" >&3 ;;
    esac
done"""


class PlanUnreadable(WorkspaceUnusable):
    """The planning phase succeeded, and left nothing that could be read."""

    code = "no_plan"


def listing(directory: str) -> str:
    """A command that notes which files of *directory* are for the plan's policies."""
    return f"/bin/sh -c {shlex.quote(_LISTING)} sh {shlex.quote(directory)} 3>|{_LIST}"


def plan(
    directory: str,
    vendor: VendorTable,
    sandbox: Sandbox,
    *,
    values: PlanValues = PlanValues.NONE,
    clean: Callable[[str], str] = str,
) -> Plan:
    """
    What the planning phase says that it would change; *clean* hides secrets.

    Raises:
        PlanUnreadable: it left no plan, or none that can be read, or its values
            are more than can be told.
    """
    valued = vendor.read_values if values is not PlanValues.NONE else None
    limit = _LARGEST_PLAN if valued is None else _LARGEST_WITH_VALUES
    content = sandbox.read_file(f"{directory}/{PLAN_FILE}", limit=limit)
    if content is None:
        raise PlanUnreadable(f"the planning phase left no {PLAN_FILE}")
    try:
        found = (valued or vendor.read_plan)(content)
        changes = tuple(_shown(change, values, clean) for change in found.changes)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise PlanUnreadable(
            f"the planning phase left a {PLAN_FILE} that cannot be read",
            details=type(exc).__name__,
        ) from exc
    said = sum(len(msgspec.json.encode((c.before, c.after))) for c in changes)
    if said > MOST_VALUES_BYTES:
        raise PlanUnreadable(
            f"the plan's values have more than {MOST_VALUES_BYTES >> 20} MiB"
        )
    return Plan(has_changes=found.has_changes, changes=changes)


def _shown(
    change: ResourceChange, values: PlanValues, clean: Callable[[str], str]
) -> ResourceChange:
    def told(text: str) -> str:
        # What has a secret of the run in it is one.
        if text == SENSITIVE or clean(text) != text:
            return SENSITIVE
        return text if values is PlanValues.PLAIN else sanitized(text)

    return msgspec.structs.replace(
        change,
        address=clean(change.address),
        type=clean(change.type),
        name=clean(change.name),
        provider=clean(change.provider),
        before=_leaves(change.before, told, clean),
        after=_leaves(change.after, told, clean),
    )


def sanitized(text: str) -> str:
    """What stands for *text*: the same for the same, as policies compute it, too."""
    return hashlib.sha256(text.encode()).hexdigest()[-8:]


def custom(
    directory: str, sandbox: Sandbox, clean: Callable[[str], str]
) -> dict[str, Any]:
    """
    What is in the files for the plan's policies, by their keys; *clean* hides secrets.

    Raises:
        PlanUnreadable: there are too many, or one is too large or not JSON.
    """
    listed = sandbox.read_file(_LIST, limit=1 << 16) or b""
    names = listed.decode("ascii", "replace").splitlines()
    if len(names) > MOST_CUSTOM:
        raise PlanUnreadable(f"there are more than {MOST_CUSTOM} files *{_ENDING}")
    found, left = {}, MOST_CUSTOM_BYTES
    for name in names:
        if not _NAME.fullmatch(name):
            raise PlanUnreadable(f"the name of a file *{_ENDING} is too long or odd")
        content = sandbox.read_file(
            f"{directory}/{name}", limit=min(LARGEST_CUSTOM, left)
        )
        if content is None:
            continue
        left -= len(content)
        try:
            value = _leaves(msgspec.json.decode(content), clean, clean)
        except (ValueError, RecursionError) as exc:
            raise PlanUnreadable(f"{name} is not JSON") from exc
        found[name.removesuffix(_ENDING)] = value
    return found


def outputs(
    directory: str,
    vendor: VendorTable,
    sandbox: Sandbox,
    *,
    with_sensitive: bool,
    clean: Callable[[str], str],
) -> tuple[StackOutput, ...] | None:
    """
    What the apply says that the stack tells others; None where it says nothing.

    A value in which *clean* finds a secret is as sensitive as that.

    Raises:
        WorkspaceUnusable: what it says cannot be read.
    """
    path = f"{directory}/{OUTPUTS_FILE}"
    content = sandbox.read_file(path, limit=_LARGEST_OUTPUTS)
    if content is None:
        return None
    try:
        found = vendor.read_outputs(content)
    except (ValueError, RecursionError) as exc:
        raise WorkspaceUnusable(f"{OUTPUTS_FILE} cannot be read") from exc
    return tuple(_told(output, clean, with_sensitive) for output in found)


def _told(
    output: StackOutput, clean: Callable[[str], str], with_sensitive: bool
) -> StackOutput:
    value = output.value or ""
    sensitive = output.sensitive or clean(value) != value
    return StackOutput(
        name=clean(output.name),
        value=output.value if with_sensitive or not sensitive else None,
        sensitive=sensitive,
    )


def _leaves(
    value: Any,  # noqa: ANN401 (JSON)
    told: Callable[[str], str],
    clean: Callable[[str], str],
) -> Any:  # noqa: ANN401
    """
    *value* with its texts as *told* makes them, and the names in it clean.

    A number with a secret in it is what *told* makes of its digits.
    """
    match value:
        case str():
            return told(value)
        case int() | float() if not isinstance(value, bool):
            text = msgspec.json.encode(value).decode()
            return value if clean(text) == text else told(text)
        case list():
            return [_leaves(entry, told, clean) for entry in value]
        case dict():
            return {
                clean(str(key)): _leaves(entry, told, clean)
                for key, entry in value.items()
            }
        case _:
            return value
