"""What a worker is told about the job it has claimed."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from launcher.controlplane import job_kinds, stack_spec
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.wire import jobs as wire
from launcher.wire.messages import PlanReport


_METADATA = (
    sa.select(t.run_metadata.c.value)
    .where(t.run_metadata.c.run == sa.bindparam("run_id"))
    .order_by(t.run_metadata.c.position)
)


def job_of(
    connection: sa.Connection,
    job: t.Job,
    run: t.Run,
    spec: StackSpec,
    metadata: tuple[str, ...],
) -> wire.Job:
    """The job as it travels; the same again for the same claim."""
    contents = job_kinds.CONTENTS[job.kind]
    restores = contents.restores
    return wire.Job(
        id=job.id,
        phases=job_kinds.phases(job.kind, skip_init=run.skip_init),
        run=wire.Run(
            id=run.id,
            type=run.type,
            state=_handed_over_in(job, run),
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
            changes=_changes(connection, run) if restores else (),
            user_provided_metadata=metadata,
            based_on_local_workspace=run.local_workspace is not None,
            command=run.command,
            targets=tuple(run.targets),
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
            local_preview_enabled=spec.local_preview,
        ),
        source=stack_spec.source(spec),
        vendor=wire.Vendor(
            vendor=spec.vendor,
            typed_config=spec.vendor_config,
            tool_version=spec.tool_version,
        ),
        docker_image=spec.runner_image,
        hooks=stack_spec.hooks(spec),
        environment=stack_spec.environment(spec, *contents.scopes),
        registry_logins=spec.registry_logins,
        mounted_files=stack_spec.mounted_files(spec),
        skip_init=run.skip_init,
        restores_workspace=restores,
        image_digest=_planned_with(connection, run.id) if restores else "",
    )


def _handed_over_in(job: t.Job, run: t.Run) -> wire.RunState:
    """The state of *run* when *job* was claimed."""
    if job_kinds.CONTENTS[job.kind].restores:
        return wire.RunState.PREPARING_APPLY
    if run.targets:  # only a replan has any
        return wire.RunState.PREPARING_REPLAN
    return wire.RunState.PREPARING


def metadata_of(connection: sa.Connection, run: str) -> tuple[str, ...]:
    """What users said when they interacted with the run, oldest first."""
    return tuple(connection.execute(_METADATA, {"run_id": run}).scalars())


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
