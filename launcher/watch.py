"""Ends a job that takes too long, or that has not printed anything for too long."""

from __future__ import annotations

import time

from collections.abc import Iterator
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
    ) -> None:
        self._cancel = cancel
        self._run_seconds = run_seconds
        self._silence_seconds = silence_seconds
        self._left = log_limit
        self._last_output = time.monotonic()

    def listening(self, output: Output) -> Output:
        """Return *output*, overheard."""

        def heard(data: bytes) -> None:
            self._last_output = time.monotonic()
            self._left -= len(data)
            if self._left < 0:
                self._cancel.cancel(Ended.TOO_MUCH_OUTPUT)
            else:
                output(data)

        return heard

    @contextmanager
    def running(self) -> Iterator[None]:
        done = CancelToken()
        begun = self._last_output = time.monotonic()

        def look() -> None:
            while not self._cancel.cancelled:
                until_end = begun + self._run_seconds - time.monotonic()
                until_silent = (
                    self._last_output + self._silence_seconds - time.monotonic()
                )
                if until_end <= 0:
                    self._cancel.cancel(Ended.TOO_LONG)
                elif until_silent <= 0:
                    self._cancel.cancel(Ended.TOO_SILENT)
                elif done.wait(min(until_end, until_silent)):
                    return

        with helper("watch", look, lambda: done.cancel("job over")):
            yield
