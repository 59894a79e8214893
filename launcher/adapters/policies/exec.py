"""
The builtin ``exec``: starts a program of the owner's, and tells what came of it.

The policy runs with the launcher's rights, yet what it can start is a short list
that only the machine's owner writes.  A pinned program is copied into sealed memory,
hashed there and started from there, so nobody can exchange it in between; any other
one is started through the descriptor that was opened.  It finds its input on
standard input, an empty directory around it, and no variable but PATH.

What exceeds a limit is killed with its descendants.  One that left its session and
whose parent is gone is out of reach, as it is for any program without a cgroup.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import selectors
import signal
import stat
import subprocess
import tempfile
import time

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Self

from launcher.adapters.policies.machine import Builtin, Call, Halt
from launcher.adapters.policies.values import Set, Value
from launcher.policy import Program


SECONDS = 5.0
LARGEST_OUTPUT = 64 << 10
"""Bytes of each stream that the policy sees; the rest is cut, and said to be."""

_LARGEST_PROGRAM = 256 << 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 64 << 10
_AFTERWARDS = 0.2
"""Seconds to read what is in a pipe whose writer is gone."""


def exec_builtin(allowed: Iterable[Program], *, seconds: float = SECONDS) -> Builtin:
    """Return the builtin, which starts *allowed* programs and nothing else."""
    programs = {program.path: program for program in allowed}

    def execute(call: Call, command: Value) -> Value:
        arguments = _arguments(command)
        key = f"exec {json.dumps(arguments)}"
        if key not in call.memory:
            call.memory[key] = _executed(programs, arguments, call, seconds)
        return call.memory[key]

    return execute


def _arguments(command: Value) -> list[str]:
    if isinstance(command, Set) or not isinstance(command, list) or not command:
        raise Halt("takes an array of strings, the first of which is a path")
    for argument in command:
        if not isinstance(argument, str) or "\0" in argument:
            raise Halt("takes an array of strings without NUL")
    return list(command)


def _executed(
    programs: Mapping[str, Program], arguments: list[str], call: Call, seconds: float
) -> dict[str, Any]:
    program = programs.get(arguments[0])
    if program is None:
        raise Halt(
            f"{arguments[0]} is not allowed: list it in"
            " SPACELIFT_LAUNCHER_POLICY_EXEC_ALLOWED"
        )
    ends = min(time.monotonic() + seconds, call.ends)
    try:
        with (
            _opened(program) as descriptor,
            _memory("policy-input", call.document) as document,
            tempfile.TemporaryDirectory(
                prefix="spacelift-exec-", ignore_cleanup_errors=True
            ) as folder,
        ):
            return _run(arguments, descriptor, document, folder, ends)
    except (OSError, ValueError) as exc:
        raise Halt(f"{program.path} cannot be started: {exc}") from exc


@contextmanager
def _opened(program: Program) -> Iterator[int]:
    descriptor = os.open(program.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
            raise Halt(f"{program.path} is not an executable file")
        if not program.sha256:
            yield descriptor
            return
        if status.st_size > _LARGEST_PROGRAM:
            raise Halt(f"{program.path} is larger than 256 MiB")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(_LARGEST_PROGRAM)
        if hashlib.sha256(content).hexdigest() != program.sha256:
            raise Halt(f"{program.path} is not what it was pinned to")
        with _memory("policy-exec", content) as sealed:
            yield sealed
    finally:
        os.close(descriptor)


@contextmanager
def _memory(name: str, content: bytes) -> Iterator[int]:
    """Give *content* as a file that nobody can change and no disk has."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _run(
    arguments: list[str], descriptor: int, document: int, folder: str, ends: float
) -> dict[str, Any]:
    process = subprocess.Popen(
        arguments,
        # A script's interpreter opens it by this name, so it stays open there.
        executable=f"/proc/self/fd/{descriptor}",
        pass_fds=(descriptor,),
        stdin=document,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": _PATH},
        cwd=folder,
        start_new_session=True,
        umask=0o077,
    )
    with process, _Output(process) as output:
        try:
            in_time = output.read_until_it_ends(ends)
        finally:
            _kill(process)
        if not in_time:
            raise Halt(f"{arguments[0]} took too long")
        output.read_the_rest()
        process.wait()
    status = process.returncode
    answer: dict[str, Any] = {"status": status if status >= 0 else 128 - status}
    return answer | output.texts()


class _Output:
    """What a process writes; as much as is wanted of it is kept."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._cut = dict.fromkeys(self._kept, False)
        self._closing = ExitStack()
        self._selector = self._closing.enter_context(selectors.DefaultSelector())
        for name in self._kept:
            pipe: IO[bytes] = getattr(process, name)
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, name)
        # The program may end while a descendant keeps its pipes.
        self._ended = os.pidfd_open(process.pid)
        self._closing.callback(os.close, self._ended)
        self._selector.register(self._ended, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def read_until_it_ends(self, ends: float) -> bool:
        """Return false if the moment *ends* came first."""
        while (left := ends - time.monotonic()) > 0:
            ready = self._selector.select(left)
            for key, _ in ready:
                if key.data:
                    self._take(key)
            if any(not key.data for key, _ in ready):
                self._selector.unregister(self._ended)
                return True
        return False

    def read_the_rest(self) -> None:
        ends = time.monotonic() + _AFTERWARDS
        while self._selector.get_map() and (left := ends - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                self._take(key)

    def _take(self, key: selectors.SelectorKey) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(key.fd, _CHUNK)
        if not data:
            self._selector.unregister(key.fileobj)
            return
        kept = self._kept[key.data]
        room = LARGEST_OUTPUT - len(kept)
        kept += data[:room]
        self._cut[key.data] |= len(data) > room

    def texts(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, kept in self._kept.items():
            found[name] = kept.decode(errors="replace")
            found[f"{name}_cut"] = self._cut[name]
        return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the program and whatever it started."""
    for pid in _descendants(process.pid):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    # The group's number is ours as long as its leader has not been waited for.
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Return *pid* and all below it; they stop first, so that none is missed."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        with contextlib.suppress(OSError):
            os.kill(current, signal.SIGSTOP)
        found.append(current)
        for children in Path(f"/proc/{current}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                waiting += map(int, children.read_text().split())
    return found
