"""The GraphQL fields about what a stack has, and those that change stacks."""

# ruff: noqa: A002, N803 (arguments are called as the API calls them)

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from launcher.controlplane.errors import NotFound, RequestRefused
from launcher.controlplane.new_runs import Order
from launcher.controlplane.queries import created
from launcher.controlplane.resolving import (
    Call,
    Info,
    Node,
    mutation,
    signed_in,
    stack_type,
)
from launcher.controlplane.stack_admin import StackAdmin
from launcher.controlplane.stack_config import Element, decoded_file
from launcher.wire.jobs import RunType


BINDABLES = ()


@stack_type.field("outputs")
async def stack_outputs(parent: Node, info: Info) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.products.outputs, parent["id"])


@stack_type.field("entities")
async def stack_entities(parent: Node, info: Info) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(
        call.plane.products.resources, parent["id"], parent["vendor"]
    )


@stack_type.field("dependsOn")
async def stack_depends_on(parent: Node, info: Info) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(
        call.plane.queries.dependencies, parent["id"], on=True
    )


@stack_type.field("isDependedOnBy")
async def stack_is_depended_on_by(parent: Node, info: Info) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(
        call.plane.queries.dependencies, parent["id"], on=False
    )


@mutation.field("stackLock")
async def stack_lock(
    _: object, info: Info, *, id: str, note: str | None = None
) -> Node:
    return await _changed(info, id, StackAdmin.lock, note=note or "")


@mutation.field("stackUnlock")
async def stack_unlock(_: object, info: Info, *, id: str) -> Node:
    return await _changed(info, id, StackAdmin.unlock)


@mutation.field("stackEnable")
async def stack_enable(_: object, info: Info, *, id: str) -> Node:
    return await _changed(info, id, StackAdmin.enable)


@mutation.field("stackDisable")
async def stack_disable(_: object, info: Info, *, id: str) -> Node:
    return await _changed(info, id, StackAdmin.disable)


@mutation.field("stackDelete")
async def stack_delete(
    _: object, info: Info, *, id: str, destroyResources: bool | None = None
) -> Node:
    call, actor = signed_in(info)
    # Afterwards there may be nothing left to show.
    before = await _stack(call, id)
    await call.lanes.people.run(
        call.plane.stack_admin.delete, id, actor, destroy=bool(destroyResources)
    )
    return before


@mutation.field("stackSetCurrentCommit")
async def stack_set_current_commit(_: object, info: Info, *, id: str, sha: str) -> Node:
    return await _changed(info, id, StackAdmin.pin, sha)


@mutation.field("stackSyncCommit")
async def stack_sync_commit(_: object, info: Info, *, id: str) -> Node:
    return await _changed(info, id, StackAdmin.unpin)


@mutation.field("stackConfigAdd")
async def stack_config_add(_: object, info: Info, *, stack: str, config: Node) -> Node:
    call, actor = signed_in(info)
    file = config["type"] == "FILE_MOUNT"
    value = config["value"]
    element = Element(
        name=config["id"],
        file=file,
        secret=config["writeOnly"],
        content=decoded_file(value) if file else value.encode(),
    )
    await call.lanes.people.run(call.plane.stack_config.add, stack, actor, element)
    return element_node(element)


@mutation.field("stackConfigDelete")
async def stack_config_delete(
    _: object, info: Info, *, stack: str, id: str
) -> Node | None:
    call, actor = signed_in(info)
    gone = await call.lanes.people.run(call.plane.stack_config.delete, stack, actor, id)
    return None if gone is None else element_node(gone)


@mutation.field("stateDownloadUrl")
async def state_download_url(_: object, info: Info, *, input: Node) -> Node:
    call, _actor = signed_in(info)
    await _stack(call, input["stackId"])
    raise RequestRefused("the state of this stack is not kept here but in its backend")


@mutation.field("uploadLocalWorkspace")
async def upload_local_workspace(_: object, info: Info, *, stack: str) -> Node:
    call, actor = signed_in(info)
    slot = await call.lanes.people.run(call.plane.local_workspaces.open, stack, actor)
    return {"id": slot.id, "uploadUrl": slot.url, "uploadHeaders": {"entries": []}}


@mutation.field("runProposeLocalWorkspace")
async def run_propose_local_workspace(
    _: object,
    info: Info,
    *,
    stack: str,
    workspace: str,
    environmentVarsOverrides: list[Node] | None = None,
) -> Node:
    call, actor = signed_in(info)
    overrides = {each["key"]: each["value"] for each in environmentVarsOverrides or ()}
    prepared = await call.lanes.people.run(
        call.plane.local_workspaces.use, stack, workspace, actor, overrides
    )
    order = Order(
        type=RunType.PROPOSED,
        local_workspace=workspace,
        overrides=prepared,
        metadata=call.metadata(),
    )
    return created(
        await call.lanes.people.run(call.plane.runs.order, stack, actor, order)
    )


def element_node(element: Element) -> Node:
    """What was set or taken away; a secret is not repeated."""
    shown_as = None
    if not element.secret and not element.file:
        shown_as = element.content.decode()
    return {
        "id": element.name,
        "checksum": "",
        "createdAt": None,
        "runtime": False,
        "type": "FILE_MOUNT" if element.file else "ENVIRONMENT_VARIABLE",
        "value": shown_as,
        "writeOnly": element.secret,
    }


async def _changed(
    info: Info,
    stack: str,
    change: Callable[..., None],
    *given: str,
    **named: str,
) -> Node:
    call, actor = signed_in(info)
    admin = call.plane.stack_admin
    await call.lanes.people.run(partial(change, admin, stack, actor, *given, **named))
    return await _stack(call, stack)


async def _stack(call: Call, stack: str) -> Node:
    node = await call.lanes.people.run(call.plane.queries.stack, stack)
    if node is None:
        raise NotFound(f"stack {stack!r} was not found")
    return node
