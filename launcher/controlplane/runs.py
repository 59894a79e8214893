"""What people do with runs: trigger, confirm, discard, stop, replan, and so on."""

from __future__ import annotations

import dataclasses
import math

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from launcher.controlplane import audit, job_kinds, stack_spec
from launcher.controlplane.actors import Actor
from launcher.controlplane.approvals import Approvals
from launcher.controlplane.commits import Commits
from launcher.controlplane.dependencies import queue_dependents, wait_for
from launcher.controlplane.errors import (
    CommitUnavailable,
    DiskFull,
    NotFound,
    RequestRefused,
    ShuttingDown,
)
from launcher.controlplane.lanes import attempted
from launcher.controlplane.lifecycle import LIFECYCLE, Event, impossible
from launcher.controlplane.look_ups import Later
from launcher.controlplane.new_runs import (
    Order,
    append_metadata,
    checked_targets,
    create,
)
from launcher.controlplane.runtime_config import (
    IGNORED,
    LARGEST,
    RuntimeConfig,
    read,
    together,
)
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction, every, one
from launcher.controlplane.transitions import (
    lock_stack,
    move,
    run_to_change,
    schedule_locked,
)
from launcher.wire.jobs import RUNTIME_CONFIG, Commit, RunState, RunType


log = structlog.get_logger()

_LONGEST_NOTE = 1000
AGAIN = frozenset({RunState.FAILED, RunState.STOPPED, RunState.CANCELED})
"""Ends after which a run can be retried."""

_IS_NEW = sa.and_(
    t.runs.c.id.in_(sa.bindparam("runs", expanding=True)),
    t.runs.c.state == RunState.QUEUED,
    t.runs.c.commit_hash.is_(None),
)
_NEW = (
    sa.select(t.runs, t.stacks.c.revision)
    .join(t.stacks, t.stacks.c.slug == t.runs.c.stack)
    .where(_IS_NEW)
    .order_by(t.runs.c.number)
)
_NEW_TO_CHANGE = (
    sa.select(t.runs).where(_IS_NEW).order_by(t.runs.c.number).with_for_update()
)
_FOUND = (
    sa.update(t.runs)
    .where(t.runs.c.id == sa.bindparam("run_id"), t.runs.c.commit_hash.is_(None))
    .values(
        needs_approval=sa.bindparam("needed"),
        commit_hash=sa.bindparam("hash"),
        commit_branch=sa.bindparam("branch"),
        commit_author=sa.bindparam("author"),
        commit_message=sa.bindparam("message"),
        commit_at=sa.bindparam("at"),
    )
)


@dataclass(frozen=True, slots=True)
class _Described:
    """What a run is made from besides its stack."""

    commit: Commit
    config: RuntimeConfig


class Runs:
    """The use cases.  *look_up_later* is told of each run it must `look_up`."""

    def __init__(
        self,
        store: Store,
        specs: Specs,
        commits: Commits,
        look_up_later: Later,
        approvals: Approvals,
    ) -> None:
        self._store = store
        self._specs = specs
        self._commits = commits
        self._look_up_later = look_up_later
        self._approvals = approvals

    def trigger(
        self,
        stack: str,
        actor: Actor,
        *,
        run_type: RunType = RunType.TRACKED,
        sha: str = "",
        metadata: str | None = None,
        runtime_config: str = "",
        external: Sequence[str] = (),
    ) -> t.Run:
        """
        Create a run; its commit is looked up afterwards.

        *runtime_config* is YAML, for this run only.

        Raises:
            NotFound: there is no such stack.
            RequestRefused: the type cannot be triggered, or the stack refuses it.
        """
        if run_type is RunType.TASK:
            raise RequestRefused(
                "a run of type TASK cannot be triggered: create a task"
            )
        return self.order(
            stack,
            actor,
            Order(
                type=run_type,
                sha=sha,
                metadata=metadata,
                runtime_config=runtime_config,
                external=tuple(external),
            ),
        )

    def order(self, stack: str, actor: Actor, order: Order) -> t.Run:
        """Create the run that *order* describes."""
        created = self._store.together(
            lambda tx: self._created(tx, stack, actor, order)
        )
        for each in created:
            log.info(
                "run.triggered",
                run=each.id,
                stack=each.stack,
                type=each.type,
                by=actor.id,
            )
            self._look_up_later(each.id, each.stack)
        return created[0]

    def _created(
        self, tx: Transaction, stack: str, actor: Actor, order: Order
    ) -> list[t.Run]:
        run = create(tx, self._specs, stack, actor, order)
        wait_for(tx, run.id, order.external)
        return [run, *self._dependents(tx, run, actor)]

    def _dependents(self, tx: Transaction, run: t.Run, actor: Actor) -> list[t.Run]:
        if run.type is not RunType.TRACKED:
            return []
        return queue_dependents(
            tx,
            self._specs,
            run,
            lambda stack: create(tx, self._specs, stack, actor, Order()),
        )

    def retry(self, stack: str, run: str, actor: Actor) -> t.Run:
        """
        Do *run* once more, of the same commit, as a new run.

        Raises:
            NotFound: there is no such run.
            RequestRefused: it is not over, or went well.
        """
        old = self._seen(stack, run)
        if old.state not in AGAIN:
            raise RequestRefused(f"a run that is {old.state} cannot be retried")
        return self.order(
            stack,
            actor,
            Order(
                type=old.type,
                sha=old.commit_hash or old.requested_sha,
                command=old.command,
                skip_init=old.skip_init,
                runtime_config=self._specs.opened_text(old.runtime_config),
                drift=old.drift,
                local_workspace=old.local_workspace,
                overrides=old.overrides,
            ),
        )

    def promote(self, stack: str, run: str, actor: Actor) -> t.Run:
        """
        Deploy what the proposed *run* has previewed, as a new run.

        Raises:
            NotFound: there is no such run.
            RequestRefused: the stack does not allow it, or there is nothing to deploy.
        """
        old = self._seen(stack, run)
        if old.type is not RunType.PROPOSED or old.local_workspace or old.drift:
            raise RequestRefused("only a preview of a commit can be promoted")
        if old.state is not RunState.FINISHED or old.commit_hash is None:
            raise RequestRefused(f"a run that is {old.state} cannot be promoted")
        with self._store.read() as connection:
            found = self._specs.current(connection, stack)
        if found is None or not found[1].run_promotion:
            raise RequestRefused(f"stack {stack!r} does not allow run promotion")
        return self.order(stack, actor, Order(sha=old.commit_hash))

    def replan(self, stack: str, run: str, actor: Actor, targets: list[str]) -> None:
        """
        Plan *run*, which waits for a confirmation, anew, for *targets* only.

        Raises:
            NotFound: there is no such run.
            RequestRefused: it does not wait for a confirmation, or has no targets.
        """
        wanted = checked_targets(targets)
        with self._store.write() as tx:
            found = _found(tx, stack, run)
            if found.type is not RunType.TRACKED:
                raise RequestRefused("only a tracked run can be planned for targets")
            move(tx, found, Event.REPLAN, username=actor.id, opens=t.JobKind.PLAN)
            tx.change(
                sa.update(t.runs)
                .where(t.runs.c.id == run)
                .values(targets=wanted, warnings=[])
            )
            audit.note(tx, actor, "run.replan", stack, run=run, targets=len(wanted))
        log.info("run.replan_requested", run=run, stack=stack, by=actor.id)

    def prioritize(
        self, stack: str, run: str, actor: Actor, *, prioritized: bool
    ) -> None:
        """
        Let *run* go before, or no longer before, others in its pool's queue.

        Raises:
            NotFound: there is no such run.
            RequestRefused: it is over.
        """
        with self._store.write() as tx:
            found = _found(tx, stack, run)
            if LIFECYCLE[found.state].terminal:
                raise RequestRefused(f"a run that is {found.state} waits for nobody")
            tx.change(
                sa.update(t.runs)
                .where(t.runs.c.id == run)
                .values(prioritized=prioritized)
            )
            action = "run.prioritize" if prioritized else "run.deprioritize"
            audit.note(tx, actor, action, stack, run=run)

    def confirm(
        self, stack: str, run: str, actor: Actor, *, metadata: str | None = None
    ) -> None:
        """
        Let what was planned be applied.

        Raises:
            NotFound: there is no such run.
            RequestRefused: it does not wait for a confirmation.
        """
        with self._store.write() as tx:
            found = _found(tx, stack, run)
            if found.needs_approval and found.state is RunState.UNCONFIRMED:
                raise RequestRefused("an approval policy has not approved the run yet")
            move(
                tx,
                found,
                Event.CONFIRM,
                username=actor.id,
                opens=job_kinds.after_plan(found.type),
            )
            append_metadata(tx, run, metadata)
            audit.note(tx, actor, "run.confirm", stack, run=run)
        log.info("run.confirmed", run=run, stack=stack, by=actor.id)

    def discard(self, stack: str, run: str, actor: Actor, *, note: str = "") -> None:
        """End a run that has not started, or whose plan nobody wants."""
        self._end(stack, run, actor, Event.DISCARD, note)

    def cancel(self, stack: str, run: str, actor: Actor, *, note: str = "") -> None:
        """End a run that has not started."""
        self._end(stack, run, actor, Event.CANCEL, note)

    def stop(self, stack: str, run: str, actor: Actor, *, note: str = "") -> None:
        """
        Ask the worker to stop; the run is STOPPED once the worker says so.

        Raises:
            NotFound: there is no such run.
            RequestRefused: nothing is running, or it must not be interrupted.
        """
        reason = note.strip()[:_LONGEST_NOTE] or f"Stopped by {actor.name}"
        with self._store.write() as tx:
            found = _found(tx, stack, run)
            if not LIFECYCLE[found.state].stoppable:
                raise impossible(found.state, Event.STOP)
            tx.change(
                sa.update(t.runs)
                .where(t.runs.c.id == run, t.runs.c.stop_reason.is_(None))
                .values(stop_reason=reason, stop_requested_by=actor.id)
            )
            audit.note(tx, actor, "run.stop", stack, run=run, note=reason)
        log.info("run.stop_requested", run=run, stack=stack, by=actor.id)

    def look_up(self, *runs: str, since: float = math.inf) -> None:
        """
        Find the commits that *runs*, all of one stack, are for, and queue them.

        What was the newest commit at or after *since*, on the monotonic clock, will do.
        Who cannot be queued fails, or waits until the sweeper asks again.
        """
        found = self._new(runs)
        described: dict[tuple[int | None, str], _Described | Exception] = {}
        ready = {}
        for run, spec in found:
            wanted = run.revision, run.requested_sha
            if wanted not in described:
                described[wanted] = self._described(spec, run.requested_sha, since)
            match described[wanted]:
                case _Described() as known:
                    ready[run.id] = known
                case ShuttingDown():
                    return
                case DiskFull() as exc:
                    log.error("commit.no_room", run=run.id, details=exc.details)
                case CommitUnavailable() as exc:
                    self._fail(run.id, str(exc), details=exc.details)
                case exc:
                    log.error("commit.lookup_crashed", run=run.id, exc_info=exc)
                    self._fail(
                        run.id, f"the commit of {spec.repository} cannot be looked up"
                    )
        if ready:
            stack = found[0][0].stack
            held = self._store.together(lambda tx: self._queued(tx, stack, ready))
            for run_id in held:
                self._consider(run_id)

    def _consider(self, run: str) -> None:
        try:
            attempted(lambda: self._approvals.consider(run))
        except Exception:  # the sweeper asks about all that wait; the others go on
            log.exception("approval.not_considered", run=run)

    def _new(self, runs: Sequence[str]) -> list[tuple[t.Run, StackSpec]]:
        """Those of *runs* that have no commit yet, and their stack as they see it."""
        found = []
        with self._store.glance() as connection:
            rows = connection.execute(_NEW, {"runs": runs}).all()
            for *row, revision in rows:
                run = t.Run(**dict(zip(t.runs.c.keys(), row, strict=True)))
                # Not pinned yet, and read with the run, so that a crowd asks once.
                run = dataclasses.replace(run, revision=run.revision or revision)
                spec = self._specs.of_run(connection, run, _never_given(run))
                found.append((run, spec))
        return found

    def without_commit(self) -> list[tuple[str, str]]:
        """Runs whose commit nobody has looked up, oldest first; and their stacks."""
        query = (
            sa.select(t.runs.c.id, t.runs.c.stack)
            .where(t.runs.c.state == RunState.QUEUED, t.runs.c.commit_hash.is_(None))
            .order_by(t.runs.c.number)
        )
        with self._store.read() as connection:
            return [(row.id, row.stack) for row in connection.execute(query)]

    def _seen(self, stack: str, run: str) -> t.Run:
        query = sa.select(t.runs).where(t.runs.c.id == run, t.runs.c.stack == stack)
        with self._store.read() as connection:
            found = one(connection, t.Run, query)
        if found is None:
            raise NotFound(f"run {run!r} of stack {stack!r} was not found")
        return found

    def _described(
        self, spec: StackSpec, sha: str, since: float
    ) -> _Described | Exception:
        """What a run of *sha* is made from, or why nobody can tell."""
        try:
            commit = self._commit(spec, sha, since)
            return _Described(commit, self._runtime_config(spec, commit))
        except Exception as exc:  # noqa: BLE001 (told for each run that it is about)
            return exc

    def _commit(self, spec: StackSpec, sha: str, since: float) -> Commit:
        if sha:
            return self._commits.of_hash(
                source=stack_spec.source(spec),
                repository=spec.repository,
                branch=spec.branch,
                sha=sha,
            )
        return self._commits.of_branch(
            source=stack_spec.source(spec),
            repository=spec.repository,
            branch=spec.branch,
            since=since,
        )

    def _runtime_config(self, spec: StackSpec, commit: Commit) -> RuntimeConfig:
        """What the repository says, at *commit*, about how its runs are made."""
        if IGNORED in spec.labels:
            return RuntimeConfig()
        content = self._commits.file(
            source=stack_spec.source(spec),
            repository=spec.repository,
            sha=commit.hash,
            path=RUNTIME_CONFIG,
            largest=LARGEST,
        )
        return read(content, spec.slug)

    def _queued(
        self, tx: Transaction, stack: str, ready: Mapping[str, _Described]
    ) -> list[str]:
        """Let runs of *stack* wait for their turn; those that policies hold back."""
        locked = lock_stack(tx, stack)
        runs = every(tx.connection, t.Run, _NEW_TO_CHANGE, {"runs": tuple(ready)})
        if not runs or locked is None:
            return []
        needed = self._approvals.are_needed(tx.connection, runs[0], locked)
        configs, rows = {}, []
        for run in runs:
            known, once = ready[run.id], _never_given(run)
            if once is None:
                once = self._specs.runtime_config(tx.connection, run.id)
                self._specs.forget_runtime_config(tx, run.id)
            configs[run.id] = together(once, known.config)
            rows.append(
                {
                    "run_id": run.id,
                    "needed": needed,
                    "hash": known.commit.hash,
                    "branch": known.commit.branch,
                    "author": known.commit.author,
                    "message": known.commit.message,
                    "at": known.commit.created_at,
                }
            )
        self._specs.keep_runtime_configs(tx, configs)
        tx.connection.execute(_FOUND, rows)
        schedule_locked(tx, locked)
        return [run.id for run in runs] if needed else []

    def _fail(self, run: str, sentence: str, *, details: str = "") -> None:
        with self._store.write() as tx:
            found = run_to_change(tx, run)
            if found is None or found.state is not RunState.QUEUED:
                return
            move(tx, found, Event.FAIL, note=sentence, text=f"{sentence}\n")
        log.warning("run.failed", run=run, reason=sentence, details=details)

    def _end(self, stack: str, run: str, actor: Actor, event: Event, note: str) -> None:
        said = note.strip()[:_LONGEST_NOTE] or None
        with self._store.write() as tx:
            found = _found(tx, stack, run)
            ended = move(tx, found, event, username=actor.id, note=said)
            action = f"run.{event.name.lower()}"
            audit.note(tx, actor, action, stack, run=run, note=said)
        log.info("run.ended", run=run, stack=stack, state=ended.state, by=actor.id)


def _never_given(run: t.Run) -> RuntimeConfig | None:
    """Nothing, for a new *run* that nobody gave a configuration of its own."""
    return RuntimeConfig() if run.runtime_config is None else None


def _found(tx: Transaction, stack: str, run: str) -> t.Run:
    found = run_to_change(tx, run)
    if found is None or found.stack != stack:
        raise NotFound(f"run {run!r} of stack {stack!r} was not found")
    return found
