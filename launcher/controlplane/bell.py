"""
Telling coroutines that wait for news to look again.

Other server processes on the same database are told, too: see `Notices` in
`launcher.controlplane.store.postgresql`.  What one listener is to hear they are told
only if nobody hears it here: else each job would be offered once by every server.

The database is the truth; a ring is only a hint to look sooner.  Services ring
from their threads, after the commit.  Who waits listens *before* the first look,
so that nothing is missed in between, and looks again now and then anyway.
"""

from __future__ import annotations

import asyncio
import contextlib

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


EVERYTHING = ""
"""The topic that everybody hears."""


_FOR_ONE = "work:"


def of_pool(name: str) -> str:
    """Rings when something has changed for the workers of a pool."""
    return f"pool:{name}"


def of_work(name: str) -> str:
    """
    Rings when there may be a job for a worker of a pool.

    One listener hears it: of those that have a rank, the one with the highest.
    """
    return f"{_FOR_ONE}{name}"


def of_run(run: str) -> str:
    """Rings when a run has moved, or its log has grown."""
    return f"run:{run}"


class Listener:
    """What one waiting coroutine holds."""

    def __init__(self, bell: Bell, rank: str) -> None:
        self._bell = bell
        self.rank = rank
        """Its place among those of whom one hears a ring; empty: it hears none."""
        self.rung = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Wait for a ring since the last call, for *seconds* at most; was there one?"""
        if not self._bell.closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.rung.wait()
        rung = self.rung.is_set()
        self.rung.clear()
        return rung


class Bell:
    """Rung from any thread, heard on the event loop it was hung up in."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: dict[str, set[Listener]] = {}
        self.closed = False
        self.elsewhere: Callable[[frozenset[str]], None] = lambda _: None
        """Tells other processes."""

    def hang_up(self) -> None:
        """Belong to the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def ring(self, topics: Iterable[str]) -> None:
        """Wake who listens to one of *topics*, here and elsewhere; nobody is fine."""
        rung = frozenset(topics)
        for_one = frozenset(topic for topic in rung if topic.startswith(_FOR_ONE))
        if for_all := rung - for_one:
            self.elsewhere(for_all)
        if not self._on_loop(self._deliver, rung) and for_one:
            self.elsewhere(for_one)

    def hear(self, topics: Iterable[str]) -> None:
        """Wake who listens to one of *topics*, which another process has rung."""
        self._on_loop(self._wake, frozenset(topics))

    def _on_loop(
        self, call: Callable[[frozenset[str]], object], topics: frozenset[str]
    ) -> bool:
        """Whether somebody may hear it: nobody does without a loop, or after it."""
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(call, topics)
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """End all waits, also those still to come: the server is leaving."""
        self.closed = True
        self.hear([EVERYTHING])

    @contextmanager
    def listening(self, *topics: str, rank: str = "") -> Iterator[Listener]:
        """Hear, during the block, every ring for one of *topics*."""
        listener = Listener(self, rank)
        for topic in topics:
            self._listeners.setdefault(topic, set()).add(listener)
        try:
            yield listener
        finally:
            for topic in topics:
                heard = self._listeners[topic]
                heard.discard(listener)
                if not heard:
                    del self._listeners[topic]

    def listening_to(self, topic: str) -> int:
        """How many hear the rings for *topic*."""
        return len(self._listeners.get(topic, ()))

    def _deliver(self, topics: frozenset[str]) -> None:
        if unheard := self._wake(topics):
            self.elsewhere(unheard)

    def _wake(self, topics: frozenset[str]) -> frozenset[str]:
        """Wake who listens; the topics for one that nobody has heard."""
        everything, unheard = EVERYTHING in topics, set()
        for topic in tuple(self._listeners) if everything else topics:
            heard = self._listeners.get(topic, set())
            if topic.startswith(_FOR_ONE) and not everything:
                first = max(heard, key=lambda listener: listener.rank, default=None)
                heard = {first} if first is not None and first.rank else set()
                if not heard:
                    unheard.add(topic)
            for listener in heard:
                listener.rung.set()
        return frozenset(unheard)
