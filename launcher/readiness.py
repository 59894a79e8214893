"""
What can keep a launcher from getting runs, asked so that asking is cheap.

A check that has to talk to somebody is a `Probe`: asked at most every few seconds, by
one thread at a time, and never waited for long.
"""

from __future__ import annotations

import threading
import time

from collections.abc import Callable

from launcher.errors import LauncherError
from launcher.threads import spawn


_FRESH_SECONDS = 5.0
_PATIENCE_SECONDS = 1.0


class Probe:
    """A question to somebody who may not answer."""

    def __init__(
        self,
        name: str,
        ask: Callable[[], None],
        *,
        fresh_seconds: float = _FRESH_SECONDS,
        patience_seconds: float = _PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*ask* raises a `LauncherError` when something is the matter."""
        self._name = name
        self._ask = ask
        self._fresh_seconds = fresh_seconds
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._asking: threading.Event | None = None
        self._since = 0.0
        self._answered: float | None = None
        self._trouble: str | None = None

    def trouble(self) -> str | None:
        """
        Return a public sentence about what is the matter; None: nothing.

        Waits a second at most, and not at all while somebody else's question is
        still without an answer after that.
        """
        with self._lock:
            asking = self._asking
            if asking is None:
                answered = self._answered
                if (
                    answered is not None
                    and self._clock() - answered < self._fresh_seconds
                ):
                    return self._trouble
                asking = self._asking = threading.Event()
                self._since = self._clock()
                spawn(f"probe-{self._name}", self._look)
            left = self._since + self._patience_seconds - self._clock()
        asking.wait(max(left, 0.0))
        with self._lock:
            if self._asking is not None and not asking.is_set():
                silent = self._clock() - self._since
                return f"the {self._name} has not answered for {silent:.0f} s"
            return self._trouble

    def _look(self) -> None:
        trouble: str | None = "the check failed"
        try:
            self._ask()
        except LauncherError as exc:
            trouble = str(exc)
        else:
            trouble = None
        finally:
            with self._lock:
                self._trouble, self._answered = trouble, self._clock()
                asking, self._asking = self._asking, None
            if asking is not None:
                asking.set()
