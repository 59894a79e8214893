"""Builtins about time: nanoseconds since 1970, as OPA counts them."""

from __future__ import annotations

import calendar
import re

from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from launcher.adapters.policies.builtins import layouts
from launcher.adapters.policies.builtins.checks import array, integer, string
from launcher.adapters.policies.machine import Builtin, Call
from launcher.adapters.policies.values import Value


_SECOND = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:Z|([+-]\d\d):(\d\d))",
    re.ASCII,
)


@lru_cache(64)
def _zone(name: str) -> tzinfo:
    if name in ("", "UTC"):
        return UTC
    if name == "Local":
        raise ValueError("the time zone of a machine is no part of a policy")
    return ZoneInfo(name)


def _moment(given: Value) -> tuple[datetime, int]:
    """Return the time to the second, in its zone, and the nanoseconds beyond."""
    zone: tzinfo = UTC
    if isinstance(given, list):
        zone = _zone(string(given[1])) if len(array(given)) > 1 else UTC
        given = given[0]
    seconds, beyond = divmod(_int64(integer(given)), _SECOND)
    return (_EPOCH + timedelta(seconds=seconds)).astimezone(zone), beyond


def _int64(number: int) -> int:
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError("time outside of the valid range")
    return number


def _nanoseconds(moment: datetime, beyond: int = 0) -> int:
    since = moment - _EPOCH
    return _int64((since.days * 86400 + since.seconds) * _SECOND + beyond)


def parse_rfc3339(_: Call, text: Value) -> int:
    found = _RFC3339.fullmatch(string(text))
    if found is None:
        raise ValueError("not RFC 3339")
    zone: tzinfo = UTC
    if found[8]:
        minutes = int(found[8][1:]) * 60 + int(found[9])
        zone = timezone(timedelta(minutes=int(f"{found[8][0]}{minutes}")))
    moment = datetime(*(int(found[n]) for n in range(1, 7)), tzinfo=zone)  # type: ignore[arg-type,misc]
    return _nanoseconds(moment, int((found[7] or "0")[:9].ljust(9, "0")))


def parse(_: Call, layout: Value, text: Value) -> int:
    return _nanoseconds(
        *layouts.parsed(layouts.NAMED.get(string(layout), string(layout)), string(text))
    )


def written(_: Call, given: Value) -> str:
    moment, beyond = _moment(given)
    layout = string(given[2]) if isinstance(given, list) and len(given) > 2 else ""
    layout = layouts.NAMED.get(layout, layout) or layouts.NAMED["RFC3339Nano"]
    return layouts.formatted(layout, moment, beyond)


def day(_: Call, given: Value) -> list[int]:
    moment, _beyond = _moment(given)
    return [moment.year, moment.month, moment.day]


def clock(_: Call, given: Value) -> list[int]:
    moment, _beyond = _moment(given)
    return [moment.hour, moment.minute, moment.second]


def weekday(_: Call, given: Value) -> str:
    return _DAYS[_moment(given)[0].weekday()]


def add_date(_: Call, given: Value, years: Value, months: Value, days: Value) -> int:
    moment, beyond = _moment(given)
    month = moment.month - 1 + integer(months)
    year = moment.year + integer(years) + month // 12
    first = date(year, month % 12 + 1, 1)
    moved = first + timedelta(days=moment.day - 1 + integer(days))
    return _nanoseconds(
        moment.replace(year=moved.year, month=moved.month, day=moved.day), beyond
    )


def diff(_: Call, one: Value, other: Value) -> list[int]:
    """Years, months, days, hours, minutes and seconds between two times."""
    (begin, before), (end, after) = _moment(one), _moment(other)
    end = end.astimezone(begin.tzinfo)
    if (begin, before) > (end, after):
        begin, end, before, after = end, begin, after, before
    parts = [
        end.year - begin.year,
        end.month - begin.month,
        end.day - begin.day,
        end.hour - begin.hour,
        end.minute - begin.minute,
        end.second - begin.second,
    ]
    if after < before:
        parts[5] -= 1
    for place, size in ((5, 60), (4, 60), (3, 24)):
        if parts[place] < 0:
            parts[place] += size
            parts[place - 1] -= 1
    if parts[2] < 0:
        parts[2] += calendar.monthrange(begin.year, begin.month)[1]
        parts[1] -= 1
    if parts[1] < 0:
        parts[1] += 12
        parts[0] -= 1
    return parts


_UNITS = {
    "ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 1_000_000,
    "s": _SECOND, "m": 60 * _SECOND, "h": 3600 * _SECOND,
    "d": 86400 * _SECOND, "w": 7 * 86400 * _SECOND, "y": 365 * 86400 * _SECOND,
}  # fmt: skip
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w|y)", re.ASCII)


def parse_duration(_: Call, text: Value) -> int:
    rest = string(text)
    sign = -1 if rest.startswith("-") else 1
    rest = rest[1:] if rest[:1] in ("-", "+") else rest
    if rest == "0":
        return 0
    total, at = 0, 0
    for found in _DURATION.finditer(rest):
        if found.start() != at:
            break
        at = found.end()
        whole, _point, fraction = found[1].partition(".")
        unit = _UNITS[found[2]]
        total += int(whole or 0) * unit
        total += int(fraction or 0) * unit // 10 ** len(fraction)
    if not rest or at != len(rest):
        raise ValueError("not a duration")
    return _int64(sign * total)


BUILTINS: dict[str, Builtin] = {
    "time.parse_rfc3339_ns": parse_rfc3339,
    "time.parse_duration_ns": parse_duration,
    "time.parse_ns": parse,
    "time.format": written,
    "time.date": day,
    "time.clock": clock,
    "time.weekday": weekday,
    "time.add_date": add_date,
    "time.diff": diff,
}
