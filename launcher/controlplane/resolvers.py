"""
The GraphQL fields, each a few lines: check who asks, call a service, name things.

Whatever blocks runs in a thread; waiting for log does not, because many may
wait.  Every root field but two needs a signed-in caller, and the two are listed
here: a field that is added later is closed until somebody opens it.
"""

# ruff: noqa: A002, N803 (arguments are called as the API calls them)

from __future__ import annotations

import time

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ariadne import MutationType, ObjectType, QueryType, UnionType
from graphql import GraphQLResolveInfo, get_argument_values

from launcher.controlplane import bell
from launcher.controlplane.actors import Actor
from launcher.controlplane.auth import SignIn
from launcher.controlplane.bell import Bell
from launcher.controlplane.errors import NotFound, RequestRefused, Unauthorized
from launcher.controlplane.lanes import Lanes
from launcher.controlplane.queries import PAGE, Node, Queries, Search
from launcher.controlplane.run_logs import LogPage
from launcher.controlplane.runs import Runs
from launcher.wire.jobs import RunState, RunType


OPEN_TO_STRANGERS = frozenset({"viewer", "apiKeyUser"})
OPEN_TO_RUNS = {"viewer": None, "stack": "id", "runStack": None}
"""What a run may ask, and by which argument it says that this is about its stack."""
LOG_WAIT_SECONDS = 20.0
"""How long a request for log is held, at most; spacectl gives up after 60 s."""
LOOK_AGAIN_SECONDS = 5.0

Info = GraphQLResolveInfo[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What resolvers call."""

    sign_in: SignIn
    queries: Queries
    runs: Runs
    bell: Bell
    lanes: Lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One GraphQL request: the context of all its resolvers."""

    services: Services
    actor: Actor | None
    metadata: Callable[[], str | None]
    """The request's run metadata; raises RequestRefused when it is unfit."""


query = QueryType()
mutation = MutationType()
stack_type = ObjectType("Stack")
run_type = ObjectType("Run")
vendor_type = UnionType("StackConfigVendor", lambda value, *_: value["__typename"])
BINDABLES = (query, mutation, stack_type, run_type, vendor_type)


def _call(info: Info) -> Call:
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


def _signed_in(info: Info) -> tuple[Services, Actor]:
    call = _call(info)
    if call.actor is None:
        raise Unauthorized
    return call.services, call.actor


# -- session ------------------------------------------------------------------


@mutation.field("apiKeyUser")
async def api_key_user(
    _: object,
    info: Info,
    *,
    id: str,
    secret: str,
) -> Node:
    session = await _call(info).services.lanes.sign_in.run(
        _call(info).services.sign_in.exchange, id, secret
    )
    return {"jwt": session.token, "validUntil": session.valid_until}


@query.field("viewer")
async def viewer(_: object, info: Info) -> Node | None:
    actor = _call(info).actor
    return None if actor is None else {"id": actor.id, "name": actor.name}


@query.field("debugInfo")
async def debug_info(_: object, info: Info) -> Node:
    _signed_in(info)
    return {"selfHostedVersion": ""}


# -- reading ------------------------------------------------------------------


@query.field("stack")
async def stack(_: object, info: Info, *, id: str) -> Node | None:
    services, _actor = _signed_in(info)
    return await services.lanes.people.run(services.queries.stack, id)


@query.field("stacks")
async def stacks(_: object, info: Info) -> list[Node]:
    services, _actor = _signed_in(info)
    return await services.lanes.people.run(services.queries.stacks)


@query.field("runStack")
async def run_stack(_: object, info: Info, *, runId: str) -> Node:
    services, actor = _signed_in(info)
    found = await services.lanes.people.run(services.queries.stack_of_run, runId)
    if actor.stack not in ("", found["id"]):
        raise Unauthorized
    return found


@query.field("searchStacks")
async def search_stacks(
    _: object,
    info: Info,
    *,
    input: dict[str, Any],
) -> Node:
    services, _actor = _signed_in(info)
    search = Search(
        first=input.get("first") or PAGE,
        after=input.get("after"),
        text=input.get("fullTextSearch"),
        predicates=input.get("predicates") or (),
    )
    return await services.lanes.people.run(services.queries.search, search)


@query.field("workerPools")
async def worker_pools(_: object, info: Info) -> list[Node]:
    services, _actor = _signed_in(info)
    return await services.lanes.people.run(services.queries.pools)


@query.field("workerPool")
async def worker_pool(_: object, info: Info, *, id: str) -> Node | None:
    services, _actor = _signed_in(info)
    return await services.lanes.people.run(services.queries.pool, id)


@stack_type.field("run")
async def stack_run(
    parent: Node,
    info: Info,
    *,
    id: str,
) -> Node | None:
    services, _actor = _signed_in(info)
    return await services.lanes.people.run(services.queries.run, parent["id"], id)


@stack_type.field("runs")
async def stack_runs(
    parent: Node, info: Info, *, before: str | None = None
) -> list[Node]:
    services, _actor = _signed_in(info)
    return await services.lanes.people.run(
        services.queries.runs, parent["id"], RunType.TRACKED, before
    )


@stack_type.field("proposedRuns")
async def stack_proposed_runs(
    parent: Node, info: Info, *, before: str | None = None
) -> list[Node]:
    services, _actor = _signed_in(info)
    return await services.lanes.people.run(
        services.queries.runs, parent["id"], RunType.PROPOSED, before
    )


@run_type.field("history")
async def run_history(parent: Node, info: Info) -> list[Node]:
    services, _actor = _signed_in(info)
    return await services.lanes.people.run(services.queries.history, parent["id"])


@run_type.field("logs")
async def run_logs(
    parent: Node,
    info: Info,
    *,
    state: str,
    token: str | None = None,
    stateVersion: int | None = None,
) -> Node | None:
    services, _actor = _signed_in(info)
    if state not in RunState.__members__:
        return None
    until = time.monotonic() + LOG_WAIT_SECONDS
    with services.bell.listening(bell.of_run(parent["id"])) as ears:
        while True:
            page = await services.lanes.people.run(
                services.queries.logs,
                parent["id"],
                RunState(state),
                stateVersion,
                token,
            )
            left = until - time.monotonic()
            if page is None:
                return None
            if not page.waiting or left <= 0 or services.bell.closed:
                return _log_node(page)
            await ears.wait(min(left, LOOK_AGAIN_SECONDS))


def _log_node(page: LogPage) -> Node:
    return {
        "exists": page.exists,
        "finished": page.finished,
        # Not finished means that asking at once is right: we do the waiting.
        "hasMore": not page.finished,
        "messages": [{"message": page.text}] if page.text else [],
        "nextToken": page.next_token,
    }


# -- runs ---------------------------------------------------------------------


@mutation.field("runTrigger")
async def run_trigger(
    _: object,
    info: Info,
    *,
    stack: str,
    commitSha: str | None = None,
    runType: str | None = None,
    runtimeConfig: Node | None = None,
    forceApply: str | None = None,
) -> Node:
    services, actor = _signed_in(info)
    if forceApply is not None:
        raise RequestRefused("forceApply is not supported")
    run = await services.lanes.people.run(
        services.runs.trigger,
        stack,
        actor,
        run_type=RunType(runType or "TRACKED"),
        sha=commitSha or "",
        metadata=_call(info).metadata(),
        runtime_config=(runtimeConfig or {}).get("yaml") or "",
    )
    return await _shown(services, stack, run)


@mutation.field("runConfirm")
async def run_confirm(_: object, info: Info, *, stack: str, run: str) -> Node:
    services, actor = _signed_in(info)
    await services.lanes.people.run(
        services.runs.confirm, stack, run, actor, metadata=_call(info).metadata()
    )
    return await _shown(services, stack, run)


@mutation.field("runDiscard")
async def run_discard(_: object, info: Info, *, stack: str, run: str) -> Node:
    services, actor = _signed_in(info)
    await services.lanes.people.run(services.runs.discard, stack, run, actor)
    return await _shown(services, stack, run)


@mutation.field("runCancel")
async def run_cancel(_: object, info: Info, *, stack: str, run: str) -> Node:
    services, actor = _signed_in(info)
    await services.lanes.people.run(services.runs.cancel, stack, run, actor)
    return await _shown(services, stack, run)


@mutation.field("runStop")
async def run_stop(
    _: object,
    info: Info,
    *,
    stack: str,
    run: str,
    note: str | None = None,
) -> Node:
    services, actor = _signed_in(info)
    await services.lanes.people.run(
        services.runs.stop, stack, run, actor, note=note or ""
    )
    return await _shown(services, stack, run)


async def _shown(services: Services, stack: str, run: str) -> Node:
    node = await services.lanes.people.run(services.queries.run, stack, run)
    if node is None:
        raise NotFound(f"run {run!r} of stack {stack!r} was not found")
    return node
