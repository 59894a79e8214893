"""
What the ``opa`` command knows about a policy's text: its types and its rules.

Facts this is built around:

- ``opa check --schema`` follows an input through variables, rules and loops, so
  it finds ``r := input.run; r.typo``, and names what would have been right.  It
  does not look into the path of an ``object.get``, which is done here.
- Of the types ``["array", "null"]`` it knows the first one only, so what it says
  about comparisons with null is passed over.
- ``opa eval`` has neither ``exec`` nor ``sanitized``.  With ``with … as`` it
  takes functions in their place, but only if the capabilities declare them.
- A rule has fired when the trace leaves it ("Exit").  Rules of the same name
  are told apart by where they begin.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import tempfile

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from launcher.adapters.policies.compiler import compiled
from launcher.adapters.policies.opa import Opa
from launcher.adapters.policies.prelude import ALIASES
from launcher.adapters.policies.sources import Sources, read
from launcher.errors import PolicyUnusable
from launcher.policytools.schema import Schema
from launcher.settings import RegoVersion


_STAND_INS = """
package spacelift_launcher.explain

import rego.v1

sanitized(x) := substring(crypto.sha256(x), 56, 8)

exec(x) := data.spacelift_launcher_nothing[x]
"""
_QUERY = (
    "data.spacelift"
    " with sanitized as data.spacelift_launcher.explain.sanitized"
    " with exec as data.spacelift_launcher.explain.exec"
)
_POLICY = "policy"
_ALIASES = "aliases.rego"
_CAPABILITIES = "capabilities.json"
_GENERATED = re.compile(r"\b__local\d+__\b|\$\w+|\b__wildcard\d+__\b")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    file: str
    row: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """Something the type checker knows can never be."""

    place: Place
    sentence: str


@dataclass(frozen=True, slots=True)
class Rule:
    place: Place
    name: str
    fired: bool


class OpaMissing(PolicyUnusable):
    """There is no ``opa`` command, which reading a policy's text takes."""


class PolicyText:
    """The Rego of a policy, and an ``opa`` to read it with."""

    def __init__(
        self, opa: Opa, sources: Sources, dialect: str, aliases: Iterable[str]
    ) -> None:
        self._opa = opa
        self._sources = sources
        self._old = ["--v0-compatible"] if dialect == RegoVersion.V0 else []
        parts = ["package spacelift", "import rego.v1", *map(ALIASES.get, aliases)]
        self._aliases = "\n\n".join(map(str, parts))

    @classmethod
    def of(cls, path: Path, version: RegoVersion = RegoVersion.AUTO) -> Self | None:
        """
        Find the Rego in *path*; None where there is only what was compiled of it.

        Raises:
            OpaMissing: nothing can be read without ``opa``.
            PolicyUnusable: OPA does not understand it.
        """
        sources = read(path)
        if sources.wasm is not None:
            return None
        opa = Opa.found()
        if opa is None:
            raise OpaMissing("there is no opa command: install opa 1.0 or newer")
        made = compiled(path, rego_version=version)
        return cls(opa, sources, made.dialect, made.aliases)

    def mistakes(self, schema: Schema) -> list[Mistake]:
        """What is asked of the input and is never there, by *schema*."""
        with self._written() as folder:
            (folder / "schema.json").write_text(json.dumps(schema))
            done = self._opa.run(
                "check",
                *self._old,
                "--max-errors=0",
                "--format=json",
                f"--capabilities={_CAPABILITIES}",
                "--schema=schema.json",
                _POLICY,
                _ALIASES,
                directory=folder,
            )
        errors = [] if done.returncode == 0 else _json(done)["errors"]
        found = {
            Mistake(self._place(error["location"]), _sentence(error))
            for error in errors
            if "null" not in _compared(error)
        }
        for name, module in self._modules():
            for location, sentence in _wrong_paths(module, schema):
                found.add(Mistake(self._place({**location, "file": name}), sentence))
        return sorted(found)

    def calls(self, function: str) -> bool:
        """Tell whether the policy calls *function* anywhere."""
        return any(
            called == function
            for _, module in self._modules()
            for called, _ in _calls(module)
        )

    def rules(self, document: Mapping[str, Any]) -> list[Rule]:
        """
        Return every rule, in the order of the text, and whether it fired.

        Raises:
            PolicyUnusable: OPA cannot evaluate it.
        """
        with self._written() as folder:
            (folder / "stand-ins.rego").write_text(_STAND_INS)
            (folder / "input.json").write_text(json.dumps(document))
            done = self._opa.run(
                "eval",
                *self._old,
                "--explain=full",
                "--format=json",
                f"--capabilities={_CAPABILITIES}",
                "--input=input.json",
                f"--data={_POLICY}",
                f"--data={_ALIASES}",
                "--data=stand-ins.rego",
                _QUERY,
                directory=folder,
            )
        answer = _json(done)
        if answer.get("errors"):
            message = str(answer["errors"][0].get("message", "")).partition("\n")[0]
            raise PolicyUnusable(f"opa cannot explain the evaluation: {message}")
        fired = {
            self._place(event["Location"])
            for event in answer.get("explanation", ())
            if event.get("Op") == "Exit" and "head" in _mapping(event.get("Node"))
        }
        found = [
            (self._place({**location, "file": name}), title)
            for name, module in self._modules()
            for location, title in _rules(module)
        ]
        return [Rule(place, title, place in fired) for place, title in found]

    @contextmanager
    def _written(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="spacelift-launcher-") as made:
            folder = Path(made)
            (folder / _CAPABILITIES).write_text(self._opa.capabilities)
            (folder / _ALIASES).write_text(self._aliases)
            texts = {
                name: text.encode() for name, text in self._sources.modules.items()
            }
            for name, content in (texts | self._sources.data).items():
                path = folder / _POLICY / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            yield folder

    def _modules(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._written() as folder:
            for name in sorted(self._sources.modules):
                done = self._opa.run(
                    "parse",
                    *self._old,
                    "--format=json",
                    "--json-include=locations",
                    name,
                    directory=folder / _POLICY,
                )
                yield name, _json(done)

    def _place(self, location: Mapping[str, Any]) -> Place:
        name = str(location.get("file", "")).removeprefix(f"{_POLICY}/")
        return Place(
            self._sources.where(name) if name in self._sources.modules else name,
            int(location.get("row", 0)),
            int(location.get("col", 0)),
        )


def _json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    for text in (done.stdout, done.stderr):
        try:
            answer = json.loads(text)
        except ValueError:
            continue
        if isinstance(answer, dict):
            return answer
    raise PolicyUnusable("opa gave no answer", details=done.stderr[-2000:])


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _compared(error: Mapping[str, Any]) -> list[str]:
    """Types of what is compared, if that is what is wrong."""
    details = _mapping(error.get("details"))
    return [_mapping(details.get(side)).get("type", "") for side in "ab"]


def _sentence(error: Mapping[str, Any]) -> str:
    details = _mapping(error.get("details"))
    message = _GENERATED.sub("_", str(error.get("message", "")).partition("\n")[0])
    if message.startswith("undefined ref: "):
        path = message.removeprefix("undefined ref: ")
        known = [str(name) for name in details.get("oneOf") or ()]
        position = details.get("pos", -1)
        terms = details.get("ref") or []
        wrong = terms[position].get("value") if -1 < position < len(terms) else ""
        return _unknown(path, str(wrong), known)
    if message == "match error":
        return f"{' is compared with '.join(_compared(error))}, which is never true"
    return message


def _unknown(path: str, wrong: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong, list(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{path} is never there{hint}"


def _calls(node: object) -> Iterator[tuple[str, list[Any]]]:
    """Each call below *node*: the function's name, and the arguments."""
    if isinstance(node, Mapping):
        terms = node.get("terms")
        if isinstance(terms, list) and terms and _name(terms[0]):
            yield _name(terms[0]), terms
        if node.get("type") == "call" and _name(node["value"][0]):
            yield _name(node["value"][0]), node["value"]
        for child in node.values():
            yield from _calls(child)
    elif isinstance(node, list):
        for child in node:
            yield from _calls(child)


def _name(term: object) -> str:
    term = _mapping(term)
    if term.get("type") != "ref":
        return ""
    return ".".join(str(part.get("value")) for part in term["value"])


def _wrong_paths(
    module: Mapping[str, Any], schema: Schema
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Paths of ``object.get(input…, path, default)`` that lead nowhere."""
    for function, (head, *arguments) in _calls(module):
        if function != "object.get" or len(arguments) < 2:
            continue
        base, path = _path(arguments[0]), _path(arguments[1])
        if not base or base[0] != "input" or path is None:
            continue
        wrong = _first_unknown(schema, [*base[1:], *path])
        if wrong:
            steps = ".".join(["input", *(step or "_" for step in [*base[1:], *path])])
            yield _mapping(head.get("location")), _unknown(steps, *wrong)


def _path(term: Mapping[str, Any]) -> list[str | None] | None:
    """Steps of a reference, a text or a list of texts; None for a step unknown here."""
    match term.get("type"), term.get("value"):
        case "var", "input":
            return ["input"]
        case "string", str(name):
            return [name]
        case ("ref" | "array") as kind, list(parts):
            first = ["input"] if kind == "ref" and parts[0]["value"] == "input" else []
            rest = parts[len(first) :]
            return [
                *first,
                *(p["value"] if p.get("type") == "string" else None for p in rest),
            ]
        case _:
            return None


def _first_unknown(
    schema: Schema, steps: Iterable[str | None]
) -> tuple[str, list[str]] | None:
    here: Any = schema
    for step in steps:
        if step is None or "items" in here:
            here = here.get("items", {})
            continue
        known = here.get("properties")
        if known is None:
            return None
        if step not in known:
            return step, list(known)
        here = known[step]
    return None


def _rules(module: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    for rule in module.get("rules", ()):
        branch: Any = rule
        while branch:
            default = "default " if branch.get("default") else ""
            otherwise = "else of " if branch is not rule else ""
            title = f"{default}{otherwise}{_head(rule)}"
            yield _mapping(branch.get("location")), title
            branch = branch.get("else")


def _head(rule: Mapping[str, Any]) -> str:
    head = _mapping(rule.get("head"))
    name = ".".join(str(part.get("value")) for part in head.get("ref", ()))
    key = _mapping(head.get("key"))
    if key.get("type") == "string":
        return f"{name} {json.dumps(key['value'])}"
    return name
