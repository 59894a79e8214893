"""
Removes what no job needs any more: containers, volumes, networks, and files.

A job cleans up after itself, and so does the next life of a launcher that was killed.
What is left is what could not be removed then, because the engine was away.  Only
what carries this launcher's own label, or lies in its own folders, is looked at, and
only what is old enough and belongs to no job in the journal is removed.
"""

from __future__ import annotations

import time

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from launcher.cancel import CancelToken
from launcher.errors import EngineError
from launcher.heartbeat import beat, pausing, watching
from launcher.journal import Journal
from launcher.threads import helper


log = structlog.get_logger()

AGE_SECONDS = 120.0
"""What is younger may be somebody's who has not written it down yet."""
EVERY_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something in the engine that carries this launcher's label, or a file of its."""

    kind: str
    """``container``, ``volume``, ``network``, ``spool`` or ``folder``."""
    name: str
    job: str
    created_at: float
    """Seconds since 1970, by the clock of whoever keeps it."""
    running: bool = False
    """A container in which something may go on."""


class Objects(Protocol):
    """What an engine, or a disk, has of this launcher."""

    def leftovers(self) -> Sequence[Leftover]:
        """
        Everything of this launcher's jobs, in the order in which it can be removed.

        Raises:
            EngineError: it cannot be asked.
        """

    def changing(self, leftover: Leftover) -> bool:
        """Whether a container that runs may be changing infrastructure."""

    def remove(self, leftover: Leftover) -> bool:
        """Remove it; whether it is gone.  Removing what is gone already is fine."""


class Reaper:
    """Looks after one place.  Not for use from several threads at once."""

    def __init__(
        self,
        objects: Objects,
        journal: Journal,
        *,
        dry_run: bool = False,
        age_seconds: float = AGE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._objects = objects
        self._journal = journal
        self._dry_run = dry_run
        self._age_seconds = age_seconds
        self._clock = clock
        self.removed = 0
        """Objects removed so far."""
        self.waiting = 0
        """Objects that were to be removed at the last look, and are still there."""

    def reap(self) -> int:
        """
        Remove what is left over; return how much was.

        Raises:
            EngineError: the engine cannot be asked.
        """
        # In this order: whoever makes an object has an entry in the journal before.
        found = self._objects.leftovers()
        live = self._journal.live()
        oldest = self._clock() - self._age_seconds
        left = [x for x in found if x.job not in live and x.created_at <= oldest]
        # Asked only about what would be removed, because it takes reading a log.
        spared = {x.job for x in left if x.running and self._objects.changing(x)}
        removed = waiting = 0
        for each in left:
            beat()
            if each.job in spared:
                continue
            if self._dry_run:
                log.info("leftover.found", kind=each.kind, name=each.name, job=each.job)
            elif self._objects.remove(each):
                log.info("leftover.removed", kind=each.kind, name=each.name)
                removed += 1
                continue
            waiting += 1
        self.removed += removed
        self.waiting = waiting
        return removed


@contextmanager
def reaping(*reapers: Reaper, every: float = EVERY_SECONDS) -> Iterator[None]:
    """Let *reapers* look now, and *every* so many seconds, beside the block."""
    done = CancelToken()

    def look() -> None:
        while True:
            for reaper in reapers:
                try:
                    reaper.reap()
                except EngineError as exc:
                    log.warning("engine.not_reaped", details=exc.details)
                except Exception:  # the next look may do better
                    log.exception("reaper.crashed")
            if pausing(done, every):
                return

    with helper("reaper", watching("reaper", look), lambda: done.cancel("drained")):
        yield
