"""What waits in a worker pool, and what its workers do, as people are shown it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from launcher.controlplane.clock import seconds
from launcher.controlplane.paging import Page
from launcher.controlplane.queues import ORDER
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store


Node = dict[str, Any]

_MOST = 10_000


class QueueView:
    """Reads the queue."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def search(self, pool: str, page: Page) -> Node:
        """Runs that workers hold, at position 0; then those that wait, from 1 on."""
        open_, claimed = t.JobState.OPEN, t.JobState.CLAIMED
        here = sa.or_(
            sa.and_(t.jobs.c.state == open_, t.stacks.c.pool == pool),
            sa.and_(t.jobs.c.state == claimed, t.jobs.c.pool == pool),
        )
        query = (
            sa.select(t.runs, t.jobs.c.state.label("job_state"))
            .join(t.jobs, t.jobs.c.run == t.runs.c.id)
            .join(t.stacks, t.stacks.c.slug == t.runs.c.stack)
            .where(here)
            .order_by(sa.case((t.jobs.c.state == claimed, 0), else_=1), *ORDER)
            .limit(_MOST)
        )
        with self._store.read() as connection:
            rows = connection.execute(query).all()
        position, nodes = 0, []
        for row in rows:
            position += row.job_state is open_
            nodes.append((row.id, _node(row, position)))
        ids = [run for run, _ in nodes]
        start = ids.index(page.after) + 1 if page.after in ids else 0
        end = start + page.size
        return page.shown(nodes[start:end], more=end < len(nodes))


def _node(row: sa.Row[Any], position: int) -> Node:
    return {
        "stackId": row.stack,
        "run": {
            "id": row.id,
            "createdAt": seconds(row.created_at),
            "state": row.state,
            "type": row.type,
            "title": row.commit_message.partition("\n")[0][:255] or None,
        },
        "position": position,
    }
