"""
Cooperative cancellation: the one way to stop a thread, and the one way to sleep.

Nothing can interrupt a thread that blocks inside a library.  What can be done
is to end the thing it waits for: a killed container ends both its output stream
and its ``wait()``.  So a token is an event plus the callbacks that end things.
"""

from __future__ import annotations

import threading

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CancelToken:
    """Fires once, from any thread, and stays fired."""

    def __init__(self) -> None:
        self._fired = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._reason = ""

    @property
    def cancelled(self) -> bool:
        return self._fired.is_set()

    @property
    def reason(self) -> str:
        """Why it fired: the first reason given; empty until then."""
        return self._reason

    def cancel(self, reason: str) -> None:
        """Fire, and run what was registered in the calling thread.  Idempotent."""
        with self._lock:
            if self._fired.is_set():
                return
            self._reason = reason
            self._fired.set()
            due = list(self._callbacks.values())
        for callback in due:
            callback()

    def wait(self, seconds: float | None = None) -> bool:
        """Sleep up to *seconds*, or until fired; say whether it has fired."""
        return self._fired.wait(seconds)

    def wait_either(self, other: CancelToken) -> bool:
        """Sleep until one of the two fires; say whether it was *other*."""
        woken = threading.Event()
        with self.calling(woken.set), other.calling(woken.set):
            woken.wait()
        return other.cancelled

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Run *callback* should the token fire during the block, or before it."""
        key = object()
        with self._lock:
            already = self._fired.is_set()
            if not already:
                self._callbacks[key] = callback
        if already:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.pop(key, None)
