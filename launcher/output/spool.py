"""
Where masked output waits on disk until the control plane has it.

A spool is a folder of segments, each named after the offset of its first byte; a
segment goes as soon as all of it is stored elsewhere.  So what a running job needs
in memory and on disk does not grow with its log.  After a crash of the launcher it is
filled anew, from what the container has printed.
"""

from __future__ import annotations

import os
import threading

from collections import deque
from pathlib import Path

import structlog

from launcher.cancel import CancelToken
from launcher.heartbeat import beat
from launcher.removal import remove_tree


log = structlog.get_logger()

SEGMENT = 8 << 20
"""Bytes after which a new segment begins."""

_LOOK_SECONDS = 20.0
"""How long room is waited for at once."""
_PAUSE_SECONDS = 1.0  # until a full disk is tried again


class Spools:
    """
    The folder with everybody's spools, and the room that they share.

    A job whose own share of *per_job* bytes is full, or that finds *total* bytes
    waiting, waits.  But it may always have something waiting: who holds nothing
    gets room even when others have taken all of it.
    """

    def __init__(self, folder: Path, *, per_job: int, total: int) -> None:
        self._folder = folder
        self._per_job = per_job
        self._total = total
        self._used = 0
        self._changed = threading.Condition()

    def new(self, job: str) -> Spool:
        """An empty spool for *job*; what an earlier life has left of it goes."""
        folder = self._folder / job
        remove_tree(folder)
        self._make(folder)
        return Spool(self, folder)

    def remaining(self) -> list[str]:
        """Ids of jobs of which a spool is there."""
        if not self._folder.exists():
            return []
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir())

    def touched(self, job: str) -> float | None:
        """When the spool of *job* got or lost a segment last; None without one."""
        try:
            return (self._folder / job).stat().st_mtime
        except OSError:
            return None

    def discard(self, job: str) -> None:
        """Remove what is there of *job*, which nobody needs.  May be repeated."""
        remove_tree(self._folder / job)

    def wait(self, wanted: int, spool: Spool, unless: CancelToken) -> bool:
        """Wait until *spool* may grow; False once *unless* has fired."""
        with self._changed:
            if not self.fits(wanted, spool):
                with unless.calling(self._wake):
                    while not self._changed.wait_for(
                        lambda: unless.cancelled or self.fits(wanted, spool),
                        _LOOK_SECONDS,
                    ):
                        beat()
        return not unless.cancelled

    def fits(self, wanted: int, spool: Spool) -> bool:
        """Whether *spool* may take that many bytes now."""
        waiting = spool.waiting
        mine = waiting + wanted <= self._per_job
        return not waiting or (mine and self._used + wanted <= self._total)

    def count(self, change: int) -> None:
        """So many bytes more, or fewer, wait in one of the spools."""
        with self._changed:
            self._used += change
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _make(self, folder: Path) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)


class Spool:
    """
    Bytes of one log, from `start` to `end`.

    One thread appends, another one reads and forgets.
    """

    def __init__(self, room: Spools, folder: Path) -> None:
        self._room = room
        self._folder = folder
        self._lock = threading.Lock()
        self._segments = deque[int]()
        self._writing: int | None = None
        self._reading: tuple[int, int] | None = None  # segment and its descriptor
        self.start = 0
        """Offset of the first byte that was not forgotten."""
        self.end = 0

    @property
    def waiting(self) -> int:
        return self.end - self.start

    @property
    def full(self) -> bool:
        """Whether an append would have to wait."""
        return not self._room.fits(0, self)

    def append(self, data: bytes, unless: CancelToken) -> bool:
        """Add *data* once there is room; False when *unless* fires before that."""
        rest = memoryview(data)
        complained = False
        while rest:
            beat()
            if not self._room.wait(len(rest), self, unless):
                return False
            try:
                taken = self._add(rest)
            except OSError as exc:
                if not complained:
                    log.warning("spool.not_written", error=exc.strerror)
                complained = True
                if unless.wait(_PAUSE_SECONDS):
                    return False
            else:
                rest = rest[taken:]
        return True

    def _add(self, data: memoryview) -> int:
        """Write some of *data*; return how many bytes."""
        with self._lock:
            taken = os.write(self._descriptor(), data)
            self.end += taken
        self._room.count(taken)
        return taken

    def read(self, offset: int, size: int) -> bytes:
        """At most *size* bytes from *offset*; fewer at the end of a segment."""
        with self._lock:
            start = max(s for s in self._segments if s <= offset)
            size = min(size, self.end - offset)
            if self._reading is None or self._reading[0] != start:
                self._close_reader()
                path = _path(self._folder, start)
                self._reading = (start, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            descriptor = self._reading[1]
        return os.pread(descriptor, size, offset - start)

    def forget(self, offset: int) -> None:
        """The bytes before *offset* are stored elsewhere."""
        with self._lock:
            before = self.waiting
            self.start = offset
            while len(self._segments) > 1 and self._segments[1] <= offset:
                _path(self._folder, self._segments.popleft()).unlink(missing_ok=True)
            after = self.waiting
        self._room.count(after - before)

    def remove(self) -> None:
        """Nobody needs any of it any more.  May be repeated."""
        with self._lock:
            freed, self.start = self.waiting, self.end
            self._close_reader()
            self._stop_writing()
            remove_tree(self._folder)
        self._room.count(-freed)

    def _descriptor(self) -> int:
        """Of the segment that grows."""
        full = bool(self._segments) and self.end - self._segments[-1] >= SEGMENT
        if full:
            self._stop_writing()
        if self._writing is None:
            if full or not self._segments:
                self._segments.append(self.end)
            self._writing = os.open(
                _path(self._folder, self._segments[-1]),
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
                0o600,
            )
        return self._writing

    def _stop_writing(self) -> None:
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None

    def _close_reader(self) -> None:
        if self._reading is not None:
            os.close(self._reading[1])
            self._reading = None


def _path(folder: Path, start: int) -> Path:
    return folder / f"{start:020d}"
