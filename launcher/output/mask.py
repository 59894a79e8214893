"""
Masks secrets in a stream of bytes that is cut at arbitrary places.

A secret may be split over any number of chunks, may overlap another one, and
may be the beginning of a longer one.  So all matches are found (overlapping
ones, too), their union is masked, and exactly the longest tail that could still
grow into a secret is held back: until more bytes decide, or the end.  Never for
a time: a timer would let the halves of a secret out one by one.

What is searched for is only how each needle begins, in an automaton that stays
small and in the processor's cache however long the needles are.  Where one
begins, a few look-ups tell whether all of it is there, or may still come.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import ahocorasick_rs

from launcher.output.patterns import Reading, Shape, by_beginning


MASK = b"*****"

_SLICE = 1 << 16  # bytes searched at once, if no two beginnings end at one place
_BEGINNING = 8  # bytes of a needle in the automaton
_FAST = 4096  # beginnings up to which the automaton is a table, 0.5 KiB for a byte


class Masker:
    """
    One stream's masking.  Not for use from several threads at once.

    ``feed`` and ``close`` return what may leave the process.  Memory is bounded
    by one chunk and the longest needle, whatever the stream contains.  After
    ``close``, another stream may begin.
    """

    def __init__(self, needles: Iterable[bytes] | Index = ()) -> None:
        self._index = needles if isinstance(needles, Index) else Index(needles)
        self._held = b""
        self._covered = 0
        """Bytes from the first held back one on that a written mask stands for."""

    @property
    def waiting(self) -> int:
        """How many bytes are held back."""
        return len(self._held)

    def feed(self, chunk: bytes) -> bytes:
        if self._index.empty:
            return chunk
        # In slices, because the list of all matches is much larger than they are.
        size = self._index.slice
        return b"".join(
            self._feed(chunk[start : start + size])
            for start in range(0, len(chunk), size)
        )

    def _feed(self, chunk: bytes) -> bytes:
        data = self._held + chunk
        found, cut = self._index.search(data)
        return self._release(data, found, cut)

    def close(self) -> bytes:
        """Return what was held back; nothing can grow any more."""
        data = self._held
        found, _ = self._index.search(data)
        clean = self._release(data, found, len(data))
        self._covered = 0
        return clean

    def begin(self, index: Index) -> None:
        """Look for other needles: in a stream that begins now, or for more of them."""
        self._index = index

    def _release(self, data: bytes, found: list[tuple[int, int]], cut: int) -> bytes:
        written = bool(self._covered)
        if written:
            found = [*found, (0, self._covered)]
        if not found:
            clean = data[:cut]
        else:
            spans = _union(found)
            # A mask that began in an earlier chunk has been written already.
            clean = _masked(data, spans, cut, written=written)
            if cut:
                begun = [end for start, end in spans if start < cut]
                self._covered = max(begun[-1] - cut, 0) if begun else 0
        self._held = data[cut:]
        return clean


class _Bucket(NamedTuple):
    """Needles that begin alike."""

    ordered: list[bytes]
    by_length: list[tuple[int, frozenset[bytes]]]
    longest: int


class Index:
    """
    Finds needles, and what has one of *shapes*, and their beginnings at the end.

    Never changes.
    """

    def __init__(self, needles: Iterable[bytes], shapes: Iterable[Shape] = ()) -> None:
        groups: dict[bytes, set[bytes]] = defaultdict(set)
        for needle in needles:
            if needle:
                groups[needle[:_BEGINNING]].add(needle)
        shaped = by_beginning(shapes, _BEGINNING)
        beginnings = sorted({*groups, *shaped})
        self.empty = not beginnings
        self._buckets = [
            _bucket(groups.get(beginning, set())) for beginning in beginnings
        ]
        self._shapes = [shaped.get(beginning) for beginning in beginnings]
        # Of shapes, too: what comes after their first bytes makes them longer.
        self._short = {
            needle[:length]
            for group in (*groups.values(), shaped)
            for needle in group
            for length in range(1, min(len(needle), _BEGINNING))
        }
        self._automaton = ahocorasick_rs.BytesAhoCorasick(
            beginnings,
            implementation=ahocorasick_rs.Implementation.DFA
            if len(beginnings) <= _FAST
            else None,
        )
        self.slice = max(_SLICE // _most_at_one_end(beginnings), 1)

    def search(self, data: bytes) -> tuple[list[tuple[int, int]], int]:
        """
        All matches, and where the longest tail begins that is no needle yet.

        Without such a tail that is the length of *data*.
        """
        found: list[tuple[int, int]] = []
        cut = end = len(data)
        if self.empty or not data:
            return found, cut
        reading = Reading(data)
        for number, start, _ in self._automaton.find_matches_as_indexes(
            data, overlapping=True
        ):
            for shape in self._shapes[number] or ():
                stop, grows = reading.at(shape, start)
                if stop is not None:
                    found.append((start, stop))
                if grows:
                    cut = min(cut, start)
            ordered, by_length, longest = self._buckets[number]
            found += [
                (start, start + length)
                for length, needles in by_length
                if data[start : start + length] in needles
            ]
            if start < cut and start + longest > end:
                tail = data[start:]
                place = bisect_right(ordered, tail)
                if place < len(ordered) and ordered[place].startswith(tail):
                    cut = start
        for length in range(min(_BEGINNING - 1, end), end - cut, -1):
            if data[-length:] in self._short:
                cut = end - length
                break
        return found, cut

    def text(self, text: str) -> str:
        """Mask one complete text, such as a leaf of a document."""
        data = text.encode("utf-8", "surrogatepass")
        found, _ = self.search(data)
        if found:
            data = _masked(data, _union(found), len(data))
        return data.decode("utf-8", "replace")


def _bucket(needles: set[bytes]) -> _Bucket:
    by_length: dict[int, set[bytes]] = defaultdict(set)
    for needle in needles:
        by_length[len(needle)].add(needle)
    return _Bucket(
        sorted(needles),
        [(length, frozenset(group)) for length, group in sorted(by_length.items())],
        max(by_length, default=0),
    )


def _most_at_one_end(beginnings: Iterable[bytes]) -> int:
    """How many of *beginnings* can end at the same place: the longest nest of ends."""
    known = frozenset(beginnings)
    return max(
        (
            sum(beginning[start:] in known for start in range(len(beginning)))
            for beginning in known
        ),
        default=1,
    )


def _union(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes, as disjoint ranges in order."""
    found.sort()
    union: list[tuple[int, int]] = []
    last_start, last_end = found[0]
    for start, end in found:
        if start < last_end:
            last_end = max(last_end, end)
        else:
            union.append((last_start, last_end))
            last_start, last_end = start, end
    union.append((last_start, last_end))
    return union


def _masked(
    data: bytes, spans: list[tuple[int, int]], cut: int, *, written: bool = False
) -> bytes:
    """*data* up to *cut*, with a mask for each span but one that is *written*."""
    parts = []
    position = 0
    for start, end in spans:
        if start >= cut:
            break
        parts.append(data[position:start])
        if not (start == 0 and written):
            parts.append(MASK)
        position = min(end, cut)
    parts.append(data[position:cut])
    return b"".join(parts)
