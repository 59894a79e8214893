"""
Takes the entry script's marks out of a job's output.

A mark is a claim by the job, which could print one itself: it may end a phase
early or fail it, and nothing else may follow from it.  What only begins like a
mark is output, and never hides the real one behind it.
"""

from __future__ import annotations

import re

from collections.abc import Iterator
from dataclasses import dataclass


_OPENING = b"\x1e"
_EDGE = re.compile(rb"[\x1e\x1f]")
_LONGEST = 200  # bytes of a mark; what is longer is output


@dataclass(frozen=True, slots=True)
class Mark:
    words: tuple[str, ...]


class MarkParser:
    """Splits a stream, cut anywhere, into output and the marks in it."""

    def __init__(self, nonce: str) -> None:
        self._start = _OPENING + nonce.encode() + b" "
        self._held = b""

    def feed(self, chunk: bytes) -> Iterator[bytes | Mark]:
        data, self._held = self._held + chunk, b""
        position = 0
        while (start := data.find(self._start, position)) != -1:
            if start > position:
                yield data[position:start]
            position = start + len(self._start)
            edge = _EDGE.search(data, position, start + _LONGEST)
            if edge is None and len(data) < start + _LONGEST:
                self._held = data[start:]
                return
            if edge is None or edge[0] == _OPENING:
                yield data[start:position]
            else:
                words = data[position : edge.start()].decode("ascii", "replace")
                position = edge.end()
                yield Mark(tuple(words.split()))
        undecided = self._beginning_of_a_mark(data, position)
        self._held = data[undecided:]
        if undecided > position:
            yield data[position:undecided]

    def close(self) -> bytes:
        """What was held back and will not become a mark any more."""
        rest, self._held = self._held, b""
        return rest

    def _beginning_of_a_mark(self, data: bytes, position: int) -> int:
        """Where, after *position*, the end of *data* may be one; else its length."""
        earliest = max(len(data) - len(self._start), position)
        edge = data.rfind(_OPENING, earliest)
        return edge if self._start.startswith(data[edge:]) and edge != -1 else len(data)
