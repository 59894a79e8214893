"""A policy engine that follows a script."""

from __future__ import annotations

import threading

from collections.abc import Callable, Mapping
from typing import Any

from launcher.policy import Evaluation


Script = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Takes the input and returns ``deny`` and ``sample``, or part of it, or raises."""


class ScriptedPolicy:
    """Answers what *script* answers, and remembers what it was asked."""

    def __init__(self, script: Script, *, body: str = "") -> None:
        self._script = script
        self._body = body
        self._lock = threading.Lock()
        self.asked: list[Mapping[str, Any]] = []

    @classmethod
    def denying(cls, *reasons: str, sample: bool = False) -> ScriptedPolicy:
        """Deny everything for *reasons*; without any, allow everything."""
        return cls(lambda _: {"deny": list(reasons), "sample": sample})

    def evaluate(self, document: Mapping[str, Any], /) -> Evaluation:
        with self._lock:
            self.asked.append(document)
        try:
            results = self._script(document)
        except Exception as exc:  # noqa: BLE001 (like a policy that crashes)
            return Evaluation.failed(f"{type(exc).__name__}: {exc}", body=self._body)
        return Evaluation.of(results, body=self._body)
