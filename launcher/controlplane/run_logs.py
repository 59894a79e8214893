"""
Reading a run's log, state by state.

A job has one stream of bytes.  Each state of its run begins somewhere in it, and
ends where the next one begins.  Pages are cut at the borders of characters, so
that decoding them one by one gives the same text as decoding all at once.
"""

from __future__ import annotations

import codecs
import functools

from collections.abc import Callable
from dataclasses import dataclass, replace

import sqlalchemy as sa

from launcher.controlplane.errors import RequestRefused
from launcher.controlplane.lifecycle import LIFECYCLE
from launcher.controlplane.log_chunks import unpacked
from launcher.controlplane.retention import log_gone
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import every, one
from launcher.wire.jobs import RunState


PAGE = 256 * 1024
"""Bytes of log in one page, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    text: str = ""
    next_token: str | None = None
    """None once everything was read."""
    finished: bool = False
    """Nothing will be added, and this page was the last."""
    waiting: bool = False
    """The state is active and has nothing new to show: ask again later."""
    exists: bool = True


def has_logs(transition: t.Transition) -> bool:
    """Whether there is something to read about a state, now or soon."""
    return LIFECYCLE[transition.state].has_logs or transition.text is not None


def read(
    connection: sa.Connection,
    run: str,
    state: RunState,
    version: int | None,
    token: str | None,
    *,
    page: int = PAGE,
) -> LogPage | None:
    """
    The part of a state's log that begins at *token*; None without such a state.

    Raises:
        RequestRefused: *token* did not come from here.
    """
    transition, following = _found(connection, run, state, version)
    if transition is None:
        return None
    offset = _parsed(token)
    if not has_logs(transition):
        return LogPage(exists=False, finished=True)
    found = output(connection, transition, following)
    left = following is not None or transition.text is not None or found.gone
    if offset > found.length:
        raise RequestRefused("this is not a token of this log")
    data = found.read(offset, min(found.length, offset + page))
    last = left and offset + len(data) == found.length
    text, used = _decoded(data, last=last)
    return LogPage(
        text=text,
        next_token=None if last else str(offset + used),
        finished=last,
        waiting=not left and not text,
    )


@dataclass(frozen=True, slots=True)
class Output:
    """The bytes that one state of a run has printed so far."""

    length: int
    read: Callable[[int, int], bytes]
    """From one offset to another, which must not lie behind the end."""
    gone: bool = False
    """It was removed; these bytes say so."""


def output(
    connection: sa.Connection, transition: t.Transition, following: t.Transition | None
) -> Output:
    """What *transition* began to print; it is complete once there is a *following*."""
    if transition.text is not None:
        return _said(transition.text)
    if transition.job is None or not has_logs(transition):
        return Output(0, lambda *_: b"")
    if (gone := log_gone(connection, transition.job)) is not None:
        return replace(_said(gone), gone=True)
    query = sa.select(t.jobs).where(t.jobs.c.id == transition.job)
    job = one(connection, t.Job, query)
    end = job.log_length if job is not None else 0
    if following is not None and following.job == transition.job:
        end = following.log_start
    first = transition.log_start
    return Output(
        max(0, end - first),
        functools.partial(_bytes_behind, connection, transition.job, first),
    )


def _said(text: str) -> Output:
    data = text.encode()
    return Output(len(data), lambda start, end: data[start:end])


def _found(
    connection: sa.Connection, run: str, state: RunState, version: int | None
) -> tuple[t.Transition | None, t.Transition | None]:
    columns = t.transitions.c
    query = sa.select(t.transitions).where(columns.run == run)
    wanted = query.where(columns.state == state).order_by(columns.version.desc())
    if version is not None:
        wanted = wanted.where(columns.version == version)
    transition = one(connection, t.Transition, wanted.limit(1))
    if transition is None:
        return None, None
    following = query.where(columns.version == transition.version + 1)
    return transition, one(connection, t.Transition, following)


def _parsed(token: str | None) -> int:
    if token is None:
        return 0
    if not (token.isascii() and token.isdigit() and len(token) < 16):
        raise RequestRefused("this is not a token of this log")
    return int(token)


def _bytes_behind(
    connection: sa.Connection, job: str, first: int, start: int, end: int
) -> bytes:
    return _bytes(connection, job, first + start, first + end)


def _bytes(connection: sa.Connection, job: str, start: int, end: int) -> bytes:
    columns = t.log_chunks.c
    first = (
        sa.select(sa.func.max(columns.start))
        .where(columns.job == job, columns.start <= start)
        .scalar_subquery()
    )
    query = (
        sa.select(columns.start, columns.data, columns.unpacked)
        .where(columns.job == job, columns.start >= first, columns.start < end)
        .order_by(columns.start)
    )
    parts = [
        unpacked(row.data, row.unpacked)[max(0, start - row.start) : end - row.start]
        for row in connection.execute(query)
    ]
    return b"".join(parts)


def _decoded(data: bytes, *, last: bool) -> tuple[str, int]:
    """Text of *data* and how many bytes it took; a cut character is left over."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final=last)
    held_back, _ = decoder.getstate()
    return text, len(data) - len(held_back)


def history(connection: sa.Connection, run: str) -> list[t.Transition]:
    """What happened to a run, newest first."""
    query = (
        sa.select(t.transitions)
        .where(t.transitions.c.run == run)
        .order_by(t.transitions.c.version.desc())
    )
    return every(connection, t.Transition, query)
