"""
Looking for drift by schedule: whether what there is still is what was deployed.

A run that looks for drift is a preview of the commit that was deployed last.  Each
time of a schedule counts once, whichever servers there are; what nobody was there
for is made up for once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import sqlalchemy as sa
import structlog

from launcher.controlplane import cron
from launcher.controlplane.actors import Actor
from launcher.controlplane.dependencies import queue_dependents
from launcher.controlplane.errors import NotFound, RequestRefused
from launcher.controlplane.hand_over import plan_of
from launcher.controlplane.lifecycle import TERMINAL
from launcher.controlplane.new_runs import Order, create
from launcher.controlplane.roles import Role
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import DriftDetection
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction, one
from launcher.wire.jobs import RunState, RunType


log = structlog.get_logger()

SCHEDULER = Actor(id="drift-detection", name="drift detection", role=Role.WRITER)
"""Who triggers the runs."""


class Drift:
    """Triggers what is due; *look_up_later* gets the id of each new run."""

    def __init__(
        self, store: Store, specs: Specs, look_up_later: Callable[[str], None]
    ) -> None:
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
                latest = cron.latest(given.schedule, given.timezone, now)
                if (due := _nanoseconds(latest)) > row.looked_at:
                    self._trigger(stack, given, due)
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
        self._look_up_later(run.id)


def reconcile(tx: Transaction, specs: Specs, run: t.Run) -> None:
    """Deploy anew what *run* was looking at, if it has finished and found drift."""
    looked = run.drift and run.type is RunType.PROPOSED
    if not looked or run.state is not RunState.FINISHED:
        return
    plan = plan_of(tx.connection, run.id)
    found = specs.current(tx.connection, run.stack)
    given = found[1].drift_detection if found else None
    if plan is None or not plan.has_changes or given is None or not given.reconcile:
        return
    try:
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


def _created(
    tx: Transaction, specs: Specs, stack: str, given: DriftDetection
) -> tuple[t.Run | None, str]:
    """A new run, or why there is none."""
    columns = t.runs.c
    under_way = sa.select(columns.id).where(
        columns.stack == stack, columns.drift, columns.state.not_in(TERMINAL)
    )
    if tx.connection.execute(under_way).first() is not None:
        return None, "the run before is not over"
    tracked = sa.select(t.runs).where(
        columns.stack == stack, columns.type == RunType.TRACKED
    )
    last = one(tx.connection, t.Run, tracked.order_by(columns.number.desc()).limit(1))
    if not given.ignore_state and (last is None or last.state is not RunState.FINISHED):
        return None, "the last deployment has not finished"
    order = Order(
        type=RunType.PROPOSED, drift=True, sha=(last and last.commit_hash) or ""
    )
    try:
        return create(tx, specs, stack, SCHEDULER, order), ""
    except (NotFound, RequestRefused) as exc:
        return None, str(exc)


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000_000


def _text(given: DriftDetection) -> str:
    return f"{given.timezone}: {'; '.join(given.schedule)}"
