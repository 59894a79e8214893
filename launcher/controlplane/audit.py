"""
The audit trail: who has changed what, written in the transaction that changes it.

Entries are never changed, and hold no values of variables, no commands, no uploads.
"""

from __future__ import annotations

import json
import threading
import time

from typing import Any, NoReturn

import sqlalchemy as sa
import structlog

from launcher.controlplane.actors import Actor
from launcher.controlplane.clock import new_id, now, seconds
from launcher.controlplane.errors import Forbidden
from launcher.controlplane.paging import Page
from launcher.controlplane.roles import needed
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction


Node = dict[str, Any]
log = structlog.get_logger()

_NOTE = sa.insert(t.audit).inline()


def note(
    tx: Transaction,
    actor: Actor,
    action: str,
    stack: str | None = None,
    *,
    run: str | None = None,
    pool: str | None = None,
    worker: str | None = None,
    key: str | None = None,
    **body: str | int | bool | None,
) -> None:
    """Write down that *actor* did *action*, such as ``run.confirm``."""
    affected: tuple[str, str | None]
    related: tuple[str | None, str | None] = (None, None)
    if run is not None:
        affected, related = ("RUN", run), ("STACK", stack)
    elif worker is not None:
        affected, related = ("WORKER", worker), ("WORKER_POOL", pool)
    elif pool is not None:
        affected = ("WORKER_POOL", pool)
    elif key is not None:
        affected = ("API_KEY", key)
    else:
        affected = ("STACK", stack)
    said = {key: value for key, value in body.items() if value not in (None, "")}
    tx.connection.execute(
        _NOTE,
        {
            "id": new_id(),
            "at": now(),
            "actor": actor.id,
            "action": action,
            "resource_type": affected[0],
            "resource": affected[1],
            "related_type": related[0],
            "related": related[1],
            "body": json.dumps(said, sort_keys=True) if said else None,
        },
    )


class Refusals:
    """Refuses what people's roles do not allow, and writes it down."""

    EVERY_SECONDS = 3600.0
    """Once in this time for each key and thing: nobody floods the trail."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def refuse(self, actor: Actor, what: str) -> NoReturn:
        """
        Say no to *actor*, who may not do *what*, a field of GraphQL's roots.

        Raises:
            Forbidden: always.
        """
        if self._is_news(actor, what):
            role = actor.role.value
            try:
                with self._store.write() as tx:
                    who = {"key": actor.name, "role": role}
                    note(tx, actor, "api_key.refused", wanted=what, **who)
            except BaseException:
                self._forget(actor, what)
                raise
            log.warning("role.refused", by=actor.id, wanted=what, role=role)
        raise Forbidden(actor.name, actor.role, needed(what))

    def _is_news(self, actor: Actor, what: str) -> bool:
        at = time.monotonic()
        with self._lock:
            before = self._noted.get((actor.id, what))
            if before is not None and at - before < self.EVERY_SECONDS:
                return False
            self._noted[actor.id, what] = at
        return True

    def _forget(self, actor: Actor, what: str) -> None:
        with self._lock:
            self._noted.pop((actor.id, what), None)


class AuditTrail:
    """Reads the trail."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def search(self, page: Page) -> Node:
        """One page of the entries that have the page's text in them."""
        columns = t.audit.c
        query = sa.select(t.audit)
        if page.after is not None:
            number = sa.select(columns.number).where(columns.id == page.after)
            border = number.scalar_subquery()
            older = columns.number < border
            query = query.where(older if page.newest_first else columns.number > border)
        if page.text:
            where = (columns.actor, columns.action, columns.resource)
            found = (column.icontains(page.text, autoescape=True) for column in where)
            query = query.where(sa.or_(*found))
        order = columns.number.desc() if page.newest_first else columns.number
        with self._store.read() as connection:
            rows = connection.execute(query.order_by(order).limit(page.size + 1)).all()
        return page.shown(
            [(row.id, _entry(row)) for row in rows[: page.size]],
            more=len(rows) > page.size,
        )


def _entry(row: sa.Row[Any]) -> Node:
    return {
        "id": row.id,
        "action": row.action,
        "actor": {"run": None, "username": row.actor},
        "affectedResource": {
            "resourceId": row.resource,
            "resourceType": row.resource_type,
        },
        "body": row.body,
        "eventType": row.action.partition(".")[0],
        "relatedResource": {
            "resourceId": row.related,
            "resourceType": row.related_type,
        }
        if row.related_type
        else None,
        "createdAt": seconds(row.at),
        "updatedAt": seconds(row.at),
    }
