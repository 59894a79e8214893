"""The GraphQL fields about worker pools, and the audit trail."""

# ruff: noqa: A002, ARG001, N803 (arguments are those of the API)

from __future__ import annotations

from ariadne import ObjectType

from launcher.controlplane.errors import NotFound
from launcher.controlplane.paging import asked_for
from launcher.controlplane.resolving import Info, Node, mutation, query, signed_in


pool_type = ObjectType("WorkerPool")
public_pool_type = ObjectType("PublicWorkerPool")
BINDABLES = (pool_type, public_pool_type)


@query.field("workerPools")
async def worker_pools(_: object, info: Info) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.queries.pools)


@query.field("workerPool")
async def worker_pool(_: object, info: Info, *, id: str) -> Node | None:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.queries.pool, id)


@query.field("publicWorkerPool")
async def public_worker_pool(_: object, info: Info) -> Node:
    signed_in(info)
    return {"id": None}


@pool_type.field("searchSchedulableRuns")
async def search_schedulable_runs(parent: Node, info: Info, *, input: Node) -> Node:
    call, _actor = signed_in(info)
    page = asked_for(input)
    return await call.lanes.people.run(call.plane.queue_view.search, parent["id"], page)


@public_pool_type.field("searchSchedulableRuns")
async def no_schedulable_runs(parent: Node, info: Info, *, input: Node) -> Node:
    signed_in(info)
    return asked_for(input).shown([], more=False)


@mutation.field("workerDrainSet")
async def worker_drain_set(
    _: object, info: Info, *, workerPool: str, id: str, drain: bool
) -> Node:
    call, actor = signed_in(info)
    await call.lanes.people.run(
        call.plane.worker_admin.drain, workerPool, id, actor, drained=drain
    )
    pool = await call.lanes.people.run(call.plane.queries.pool, workerPool)
    for worker in pool["workers"] if pool else ():
        if worker["id"] == id:
            return dict(worker)
    raise NotFound(f"worker {id!r} of pool {workerPool!r} is gone")


@mutation.field("workerPoolCycle")
async def worker_pool_cycle(_: object, info: Info, *, id: str) -> bool:
    call, actor = signed_in(info)
    await call.lanes.people.run(call.plane.worker_admin.cycle, id, actor)
    return True


@query.field("searchAuditTrailEntries")
async def search_audit_trail_entries(_: object, info: Info, *, input: Node) -> Node:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.audit_trail.search, asked_for(input))
