"""
Running git on this machine so that nothing but git runs.

- What git starts outlives it: so it is ended as a group.
- What server and repository make it complain of has no bound: the last of it is kept.
- What it writes to the disk is measured while it writes, because no protocol tells
  the size of a repository beforehand.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.heartbeat import beat
from launcher.threads import spawn


_CHUNK = 1 << 16
_SAID = 2000  # bytes of complaints that are kept
_LOOK_SECONDS = 0.25


class GitFailed(Exception):
    """What git said; for the operator."""


class OutOfTime(GitFailed):
    """It was ended because it took too long."""


class TooLarge(GitFailed):
    """It was ended because it wrote or printed too much."""


class Git:
    """Runs git in one folder that is a repository, or is to become one."""

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        cancel: CancelToken,
        *,
        timeout_seconds: float,
        inherited: Sequence[int] = (),
    ) -> None:
        self.directory = directory
        self._environment = dict(environment)
        self._cancel = cancel
        self._timeout = timeout_seconds
        self._inherited = tuple(inherited)
        """Descriptors that git keeps open; a lock on one lasts as long as git does."""

    def run(self, *arguments: str, limit: int = 0) -> None:
        """
        Run git to its end, or to that of our patience.

        With *limit*, the repository may grow by so many bytes meanwhile.

        Raises:
            GitFailed: git did, or it took too long, or wrote too much.
        """
        before = size_of(self.directory) if limit else 0

        def check() -> None:
            if limit and size_of(self.directory) - before > limit:
                raise TooLarge(f"more than {limit} bytes arrived")

        with self._running(arguments) as running:
            running.finish(self._timeout, check)

    def ask(self, *arguments: str, limit: int, given: bytes = b"") -> bytes:
        """
        Return what git prints when it is told *given*; at most *limit* bytes.

        Raises:
            GitFailed: git did, or printed more.
        """
        answer = bytearray()
        for part in self.listen(*arguments, given=given):
            answer += part
            if len(answer) > limit:
                raise TooLarge(f"git {arguments[0]} printed more than {limit} bytes")
        return bytes(answer)

    def listen(self, *arguments: str, given: bytes = b"") -> Iterator[bytes]:
        """Yield what git prints; raises as `ask` does."""
        with self._running(arguments, stdout=subprocess.PIPE, given=given) as running:
            yield from running.chunks()
            running.finish(self._timeout)

    @contextmanager
    def archive(self, commit: str) -> Iterator[Iterator[bytes]]:
        """
        Yield the tree of *commit* as a tar stream.

        Reading it raises SourceUnavailable when it is not whole.
        """
        arguments = ("archive", "--format=tar", commit)
        with self._running(arguments, stdout=subprocess.PIPE) as running:
            yield self._archived(running)

    def _archived(self, running: _Running) -> Iterator[bytes]:
        yield from running.chunks()
        try:
            running.finish(self._timeout)
        except GitFailed as exc:
            raise SourceUnavailable(
                "the commit cannot be read from the repository", details=str(exc)
            ) from exc

    @contextmanager
    def _running(
        self,
        arguments: Sequence[str],
        stdout: int = subprocess.DEVNULL,
        given: bytes = b"",
    ) -> Iterator[_Running]:
        command = ["git", "--git-dir", str(self.directory), *arguments]
        try:
            process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.PIPE if given else subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=self._inherited,
            )
        except (OSError, ValueError) as exc:
            raise GitFailed(f"git cannot be started: {exc}") from exc
        with process:
            running = _Running(process, given)
            try:
                with self._cancel.calling(running.kill):
                    yield running
            finally:
                running.kill()


class _Running:
    """A git process with all its children."""

    def __init__(self, process: subprocess.Popen[bytes], given: bytes) -> None:
        self._process = process
        self._said = b""
        self._listener = spawn("git-complaints", self._listen)
        if given:
            spawn("git-input", lambda: self._tell(given))

    def kill(self) -> None:
        # Its number is nobody else's as long as nobody has asked for its end.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def finish(self, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        until = time.monotonic() + seconds
        try:
            # What it complains with is closed when it ends: no need to ask for that.
            while self._listener.is_alive():
                if time.monotonic() >= until:
                    raise OutOfTime(f"no end after {seconds} s")
                self._listener.join(
                    max(min(until - time.monotonic(), _LOOK_SECONDS), 0)
                )
                beat()
                check()
            try:
                self._process.wait(max(until - time.monotonic(), 1))
            except subprocess.TimeoutExpired as exc:
                raise OutOfTime(f"no end after {seconds} s") from exc
            check()
        except GitFailed:
            self.kill()
            raise
        finally:
            self._listener.join()
        if self._process.returncode != 0:
            raise GitFailed(self._said.decode("utf-8", "replace").strip())

    def chunks(self) -> Iterator[bytes]:
        stream = self._process.stdout
        while stream is not None and (part := stream.read(_CHUNK)):
            beat()
            yield part

    def _listen(self) -> None:
        stream = self._process.stderr
        while stream is not None and (part := stream.read(_CHUNK)):
            self._said = (self._said + part)[-_SAID:]

    def _tell(self, given: bytes) -> None:
        stream = self._process.stdin
        if stream is not None:
            with contextlib.suppress(OSError, ValueError), stream:
                stream.write(given)


def size_of(folder: Path) -> int:
    """Bytes of all files below *folder*, as far as they are there by now."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            beat()
            with contextlib.suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total
