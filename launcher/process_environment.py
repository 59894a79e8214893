"""
Taking secrets out of this process's environment.

Removing a variable hides it from children only: the kernel goes on showing the
memory in which the process was given its variables (``/proc/<pid>/environ``) to
everybody who runs as the same user.  So that memory is overwritten first.
"""

from __future__ import annotations

import ctypes
import os

from collections.abc import Iterable


def forget(names: Iterable[str]) -> None:
    """Leave no value of these variables where another process could read it."""
    wanted = tuple(os.fsencode(name) + b"=" for name in names)
    pointers = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    place = 0
    while address := pointers[place]:
        entry = ctypes.string_at(address)
        if entry.startswith(wanted):
            start = entry.index(b"=") + 1
            ctypes.memset(address + start, 0, len(entry) - start)
        place += 1
    for name in names:
        os.environ.pop(name, None)
