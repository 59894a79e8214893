"""Time as the database keeps it, and identities that are made of time."""

from __future__ import annotations

import time

from ulid import ULID


def now() -> int:
    """Nanoseconds since 1970."""
    return time.time_ns()


def seconds(nanoseconds: int) -> int:
    """As GraphQL tells times: whole seconds since 1970, in 31 bits."""
    return min(nanoseconds // 1_000_000_000, (1 << 31) - 1)


def new_id() -> str:
    """A new ULID."""
    return str(ULID())
