"""
The GraphQL fields, each a few lines: check who asks, call a service, name things.

Here are those for signing in and for looking at stacks and runs; what changes them
is in `run_resolvers` and `stack_resolvers`.  Whatever blocks runs in a thread;
waiting for log does not, because many may wait.
"""

# ruff: noqa: A002, ARG001, N803 (arguments are those of the API)

from __future__ import annotations

import time

from typing import Any

from ariadne import ObjectType, UnionType

from launcher.controlplane import (
    bell,
    policy_resolvers,
    pool_resolvers,
    run_resolvers,
    stack_resolvers,
)
from launcher.controlplane.errors import RequestRefused, Unauthorized
from launcher.controlplane.paging import asked_for
from launcher.controlplane.queries import Node
from launcher.controlplane.resolving import (
    Info,
    call_of,
    mutation,
    query,
    run_type,
    signed_in,
    stack_type,
)
from launcher.controlplane.roles import Role
from launcher.controlplane.run_logs import LogPage
from launcher.wire.jobs import RunState, RunType


LOG_WAIT_SECONDS = 20.0
"""How long a request for log is held, at most; spacectl gives up after 60 s."""
LOOK_AGAIN_SECONDS = 5.0

_ACCESS = {Role.READER: "READ", Role.WRITER: "WRITE", Role.ADMIN: "ADMIN"}

space_type = ObjectType("SpaceRef")
_UNIONS = tuple(
    UnionType(name, lambda value, *_: value["__typename"])
    for name in (
        "StackConfigVendor",
        "EntityVendor",
        "AnsibleEntity",
        "CloudFormationEntity",
        "KubernetesEntity",
        "PulumiEntity",
        "TerraformEntity",
    )
)
BINDABLES = (
    query,
    mutation,
    stack_type,
    run_type,
    space_type,
    *policy_resolvers.BINDABLES,
    *pool_resolvers.BINDABLES,
    *run_resolvers.BINDABLES,
    *stack_resolvers.BINDABLES,
    *_UNIONS,
)


# -- session ------------------------------------------------------------------


@mutation.field("apiKeyUser")
async def api_key_user(
    _: object,
    info: Info,
    *,
    id: str,
    secret: str,
) -> Node:
    call = call_of(info)
    session = await call.lanes.sign_in.run(call.plane.sign_in.exchange, id, secret)
    return {"jwt": session.token, "validUntil": session.valid_until}


@mutation.field("oauthUser")
async def oauth_user(_: object, _info: Info, *, token: str) -> Node:
    raise RequestRefused(
        "signing in with a GitHub token is not available here: use an API key, or"
        " `spacectl profile login` with a browser"
    )


@query.field("viewer")
async def viewer(_: object, info: Info) -> Node | None:
    actor = call_of(info).actor
    if actor is None:
        return None
    return {"id": actor.id, "name": actor.name, "role": actor.role.name}


@query.field("debugInfo")
async def debug_info(_: object, info: Info) -> Node:
    signed_in(info)
    return {"selfHostedVersion": ""}


# -- reading ------------------------------------------------------------------


@query.field("stack")
async def stack(_: object, info: Info, *, id: str) -> Node | None:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.queries.stack, id)


@query.field("stacks")
async def stacks(_: object, info: Info) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.queries.stacks)


@query.field("runStack")
async def run_stack(_: object, info: Info, *, runId: str) -> Node:
    call, actor = signed_in(info)
    found = await call.lanes.people.run(call.plane.queries.stack_of_run, runId)
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
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.queries.search, asked_for(input))


@stack_type.field("canWrite")
async def stack_can_write(_: object, info: Info) -> bool:
    _call, actor = signed_in(info)
    return actor.role.covers(Role.WRITER)


@space_type.field("accessLevel")
async def space_access_level(_: object, info: Info) -> str:
    _call, actor = signed_in(info)
    return _ACCESS[actor.role]


@stack_type.field("run")
async def stack_run(
    parent: Node,
    info: Info,
    *,
    id: str,
) -> Node | None:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.queries.run, parent["id"], id)


@stack_type.field("runs")
async def stack_runs(
    parent: Node, info: Info, *, before: str | None = None
) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(
        call.plane.queries.runs, parent["id"], RunType.TRACKED, before
    )


@stack_type.field("proposedRuns")
async def stack_proposed_runs(
    parent: Node, info: Info, *, before: str | None = None
) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(
        call.plane.queries.runs, parent["id"], RunType.PROPOSED, before
    )


@stack_type.field("tasks")
async def stack_tasks(
    parent: Node, info: Info, *, before: str | None = None
) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(
        call.plane.queries.runs, parent["id"], RunType.TASK, before
    )


@run_type.field("history")
async def run_history(parent: Node, info: Info) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.queries.history, parent["id"])


@run_type.field("logs")
async def run_logs(
    parent: Node,
    info: Info,
    *,
    state: str,
    token: str | None = None,
    stateVersion: int | None = None,
) -> Node | None:
    call, _actor = signed_in(info)
    if state not in RunState.__members__:
        return None
    until = time.monotonic() + LOG_WAIT_SECONDS
    with call.bell.listening(bell.of_run(parent["id"])) as ears:
        while True:
            page = await call.lanes.people.run(
                call.plane.queries.logs,
                parent["id"],
                RunState(state),
                stateVersion,
                token,
            )
            left = until - time.monotonic()
            if page is None:
                return None
            if not page.waiting or left <= 0 or call.bell.closed:
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
