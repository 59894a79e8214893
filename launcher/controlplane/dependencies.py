"""
Runs that wait for others: of stacks that their stack depends on, or outside.

A tracked run of a stack queues one for every stack that depends on it, however
indirectly.  Each waits until all it depends on are over: it is canceled when one of
them did not go well, and skipped when nothing that it refers to has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter

import sqlalchemy as sa
import structlog

from launcher.controlplane import audit
from launcher.controlplane.actors import Actor
from launcher.controlplane.errors import NotFound, RequestRefused
from launcher.controlplane.lifecycle import Event
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import Dependency
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction
from launcher.controlplane.transitions import move, run_to_change, schedule
from launcher.wire.jobs import RunState


log = structlog.get_logger()

MAX_EXTERNAL = 50


class ExternalDependencies:
    """What somebody outside tells us that runs have waited for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def complete(self, name: str, status: str, actor: Actor) -> None:
        """
        Let every run that waits for *name* go on, or fail.

        Raises:
            NotFound: no run waits for it.
        """
        columns = t.run_dependencies.c
        this = sa.and_(
            columns.name == name, sa.not_(columns.upstream), columns.status.is_(None)
        )
        with self._store.write() as tx:
            waiting = tx.connection.execute(sa.select(columns.run).where(this))
            ids = list(waiting.scalars())
            if not ids:
                raise NotFound(f"no run waits for the dependency {name[:255]!r}")
            tx.change(sa.update(t.run_dependencies).where(this).values(status=status))
            for each in ids:
                run = run_to_change(tx, each)
                if run is None or run.state is not RunState.QUEUED:
                    continue
                audit.note(
                    tx, actor, "run.dependency", run.stack, run=run.id, status=status
                )
                if status == "FAILED":
                    note = f"the external dependency {name!r} has failed"
                    move(tx, run, Event.FAIL, note=note, text=f"{note}\n")
                else:
                    schedule(tx, run.stack)
        log.info("dependency.completed", name=name, status=status, runs=len(ids))


def wait_for(tx: Transaction, run: str, names: Sequence[str]) -> None:
    """
    Hold *run* back until everything outside that *names* name is completed.

    Raises:
        RequestRefused: there are too many, or one cannot be a name.
    """
    wanted = list(dict.fromkeys(names))
    if len(wanted) > MAX_EXTERNAL:
        raise RequestRefused(f"a run waits for at most {MAX_EXTERNAL} dependencies")
    for name in wanted:
        if not name.strip() or len(name) > 255 or not name.isprintable():
            raise RequestRefused(f"{name[:100]!r} is not the name of a dependency")
        tx.connection.execute(
            sa.insert(t.run_dependencies).values(run=run, upstream=False, name=name)
        )


def queue_dependents(
    tx: Transaction, specs: Specs, run: t.Run, create: Callable[[str], t.Run]
) -> list[t.Run]:
    """Queue a run, made by *create*, for every stack that depends on *run*'s."""
    affected = _dependents(tx.connection, run.stack)
    if not affected:
        return []
    needs: dict[str, tuple[Dependency, ...]] = {}
    for stack in affected:
        found = specs.current(tx.connection, stack)
        if found is not None:
            needs[stack] = found[1].depends_on
    order = TopologicalSorter(
        {stack: [need.stack for need in needs[stack]] for stack in needs}
    )
    made = {run.stack: run}
    for stack in order.static_order():
        relevant = [need for need in needs.get(stack, ()) if need.stack in made]
        if not relevant:
            continue
        try:
            dependent = create(stack)
        except RequestRefused as exc:
            log.warning("dependent.not_queued", stack=stack, reason=str(exc))
            continue
        made[stack] = dependent
        for need in relevant:
            references = need.references
            tx.connection.execute(
                sa.insert(t.run_dependencies).values(
                    run=dependent.id,
                    upstream=True,
                    name=made[need.stack].id,
                    outputs=[reference.output for reference in references],
                    always=not references or any(r.always for r in references),
                )
            )
    del made[run.stack]
    return list(made.values())


def _dependents(connection: sa.Connection, stack: str) -> set[str]:
    """Every stack that depends on *stack*, however indirectly."""
    columns = t.stack_dependencies.c
    found: set[str] = set()
    edge = {stack}
    while edge:
        query = sa.select(columns.stack).where(columns.upstream.in_(edge))
        edge = set(connection.execute(query).scalars()) - found - {stack}
        found |= edge
    return found
