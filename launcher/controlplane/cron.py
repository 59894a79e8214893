"""Times that come again, in the notation of cron."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError


_FIELDS = 5


def schedule(text: str) -> str:
    """
    Check a schedule: minute, hour, day of the month, month, day of the week.

    Raises:
        ValueError: it is none, or its time never comes.
    """
    if len(text.split()) != _FIELDS:
        raise ValueError(f"{text[:100]!r} has not {_FIELDS} fields, as in '0 4 * * *'")
    try:
        next(CronSim(text, datetime(2024, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as exc:
        raise ValueError(f"{text[:100]!r} is no schedule: {exc}") from exc
    return text


def timezone(text: str) -> str:
    """
    Check the name of a time zone, such as ``Europe/Berlin``.

    Raises:
        ValueError: this machine does not know it.
    """
    try:
        ZoneInfo(text)
    except (ValueError, OSError, ZoneInfoNotFoundError) as exc:
        raise ValueError(f"{text[:100]!r} is no time zone that is known here") from exc
    return text


def latest(schedules: Sequence[str], zone: str, now: datetime) -> datetime:
    """The newest time of any of *schedules* that is not after the minute *now*."""
    # Added before: on the clocks of a zone, a minute may be an hour.
    following = (now + timedelta(minutes=1)).astimezone(ZoneInfo(zone))
    times = (next(CronSim(each, following, reverse=True)) for each in schedules)
    # Not by what their clocks show, which they show twice when summer time ends.
    return max(times, key=datetime.timestamp)
