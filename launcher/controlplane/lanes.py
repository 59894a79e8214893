"""
Threads for blocking work, in lanes of their own.

One shared pool would let a crowd of viewers, or strangers who try passwords,
keep launchers from renewing their leases.
"""

from __future__ import annotations

import contextlib

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

from launcher.controlplane.errors import StoreCollided


ATTEMPTS = 4
P = ParamSpec("P")
T = TypeVar("T")


def attempted(call: Callable[[], T]) -> T:
    """Do *call*; again, a few times, if it collided with another change."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(StoreCollided):
            return call()
    return call()


class Lane:
    """At most so many blocking calls at once; others wait their turn."""

    def __init__(self, threads: int) -> None:
        self._limiter = anyio.CapacityLimiter(threads)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do *call* in a thread of this lane; again, if it collided with another."""
        return await anyio.to_thread.run_sync(
            lambda: attempted(lambda: call(*args, **kwargs)), limiter=self._limiter
        )


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes of one application."""

    workers: Lane = field(default_factory=lambda: Lane(40))
    people: Lane = field(default_factory=lambda: Lane(20))
    viewers: Lane = field(default_factory=lambda: Lane(2))
    """For logs that are watched in a browser, by however many."""
    simulations: Lane = field(default_factory=lambda: Lane(2))
    """Each starts a compiler."""
    sign_in: Lane = field(default_factory=lambda: Lane(4))
    """Each attempt takes 16 MiB and a while, on purpose."""
