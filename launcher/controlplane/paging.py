"""One page of a list, as GraphQL asks for it and gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


Node = dict[str, Any]

PAGE = 50
MAX_PAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    size: int = PAGE
    after: str | None = None
    """The cursor of the page before; each kind of list has its own."""
    text: str = ""
    """What to look for, in any case; empty: everything."""
    predicates: Sequence[Node] = ()
    newest_first: bool = True

    def shown(self, found: Sequence[tuple[str, Node]], *, more: bool) -> Node:
        """The page with *found*, each with its cursor; *more* follow it, or not."""
        return {
            "edges": [{"node": node} for _, node in found],
            "pageInfo": {
                "endCursor": found[-1][0] if found else self.after or "",
                "hasNextPage": more,
                "hasPreviousPage": self.after is not None,
            },
        }


def asked_for(given: Node) -> Page:
    """The page that a ``SearchInput`` asks for, of a size that we give."""
    order = given.get("orderBy") or {}
    return Page(
        size=min(max(given.get("first") or PAGE, 1), MAX_PAGE),
        after=given.get("after"),
        text=given.get("fullTextSearch") or "",
        predicates=given.get("predicates") or (),
        newest_first=order.get("direction", "DESC") == "DESC",
    )
