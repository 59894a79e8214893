"""
Workspaces that wait between two jobs of a run: opaque files, by name.

A file appears under its name only when it is complete.  Several server processes
may use one storage, and the parts of an upload may reach any of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from launcher.controlplane.errors import StorageAway, WorkerRefused
from launcher.wire.messages import ErrorCode, WorkspaceUploaded


log = structlog.get_logger()

MAX_WORKSPACE = 10 * 1024**3
"""Bytes of one stored workspace, at most."""
_UNFINISHED = ".part"
_PIECE = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}


class Gone(Exception):
    """What was uploaded is not there any more; begin again."""


class Incomplete(Exception):
    """Bytes are missing after so many."""

    def __init__(self, received: int) -> None:
        super().__init__(received)
        self.received = received


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A workspace on its way in."""

    job: str
    identity: str
    """What the sender calls it."""
    file: str
    external: str
    """What the storage calls it."""
    begun_at: int


class Storage(Protocol):
    """
    Where workspaces wait.  Safe to use from several threads and processes.

    Every call may raise `StorageAway`, and those about an upload `Gone`.
    """

    presigned: bool
    """Whether it has URLs for launchers: `place` and `source`."""

    def begin(self, file: str) -> str:
        """Expect an upload; return what the storage calls it."""

    def received(self, upload: Upload) -> int:
        """How many bytes are there."""

    def append(self, upload: Upload, offset: int, data: bytes) -> int:
        """
        Add what is new of *data*, unless bytes before it are missing.

        Returns how many bytes are there.

        Raises:
            WorkerRefused: TOO_LARGE.
        """

    def place(self, upload: Upload, offset: int, size: int, sha256: str) -> str | None:
        """
        A URL to PUT the part at *offset* to; None when another part is next.

        Raises:
            WorkerRefused: TOO_LARGE.
        """

    def finish(self, upload: Upload, sent: WorkspaceUploaded) -> None:
        """
        Make a file of the upload; once more is harmless.

        Raises:
            Incomplete: bytes are missing.
            WorkerRefused: WRONG_CHECKSUM.
        """

    def abandon(self, upload: Upload) -> None:
        """Leave nothing of it behind, but what was finished."""

    def contains(self, file: str) -> bool: ...

    def read(self, file: str, first: int, last: int) -> Iterator[bytes]:
        """The bytes from *first* to *last*."""

    def source(self, file: str) -> str | None:
        """A URL to GET the file from, if there are such."""

    def remove(self, file: str) -> None: ...

    def names(self) -> set[str]:
        """Every finished file."""


class DirectoryStorage:
    """A folder that all server processes see."""

    presigned = False

    def __init__(self, folder: Path, limit: int = MAX_WORKSPACE) -> None:
        self._folder = folder
        self._limit = limit
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(self, file: str) -> str:
        with _translated():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(self._unfinished(file), flags, 0o600))
        return ""

    def received(self, upload: Upload) -> int:
        with self._alone(upload) as descriptor:
            return os.fstat(descriptor).st_size

    def append(self, upload: Upload, offset: int, data: bytes) -> int:
        with self._alone(upload) as descriptor:
            size = os.fstat(descriptor).st_size
            if offset > size:
                return size
            left = memoryview(data)[size - offset :]
            if size + len(left) > self._limit:
                raise too_large(self._limit)
            while left:
                # What fails in the middle is asked for again from there.
                written = os.pwrite(descriptor, left, size)
                size += written
                left = left[written:]
            return size

    def place(self, upload: Upload, offset: int, size: int, sha256: str) -> str | None:
        return None

    def finish(self, upload: Upload, sent: WorkspaceUploaded) -> None:
        try:
            with self._alone(upload) as descriptor:
                size = os.fstat(descriptor).st_size
                if size < sent.size:
                    raise Incomplete(size)
                _require_same(descriptor, size, sent)
                os.fsync(descriptor)
                self._unfinished(upload.file).rename(self.path(upload.file))
                self._sync()
        except Gone:
            # By an earlier call, whose answer got lost.
            with _translated(), self.path(upload.file).open("rb") as file:
                _require_same(file.fileno(), os.fstat(file.fileno()).st_size, sent)
                self._sync()

    def abandon(self, upload: Upload) -> None:
        with _translated():
            self._unfinished(upload.file).unlink(missing_ok=True)

    def contains(self, file: str) -> bool:
        return self.path(file).exists()

    def read(self, file: str, first: int, last: int) -> Iterator[bytes]:
        with _translated(), self.path(file).open("rb") as source:
            source.seek(first)
            left = last + 1 - first
            while left > 0 and (piece := source.read(min(left, _PIECE))):
                left -= len(piece)
                yield piece

    def source(self, file: str) -> str | None:
        return None

    def remove(self, file: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path(file).unlink()

    def names(self) -> set[str]:
        return {path.name.removesuffix(_UNFINISHED) for path in self._folder.iterdir()}

    def path(self, file: str) -> Path:
        return self._folder / file

    def _unfinished(self, file: str) -> Path:
        return self._folder / (file + _UNFINISHED)

    @contextmanager
    def _alone(self, upload: Upload) -> Iterator[int]:
        """The unfinished file, to which nobody else adds meanwhile."""
        with _translated():
            path = self._unfinished(upload.file)
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Finished or abandoned meanwhile, it has lost its name.
                if os.fstat(descriptor).st_ino != path.stat().st_ino:
                    raise Gone
                yield descriptor
            finally:
                os.close(descriptor)

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def too_large(limit: int) -> WorkerRefused:
    return WorkerRefused(ErrorCode.TOO_LARGE, f"a workspace has at most {limit} bytes")


def _require_same(descriptor: int, size: int, sent: WorkspaceUploaded) -> None:
    digest, offset = hashlib.sha256(), 0
    if size == sent.size:
        while piece := os.pread(descriptor, _PIECE, offset):
            digest.update(piece)
            offset += len(piece)
    if digest.hexdigest() != sent.sha256:
        raise WorkerRefused(
            ErrorCode.WRONG_CHECKSUM, "the workspace was damaged on its way"
        )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise Gone from exc
    except OSError as exc:
        if exc.errno in _FULL:
            log.error("workspaces.not_stored", error=exc.strerror)  # noqa: TRY400
            raise StorageAway from exc
        raise
