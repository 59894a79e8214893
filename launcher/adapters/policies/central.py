"""
Policies that a control plane asks: about plans, and about approvals.

The same engine as a launcher's own policy, with other questions.  ``exec`` is not
there: nothing is started on the control plane's machine for a policy's sake.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.adapters.policies.builtins import BUILTINS
from launcher.adapters.policies.machine import Machine
from launcher.adapters.policies.opa import REFUSED, Opa
from launcher.adapters.policies.sources import unpacked
from launcher.errors import PolicyError, PolicyUnusable


_PACKAGE = "spacelift_control_plane"
_ENTRYPOINT = f"{_PACKAGE}/result"
_FILE = "policy.rego"
_NAMES = "spacelift_control_plane_names.rego"
_QUESTION = "spacelift_control_plane_question.rego"
_PLACE = re.compile(rf"{_FILE}:(\d+)(?::\d+)?: (?:rego_\w+: )?(.*)")
_UNSAFE = "rego_unsafe_var_error"
_DIALECTS: tuple[list[str], ...] = ([], ["--v0-compatible"])
"""v1 first: what is valid in both means the same, or is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What policies of one type say, and the short names they may use."""

    sets: tuple[str, ...]
    """Rules that are sets of texts; a policy without one says nothing there."""
    flags: tuple[str, ...]
    """Rules that are true or false; false unless a policy says otherwise."""
    aliases: Mapping[str, str]
    seconds: float


def _resources(name: str, condition: str) -> str:
    return (
        f"{name} contains resource if {{\n"
        "  some resource in input.terraform.resource_changes\n"
        f"  {condition}\n}}"
    )


PLAN = Question(
    sets=("deny", "warn", "flag", "reset_flag"),
    flags=("sample",),
    aliases={
        "run": "run := input.spacelift.run",
        "commit": "commit := input.spacelift.commit",
        "stack": "stack := input.spacelift.stack",
        "request": "request := input.spacelift.request",
        "runtime_config": "runtime_config := input.spacelift.run.runtime_config",
        "affected_resources": _resources(
            "affected_resources",
            'count({a | some a in resource.change.actions; a != "no-op"}) > 0',
        ),
        "created_resources": _resources(
            "created_resources", 'resource.change.actions == ["create"]'
        ),
        "deleted_resources": _resources(
            "deleted_resources", 'resource.change.actions == ["delete"]'
        ),
        "recreated_resources": _resources(
            "recreated_resources", "count(resource.change.actions) == 2"
        ),
        "updated_resources": _resources(
            "updated_resources", 'resource.change.actions == ["update"]'
        ),
    },
    seconds=45.0,
)
APPROVAL = Question(
    sets=("flag", "reset_flag"),
    flags=("approve", "reject", "sample"),
    aliases={
        "run": "run := input.run",
        "stack": "stack := input.stack",
        "reviews": "reviews := input.reviews",
    },
    seconds=5.0,
)
QUESTIONS: Mapping[str, Question] = {"PLAN": PLAN, "APPROVAL": APPROVAL}


class CentralPolicy:
    """A policy that can be asked, by several threads at once."""

    def __init__(self, body: str, question: Question) -> None:
        """
        Compile *body*.

        Raises:
            PolicyUnusable: it is not such a policy, or cannot be compiled here.
        """
        command = shutil.which("opa")
        if command is None:
            raise PolicyUnusable("policies need the opa command, which is not on PATH")
        opa = _known(command)
        self._question = question
        with tempfile.TemporaryDirectory(prefix="spacelift-control-plane-") as name:
            wasm = _compiled(opa, Path(name), body, question)
        self._machine = Machine(wasm, BUILTINS, timeout=question.seconds)
        missing = self._machine.needed - set(BUILTINS)
        if missing:
            named = ", ".join(sorted(missing))
            raise PolicyUnusable(f"the policy calls what is not there: {named}")

    def ask(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """
        Evaluate the policy for *document*.

        Returns:
            Its sets as sorted lists of texts, and its flags.

        Raises:
            PolicyError: it failed, took too long, or says something of another type.
        """
        encoded = json.dumps(document, allow_nan=False).encode()
        match self._machine.ask(encoded, self._machine.entrypoints[_ENTRYPOINT]):
            case [{"result": dict(results)}]:
                return self._checked(results)
            case _:
                raise PolicyError("the policy gave no answer")

    def close(self) -> None:
        self._machine.close()

    def _checked(self, results: dict[str, Any]) -> dict[str, Any]:
        for name in self._question.sets:
            said = results.get(name)
            texts = isinstance(said, list) and all(isinstance(t, str) for t in said)
            if not texts:
                raise PolicyError(f"{name} is not a set of texts")
        for name in self._question.flags:
            if not isinstance(results.get(name), bool):
                raise PolicyError(f"{name} is neither true nor false")
        return results


@functools.lru_cache(4)
def _known(command: str) -> Opa:
    """Getting to know ``opa`` takes two processes; once is enough."""
    return Opa(command)


def _compiled(opa: Opa, folder: Path, body: str, question: Question) -> bytes:
    bundle = folder / "policy"
    bundle.mkdir()
    (bundle / _FILE).write_text(body, encoding="utf-8")
    (folder / "capabilities.json").write_text(_without_exec(opa.capabilities))
    complaint: PolicyUnusable | None = None
    for dialect in _DIALECTS:
        parsed = False
        try:
            module = _parsed(opa, bundle, dialect)
            parsed = True
            _write_ours(bundle, question, _defined(module), aliases=())
            wanted = _unbound(opa, bundle, dialect) & set(question.aliases)
            _write_ours(bundle, question, _defined(module), aliases=sorted(wanted))
            return _built(opa, folder, dialect)
        except PolicyUnusable as exc:
            # The dialect that got further is the one that was meant.
            if complaint is None or parsed:
                complaint = exc
    raise complaint or PolicyUnusable("the policy cannot be compiled")


def _without_exec(capabilities: str) -> str:
    known = json.loads(capabilities)
    known["builtins"] = [b for b in known["builtins"] if b["name"] != "exec"]
    return json.dumps(known)


def _parsed(opa: Opa, bundle: Path, dialect: list[str]) -> dict[str, Any]:
    done = opa.run("parse", *dialect, "--format=json", _FILE, directory=bundle)
    if done.returncode:
        raise _complaint(done.stderr or done.stdout)
    module: dict[str, Any] = json.loads(done.stdout)
    path = [str(part["value"]) for part in module["package"]["path"]][1:]
    if path != ["spacelift"]:
        raise PolicyUnusable("the policy must begin with `package spacelift`")
    return module


def _defined(module: Mapping[str, Any]) -> dict[str, bool]:
    """The names that the policy's rules have, and whether there is a default."""
    found: dict[str, bool] = {}
    for rule in module.get("rules", ()):
        reference = rule["head"].get("ref") or [{"value": rule["head"].get("name")}]
        name = str(reference[0].get("value"))
        found[name] = found.get(name, False) or bool(rule.get("default"))
    return found


def _write_ours(
    bundle: Path,
    question: Question,
    defined: Mapping[str, bool],
    *,
    aliases: list[str] | tuple[()],
) -> None:
    names = ["package spacelift", "import rego.v1"]
    names += [
        f'{name} contains "" if false' for name in question.sets if name not in defined
    ]
    names += [
        f"default {name} := false"
        for name in question.flags
        if not defined.get(name, False)
    ]
    names += [question.aliases[name] for name in aliases]
    (bundle / _NAMES).write_text("\n\n".join(names) + "\n")
    asked = [f"package {_PACKAGE}", "import rego.v1"]
    asked += [f'result["{n}"] := sort(data.spacelift.{n})' for n in question.sets]
    asked += [f'result["{n}"] := data.spacelift.{n}' for n in question.flags]
    (bundle / _QUESTION).write_text("\n\n".join(asked) + "\n")


def _unbound(opa: Opa, bundle: Path, dialect: list[str]) -> set[str]:
    """Names that the policy uses and nobody defines."""
    done = opa.run(
        "check",
        *dialect,
        "--format=json",
        "--capabilities=../capabilities.json",
        _FILE,
        _NAMES,
        _QUESTION,
        directory=bundle,
    )
    if done.returncode == 0:
        return set()
    try:
        errors = json.loads(done.stderr or done.stdout).get("errors") or []
    except ValueError:
        return set()
    return {
        str(error["message"]).removeprefix("var ").removesuffix(" is unsafe")
        for error in errors
        if error.get("code") == _UNSAFE
    }


def _built(opa: Opa, folder: Path, dialect: list[str]) -> bytes:
    done = opa.run(
        "build",
        *dialect,
        "--target=wasm",
        f"--entrypoint={_ENTRYPOINT}",
        "--capabilities=capabilities.json",
        "--output=bundle.tar.gz",
        "--bundle",
        "policy",
        directory=folder,
    )
    if done.returncode:
        raise _complaint(done.stderr or done.stdout)
    path = folder / "bundle.tar.gz"
    return unpacked(path.read_bytes(), path)["policy.wasm"]


def _complaint(printed: str) -> PolicyUnusable:
    """The first error, with its line; *printed* is JSON or text."""
    try:
        first = (json.loads(printed).get("errors") or [{}])[0]
        row = first.get("location", {}).get("row", 0)
        message = str(first.get("message", "it is not Rego"))
    except (ValueError, AttributeError):
        place = _PLACE.search(printed)
        row = int(place[1]) if place else 0
        message = place[2] if place else printed.strip().partition("\n")[0][:200]
    function = message.removeprefix("undefined function ")
    if function in REFUSED:
        message = f"{function} is not available: {REFUSED[function]}"
    return PolicyUnusable(f"line {row}: {message}" if row else message)
