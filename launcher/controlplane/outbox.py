"""What webhooks are to be told, written down in the transaction that makes it true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from launcher.controlplane.clock import now, seconds
from launcher.controlplane.desired_state import Webhook
from launcher.controlplane.keys import Keyring
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Transaction


MAX_WAITING = 10_000
"""Deliveries that wait for one webhook; what comes beyond them is dropped."""

_TOLD = sa.select(t.webhooks.c.name).where(sa.not_(t.webhooks.c.disabled))
ANYBODY = sa.exists(_TOLD)
"""Whether there is somebody to be told: for statements that run anyway."""


def note(tx: Transaction, run: t.Run) -> None:
    """Tell every webhook that is on that *run* is in its state now."""
    names = tx.connection.execute(_TOLD).scalars().all()
    body = msgspec.json.encode(_event(tx.connection, run)).decode()
    for name in names:
        count = sa.select(sa.func.count()).select_from(t.deliveries)
        waiting = count.where(t.deliveries.c.webhook == name)
        if tx.connection.execute(waiting).scalar_one() < MAX_WAITING:
            tx.connection.execute(
                sa.insert(t.deliveries).values(
                    webhook=name, body=body, attempts=0, due_at=now()
                )
            )


def set_webhooks(tx: Transaction, keyring: Keyring, wanted: Sequence[Webhook]) -> None:
    """Make the webhooks those that are configured; a changed one is on again."""
    columns = t.webhooks.c
    known = {row.name: row for row in tx.connection.execute(sa.select(t.webhooks))}
    for name in known.keys() - {webhook.name for webhook in wanted}:
        tx.change(sa.delete(t.deliveries).where(t.deliveries.c.webhook == name))
        tx.change(sa.delete(t.webhooks).where(columns.name == name))
    for webhook in wanted:
        mark = keyring.mark(msgspec.json.encode(webhook))
        values = {
            "url": webhook.url,
            "allow_local": webhook.allow_local,
            "mark": mark,
            "secret": keyring.seal(webhook.secret.encode(), purpose(webhook.name)),
            "failures": 0,
            "disabled": False,
        }
        before = known.get(webhook.name)
        if before is None:
            row = {**values, "name": webhook.name}
            tx.connection.execute(sa.insert(t.webhooks).values(row))
        elif before.mark != mark:
            changed = sa.update(t.webhooks).where(columns.name == webhook.name)
            tx.change(changed.values(values))


def purpose(name: str) -> str:
    """What a webhook's secret is sealed for."""
    return f"webhook:{name}"


def _event(connection: sa.Connection, run: t.Run) -> dict[str, Any]:
    account = connection.execute(sa.select(t.installation.c.account)).scalar_one()
    return {
        "account": account,
        "state": run.state,
        "stateVersion": run.version,
        "timestamp": seconds(run.updated_at),
        "run": {
            "id": run.id,
            "type": run.type,
            "createdAt": seconds(run.created_at),
            "triggeredBy": run.triggered_by,
            "commit": {
                "hash": run.commit_hash or "",
                "branch": run.commit_branch,
                "author": run.commit_author,
                "message": run.commit_message[:1000],
            },
            "delta": None
            if run.resources is None
            else {
                "added": run.added,
                "changed": run.changed,
                "deleted": run.deleted,
                "resources": run.resources,
            },
        },
        "stack": {"id": run.stack},
    }
