"""
Looking for drift by schedule: whether what there is still is what was deployed.

A run that looks for drift is a preview of the commit that was deployed last.  Each
time of a schedule counts once, whichever servers there are; what nobody was there
for is made up for once.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from zoneinfo import ZoneInfoNotFoundError

import sqlalchemy as sa
import structlog

from launcher.controlplane import cron
from launcher.controlplane.actors import Actor
from launcher.controlplane.dependencies import queue_dependents
from launcher.controlplane.errors import NotFound, RequestRefused
from launcher.controlplane.hand_over import plan_of
from launcher.controlplane.lifecycle import BLOCKS, TERMINAL
from launcher.controlplane.look_ups import Later
from launcher.controlplane.new_runs import Order, create
from launcher.controlplane.roles import Role
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import DriftDetection
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction, one
from launcher.controlplane.transitions import lock_stack
from launcher.wire.jobs import RunState, RunType


log = structlog.get_logger()

SCHEDULER = Actor(id="drift-detection", name="drift detection", role=Role.WRITER)
"""Who triggers the runs."""
_UNTOUCHED = (RunState.DISCARDED, RunState.CANCELED, RunState.SKIPPED)
"""States in which runs end that have changed nothing."""


class Drift:
    """Triggers what is due; *look_up_later* is told of each new run."""

    def __init__(self, store: Store, specs: Specs, look_up_later: Later) -> None:
        self._store = store
        self._specs = specs
        self._look_up_later = look_up_later
        self._minute: datetime | None = None

    def trigger_due(self, at: datetime | None = None) -> None:
        """Trigger what has become due by *at*, which is now; cheap within a minute."""
        now = (at or datetime.now(UTC)).replace(second=0, microsecond=0)
        if now == self._minute:
            return
        with self._store.read() as connection:
            wanted = {
                spec.slug: spec.drift_detection
                for _, spec in self._specs.all(connection)
                if spec.drift_detection is not None
            }
            rows = connection.execute(sa.select(t.drift_schedules)).all()
        known = {row.stack: row for row in rows}
        for stack, given in wanted.items():
            row = known.get(stack)
            if row is None or row.schedule != _text(given):
                # What a schedule has missed before it was there is nobody's fault.
                self._begin(stack, given, now)
            else:
                self._trigger_if_due(stack, given, now, looked_at=row.looked_at)
        if gone := known.keys() - wanted.keys():
            with self._store.write() as tx:
                columns = t.drift_schedules.c
                tx.change(sa.delete(t.drift_schedules).where(columns.stack.in_(gone)))
        self._minute = now

    def _begin(self, stack: str, given: DriftDetection, now: datetime) -> None:
        with self._store.write() as tx:
            columns = t.drift_schedules.c
            tx.change(sa.delete(t.drift_schedules).where(columns.stack == stack))
            tx.connection.execute(
                sa.insert(t.drift_schedules).values(
                    stack=stack, schedule=_text(given), looked_at=_nanoseconds(now)
                )
            )

    def _trigger_if_due(
        self, stack: str, given: DriftDetection, now: datetime, *, looked_at: int
    ) -> None:
        try:
            latest = cron.latest(given.schedule, given.timezone, now)
        except ZoneInfoNotFoundError:
            # Known to whoever applied the configuration; other stacks go on.
            log.exception("drift.time_zone_unknown", stack=stack, zone=given.timezone)
            return
        if (due := _nanoseconds(latest)) > looked_at:
            self._trigger(stack, given, due)

    def _trigger(self, stack: str, given: DriftDetection, due: int) -> None:
        columns = t.drift_schedules.c
        with self._store.write() as tx:
            first = tx.change(
                sa.update(t.drift_schedules)
                .where(columns.stack == stack, columns.looked_at < due)
                .values(looked_at=due)
            )
            if not first:  # of several servers, for a moment, two may lead
                return
            run, why = _created(tx, self._specs, stack, given)
        if run is None:
            log.info("drift.not_looked_for", stack=stack, reason=why)
            return
        log.info("run.triggered", run=run.id, stack=stack, by=SCHEDULER.id, drift=True)
        self._look_up_later(run.id, run.stack)


def reconcile(tx: Transaction, specs: Specs, run: t.Run) -> None:
    """
    Deploy anew what *run* was looking at, if it has finished and found drift.

    Only if that still is what was deployed last, and nothing is about to change it.
    """
    looked = run.drift and run.type is RunType.PROPOSED
    if not looked or run.state is not RunState.FINISHED:
        return
    plan = plan_of(tx.connection, run.id)
    found = specs.current(tx.connection, run.stack)
    given = found[1].drift_detection if found else None
    if plan is None or not plan.has_changes or given is None or not given.reconcile:
        return
    lock_stack(tx, run.stack)
    try:
        _require_meaning(tx.connection, run)
        made = create(tx, specs, run.stack, SCHEDULER, Order(sha=run.commit_hash or ""))
    except RequestRefused as exc:
        log.warning("drift.not_reconciled", stack=run.stack, reason=str(exc))
        return
    queue_dependents(
        tx,
        specs,
        made,
        lambda stack: create(tx, specs, stack, SCHEDULER, Order()),
    )
    log.info("drift.reconciled", stack=run.stack, drift=run.id, run=made.id)


def _require_meaning(connection: sa.Connection, run: t.Run) -> None:
    """
    Check that what *run* has found still says something about what there is.

    Raises:
        RequestRefused: it does not, and this is why.
    """
    if _under_way(connection, run.stack, BLOCKS):
        raise RequestRefused("something of the stack is under way, or waits")
    last = _last(connection, run.stack, but=_UNTOUCHED)
    if last is None or last.state is not RunState.FINISHED:
        raise RequestRefused("the last deployment has not finished")
    if last.type is not RunType.TRACKED or last.commit_hash != run.commit_hash:
        raise RequestRefused("what was looked at is not what is deployed")
    if last.number > run.number:
        raise RequestRefused("it was deployed since")


def _created(
    tx: Transaction, specs: Specs, stack: str, given: DriftDetection
) -> tuple[t.Run | None, str]:
    """A new run, or why there is none."""
    drift = sa.select(t.runs.c.id).where(
        t.runs.c.stack == stack, t.runs.c.drift, t.runs.c.state.not_in(TERMINAL)
    )
    if tx.connection.execute(drift).first() is not None:
        return None, "the run before is not over"
    if _under_way(tx.connection, stack, [RunType.DESTROY]):
        return None, "it is being destroyed"
    last = _last(tx.connection, stack)
    if not given.ignore_state and (last is None or last.state is not RunState.FINISHED):
        return None, "the last deployment has not finished"
    deployed = _last(tx.connection, stack, only=RunState.FINISHED)
    if deployed is not None and deployed.type is RunType.DESTROY:
        return None, "it was destroyed"
    order = Order(
        type=RunType.PROPOSED,
        drift=True,
        sha=(deployed and deployed.commit_hash) or "",
    )
    try:
        return create(tx, specs, stack, SCHEDULER, order), ""
    except (NotFound, RequestRefused) as exc:
        return None, str(exc)


def _under_way(
    connection: sa.Connection, stack: str, types: Collection[RunType]
) -> bool:
    """Whether a run of one of these *types* has not ended."""
    columns = t.runs.c
    query = sa.select(columns.id).where(
        columns.stack == stack,
        columns.type.in_(types),
        columns.state.not_in(TERMINAL),
    )
    return connection.execute(query.limit(1)).first() is not None


def _last(
    connection: sa.Connection,
    stack: str,
    *,
    only: RunState | None = None,
    but: Collection[RunState] = (),
) -> t.Run | None:
    """The newest run that was to deploy or destroy, of those in the wanted states."""
    columns = t.runs.c
    query = sa.select(t.runs).where(
        columns.stack == stack,
        columns.type.in_([RunType.TRACKED, RunType.DESTROY]),
        columns.state.not_in(but),
    )
    if only is not None:
        query = query.where(columns.state == only)
    return one(connection, t.Run, query.order_by(columns.number.desc()).limit(1))


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000_000


def _text(given: DriftDetection) -> str:
    return f"{given.timezone}: {'; '.join(given.schedule)}"
