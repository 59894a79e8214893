"""Memory that was used once, and what becomes of it."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """
    Return to the machine what is free in this process.

    The C library keeps what a large piece of work has left, for the next one, which
    a daemon may never see.  Where it cannot be asked, nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
