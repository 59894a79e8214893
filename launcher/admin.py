"""
The admin socket: how the operator of a machine talks to the launcher on it.

A Unix socket in the state directory.  The client sends one line of JSON,
``{"command": "status"}``, and gets one back, ``{"ok": true, …}`` or
``{"ok": false, "error": "…"}``; then the connection is over.  Only the user of the
launcher and root are answered, whatever the modes of files say.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from launcher.errors import NoLauncherAnswers, StateDirectoryUnusable
from launcher.threads import helper, spawn


log = structlog.get_logger()

SOCKET = "admin.sock"

Command = Callable[[], Mapping[str, Any]]

_LONGEST = 4096
"""Bytes of a request."""
_LONGEST_ANSWER = 1 << 20
_PATIENCE = 5.0
"""Seconds a client may take in all."""
_AT_ONCE = 8
"""Connections that are served beside each other; more are closed."""
_CREDENTIALS = struct.Struct("3i")


@contextmanager
def answering(folder: Path, commands: Mapping[str, Command]) -> Iterator[None]:
    """
    Answer *commands* at the socket in *folder* for as long as the block runs.

    What an earlier launcher left there is replaced: *folder* must be ours alone.

    Raises:
        StateDirectoryUnusable: there can be no socket.
    """
    path = folder / SOCKET
    try:
        listener = _bound(folder)
    except OSError as exc:
        raise StateDirectoryUnusable(
            f"the admin socket {path} cannot be made: {exc.strerror}"
        ) from exc
    with listener:

        def stop() -> None:
            path.unlink(missing_ok=True)
            # Closing does not wake up who accepts; shutting down does.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)

        with helper("admin", partial(_accept, listener, commands), stop):
            yield


def _bound(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(folder) as short:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(short)  # noqa: PTH108 (a path by way of a descriptor)
            listener.bind(short)
            os.chmod(short, 0o600)  # noqa: PTH101
        listener.listen(_AT_ONCE)
    except OSError:
        listener.close()
        raise
    return listener


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path of the socket that fits into an address, however deep *folder* is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def _accept(listener: socket.socket, commands: Mapping[str, Command]) -> None:
    room = threading.BoundedSemaphore(_AT_ONCE)
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return

        def serve(connection: socket.socket) -> None:
            try:
                with connection, contextlib.suppress(OSError):
                    _serve(connection, commands)
            finally:
                room.release()

        if room.acquire(blocking=False):
            spawn("admin-client", partial(serve, connection))
        else:
            connection.close()


def _serve(connection: socket.socket, commands: Mapping[str, Command]) -> None:
    pid, uid, _ = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    # Before any answer: whoever hangs up on what was not read takes the answer back.
    line = _line(connection, _LONGEST)
    if uid not in {0, os.geteuid()}:
        log.warning("admin.refused", pid=pid, uid=uid)
        _answer(connection, {"ok": False, "error": "this is for the launcher's user"})
        return
    try:
        name = json.loads(line)["command"]
        command = commands[name]
    except (ValueError, LookupError, TypeError, RecursionError):
        known = ", ".join(sorted(commands))
        _answer(connection, {"ok": False, "error": f"the commands are {known}"})
        return
    log.info("admin.asked", command=name, pid=pid, uid=uid)
    try:
        answer = {"ok": True, **command()}
    except Exception:  # a bug in what is asked must be answered, too
        log.exception("admin.failed", command=name)
        answer = {"ok": False, "error": "the launcher's log says what went wrong"}
    _answer(connection, answer)


def _line(connection: socket.socket, longest: int) -> bytes:
    """What comes before the first newline, or all of it; never more than *longest*."""
    until, said = time.monotonic() + _PATIENCE, b""
    while b"\n" not in said and len(said) <= longest:
        connection.settimeout(max(until - time.monotonic(), 0.001))
        if not (part := connection.recv(longest + 1)):
            break
        said += part
    return said.partition(b"\n")[0][:longest]


def _answer(connection: socket.socket, answer: Mapping[str, Any]) -> None:
    connection.settimeout(_PATIENCE)
    connection.sendall(json.dumps(answer).encode() + b"\n")


def ask(folder: Path, command: str) -> dict[str, Any]:
    """
    Return what the launcher whose state directory is *folder* says to *command*.

    Raises:
        NoLauncherAnswers: none is there, or not for us.
    """
    try:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
            _short(folder) as short,
        ):
            connection.settimeout(_PATIENCE)
            connection.connect(short)
            _answer(connection, {"command": command})
            answer = json.loads(_line(connection, _LONGEST_ANSWER))
    except (OSError, ValueError) as exc:
        raise NoLauncherAnswers(
            f"no launcher answers at {folder / SOCKET}; does it run, with this state"
            " directory, and may you talk to it?",
            details=str(exc),
        ) from exc
    if not isinstance(answer, dict) or not answer.pop("ok", False):
        said = answer.get("error", "") if isinstance(answer, dict) else ""
        raise NoLauncherAnswers(f"the launcher refuses: {said}")
    return answer
