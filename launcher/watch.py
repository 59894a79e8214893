"""Ends a job that takes too long, or that has not printed anything for too long."""

from __future__ import annotations

import time

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from launcher.cancel import CancelToken
from launcher.lease import Ended
from launcher.ports import Output
from launcher.threads import helper


class Watch:
    """Two clocks beside a job; both start when the block begins."""

    def __init__(
        self,
        cancel: CancelToken,
        *,
        run_seconds: float,
        silence_seconds: float,
        log_limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cancel = cancel
        self._run_seconds = run_seconds
        self._silence_seconds = silence_seconds
        self._left = log_limit
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

    @contextmanager
    def running(self, *, spent_seconds: float = 0.0) -> Iterator[None]:
        """Of the job's time, *spent_seconds* are gone already."""
        done = CancelToken()
        self._last_output = self._clock()
        begun = self._last_output - spent_seconds

        def look() -> None:
            while not self._cancel.cancelled:
                now = self._clock()
                heard = now if self._passing_on else self._last_output
                until_end = begun + self._run_seconds - now
                until_silent = heard + self._silence_seconds - now
                if until_end <= 0:
                    self._cancel.cancel(Ended.TOO_LONG)
                elif until_silent <= 0:
                    self._cancel.cancel(Ended.TOO_SILENT)
                elif done.wait(min(until_end, until_silent)):
                    return

        with helper("watch", look, lambda: done.cancel("job over")):
            yield
