"""Looking up the commits of new runs beside the requests that create them."""

from __future__ import annotations

import functools
import threading
import time

from collections.abc import Callable, Iterable
from queue import SimpleQueue

import structlog

from launcher.controlplane.lanes import attempted
from launcher.heartbeat import waiting, watching
from launcher.threads import spawn


log = structlog.get_logger()

LookUp = Callable[[str, float], None]

AT_ONCE = 4
JOIN_SECONDS = 2.0


class LookUps:
    """A queue of runs, and the threads that work it off."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._wanted_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def want(self, run: str) -> None:
        """See to it that *run* is looked up soon; asking twice is harmless."""
        with self._lock:
            if run in self._wanted_at:
                return
            self._wanted_at[run] = time.monotonic()
        self._queue.put(run)

    def want_all(self, runs: Iterable[str]) -> None:
        for run in runs:
            self.want(run)

    def start(self, look_up: LookUp) -> None:
        """Begin to call *look_up* for every run, and say since when it is wanted."""
        for number in range(AT_ONCE):
            name = f"look-up-{number}"
            work = watching(name, lambda: self._work(look_up))
            self._threads.append(spawn(name, work))

    def close(self) -> None:
        """Begin nothing new; whoever is left is found again after a restart."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _next(self) -> str | None:
        with waiting():
            return self._queue.get()

    def _work(self, look_up: LookUp) -> None:
        while (run := self._next()) is not None and not self._closed:
            try:
                with self._lock:
                    since = self._wanted_at[run]
                attempted(functools.partial(look_up, run, since))
            except Exception:  # the sweeper asks again
                log.exception("commit.lookup_crashed", run=run)
            finally:
                with self._lock:
                    self._wanted_at.pop(run, None)
