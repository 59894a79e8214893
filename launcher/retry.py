"""How long to wait between two attempts."""

from __future__ import annotations

import random

from collections.abc import Iterator

from launcher.heartbeat import beat


class Pauses(Iterator[float]):
    """
    Endless pauses in seconds: doubling, bounded, each with full jitter.

    Who asks for the next one has come to the end of an attempt, and is alive.
    """

    def __init__(self, first: float = 0.2, longest: float = 15.0) -> None:
        self._next, self._longest = first, longest

    def __next__(self) -> float:
        beat()
        pause, self._next = self._next, min(self._next * 2, self._longest)
        # Half is certain, so that a crowd neither stampedes nor spins.
        return pause / 2 + random.random() * pause / 2  # noqa: S311
