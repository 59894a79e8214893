"""Terraform and OpenTofu."""

from __future__ import annotations

import dataclasses
import re
import shlex

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from launcher.errors import JobInvalid
from launcher.model import WORKSPACE
from launcher.vendors import workflow
from launcher.vendors.table import (
    OUTPUTS_FILE,
    PLAN_FILE,
    SENSITIVE,
    Asked,
    Plan,
    VendorTable,
    option,
)
from launcher.vendors.templates import Value, render
from launcher.wire.jobs import Phase, Vendor
from launcher.wire.messages import ResourceChange, StackOutput


_ACTIONS = {
    ("create",): "added",
    ("update",): "changed",
    ("delete",): "deleted",
    ("delete", "create"): "replaced",
    ("create", "delete"): "replaced",
}
_TOOLS_PLAN = "spacelift.plan"
STATE_FILE = "spacelift.state.before.json"
TERRAFORMRC = ".spacelift/terraformrc"
# Where the tools look for providers before they ask a registry.
_PROVIDERS = (
    '[ ! -d /plugins ] || [ -e "$HOME/.terraform.d/plugins" ] || {'
    ' mkdir -p "$HOME/.terraform.d"'
    ' && ln -s /plugins "$HOME/.terraform.d/plugins"; }'
)
"""Makes them look at the image's own providers, if it has any."""
"""Below the workspace: settings of the tool, from mounted files."""
_UNCHANGED = {("no-op",), ("read",)}
# Of an address there is nothing that means anything to a shell, however it is quoted.
_PLAIN = re.compile(r"[A-Za-z0-9_.\[\]\"*/:@-]+")

BUILT_IN: Mapping[str, str] = {
    "init": "TOOL init -input=false",
    "workspaceSelect": "TOOL workspace select {{ .WorkspaceName }}",
    "workspaceNew": "TOOL workspace new {{ .WorkspaceName }}",
    "plan": (
        "TOOL plan -input=false -lock={{ .Lock }}"
        "{{ if not .Refresh }} -refresh=false{{ end }} -out={{ .PlanFileName }}"
        "{{ range .Targets }} -target={{ . }}{{ end }}"
    ),
    "showState": "TOOL show -json",
    "showPlan": "TOOL show -json {{ .PlanFileName }}",
    "getOutputs": "TOOL output -json",
    "apply": "TOOL apply -auto-approve -input=false {{ .PlanFileName }}",
    "destroy": "TOOL destroy -auto-approve -input=false",
}
"""The same nine commands that a workflow file gives, for the two tools we know."""

_TOOLS = {"TERRAFORM_FOSS": "terraform", "OPEN_TOFU": "tofu"}
CUSTOM = "CUSTOM"


def terraform(vendor: Vendor, asked: Asked) -> VendorTable:
    return _of_tool(vendor, asked, "TERRAFORM_FOSS")


def opentofu(vendor: Vendor, asked: Asked) -> VendorTable:
    return _of_tool(vendor, asked, "OPEN_TOFU")


def _of_tool(vendor: Vendor, asked: Asked, default: str) -> VendorTable:
    tool = option(vendor, "workflow_tool", str, default)
    workspace = option(vendor, "workspace", str, "")
    if tool == CUSTOM:
        for value in (workspace, *asked.targets):
            if value and not _PLAIN.fullmatch(value):
                raise JobInvalid(
                    f"{value[:80]!r} cannot be told to a custom workflow: it has"
                    " characters that may mean something to a shell"
                )
        return dataclasses.replace(
            _table("the custom workflow", {}, asked, workspace),
            commands={},
            wanted=workflow.PATHS,
            complete=lambda content: _table(
                "the custom workflow", workflow.commands(content), asked, workspace
            ),
        )
    if tool not in _TOOLS:
        known = ", ".join((*_TOOLS, CUSTOM))
        raise JobInvalid(f"workflow tool {tool[:40]!r} is unknown; there are {known}")
    texts = {key: text.replace("TOOL", _TOOLS[tool]) for key, text in BUILT_IN.items()}
    quoted = dataclasses.replace(asked, targets=tuple(map(shlex.quote, asked.targets)))
    # What is destroyed by a run of its own was planned, and seen by somebody.
    return _table(
        _TOOLS[tool], texts, quoted, shlex.quote(workspace) if workspace else ""
    )


def _table(
    name: str, texts: Mapping[str, str], asked: Asked, workspace: str
) -> VendorTable:
    """*texts* are templates; values are filled in as they are."""
    values: dict[str, Value] = {
        "Lock": asked.lock,
        "Refresh": asked.refresh,
        "PlanFileName": _TOOLS_PLAN,
        "Targets": asked.targets,
        "WorkspaceName": workspace,
    }
    made = {
        key: render(text, {name: values[name] for name in workflow.PARAMETERS[key]})
        for key, text in texts.items()
    }
    custom = name not in _TOOLS.values()
    from_state = custom and asked.destroys
    environment = {"TF_IN_AUTOMATION": "1"}
    if asked.terraformrc:
        environment["TF_CLI_CONFIG_FILE"] = f"{WORKSPACE}/{TERRAFORMRC}"
    return VendorTable(
        name=name,
        commands=_commands(made, asked, workspace, from_state=from_state)
        if made
        else {},
        read_plan=read_state if from_state else read_plan,
        read_values=None if from_state else read_values,
        read_outputs=read_outputs,
        has_outputs=True,
        environment=environment,
        plan_files=(PLAN_FILE, _TOOLS_PLAN, STATE_FILE),
    )


def _commands(
    made: Mapping[str, str], asked: Asked, workspace: str, *, from_state: bool
) -> dict[Phase, tuple[str, ...]]:
    select = f"{{ {made['workspaceSelect']}; }} || {{ {made['workspaceNew']}; }}"
    plan: tuple[str, ...]
    if from_state:
        # There is no word for it in a workflow file: what there is will be gone.
        plan = (f"{made['showState']} >{PLAN_FILE}",)
    else:
        planning = made["plan"]
        if asked.destroys:
            planning += " -destroy"
        plan = (
            f"{made['showState']} >{STATE_FILE}",
            planning,
            f"{made['showPlan']} >{PLAN_FILE}",
        )
    outputs = f"{{ {made['getOutputs']} >{OUTPUTS_FILE}; }} || rm -f -- {OUTPUTS_FILE}"
    planned = asked.destroys and not from_state
    return {
        Phase.INITIALIZE: (
            _PROVIDERS,
            made["init"],
            *((select,) if workspace else ()),
        ),
        Phase.PLAN: plan,
        Phase.APPLY: (made["apply"], outputs),
        # What somebody has confirmed is what is done, and nothing that came since.
        Phase.DESTROY: (made["apply"] if planned else made["destroy"],),
    }


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


class _ValuedChange(_Change):
    before: Any = None
    after: Any = None
    before_sensitive: Any = False
    after_sensitive: Any = False


class _ValuedResource(_Resource):
    change: _ValuedChange
    name: str = ""
    provider_name: str = ""


class _ValuedPlan(msgspec.Struct):
    resource_changes: tuple[_ValuedResource, ...] = ()


def read_values(content: bytes) -> Plan:
    """The same, with values; where the tool calls one sensitive, it is replaced."""
    valued = msgspec.json.decode(content, type=_ValuedPlan)
    changes = tuple(
        ResourceChange(
            action=action,
            address=entry.address,
            type=entry.type,
            name=entry.name,
            provider=entry.provider_name,
            before=_hidden(entry.change.before, entry.change.before_sensitive),
            after=_hidden(entry.change.after, entry.change.after_sensitive),
        )
        for entry in valued.resource_changes
        if (action := _ACTIONS.get(entry.change.actions))
    )
    return Plan(has_changes=read_plan(content).has_changes, changes=changes)


def _hidden(value: Any, sensitive: Any) -> Any:  # noqa: ANN401 (it is data)
    """*value* without what *sensitive*, which has its shape, says of it."""
    if value is None:
        return None
    match sensitive:
        case False | None:
            return value
        case dict() if isinstance(value, dict):
            return {
                name: _hidden(entry, sensitive.get(name, False))
                for name, entry in value.items()
            }
        case list() if isinstance(value, list):
            marks = [*sensitive, *[False] * len(value)]
            return [_hidden(e, m) for e, m in zip(value, marks, strict=False)]
        case _:  # true, or of another shape: nobody knows which part is meant
            return SENSITIVE


class _Held(msgspec.Struct):
    address: str
    type: str
    mode: str = "managed"


class _Module(msgspec.Struct):
    resources: tuple[_Held, ...] = ()
    child_modules: tuple[_Module, ...] = ()


class _Values(msgspec.Struct):
    root_module: _Module = msgspec.field(default_factory=_Module)


class _State(msgspec.Struct):
    format_version: str
    values: _Values | None = None


def read_state(content: bytes) -> Plan:
    """The destruction of everything that a state holds."""
    state = msgspec.json.decode(content, type=_State)
    changes = tuple(_deletions(state.values.root_module)) if state.values else ()
    return Plan(has_changes=bool(changes), changes=changes)


def _deletions(module: _Module) -> Iterator[ResourceChange]:
    waiting = [module]
    while waiting:
        module = waiting.pop()
        waiting.extend(module.child_modules)
        for held in module.resources:
            if held.mode == "managed":
                yield ResourceChange(
                    action="deleted", address=held.address, type=held.type
                )


class _Output(msgspec.Struct):
    value: Any
    sensitive: bool = False


def read_outputs(content: bytes) -> tuple[StackOutput, ...]:
    """What `output -json` prints, values as JSON."""
    found = msgspec.json.decode(content, type=dict[str, _Output])
    return tuple(
        StackOutput(
            name=name,
            value=msgspec.json.encode(output.value).decode(),
            sensitive=output.sensitive,
        )
        for name, output in found.items()
    )
