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


class Masker:
    """
    One stream's masking.  Not for use from several threads at once.

    ``feed`` and ``close`` return what may leave the process.  Memory is bounded
    by one chunk and the longest secret, whatever the stream contains.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._needles = sorted({secret for secret in secrets if secret})
        self._longest = max(map(len, self._needles), default=0)
        self._automaton = (
            ahocorasick_rs.BytesAhoCorasick(self._needles) if self._needles else None
        )
        self._held = b""
        self._covered = 0  # leading bytes of _held that an emitted mask stands for

    def feed(self, chunk: bytes) -> bytes:
        if self._automaton is None:
            return chunk
        data = self._held + chunk
        spans = self._spans(data)
        return self._release(data, spans, len(data) - self._undecided(data))

    def close(self) -> bytes:
        """Return what was held back; nothing can grow any more."""
        data = self._held
        return self._release(data, self._spans(data), len(data))

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
                if needle.startswith(data[position:]):
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


def mask_text(text: str, secrets: Iterable[bytes]) -> str:
    """Mask *secrets* in one complete text, such as a leaf of a logged document."""
    masker = Masker(secrets)
    clean = masker.feed(text.encode("utf-8", "surrogatepass")) + masker.close()
    return clean.decode("utf-8", "replace")
