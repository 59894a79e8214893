"""
Bare copies of repositories, kept from one fetch to the next.

- A mirror holds single commits, not history: each fetch brings what is new of one.
- Whoever reads holds a shared lock, whoever fetches an exclusive one beside it, and
  only what nobody reads is removed.  The locks are the kernel's, and git inherits
  them: they count between processes, and as long as a git lives that writes.
- A commit is in a mirror when a reference says so, which git writes last.  What a
  killed git left behind is swept away by the next one; a mirror that has gone bad
  is made again.
- Nothing here asks who may read: that is the server's business, each time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from launcher.adapters.sources.processes import size_of
from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.heartbeat import beat
from launcher.removal import remove_tree


log = structlog.get_logger()

_STRIPES = 256
"""Locks there are; two mirrors that share one only wait for each other."""
_MOST_PACKS = 50
"""Every fetch makes a pack; with more of them, reading gets slow."""
_LOOK_SECONDS = 0.05
_TIDYING_SECONDS = 20.0
"""How long whoever removes mirrors is waited for at once."""
_DAMAGED, _USED = "damaged", "used"


class Mirror:
    """One bare repository, or the place for it; used inside `Mirrors.using` only."""

    def __init__(self, directory: Path, lock: Path | None) -> None:
        self.directory = directory
        self._lock = lock

    @property
    def made(self) -> bool:
        return (self.directory / "HEAD").exists()

    @contextmanager
    def writing(self, cancel: CancelToken, seconds: float) -> Iterator[tuple[int, ...]]:
        """Nobody else writes; yields descriptors that git has to inherit."""
        if self._lock is None:
            yield ()
            return
        with _locked(self._lock, fcntl.LOCK_EX, cancel, seconds) as descriptor:
            self._swept()
            yield (descriptor,)

    def damaged(self) -> None:
        """Let the next one make it anew."""
        with contextlib.suppress(OSError):
            (self.directory / _DAMAGED).touch()

    def used(self) -> None:
        with contextlib.suppress(OSError):
            (self.directory / _USED).touch()

    def worn(self) -> bool:
        """Whether it should be made anew before it is used again."""
        if (self.directory / _DAMAGED).exists():
            return True
        packs = list((self.directory / "objects/pack").glob("*.pack"))
        return len(packs) > _MOST_PACKS

    def remove(self) -> None:
        # Under another name first: half a mirror must not be taken for one.
        going = self.directory.with_suffix(".going")
        remove_tree(going)
        with contextlib.suppress(FileNotFoundError):
            self.directory.rename(going)
        remove_tree(going)

    def _swept(self) -> None:
        """Remove what a git left that was killed: nobody else writes now."""
        if not self.directory.exists():
            return
        for left in (
            *self.directory.glob("*.lock"),
            *(self.directory / "refs").rglob("*.lock"),
            *(self.directory / "objects").glob("*/tmp_*"),
            *(self.directory / "objects").glob("tmp_*"),
        ):
            left.unlink(missing_ok=True)


class Mirrors:
    """The folder of mirrors, no larger than *limit* bytes for long."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._locks = folder / "locks"
        self._limit = limit
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._locks.mkdir(mode=0o700, exist_ok=True)
        for left in folder.glob("*.going"):
            remove_tree(left)
        self._tidying = threading.Lock()

    @contextmanager
    def using(self, url: str, cancel: CancelToken, seconds: float) -> Iterator[Mirror]:
        """
        The mirror for *url*, which nobody removes meanwhile.

        Raises:
            SourceUnavailable: somebody else had it for longer than *seconds*.
        """
        name = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        mirror = Mirror(self._folder / f"{name}.git", self._lock(name, "write"))
        use = self._lock(name, "use")
        if mirror.worn():
            with _locked(use, fcntl.LOCK_EX, cancel, seconds):
                if mirror.worn():
                    log.info("mirror.remade", mirror=name)
                    mirror.remove()
        try:
            with _locked(use, fcntl.LOCK_SH, cancel, seconds):
                yield mirror
                mirror.used()
        finally:
            self.tidy()

    def tidy(self) -> None:
        """Remove those that were not used for longest, until the rest has room."""
        with _beating(self._tidying):
            found = []
            for path in self._folder.glob("*.git"):
                with contextlib.suppress(OSError):
                    used = path / _USED
                    last = (used if used.exists() else path).stat().st_mtime
                    found.append((last, size_of(path), path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self._limit:
                    break
                if self._removed(path):
                    total -= size

    def _removed(self, path: Path) -> bool:
        descriptor = _taken(self._lock(path.stem, "use"), fcntl.LOCK_EX)
        if descriptor is None:
            return False
        try:
            Mirror(path, None).remove()
        finally:
            os.close(descriptor)
        log.info("mirror.removed", mirror=path.stem)
        return True

    def _lock(self, name: str, kind: str) -> Path:
        return self._locks / f"{int(name[:8], 16) % _STRIPES:02x}.{kind}"


@contextmanager
def _beating(lock: threading.Lock) -> Iterator[None]:
    """Hold *lock*, which somebody may keep for as long as it takes to remove much."""
    while not lock.acquire(timeout=_TIDYING_SECONDS):
        beat()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _locked(path: Path, how: int, cancel: CancelToken, seconds: float) -> Iterator[int]:
    until = time.monotonic() + seconds
    while (descriptor := _taken(path, how)) is None:
        beat()
        if cancel.wait(_LOOK_SECONDS) or time.monotonic() > until:
            raise SourceUnavailable(
                "another run fetches the same repository and does not come to an end"
            )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(path: Path, how: int) -> int | None:
    """A descriptor that holds the lock; None when somebody else is in the way."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
