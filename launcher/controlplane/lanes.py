"""
Threads for blocking work, in lanes of their own.

One shared pool would let a crowd of viewers, or strangers who try passwords,
keep launchers from renewing their leases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread


P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """At most so many blocking calls at once; others wait their turn."""

    def __init__(self, threads: int) -> None:
        self._limiter = anyio.CapacityLimiter(threads)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do *call* in a thread of this lane."""
        return await anyio.to_thread.run_sync(
            lambda: call(*args, **kwargs), limiter=self._limiter
        )


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes of one application."""

    workers: Lane = field(default_factory=lambda: Lane(40))
    people: Lane = field(default_factory=lambda: Lane(20))
    simulations: Lane = field(default_factory=lambda: Lane(2))
    """Each starts a compiler."""
    sign_in: Lane = field(default_factory=lambda: Lane(4))
    """Each attempt takes 16 MiB and a while, on purpose."""
