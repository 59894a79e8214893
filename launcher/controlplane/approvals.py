"""
Approval policies: which runs they hold back, and what reviews do about it.

A run that such a policy is attached to waits in QUEUED, UNCONFIRMED or PENDING_REVIEW
until every policy approves; one that rejects fails it at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
import structlog

from launcher.controlplane import audit
from launcher.controlplane.actors import Actor
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.drift import reconcile
from launcher.controlplane.errors import NotFound, RequestRefused
from launcher.controlplane.hand_over import metadata_of
from launcher.controlplane.lifecycle import Event
from launcher.controlplane.plan_policies import flags_after
from launcher.controlplane.policies import Policies, Verdict
from launcher.controlplane.policy_documents import about_approval
from launcher.controlplane.specs import Specs
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, every, one
from launcher.controlplane.transitions import move, run_to_change, schedule
from launcher.wire.jobs import RunState


log = structlog.get_logger()

REVIEWED = frozenset({RunState.QUEUED, RunState.UNCONFIRMED, RunState.PENDING_REVIEW})
MAX_NOTE = 4000
MAX_REVIEWS = 1000


class Approvals:
    """The use cases."""

    def __init__(self, store: Store, specs: Specs, policies: Policies) -> None:
        self._store = store
        self._specs = specs
        self._policies = policies

    def are_needed(
        self, connection: sa.Connection, run: t.Run, stack: t.Stack | None = None
    ) -> bool:
        """Whether an approval policy is attached to *run*'s *stack*."""
        names = self._specs.policies_of(connection, run, stack)
        return bool(self._policies.attached(connection, names, "APPROVAL"))

    def review(
        self, stack: str, run: str | None, actor: Actor, *, approves: bool, note: str
    ) -> str:
        """
        Let *actor* approve or reject a run, by default the stack's blocker.

        Raises:
            NotFound: there is no such run.
            RequestRefused: there is nothing to review about it now.
        """
        with self._store.write() as tx:
            query = sa.select(t.stacks.c.blocker).where(t.stacks.c.slug == stack)
            wanted = run or tx.connection.execute(query).scalar_one_or_none()
            found = run_to_change(tx, wanted) if wanted else None
            if found is None or found.stack != stack:
                raise NotFound(f"run {wanted!r} of stack {stack!r} was not found")
            if found.state not in REVIEWED:
                raise RequestRefused(f"a run that is {found.state} is not reviewed")
            count = sa.select(sa.func.count()).select_from(t.reviews)
            count = count.where(t.reviews.c.run == found.id)
            if tx.connection.execute(count).scalar_one() >= MAX_REVIEWS:
                raise RequestRefused(f"a run has at most {MAX_REVIEWS} reviews")
            review = new_id()
            tx.connection.execute(
                sa.insert(t.reviews).values(
                    id=review,
                    run=found.id,
                    author=actor.id,
                    approves=approves,
                    note=note.strip()[:MAX_NOTE],
                    state=found.state,
                    version=found.version,
                    created_at=now(),
                )
            )
            action = "run.approve" if approves else "run.reject"
            audit.note(tx, actor, action, stack, run=found.id)
        log.info("run.reviewed", run=found.id, approves=approves, by=actor.id)
        self.consider(found.id)
        return review

    def consider(self, run_id: str) -> None:
        """Ask the policies about a run that waits for them, and do what they say."""
        with self._store.read() as connection:
            query = sa.select(t.runs).where(t.runs.c.id == run_id)
            run = one(connection, t.Run, query)
            if run is None or run.state not in REVIEWED or not run.needs_approval:
                return
            names = self._specs.policies_of(connection, run)
            attached = self._policies.attached(connection, names, "APPROVAL")
            stack = self._specs.row(connection, run.stack)
            spec = self._specs.of_run(connection, run)
            columns = t.reviews.c
            reviews = every(
                connection,
                t.Review,
                sa.select(t.reviews)
                .where(columns.run == run.id)
                .order_by(columns.created_at, columns.id),
            )
            metadata = metadata_of(connection, run.id)
        document = about_approval(run, stack, spec, reviews, metadata)
        verdicts = self._policies.ask(
            attached, document, run=run.id, outcome=outcome_of
        )
        self._obey(run, verdicts)

    def consider_all(self) -> None:
        """Ask about every run that waits: what a crash has cut short is done again."""
        query = sa.select(t.runs.c.id).where(
            t.runs.c.needs_approval, t.runs.c.state.in_(REVIEWED)
        )
        with self._store.read() as connection:
            waiting = list(connection.execute(query).scalars())
        for run in waiting:
            self.consider(run)

    def _obey(self, run: t.Run, verdicts: Sequence[Verdict]) -> None:
        rejecting = [each.policy for each in verdicts if each.is_true("reject")]
        approved = all(each.is_true("approve") for each in verdicts)
        flags = list(flags_after(run.flags, verdicts))
        with self._store.write() as tx:
            current = run_to_change(tx, run.id)
            if current is None or current.version != run.version:
                return
            values = {"flags": flags, "needs_approval": not approved}
            tx.change(sa.update(t.runs).where(t.runs.c.id == run.id).values(values))
            if rejecting:
                named = ", ".join(rejecting)
                sentence = f"rejected by the approval policy {named}"
                move(tx, current, Event.FAIL, note=sentence, text=f"{sentence}\n")
            elif approved and run.state is RunState.PENDING_REVIEW:
                reconcile(tx, self._specs, move(tx, current, Event.FINISH))
            elif approved and run.state is RunState.QUEUED:
                schedule(tx, run.stack)


def outcome_of(verdict: Verdict) -> str:
    """As samples show it."""
    if verdict.is_true("reject"):
        return "reject"
    return "approve" if verdict.is_true("approve") else "undecided"
