"""
The launcher's directory on disk: who this launcher is, and that it is the only one.

The identity survives restarts, because objects in the engine carry it; the lock
keeps two launchers from believing that they are the same one.
"""

from __future__ import annotations

import fcntl
import os
import shutil

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ulid import ULID

from launcher import private_files
from launcher.errors import StateDirectoryUnusable


@dataclass(frozen=True, slots=True)
class StateDirectory:
    root: Path
    instance: str
    """A ULID, made at the first start."""

    @property
    def certificate(self) -> Path:
        """For the pool's certificate, once it is newer than that in the token."""
        return self.root / "pool-certificate.pem"

    @property
    def rescued(self) -> Path:
        """For states that tools could not store, sealed; the operator removes them."""
        return self.root / "rescued"

    @property
    def spools(self) -> Path:
        """For masked output that the control plane does not have yet."""
        return self.root / "spools"

    @property
    def journal(self) -> Path:
        """What a later life will know about the jobs of this one."""
        return self.root / "journal.db"

    @property
    def mirrors(self) -> Path:
        """For copies of repositories, which make the next fetch of one faster."""
        return self.root / "mirrors"

    @property
    def scratch(self) -> Path:
        """For files of running jobs; emptied at every start."""
        return self.root / "scratch"


@contextmanager
def held(root: Path) -> Iterator[StateDirectory]:
    """
    Use *root*, made with mode 0700 if it is missing, and keep others out.

    Raises:
        StateDirectoryUnusable: it cannot be written, or is in use.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StateDirectoryUnusable(
            f"the state directory {root} cannot be used: {exc.strerror}"
        ) from exc
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise StateDirectoryUnusable(
                f"another launcher is using the state directory {root}"
            ) from exc
        except OSError as exc:
            raise StateDirectoryUnusable(
                f"the state directory {root} cannot be locked: {exc.strerror}"
            ) from exc
        try:
            state = StateDirectory(root, _instance(root / "instance"))
            _emptied(state.scratch)
        except OSError as exc:
            raise StateDirectoryUnusable(
                f"the state directory {root} cannot be written: {exc.strerror}"
            ) from exc
        yield state
    finally:
        os.close(lock)


def _instance(path: Path) -> str:
    if path.exists():
        try:
            return str(ULID.from_str(path.read_text("ascii").strip()))
        except ValueError as exc:
            raise StateDirectoryUnusable(
                f"{path} does not hold the identity of a launcher; remove it to get a"
                " new one, after the containers of the old one"
            ) from exc
    fresh = str(ULID())
    private_files.write(path, f"{fresh}\n".encode())
    return fresh


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
