"""
What systemd wants to hear from a service, by the protocol of sd_notify(3).

Datagrams of ``NAME=value`` to the socket that ``$NOTIFY_SOCKET`` names: a path, or an
abstract name with ``@`` for its first, zero byte.
"""

from __future__ import annotations

import os
import socket

from collections.abc import Mapping

import structlog

from launcher.heartbeat import Nobody, Supervisor


log = structlog.get_logger()

_LONGEST_STATUS = 200


class Systemd:
    """Implements `launcher.heartbeat.Supervisor`.  For any thread."""

    def __init__(self, address: str, *, patience: float | None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._patience = patience
        self._said = ""
        self._unheard = False

    @property
    def patience(self) -> float | None:
        return self._patience

    def ready(self) -> None:
        self._tell("READY=1")

    def alive(self) -> None:
        if self._patience is not None:
            self._tell("WATCHDOG=1")

    def status(self, sentence: str) -> None:
        line = " ".join(sentence.split())[:_LONGEST_STATUS]
        if line != self._said:
            self._said = line
            self._tell(f"STATUS={line}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def extend(self, seconds: float) -> None:
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def _tell(self, line: str) -> None:
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            ) as told:
                told.sendto(line.encode(), self._address)
        except OSError as exc:
            if not self._unheard:
                log.warning("supervisor.unheard", said=line, error=exc.strerror)
            self._unheard = True
        else:
            self._unheard = False


def supervisor(environ: Mapping[str, str]) -> Supervisor:
    """
    systemd, where *environ* says that it wants to hear from this process.

    ``$WATCHDOG_PID`` is whose watchdog it is: a variable that a parent has left to its
    children says nothing about them.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        if address:
            log.warning("supervisor.unknown", address=address)
        return Nobody()
    patience = None
    if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
        micro = environ.get("WATCHDOG_USEC", "")
        if micro.isdecimal() and int(micro) > 0:
            patience = int(micro) / 1_000_000
    return Systemd(address, patience=patience)
