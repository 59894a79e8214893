"""One of those who want the same does it; the others wait for what comes of it."""

from __future__ import annotations

import threading

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar


Work = TypeVar("Work")


@dataclass(slots=True)
class Flight(Generic[Work]):
    """One doing of *work*, which waiters may look at."""

    work: Work
    over: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    """To be set before it lands, if it failed."""


class Flights(Generic[Work]):
    """At most one for each key at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flying: dict[str, Flight[Work]] = {}

    def join(self, key: str, work: Callable[[], Work]) -> tuple[Flight[Work], bool]:
        """Return the flight for *key*, and whether the caller is who has to fly it."""
        with self._lock:
            flight = self._flying.get(key)
            if flight is not None:
                return flight, False
            flight = self._flying[key] = Flight(work())
            return flight, True

    def land(self, key: str) -> None:
        """End the flight for *key*; to be called by who flew it, whatever happened."""
        with self._lock:
            flight = self._flying.pop(key)
        flight.over.set()
