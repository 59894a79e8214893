"""From the engine's hundreds of ticks for each layer to a line now and then."""

from __future__ import annotations

import time

from collections.abc import Callable, Mapping
from typing import Any


LINE_SECONDS = 5.0

_DONE = frozenset({"Pull complete", "Already exists"})
_ARRIVED = _DONE | {"Download complete", "Verifying Checksum", "Extracting"}
_STANDING_STILL = ("Waiting", "Retrying")


class PullProgress:
    """What has arrived of one image; read by whoever waits for it, too."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._status: dict[str, str] = {}
        self._bytes: dict[str, tuple[int, int]] = {}
        self._moved = self._begun = clock()

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return self._clock() - self._begun

    @property
    def seconds_still(self) -> float:
        """For how long nothing has arrived."""
        return self._clock() - self._moved

    def touch(self) -> None:
        """Another attempt begins: what is still may start to move."""
        self._moved = self._clock()

    def tick(self, line: Mapping[str, Any]) -> None:
        """Take in one line of the engine's."""
        layer, status = str(line.get("id", "")), str(line.get("status", ""))
        detail = line.get("progressDetail") or {}
        at = int(detail.get("current") or 0), int(detail.get("total") or 0)
        if status.startswith(_STANDING_STILL):
            self._status.setdefault(layer, "Waiting")
            return
        if not layer or status.startswith("Pulling from"):
            self._moved = self._clock()
            return
        if status != self._status.get(layer) or at > self._bytes.get(layer, (0, 0)):
            self._moved = self._clock()
        self._status[layer] = status
        if status == "Downloading":
            self._bytes[layer] = at

    @property
    def line(self) -> str:
        """How far it is, for the log of a run."""
        done = sum(status in _DONE for status in self._status.values())
        arrived = sum(
            total if self._status.get(layer) in _ARRIVED else current
            for layer, (current, total) in self._bytes.items()
        )
        of = sum(total for _, total in self._bytes.values())
        return (
            f"Pulling the image: {done} of {len(self._status)} layers,"
            f" {arrived / 1e6:.1f} of {of / 1e6:.1f} MB"
        )
