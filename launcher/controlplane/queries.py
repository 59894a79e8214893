"""What people are shown: stacks, runs and worker pools, as GraphQL names them."""

from __future__ import annotations

import base64
import hashlib
import json

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from launcher.controlplane import run_logs, stack_spec
from launcher.controlplane.clock import now, seconds
from launcher.controlplane.errors import NotFound
from launcher.controlplane.lifecycle import LIFECYCLE
from launcher.controlplane.pools import GONE_AFTER
from launcher.controlplane.run_logs import LogPage
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import Bundle, StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, every, one
from launcher.wire.jobs import RunState, RunType, Scope


Node = dict[str, Any]
"""One GraphQL object."""

PAGE = 50
MAX_PAGE = 100
_PREFIX = {Scope.ALWAYS: "", Scope.READ: "ro_", Scope.WRITE: "wo_"}
_SWITCHES = frozenset(
    {
        "useSmartSanitization",
        "externalStateAccessEnabled",
        "concise",
        "useRunAll",
        "useStateManagement",
    }
)
_VENDORS = {
    "ansible": "Ansible",
    "cloudformation": "CloudFormation",
    "kubernetes": "Kubernetes",
    "opentofu": "OpenTofu",
    "pulumi": "Pulumi",
    "terraform": "Terraform",
    "terragrunt": "Terragrunt",
}


@dataclass(frozen=True, slots=True)
class Search:
    """A search for stacks."""

    first: int = PAGE
    after: str | None = None
    text: str | None = None
    predicates: Sequence[Node] = ()


class Queries:
    """Reads, each in one short transaction."""

    def __init__(self, store: Store, specs: Specs) -> None:
        self._store = store
        self._specs = specs

    # -- stacks -----------------------------------------------------------

    def stack(self, slug: str) -> Node | None:
        with self._store.read() as connection:
            found = self._specs.current(connection, slug)
            return None if found is None else _stacks(connection, [found])[0]

    def stacks(self) -> list[Node]:
        with self._store.read() as connection:
            return _stacks(connection, self._specs.all(connection))

    def stack_of_run(self, run: str) -> Node:
        """
        The stack a run belongs to.

        Raises:
            NotFound: with the very words spacectl looks for.
        """
        query = sa.select(t.runs.c.stack).where(t.runs.c.id == run)
        with self._store.read() as connection:
            slug = connection.execute(query).scalar_one_or_none()
        stack = self.stack(slug) if slug is not None else None
        if stack is None:
            raise NotFound("not found")
        return stack

    def search(self, search: Search) -> Node:
        """One page of the stacks that match, by slug."""
        size = min(max(search.first, 1), MAX_PAGE)
        with self._store.read() as connection:
            found = [
                (stack, spec)
                for stack, spec in self._specs.all(connection)
                if (search.after is None or stack.slug > search.after)
                and _matches(spec, search)
            ]
            nodes = _stacks(connection, found[:size])
        return {
            "edges": [{"node": node} for node in nodes],
            "pageInfo": {
                "endCursor": nodes[-1]["id"] if nodes else search.after or "",
                "hasNextPage": len(found) > size,
                "hasPreviousPage": search.after is not None,
            },
        }

    # -- runs -------------------------------------------------------------

    def run(self, stack: str, run: str) -> Node | None:
        query = sa.select(t.runs).where(t.runs.c.id == run, t.runs.c.stack == stack)
        with self._store.read() as connection:
            found = one(connection, t.Run, query)
            return None if found is None else _runs(connection, [found])[0]

    def runs(self, stack: str, run_type: RunType, before: str | None) -> list[Node]:
        """A page of runs, newest first, strictly older than *before*."""
        columns = t.runs.c
        query = sa.select(t.runs).where(
            columns.stack == stack, columns.type == run_type
        )
        if before is not None:
            number = sa.select(columns.number).where(columns.id == before)
            query = query.where(columns.number < number.scalar_subquery())
        query = query.order_by(columns.number.desc()).limit(PAGE)
        with self._store.read() as connection:
            return _runs(connection, every(connection, t.Run, query))

    def history(self, run: str) -> list[Node]:
        """What happened to a run, newest first."""
        with self._store.read() as connection:
            found = one(connection, t.Run, sa.select(t.runs).where(t.runs.c.id == run))
            transitions = run_logs.history(connection, run)
        nodes = [_transition(transition) for transition in transitions]
        if found is not None and found.unreachable_since is not None:
            silent = (now() - found.unreachable_since) // 1_000_000_000
            nodes[0]["note"] = f"worker unreachable (marked {silent} s ago)"
        return nodes

    def logs(
        self, run: str, state: RunState, version: int | None, token: str | None
    ) -> LogPage | None:
        with self._store.read() as connection:
            return run_logs.read(connection, run, state, version, token)

    # -- worker pools -----------------------------------------------------

    def pools(self) -> list[Node]:
        with self._store.read() as connection:
            query = sa.select(t.pools).where(t.pools.c.configured)
            rows = connection.execute(query.order_by(t.pools.c.name)).all()
            return [_pool(connection, row) for row in rows]

    def pool(self, name: str) -> Node | None:
        with self._store.read() as connection:
            query = sa.select(t.pools).where(
                t.pools.c.name == name, t.pools.c.configured
            )
            row = connection.execute(query).one_or_none()
            return None if row is None else _pool(connection, row)


def _stacks(
    connection: sa.Connection, found: Sequence[tuple[t.Stack, StackSpec]]
) -> list[Node]:
    columns = t.runs.c
    newest = (
        sa.select(sa.func.max(columns.number))
        .where(
            columns.type == RunType.TRACKED,
            columns.stack.in_([stack.slug for stack, _ in found]),
        )
        .group_by(columns.stack)
    )
    blockers = [stack.blocker for stack, _ in found if stack.blocker]
    query = sa.select(t.runs).where(
        columns.number.in_(newest) | columns.id.in_(blockers)
    )
    runs = every(connection, t.Run, query)
    latest = {run.stack: run for run in sorted(runs, key=lambda run: run.number)}
    by_id = {run.id: run for run in runs}
    return [
        _stack(stack, spec, latest.get(stack.slug), by_id.get(stack.blocker or ""))
        for stack, spec in found
    ]


def _stack(
    stack: t.Stack, spec: StackSpec, latest: t.Run | None, blocker: t.Run | None
) -> Node:
    shown = blocker or latest
    namespace = spec.repository.rpartition("/")[0]
    return {
        "id": spec.slug,
        "name": spec.name,
        "administrative": False,
        "additionalProjectGlobs": [],
        "attachedContexts": [
            {
                "id": f"{spec.slug}/{context.name}",
                "contextId": context.name,
                "contextName": context.name,
                "priority": context.priority,
                "isAutoattached": context.auto,
                "config": _config(context.bundle),
            }
            for context in spec.contexts
        ],
        "attachedPolicies": [],
        "autodeploy": spec.autodeploy,
        "autoretry": False,
        "blocker": _run(blocker, is_newest=blocker is latest) if blocker else None,
        "branch": spec.branch,
        "canWrite": True,
        "config": _config(spec.own),
        "createdAt": seconds(stack.created_at),
        "deleted": False,
        "deleting": False,
        "description": spec.description,
        "isDisabled": False,
        "labels": list(spec.labels),
        "localPreviewEnabled": False,
        "lockedBy": None,
        "managesStateFile": False,
        "moduleVersionsUsed": [],
        "namespace": namespace,
        "projectRoot": spec.project_root,
        "provider": "GIT",
        "repository": spec.repository,
        "runnerImage": spec.runner_image or None,
        "space": "root",
        "spaceDetails": {
            "id": "root",
            "name": "root",
            "description": "",
            "parentSpace": None,
            "accessLevel": "ADMIN",
        },
        "starred": False,
        "state": shown.state if shown else "NONE",
        "stateSetAt": seconds(shown.updated_at) if shown else None,
        "terraformVersion": spec.tool_version or None,
        "trackedCommit": _commit(latest) if latest and latest.commit_hash else None,
        "trackedCommitSetBy": None,
        "vendorConfig": _vendor(spec),
        "workerPool": {"id": spec.worker_pool, "name": spec.worker_pool},
        **{
            _camel(name): list(getattr(spec.own.hooks, name))
            for name in stack_spec.HOOK_NAMES
        },
    }


def _vendor(spec: StackSpec) -> Node | None:
    kind = _VENDORS.get(spec.vendor)
    if kind is None:
        return None
    options = {_camel(name): value for name, value in spec.vendor_config.items()}
    return {
        "__typename": f"StackConfigVendor{kind}",
        "version": spec.tool_version or None,
        "loginURL": options.get("loginUrl"),
        # The options are free: what is not of the type shown reads as not given.
        **{
            name: value
            for name, value in options.items()
            if isinstance(value, bool if name in _SWITCHES else str)
        },
    }


def _config(bundle: Bundle) -> list[Node]:
    elements = [
        _element(
            _PREFIX[variable.scope] + variable.name,
            "ENVIRONMENT_VARIABLE",
            variable.value.encode(),
            None if variable.secret else variable.value,
        )
        for variable in bundle.environment
    ]
    return elements + [
        _element(
            file.path,
            "FILE_MOUNT",
            file.content,
            None if file.secret else base64.b64encode(file.content).decode(),
        )
        for file in bundle.mounted_files
    ]


def _element(name: str, kind: str, content: bytes, shown: str | None) -> Node:
    # A short secret could be guessed from its checksum, so it has none.
    checksum = hashlib.sha256(content).hexdigest() if shown is not None else ""
    return {
        "id": name,
        "checksum": checksum,
        "createdAt": None,
        "runtime": False,
        "type": kind,
        "value": shown,
        "writeOnly": shown is None,
    }


def _matches(spec: StackSpec, search: Search) -> bool:
    if search.text:
        words = (spec.slug, spec.name, spec.description, spec.repository, *spec.labels)
        if not any(search.text.casefold() in word.casefold() for word in words):
            return False
    return all(_holds(spec, predicate) for predicate in search.predicates)


def _holds(spec: StackSpec, predicate: Node) -> bool:
    match predicate["field"]:
        case "repository":
            values: Iterable[str] = [spec.repository]
        case "projectRoot":
            values = [spec.project_root]
        case "branch":
            values = [spec.branch]
        case "label":
            values = spec.labels
        case "name":
            values = [spec.name]
        case field:
            raise NotFound(f"stacks cannot be searched by {field!r}")
    wanted = {
        text.strip("/") for text in predicate["constraint"].get("stringMatches") or ()
    }
    return wanted.isdisjoint(values) is bool(predicate.get("exclude"))


def _runs(connection: sa.Connection, runs: Sequence[t.Run]) -> list[Node]:
    if not runs:
        return []
    columns = t.runs.c
    newest = connection.execute(
        sa.select(sa.func.max(columns.number)).where(
            columns.stack == runs[0].stack, columns.type == runs[0].type
        )
    ).scalar_one()
    return [_run(run, is_newest=run.number == newest) for run in runs]


def _run(run: t.Run, *, is_newest: bool) -> Node:
    return {
        "id": run.id,
        "stack": run.stack,
        "branch": run.commit_branch,
        "canRetry": False,
        "command": None,
        "comments": [],
        "commit": _commit(run),
        "createdAt": seconds(run.created_at),
        "delta": _delta(run) if run.resources is not None else None,
        "driftDetection": False,
        "expired": False,
        "isMostRecent": is_newest,
        "needsApproval": False,
        "state": run.state,
        "title": _title(run.commit_message),
        "triggeredBy": run.triggered_by,
        "type": run.type,
    }


def _commit(run: t.Run) -> Node:
    return {
        "authorLogin": None,
        "authorName": run.commit_author,
        "hash": run.commit_hash or run.requested_sha,
        "message": run.commit_message,
        "timestamp": seconds(run.commit_at),
        "url": None,
    }


def _delta(run: t.Run) -> Node:
    return {
        "addCount": run.added,
        "changeCount": run.changed,
        "deleteCount": run.deleted,
        "resources": run.resources,
    }


def _transition(transition: t.Transition) -> Node:
    return {
        "hasLogs": run_logs.has_logs(transition),
        "note": transition.note,
        "state": transition.state,
        "stateVersion": transition.version,
        "terminal": LIFECYCLE[transition.state].terminal,
        "timestamp": seconds(transition.at),
        "username": transition.username,
    }


def _pool(connection: sa.Connection, row: sa.Row[Any]) -> Node:
    claimed = t.jobs.c.state == t.JobState.CLAIMED
    busy = set(
        connection.execute(
            sa.select(t.jobs.c.worker).where(claimed, t.jobs.c.pool == row.name)
        ).scalars()
    )
    pending = connection.execute(
        sa.select(sa.func.count())
        .select_from(t.jobs)
        .join(t.runs, t.runs.c.id == t.jobs.c.run)
        .join(t.stacks, t.stacks.c.slug == t.runs.c.stack)
        .where(t.jobs.c.state == t.JobState.OPEN, t.stacks.c.pool == row.name)
    ).scalar_one()
    query = sa.select(t.workers).where(t.workers.c.pool == row.name)
    workers = every(connection, t.Worker, query.order_by(t.workers.c.id))
    there = [w for w in workers if w.id in busy or now() - w.seen_at < GONE_AFTER]
    return {
        "id": row.name,
        "name": row.name,
        "description": row.description,
        "busyWorkers": sum(worker.id in busy for worker in there),
        "pendingRuns": pending,
        "workers": [_worker(worker, busy=worker.id in busy) for worker in there],
    }


def _worker(worker: t.Worker, *, busy: bool) -> Node:
    metadata = {
        **worker.metadata,
        "instance": worker.instance,
        "slot": worker.slot,
        "version": worker.version,
    }
    return {
        "id": worker.id,
        "busy": busy,
        "drained": False,
        "metadata": json.dumps(metadata, sort_keys=True),
    }


def _title(message: str) -> str | None:
    return message.partition("\n")[0][:255] or None


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
