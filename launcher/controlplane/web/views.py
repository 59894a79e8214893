"""What the pages show, read in one short transaction for each page."""

from __future__ import annotations

import json

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from launcher.controlplane.actors import Actor
from launcher.controlplane.approvals import REVIEWED, Approvals
from launcher.controlplane.clock import now
from launcher.controlplane.errors import NotFound
from launcher.controlplane.hand_over import metadata_of, plan_of
from launcher.controlplane.lifecycle import LIFECYCLE, Event
from launcher.controlplane.policies import Policies
from launcher.controlplane.products import Node, Products
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, every, one
from launcher.controlplane.web.charts import Bar, bars, steps
from launcher.wire.jobs import RunState, RunType
from launcher.wire.messages import ResourceChange


RUNS = 50
"""On one page."""
_MOST_READ = 128 * 1024
_QUEUE_HOURS = 24
_WAITING = (RunState.QUEUED, RunState.READY, RunState.CONFIRMED)
_ACTIONS = {
    Event.CONFIRM: "Confirm",
    Event.DISCARD: "Discard",
    Event.CANCEL: "Cancel",
}
NEEDS = {
    "confirm": "runConfirm",
    "discard": "runDiscard",
    "cancel": "runCancel",
    "stop": "runStop",
    "approve": "runReview",
    "reject": "runReview",
    "replan": "runTargetedReplan",
}
"""What can be done on a run's page, each as the field of GraphQL that does the same."""


@dataclass(frozen=True, slots=True)
class Step:
    """One state in the life of a run."""

    version: int
    state: RunState
    at: datetime
    lasted: timedelta
    by: str | None
    note: str | None
    is_last: bool


@dataclass(frozen=True, slots=True)
class Work:
    """One hand-over of a run to a worker."""

    kind: str
    worker: str | None
    image_digest: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A sample of a policy's evaluation."""

    key: str
    policy: str
    outcome: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Opinion:
    """One review."""

    author: str
    approves: bool
    note: str
    state: RunState
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    run: t.Run
    at: datetime
    title: str
    steps: Sequence[Step]
    works: Sequence[Work]
    changes: Sequence[ResourceChange]
    metadata: Sequence[str]
    samples: Sequence[Kept]
    reviews: Sequence[Opinion]
    outputs: Sequence[Node]
    """Of the stack, as they are now, if this run may have made them."""
    actions: dict[str, str]
    """What the visitor can do with it now: names of actions, and what buttons say."""
    can_review: bool
    can_replan: bool
    unreachable: bool
    over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    policy: str
    outcome: str
    at: datetime
    results: str
    """JSON, as is the input."""
    input: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    id: str
    type: str
    state: RunState
    at: datetime
    lasted: timedelta
    title: str
    by: str
    delta: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StackView:
    runs: Sequence[RunRow]
    durations: str
    """A chart."""
    before: str | None
    """Where the next page begins."""


class Views:
    """Reads for the pages."""

    def __init__(
        self, store: Store, policies: Policies, approvals: Approvals, products: Products
    ) -> None:
        self._store = store
        self._policies = policies
        self._approvals = approvals
        self._products = products

    def stack(self, slug: str, before: str | None) -> StackView:
        """
        Runs of a stack, newest first, strictly older than *before*.

        Raises:
            NotFound: there is no such stack.
        """
        columns = t.runs.c
        query = sa.select(t.runs).where(columns.stack == slug)
        if before is not None:
            number = sa.select(columns.number).where(columns.id == before)
            query = query.where(columns.number < number.scalar_subquery())
        query = query.order_by(columns.number.desc()).limit(RUNS + 1)
        known = sa.select(t.stacks.c.slug).where(
            t.stacks.c.slug == slug, t.stacks.c.removed_at.is_(None)
        )
        with self._store.read() as connection:
            if connection.execute(known).one_or_none() is None:
                raise NotFound("there is no such stack")
            found = every(connection, t.Run, query)
        shown = [_row(run) for run in found[:RUNS]]
        return StackView(
            runs=shown,
            durations=_durations(slug, shown),
            before=shown[-1].id if len(found) > RUNS else None,
        )

    def run(self, slug: str, run: str, actor: Actor) -> RunView:
        """
        Everything about a run but its log, and what *actor* can do with it.

        Raises:
            NotFound: the stack has no such run.
        """
        query = sa.select(t.runs).where(t.runs.c.id == run, t.runs.c.stack == slug)
        with self._store.read() as connection:
            found = one(connection, t.Run, query)
            if found is None:
                raise NotFound("there is no such run")
            transitions = every(
                connection,
                t.Transition,
                sa.select(t.transitions)
                .where(t.transitions.c.run == run)
                .order_by(t.transitions.c.version),
            )
            jobs = every(
                connection,
                t.Job,
                sa.select(t.jobs)
                .where(t.jobs.c.run == run)
                .order_by(t.jobs.c.created_at),
            )
            plan = plan_of(connection, run)
            metadata = metadata_of(connection, run)
            samples = self._policies.samples_of(connection, run)
            columns = t.reviews.c
            reviews = every(
                connection,
                t.Review,
                sa.select(t.reviews)
                .where(columns.run == run)
                .order_by(columns.created_at, columns.id),
            )
            is_reviewed = found.state in REVIEWED and (
                found.needs_approval or self._approvals.are_needed(connection, found)
            )
        traits = LIFECYCLE[found.state]
        applied = found.type is RunType.TRACKED and found.state is RunState.FINISHED
        return RunView(
            run=found,
            at=_time(found.created_at),
            title=_title(found),
            steps=_steps(transitions),
            works=[
                Work(job.kind.value, job.worker, job.image_digest)
                for job in jobs
                if job.worker
            ],
            changes=plan.changes if plan else (),
            metadata=metadata,
            samples=[
                Kept(each.key, each.policy, each.outcome, _time(each.at))
                for each in samples
            ],
            reviews=[
                Opinion(
                    each.author,
                    each.approves,
                    each.note,
                    each.state,
                    _time(each.created_at),
                )
                for each in reviews
            ],
            outputs=self._products.outputs(slug) if applied else (),
            actions={
                name: label
                for name, label in _actions(found).items()
                if actor.may(NEEDS[name])
            },
            can_review=is_reviewed and actor.may(NEEDS["approve"]),
            can_replan=Event.REPLAN in traits.leads_to
            and found.type is RunType.TRACKED
            and actor.may(NEEDS["replan"]),
            unreachable=found.unreachable_since is not None,
            over=traits.terminal,
        )

    def sample(self, slug: str, run: str, key: str) -> SampleView:
        """
        One sample of a run, for people to read.

        Raises:
            NotFound: the stack has no such run, or the run no such sample.
        """
        query = sa.select(t.runs.c.id).where(t.runs.c.id == run, t.runs.c.stack == slug)
        with self._store.read() as connection:
            if connection.execute(query).one_or_none() is None:
                raise NotFound("there is no such run")
        found = self._policies.sample_of(run, key)
        return SampleView(
            policy=found.policy,
            outcome=found.outcome,
            at=_time(found.at),
            results=_readable(json.dumps(found.results, sort_keys=True)),
            input=_readable(found.input),
            body=found.body,
        )

    def queue(self, pool: str) -> str:
        """A chart of how many runs waited for workers of a pool, up to now."""
        end = now()
        begin = end - _QUEUE_HOURS * 3_600_000_000_000
        columns = t.transitions.c
        query = (
            sa.select(columns.run, columns.state, columns.at)
            .join(t.runs, t.runs.c.id == columns.run)
            .join(t.stacks, t.stacks.c.slug == t.runs.c.stack)
            .where(
                t.stacks.c.pool == pool,
                sa.or_(t.runs.c.updated_at >= begin, t.runs.c.state.in_(_WAITING)),
            )
            .order_by(columns.at, columns.version)
        )
        with self._store.read() as connection:
            rows = connection.execute(query).all()
        waiting: set[str] = set()
        points = [(0.0, 0)]
        for row in rows:
            (waiting.add if row.state in _WAITING else waiting.discard)(row.run)
            time = max(0.0, (row.at - begin) / (end - begin))
            points.append((time, len(waiting)))
        points.append((1.0, len(waiting)))
        most = max(value for _, value in points)
        return steps(
            f"Runs waiting, last {_QUEUE_HOURS} hours", points, f"at most {most}"
        )


def _readable(text: str) -> str:
    """JSON in lines; of very much, the beginning as it is."""
    if len(text) > _MOST_READ:
        return f"{text[:_MOST_READ]} …"
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except RecursionError:
        return text


def _row(run: t.Run) -> RunRow:
    delta = ""
    if run.resources is not None:
        delta = f"+{run.added} ~{run.changed} −{run.deleted}"  # noqa: RUF001 (a minus)
    return RunRow(
        id=run.id,
        type=run.type.value,
        state=run.state,
        at=_time(run.created_at),
        lasted=_time(run.updated_at) - _time(run.created_at),
        title=_title(run),
        by=run.triggered_by,
        delta=delta,
    )


def _title(run: t.Run) -> str:
    return run.commit_message.partition("\n")[0][:255]


def _durations(slug: str, runs: Sequence[RunRow]) -> str:
    ended = [row for row in reversed(runs) if LIFECYCLE[row.state].terminal]
    values = [
        Bar(
            value=row.lasted.total_seconds(),
            kind=row.state.lower(),
            text=f"{row.state}, {spoken(row.lasted)}, {row.at:%Y-%m-%d %H:%M}",
            link=f"/stack/{slug}/run/{row.id}",
        )
        for row in ended
    ]
    longest = max((row.lasted for row in ended), default=timedelta())
    return bars("How long runs took", values, spoken(longest))


def _steps(transitions: Sequence[t.Transition]) -> list[Step]:
    ends = [*(_time(each.at) for each in transitions[1:]), datetime.now(UTC)]
    return [
        Step(
            version=each.version,
            state=each.state,
            at=_time(each.at),
            lasted=end - _time(each.at),
            by=each.username,
            note=each.note,
            is_last=LIFECYCLE[each.state].terminal,
        )
        for each, end in zip(transitions, ends, strict=True)
    ]


def _actions(run: t.Run) -> dict[str, str]:
    traits = LIFECYCLE[run.state]
    found = {
        event.name.lower(): label
        for event, label in _ACTIONS.items()
        if event in traits.leads_to
    }
    if traits.stoppable and run.stop_reason is None:
        found["stop"] = "Stop"
    return found


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


def spoken(time: timedelta) -> str:
    """How long something took, as ``1 h 02 min``, ``3 min 05 s`` or ``4 s``."""
    seconds = max(0, round(time.total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
