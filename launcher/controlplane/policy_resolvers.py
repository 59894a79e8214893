"""The GraphQL fields about policies and reviews."""

# ruff: noqa: A002 (arguments are called as the API calls them)

from __future__ import annotations

from ariadne import ObjectType

from launcher.controlplane.paging import asked_for
from launcher.controlplane.resolving import Info, Node, mutation, query, signed_in


policy_type = ObjectType("Policy")
BINDABLES = (policy_type,)


@query.field("policy")
async def policy(_: object, info: Info, *, id: str) -> Node | None:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.policies.policy, id)


@query.field("searchPolicies")
async def search_policies(_: object, info: Info, *, input: Node) -> Node:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.policies.search, asked_for(input))


@policy_type.field("evaluationRecords")
async def evaluation_records(parent: Node, info: Info) -> list[Node]:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.policies.records, parent["id"])


@policy_type.field("searchEvaluationRecords")
async def search_evaluation_records(parent: Node, info: Info, *, input: Node) -> Node:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(
        call.plane.policies.search_records, parent["id"], asked_for(input)
    )


@policy_type.field("evaluationSample")
async def evaluation_sample(parent: Node, info: Info, *, key: str) -> Node | None:
    call, _actor = signed_in(info)
    return await call.lanes.people.run(call.plane.policies.sample, parent["id"], key)


@mutation.field("policySimulate")
async def policy_simulate(
    _: object, info: Info, *, body: str, input: str, type: str
) -> str:
    call, _actor = signed_in(info)
    return await call.lanes.simulations.run(
        call.plane.policies.simulate, body, input, type
    )


@mutation.field("runReview")
async def run_review(
    _: object,
    info: Info,
    *,
    stack: str,
    run: str | None = None,
    decision: str,
    note: str | None = None,
) -> Node:
    call, actor = signed_in(info)
    review = await call.lanes.people.run(
        call.plane.approvals.review,
        stack,
        run,
        actor,
        approves=decision == "APPROVE",
        note=note or "",
    )
    return {"id": review}
