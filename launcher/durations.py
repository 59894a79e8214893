"""
Durations as operators write them for Go programs: ``7m``, ``1h30m``, ``1.5s``.

The product's variables have this form, and its documentation points to Go's own
grammar; so ``90`` without a unit is refused here as it is there.
"""

from __future__ import annotations

import re


NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,  # the Greek letter beside the micro sign, as in Go
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}

_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]+)")
_LIMIT = 1 << 63


def parse_duration(text: str) -> float:
    """
    Return the seconds that *text* says, with Go's rules and limits.

    Raises:
        ValueError: with a sentence about what is wrong.
    """
    return nanoseconds(text) / 1_000_000_000


def nanoseconds(text: str) -> int:
    """Like `parse_duration`, but exact."""
    negative = text.startswith("-")
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    if not rest:
        raise ValueError("a duration is a number with a unit")
    total = position = 0
    while position < len(rest):
        part = _PART.match(rest, position)
        if part is None or not (part[1] or part[2]):
            raise ValueError(_complaint(rest[position:]))
        if part[3] not in NANOSECONDS:
            raise ValueError("the units of a duration are ns, us, ms, s, m and h")
        unit = NANOSECONDS[part[3]]
        total += int(part[1] or "0") * unit + _fraction(part[2] or "", unit)
        position = part.end()
    if total > _LIMIT - (not negative):
        raise ValueError("a duration is at most 292 years")
    return -total if negative else total


def _complaint(rest: str) -> str:
    if re.fullmatch(r"[0-9]*\.?[0-9]*", rest) and rest != ".":
        return "a duration needs a unit: ns, us, ms, s, m or h"
    return "a duration is a number with a unit"


def _fraction(digits: str, unit: int) -> int:
    """Scale a fraction as Go does, which is with a float of limited digits."""
    value, scale = 0, 1.0
    for digit in digits:
        longer = value * 10 + int(digit)
        if value > (_LIMIT - 1) // 10 or longer > _LIMIT:
            break
        value, scale = longer, scale * 10
    return int(float(value) * (unit / scale))
