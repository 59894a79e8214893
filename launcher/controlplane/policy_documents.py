"""What policies of the control plane are asked about: their ``input``, by type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.controlplane.clock import now
from launcher.controlplane.stack_spec import HOOK_NAMES, StackSpec, hooks
from launcher.controlplane.store import tables as t
from launcher.wire.messages import PlanReport


Document = dict[str, Any]

_ACTIONS: Mapping[str, list[str]] = {
    "added": ["create"],
    "changed": ["update"],
    "deleted": ["delete"],
    "replaced": ["delete", "create"],
}
_VENDORS = (
    "ansible",
    "cloudformation",
    "kubernetes",
    "pulumi",
    "terraform",
    "terragrunt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Previous:
    """The tracked run that its stack had before."""

    run: t.Run
    report: PlanReport | None
    """Of its newest plan; None when it had none."""
    metadata: Sequence[str]


def about_plan(
    run: t.Run,
    stack: t.Stack,
    spec: StackSpec,
    report: PlanReport,
    metadata: Sequence[str],
    *,
    previous: Previous | None,
) -> Document:
    """
    The input of a plan policy; without *previous*, the key for it is missing.

    Of resources it holds addresses, types and actions, and as much of their values
    as the worker's owner lets go.
    """
    vendors: Document = dict.fromkeys(_VENDORS)
    kind = "terraform" if spec.vendor == "opentofu" else spec.vendor
    vendors[kind] = {
        "resource_changes": [
            {
                "address": change.address,
                "type": change.type,
                "name": change.name or change.address.rpartition(".")[2],
                "provider_name": change.provider,
                "change": {
                    "actions": _ACTIONS.get(change.action, [change.action]),
                    "before": change.before,
                    "after": change.after,
                },
            }
            for change in report.changes
        ],
        "terraform_version": spec.tool_version,
    }
    about = {
        "commit": _commit(run),
        "request": {"timestamp_ns": now()},
        "run": _run(run, spec, metadata) | {"changes": _changes(report)},
        "stack": _stack(stack, spec),
    }
    if previous is not None:
        about["previous_run"] = _previous(previous)
    return {
        "spacelift": about,
        **vendors,
        "third_party_metadata": {"custom": report.custom},
    }


def about_approval(
    run: t.Run,
    stack: t.Stack,
    spec: StackSpec,
    reviews: Sequence[t.Review],
    metadata: Sequence[str],
) -> Document:
    """The input of an approval policy; of each person only the newest review counts."""
    newest = {review.author: review for review in reviews}
    current = [r for r in newest.values() if r.version == run.version]
    older = [r for r in reviews if r not in current]
    return {
        "reviews": {"current": _sorted_out(current), "older": _sorted_out(older)},
        "request": {"timestamp_ns": now()},
        "run": _run(run, spec, metadata),
        "stack": _stack(stack, spec),
    }


def _sorted_out(reviews: Sequence[t.Review]) -> Document:
    return {
        "approvals": [_review(each) for each in reviews if each.approves],
        "rejections": [_review(each) for each in reviews if not each.approves],
    }


def _review(review: t.Review) -> Document:
    return {
        "author": review.author,
        "author_roles": [],
        "note": review.note,
        "request": {"timestamp_ns": review.created_at},
        "session": {"login": review.author, "name": review.author, "machine": True},
        "state": review.state,
        "state_version": review.version,
    }


def _commit(run: t.Run) -> Document:
    return {
        "author": run.commit_author,
        "branch": run.commit_branch,
        "created_at": run.commit_at,
        "hash": run.commit_hash or "",
        "message": run.commit_message,
    }


def _run(run: t.Run, spec: StackSpec, metadata: Sequence[str]) -> Document:
    chained = hooks(spec)
    config = {name: list(getattr(chained, name)) for name in HOOK_NAMES}
    return _of_itself(run, metadata) | {
        "runtime_config": config
        | {
            "project_root": spec.project_root,
            "runner_image": spec.runner_image,
            "terraform_version": spec.tool_version,
        },
    }


def _previous(previous: Previous) -> Document:
    # What it was made from is kept no longer than the run itself needs it.
    changes = _changes(previous.report) if previous.report else []
    return _of_itself(previous.run, previous.metadata) | {"changes": changes}


def _of_itself(run: t.Run, metadata: Sequence[str]) -> Document:
    return {
        "based_on_local_workspace": run.local_workspace is not None,
        "branch": run.commit_branch,
        "changes": [],
        "command": run.command,
        "commit": _commit(run),
        "created_at": run.created_at,
        "creator_session": {
            "login": run.triggered_by,
            "name": run.triggered_by,
            "machine": True,
        },
        "drift_detection": run.drift,
        "flags": list(run.flags),
        "id": run.id,
        "state": run.state,
        "triggered_by": run.triggered_by,
        "type": run.type,
        "updated_at": run.updated_at,
        "user_provided_metadata": list(metadata),
    }


def _stack(stack: t.Stack, spec: StackSpec) -> Document:
    return {
        "additional_project_globs": [],
        "administrative": False,
        "autodeploy": spec.autodeploy,
        "branch": spec.branch,
        "contexts": [context.name for context in spec.contexts],
        "id": spec.slug,
        "labels": list(spec.labels),
        "locked_by": stack.locked_by,
        "name": spec.name,
        "namespace": spec.repository.rpartition("/")[0],
        "project_root": spec.project_root,
        "repository": spec.repository,
        "roles": [],
        "space": {"id": "root", "labels": [], "name": "root"},
        "terraform_version": spec.tool_version,
        "worker_pool": {
            "id": spec.worker_pool,
            "labels": [],
            "name": spec.worker_pool,
            "public": False,
        },
    }


def _changes(report: PlanReport) -> list[Document]:
    return [
        {
            "action": change.action,
            "entity": {"address": change.address, "type": change.type},
            "phase": "plan",
        }
        for change in report.changes
    ]
