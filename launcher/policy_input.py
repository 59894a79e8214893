"""
What the initialization policy is asked about, and the sample of an evaluation.

The document has every key of the product's documented one, with its type, and
beside them everything else that decides what will run.  It is computed from the
very job that will be executed, so nothing can run that the policy did not see:
a test flips each field of a job and finds the change here.
"""

from __future__ import annotations

import base64
import hashlib

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from launcher.environment import PhaseEnvironment
from launcher.model import Mount, ResolvedJob
from launcher.output.mask import Index
from launcher.output.needles import needles
from launcher.policy import Evaluation
from launcher.wire.jobs import Commit, Hooks, Job, Phase, Run


def policy_input(
    resolved: ResolvedJob,
    *,
    phase: Phase,
    environment: PhaseEnvironment,
    mounts: Iterable[Mount],
    endpoint: str,
    worker_version: str,
) -> dict[str, Any]:
    """The document; secret values are in it, for the policy's eyes only."""
    job, image = resolved.job, resolved.image
    return {
        "docker_image": job.docker_image,
        "docker_image_digest": image.digest,
        "docker_image_reference": image.reference,
        "job_id": job.id,
        "phase": phase,
        "phases": list(job.phases),
        "planned_image_digest": job.image_digest,
        "run": _run(job.run),
        "static_run_environment": _static(job)
        | {
            "endpoint_logs": endpoint,
            "environment_variables": dict(environment.export),
            "extra_mounts": [
                {
                    "source": mount.source,
                    "target": mount.target,
                    "read_only": mount.read_only,
                }
                for mount in mounts
            ],
        },
        "worker_version": worker_version,
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "based_on_local_workspace": run.based_on_local_workspace,
        "changes": list(run.changes),
        "command": run.command,
        "commit": _commit(run.commit),
        "created_at": run.created_at,
        "id": run.id,
        "state": run.state,
        "targets": list(run.targets),
        "triggered_by": run.triggered_by,
        "type": run.type,
        "updated_at": run.updated_at,
        "user_provided_metadata": list(run.user_provided_metadata),
    }


def _commit(commit: Commit) -> dict[str, Any]:
    return {
        "author": commit.author,
        "branch": commit.branch,
        "created_at": commit.created_at,
        "hash": commit.hash,
        "message": commit.message,
    }


def _static(job: Job) -> dict[str, Any]:
    stack, run = job.stack, job.run
    hooks = {
        name: list(getattr(job.hooks, name)) or None for name in Hooks.__struct_fields__
    }
    return hooks | {
        "account_name": stack.account_name,
        "auto_deploy": stack.auto_deploy,
        "command": run.command,
        "commit_branch": run.commit.branch,
        "commit_sha": run.commit.hash,
        "endpoint_registry": "",
        "local_preview_enabled": stack.local_preview_enabled,
        "mounted_files": [
            {
                "path": file.path,
                "secret": file.secret,
                "sha256": hashlib.sha256(file.content).hexdigest(),
            }
            for file in job.mounted_files
        ],
        "project_root": stack.project_root,
        "refresh_state": job.refresh_state,
        "registry_logins": [
            {
                "registry": login.registry,
                "username": login.username,
                "password": login.password,
            }
            for login in job.registry_logins
        ],
        "repository_path": stack.repository_path,
        "restores_workspace": job.restores_workspace,
        "run_type": run.type,
        "run_ulid": run.id,
        "skip_init": job.skip_init,
        "source": {
            "checkout": job.source.checkout,
            "known_hosts": list(job.source.known_hosts),
            "password": job.source.password,
            "sparse_paths": list(job.source.sparse_paths),
            "ssh_key": job.source.ssh_key,
            "username": job.source.username,
        },
        "source_url": job.source.url,
        "space": stack.space,
        "stack_branch": stack.branch,
        "stack_labels": list(stack.labels) or None,
        "stack_name": stack.name,
        "stack_slug": stack.slug,
        "terraform_version": job.vendor.tool_version,
        "variables": [
            {
                "name": given.name,
                "value": given.value,
                "secret": given.secret,
                "scope": given.scope,
            }
            for given in job.environment
        ],
        "notes": list(job.notes),
        "runtime_config_sha256": job.runtime_config_sha256,
        "tokens": {
            "api": job.tokens.api,
            "graphql_endpoint": job.tokens.graphql_endpoint,
            "oidc": job.tokens.oidc,
            "refresh_seconds": job.tokens.refresh_seconds,
        },
        "vendor_specific_config": {
            "vendor": job.vendor.vendor,
            "typed_config": _typed_config(job.vendor.typed_config),
        },
    }


def _typed_config(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_terragrunt": False, "use_infracost": False} | dict(options)


def receipt(sampled: Mapping[str, Any]) -> str:
    """
    SHA-256 over policy, question and outcome of an evaluation, as `sample` shows them.

    So it can be computed again from the sample line, and gives away no secret.
    """
    parts = {key: sampled[key] for key in ("body", "input", "outcome")}
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def sample(
    evaluation: Evaluation, document: Mapping[str, Any], secrets: Iterable[bytes]
) -> dict[str, Any]:
    """What is logged of an evaluation; no secret of the job is left in it."""
    # A line of the operator's, which may become unreadable rather than tell.
    index = Index(needles(secrets, short=True))

    def masked(value: Any) -> Any:  # noqa: ANN401 (a JSON value)
        match value:
            case str():
                return index.text(value)
            case Mapping():
                return {key: masked(entry) for key, entry in value.items()}
            case list() | tuple():
                return [masked(entry) for entry in value]
            case bytes():
                return masked(base64.b64encode(value).decode())
            case _:
                return value

    return {
        "body": masked(evaluation.body),
        "input": masked(msgspec.to_builtins(document)),
        "outcome": evaluation.outcome,
        "results": masked(evaluation.results),
        "error": masked(evaluation.error),
    }
