"""
What is compiled beside a policy: the question put to it, and the names it may use.

The question has a package of its own, so it collides with nothing.  What is added
to the policy's package is only what the policy does not define itself: an empty
``deny``, a default for ``sample``, and those aliases that it uses and does not bind
(`ALIASES`).  A third module exists while the policy is checked and never runs: it
hands the predefined names to functions with declared types, so that the type checker
refuses what would be an error for every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


PACKAGE = "spacelift_launcher"
ENTRYPOINT = f"{PACKAGE}/prelude/result"

ALIASES = {
    "run": "run := input.run",
    "commit": "commit := input.run.commit",
    "runtime_config": """runtime_config := object.union(
  {name: object.get(input.static_run_environment, name, null) |
    some name in [
      "after_apply", "after_destroy", "after_init", "after_perform", "after_plan",
      "after_run", "before_apply", "before_destroy", "before_init",
      "before_perform", "before_plan", "project_root", "terraform_version",
    ]
  },
  {"runner_image": object.get(input, "docker_image", "")},
)""",
}
"""Short names of parts of the input, where a policy uses them unbound."""

ELSEWHERE = {
    "stack": "use input.static_run_environment (stack_slug, stack_labels, …)",
    "request": "a worker's input has no request; see input.run.triggered_by",
}
"""Aliases of policies that the control plane evaluates, which a worker cannot have."""

_TYPES = {
    "deny": {"type": "set", "of": {"type": "string"}},
    "sample": {"type": "boolean"},
    "allow": {"type": "boolean"},
}
EXPECTED = {
    "deny": "deny must be a set of strings (in v1 `deny contains … if …`)",
    "sample": "sample must be true or false",
    "allow": "allow must be true or false",
}
"""What is said of a predefined name of another type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """How a module of the policy defines one of the predefined names."""

    name: str
    module: str
    row: int
    default: bool
    fits: bool
    """False for a function, an object, or a set where a value is due."""


def definitions(name: str, module: Mapping[str, Any]) -> list[Definition]:
    """Find predefined names in *module*, parsed by OPA, if it is of our package."""
    if package(module) != ["spacelift"]:
        return []
    found = []
    for rule in module.get("rules", ()):
        head = rule["head"]
        reference = head.get("ref") or [{"value": head.get("name")}]
        predefined = str(reference[0].get("value"))
        if predefined not in _TYPES:
            continue
        is_set = "key" in head and "value" not in head and len(reference) == 1
        is_value = not {"key", "args"} & set(head) and len(reference) == 1
        found.append(
            Definition(
                name=predefined,
                module=name,
                row=int(rule.get("location", {}).get("row", 0)),
                default=bool(rule.get("default")),
                fits=is_set if predefined == "deny" else is_value,
            )
        )
    return found


def package(module: Mapping[str, Any]) -> list[str]:
    """Return the path of the module's package."""
    return [str(part["value"]) for part in module["package"]["path"]][1:]


def names(
    defined: Iterable[Definition], aliases: Iterable[str], *, checking: bool = False
) -> str:
    """
    Return the module that adds to the policy's package what it lacks.

    For *checking*, ``sample`` gets no default beside rules of the policy: the type
    checker would take the two together, and be content if one of them fits.
    """
    defined = list(defined)
    parts = ["package spacelift", "import rego.v1"]
    if all(each.name != "deny" for each in defined):
        parts.append('deny contains "" if false')
    samples = [each.default for each in defined if each.name == "sample"]
    if not any(samples) and not (samples and checking):
        parts.append("default sample := false")
    return "\n\n".join([*parts, *(ALIASES[name] for name in aliases)]) + "\n"


def question(*, allow: bool) -> str:
    """Return the module whose ``result`` is asked for."""
    parts = [
        f"package {PACKAGE}.prelude",
        "import rego.v1",
        # Sets come out of WebAssembly in no order, unless they are sorted here.
        'result["deny"] := sort(data.spacelift.deny)',
        'result["sample"] := data.spacelift.sample',
    ]
    if allow:
        parts += [
            "default allowed := false",
            "allowed := data.spacelift.allow",
            'result["allow"] := allowed',
        ]
    return "\n\n".join(parts) + "\n"


def types(*, allow: bool) -> str:
    """Return the module that only the type checker sees."""
    parts = [f"package {PACKAGE}.types", "import rego.v1"]
    parts += [
        f"{name} if {PACKAGE}_{name}(data.spacelift.{name})"
        for name in _TYPES
        if allow or name != "allow"
    ]
    return "\n\n".join(parts) + "\n"


CHECKS: tuple[Mapping[str, Any], ...] = tuple(
    {
        "name": f"{PACKAGE}_{name}",
        "decl": {"type": "function", "args": [kind], "result": {"type": "boolean"}},
    }
    for name, kind in _TYPES.items()
)
"""The functions with declared types, for the type checker."""
