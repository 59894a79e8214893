"""
What another policy would have said about runs of the past.

A launcher's log holds, beside much else, one line for each evaluation whose
policy asked for it.  Lines that are no such samples are passed over, and so is
one that was cut short by the end of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from launcher.policy import Evaluation, PolicyEngine


class SampleDamaged(Exception):
    """A line is a sample and cannot be judged; the message says what it lacks."""


class _Results(msgspec.Struct):
    deny: list[str] = []


class _Sample(msgspec.Struct):
    input: dict[str, Any]
    outcome: str
    results: _Results = msgspec.field(default_factory=_Results)


class _Line(msgspec.Struct):
    sample: _Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One sample, and what the new policy says about it."""

    line: int
    document: Mapping[str, Any]
    before: str
    reasons_before: tuple[str, ...]
    now: Evaluation

    @property
    def changed(self) -> bool:
        return (self.before, self.reasons_before) != (
            str(self.now.outcome),
            tuple(sorted(self.now.deny)),
        )

    @property
    def run(self) -> str:
        """Which run it was, for people."""
        run = self.document.get("run")
        static = self.document.get("static_run_environment")
        parts = [
            str(part.get(name, "?"))
            for part, name in ((run, "id"), (static, "stack_slug"))
            if isinstance(part, Mapping)
        ]
        return " ".join([*parts, str(self.document.get("phase", ""))]).rstrip()


def replay(lines: Iterable[bytes], engine: PolicyEngine) -> Iterator[Replayed]:
    """
    Ask *engine* about each sample in *lines*, in order.

    Raises:
        SampleDamaged: a sample has no input or no outcome.
    """
    for number, line in enumerate(lines, start=1):
        sample = _sample(line, number)
        if sample is not None:
            yield Replayed(
                line=number,
                document=sample.input,
                before=sample.outcome,
                reasons_before=tuple(sorted(sample.results.deny)),
                now=engine.evaluate(sample.input),
            )


def _sample(line: bytes, number: int) -> _Sample | None:
    # Log collectors like to put a time or a name in front.
    start = line.find(b"{")
    if start < 0 or b'"sample"' not in line:
        return None
    try:
        content = msgspec.json.decode(line[start:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(content, dict) or "sample" not in content:
        return None
    try:
        return msgspec.convert(content, _Line).sample
    except msgspec.ValidationError as exc:
        raise SampleDamaged(f"line {number} is not a whole sample: {exc}") from exc
