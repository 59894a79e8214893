"""
How full the disks are that runs fill: the launcher's, and the engine's if it is here.
"""

from __future__ import annotations

import math
import os

from collections.abc import Callable, Iterable
from pathlib import Path

import structlog


log = structlog.get_logger()


def used_percent(path: Path) -> float:
    """
    Return how much of the disk of *path* is in use, as ``df`` counts.

    What only root may still use counts as used.

    Raises:
        OSError: there is no such path.
    """
    state = os.statvfs(path)
    used = state.f_blocks - state.f_bfree
    usable = used + state.f_bavail
    return 100 * used / usable if usable else 0.0


class Disks:
    """Those of some paths; a path that is not on this machine counts for nothing."""

    def __init__(
        self,
        paths: Iterable[Path],
        *,
        threshold: float,
        measure: Callable[[Path], float] = used_percent,
    ) -> None:
        self._paths = tuple(paths)
        self._threshold = threshold
        self._measure = measure
        self._said = False

    def each(self) -> tuple[float, ...]:
        """Return the per cent in use of the disk of each path; NaN: nobody knows."""
        found = dict(self._looked())
        return tuple(found.get(path, math.nan) for path in self._paths)

    def used(self) -> float:
        """Return the per cent in use of the fullest; 0 when nobody can tell."""
        return max((used for _, used in self._looked()), default=0.0)

    def trouble(self) -> str | None:
        """Return why no run may begin; None when there is room for one."""
        for path, used in self._looked():
            if used >= self._threshold:
                return (
                    f"{used:.0f} % of the disk with {path} are in use; at"
                    f" {self._threshold:g} % no run begins"
                )
        return None

    def unfit(self) -> bool:
        """Say whether there is trouble, and log when that changes."""
        trouble = self.trouble()
        if trouble and not self._said:
            log.error("disk.full", trouble=trouble)
        elif self._said and not trouble:
            log.info("disk.room_again")
        self._said = bool(trouble)
        return self._said

    def _looked(self) -> list[tuple[Path, float]]:
        looked = []
        for path in self._paths:
            try:
                looked.append((path, self._measure(path)))
            except OSError:
                continue
        return looked
