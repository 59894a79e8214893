"""
Go's layouts of times, which show a time by the example of one: Mon Jan 2 15:04:05
MST 2006.  Python's own formats cannot say all of them.
"""

from __future__ import annotations

import calendar
import re

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo


NAMED = {
    "ANSIC": "Mon Jan _2 15:04:05 2006",
    "UnixDate": "Mon Jan _2 15:04:05 MST 2006",
    "RubyDate": "Mon Jan 02 15:04:05 -0700 2006",
    "RFC822": "02 Jan 06 15:04 MST",
    "RFC822Z": "02 Jan 06 15:04 -0700",
    "RFC850": "Monday, 02-Jan-06 15:04:05 MST",
    "RFC1123": "Mon, 02 Jan 2006 15:04:05 MST",
    "RFC1123Z": "Mon, 02 Jan 2006 15:04:05 -0700",
    "RFC3339": "2006-01-02T15:04:05Z07:00",
    "RFC3339Nano": "2006-01-02T15:04:05.999999999Z07:00",
}

_MONTHS = list(calendar.month_name)
_DAYS = list(calendar.day_name)

_ELEMENT = re.compile(
    r"January|Jan(?![a-z])|Monday|Mon(?![a-z])|MST|2006|_2(?!006)|002"
    r"|Z07:00:00|Z07:00|Z0700|Z07|-07:00:00|-07:00|-0700|-07"
    r"|(?<=[0-9])[.,](?:0+|9+)(?![0-9])|01|02|03|04|05|06|15|PM|pm|[1-5]"
)

_ZONES = {"Z", "-"}


def formatted(layout: str, moment: datetime, nanoseconds: int) -> str:
    """Write *moment*, and the *nanoseconds* beyond its second, as *layout* shows."""

    def element(found: re.Match[str]) -> str:
        name = found.group()
        if name[0] in ".,":
            return _fraction(name, nanoseconds)
        if name[0] in _ZONES:
            return _offset(name, moment)
        return _WRITERS[name](moment)

    return _ELEMENT.sub(element, layout)


def _fraction(name: str, nanoseconds: int) -> str:
    digits = f"{nanoseconds:09d}"[: len(name) - 1]
    if name[1] == "9":
        digits = digits.rstrip("0")
    return name[0] + digits if digits else ""


def _offset(name: str, moment: datetime) -> str:
    offset = moment.utcoffset() or timedelta()
    if name[0] == "Z" and not offset:
        return "Z"
    seconds = int(offset.total_seconds())
    sign, seconds = "-" if seconds < 0 else "+", abs(seconds)
    parts = [
        f"{seconds // 3600:02d}",
        f"{seconds // 60 % 60:02d}",
        f"{seconds % 60:02d}",
    ]
    wanted = {2: 1, 4: 2, 5: 2, 8: 3}[len(name) - 1]
    return sign + (":" if ":" in name else "").join(parts[:wanted])


def _twelve(moment: datetime) -> int:
    return moment.hour % 12 or 12


def _zone_name(moment: datetime) -> str:
    name = moment.tzname() or ""
    if name.startswith("UTC") and name != "UTC":
        name = ""
    return name or _offset("-0700" if moment.second else "-07", moment)


_WRITERS: dict[str, Callable[[datetime], str]] = {
    "January": lambda m: _MONTHS[m.month],
    "Jan": lambda m: _MONTHS[m.month][:3],
    "1": lambda m: str(m.month),
    "01": lambda m: f"{m.month:02d}",
    "Monday": lambda m: _DAYS[m.weekday()],
    "Mon": lambda m: _DAYS[m.weekday()][:3],
    "2": lambda m: str(m.day),
    "_2": lambda m: f"{m.day:2d}",
    "02": lambda m: f"{m.day:02d}",
    "002": lambda m: f"{m.timetuple().tm_yday:03d}",
    "15": lambda m: f"{m.hour:02d}",
    "3": lambda m: str(_twelve(m)),
    "03": lambda m: f"{_twelve(m):02d}",
    "4": lambda m: str(m.minute),
    "04": lambda m: f"{m.minute:02d}",
    "5": lambda m: str(m.second),
    "05": lambda m: f"{m.second:02d}",
    "2006": lambda m: f"{m.year:04d}",
    "06": lambda m: f"{m.year % 100:02d}",
    "PM": lambda m: "PM" if m.hour >= 12 else "AM",
    "pm": lambda m: "pm" if m.hour >= 12 else "am",
    "MST": _zone_name,
}

_LONG_MONTHS, _SHORT_MONTHS = (
    "|".join(_MONTHS[1:]),
    "|".join(m[:3] for m in _MONTHS[1:]),
)
_LONG_DAYS, _SHORT_DAYS = "|".join(_DAYS), "|".join(day[:3] for day in _DAYS)
_READERS = {
    "January": ("month_name", _LONG_MONTHS),
    "Jan": ("month_name", _SHORT_MONTHS),
    "1": ("month", r"\d{1,2}"),
    "01": ("month", r"\d\d"),
    "Monday": ("", _LONG_DAYS),
    "Mon": ("", _SHORT_DAYS),
    "2": ("day", r" ?\d{1,2}"),
    "_2": ("day", r" ?\d{1,2}"),
    "02": ("day", r"\d\d"),
    "002": ("yday", r"\d{3}"),
    "15": ("hour", r"\d\d"),
    "3": ("twelve", r"\d{1,2}"),
    "03": ("twelve", r"\d\d"),
    "4": ("minute", r"\d{1,2}"),
    "04": ("minute", r"\d\d"),
    "5": ("second", r"\d{1,2}(?:[.,]\d+)?"),
    "05": ("second", r"\d\d(?:[.,]\d+)?"),
    "2006": ("year", r"\d{4}"),
    "06": ("short_year", r"\d\d"),
    "PM": ("half", "[AP]M"),
    "pm": ("half", "[ap]m"),
    "MST": ("zone", "[A-Z]{3,5}|[+-]\\d\\d"),
}


def parsed(layout: str, text: str) -> tuple[datetime, int]:
    """
    Read a time that looks like *layout*: to the second, and the nanoseconds beyond.

    Raises:
        ValueError: it does not look like it, or there is no such time.
    """
    pattern, at = "", 0
    for found in _ELEMENT.finditer(layout):
        pattern += re.escape(layout[at : found.start()])
        at = found.end()
        name = found.group()
        if name[0] in ".,":
            # The second before it takes any fraction; this one must be there.
            pattern += "" if name[1] == "9" else f"(?<=[.,]\\d{{{len(name) - 1}}})"
            continue
        group, expression = _reader(name)
        pattern += f"(?P<{group}>{expression})" if group else f"(?:{expression})"
    pattern += re.escape(layout[at:])
    match = re.fullmatch(pattern, text, re.ASCII)
    if match is None:
        raise ValueError("the time does not look like the layout")
    return _assembled({k: v for k, v in match.groupdict().items() if v is not None})


def _reader(name: str) -> tuple[str, str]:
    if name[0] not in _ZONES:
        return _READERS[name]
    colon = ":" if ":" in name else ""
    wanted = {2: 1, 4: 2, 5: 2, 8: 3}[len(name) - 1]
    expression = colon.join([r"[+-]\d\d", r"\d\d", r"\d\d"][:wanted])
    return "offset", f"Z|{expression}" if name[0] == "Z" else expression


def _assembled(found: dict[str, str]) -> tuple[datetime, int]:
    year = int(found.get("year", 0))
    if "short_year" in found:
        year = int(found["short_year"])
        year += 1900 if year >= 69 else 2000
    month = int(found.get("month", 1))
    if "month_name" in found:
        month = [name[:3] for name in _MONTHS].index(found["month_name"][:3])
    hour = int(found.get("hour", 0))
    if "twelve" in found:
        hour = int(found["twelve"])
    if found.get("half", "").upper() == "PM" and hour < 12:
        hour += 12
    elif found.get("half", "").upper() == "AM" and hour == 12:
        hour = 0
    second, _, fraction = found.get("second", "0").replace(",", ".").partition(".")
    moment = datetime(
        year,
        month,
        int(found.get("day", 1)),
        hour,
        int(found.get("minute", 0)),
        int(second),
        tzinfo=_zone(found),
    )
    if "yday" in found:
        moment = moment.replace(month=1, day=1) + timedelta(int(found["yday"]) - 1)
    return moment, int((fraction or "0")[:9].ljust(9, "0"))


def _zone(found: dict[str, str]) -> tzinfo:
    offset = found.get("offset", "Z")
    if offset == "Z":
        # A name without an offset is taken for UTC, as Go does far from home.
        return UTC
    digits = offset[1:].replace(":", "").ljust(6, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:])
    return timezone(timedelta(seconds=-seconds if offset[0] == "-" else seconds))
