"""What people do with stacks: lock, disable, delete, and pin them to a commit."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
import structlog

from launcher.controlplane import audit, removal, stack_spec
from launcher.controlplane.actors import Actor
from launcher.controlplane.commits import Commits
from launcher.controlplane.errors import CommitUnavailable, NotFound, RequestRefused
from launcher.controlplane.new_runs import Order
from launcher.controlplane.runs import Runs
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction, one
from launcher.controlplane.transitions import schedule
from launcher.wire.jobs import Commit, RunType


log = structlog.get_logger()

MAX_NOTE = 1000


class StackAdmin:
    """The use cases; each raises NotFound when there is no such stack."""

    def __init__(
        self, store: Store, specs: Specs, commits: Commits, runs: Runs
    ) -> None:
        self._store = store
        self._specs = specs
        self._commits = commits
        self._runs = runs

    def lock(self, stack: str, actor: Actor, *, note: str = "") -> None:
        """
        Let nobody but *actor* begin a run that changes things.

        Raises:
            RequestRefused: somebody else has locked the stack.
        """
        with self._store.write() as tx:
            found = _found(tx, stack)
            if found.locked_by not in (None, actor.id):
                raise RequestRefused(
                    f"stack {stack!r} is locked by {found.locked_by} already"
                )
            _set(tx, stack, locked_by=actor.id, lock_note=note.strip()[:MAX_NOTE])
            audit.note(tx, actor, "stack.lock", stack, note=note.strip()[:MAX_NOTE])
        log.info("stack.locked", stack=stack, by=actor.id)

    def unlock(self, stack: str, actor: Actor) -> None:
        """
        Let everybody begin runs again; whoever is signed in may do it.

        Raises:
            RequestRefused: the stack is not locked.
        """
        with self._store.write() as tx:
            if _found(tx, stack).locked_by is None:
                raise RequestRefused(f"stack {stack!r} is not locked")
            _set(tx, stack, locked_by=None, lock_note=None)
            audit.note(tx, actor, "stack.unlock", stack)
        log.info("stack.unlocked", stack=stack, by=actor.id)

    def disable(self, stack: str, actor: Actor) -> None:
        """Begin no run of the stack, not even one that waits; what runs goes on."""
        with self._store.write() as tx:
            _found(tx, stack)
            _set(tx, stack, disabled=True)
            audit.note(tx, actor, "stack.disable", stack)
        log.info("stack.disabled", stack=stack, by=actor.id)

    def enable(self, stack: str, actor: Actor) -> None:
        """Take back `disable`; what has waited begins."""
        with self._store.write() as tx:
            _found(tx, stack)
            _set(tx, stack, disabled=False)
            audit.note(tx, actor, "stack.enable", stack)
            schedule(tx, stack)
        log.info("stack.enabled", stack=stack, by=actor.id)

    def delete(self, stack: str, actor: Actor, *, destroy: bool = False) -> None:
        """
        Delete the stack, after a run that destroys its resources if *destroy*.

        Raises:
            RequestRefused: a run of it is under way.
        """
        if destroy:
            self._destroy(stack, actor)
            return
        with self._store.write() as tx:
            found = _found(tx, stack)
            if found.blocker is not None:
                raise RequestRefused(
                    f"run {found.blocker} of stack {stack!r} is under way"
                )
            audit.note(tx, actor, "stack.delete", stack)
            removal.delete(tx, stack)

    def pin(self, stack: str, actor: Actor, sha: str) -> None:
        """
        Deploy the commit *sha* from now on, whatever the branch's newest one is.

        Raises:
            RequestRefused: there is no such commit.
        """
        spec = self._spec(stack)
        commit = self._looked_up(spec, sha.strip())
        with self._store.write() as tx:
            _found(tx, stack)
            pinned = msgspec.to_builtins(commit)
            _set(tx, stack, pinned_commit=pinned, pinned_by=actor.id)
            audit.note(tx, actor, "stack.set_current_commit", stack, sha=commit.hash)
        log.info("stack.pinned", stack=stack, sha=commit.hash, by=actor.id)

    def unpin(self, stack: str, actor: Actor) -> None:
        """Follow the stack's branch again."""
        with self._store.write() as tx:
            _found(tx, stack)
            _set(tx, stack, pinned_commit=None, pinned_by=None)
            audit.note(tx, actor, "stack.sync_commit", stack)
        log.info("stack.unpinned", stack=stack, by=actor.id)

    def _destroy(self, stack: str, actor: Actor) -> None:
        with self._store.read() as connection:
            found = self._specs.current(connection, stack)
        if found is None:
            raise _unknown(stack)
        run = self._runs.order(stack, actor, Order(type=RunType.DESTROY)).id
        with self._store.write() as tx:
            _set(tx, stack, destroyer=run)
            audit.note(tx, actor, "stack.delete", stack, run=run)
        log.info("stack.to_be_destroyed", stack=stack, run=run, by=actor.id)

    def _spec(self, stack: str) -> StackSpec:
        with self._store.read() as connection:
            found = self._specs.current(connection, stack)
        if found is None:
            raise _unknown(stack)
        return found[1]

    def _looked_up(self, spec: StackSpec, sha: str) -> Commit:
        if not sha:
            raise RequestRefused("a commit is needed")
        try:
            return self._commits.of_hash(
                source=stack_spec.source(spec),
                repository=spec.repository,
                branch=spec.branch,
                sha=sha,
            )
        except CommitUnavailable as exc:
            raise RequestRefused(str(exc)) from exc


def _found(tx: Transaction, stack: str) -> t.Stack:
    query = sa.select(t.stacks).where(
        t.stacks.c.slug == stack, t.stacks.c.removed_at.is_(None)
    )
    found = one(tx.connection, t.Stack, query.with_for_update(key_share=True))
    if found is None:
        raise _unknown(stack)
    return found


def _set(tx: Transaction, stack: str, **values: object) -> None:
    tx.change(sa.update(t.stacks).where(t.stacks.c.slug == stack).values(values))


def _unknown(stack: str) -> NotFound:
    return NotFound(f"stack {stack!r} was not found")
