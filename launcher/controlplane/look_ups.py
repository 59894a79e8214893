"""
Looking up the commits of new runs beside the requests that create them.

Runs of one stack that have come while others of it were looked up are looked up
together: a crowd costs little more than its first, and one repository that does not
answer keeps one thread.
"""

from __future__ import annotations

import functools
import threading
import time

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Protocol

import structlog

from launcher.controlplane.lanes import attempted
from launcher.heartbeat import waiting, watching
from launcher.threads import spawn


log = structlog.get_logger()

AT_ONCE = 4
"""Stacks whose runs are looked up at the same time."""
TOGETHER = 32
"""Runs of one stack that are looked up together."""
JOIN_SECONDS = 2.0

Later = Callable[[str, str], None]
"""Takes the id of a run, and its stack."""


class LookUp(Protocol):
    """Finds the commits of *runs*, of one stack, wanted by *since* at the latest."""

    def __call__(self, *runs: str, since: float) -> None: ...


class LookUps:
    """The runs that wait, by stack, and the threads that work them off."""

    def __init__(self) -> None:
        self._stacks: SimpleQueue[str | None] = SimpleQueue()
        """Each that has runs waiting, once, unless somebody is at it."""
        self._waiting: dict[str, deque[str]] = {}
        self._wanted_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def want(self, run: str, stack: str) -> None:
        """See to it that *run* is looked up soon; asking twice is harmless."""
        with self._lock:
            if run in self._wanted_at:
                return
            self._wanted_at[run] = time.monotonic()
            first = stack not in self._waiting
            self._waiting.setdefault(stack, deque()).append(run)
        if first:
            self._stacks.put(stack)

    def want_all(self, runs: Iterable[tuple[str, str]]) -> None:
        for run, stack in runs:
            self.want(run, stack)

    def start(self, look_up: LookUp) -> None:
        """Begin to call *look_up* for every run."""
        for number in range(AT_ONCE):
            name = f"look-up-{number}"
            work = watching(name, lambda: self._work(look_up))
            self._threads.append(spawn(name, work))

    def close(self) -> None:
        """Begin nothing new; whoever is left is found again after a restart."""
        self._closed = True
        for _ in self._threads:
            self._stacks.put(None)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _next(self) -> str | None:
        with waiting():
            return self._stacks.get()

    def _work(self, look_up: LookUp) -> None:
        while (stack := self._next()) is not None and not self._closed:
            with self._taken(stack) as runs:
                if not self._looked_up(look_up, runs) and len(runs) > 1:
                    # One of them upsets the others: each for itself.
                    for run in runs:
                        self._looked_up(look_up, [run])

    @contextmanager
    def _taken(self, stack: str) -> Iterator[list[str]]:
        """The first runs of *stack*, which nobody else is at meanwhile."""
        with self._lock:
            queue = self._waiting[stack]
            runs = [queue.popleft() for _ in range(min(len(queue), TOGETHER))]
        try:
            yield runs
        finally:
            with self._lock:
                for run in runs:
                    del self._wanted_at[run]
                if not queue:
                    del self._waiting[stack]
            if queue:
                self._stacks.put(stack)

    def _looked_up(self, look_up: LookUp, runs: list[str]) -> bool:
        with self._lock:
            since = max(self._wanted_at[run] for run in runs)
        try:
            attempted(functools.partial(look_up, *runs, since=since))
        except Exception:  # the sweeper asks again
            log.exception("commit.lookup_crashed", runs=runs)
            return False
        return True
