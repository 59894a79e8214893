"""One case through the engine that judges runs, and whether OPA would agree."""

from __future__ import annotations

import json

from dataclasses import dataclass
from typing import Any

from launcher.adapters.policies.builtins import BUILTINS
from launcher.adapters.policies.opa import REFUSED
from launcher.adapters.policies.machine import Machine
from launcher.errors import PolicyError, PolicyUnusable
from tests.conformance.cases import Case
from tests.conformance.compiling import ENTRYPOINT


PASSED, FAILED, NOT_OFFERED = "passed", "failed", "not applicable"
_SECONDS = 10.0
_NO_QUESTION = (
    # A builtin of OPA's own test programs.
    "test.sleep",
    # The query is all of `data`, of which the module that asks is part.
    "rule data.conformance_question.result is recursive",
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    outcome: str
    why: str = ""
    builtins: tuple[str, ...] = ()
    """What the case calls of the host."""


def verdict(case: Case, compiled: bytes | str) -> Verdict:
    if isinstance(compiled, str):
        return _refused(case, compiled)
    try:
        machine = Machine(compiled, BUILTINS, timeout=_SECONDS, data=case.data)
    except PolicyUnusable as exc:
        return Verdict(outcome=FAILED, why=f"{exc}: {exc.details}"[:200])
    needed = tuple(sorted(machine.needed))
    if missing := machine.needed - set(BUILTINS):
        reason = ", ".join(sorted(missing))
        return Verdict(outcome=NOT_OFFERED, why=reason, builtins=tuple(sorted(missing)))
    try:
        answer = machine.ask(case.document, machine.entrypoints[ENTRYPOINT])
    except PolicyError as exc:
        return _after_error(case, str(exc), needed)
    finally:
        machine.close()
    return _compared(case, answer, needed)


def _refused(case: Case, message: str) -> Verdict:
    for name in REFUSED:
        if name in message:
            return Verdict(outcome=NOT_OFFERED, why=name, builtins=(name,))
    for reason in _NO_QUESTION:
        if reason in message:
            return Verdict(outcome=NOT_OFFERED, why=reason, builtins=(reason,))
    code = case.content.get("want_error_code", "")
    if code and code in message:
        return Verdict(outcome=PASSED)
    return Verdict(outcome=FAILED, why=f"the compiler: {message[-200:]}")


def _after_error(case: Case, error: str, needed: tuple[str, ...]) -> Verdict:
    wants_error = not case.content.get("strict_error") and (
        "want_error_code" in case.content or "want_error" in case.content
    )
    if wants_error:
        return Verdict(outcome=PASSED, builtins=needed)
    return Verdict(outcome=FAILED, why=error[:200], builtins=needed)


def _compared(case: Case, answer: Any, needed: tuple[str, ...]) -> Verdict:
    bindings = answer[0]["result"] if answer else []
    content = case.content
    if "want_result" in content:
        wanted: Any = content["want_result"] or []
        good = _same(bindings, wanted)
    elif "want_defined" in content:
        wanted = content["want_defined"]
        good = bool(bindings) == wanted
    else:
        # Errors of builtins do not exist in WebAssembly, so OPA's own harness
        # wants nothing where they would be; another error has to be one.
        wanted = "nothing" if content.get("strict_error") else "an error"
        good = bool(content.get("strict_error")) and not bindings
    if good:
        return Verdict(outcome=PASSED, builtins=needed)
    why = f"{json.dumps(bindings)[:200]}, not {json.dumps(wanted)[:200]}"
    return Verdict(outcome=FAILED, why=why, builtins=needed)


def _same(one: Any, other: Any) -> bool:
    """Equal, where lists may be sets and so come in any order."""
    return _canonical(one) == _canonical(other)


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        # YAML has keys that are no strings, JSON does not.
        return {
            key if isinstance(key, str) else json.dumps(key): _canonical(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return sorted(
            (_canonical(e) for e in value), key=lambda e: json.dumps(e, sort_keys=True)
        )
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
