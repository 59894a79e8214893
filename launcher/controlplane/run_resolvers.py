"""The GraphQL fields that create runs and decide about them."""

# ruff: noqa: A002, ARG001, N803 (arguments are those of the API)

from __future__ import annotations

from launcher.controlplane.errors import NotFound, RequestRefused
from launcher.controlplane.new_runs import Order
from launcher.controlplane.queries import created
from launcher.controlplane.resolving import (
    Call,
    Info,
    Node,
    mutation,
    run_type,
    signed_in,
)
from launcher.wire.jobs import RunType


BINDABLES = ()


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
    externalDependencies: list[str] | None = None,
) -> Node:
    call, actor = signed_in(info)
    if forceApply is not None:
        raise RequestRefused("forceApply is not supported")
    run = await call.lanes.people.run(
        call.plane.runs.trigger,
        stack,
        actor,
        run_type=RunType(runType or "TRACKED"),
        sha=commitSha or "",
        metadata=call.metadata(),
        runtime_config=(runtimeConfig or {}).get("yaml") or "",
        external=externalDependencies or (),
    )
    return created(run)


@mutation.field("taskCreate")
async def task_create(
    _: object,
    info: Info,
    *,
    stack: str,
    command: str,
    skipInitialization: bool | None = None,
) -> Node:
    call, actor = signed_in(info)
    order = Order(
        type=RunType.TASK,
        command=command,
        skip_init=bool(skipInitialization),
        metadata=call.metadata(),
    )
    return created(
        await call.lanes.people.run(call.plane.runs.order, stack, actor, order)
    )


@mutation.field("runRetry")
async def run_retry(_: object, info: Info, *, stack: str, run: str) -> Node:
    call, actor = signed_in(info)
    return created(
        await call.lanes.people.run(call.plane.runs.retry, stack, run, actor)
    )


@mutation.field("runPromote")
async def run_promote(_: object, info: Info, *, stack: str, run: str) -> Node:
    call, actor = signed_in(info)
    return created(
        await call.lanes.people.run(call.plane.runs.promote, stack, run, actor)
    )


@mutation.field("runConfirm")
async def run_confirm(_: object, info: Info, *, stack: str, run: str) -> Node:
    call, actor = signed_in(info)
    await call.lanes.people.run(
        call.plane.runs.confirm, stack, run, actor, metadata=call.metadata()
    )
    return await shown(call, stack, run)


@mutation.field("runDiscard")
async def run_discard(_: object, info: Info, *, stack: str, run: str) -> Node:
    call, actor = signed_in(info)
    await call.lanes.people.run(call.plane.runs.discard, stack, run, actor)
    return await shown(call, stack, run)


@mutation.field("runCancel")
async def run_cancel(_: object, info: Info, *, stack: str, run: str) -> Node:
    call, actor = signed_in(info)
    await call.lanes.people.run(call.plane.runs.cancel, stack, run, actor)
    return await shown(call, stack, run)


@mutation.field("runStop")
async def run_stop(
    _: object,
    info: Info,
    *,
    stack: str,
    run: str,
    note: str | None = None,
) -> Node:
    call, actor = signed_in(info)
    await call.lanes.people.run(
        call.plane.runs.stop, stack, run, actor, note=note or ""
    )
    return await shown(call, stack, run)


@mutation.field("runTargetedReplan")
async def run_targeted_replan(
    _: object, info: Info, *, stack: str, run: str, targets: list[str]
) -> Node:
    call, actor = signed_in(info)
    await call.lanes.people.run(call.plane.runs.replan, stack, run, actor, targets)
    return await shown(call, stack, run)


@mutation.field("runPrioritizeSet")
async def run_prioritize_set(
    _: object, info: Info, *, stack: str, run: str, prioritize: bool
) -> Node:
    call, actor = signed_in(info)
    await call.lanes.people.run(
        call.plane.runs.prioritize, stack, run, actor, prioritized=prioritize
    )
    return await shown(call, stack, run)


@mutation.field("runExternalDependencyMarkAsCompleted")
async def run_external_dependency_mark_as_completed(
    _: object, info: Info, *, dependency: str, status: str
) -> Node:
    call, actor = signed_in(info)
    await call.lanes.people.run(
        call.plane.external_dependencies.complete, dependency, status, actor
    )
    return {"phantom": True}


@run_type.field("changesV3")
async def run_changes(parent: Node, info: Info, *, input: Node) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.queries.changes, parent["id"])


async def shown(call: Call, stack: str, run: str) -> Node:
    """A run, as the answer to what has been done with it."""
    node = await call.lanes.people.run(call.plane.queries.run, stack, run)
    if node is None:
        raise NotFound(f"run {run!r} of stack {stack!r} was not found")
    return node
