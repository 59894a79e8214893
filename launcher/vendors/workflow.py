"""
``.spacelift/workflow.yml``: the nine commands of a tool that nobody else knows.

It comes from the repository, so it is read as little as possible: one flat mapping
of texts, without anchors, tags and nesting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from launcher.errors import JobInvalid
from launcher.vendors.templates import TemplateInvalid, render


PATHS = ("source/.spacelift/workflow.yml", ".spacelift/workflow.yml")
"""Below the workspace; the first one that is there counts."""
LARGEST = 64 << 10

PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "init": {},
    "workspaceSelect": {"WorkspaceName": "name"},
    "workspaceNew": {"WorkspaceName": "name"},
    "plan": {
        "Lock": True,
        "Refresh": True,
        "PlanFileName": "file",
        "Targets": ("target",),
    },
    "showState": {},
    "showPlan": {"PlanFileName": "file"},
    "getOutputs": {},
    "apply": {"PlanFileName": "file"},
    "destroy": {},
}
"""Every command there is, and the fields its template may use, with an example."""


class WorkflowMissing(JobInvalid):
    """The stack's tool is its own, and nothing says how to call it."""

    code = "workflow_missing"


class WorkflowInvalid(JobInvalid):
    """The file that says how to call the tool cannot be used."""

    code = "workflow_invalid"


def commands(content: bytes | None) -> dict[str, str]:
    """
    The nine templates, each of which can be rendered.

    Raises:
        WorkflowMissing: there is no such file.
        WorkflowInvalid: keys are missing or empty, or a template cannot be used.
    """
    if content is None:
        raise WorkflowMissing(
            "the stack's workflow tool is CUSTOM, which needs a file"
            " .spacelift/workflow.yml, and there is none"
        )
    given = _flat(content)
    missing = [key for key in PARAMETERS if not given.get(key, "").strip()]
    if missing:
        raise WorkflowInvalid(
            f".spacelift/workflow.yml lacks {', '.join(missing)}; all of"
            f" {', '.join(PARAMETERS)} have to be there"
        )
    for key, parameters in PARAMETERS.items():
        try:
            render(given[key], parameters)
        except TemplateInvalid as exc:
            raise WorkflowInvalid(f"{key} in .spacelift/workflow.yml {exc}") from exc
    return {key: given[key] for key in PARAMETERS}


def _flat(content: bytes) -> dict[str, str]:
    try:
        text = content.decode()
        events = iter(yaml.parse(text, yaml.SafeLoader))
        return _mapping(list(_few(events)))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise WorkflowInvalid(
            f".spacelift/workflow.yml is not YAML in UTF-8{where}"
        ) from exc


def _few(events: Any) -> Any:  # noqa: ANN401 (PyYAML's)
    for number, event in enumerate(events):
        if number > 1000 or isinstance(event, yaml.AliasEvent):
            raise _not_flat()
        yield event


def _mapping(events: list[Any]) -> dict[str, str]:
    inside = events[2:-2]
    if (
        len(inside) < 2
        or not isinstance(inside[0], yaml.MappingStartEvent)
        or not isinstance(inside[-1], yaml.MappingEndEvent)
        or not all(isinstance(each, yaml.ScalarEvent) for each in inside[1:-1])
    ):
        raise _not_flat()
    texts = [event.value for event in inside[1:-1]]
    found: dict[str, str] = {}
    for key, value in zip(texts[::2], texts[1::2], strict=True):
        if key in found:
            raise WorkflowInvalid(f".spacelift/workflow.yml has {key[:40]!r} twice")
        found[key] = value
    return found


def _not_flat() -> WorkflowInvalid:
    return WorkflowInvalid(
        ".spacelift/workflow.yml has to be one mapping of commands, without lists,"
        " mappings and aliases in it"
    )
