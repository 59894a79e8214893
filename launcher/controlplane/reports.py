"""What a worker reports about a job in progress: output, states, and the plan."""

from __future__ import annotations

import dataclasses

from collections import Counter

import msgspec
import sqlalchemy as sa
import structlog

from launcher.controlplane import bell, stack_spec
from launcher.controlplane.errors import WorkerRefused
from launcher.controlplane.holding import (
    current,
    moved,
    seen,
    stop_reason,
    wrong_offset,
    wrong_state,
)
from launcher.controlplane.job_kinds import CONTENTS
from launcher.controlplane.lifecycle import LIFECYCLE, Event, for_state
from launcher.controlplane.log_chunks import Part
from launcher.controlplane.plan_policies import Judgement, PlanPolicies
from launcher.controlplane.pools import key_of
from launcher.controlplane.specs import Specs
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction
from launcher.sealing import box
from launcher.wire.jobs import RunState, RunType
from launcher.wire.messages import (
    MAX_PACKED_LOG,
    Ack,
    ErrorCode,
    LogAck,
    NextStep,
    PlanAnswer,
    PlanReport,
    StateReport,
    for_plan_answer,
)


log = structlog.get_logger()

_BY_PLAN = frozenset({RunType.TRACKED, RunType.PROPOSED})
"""Types that are over when the plan has no changes; others act whatever it says."""

MAX_LOG = 2 << 30
"""
Bytes of log of one job as they are stored, at most: masked, with timestamps and the
launcher's own lines.  What a job may write by default, a launcher counts: half of it.
"""

_CHUNK = sa.insert(t.log_chunks)
_LENGTHEN = (
    sa.update(t.jobs)
    .where(t.jobs.c.id == sa.bindparam("job_id"))
    .values(log_length=sa.bindparam("length"))
)


class Reports:
    """The use cases.  Refusals are `WorkerRefused`, with what to do as code."""

    def __init__(
        self,
        store: Store,
        specs: Specs,
        plan_policies: PlanPolicies,
        *,
        max_log: int = MAX_LOG,
    ) -> None:
        self._store = store
        self._specs = specs
        self._plan_policies = plan_policies
        self._max_log = max_log

    def append(
        self, pool: str, job_id: str, token: str, offset: int, part: Part
    ) -> LogAck:
        """
        Store *part*, which begins at *offset* of the job's log.

        Raises:
            WorkerRefused: WRONG_OFFSET when bytes before it are missing,
                TOO_LARGE when the log would be.
        """

        def change(tx: Transaction) -> LogAck:
            job, run = current(tx, pool, job_id, token)
            return self._appended(tx, job, run, offset, part)

        return self._store.together(change)

    def _appended(
        self,
        tx: Transaction,
        job: t.Job,
        run: t.Run,
        offset: int,
        part: Part,
    ) -> LogAck:
        known = job.log_length - offset
        if known < 0:
            raise wrong_offset(job)
        if offset + len(part) > self._max_log:
            raise WorkerRefused(
                ErrorCode.TOO_LARGE, f"a log has at most {self._max_log} bytes"
            )
        fresh = part if not known else Part(part.data[known:])
        length = job.log_length + len(fresh)
        if fresh:
            tx.connection.execute(
                _CHUNK,
                {
                    "job": job.id,
                    "start": job.log_length,
                    "data": fresh.data if fresh.frame is None else fresh.frame,
                    "unpacked": None if fresh.frame is None else len(fresh),
                },
            )
            tx.change(_LENGTHEN, {"job_id": job.id, "length": length})
            tx.wake(bell.of_run(run.id))
        return LogAck(next_offset=length, stop=stop_reason(run), packed=MAX_PACKED_LOG)

    def state(self, pool: str, job_id: str, token: str, report: StateReport) -> Ack:
        """
        Note that the run is in a state.

        Raises:
            WorkerRefused: WRONG_OFFSET until the log is there, WRONG_STATE when
                the run cannot get there, or may not because of a stop request.
        """
        with self._store.write() as tx:
            job, run = current(tx, pool, job_id, token)
            if report.log_offset > job.log_length:
                raise wrong_offset(job)
            if report.image_digest:
                tx.change(
                    sa.update(t.jobs)
                    .where(t.jobs.c.id == job_id)
                    .values(image_digest=report.image_digest[:255])
                )
            if run.state is report.state:
                return Ack(stop=stop_reason(run))
            _require_part(job, run, report.state)
            if report.log_offset < _log_start(tx, run):
                raise WorkerRefused(
                    ErrorCode.MALFORMED, "a later state begins later in the log"
                )
            run = moved(
                tx,
                run,
                _entering(report.state),
                job=job_id,
                log_start=report.log_offset,
            )
        log.info("run.moved", run=run.id, job=job_id, state=run.state)
        return Ack(stop=stop_reason(run))

    def plan(
        self, pool: str, job_id: str, token: str, report: PlanReport
    ) -> PlanAnswer:
        """
        Say what comes after the plan; the same report gets the same answer.

        Raises:
            WorkerRefused: WRONG_STATE when nothing was to be planned, or
                something else was reported before.
        """
        # Values are for policies, once; nobody else is to find them in the database.
        encoded = msgspec.json.encode(_without_values(report))
        judgement = self._judged(pool, job_id, token, report)
        with self._store.write() as tx:
            job, run = current(tx, pool, job_id, token)
            spec = self._specs.of_run(tx.connection, run)
            _, key = key_of(tx.connection, pool)
            following = job.next
            if following is None:
                if run.state is not RunState.PLANNING:
                    raise wrong_state(f"a run that is {run.state} has nothing planned")
                run = _note_plan(tx, run, report, judgement)
                following = self._following(tx, run, report)
                tx.change(
                    sa.update(t.jobs)
                    .where(t.jobs.c.id == job_id, t.jobs.c.plan.is_(None))
                    .values(plan=encoded, next=following)
                )
            elif job.plan != encoded:
                raise wrong_state("another plan was reported before")
        log.info("run.planned", run=run.id, job=job_id, next=following)
        if following is not NextStep.APPLY:
            denied = following is NextStep.FINISH and bool(run.denials)
            return PlanAnswer(next=following, denied=denied)
        environment = msgspec.json.encode(stack_spec.only_for_writing(spec))
        return PlanAnswer(
            next=following,
            sealed_environment=box.seal(
                environment, purpose=for_plan_answer(job_id), to=key
            ),
        )

    def _judged(
        self, pool: str, job_id: str, token: str, report: PlanReport
    ) -> Judgement:
        """What policies say of a plan that nobody has reported before."""
        with self._store.read() as connection:
            job, run = seen(connection, pool, job_id, token)
        if job.next is not None or run.state is not RunState.PLANNING:
            return Judgement()
        return self._plan_policies.judge(run, report)

    def _following(self, tx: Transaction, run: t.Run, report: PlanReport) -> NextStep:
        nothing = not report.has_changes or run.type is RunType.PROPOSED
        if run.denials or (nothing and run.type in _BY_PLAN):
            return NextStep.FINISH
        if run.type is RunType.TESTING:
            return NextStep.APPLY
        here = report.applies_here and run.type is RunType.TRACKED
        if run.stop_reason is not None or not here:
            return NextStep.HAND_OVER
        if self._specs.deploys_by_itself(tx.connection, run):
            return NextStep.APPLY
        return NextStep.HAND_OVER


def _require_part(job: t.Job, run: t.Run, entered: RunState) -> None:
    """Let a job enter only what is part of it, and nothing more once it should stop."""
    if entered not in CONTENTS[job.kind].states:
        raise wrong_state(f"{entered} is not a part of this job")
    if not LIFECYCLE[entered].writes or not LIFECYCLE[run.state].stoppable:
        return
    if entered is RunState.APPLYING and job.next is not NextStep.APPLY:
        raise wrong_state("this job may not apply")
    if run.stop_reason is not None:
        raise wrong_state(f"a stop was requested: {run.stop_reason}")


def _note_plan(
    tx: Transaction, run: t.Run, report: PlanReport, judgement: Judgement
) -> t.Run:
    actions = Counter(change.action for change in report.changes)
    noted = dataclasses.replace(
        run,
        added=actions["added"] + actions["replaced"],
        changed=actions["changed"],
        deleted=actions["deleted"] + actions["replaced"],
        resources=actions.total(),
        denials=list(judgement.denials),
        warnings=list(judgement.warnings),
        flags=list(judgement.flags),
    )
    names = ("added", "changed", "deleted", "resources", "denials", "warnings", "flags")
    tx.change(
        sa.update(t.runs)
        .where(t.runs.c.id == run.id)
        .values({name: getattr(noted, name) for name in names})
    )
    return noted


def _without_values(report: PlanReport) -> PlanReport:
    changes = (
        msgspec.structs.replace(change, before=None, after=None)
        for change in report.changes
    )
    return msgspec.structs.replace(report, changes=tuple(changes))


def _log_start(tx: Transaction, run: t.Run) -> int:
    query = sa.select(t.transitions.c.log_start).where(
        t.transitions.c.run == run.id, t.transitions.c.version == run.version
    )
    return int(tx.connection.execute(query).scalar_one())


def _entering(state: RunState) -> Event:
    try:
        return for_state(state)
    except KeyError:
        raise wrong_state(f"{state} is not reported by workers") from None
