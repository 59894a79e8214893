"""
The daemon's own log: one JSON object a line on standard error.

Every line has ``caller``, ``level``, ``msg`` and ``ts``; the facts of an event
stand beside them.  A policy sample is a contract of its own: those four keys and
``sample``, nothing else.  What libraries log, and what ends a thread or the
process, comes out in the same way.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import threading
import time

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

import structlog

from structlog.typing import EventDict, WrappedLogger

from launcher.errors import LauncherError


log = structlog.get_logger()


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
            _masked,
            _shape,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _StandardError())),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)
    threading.excepthook = _thread_crashed
    sys.excepthook = _process_crashed


_veil: ContextVar[list[Callable[[str], str]]] = ContextVar("veil")


@contextmanager
def veiled() -> Iterator[Callable[[Callable[[str], str]], None]]:
    """
    Log lines of the block, and of threads that it starts, hide a job's secrets.

    Yields a function that takes what masks a text, as soon as somebody can.
    """
    masks: list[Callable[[str], str]] = []
    token = _veil.set(masks)
    try:
        yield masks.append
    finally:
        _veil.reset(token)


def hide(text: str) -> None:
    """Let log lines of the job at work, if one is, hide *text* from now on, too."""
    masks = _veil.get(None)
    if masks is None or not text:
        return
    for mask in masks:
        if isinstance(mask, _Texts):
            mask.hidden.add(text)
            return
    masks.append(_Texts({text}))


@dataclass(frozen=True, slots=True)
class _Texts:
    """Masks whole texts that are known."""

    hidden: set[str]

    def __call__(self, line: str) -> str:
        for text in tuple(self.hidden):
            line = line.replace(text, "[hidden]")
        return line


class _Recent:
    """The last lines, of `_KEPT` characters together at most."""

    def __init__(self) -> None:
        self._lines = deque[str]()
        self._size = 0

    def append(self, line: str) -> None:
        # Much longer ones would push out all the others.
        self._lines.append(line if len(line) <= _LONGEST_KEPT else _LEFT_OUT)
        self._size += len(self._lines[-1])
        while self._size > _KEPT:
            self._size -= len(self._lines.popleft())

    def lines(self) -> tuple[str, ...]:
        return tuple(self._lines.copy())


_KEPT = 1 << 17
_LONGEST_KEPT = 1 << 14
_LEFT_OUT = '{"msg":"a long line, left out"}\n'
_recent = _Recent()


def recent() -> tuple[str, ...]:
    """Return the last lines of this process's log, masked as they were written."""
    return _recent.lines()


class _StandardError(io.TextIOBase):
    """Takes whole lines from any thread; nobody fails because nobody reads them."""

    def __init__(self) -> None:
        # Reentrant: a signal's handler may log, too.
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock, contextlib.suppress(OSError, ValueError, RuntimeError):
            _recent.append(text)
            sys.stderr.write(text)
            sys.stderr.flush()
        return len(text)


class _Libraries(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = record.getMessage()
        except (TypeError, ValueError):
            said = str(record.msg)
        log.log(
            record.levelno,
            "library.said",
            caller=f"{record.filename}:{record.lineno}",
            said=said,
            exc_info=record.exc_info,
        )


def _thread_crashed(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None:
        name = crash.thread.name if crash.thread else ""
        log.critical("thread.crashed", thread=name, exc_info=crash.exc_value)


def _process_crashed(
    _: type[BaseException], error: BaseException, __: TracebackType | None
) -> None:
    log.critical("process.crashed", exc_info=error)


def _details_of_errors(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, LauncherError):
        event["error"] = str(error)
        if error.details:
            event["details"] = error.details
    return event


_OURS = frozenset({"event", "level", "filename", "lineno"})
"""What holds nothing of a job's."""


def _masked(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for mask in _veil.get([]):
        for key, value in event.items():
            if key == "sample":  # its keys and its outcome are a contract
                event[key] = _leaves(value, mask) | {"outcome": value["outcome"]}
            elif key not in _OURS:
                event[key] = _leaves(value, mask)
    return event


def _leaves(value: Any, mask: Callable[[str], str]) -> Any:  # noqa: ANN401
    match value:
        case bool() | int() | float() | None:
            return value
        case Mapping():
            return {key: _leaves(entry, mask) for key, entry in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_leaves(entry, mask) for entry in value]
        case _:
            return mask(_shown(value))


def _shape(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    called = f"{event.pop('filename')}:{event.pop('lineno')}"
    event.setdefault("caller", called)
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
    try:
        return json.dumps(event, default=_shown, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        # A fact that is no JSON must not cost the line, nor end who logs it.
        return json.dumps({str(key): _shown(event[key]) for key in event})


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception as exc:  # noqa: BLE001 (where should it be logged?)
        return f"<{type(value).__name__} that cannot be shown: {type(exc).__name__}>"
