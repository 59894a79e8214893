"""
The end of an exchange that takes too long.

A socket's timeout begins anew with each byte, and whoever drips them has all the time
that there is: so an exchange that lasts longer than all of its parts may is cut
off from beside.  To its reader that looks like a connection that was lost.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from contextvars import ContextVar
from typing import Any, Self


LATE_SECONDS = 120.0
"""By how much an exchange may end later than it is cut off, on a busy machine."""


class Exchange:
    """
    One request with its answer; its connection is cut off after *seconds*.

    A context manager.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._over = False
        self.late = False
        """Whether it was cut off; then what has arrived may be cut short."""

    def __enter__(self) -> Self:
        self._token = _exchange.set(self)
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        _exchange.reset(self._token)
        self._timer.cancel()
        with self._lock:
            self._over, self._socket = True, None

    def uses(self, used: socket.socket | None) -> None:
        with self._lock:
            self._socket = used
            if self.late:
                self._shut()

    def _cut(self) -> None:
        with self._lock:
            self.late = True
            if not self._over:
                self._shut()

    def _shut(self) -> None:
        # Of TLS within TLS, what is below.
        used = getattr(self._socket, "socket", self._socket)
        if used is not None:
            with contextlib.suppress(OSError):
                # Not the method of a TLS socket, which would go on in plain text.
                socket.socket.shutdown(used, socket.SHUT_RDWR)


_exchange: ContextVar[Exchange] = ContextVar("exchange")


class Watched:
    """
    A connection that tells the exchange at work about its socket.

    To be put before a class of urllib3's, and used inside an `Exchange` only.
    """

    sock: socket.socket | None

    def _new_conn(self) -> socket.socket:
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        # A proxy may take its time before there is a connection to use.
        _exchange.get().uses(made)
        return made

    def _tunnel(self) -> None:
        # To a proxy that speaks TLS, it is another socket by now.
        _exchange.get().uses(self.sock)
        super()._tunnel()  # type: ignore[misc]

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        _exchange.get().uses(self.sock)

    def request(self, *given: Any, **options: Any) -> None:  # noqa: ANN401
        _exchange.get().uses(self.sock)
        super().request(*given, **options)  # type: ignore[misc]
