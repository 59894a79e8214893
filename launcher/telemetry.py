"""
The daemon's own log: one JSON object a line on standard error.

Every line has ``caller``, ``level``, ``msg`` and ``ts``; the facts of an event
stand beside them.  A policy sample is a contract of its own: those four keys and
``sample``, nothing else.
"""

from __future__ import annotations

import json
import sys
import time

from datetime import UTC, datetime

import structlog

from structlog.typing import EventDict, WrappedLogger

from launcher.errors import LauncherError


def configure(level: str = "info") -> None:
    """Set up logging for this process; called once, by the command line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.CallsiteParameterAdder(
                [
                    structlog.processors.CallsiteParameter.FILENAME,
                    structlog.processors.CallsiteParameter.LINENO,
                ]
            ),
            _details_of_errors,
            structlog.processors.format_exc_info,
            _shape,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _details_of_errors(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, LauncherError):
        event["error"] = str(error)
        if error.details:
            event["details"] = error.details
    return event


def _shape(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["caller"] = f"{event.pop('filename')}:{event.pop('lineno')}"
    event["msg"] = event.pop("event")
    event["ts"] = rfc3339(time.time_ns())
    if "sample" in event:
        return {key: event[key] for key in ("caller", "level", "msg", "sample", "ts")}
    return event


def rfc3339(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{rest:09d}Z"


def _dumps(event: EventDict, **_: object) -> str:
    # One line whatever the event holds: hostile text cannot start a new one.
    return json.dumps(event, default=str, ensure_ascii=True)
