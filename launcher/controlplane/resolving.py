"""
What all resolvers share: who asks, what they call, and the objects fields belong to.

Every root field but those listed here needs a signed-in caller: a field that is
added later is closed until somebody opens it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ariadne import MutationType, ObjectType, QueryType
from graphql import GraphQLResolveInfo

from launcher.controlplane.actors import Actor
from launcher.controlplane.bell import Bell
from launcher.controlplane.errors import Unauthorized
from launcher.controlplane.lanes import Lanes
from launcher.controlplane.services import ControlPlane


OPEN_TO_STRANGERS = frozenset({"viewer", "apiKeyUser", "oauthUser"})

Info = GraphQLResolveInfo[Any]
Node = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One GraphQL request: the context of all its resolvers."""

    plane: ControlPlane
    lanes: Lanes
    actor: Actor | None
    metadata: Callable[[], str | None]
    """The request's run metadata; raises RequestRefused when it is unfit."""

    @property
    def bell(self) -> Bell:
        return self.plane.bell


query = QueryType()
mutation = MutationType()
stack_type = ObjectType("Stack")
run_type = ObjectType("Run")


def call_of(info: Info) -> Call:
    """The request that a field is asked for in."""
    call: Call = info.context
    if call.actor is None and info.field_name not in OPEN_TO_STRANGERS:
        raise Unauthorized
    return call


def signed_in(info: Info) -> tuple[Call, Actor]:
    """
    The request, and who has sent it.

    Raises:
        Unauthorized: nobody knows.
    """
    call = call_of(info)
    if call.actor is None:
        raise Unauthorized
    return call, call.actor
