"""
Who has promised to be back, and by when: how a thread that hangs is noticed.

A thread that is `watched` names the longest time in which it makes some progress.
`beat` says that it has made some.  What may take longer, or is known to take less, is
done `within` a time of its own; afterwards the former promise holds again, anew.
Who waits for what may take any time wakes up now and then, looks, and beats: so a wait
that is stuck shows, and a long one does not.
Nobody is watched where no `Heart` is listening, as in most tests.

`tended` tells a supervisor that all is well for as long as all is.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import structlog

from launcher.cancel import CancelToken
from launcher.threads import helper


log = structlog.get_logger()

STEP_SECONDS = 300.0
"""
In which a thread makes progress that waits for answers.

Nearly all of them have a limit of a minute or two, whoever hangs.
"""
EVERY_SECONDS = 10.0
"""How often a supervisor is told, unless it wants to hear more often."""
_STRIDE = 4
"""How many times that long an extension lasts."""
_FRAMES = 12
"""How many of a late thread's innermost calls are logged."""


class Supervisor(Protocol):
    """
    Whoever has started the process, and starts it again.

    No method waits or raises: what a supervisor does not hear, it does not hear.
    """

    @property
    def patience(self) -> float | None:
        """Seconds without `alive` after which it ends the process; None: never."""

    def ready(self) -> None:
        """The process does what it was started for."""

    def alive(self) -> None:
        """Everything in the process makes progress."""

    def status(self, sentence: str) -> None:
        """What the process is doing, for people."""

    def stopping(self) -> None:
        """The process has begun to end."""

    def extend(self, seconds: float) -> None:
        """Starting or ending takes at least *seconds* from now on."""


class Nobody:
    """The `Supervisor` of a process that has none."""

    patience: float | None = None

    def ready(self) -> None: ...

    def alive(self) -> None: ...

    def status(self, sentence: str) -> None: ...

    def stopping(self) -> None: ...

    def extend(self, seconds: float) -> None: ...


@dataclass(slots=True)
class _Pulse:
    """What one thread has promised."""

    name: str
    thread: int
    allowed: float
    due: float


class Heart:
    """The promises of a process's threads; for any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pulses: dict[int, _Pulse] = {}

    def late(self) -> dict[str, float]:
        """By how many seconds which threads have broken their promise."""
        now = self._clock()
        with self._lock:
            pulses = list(self._pulses.values())
        return {pulse.name: now - pulse.due for pulse in pulses if now > pulse.due}

    def where(self, name: str) -> list[str]:
        """What the thread of that *name* is doing: its calls, the innermost last."""
        with self._lock:
            threads = [p.thread for p in self._pulses.values() if p.name == name]
        frame = sys._current_frames().get(threads[0]) if threads else None  # noqa: SLF001
        stack = traceback.extract_stack(frame)[-_FRAMES:] if frame else []
        return [f"{each.filename}:{each.lineno} {each.name}" for each in stack]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Watch the threads of the block: this one, and those that begin in it."""
        token = _heart.set(self)
        try:
            yield
        finally:
            _heart.reset(token)

    def begin(self, name: str, seconds: float) -> _Pulse:
        pulse = _Pulse(name, threading.get_ident(), seconds, self._clock() + seconds)
        with self._lock:
            self._pulses[id(pulse)] = pulse
        return pulse

    def beat(self, pulse: _Pulse) -> None:
        pulse.due = self._clock() + pulse.allowed

    def end(self, pulse: _Pulse) -> None:
        with self._lock:
            self._pulses.pop(id(pulse), None)


_heart: ContextVar[Heart | None] = ContextVar("heart", default=None)


class _Here(threading.local):
    """
    The calling thread's own pulse.

    Not a context variable: a thread would inherit it, and keep its parent's promise.
    """

    pulse: _Pulse | None = None
    heart: Heart | None = None


_here = _Here()


@contextmanager
def watched(name: str, seconds: float) -> Iterator[None]:
    """During the block, the calling thread makes progress every *seconds*."""
    heart = _heart.get()
    if heart is None:
        yield
        return
    before = _here.heart, _here.pulse
    # What it has promised under another name, it cannot keep meanwhile.
    with waiting():
        _here.heart, _here.pulse = heart, heart.begin(name, seconds)
        try:
            yield
        finally:
            heart.end(_here.pulse)
            _here.heart, _here.pulse = before


def watching(
    name: str, target: Callable[[], None], seconds: float = STEP_SECONDS
) -> Callable[[], None]:
    """*target* for a thread that is `watched`."""

    def work() -> None:
        with watched(name, seconds):
            target()

    return work


def pausing(token: CancelToken, seconds: float) -> bool:
    """Sleep up to *seconds*, or until *token* fires; say whether it has fired."""
    with within(seconds + STEP_SECONDS):
        return token.wait(seconds)


def beat() -> None:
    """The calling thread has made progress, if anybody wants to know."""
    if _here.heart is not None and _here.pulse is not None:
        _here.heart.beat(_here.pulse)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block ends within *seconds*, and is progress by itself."""
    heart, pulse = _here.heart, _here.pulse
    if heart is None or pulse is None:
        yield
        return
    before, pulse.allowed = pulse.allowed, seconds
    heart.beat(pulse)
    try:
        yield
    finally:
        pulse.allowed = before
        heart.beat(pulse)


def waiting() -> AbstractContextManager[None]:
    """The block waits for another thread, which is watched itself, or for people."""
    return within(math.inf)


@contextmanager
def tended(
    supervisor: Supervisor,
    heart: Heart,
    *,
    up: CancelToken,
    drain: CancelToken,
    say: Callable[[], str],
) -> Iterator[None]:
    """
    Keep *supervisor* informed beside the block.

    It hears that we are ready when *up* fires, that we are ending when *drain* does,
    and in between, as long as no thread is late, that we are alive; until the one and
    after the other it is asked for more time.  *say* tells what is going on.
    """
    patience = supervisor.patience
    every = EVERY_SECONDS if patience is None else min(patience / 3, EVERY_SECONDS)
    done = CancelToken()

    def tend() -> None:
        known: set[str] = set()
        while True:
            late = heart.late()
            for name in late.keys() - known:
                log.error(
                    "thread.late",
                    thread=name,
                    seconds=round(late[name], 1),
                    where=heart.where(name),
                )
            known = set(late)
            if late:
                supervisor.status(f"hanging: {', '.join(sorted(late))}")
            else:
                supervisor.alive()
                if drain.cancelled or not up.cancelled:
                    supervisor.extend(_STRIDE * every)
                supervisor.status(say())
            if done.wait(every):
                return

    def risen() -> None:
        supervisor.ready()
        supervisor.status(say())

    def ending() -> None:
        supervisor.stopping()
        supervisor.extend(_STRIDE * every)
        supervisor.status(say())

    with (
        helper("heartbeat", tend, lambda: done.cancel("over")),
        up.calling(risen),
        drain.calling(ending),
    ):
        yield
