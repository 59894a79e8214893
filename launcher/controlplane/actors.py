"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.controlplane.roles import Role, needed


@dataclass(frozen=True, slots=True)
class Actor:
    """A signed-in caller of the GraphQL API."""

    id: str
    name: str
    role: Role
    stack: str = ""
    """The only stack whose affairs are the caller's; empty: all of them."""

    @classmethod
    def of_api_key(cls, key: str, role: Role = Role.READER) -> Actor:
        return cls(id=f"api::{key}", name=key, role=role)

    @classmethod
    def of_run(cls, run: str, stack: str) -> Actor:
        """What goes on inside of a run: it may read what concerns its stack."""
        return cls(id=f"run::{run}", name=run, role=Role.READER, stack=stack)

    def may(self, what: str) -> bool:
        """Whether the role allows *what*, a field of GraphQL's roots."""
        return self.role.covers(needed(what))
