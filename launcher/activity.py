"""
What the slots of a launcher are doing, and whether they may begin anything new.

Both are asked by whoever looks at the launcher, and told by the slots.
"""

from __future__ import annotations

import contextvars
import threading

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from launcher.cancel import CancelToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """A job at work."""

    run: str
    job: str
    phase: str
    """The run's state, as far as the job has got; empty before the first one."""
    since: datetime
    """When it got there."""


class Board:
    """What each slot is doing; for any thread."""

    def __init__(self, slots: int) -> None:
        self._lock = threading.Lock()
        self._doing: dict[int, Doing | None] = dict.fromkeys(range(slots))

    def now(self) -> dict[int, Doing | None]:
        """Every slot, None for one without a job."""
        with self._lock:
            return dict(self._doing)

    @contextmanager
    def working(self, slot: int, *, run: str, job: str) -> Iterator[None]:
        """Let *slot* be at work on *job* during the block, which may call `entered`."""
        self._put(slot, Doing(run=run, job=job, phase="", since=datetime.now(UTC)))
        token = _current.set((self, slot))
        try:
            yield
        finally:
            _current.reset(token)
            self._put(slot, None)

    def entered(self, slot: int, phase: str) -> None:
        with self._lock:
            doing = self._doing[slot]
            if doing is not None:
                now = datetime.now(UTC)
                self._doing[slot] = replace(doing, phase=phase, since=now)

    def _put(self, slot: int, doing: Doing | None) -> None:
        with self._lock:
            self._doing[slot] = doing


_current: contextvars.ContextVar[tuple[Board, int] | None] = contextvars.ContextVar(
    "current", default=None
)


def entered(phase: str) -> None:
    """The job of the calling thread's slot is in *phase* now, if it has a slot."""
    if (current := _current.get()) is not None:
        board, slot = current
        board.entered(slot, phase)


class Intake:
    """Whether new jobs may begin: as long as nobody holds it.  For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: dict[str, str] = {}
        self._opened = CancelToken()
        self._opened.cancel("open")

    def hold(self, by: str, reason: str) -> None:
        """Let nothing begin until *by* releases it; again, it changes the reason."""
        with self._lock:
            if not self._holds:
                self._opened = CancelToken()
            self._holds[by] = reason

    def release(self, by: str) -> None:
        """Undo what *by* held, if anything; others may still hold it."""
        with self._lock:
            self._holds.pop(by, None)
            opened = None if self._holds else self._opened
        if opened is not None:
            opened.cancel("open")

    @property
    def holds(self) -> dict[str, str]:
        """Who holds it, and why; empty when jobs may begin."""
        with self._lock:
            return dict(self._holds)

    def wait(self, stop: CancelToken) -> None:
        """Return when it is open, or *stop* has fired."""
        while self.holds and not stop.cancelled:
            with self._lock:
                opened = self._opened
            opened.wait_either(stop)
