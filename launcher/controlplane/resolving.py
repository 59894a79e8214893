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
from graphql import GraphQLResolveInfo, get_argument_values

from launcher.controlplane.actors import Actor
from launcher.controlplane.bell import Bell
from launcher.controlplane.errors import Unauthorized
from launcher.controlplane.lanes import Lanes
from launcher.controlplane.services import ControlPlane


OPEN_TO_STRANGERS = frozenset({"viewer", "apiKeyUser", "oauthUser"})

OPEN_TO_RUNS = {"viewer": None, "stack": "id", "runStack": None}
"""What a run may ask, and by which argument it says that this is about its stack."""

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
    if call.actor is not None and call.actor.stack and info.path.prev is None:
        _require_own(info, call.actor.stack)
    return call


def _require_own(info: Info, stack: str) -> None:
    """Let a run read about its own stack, and nothing else."""
    if info.field_name not in OPEN_TO_RUNS:
        raise Unauthorized
    argument = OPEN_TO_RUNS[info.field_name]
    if argument is None:
        return
    field = info.parent_type.fields[info.field_name]
    given = get_argument_values(field, info.field_nodes[0], info.variable_values)
    if given.get(argument) != stack:
        raise Unauthorized


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
