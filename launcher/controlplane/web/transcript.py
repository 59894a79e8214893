"""
A run's whole log as numbered rows, state after state, from any place on.

A cursor names a place: the state by its version, the byte in the state's output, and
the number of the last row before it.  Rows are cut by what lies behind the cursor only,
so everybody who reads from one place sees the same rows under the same numbers.
"""

from __future__ import annotations

import html
import itertools
import re

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import sqlalchemy as sa

from launcher.controlplane import run_logs
from launcher.controlplane.errors import NotFound, RequestRefused
from launcher.controlplane.lifecycle import LIFECYCLE
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, every, one
from launcher.controlplane.web.ansi import plain, rendered


ROW = 4096
"""Bytes of the longest row; a longer line becomes several."""
ROWS = 1000
"""Rows that are read at once, at most."""
_CURSOR = re.compile(r"(\d{1,6})\.(\d{1,15})\.(\d{1,12})")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the log of a run."""

    version: int = 1
    offset: int = 0
    """Bytes of the state's output before it, plus one; zero before the state's name."""
    row: int = 0

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """
        The cursor that prints as *text*.

        Raises:
            RequestRefused: it is none.
        """
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise RequestRefused("this is not a place in a log")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"{self.version}.{self.offset}.{self.row}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What lies behind a cursor."""

    rows: tuple[str, ...]
    """One for each row, and for the beginning of each state."""
    following: Cursor
    """Where the next part begins."""
    begun: str = ""
    """A row that has no end yet; it is repeated by the next part."""
    version: int
    """Of the run, which grows with each state."""
    caught_up: bool
    """There is nothing more at the moment."""
    over: bool
    """There will never be more."""


class Html:
    """Elements for a page."""

    @staticmethod
    def heading(transition: t.Transition) -> str:
        at = datetime.fromtimestamp(transition.at / 1e9, UTC)
        note = f" {html.escape(plain(transition.note))}" if transition.note else ""
        return (
            f'<h3 id="S{transition.version}">{transition.state}'
            f' <time datetime="{at.isoformat()}">{at:%H:%M:%S}</time>{note}</h3>'
        )

    @staticmethod
    def row(number: int, text: str, _ended: bool) -> str:
        return (
            f'<div id="L{number}"><a href="#L{number}" tabindex="-1">{number}</a>'
            f"{rendered(text)}</div>"
        )

    begun = staticmethod(rendered)


class Plain:
    """Lines for a file that people open in a terminal, without any sequences."""

    @staticmethod
    def heading(transition: t.Transition) -> str:
        return f"== {transition.state} ==\n"

    @staticmethod
    def row(_number: int, text: str, ended: bool) -> str:
        return plain(text.rstrip("\r")) + ("\n" if ended else "")

    begun = staticmethod(plain)


class Transcript:
    """Reads the logs of runs, each part in one short transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def part(
        self,
        run: str,
        cursor: Cursor,
        form: type[Html | Plain] = Html,
        *,
        rows: int = ROWS,
        size: int = run_logs.PAGE,
    ) -> Part:
        """
        What lies behind *cursor*: at most so many *rows*, of about *size* bytes.

        Raises:
            NotFound: there is no such run.
            RequestRefused: the log has no such place.
        """
        with self._store.read() as connection:
            return _part(connection, run, cursor, form, rows=rows, size=size)

    def parts(self, run: str, cursors: Sequence[Cursor]) -> list[Part]:
        """
        What lies behind each of *cursors*, all seen at the same moment.

        Raises:
            NotFound: there is no such run.
            RequestRefused: the log has no such place.
        """
        with self._store.read() as connection:
            return [_part(connection, run, cursor) for cursor in cursors]


def _part(
    connection: sa.Connection,
    run: str,
    cursor: Cursor,
    form: type[Html | Plain] = Html,
    *,
    rows: int = ROWS,
    size: int = run_logs.PAGE,
) -> Part:
    found = one(connection, t.Run, sa.select(t.runs).where(t.runs.c.id == run))
    if found is None:
        raise NotFound("there is no such run")
    query = sa.select(t.transitions).where(
        t.transitions.c.run == run, t.transitions.c.version >= cursor.version
    )
    transitions = every(
        connection, t.Transition, query.order_by(t.transitions.c.version)
    )
    if not transitions:
        raise RequestRefused("this is not a place in this log")
    reading = _Reading(connection, transitions, cursor, form=form, rows=rows, size=size)
    caught_up = reading.read()
    return Part(
        rows=tuple(reading.rows),
        following=reading.cursor,
        begun=reading.begun,
        version=found.version,
        caught_up=caught_up,
        over=caught_up and LIFECYCLE[found.state].terminal,
    )


class _Reading:
    """One look, state by state, until enough was seen."""

    def __init__(
        self,
        connection: sa.Connection,
        transitions: list[t.Transition],
        cursor: Cursor,
        *,
        form: type[Html | Plain],
        rows: int,
        size: int,
    ) -> None:
        self._connection = connection
        self._transitions = transitions
        self._size = size
        self._left = rows
        self._form = form
        self.cursor = cursor
        self.rows: list[str] = []
        self.begun = ""

    def read(self) -> bool:
        """Whether all that there is was read."""
        for transition, after in itertools.pairwise((*self._transitions, None)):
            if transition is None:
                break
            if self.cursor.offset == 0:
                self.rows.append(self._form.heading(transition))
                self.cursor = replace(self.cursor, offset=1)
            if not self._read(transition, after):
                return False
            if after is not None:
                self.cursor = Cursor(after.version, 0, self.cursor.row)
        return True

    def _read(self, transition: t.Transition, after: t.Transition | None) -> bool:
        """Whether nothing was left of what the state has printed so far."""
        if self._size <= 0:
            return False
        complete = after is not None or LIFECYCLE[transition.state].terminal
        output = run_logs.output(self._connection, transition, after)
        offset = self.cursor.offset - 1
        if offset > output.length:
            raise RequestRefused("this is not a place in this log")
        data = output.read(
            offset, min(output.length, offset + max(self._size, 2 * ROW))
        )
        whole = offset + len(data) == output.length
        position = 0
        while position < len(data) and self._left > 0:
            end, following = _row(data, position)
            if following is None:
                if not whole:
                    break
                if not complete:
                    self.begun = self._form.begun(_decoded(data[position:]))
                    break
                following = end
            self._add(_decoded(data[position:end]), ended=following > end)
            position = following
        self.cursor = replace(self.cursor, offset=self.cursor.offset + position)
        self._size -= position
        return whole and self._left > 0 and (position == len(data) or not complete)

    def _add(self, text: str, *, ended: bool) -> None:
        number = self.cursor.row + 1
        self.cursor = replace(self.cursor, row=number)
        self._left -= 1
        self.rows.append(self._form.row(number, text, ended))


def _row(data: bytes, start: int) -> tuple[int, int | None]:
    """Where the row at *start* ends, and the next begins; None: it has no end yet."""
    newline = data.find(b"\n", start, start + ROW + 1)
    if newline >= 0:
        return newline, newline + 1
    end = start + ROW
    if end >= len(data):
        return len(data), None
    # Not in the middle of a character, if these are characters.
    for back in range(4):
        if data[end - back] & 0xC0 != 0x80:
            return end - back, end - back
    return end, end


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")
