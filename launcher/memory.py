"""Memory that was used once, and what becomes of it."""

from __future__ import annotations

import ctypes
import gc

from collections.abc import Iterator
from contextlib import contextmanager


_M_ARENA_MAX = -8


def share(arenas: int) -> None:
    """
    Let the threads of this process, together, keep no more than so many reserves.

    The C library gives each thread one of its own, up to eight for each processor:
    much memory for threads of which one runs at a time.  Where it cannot be told,
    nothing happens.
    """
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is not None:
        tell(_M_ARENA_MAX, arenas)


def give_back() -> None:
    """
    Return to the machine what is free in this process.

    The C library keeps what a large piece of work has left, for the next one, which
    a daemon may never see.  Where it cannot be asked, nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def lasting() -> Iterator[None]:
    """
    What the block makes is there until the process ends, as modules are.

    So nobody looks for garbage in it, neither while it is made nor later: for what is
    imported here, that was a tenth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
