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
    """What the policy said, as the sample line shows it; empty after an error."""
    error: str = ""
    """What went wrong, for the operator: it may quote the policy."""
    reason: str = ""
    """The same for everybody, where it can be said."""
    body: str = ""
    """The source of the policy; empty when there is none to show."""

    @classmethod
    def of(cls, results: Mapping[str, Any], *, body: str = "") -> Self:
        """
        Draw the conclusion from what a policy said.

        Without ``deny`` or ``sample`` they are empty and false; ``allow`` must be
        true if it is there.  What has another type than it should is an error:
        nobody knows what its author meant.
        """
        deny, sample = results.get("deny", []), results.get("sample", False)
        allow = results.get("allow", True)
        if not isinstance(deny, list) or not all(isinstance(why, str) for why in deny):
            return cls.failed("deny is not a set of strings", body=body)
        if not isinstance(sample, bool):
            return cls.failed("sample is neither true nor false", body=body)
        if not isinstance(allow, bool):
            return cls.failed("allow is neither true nor false", body=body)
        said = {"deny": sorted(deny), "sample": sample}
        if "allow" in results:
            said["allow"] = allow
        return cls(
            outcome=Outcome.ALLOW if allow and not deny else Outcome.DENY,
            deny=tuple(sorted(deny)),
            sample=sample,
            results=said,
            body=body,
        )

    @classmethod
    def failed(cls, error: str, *, body: str = "", reason: str = "") -> Self:
        return cls(outcome=Outcome.ERROR, error=error, body=body, reason=reason)

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
                reasons = "; ".join(self.deny) or "its allow rule is not true"
                return f"denied by the worker's initialization policy: {reasons}"
            case Outcome.ERROR:
                why = f" ({self.reason})" if self.reason else ""
                return (
                    "the worker's initialization policy could not be evaluated"
                    f"{why}, so the run is denied"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An executable file that a policy may start."""

    path: str
    sha256: str = ""
    """Hexadecimal digest of its content; empty: any content."""


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
