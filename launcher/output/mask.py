"""
Masks secrets in a stream of bytes that is cut at arbitrary places.

A secret may be split over any number of chunks, may overlap another one, and
may be the beginning of a longer one.  So all matches are found (overlapping
ones, too), their union is masked, and exactly the longest tail that could still
grow into a secret is held back: until more bytes decide, or the end.  Never for
a time: a timer would let the halves of a secret out one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

import ahocorasick_rs


MASK = b"*****"

_SLICE = 1 << 16  # bytes searched at once, if no two secrets end at one place


class Masker:
    """
    One stream's masking.  Not for use from several threads at once.

    ``feed`` and ``close`` return what may leave the process.  Memory is bounded
    by one chunk and the longest secret, whatever the stream contains.  After
    ``close``, another stream may begin.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._needles = sorted({secret for secret in secrets if secret})
        self._automaton = (
            ahocorasick_rs.BytesAhoCorasick(self._needles) if self._needles else None
        )
        self._slice = max(_SLICE // _most_at_one_end(self._needles), 1)
        self._held = b""
        self._covered = 0  # leading bytes of _held that an emitted mask stands for

    @property
    def waiting(self) -> int:
        """How many bytes are held back."""
        return len(self._held)

    def feed(self, chunk: bytes) -> bytes:
        if self._automaton is None:
            return chunk
        # In slices, because the list of all matches is much larger than they are.
        return b"".join(
            self._feed(chunk[start : start + self._slice])
            for start in range(0, len(chunk), self._slice)
        )

    def _feed(self, chunk: bytes) -> bytes:
        data = self._held + chunk
        spans = self._spans(data)
        return self._release(data, spans, len(data) - self._undecided(data))

    def close(self) -> bytes:
        """Return what was held back; nothing can grow any more."""
        data = self._held
        return self._release(data, self._spans(data), len(data))

    def text(self, text: str) -> str:
        """Mask one complete text, such as a leaf of a document; no stream is open."""
        clean = self.feed(text.encode("utf-8", "surrogatepass")) + self.close()
        return clean.decode("utf-8", "replace")

    def _spans(self, data: bytes) -> list[tuple[int, int]]:
        """The union of all matches, as disjoint ranges in order."""
        if self._automaton is None:
            return []
        found = [
            (start, end)
            for _, start, end in self._automaton.find_matches_as_indexes(
                data, overlapping=True
            )
        ]
        if self._covered:
            found.append((0, self._covered))
        union: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if union and start < union[-1][1]:
                union[-1] = (union[-1][0], max(end, union[-1][1]))
            else:
                union.append((start, end))
        return union

    def _undecided(self, data: bytes) -> int:
        """Length of the longest tail that is a proper beginning of a secret."""
        longest = 0
        for needle in self._needles:
            position = max(len(data) - len(needle) + 1, 0)
            first = needle[:1]
            while (position := data.find(first, position)) != -1:
                length = len(data) - position
                if length <= longest:
                    break
                # The last byte first: it spares long secrets the costly comparison.
                if needle[length - 1] == data[-1] and needle.startswith(
                    data[position:]
                ):
                    longest = length
                    break
                position += 1
        return longest

    def _release(self, data: bytes, spans: list[tuple[int, int]], cut: int) -> bytes:
        clean = bytearray()
        position = covered = 0
        for start, end in spans:
            if start >= cut:
                break
            clean += data[position:start]
            # A mask that began in an earlier chunk has been written already.
            if not (start == 0 and self._covered):
                clean += MASK
            position = min(end, cut)
            covered = max(end - cut, 0)
        clean += data[position:cut]
        if cut == 0:
            covered = self._covered
        self._held, self._covered = data[cut:], covered
        return bytes(clean)


def _most_at_one_end(needles: list[bytes]) -> int:
    """How many of *needles* can end at the same place: the longest nest of ends."""
    nests: dict[bytes, int] = {}
    for needle in sorted(needles, key=len):
        inner = (depth for end, depth in nests.items() if needle.endswith(end))
        nests[needle] = 1 + max(inner, default=0)
    return max(nests.values(), default=1)
