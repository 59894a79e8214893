"""
Who still holds a job: leases, kept in memory, on the monotonic clock.

For several processes on one database there is `launcher.controlplane.shared`.

After a restart every claimed job gets a fresh lease, so that a server that was
away does not punish workers for its own absence.  The database only learns of a
lease when it runs out.
"""

from __future__ import annotations

import threading
import time

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    lease_seconds: float = 90.0
    renew_seconds: float = 20.0
    stop_grace_seconds: float = 60.0
    """How long a worker that lost contact needs to stop a job."""
    write_limit_seconds: float = (70 + 15) * 60.0
    """How long a job that may be changing infrastructure is waited for."""
    sweep_seconds: float = 5.0
    """How often somebody looks."""


@dataclass(slots=True)
class _Lease:
    begun_at: float
    renewed_at: float


@dataclass(frozen=True, slots=True)
class Overdue:
    """A lease that ran out."""

    job: str
    hopeless: bool
    """The worker has had time to stop as well."""
    over_limit: bool
    """Even a job that changes infrastructure would have ended by now."""


class Leases:
    """Safe to use from several threads."""

    def __init__(
        self, terms: LeaseTerms, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.terms = terms
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Lease] = {}

    def begin(self, job: str) -> None:
        """Start the lease of *job*, or renew it."""
        at = self._clock()
        with self._lock:
            lease = self._held.setdefault(job, _Lease(at, at))
            lease.renewed_at = at

    def renew(self, job: str) -> None:
        """Extend the lease; one that has ended stays ended."""
        with self._lock:
            if job in self._held:
                self._held[job].renewed_at = self._clock()

    def end(self, job: str) -> None:
        """Nobody holds *job* any more."""
        with self._lock:
            self._held.pop(job, None)

    def still_overdue(self, job: str) -> bool:
        """Whether *job* has not been renewed since it was found overdue."""
        with self._lock:
            lease = self._held.get(job)
            return lease is not None and self._late(lease) > 0

    def overdue(self) -> list[Overdue]:
        """Every lease that has run out."""
        at = self._clock()
        with self._lock:
            return [
                Overdue(
                    job,
                    hopeless=self._late(lease) > self.terms.stop_grace_seconds,
                    over_limit=at - lease.begun_at > self.terms.write_limit_seconds,
                )
                for job, lease in self._held.items()
                if self._late(lease) > 0
            ]

    def look_away(self) -> None:
        """Another process watches: there is none that shares this memory."""

    def forget(self) -> None:
        """Remove what was kept about jobs that nobody holds: `end` has done it."""

    def _late(self, lease: _Lease) -> float:
        return self._clock() - lease.renewed_at - self.terms.lease_seconds
