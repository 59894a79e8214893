"""What a worker is told about the job it has claimed."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from launcher.controlplane import stack_spec
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.wire import jobs as wire
from launcher.wire.messages import PlanReport


_PHASES = {
    t.JobKind.PLAN: (wire.Phase.INITIALIZE, wire.Phase.PLAN),
    t.JobKind.APPLY: (wire.Phase.APPLY,),
}
_SCOPES = {
    t.JobKind.PLAN: (wire.Scope.ALWAYS, wire.Scope.READ),
    t.JobKind.APPLY: (wire.Scope.ALWAYS, wire.Scope.WRITE),
}


def job_of(
    connection: sa.Connection, job: t.Job, run: t.Run, spec: StackSpec
) -> wire.Job:
    """The job as it travels; the same again for the same claim."""
    applies = job.kind is t.JobKind.APPLY
    return wire.Job(
        id=job.id,
        phases=_PHASES[job.kind],
        run=wire.Run(
            id=run.id,
            type=run.type,
            state=(
                wire.RunState.PREPARING_APPLY if applies else wire.RunState.PREPARING
            ),
            created_at=run.created_at,
            updated_at=job.claimed_at or run.updated_at,
            triggered_by=run.triggered_by,
            commit=wire.Commit(
                hash=run.commit_hash or "",
                branch=run.commit_branch,
                author=run.commit_author,
                message=run.commit_message,
                created_at=run.commit_at,
            ),
            changes=_changes(connection, run) if applies else (),
            user_provided_metadata=metadata_of(connection, run.id),
        ),
        stack=wire.Stack(
            slug=spec.slug,
            name=spec.name,
            account_name=spec.account,
            repository_path=spec.repository,
            branch=spec.branch,
            project_root=spec.project_root,
            labels=spec.labels,
            auto_deploy=spec.autodeploy,
        ),
        source=stack_spec.source(spec),
        vendor=wire.Vendor(
            vendor=spec.vendor,
            typed_config=spec.vendor_config,
            tool_version=spec.tool_version,
        ),
        docker_image=spec.runner_image,
        hooks=stack_spec.hooks(spec),
        environment=stack_spec.environment(spec, *_SCOPES[job.kind]),
        registry_logins=spec.registry_logins,
        mounted_files=stack_spec.mounted_files(spec),
        restores_workspace=applies,
        image_digest=_planned_with(connection, run.id) if applies else "",
    )


def metadata_of(connection: sa.Connection, run: str) -> tuple[str, ...]:
    """What users said when they interacted with the run, oldest first."""
    query = (
        sa.select(t.run_metadata.c.value)
        .where(t.run_metadata.c.run == run)
        .order_by(t.run_metadata.c.position)
    )
    return tuple(connection.execute(query).scalars())


def plan_of(connection: sa.Connection, run: str) -> PlanReport | None:
    """What the run's plan was, once it is known."""
    query = (
        sa.select(t.jobs.c.plan)
        .where(t.jobs.c.run == run, t.jobs.c.plan.is_not(None))
        .order_by(t.jobs.c.created_at.desc())
        .limit(1)
    )
    plan = connection.execute(query).scalar_one_or_none()
    return None if plan is None else msgspec.json.decode(plan, type=PlanReport)


def _planned_with(connection: sa.Connection, run: str) -> str:
    """The digest of the image that made the run's plan."""
    query = (
        sa.select(t.jobs.c.image_digest)
        .where(t.jobs.c.run == run, t.jobs.c.kind == t.JobKind.PLAN)
        .order_by(t.jobs.c.created_at.desc())
        .limit(1)
    )
    return str(connection.execute(query).scalar_one())


def _changes(connection: sa.Connection, run: t.Run) -> tuple[dict[str, Any], ...]:
    plan = plan_of(connection, run.id)
    return tuple(
        {
            "action": change.action,
            "entity": {"address": change.address, "type": change.type},
            "phase": "plan",
        }
        for change in (plan.changes if plan else ())
    )
