"""
Files of this launcher that nobody removed: the spools of jobs that are over, and
folders that were made for a moment by a process that was killed in that moment.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time

from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.output.spool import Spools
from launcher.reaper import Leftover
from launcher.removal import remove_tree


TEMPORARY = ("spacelift-launcher-", "spacelift-exec-")
"""What the names of our folders in the system's temporary one begin with."""

_MOMENT_SECONDS = 86_400.0
"""What was made for seconds, or for the fetch of a run's source, and is older."""


class LeftoverFiles:
    """Implements `launcher.reaper.Objects`."""

    def __init__(
        self,
        spools: Spools,
        scratch: Path,
        *,
        temporary: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spools = spools
        self._scratch = scratch
        self._temporary = temporary or Path(tempfile.gettempdir())
        self._clock = clock

    def leftovers(self) -> list[Leftover]:
        return [*self._of_jobs(), *self._of_moments()]

    def changing(self, leftover: Leftover) -> bool:
        return False

    def remove(self, leftover: Leftover) -> bool:
        if leftover.kind == "spool":
            self._spools.discard(leftover.job)
            return leftover.job not in self._spools.remaining()
        folder = Path(leftover.name)
        remove_tree(folder)
        return not folder.exists()

    def _of_jobs(self) -> Iterator[Leftover]:
        for job in self._spools.remaining():
            if (since := self._spools.touched(job)) is not None:
                yield Leftover(kind="spool", name=job, job=job, created_at=since)

    def _of_moments(self) -> Iterator[Leftover]:
        oldest = self._clock() - _MOMENT_SECONDS
        for entry in (
            *_entries(self._scratch, ("",)),
            *_entries(self._temporary, TEMPORARY),
        ):
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:  # gone meanwhile
                continue
            ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if ours and about.st_mtime < oldest:
                yield Leftover(
                    kind="folder", name=entry.path, job="", created_at=about.st_mtime
                )


def _entries(folder: Path, beginnings: tuple[str, ...]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name.startswith(beginnings)]
    except OSError:
        return []
