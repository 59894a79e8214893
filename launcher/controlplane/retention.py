"""
How long things are kept: logs, workspaces that wait, and samples of policies.

What was removed leaves a note, so that readers are told instead of being shown
nothing.  Everything here may be done twice.
"""

from __future__ import annotations

import sqlalchemy as sa
import structlog

from launcher.controlplane.clock import now
from launcher.controlplane.desired_state import Retention
from launcher.controlplane.lifecycle import TERMINAL, Event
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction
from launcher.controlplane.transitions import move, run_to_change
from launcher.wire.jobs import RunState


log = structlog.get_logger()

DAY = 24 * 3600 * 1_000_000_000
"""Nanoseconds."""
WAITING = (RunState.UNCONFIRMED, RunState.CONFIRMED)
_AT_ONCE = 20
"""Jobs whose logs are removed in one transaction: nobody should wait for it."""


class Retaining:
    """Removes what was kept long enough."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def apply(self, retention: Retention) -> None:
        """Remove everything that is older than *retention* says."""
        self._expire_waiting(retention.workspaces_days)
        while self._remove_logs(retention.logs_days):
            pass
        with self._store.write() as tx:
            trim(
                tx,
                t.policy_samples,
                per="policy",
                days=retention.samples_days,
                most=retention.samples,
            )

    def _remove_logs(self, days: int) -> int:
        """Remove the logs of some jobs; how many there were."""
        query = (
            sa.select(t.jobs.c.id)
            .join(t.runs, t.runs.c.id == t.jobs.c.run)
            .join(t.removed_logs, t.removed_logs.c.job == t.jobs.c.id, isouter=True)
            .where(
                t.runs.c.state.in_(TERMINAL),
                t.runs.c.updated_at < now() - days * DAY,
                t.jobs.c.log_length > 0,
                t.removed_logs.c.job.is_(None),
            )
            .limit(_AT_ONCE)
        )
        with self._store.write() as tx:
            tx.alone("retention")
            jobs = list(tx.connection.execute(query).scalars())
            if not jobs:
                return 0
            tx.change(sa.delete(t.log_chunks).where(t.log_chunks.c.job.in_(jobs)))
            rows = [
                {"job": job, "removed_at": now(), "kept_days": days} for job in jobs
            ]
            tx.connection.execute(sa.insert(t.removed_logs), rows)
        log.info("logs.removed", jobs=len(jobs), kept_days=days)
        return len(jobs)

    def _expire_waiting(self, days: int) -> None:
        """End runs that wait with a workspace for too long; its file goes with them."""
        query = (
            sa.select(t.runs.c.id)
            .join(t.workspaces, t.workspaces.c.run == t.runs.c.id)
            .where(
                t.runs.c.state.in_(WAITING),
                t.workspaces.c.stored_at < now() - days * DAY,
            )
        )
        with self._store.read() as connection:
            waiting = list(connection.execute(query).scalars())
        for each in waiting:
            with self._store.write() as tx:
                run = run_to_change(tx, each)
                if run is None or run.state not in WAITING:
                    continue
                move(tx, run, Event.FAIL, note=workspace_gone(days))
            log.warning("workspace.expired", run=each, kept_days=days)


def trim(tx: Transaction, table: sa.Table, *, per: str, days: int, most: int) -> int:
    """
    Keep of each *per* the newest *most* rows, and none older than *days*.

    *table* has one column as its key, and the time of a row in ``at``.
    """
    (key,) = table.primary_key.columns
    place = sa.func.row_number().over(
        partition_by=table.c[per], order_by=(table.c.at.desc(), key.desc())
    )
    ranked = sa.select(key.label("key"), place.label("place")).subquery()
    surplus = sa.select(ranked.c.key).where(ranked.c.place > most)
    return tx.change(
        sa.delete(table).where((table.c.at < now() - days * DAY) | key.in_(surplus))
    )


def workspace_gone(days: int) -> str:
    return f"the stored workspace was removed after {_days(days)}: trigger a new run"


def log_gone(connection: sa.Connection, job: str) -> str | None:
    """What readers of the log of *job* are told; None while it is there."""
    query = sa.select(t.removed_logs.c.kept_days).where(t.removed_logs.c.job == job)
    days = connection.execute(query).scalar_one_or_none()
    if days is None:
        return None
    return f"This log was removed {_days(days)} after its run had ended.\n"


def _days(days: int) -> str:
    return f"{days} day" if days == 1 else f"{days} days"
