"""
How a job ends, and what that means for its run.

A worker's word alone ends nothing well: whether a run is finished follows from
the states and answers that the control plane itself has recorded.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
import structlog

from launcher.controlplane.approvals import Approvals
from launcher.controlplane.clock import now
from launcher.controlplane.drift import reconcile
from launcher.controlplane.holding import (
    is_token,
    locked,
    moved,
    stale,
    stop_reason,
    unknown_job,
    workspace_of,
    wrong_offset,
    wrong_state,
)
from launcher.controlplane.job_kinds import after_plan
from launcher.controlplane.leases import Leases
from launcher.controlplane.lifecycle import LIFECYCLE, Event
from launcher.controlplane.pools import key_of
from launcher.controlplane.products import carried_out, note_applied
from launcher.controlplane.removal import delete_destroyed
from launcher.controlplane.specs import Specs
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction
from launcher.wire.jobs import RunState, RunType
from launcher.wire.messages import Ack, NextStep, Settlement, Verdict


log = structlog.get_logger()

LOG_INCOMPLETE = "some output was lost"
MAX_NOTE = 4000


class Settling:
    """The use case.  Refusals are `WorkerRefused`, with what to do as code."""

    def __init__(
        self, store: Store, specs: Specs, leases: Leases, approvals: Approvals
    ) -> None:
        self._approvals = approvals
        self._store = store
        self._specs = specs
        self._leases = leases

    def settle(self, pool: str, job_id: str, token: str, settlement: Settlement) -> Ack:
        """
        End the job, and with it the run or this part of it.

        Raises:
            WorkerRefused: WRONG_OFFSET while log is missing, WRONG_STATE when
                the run cannot have ended like this, STALE_TOKEN when the report
                comes too late (it is kept all the same).
        """
        encoded = msgspec.json.encode(settlement)
        with self._store.write() as tx:
            job, run = locked(tx, job_id, ends=True)
            if job.pool != pool:
                raise unknown_job(job_id)
            if not is_token(job, token):
                raise stale()
            if job.state is t.JobState.SETTLED:
                if job.settlement != encoded:
                    raise wrong_state("the job was settled differently")
                return Ack()
            late = job.state is not t.JobState.CLAIMED
            if late:
                _keep_late(tx, job_id, encoded)
            else:
                run = self._settle(tx, job, run, settlement, encoded)
        if late:
            log.warning("settlement.came_late", job=job_id, run=run.id)
            raise stale()
        self._leases.end(job_id)
        self._approvals.consider(run.id)
        log.info(
            "job.settled",
            job=job_id,
            run=run.id,
            verdict=settlement.verdict,
            state=run.state,
            reason=settlement.reason,
            code=settlement.code,
            log_complete=settlement.log_complete,
        )
        return Ack()

    def _settle(
        self,
        tx: Transaction,
        job: t.Job,
        run: t.Run,
        settlement: Settlement,
        encoded: bytes,
    ) -> t.Run:
        if settlement.log_length > job.log_length:
            raise wrong_offset(job)
        event = self._ending(tx, job, run, settlement)
        stopped = event is Event.STOP
        note = settlement.reason[:2000]
        if stopped and run.stop_reason:
            note = run.stop_reason
        if not settlement.log_complete:
            missing = settlement.log_missing
            what = f"{LOG_INCOMPLETE}: {missing} bytes" if missing else LOG_INCOMPLETE
            note = f"{note} ({what})" if note else what
        tx.change(
            sa.update(t.jobs)
            .where(t.jobs.c.id == job.id, t.jobs.c.state == t.JobState.CLAIMED)
            .values(
                state=t.JobState.SETTLED,
                settled_at=now(),
                verdict=settlement.verdict,
                settlement=encoded,
            )
        )
        text = None
        if settlement.verdict is Verdict.FINISHED and event is Event.FAIL:
            note = "denied by a plan policy: " + "; ".join(run.denials)
            text = note + "\n"
        elif event in (Event.HAND_OVER, Event.ASK_FOR_REVIEW) and run.warnings:
            note = "warned by a plan policy: " + "; ".join(run.warnings)
        ended = moved(
            tx,
            run,
            event,
            username=run.stop_requested_by if stopped else None,
            note=note[:MAX_NOTE] or None,
            text=text,
            opens=after_plan(run.type) if event is Event.AUTO_CONFIRM else None,
        )
        if event in (Event.HAND_OVER, Event.ASK_FOR_REVIEW):
            self._hold_for_approval(tx, ended)
        reconcile(tx, self._specs, ended)
        if carried_out(run.state, ended.state):
            note_applied(tx, ended)
            if ended.type is RunType.DESTROY:
                delete_destroyed(tx, ended)
        return ended

    def _hold_for_approval(self, tx: Transaction, run: t.Run) -> None:
        needed = self._approvals.are_needed(tx.connection, run)
        tx.change(
            sa.update(t.runs).where(t.runs.c.id == run.id).values(needs_approval=needed)
        )

    def _ending(
        self, tx: Transaction, job: t.Job, run: t.Run, settlement: Settlement
    ) -> Event:
        """What a verdict means for the run."""
        match settlement.verdict:
            case Verdict.FAILED:
                # A worker that was not let into what it asked for reports a failure.
                asked = job.next is NextStep.APPLY or job.kind is t.JobKind.TASK
                barred = asked and stop_reason(run) is not None
                return Event.STOP if barred else Event.FAIL
            case Verdict.STOPPED:
                # Who stops in the middle of an apply has not stopped cleanly.
                return Event.STOP if LIFECYCLE[run.state].stoppable else Event.FAIL
            case Verdict.FINISHED:
                planned = run.state is RunState.PLANNING
                if planned and job.next is not NextStep.FINISH:
                    raise wrong_state("the run is not finished by its plan")
                if planned and run.denials:
                    return Event.FAIL
                warned = planned and run.type is RunType.PROPOSED and run.warnings
                if warned and self._approvals.are_needed(tx.connection, run):
                    return Event.ASK_FOR_REVIEW
                applied = run.state is RunState.APPLYING
                if applied and job.kind is t.JobKind.TESTING:
                    raise wrong_state("a test is finished once all is destroyed")
                return Event.FINISH
            case Verdict.HANDED_OVER:
                return self._handed_over(tx, job, run)

    def _handed_over(self, tx: Transaction, job: t.Job, run: t.Run) -> Event:
        if job.next is not NextStep.HAND_OVER:
            raise wrong_state("nothing is handed over by this job")
        if run.stop_reason is not None:
            return Event.STOP
        stored = workspace_of(tx.connection, run.id)
        if stored is None or stored.job != job.id:
            raise wrong_state("no workspace was stored")
        if stored.generation != key_of(tx.connection, job.pool or "")[0]:
            # A reset that has overtaken this request did not see the run wait.
            raise wrong_state("the worker pool was reset")
        if self._specs.deploys_by_itself(tx.connection, run):
            return Event.AUTO_CONFIRM
        return Event.HAND_OVER


def _keep_late(tx: Transaction, job_id: str, settlement: bytes) -> None:
    tx.connection.execute(
        sa.insert(t.late_reports).values(
            job=job_id, received_at=now(), settlement=settlement
        )
    )
