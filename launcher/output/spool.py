"""
Where masked output waits on disk until the control plane has it.

A spool is a folder of segments, each named after the offset of its first byte; a
segment goes as soon as all of it is stored elsewhere.  So what a running job needs
in memory and on disk does not grow with its log, and after a crash of the launcher
the bytes that nobody has yet are still there.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading

from collections import deque
from pathlib import Path

import structlog

from launcher.cancel import CancelToken


log = structlog.get_logger()

SEGMENT = 8 << 20
"""Bytes after which a new segment begins."""

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

    def new(self, job: str, *, start: int = 0) -> Spool:
        """An empty spool for *job*, whose first byte has the offset *start*."""
        folder = self._folder / job
        shutil.rmtree(folder, ignore_errors=True)
        self._make(folder)
        return Spool(self, folder, start)

    def left_behind(self, job: str, *, length: int) -> Spool | None:
        """
        What an earlier process has left of *job*, cut to *length*.

        None when bytes before *length* are missing: then they have to be made again.
        """
        folder = self._folder / job
        segments = _found(folder)
        while segments and segments[-1][0] >= length and len(segments) > 1:
            start, _ = segments.pop()
            _path(folder, start).unlink()
        if not segments or sum(segments[-1]) < length or segments[0][0] > length:
            return None
        if any(sum(one) != two[0] for one, two in itertools.pairwise(segments)):
            return None
        start, _ = segments[-1]
        os.truncate(_path(folder, start), length - start)
        spool = Spool(self, folder, segments[0][0], length, [s for s, _ in segments])
        self.count(spool.waiting)
        return spool

    def remaining(self) -> list[str]:
        """Ids of jobs of which a spool is there."""
        if not self._folder.exists():
            return []
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir())

    def discard(self, job: str) -> None:
        """Remove what is there of *job*, which nobody needs.  May be repeated."""
        shutil.rmtree(self._folder / job, ignore_errors=True)

    def wait(self, wanted: int, spool: Spool, unless: CancelToken) -> bool:
        """Wait until *spool* may grow; False once *unless* has fired."""
        with self._changed:
            if not self.fits(wanted, spool):
                with unless.calling(self._wake):
                    self._changed.wait_for(
                        lambda: unless.cancelled or self.fits(wanted, spool)
                    )
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

    def __init__(
        self,
        room: Spools,
        folder: Path,
        start: int,
        end: int | None = None,
        segments: list[int] | None = None,
    ) -> None:
        self._room = room
        self._folder = folder
        self._lock = threading.Lock()
        self._segments = deque(segments or [])
        self._writing: int | None = None
        self._reading: tuple[int, int] | None = None  # segment and its descriptor
        self.start = start
        """Offset of the first byte that was not forgotten."""
        self.end = start if end is None else end

    @property
    def waiting(self) -> int:
        return self.end - self.start

    @property
    def full(self) -> bool:
        """Whether an append would have to wait."""
        return not self._room.fits(0, self)

    def append(self, offset: int, data: bytes, unless: CancelToken) -> bool:
        """
        Add *data*, which begins at *offset*, but for what is known already.

        Waits for room; False when *unless* fires before there is some.
        """
        rest = memoryview(data)
        complained = False
        while rest:
            if not self._room.wait(len(rest), self, unless):
                return False
            try:
                taken = self._add(offset, rest)
            except OSError as exc:
                if not complained:
                    log.warning("spool.not_written", error=exc.strerror)
                complained = True
                if unless.wait(_PAUSE_SECONDS):
                    return False
            else:
                offset, rest = offset + taken, rest[taken:]
        return True

    def _add(self, offset: int, data: memoryview) -> int:
        """Write some of *data*, or pass over it; return how many bytes."""
        with self._lock:
            if offset < self.end:
                return min(self.end - offset, len(data))
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
        """
        Bytes before *offset* are stored elsewhere; those to come are passed over.
        """
        with self._lock:
            before = self.waiting
            self.start = offset
            if offset > self.end:
                self.end = offset
                self._stop_writing()
                self._segments.append(offset)
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
            shutil.rmtree(self._folder, ignore_errors=True)
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


def _found(folder: Path) -> list[tuple[int, int]]:
    """Start and size of the segments in *folder*, in order."""
    if not folder.is_dir():
        return []
    return [
        (int(path.name), path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.name.isdigit()
    ]
