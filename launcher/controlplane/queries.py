"""What people are shown: stacks, runs and worker pools, as GraphQL names them."""

from __future__ import annotations

import base64
import hashlib
import json

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from launcher.controlplane import run_logs, stack_spec
from launcher.controlplane.clock import now, seconds
from launcher.controlplane.errors import NotFound
from launcher.controlplane.hand_over import plan_of
from launcher.controlplane.lifecycle import LIFECYCLE
from launcher.controlplane.paging import PAGE, Page
from launcher.controlplane.pools import GONE_AFTER
from launcher.controlplane.run_logs import LogPage
from launcher.controlplane.runs import AGAIN
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import AttachedContext, Bundle, StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, every, one
from launcher.wire.jobs import RunState, RunType, Scope


Node = dict[str, Any]
"""One GraphQL object."""

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

    def dependencies(self, slug: str, *, on: bool) -> list[Node]:
        """What a stack depends *on*, or what depends on it; by slug."""
        columns = t.stack_dependencies.c
        here, there = columns.stack, columns.upstream
        if not on:
            here, there = there, here
        query = sa.select(columns.stack, columns.upstream).where(here == slug)
        nodes = []
        with self._store.read() as connection:
            for row in connection.execute(query.order_by(there)).all():
                stack = self._specs.current(connection, row.stack)
                upstream = self._specs.current(connection, row.upstream)
                if stack is not None and upstream is not None:
                    nodes.append(
                        {
                            "stack": {"id": row.stack, "name": stack[1].name},
                            "dependsOnStack": {
                                "id": row.upstream,
                                "name": upstream[1].name,
                            },
                        }
                    )
        return nodes

    def search(self, page: Page) -> Node:
        """One page of the stacks that match, by slug."""
        with self._store.read() as connection:
            found = [
                (stack, spec)
                for stack, spec in self._specs.all(connection)
                if (page.after is None or stack.slug > page.after)
                and _matches(spec, page)
            ]
            nodes = _stacks(connection, found[: page.size])
        return page.shown(
            [(node["id"], node) for node in nodes], more=len(found) > page.size
        )

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

    def changes(self, run: str) -> list[Node]:
        """What the run's plan would change."""
        with self._store.read() as connection:
            plan = plan_of(connection, run)
        if plan is None:
            return []
        resources = [
            {
                "address": change.address,
                "previousAddress": "",
                "metadata": {"type": change.action},
            }
            for change in plan.changes
        ]
        return [{"resources": resources}]

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
    blockers += [stack.destroyer for stack, _ in found if stack.destroyer]
    query = sa.select(t.runs).where(
        columns.number.in_(newest) | columns.id.in_(blockers)
    )
    runs = every(connection, t.Run, query)
    latest = {
        run.stack: run
        for run in sorted(runs, key=lambda run: run.number)
        if run.type is RunType.TRACKED
    }
    by_id = {run.id: run for run in runs}
    rows = connection.execute(sa.select(t.policies.c.id, t.policies.c.type))
    policies = {row.id: row.type for row in rows}
    return [
        _stack(
            stack,
            spec,
            policies=policies,
            latest=latest.get(stack.slug),
            blocker=by_id.get(stack.blocker or ""),
            destroyer=_active(by_id.get(stack.destroyer or "")),
        )
        for stack, spec in found
    ]


def _stack(
    stack: t.Stack,
    spec: StackSpec,
    *,
    policies: Mapping[str, str],
    latest: t.Run | None,
    blocker: t.Run | None,
    destroyer: t.Run | None,
) -> Node:
    shown = blocker or latest
    namespace = spec.repository.rpartition("/")[0]
    return {
        "id": spec.slug,
        "name": spec.name,
        "administrative": False,
        "additionalProjectGlobs": [],
        "attachedContexts": [_attached(spec, context) for context in spec.contexts],
        "attachedPolicies": [
            {"policyId": name, "policyName": name, "policyType": policies[name]}
            for name in spec.policies
            if name in policies
        ],
        "autodeploy": spec.autodeploy,
        "autoretry": False,
        "blocker": _run(blocker, is_newest=blocker is latest) if blocker else None,
        "branch": spec.branch,
        "config": _config(spec.own),
        "vendor": spec.vendor,
        "createdAt": seconds(stack.created_at),
        "deleted": stack.deleted,
        "deleting": destroyer is not None,
        "description": spec.description,
        "isDisabled": stack.disabled,
        "labels": list(spec.labels),
        "localPreviewEnabled": spec.local_preview,
        "lockedBy": stack.locked_by,
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
        },
        "starred": False,
        "state": shown.state if shown else "NONE",
        "stateSetAt": seconds(shown.updated_at) if shown else None,
        "terraformVersion": spec.tool_version or None,
        "runtimeConfig": _runtime_config(spec),
        "trackedCommit": _tracked(stack, latest),
        "trackedCommitSetBy": stack.pinned_by,
        "vendorConfig": _vendor(spec),
        "workerPool": {"id": spec.worker_pool, "name": spec.worker_pool},
        **{
            _camel(name): list(getattr(spec.own.hooks, name))
            for name in stack_spec.HOOK_NAMES
        },
    }


def _active(run: t.Run | None) -> t.Run | None:
    return run if run is not None and not LIFECYCLE[run.state].terminal else None


def _tracked(stack: t.Stack, latest: t.Run | None) -> Node | None:
    """What is deployed: what the stack is pinned to, or what was deployed last."""
    pinned = stack.pinned_commit
    if pinned is not None:
        return {
            "authorLogin": None,
            "authorName": pinned["author"],
            "hash": pinned["hash"],
            "message": pinned["message"],
            "timestamp": seconds(pinned["created_at"]),
            "url": None,
        }
    return _commit(latest) if latest and latest.commit_hash else None


def _runtime_config(spec: StackSpec) -> list[Node]:
    """What runs of the stack see, the strongest of each name, and where it is from."""
    found: dict[str, Node] = {}
    sources: list[tuple[Node | None, Bundle]] = [(None, spec.own)]
    sources += [
        (_attached(spec, context), context.bundle)
        for context in spec.contexts
        if not context.auto  # those the client adds itself
    ]
    for context, bundle in sources:
        for element in _config(bundle):
            found.setdefault(element["id"], {"context": context, "element": element})
    return list(found.values())


def _attached(spec: StackSpec, context: AttachedContext) -> Node:
    return {
        "id": f"{spec.slug}/{context.name}",
        "contextId": context.name,
        "contextName": context.name,
        "priority": context.priority,
        "isAutoattached": context.auto,
        "config": _config(context.bundle),
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


def _matches(spec: StackSpec, page: Page) -> bool:
    if page.text:
        words = (spec.slug, spec.name, spec.description, spec.repository, *spec.labels)
        if not any(page.text.casefold() in word.casefold() for word in words):
            return False
    return all(_holds(spec, predicate) for predicate in page.predicates)


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


def created(run: t.Run) -> Node:
    """A run, as the answer to its creation: there is none that is newer."""
    return _run(run, is_newest=True)


def _run(run: t.Run, *, is_newest: bool) -> Node:
    return {
        "id": run.id,
        "stack": run.stack,
        "branch": run.commit_branch,
        "canRetry": run.state in AGAIN,
        "command": run.command or None,
        "comments": [],
        "commit": _commit(run),
        "createdAt": seconds(run.created_at),
        "delta": _delta(run) if run.resources is not None else None,
        "driftDetection": run.drift,
        "expired": False,
        "isMostRecent": is_newest,
        "needsApproval": run.needs_approval,
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
        "drained": worker.drained,
        "metadata": json.dumps(metadata, sort_keys=True),
    }


def _title(message: str) -> str | None:
    return message.partition("\n")[0][:255] or None


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
