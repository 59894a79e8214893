"""
Secrets that are known by their looks: keys and tokens of vendors.

Each shape begins with bytes that nothing else begins with, is bounded in length, and
can be followed byte by byte without ever going back.  So it is known at every moment
whether what was printed last may still become one, and what is held back is bounded,
too.  From every place, the longest match counts; matches may overlap.

Only characters that a shape consists of are looked at, not those around it: a key in
the middle of a longer word is masked, which harms nobody.
"""

from __future__ import annotations

import re

from collections.abc import Iterable
from dataclasses import dataclass


class Run:
    """Characters of a class: at least so many, and as many as there are up to most."""

    def __init__(self, characters: bytes, least: int, most: int) -> None:
        self.least, self.most = least, most
        self._all_of = re.compile(b"[%s]*" % characters)

    def end(self, data: bytes, start: int) -> int:
        found = self._all_of.match(data, start)
        return found.end() if found else start


@dataclass(frozen=True, slots=True)
class Until:
    """Anything, up to and with the first *end* that begins within *most* bytes."""

    end: bytes
    most: int


Part = bytes | Run | Until


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """
    What one kind of secret looks like.

    What follows a run, if anything does, is a literal that does not begin with one of
    the run's characters: so there is one way only to read it.
    """

    name: str
    begins: bytes
    parts: tuple[Part, ...]

    @property
    def longest(self) -> int:
        """Bytes of a match, at most."""
        return len(self.begins) + sum(map(_longest, self.parts))


def _longest(part: Part) -> int:
    match part:
        case bytes():
            return len(part)
        case Run():
            return part.most
        case Until():
            return part.most + len(part.end)


class Reading:
    """
    Matches of shapes in one piece of data, with each byte looked at once for a shape.

    Where a run of characters ends, and where an end is found, is the same from every
    place in front of it: without that being remembered, a text made of beginnings
    would be read once for each of them.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._runs: dict[Run, tuple[int, int]] = {}
        self._ends: dict[Until, tuple[int, int]] = {}

    def at(self, shape: Shape, start: int) -> tuple[int | None, bool]:
        """
        Where the longest match from *start* ends, if there is one, and whether more
        bytes could make it one, or a longer one.
        """
        data, place = self._data, start
        for part in (shape.begins, *shape.parts):
            match part:
                case bytes():
                    there = data[place : place + len(part)]
                    if there != part:
                        return None, len(there) < len(part) and part.startswith(there)
                    place += len(part)
                case Run():
                    end = self._end_of_run(part, place)
                    length = min(end - place, part.most)
                    grows = end == len(data) and length < part.most
                    if length < part.least or (grows and part is not shape.parts[-1]):
                        return None, grows
                    place += length
                    if part is shape.parts[-1]:
                        return place, grows
                case Until():
                    found = self._next(part, place)
                    if not place <= found <= place + part.most:
                        return None, found < 0 and self._may_end(part, place)
                    place = found + len(part.end)
        return place, False

    def _end_of_run(self, run: Run, start: int) -> int:
        known_start, known_end = self._runs.get(run, (0, -1))
        if not known_start <= start <= known_end:
            known_start, known_end = start, run.end(self._data, start)
            self._runs[run] = known_start, known_end
        return known_end

    def _may_end(self, until: Until, start: int) -> bool:
        """Whether an end may have begun in the last bytes, or may still begin."""
        length, last = len(self._data), start + until.most
        if length <= last:
            return True
        first = max(start, length - len(until.end) + 1)
        return any(
            until.end.startswith(self._data[place:]) for place in range(first, last + 1)
        )

    def _next(self, until: Until, start: int) -> int:
        known_start, found = self._ends.get(until, (len(self._data) + 1, -1))
        if known_start > start or -1 < found < start:
            known_start, found = start, self._data.find(until.end, start)
            self._ends[until] = known_start, found
        return found


# --- the shapes

_WORD = rb"A-Za-z0-9"
_TOKEN = rb"A-Za-z0-9_-"
_KEY = 16 << 10
"""Bytes of a private key between its first and its last line; RSA with 8192 bits has
6.4 KB, with armour and an encryption."""


def _private_key(label: bytes) -> Shape:
    return Shape(
        name=f"{label.decode()} block",
        begins=b"-----BEGIN " + label + b"-----",
        parts=(Until(b"-----END " + label + b"-----", _KEY),),
    )


WELL_KNOWN: tuple[Shape, ...] = (
    *(
        Shape(
            name="AWS access key id",
            begins=prefix,
            parts=(Run(rb"A-Z0-9", 16, 16),),
        )
        for prefix in (b"AKIA", b"ASIA")
    ),
    # Four more characters are in front of it, of which nothing can be said.
    Shape(
        name="Azure AD client secret",
        begins=b"Q~",
        parts=(Run(rb"A-Za-z0-9_.~-", 31, 34),),
    ),
    Shape(
        name="Azure account key",
        begins=b"AccountKey=",
        parts=(Run(rb"A-Za-z0-9+/", 40, 128), b"="),
    ),
    Shape(
        name="Azure shared access signature",
        begins=b"SharedAccessSignature=",
        parts=(Run(rb"A-Za-z0-9%&=+/_.:~?-", 16, 1024),),
    ),
    Shape(
        name="GitHub personal access token",
        begins=b"ghp_",
        parts=(Run(_WORD, 36, 255),),
    ),
    Shape(
        name="GitHub fine-grained personal access token",
        begins=b"github_pat_",
        parts=(Run(rb"A-Za-z0-9_", 22, 255),),
    ),
    *(
        Shape(
            name=f"GitHub {kind} token",
            begins=b"gh" + letter + b"_",
            parts=(Run(_WORD, 36, 255),),
        )
        for kind, letter in (
            ("OAuth access", b"o"),
            ("app user", b"u"),
            ("app installation", b"s"),
            ("app refresh", b"r"),
        )
    ),
    Shape(
        name="JWT",
        begins=b"eyJ",
        parts=(
            Run(_TOKEN, 8, 2048),
            b".eyJ",
            Run(_TOKEN, 0, 8192),
            b".",
            Run(_TOKEN, 8, 1024),
        ),
    ),
    *(
        Shape(
            name="Slack token",
            begins=b"xox" + letter + b"-",
            parts=(Run(rb"A-Za-z0-9-", 10, 255),),
        )
        for letter in (b"a", b"b", b"e", b"o", b"p", b"r", b"s")
    ),
    _private_key(b"PGP PRIVATE KEY BLOCK"),
    _private_key(b"RSA PRIVATE KEY"),
    _private_key(b"PRIVATE KEY"),
)
"""Of which the product masks those that it calls well-known."""


def by_beginning(shapes: Iterable[Shape], size: int) -> dict[bytes, list[Shape]]:
    """The *shapes*, by their first *size* bytes."""
    groups: dict[bytes, list[Shape]] = {}
    for shape in shapes:
        groups.setdefault(shape.begins[:size], []).append(shape)
    return groups
