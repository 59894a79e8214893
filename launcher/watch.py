"""Ends a job that takes too long, or that has not printed anything for too long."""

from __future__ import annotations

import math
import time

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from launcher.cancel import CancelToken
from launcher.heartbeat import watching, within
from launcher.lease import Ended
from launcher.ports import Output
from launcher.threads import helper


_LATE_SECONDS = 120.0
"""By how much a look may be late."""
HEARTBEAT_SECONDS = 60.0
"""How long a job is silent before *alive* is called, and then again."""


class Watch:
    """
    Two clocks beside a job; both start when the block begins.

    *alive* is called now and then while the job is silent and must not wait.
    """

    def __init__(
        self,
        cancel: CancelToken,
        *,
        run_seconds: float,
        silence_seconds: float,
        log_limit: int,
        alive: Callable[[], None] | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cancel = cancel
        self._run_seconds = run_seconds
        self._silence_seconds = silence_seconds
        self._left = log_limit
        self._alive = alive
        self._heartbeat_seconds = heartbeat_seconds
        self._clock = clock
        self._last_output = clock()
        self._passing_on = False

    def listening(self, output: Output, cut: Callable[[], None]) -> Output:
        """Return *output*, overheard; *cut* is told when bytes are left out."""

        def heard(data: bytes) -> None:
            # As long as *output* keeps us waiting, it is not the job that is silent.
            self._passing_on = True
            if allowed := data[: self._left]:
                output(allowed)
            self._left -= len(allowed)
            if len(allowed) < len(data):
                cut()
                self._cancel.cancel(Ended.TOO_MUCH_OUTPUT)
            self._last_output = self._clock()
            self._passing_on = False

        return heard

    def _until_alive(self, last: float, now: float) -> float:
        return math.inf if self._alive is None else last + self._heartbeat_seconds - now

    @contextmanager
    def running(self, *, spent_seconds: float = 0.0) -> Iterator[None]:
        """Of the job's time, *spent_seconds* are gone already."""
        done = CancelToken()
        self._last_output = self._clock()
        begun = self._last_output - spent_seconds

        def look() -> None:
            alive_at = begun
            while not self._cancel.cancelled:
                now = self._clock()
                heard = now if self._passing_on else self._last_output
                until_end = begun + self._run_seconds - now
                until_silent = heard + self._silence_seconds - now
                if until_end <= 0:
                    self._cancel.cancel(Ended.TOO_LONG)
                elif until_silent <= 0:
                    self._cancel.cancel(Ended.TOO_SILENT)
                else:
                    until_alive = self._until_alive(max(alive_at, heard), now)
                    if until_alive <= 0 and self._alive is not None:
                        alive_at = now
                        self._alive()
                    else:
                        pause = min(until_end, until_silent, until_alive)
                        with within(pause + _LATE_SECONDS):
                            if done.wait(pause):
                                return

        with helper(
            "watch",
            watching("watch", look, _LATE_SECONDS),
            lambda: done.cancel("job over"),
        ):
            yield
