"""How often one caller may ask: a bucket that drips."""

from __future__ import annotations

import threading
import time

from collections import OrderedDict
from collections.abc import Callable


_REMEMBERED = 10_000


class Rates:
    """
    Lets each caller ask *burst* times at once, and *per_second* times in the long run.

    Of the callers the latest ten thousand are remembered: who was forgotten has a full
    bucket, as who was quiet for so long would have.
    """

    def __init__(
        self,
        *,
        per_second: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_of(self, caller: str) -> float:
        """Seconds until *caller* may ask again; 0: it may now, and that counts."""
        at = self._clock()
        with self._lock:
            left, since = self._buckets.pop(caller, (self._burst, at))
            left = min(self._burst, left + (at - since) * self._per_second)
            wait = 0.0 if left >= 1 else (1 - left) / self._per_second
            self._buckets[caller] = (left if wait else left - 1, at)
            if len(self._buckets) > _REMEMBERED:
                self._buckets.popitem(last=False)
        return wait
