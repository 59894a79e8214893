"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """A signed-in caller of the GraphQL API."""

    id: str
    name: str

    @classmethod
    def of_api_key(cls, key: str) -> Actor:
        return cls(id=f"api::{key}", name=key)
