"""
Which images this launcher pulled, and when each was last used.

What is not written down here was put into the engine by somebody else, and is never
removed.
"""

from __future__ import annotations

import json
import threading
import time

from collections.abc import Callable
from pathlib import Path

import structlog

from launcher import private_files


log = structlog.get_logger()

# On disk; a job should not wait for the disk to note what is noted already.
_EXACT_TO_SECONDS = 60.0


class PulledImages:
    """A small file; without one, what is remembered ends with the process."""

    def __init__(
        self, file: Path | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._used = self._read()

    def pulled(self, name: str) -> None:
        """*name*, a repository with a digest, came into the engine through us."""
        with self._lock:
            self._used[name] = self._clock()
            self._write()

    def used(self, name: str) -> None:
        """A job is about to run *name*, whoever pulled it."""
        with self._lock:
            if name in self._used:
                now, last = self._clock(), self._used[name]
                self._used[name] = now
                if not 0 <= now - last < _EXACT_TO_SECONDS:
                    self._write()

    def forget(self, name: str) -> None:
        with self._lock:
            self._used.pop(name, None)
            self._write()

    def unused_for(self, seconds: float) -> list[str]:
        """What was not used for *seconds*, that first which was not for longest."""
        until = self._clock() - seconds
        with self._lock:
            old = [(used, name) for name, used in self._used.items() if used <= until]
        return [name for _, name in sorted(old)]

    def _read(self) -> dict[str, float]:
        if self._file is None:
            return {}
        try:
            found = json.loads(self._file.read_bytes())
            return {str(name): float(used) for name, used in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            # Then nothing is ours, and nothing is removed.
            log.warning("images.record_lost", error=type(exc).__name__)
            return {}

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            private_files.write(self._file, json.dumps(self._used).encode())
        except OSError as exc:
            # A full disk must not end a job for a note about it.
            log.warning("images.not_recorded", error=str(exc))
