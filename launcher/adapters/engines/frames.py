"""
What an exec prints, out of the frames in which the engine sends it.

As many frames as have come are taken at once: a log is read at its full speed, where
one call for each of them costs more than everything that is done with their bytes.
"""

from __future__ import annotations

import contextlib
import io
import ssl

from collections.abc import Callable, Iterator
from typing import NamedTuple

from launcher.errors import EngineError


_HEADER = 8
_STDERR = 2
_LARGEST = 1 << 20
"""Bytes of one frame; engines send 32 KiB."""
_AT_ONCE = 1 << 18
_NOTHING_YET = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Printed(NamedTuple):
    """Both in order, but not between the two."""

    stdout: bytes
    stderr: bytes


def frames(
    connection: io.BufferedReader, wait: Callable[[], None] = lambda: None
) -> Iterator[Printed]:
    """
    What comes over *connection*, until the engine ends it.

    Where *connection* does not block, *wait* is called whenever there is nothing yet.

    Raises:
        OSError: the connection broke.
        EngineError: what comes are no frames.
    """
    held = b""
    for part in _parts(connection, wait):
        data = held + part
        printed, position = _split(data)
        held = data[position:]
        if printed.stdout or printed.stderr:
            yield printed


def _parts(connection: io.BufferedReader, wait: Callable[[], None]) -> Iterator[bytes]:
    """What comes, as it comes, beginning with what was read ahead of it."""
    # By itself: a read that adds to it raises over TLS where there is nothing to add,
    # and what it had is lost.
    early = b""
    with contextlib.suppress(*_NOTHING_YET):
        early = connection.read1(len(connection.peek()))
    if early:
        yield early
    room = memoryview(bytearray(_AT_ONCE))
    while got := _read(connection, room, wait):
        yield bytes(room[:got])


def _read(
    connection: io.BufferedReader, room: memoryview, wait: Callable[[], None]
) -> int:
    while True:
        with contextlib.suppress(*_NOTHING_YET):
            # None where there is nothing yet and no TLS.
            got = connection.raw.readinto(room)
            if got is not None:
                return got
        wait()


def _split(data: bytes) -> tuple[Printed, int]:
    """What the whole frames at the beginning of *data* hold, and where they end."""
    position = 0
    stdout: list[memoryview] = []
    stderr: list[memoryview] = []
    view = memoryview(data)
    while (begin := position + _HEADER) <= len(data):
        size = int.from_bytes(view[begin - 4 : begin], "big")
        if view[position] > _STDERR or size > _LARGEST:
            raise EngineError("the engine does not send what an exec prints")
        if begin + size > len(data):
            break
        kind = stderr if view[position] == _STDERR else stdout
        kind.append(view[begin : begin + size])
        position = begin + size
    return Printed(b"".join(stdout), b"".join(stderr)), position
