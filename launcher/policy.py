"""
The machine owner's word on every job: what a policy engine is asked and answers.

A port.  The real one evaluates Rego (`launcher.adapters.policies`), the fake one
follows a script (`launcher.testing.policies`).
"""

from __future__ import annotations

import enum

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self


class Outcome(enum.StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    ERROR = "error"
    """The policy gave no usable answer.  Whoever sees this must deny."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came of one evaluation; ask `allowed`, never the parts."""

    outcome: Outcome
    deny: tuple[str, ...] = ()
    """Why not, in the policy's words; meant for the owner of the run."""
    sample: bool = False
    """True when the policy wants this evaluation logged with its input."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """``deny`` and ``sample`` as the sample line shows them; empty after an error."""
    error: str = ""
    """What went wrong, for the operator: it may quote the policy."""
    body: str = ""
    """The source of the policy; empty when there is none to show."""

    @classmethod
    def of(cls, results: Mapping[str, Any], *, body: str = "") -> Self:
        """
        Draw the conclusion from what a policy said about ``deny`` and ``sample``.

        What is absent is empty or false.  What has another type than it should
        is an error: nobody knows what its author meant.
        """
        deny, sample = results.get("deny", []), results.get("sample", False)
        if not isinstance(deny, list) or not all(isinstance(why, str) for why in deny):
            return cls.failed("deny is not a set of strings", body=body)
        if not isinstance(sample, bool):
            return cls.failed("sample is neither true nor false", body=body)
        return cls(
            outcome=Outcome.DENY if deny else Outcome.ALLOW,
            deny=tuple(deny),
            sample=sample,
            results={"deny": deny, "sample": sample},
            body=body,
        )

    @classmethod
    def failed(cls, error: str, *, body: str = "") -> Self:
        return cls(outcome=Outcome.ERROR, error=error, body=body)

    @property
    def allowed(self) -> bool:
        return self.outcome is Outcome.ALLOW

    @property
    def refusal(self) -> str:
        """One public sentence about why not; empty when allowed."""
        match self.outcome:
            case Outcome.ALLOW:
                return ""
            case Outcome.DENY:
                reasons = "; ".join(self.deny)
                return f"denied by the worker's initialization policy: {reasons}"
            case Outcome.ERROR:
                return (
                    "the worker's initialization policy could not be evaluated,"
                    " so the run is denied"
                )


class PolicyEngine(Protocol):
    def evaluate(self, document: Mapping[str, Any], /) -> Evaluation:
        """
        Judge *document*, the ``input`` of the policy.

        Never raises: an evaluation that fails or takes too long is an
        `Evaluation` whose outcome is ERROR.  Takes no longer than the engine's
        time limit.  May be called by several threads at once.
        """


class NoPolicy:
    """The engine of a worker whose owner wrote no policy: everything is allowed."""

    def evaluate(self, document: Mapping[str, Any], /) -> Evaluation:
        return Evaluation.of({})
