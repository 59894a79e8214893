"""
What all resolvers share: who asks, what they call, and the objects fields belong to.

Whoever asks for a root field is checked before its resolver is called: a field that
is added later is closed to all but administrators until somebody opens it.
"""

from __future__ import annotations

import inspect

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ariadne import MutationType, ObjectType, QueryType
from graphql import (
    GraphQLFieldResolver,
    GraphQLResolveInfo,
    GraphQLSchema,
    default_field_resolver,
    get_argument_values,
)

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


def guard(schema: GraphQLSchema) -> GraphQLSchema:
    """Let everybody do with *schema* what they may, and no more."""
    for root in (schema.query_type, schema.mutation_type):
        for name, field in root.fields.items() if root else ():
            field.resolve = _guarded(name, field.resolve or default_field_resolver)
    return schema


def _guarded(name: str, resolve: GraphQLFieldResolver) -> GraphQLFieldResolver:
    async def checked(parent: object, info: Info, **given: object) -> object:
        call = call_of(info)
        if call.actor is not None:
            if call.actor.stack:
                _require_own(info, call.actor.stack)
            elif name not in OPEN_TO_STRANGERS and not call.actor.may(name):
                await call.lanes.people.run(
                    call.plane.refusals.refuse, call.actor, name
                )
        elif name not in OPEN_TO_STRANGERS:
            raise Unauthorized
        answer = resolve(parent, info, **given)
        return await answer if inspect.isawaitable(answer) else answer

    return checked


def call_of(info: Info) -> Call:
    """The request that a field is asked for in."""
    call: Call = info.context
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
