"""
GraphQL over HTTP, as spacectl expects it.

The status is 200 whenever there is a GraphQL answer, errors included; only the
first error's message is ever read.  Our own refusals say what is wrong; any
other exception is "internal error" outside and a traceback in the log.
"""

from __future__ import annotations

import functools
import math

from importlib import resources
from typing import Any

import msgspec
import structlog

from ariadne import make_executable_schema
from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    SelectionSetNode,
    execute,
    parse,
    validate,
)
from starlette.requests import Request
from starlette.responses import Response

from launcher.controlplane.actors import Actor
from launcher.controlplane.errors import RequestRefused
from launcher.controlplane.lanes import Lanes
from launcher.controlplane.rates import Rates
from launcher.controlplane.resolvers import BINDABLES
from launcher.controlplane.resolving import OPEN_TO_STRANGERS, Call, guard
from launcher.controlplane.services import ControlPlane


log = structlog.get_logger()

METADATA_HEADER = b"spacelift-user-provided-run-metadata"
MAX_BODY = 4 << 20
"""Room for a mounted file in base64."""
MAX_STRANGE_BODY = 64 << 10
"""Of who is not signed in."""
PER_SECOND = 200.0
"""Requests of one caller, or of one address that nobody has signed in from."""
BURST = 1000.0
MAX_TOKENS = 4000
MAX_DEPTH = 20
"""The introspection query of GraphQL's own tools is 15 deep."""


class _Request(msgspec.Struct):
    query: str
    variables: dict[str, Any] | None = None
    operationName: str | None = None  # noqa: N815


@functools.cache
def schema() -> GraphQLSchema:
    """Our schema, with everything bound to it."""
    text = resources.files(__package__).joinpath("schema.graphql").read_text("utf-8")
    return guard(make_executable_schema(text, *BINDABLES))


class GraphQL:
    """The endpoint ``/graphql``."""

    def __init__(self, plane: ControlPlane, lanes: Lanes) -> None:
        self._plane = plane
        self._lanes = lanes
        self._people = Rates(per_second=PER_SECOND, burst=BURST)
        self._strangers = Rates(per_second=PER_SECOND, burst=BURST)

    async def post(self, request: Request) -> Response:
        actor = await self._actor(request)
        address = request.client.host if request.client else ""
        rates = self._strangers if actor is None else self._people
        wait = rates.wait_of(address if actor is None else actor.id)
        if wait:
            answer = _answer(_failed("too many requests; try again later"), 429)
            answer.headers["Retry-After"] = str(math.ceil(wait))
            return answer
        limit = MAX_STRANGE_BODY if actor is None else MAX_BODY
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                return _answer(_failed(f"a request has at most {limit} bytes"), 413)
        try:
            asked = msgspec.json.decode(body, type=_Request)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            return _answer(_failed(f"not a GraphQL request: {exc}"), 400)
        call = Call(
            plane=self._plane,
            lanes=self._lanes,
            actor=actor,
            metadata=functools.partial(_metadata, request),
        )
        return _answer(await _executed(asked, call))

    async def _actor(self, request: Request) -> Actor | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return None
        return await self._lanes.people.run(self._plane.sign_in.actor, token)


@functools.lru_cache(maxsize=256)
def _understood(text: str) -> DocumentNode:
    """
    The document in *text*, which fits our schema.

    Clients send the same few documents all the time.
    """
    try:
        document = parse(text, max_tokens=MAX_TOKENS)
        _check_depth(document)
        errors = validate(schema(), document, max_errors=5)
    except RecursionError:
        raise GraphQLError("the document is nested too deep") from None
    if errors:
        raise errors[0]
    return document


async def _executed(asked: _Request, call: Call) -> dict[str, Any]:
    try:
        document = _understood(asked.query)
    except GraphQLError as exc:
        # What strangers get wrong must not teach them the schema.
        return _failed(exc.message if call.actor else "unauthorized")
    if call.actor is None and not _is_for_strangers(document):
        return _failed("unauthorized")
    result = execute(
        schema(),
        document,
        context_value=call,
        variable_values=asked.variables,
        operation_name=asked.operationName,
    )
    if not isinstance(result, ExecutionResult):
        result = await result
    if result.errors:
        return {
            "data": result.data,
            "errors": [_formatted(error) for error in result.errors],
        }
    return {"data": result.data}


def _formatted(error: GraphQLError) -> dict[str, Any]:
    cause = error.original_error
    message = error.message
    if isinstance(cause, RequestRefused):
        message = str(cause)
    elif cause is not None and not isinstance(cause, GraphQLError):
        log.error("resolver.crashed", path=error.path, exc_info=cause)
        message = "internal error"
    return {"message": message, "path": error.path}


def _failed(message: str) -> dict[str, Any]:
    return {"data": None, "errors": [{"message": message}]}


def _answer(content: dict[str, Any], status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(content),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _metadata(request: Request) -> str | None:
    """What the user says about this interaction; the header's bytes are UTF-8."""
    values = [value for name, value in request.headers.raw if name == METADATA_HEADER]
    if not values:
        return None
    try:
        return values[0].decode()
    except UnicodeDecodeError:
        raise RequestRefused("run metadata must be UTF-8 text") from None


def _is_for_strangers(document: DocumentNode) -> bool:
    """One operation with one field: no batch of passwords to try."""
    match document.definitions:
        case [
            OperationDefinitionNode(
                selection_set=SelectionSetNode(selections=[FieldNode(name=name)])
            )
        ]:
            return name.value in OPEN_TO_STRANGERS
        case _:
            return False


def _check_depth(document: DocumentNode) -> None:
    fragments = {
        definition.name.value: definition.selection_set
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    }
    depths: dict[str, int] = {}

    def of_fragment(name: str) -> int:
        # A fragment that contains itself meets the mark left here.
        if name not in depths:
            depths[name] = MAX_DEPTH + 1
            depths[name] = of(fragments.get(name))
        return depths[name]

    def of(selection_set: SelectionSetNode | None) -> int:
        if selection_set is None:
            return 0
        return 1 + max(
            (
                of_fragment(selection.name.value)
                if isinstance(selection, FragmentSpreadNode)
                else of(getattr(selection, "selection_set", None))
                for selection in selection_set.selections
            ),
            default=0,
        )

    for definition in document.definitions:
        if of(getattr(definition, "selection_set", None)) > MAX_DEPTH:
            raise GraphQLError(f"a document is at most {MAX_DEPTH} deep")
