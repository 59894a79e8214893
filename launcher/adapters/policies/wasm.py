"""
A policy that has been compiled and can be asked.

Import this lazily, since it imports wasmtime (see `machine`).
"""

from __future__ import annotations

import json

from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from launcher.adapters.policies.builtins import BUILTINS
from launcher.adapters.policies.compiler import Compiled
from launcher.adapters.policies.exec import exec_builtin
from launcher.adapters.policies.machine import Builtin, LimitExceeded, Machine
from launcher.adapters.policies.machine_code import MachineCode
from launcher.adapters.policies.opa import REFUSED
from launcher.adapters.policies.prelude import ENTRYPOINT
from launcher.errors import PolicyError, PolicyUnusable
from launcher.policy import Evaluation, Program


log = structlog.get_logger()

_ENTRYPOINTS = (ENTRYPOINT, "spacelift")
"""What is asked: our prelude, or the whole package of a policy compiled elsewhere."""

SECONDS = 5.0
SECONDS_WITH_EXEC = 20.0


class WasmPolicy:
    """A policy that has been loaded and can be asked."""

    def __init__(
        self,
        policy: Compiled,
        *,
        timeout: float | None = None,
        exec_allowed: Iterable[Program] = (),
        builtins: Mapping[str, Builtin] = BUILTINS,
        code: MachineCode | None = None,
    ) -> None:
        """
        Load *policy*; its time is what its builtins need, unless *timeout* is given.

        Its machine code is taken from, and left in, *code*.

        Raises:
            PolicyUnusable: it is not a policy of ours, or needs what we lack.
        """
        self._policy = policy
        offered = {**builtins, "exec": exec_builtin(exec_allowed)}
        data = policy.data.encode() or None
        self._machine = Machine(
            policy.wasm, offered, timeout=SECONDS, data=data, code=code
        )
        needed = self._machine.needed
        self._machine.timeout = timeout or (
            SECONDS_WITH_EXEC if "exec" in needed else SECONDS
        )
        self._entrypoint = _entrypoint(self._machine.entrypoints)
        _refuse_missing(needed - set(offered))

    @property
    def facts(self) -> dict[str, object]:
        """What the log tells of a policy when it is loaded."""
        facts: dict[str, object] = {
            "dialect": self._policy.dialect or "compiled elsewhere",
            "seconds": self._machine.timeout,
        }
        if self._policy.ambiguous:
            facts["note"] = "it is valid as v0, too; v1 wins"
        if self._policy.aliases:
            facts["aliases"] = list(self._policy.aliases)
        return facts

    def close(self) -> None:
        self._machine.close()

    def evaluate(self, document: Mapping[str, Any], /) -> Evaluation:
        body = self._policy.source
        try:
            answer = self._machine.ask(_encoded(document), self._entrypoint)
        except LimitExceeded as exc:
            return Evaluation.failed(str(exc), body=body, reason=str(exc))
        except PolicyError as exc:
            return Evaluation.failed(str(exc), body=body)
        except (RecursionError, MemoryError) as exc:
            return Evaluation.failed(type(exc).__name__, body=body)
        except Exception as exc:  # whatever it is, nobody said yes
            log.exception("policy.evaluation_crashed")
            return Evaluation.failed(type(exc).__name__, body=body)
        match answer:
            case [{"result": dict(results)}]:
                if self._policy.allow:
                    results.setdefault("allow", False)
                return Evaluation.of(results, body=body)
            case _:
                return Evaluation.failed("the policy gave no answer", body=body)


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False, default=_plain).encode()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def _entrypoint(known: Mapping[str, int]) -> int:
    for name in _ENTRYPOINTS:
        if name in known:
            return known[name]
    raise PolicyUnusable(
        "the compiled policy has no entrypoint of ours: build it from"
        " `package spacelift` with `opa build -t wasm -e spacelift`"
    )


def _refuse_missing(missing: frozenset[str]) -> None:
    if not missing:
        return
    reasons = [
        f"{name} ({REFUSED[name]})" if name in REFUSED else name
        for name in sorted(missing)
    ]
    raise PolicyUnusable(
        "the initialization policy calls what this launcher does not provide: "
        + ", ".join(reasons)
    )
