"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """A signed-in caller of the GraphQL API."""

    id: str
    name: str
    stack: str = ""
    """The only stack whose affairs are the caller's; empty: all of them."""

    @classmethod
    def of_api_key(cls, key: str) -> Actor:
        return cls(id=f"api::{key}", name=key)

    @classmethod
    def of_run(cls, run: str, stack: str) -> Actor:
        """What goes on inside of a run: it may read what concerns its stack."""
        return cls(id=f"run::{run}", name=run, stack=stack)
