"""Named threads that keep the logging context of the thread that starts them."""

from __future__ import annotations

import contextvars
import threading

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def spawn(name: str, target: Callable[[], None]) -> threading.Thread:
    """
    Start *target* in a daemon thread that sees the caller's context variables.

    A new thread begins with an empty context, which would silently drop the
    job's id from every line it logs.
    """
    context = contextvars.copy_context()
    thread = threading.Thread(name=name, target=context.run, args=(target,))
    thread.daemon = True
    thread.start()
    return thread


@contextmanager
def helper(
    name: str, target: Callable[[], None], stop: Callable[[], None]
) -> Iterator[None]:
    """Run *target* beside the block; at its end call *stop* and join."""
    thread = spawn(name, target)
    try:
        yield
    finally:
        stop()
        thread.join()
