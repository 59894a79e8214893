"""What people do with runs: trigger, confirm, discard, cancel, stop."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
import structlog

from launcher.controlplane import bell, stack_spec
from launcher.controlplane.actors import Actor
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.commits import Commits
from launcher.controlplane.errors import (
    CommitUnavailable,
    NotFound,
    RequestRefused,
    RuntimeConfigInvalid,
    ShuttingDown,
)
from launcher.controlplane.lifecycle import LIFECYCLE, Event, impossible
from launcher.controlplane.runtime_config import (
    IGNORED,
    LARGEST,
    RuntimeConfig,
    read,
    read_once,
    together,
)
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction, one
from launcher.controlplane.transitions import (
    make_ready,
    move,
    open_job,
    record,
    run_to_change,
)
from launcher.wire.jobs import RUNTIME_CONFIG, Commit, RunState, RunType


log = structlog.get_logger()

MAX_METADATA = 64 * 1024
"""Bytes of one metadata string, in UTF-8."""


class Runs:
    """The use cases.  *look_up_later* gets the id of each run it must `look_up`."""

    def __init__(
        self,
        store: Store,
        specs: Specs,
        commits: Commits,
        look_up_later: Callable[[str], None],
    ) -> None:
        self._store = store
        self._specs = specs
        self._commits = commits
        self._look_up_later = look_up_later

    def trigger(
        self,
        stack: str,
        actor: Actor,
        *,
        run_type: RunType = RunType.TRACKED,
        sha: str = "",
        metadata: str | None = None,
        runtime_config: str = "",
    ) -> str:
        """
        Create a run and return its id; its commit is looked up afterwards.

        *runtime_config* is YAML, for this run only.

        Raises:
            NotFound: there is no such stack.
            RequestRefused: the type cannot be triggered, the metadata is too long,
                the configuration cannot be understood.
        """
        if run_type not in (RunType.TRACKED, RunType.PROPOSED):
            raise RequestRefused(f"a run of type {run_type} cannot be triggered")
        once = _once(runtime_config, stack)
        with self._store.write() as tx:
            found = self._specs.current(tx.connection, stack)
            if found is None:
                raise NotFound(f"stack {stack!r} was not found")
            _, spec = found
            run = _insert(tx, spec, actor, run_type, sha.strip())
            record(tx, run, username=actor.id)
            if once is not None:
                self._specs.keep_runtime_config(tx, run.id, once)
            _append_metadata(tx, run.id, metadata)
        log.info("run.triggered", run=run.id, stack=stack, type=run_type, by=actor.id)
        self._look_up_later(run.id)
        return run.id

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
            confirmed = move(
                tx, _found(tx, stack, run), Event.CONFIRM, username=actor.id
            )
            _append_metadata(tx, run, metadata)
            open_job(tx, confirmed, t.JobKind.APPLY)
        log.info("run.confirmed", run=run, stack=stack, by=actor.id)

    def discard(self, stack: str, run: str, actor: Actor) -> None:
        """End a run that has not started, or whose plan nobody wants."""
        self._end(stack, run, actor, Event.DISCARD)

    def cancel(self, stack: str, run: str, actor: Actor) -> None:
        """End a run that has not started."""
        self._end(stack, run, actor, Event.CANCEL)

    def stop(self, stack: str, run: str, actor: Actor, *, note: str = "") -> None:
        """
        Ask the worker to stop; the run is STOPPED once the worker says so.

        Raises:
            NotFound: there is no such run.
            RequestRefused: nothing is running, or it must not be interrupted.
        """
        reason = note.strip()[:1000] or f"Stopped by {actor.name}"
        with self._store.write() as tx:
            found = _found(tx, stack, run)
            if not LIFECYCLE[found.state].stoppable:
                raise impossible(found.state, Event.STOP)
            tx.change(
                sa.update(t.runs)
                .where(t.runs.c.id == run, t.runs.c.stop_reason.is_(None))
                .values(stop_reason=reason, stop_requested_by=actor.id)
            )
        log.info("run.stop_requested", run=run, stack=stack, by=actor.id)

    def look_up(self, run: str) -> None:
        """Find the commit *run* is for, and queue it; or fail it."""
        with self._store.read() as connection:
            found = one(connection, t.Run, sa.select(t.runs).where(t.runs.c.id == run))
            if found is None or found.state is not RunState.QUEUED:
                return
            spec = self._specs.of_run(connection, found)
        try:
            commit = self._commit(spec, found.requested_sha)
            config = self._runtime_config(spec, commit)
        except ShuttingDown:
            return
        except CommitUnavailable as exc:
            self._fail(run, str(exc), details=exc.details)
        except Exception:
            log.exception("commit.lookup_crashed", run=run)
            self._fail(run, f"the commit of {spec.repository} cannot be looked up")
        else:
            self._queue(run, commit, config)

    def without_commit(self) -> list[str]:
        """Runs whose commit nobody has looked up yet, oldest first."""
        query = (
            sa.select(t.runs.c.id)
            .where(t.runs.c.state == RunState.QUEUED, t.runs.c.commit_hash.is_(None))
            .order_by(t.runs.c.number)
        )
        with self._store.read() as connection:
            return list(connection.execute(query).scalars())

    def _commit(self, spec: StackSpec, sha: str) -> Commit:
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

    def _queue(self, run: str, commit: Commit, config: RuntimeConfig) -> None:
        with self._store.write() as tx:
            once = self._specs.runtime_config(tx.connection, run)
            self._specs.keep_runtime_config(tx, run, together(once, config))
            tx.change(
                sa.update(t.runs)
                .where(t.runs.c.id == run, t.runs.c.commit_hash.is_(None))
                .values(
                    commit_hash=commit.hash,
                    commit_branch=commit.branch,
                    commit_author=commit.author,
                    commit_message=commit.message,
                    commit_at=commit.created_at,
                )
            )
            found = run_to_change(tx, run)
            if found is not None and found.state is RunState.QUEUED:
                make_ready(tx, found)

    def _fail(self, run: str, sentence: str, *, details: str = "") -> None:
        with self._store.write() as tx:
            found = run_to_change(tx, run)
            if found is None or found.state is not RunState.QUEUED:
                return
            move(tx, found, Event.FAIL, note=sentence, text=f"{sentence}\n")
        log.warning("run.failed", run=run, reason=sentence, details=details)

    def _end(self, stack: str, run: str, actor: Actor, event: Event) -> None:
        with self._store.write() as tx:
            ended = move(tx, _found(tx, stack, run), event, username=actor.id)
        log.info("run.ended", run=run, stack=stack, state=ended.state, by=actor.id)


def _once(text: str, stack: str) -> RuntimeConfig | None:
    if not text.strip():
        return None
    try:
        return read_once(text, stack)
    except RuntimeConfigInvalid as exc:
        raise RequestRefused(str(exc)) from exc


def _found(tx: Transaction, stack: str, run: str) -> t.Run:
    found = run_to_change(tx, run)
    if found is None or found.stack != stack:
        raise NotFound(f"run {run!r} of stack {stack!r} was not found")
    return found


def _insert(
    tx: Transaction, spec: StackSpec, actor: Actor, run_type: RunType, sha: str
) -> t.Run:
    at = now()
    query = sa.insert(t.runs).values(
        id=new_id(),
        stack=spec.slug,
        type=run_type,
        state=RunState.QUEUED,
        version=1,
        created_at=at,
        updated_at=at,
        triggered_by=actor.id,
        requested_sha=sha[:255],
        commit_branch=spec.branch,
        commit_author="",
        commit_message="",
        commit_at=0,
    )
    row = tx.connection.execute(query.returning(t.runs)).mappings().one()
    return t.Run(**row)


def _append_metadata(tx: Transaction, run: str, value: str | None) -> None:
    if not value:
        return
    if len(value.encode()) > MAX_METADATA:
        raise RequestRefused(f"run metadata has at most {MAX_METADATA} bytes")
    count = tx.connection.execute(
        sa.select(sa.func.count())
        .select_from(t.run_metadata)
        .where(t.run_metadata.c.run == run)
    ).scalar_one()
    tx.connection.execute(
        sa.insert(t.run_metadata).values(run=run, position=count, value=value)
    )
    tx.wake(bell.of_run(run))
