"""
Policies that people attach to stacks: which there are, what they say, and samples.

One that fails counts as the worst it could have said: a plan is denied, an approval
is not given.
"""

from __future__ import annotations

import json
import threading

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa
import structlog

from launcher.controlplane.clock import new_id, now, seconds
from launcher.controlplane.desired_state import MAX_POLICY, PolicyText
from launcher.controlplane.errors import NotFound, RequestRefused
from launcher.controlplane.keys import Keyring
from launcher.controlplane.paging import Page
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction, every, one
from launcher.errors import ConfigurationError, PolicyError, PolicyUnusable


Node = dict[str, Any]
log = structlog.get_logger()

_MAX_SAMPLE = 4 << 20
_KEPT = 64
_SHOWN = 100


class Judge(Protocol):
    """A compiled policy."""

    def ask(self, document: Mapping[str, Any], /) -> dict[str, Any]:
        """
        What the policy says of *document*.

        Raises:
            PolicyError: nobody knows.
        """

    def close(self) -> None:
        """Give back what it holds."""


Compile = Callable[[str, str], Judge]
"""Takes the body and the type; raises PolicyUnusable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one policy has said."""

    policy: str
    results: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why it has said nothing, for people; empty when it did."""

    def texts(self, name: str) -> list[str]:
        return list(self.results.get(name, ()))

    def is_true(self, name: str) -> bool:
        return self.results.get(name) is True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One evaluation that was kept."""

    key: str
    policy: str
    outcome: str
    at: int
    input: str = ""
    """As JSON; empty where nobody asked for it, as are the next two."""
    body: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)


class Policies:
    """The use cases."""

    def __init__(self, store: Store, keyring: Keyring, compiled: Compile) -> None:
        self._store = store
        self._keyring = keyring
        self._compile = compiled
        self._judges: OrderedDict[tuple[str, str], Judge] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, wanted: Sequence[PolicyText]) -> None:
        """
        Compile what is configured.

        Raises:
            ConfigurationError: with a sentence for each that cannot be used.
        """
        require_usable(wanted, self._judge)

    def attached(
        self, connection: sa.Connection, names: Sequence[str], kind: str
    ) -> list[t.Policy]:
        """Those of *names* that are of the type *kind*, by name."""
        if not names:
            return []
        columns = t.policies.c
        query = sa.select(t.policies).where(columns.id.in_(names), columns.type == kind)
        return every(connection, t.Policy, query.order_by(columns.id))

    def ask(
        self,
        policies: Sequence[t.Policy],
        document: Mapping[str, Any],
        *,
        run: str,
        outcome: Callable[[Verdict], str],
    ) -> list[Verdict]:
        """What each of *policies* says; samples are kept for those that want it."""
        verdicts = []
        for policy in policies:
            try:
                judge = self._judge(policy.body, policy.type)
                verdict = Verdict(policy=policy.id, results=judge.ask(document))
            except (PolicyError, PolicyUnusable, ValueError, RecursionError) as exc:
                log.warning("policy.failed", policy=policy.id, run=run, error=str(exc))
                reason = "it could not be evaluated"
                verdict = Verdict(policy=policy.id, error=reason)
            verdicts.append(verdict)
            if verdict.is_true("sample"):
                self._sample(policy, document, verdict, run, outcome(verdict))
        return verdicts

    def simulate(self, body: str, document: str, kind: str) -> str:
        """
        What a policy would say of a document; as JSON.

        Raises:
            RequestRefused: one of the two is not what it should be.
        """
        if len(body.encode()) > MAX_POLICY:
            raise RequestRefused(f"a policy has at most {MAX_POLICY} bytes")
        try:
            parsed = json.loads(document)
        except (ValueError, RecursionError) as exc:
            raise RequestRefused("the input is not JSON") from exc
        if not isinstance(parsed, dict):
            raise RequestRefused("the input is not a JSON object")
        try:
            judge = self._compile(body, kind)
        except PolicyUnusable as exc:
            raise RequestRefused(str(exc)) from exc
        try:
            return json.dumps(judge.ask(parsed), sort_keys=True)
        except (PolicyError, ValueError, RecursionError) as exc:
            raise RequestRefused(f"the policy failed: {exc}") from exc
        finally:
            judge.close()

    # -- reading ----------------------------------------------------------

    def policy(self, name: str) -> Node | None:
        query = sa.select(t.policies).where(t.policies.c.id == name)
        with self._store.read() as connection:
            found = one(connection, t.Policy, query)
        return None if found is None else _node(found)

    def search(self, page: Page) -> Node:
        """One page of the policies that match, by name."""
        columns = t.policies.c
        query = sa.select(t.policies).order_by(columns.id)
        if page.after is not None:
            query = query.where(columns.id > page.after)
        if page.text:
            fields = (columns.name, columns.description)
            query = query.where(
                sa.or_(*(each.icontains(page.text, autoescape=True) for each in fields))
            )
        with self._store.read() as connection:
            found = every(connection, t.Policy, query.limit(page.size + 1))
        return page.shown(
            [(each.id, _node(each)) for each in found[: page.size]],
            more=len(found) > page.size,
        )

    def records(self, name: str) -> list[Node]:
        """The samples of a policy, newest first."""
        with self._store.read() as connection:
            return [_record(row) for row in connection.execute(_samples(name))]

    def search_records(self, name: str, page: Page) -> Node:
        """One page of the samples; may be limited to some outcomes."""
        wanted: set[str] = set()
        for predicate in page.predicates:
            if predicate["field"] != "outcome":
                raise RequestRefused(
                    f"samples cannot be searched by {predicate['field']!r}"
                )
            constraint = predicate["constraint"]
            for key in ("stringMatches", "enumEquals"):
                wanted |= set(constraint.get(key) or ())
        records = [
            record
            for record in self.records(name)
            if not wanted or record["outcome"] in wanted
        ]
        if not page.newest_first:
            records.reverse()
        keys = [record["key"] for record in records]
        start = keys.index(page.after) + 1 if page.after in keys else 0
        end = start + page.size
        found = [(record["key"], record) for record in records[start:end]]
        return page.shown(found, more=end < len(records))

    def sample(self, name: str, key: str) -> Node | None:
        """Input and body of one sample."""
        columns = t.policy_samples.c
        query = sa.select(t.policy_samples).where(
            columns.key == key, columns.policy == name
        )
        with self._store.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        opened = json.loads(self._keyring.open(row.sealed, _purpose(name)))
        return {"input": opened["input"], "body": opened["body"]}

    def samples_of(self, connection: sa.Connection, run: str) -> list[Sample]:
        """What was kept of a run: the newest, in their order, without contents."""
        columns = t.policy_samples.c
        query = (
            sa.select(columns.key, columns.policy, columns.outcome, columns.at)
            .where(columns.run == run)
            .order_by(columns.at.desc(), columns.key.desc())
            .limit(_SHOWN)
        )
        rows = connection.execute(query).mappings().all()
        return [Sample(**row) for row in reversed(rows)]

    def sample_of(self, run: str, key: str) -> Sample:
        """
        All of one sample of a run.

        Raises:
            NotFound: the run has no such sample, or not any more.
        """
        columns = t.policy_samples.c
        query = sa.select(t.policy_samples).where(
            columns.key == key, columns.run == run
        )
        with self._store.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound("there is no such sample any more")
        opened = json.loads(self._keyring.open(row.sealed, _purpose(row.policy)))
        return Sample(
            key=row.key,
            policy=row.policy,
            outcome=row.outcome,
            at=row.at,
            input=opened["input"],
            body=opened["body"],
            results=opened["results"],
        )

    def _sample(
        self,
        policy: t.Policy,
        document: Mapping[str, Any],
        verdict: Verdict,
        run: str,
        outcome: str,
    ) -> None:
        body = {
            "input": json.dumps(document, sort_keys=True),
            "body": policy.body,
            "results": verdict.results,
        }
        encoded = json.dumps(body).encode()
        if len(encoded) > _MAX_SAMPLE:
            log.warning("policy.sample_too_large", policy=policy.id, run=run)
            return
        with self._store.write() as tx:
            tx.connection.execute(
                sa.insert(t.policy_samples).values(
                    key=new_id(),
                    policy=policy.id,
                    run=run,
                    outcome=outcome,
                    at=now(),
                    sealed=self._keyring.seal(encoded, _purpose(policy.id)),
                )
            )

    def _judge(self, body: str, kind: str) -> Judge:
        key = (kind, body)
        with self._lock:
            if key in self._judges:
                self._judges.move_to_end(key)
                return self._judges[key]
        judge = self._compile(body, kind)
        with self._lock:
            self._judges[key] = judge
            if len(self._judges) > _KEPT:
                self._judges.popitem(last=False)
        return judge


def require_usable(
    wanted: Sequence[PolicyText], compile_it: Callable[[str, str], object]
) -> None:
    """
    Compile what is configured.

    Raises:
        ConfigurationError: with a sentence for each that cannot be used.
    """
    complaints = []
    for policy in wanted:
        try:
            compile_it(policy.body, policy.type)
        except PolicyUnusable as exc:
            complaints.append(f"policy {policy.name!r}: {exc}")
    if complaints:
        raise ConfigurationError("\n".join(complaints))


def set_policies(tx: Transaction, wanted: Sequence[PolicyText]) -> None:
    """Make the policies in the database those that are configured."""
    columns = t.policies.c
    known = {row.id: row for row in tx.connection.execute(sa.select(t.policies))}
    for name in known.keys() - {policy.name for policy in wanted}:
        tx.change(sa.delete(t.policies).where(columns.id == name))
    for policy in wanted:
        values = {
            "name": policy.name,
            "description": policy.description,
            "type": policy.type,
            "labels": list(policy.labels),
            "body": policy.body,
        }
        before = known.get(policy.name)
        if before is None:
            row = {**values, "id": policy.name, "created_at": now()}
            row["updated_at"] = row["created_at"]
            tx.connection.execute(sa.insert(t.policies).values(row))
        elif any(getattr(before, key) != value for key, value in values.items()):
            tx.change(
                sa.update(t.policies)
                .where(columns.id == policy.name)
                .values(**values, updated_at=now())
            )


def _samples(policy: str) -> sa.Select[Any]:
    columns = t.policy_samples.c
    query = sa.select(columns.key, columns.outcome, columns.at)
    return query.where(columns.policy == policy).order_by(columns.key.desc())


def _record(row: sa.Row[Any]) -> Node:
    return {"key": row.key, "outcome": row.outcome, "timestamp": seconds(row.at)}


def _purpose(policy: str) -> str:
    return f"sample:{policy}"


def _node(policy: t.Policy) -> Node:
    return {
        "id": policy.id,
        "name": policy.name,
        "description": policy.description,
        "body": policy.body,
        "spaceDetails": {
            "id": "root",
            "name": "root",
            "description": "",
            "parentSpace": None,
        },
        "createdAt": seconds(policy.created_at),
        "updatedAt": seconds(policy.updated_at),
        "type": policy.type,
        "labels": policy.labels,
    }
