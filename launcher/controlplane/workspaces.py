"""
Workspaces that wait between two jobs of a run: opaque files below one folder.

A file appears under its name only when it is complete and its checksum was
right.  Runs that are over need no workspace; the sweeper removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading

from pathlib import Path
from typing import IO

from launcher.controlplane.errors import WorkerRefused
from launcher.wire.messages import ErrorCode


MAX_WORKSPACE = 10 * 1024**3
"""Bytes of one stored workspace, at most."""
_UNFINISHED = ".part"


class Upload:
    """A workspace on its way in.  Close it in the end, whatever happened."""

    def __init__(self, folder: Path, job: str, identity: str, limit: int) -> None:
        self.name = f"{job}-{secrets.token_hex(8)}"
        self.identity = identity
        """What the sender calls it."""
        self.size = 0
        self.lock = threading.Lock()
        """A request may be repeated while the first one is still at work."""
        self._limit = limit
        self._target = folder / self.name
        self._unfinished = folder / (self.name + _UNFINISHED)
        self._digest = hashlib.sha256()
        descriptor = os.open(
            self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
        )
        self._file: IO[bytes] = os.fdopen(descriptor, "wb", buffering=0)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes) -> None:
        """
        Take the next bytes.

        Raises:
            WorkerRefused: there are too many of them.
        """
        if self.size + len(data) > self._limit:
            raise WorkerRefused(
                ErrorCode.TOO_LARGE, f"a workspace has at most {self._limit} bytes"
            )
        left = memoryview(data)
        while left:
            # Counted as they are written: what fails later is asked for again.
            written = self._file.write(left)
            self._digest.update(left[:written])
            self.size += written
            left = left[written:]

    def finish(self) -> None:
        """Make the file durable and give it its name."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.rename(self._target)
        descriptor = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Leave nothing unfinished behind."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)


class WorkspaceFiles:
    """The folder of stored workspaces."""

    def __init__(self, folder: Path, limit: int = MAX_WORKSPACE) -> None:
        self._folder = folder
        self._limit = limit
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob("*" + _UNFINISHED):
            left.unlink(missing_ok=True)

    def upload(self, job: str, identity: str) -> Upload:
        return Upload(self._folder, job, identity, self._limit)

    def path(self, name: str) -> Path:
        return self._folder / name

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).unlink()

    def names(self) -> set[str]:
        """Every finished file."""
        return {
            path.name
            for path in self._folder.iterdir()
            if not path.name.endswith(_UNFINISHED)
        }
