"""
Which signatures were used lately, so that none is used twice.

Memory is bounded in time, because an older signature is refused anyway, and in
number for each key, so that no pool can use up another's share.  Whatever may
have been forgotten counts as used: what was made before the start, and what is
older than anything remembered after the clock was set back.
"""

from __future__ import annotations

import math
import threading

from collections import Counter, defaultdict

from launcher.wire.signatures.profile import Reason, SignatureRefused


class Nonces:
    """Remembers nonces.  Safe to share between threads."""

    def __init__(self, *, since: float, window_seconds: float, most: int) -> None:
        """
        Take what was created after *since*, in seconds since 1970.

        Nothing is remembered for longer than *window_seconds* after it was
        created, and *most* for each key.
        """
        self._since = since
        self._window = window_seconds
        self._most = most
        self._used: defaultdict[int, defaultdict[str, set[bytes]]] = defaultdict(
            lambda: defaultdict(set)
        )
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def use(self, key: str, nonce: bytes, created: int, *, now: float) -> None:
        """
        Use the *nonce* of a signature that *key* is known to have made.

        Raises:
            SignatureRefused: FORGOTTEN, REPLAYED or CROWDED; then it is not used.
        """
        with self._lock:
            self._forget(before=now - self._window)
            if created < self._since:
                wait = math.ceil(self._since - created)
                raise SignatureRefused(
                    Reason.FORGOTTEN,
                    "the request was signed before the control plane's memory begins;"
                    f" sign it again in {wait} s",
                    seconds=wait,
                )
            used = self._used[created][key]
            if nonce in used:
                raise SignatureRefused(
                    Reason.REPLAYED, "the request's signature was used before"
                )
            if self._counts[key] >= self._most:
                wait = math.ceil(self._window)
                raise SignatureRefused(
                    Reason.CROWDED,
                    f"the pool has sent {self._most} signed requests within"
                    " the time in which they are remembered",
                    seconds=wait,
                )
            used.add(nonce)
            self._counts[key] += 1

    def _forget(self, *, before: float) -> None:
        self._since = max(self._since, before)
        for second in [second for second in self._used if second < before]:
            for key, used in self._used.pop(second).items():
                self._counts[key] -= len(used)
                if not self._counts[key]:
                    del self._counts[key]
