"""
Takes the entry script's marks out of a job's output.

A mark is a claim by the job, which could print one itself: it may end a phase
early or fail it, and nothing else may follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


_EDGE = b"\x1e"
_LONGEST = 200  # bytes of a mark; what is longer is output


@dataclass(frozen=True, slots=True)
class Mark:
    words: tuple[str, ...]


class MarkParser:
    """Splits a stream, cut anywhere, into output and the marks in it."""

    def __init__(self, nonce: str) -> None:
        self._start = _EDGE + nonce.encode() + b" "
        self._held = b""

    def feed(self, chunk: bytes) -> Iterator[bytes | Mark]:
        data, self._held = self._held + chunk, b""
        while data:
            start = data.find(self._start)
            if start == -1:
                keep = self._beginning_of_a_mark(data)
                self._held = data[len(data) - keep :]
                data = data[: len(data) - keep]
                if data:
                    yield data
                return
            if start:
                yield data[:start]
                data = data[start:]
            end = data.find(_EDGE, len(self._start), _LONGEST)
            if end != -1:
                words = data[len(self._start) : end].decode("ascii", "replace")
                data = data[end + 1 :]
                yield Mark(tuple(words.split()))
            elif len(data) < _LONGEST:
                self._held = data
                return
            else:
                yield data[: len(self._start)]
                data = data[len(self._start) :]

    def close(self) -> bytes:
        """What was held back and will not become a mark any more."""
        rest, self._held = self._held, b""
        return rest

    def _beginning_of_a_mark(self, data: bytes) -> int:
        edge = data.rfind(_EDGE, max(len(data) - len(self._start), 0))
        if edge != -1 and self._start.startswith(data[edge:]):
            return len(data) - edge
        return 0
