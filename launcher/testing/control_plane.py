"""
A control plane in memory: what the launcher talks to, and what it said.

Implements `JobSource`, `Progress`, `LogSink` and `WorkspaceStore` of
`launcher.ports`, with the rules of the real one: a job has one holder, who proves
it with a token; a log is bytes at offsets; what is repeated changes nothing.
"""

from __future__ import annotations

import enum
import hashlib
import os
import threading
import time

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

import msgspec

from launcher import run_types
from launcher.errors import (
    ControlPlaneRefused,
    ControlPlaneUnavailable,
    LeaseLost,
)
from launcher.model import Claim, PlanDecision
from launcher.sealing.workspace import SealedFile
from launcher.wire.jobs import Job, Phase, RunState, Tokens, Variable
from launcher.wire.messages import (
    LogAck,
    NextStep,
    Offer,
    OutputsReport,
    PlanReport,
    Settlement,
    Verdict,
)


T = TypeVar("T")

_CLAIM_ATTEMPTS = 5
_ORDER = (
    RunState.PREPARING,
    RunState.INITIALIZING,
    RunState.PLANNING,
    RunState.PREPARING_APPLY,
    RunState.APPLYING,
    RunState.PERFORMING,
    RunState.DESTROYING,
)
_WRITING = frozenset({RunState.APPLYING, RunState.PERFORMING, RunState.DESTROYING})
_PART = 1 << 16


class Trouble(enum.Enum):
    """What can go wrong with one call; the caller cannot tell the two apart."""

    REQUEST_LOST = "it never arrived"
    ANSWER_LOST = "it was carried out, and nobody learned of it"


@dataclass(slots=True, kw_only=True)
class Record:
    """Everything there is to know about one job."""

    job: Job
    next: NextStep
    """What follows a plan with changes."""
    denied: bool = False
    """Whether a policy fails the run for its plan."""
    environment: tuple[Variable, ...] = ()
    """What the answer to the plan tells an apply."""
    token: str = ""
    """Of the current holder."""
    stop: str | None = None
    state: RunState
    entered: list[tuple[RunState, int, str]] = field(default_factory=list)
    """State, offset of the log, and the image's digest."""
    log: bytearray = field(default_factory=bytearray)
    plan: PlanReport | None = None
    answer: PlanDecision | None = None
    outputs: OutputsReport | None = None
    upload: tuple[str, bytearray] = ("", bytearray())
    """Name and bytes of a workspace on its way."""
    workspace: bytes | None = None
    """What the job left for the run's next one."""
    settlement: Settlement | None = None
    late: list[Settlement] = field(default_factory=list)
    """Settlements of somebody who did not hold the job any more."""
    renewals: int = 0
    issued: int = 0
    """How often there were new tokens."""
    renewed_at: float = 0.0

    def section(self, state: RunState) -> bytes:
        """What was printed while the run was in *state*."""
        offsets = [offset for _, offset, _ in self.entered] + [len(self.log)]
        starts = [entered for entered, _, _ in self.entered]
        place = starts.index(state)
        return bytes(self.log[offsets[place] : offsets[place + 1]])


class MemoryControlPlane:
    """All four ports in one; safe to use from several threads."""

    def __init__(
        self, *, lease_seconds: float = 90.0, renew_seconds: float = 20.0
    ) -> None:
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._changed = threading.Condition()
        self._open: deque[str] = deque()
        self._troubles: dict[str, deque[Trouble]] = defaultdict(deque)
        self._away = False
        self.jobs: dict[str, Record] = {}
        self._after: dict[str, Callable[[], None]] = {}
        self.calls: list[str] = []
        """Names of all calls that arrived, in order."""
        self.refused = 0
        self.uploads: dict[str, bytes] = {}
        """Code that people uploaded, by the run it is for."""
        """Number of calls that did not arrive."""

    # --- the script

    def add(
        self,
        job: Job,
        *,
        next_step: NextStep = NextStep.FINISH,
        environment: tuple[Variable, ...] = (),
        denied: bool = False,
    ) -> Offer:
        """Offer *job* to whoever asks; *next_step* is what follows its plan."""
        with self._changed:
            self.jobs[job.id] = Record(
                job=job,
                next=NextStep.FINISH if denied else next_step,
                denied=denied,
                environment=environment,
                state=job.run.state,
            )
            self._open.append(job.id)
            self._changed.notify_all()
        return Offer(job=job.id, run=job.run.id)

    def confirm(self, planned: str, apply: str) -> Offer:
        """Offer the job *apply*, which goes on where *planned* handed over."""
        record = self.jobs[planned]
        before = record.job
        run = msgspec.structs.replace(before.run, state=RunState.PREPARING_APPLY)
        return self.add(
            msgspec.structs.replace(
                before,
                id=apply,
                run=run,
                phases=(run_types.changing(before),),
                restores_workspace=True,
                image_digest=record.entered[-1][2],
            )
        )

    def request_stop(self, job: str, reason: str = "stopped by a user") -> None:
        with self._changed:
            self.jobs[job].stop = reason

    def take_away(self, job: str) -> None:
        """Make the holder's token stale, as after a lease that ran out."""
        with self._changed:
            self.jobs[job].token = "taken away"  # noqa: S105 (nobody has it)

    def trouble(self, call: str, *troubles: Trouble) -> None:
        """Let the next calls of that name go wrong, one after the other."""
        with self._changed:
            self._troubles[call].extend(troubles)

    def after(self, call: str, action: Callable[[], None]) -> None:
        """Do something as soon as the next call of that name is answered."""
        with self._changed:
            self._after[call] = action

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Answer nothing during the block."""
        with self._changed:
            self._away = True
        try:
            yield
        finally:
            with self._changed:
                self._away = False

    def wait_for(self, condition: Callable[[], object], *, seconds: float = 30) -> None:
        """
        Block until *condition* holds; it is looked at after every call.

        Raises:
            TimeoutError: it did not come true.
        """
        with self._changed:
            if not self._changed.wait_for(condition, seconds):
                raise TimeoutError(f"waited {seconds} s in vain")

    # --- JobSource

    def receive(self, slot: int, *, wait: float) -> Offer | None:
        def offer() -> Offer | None:
            self._changed.wait_for(lambda: self._open, wait)
            if not self._open:
                return None
            job = self._open[0]
            self._open.rotate(-1)
            return Offer(job=job, run=self.jobs[job].job.run.id)

        return self._answer("receive", offer)

    def claim(self, slot: int, offer: Offer, identity: str) -> Claim | None:
        token = f"token of {identity}"

        def take() -> Claim | None:
            record = self.jobs.get(offer.job)
            if record is None or record.token not in ("", token):
                return None
            if record.token == "":
                record.token = token
                self._open.remove(offer.job)
            record.renewed_at = time.monotonic()
            return Claim(record.job, token, self._lease_seconds, self._renew_seconds)

        for _ in range(1, _CLAIM_ATTEMPTS):
            try:
                return self._answer("claim", take)
            except ControlPlaneUnavailable:
                continue
        return self._answer("claim", take)

    def renew(self, claim: Claim) -> str | None:
        def extend() -> str | None:
            record = self._held(claim)
            record.renewals += 1
            record.renewed_at = time.monotonic()
            return _stop(record)

        return self._answer("renew", extend)

    def settle(self, claim: Claim, settlement: Settlement) -> None:
        def end() -> None:
            known = self.jobs[claim.job.id]
            if known.settlement is not None and known.token == claim.token:
                if known.settlement != settlement:
                    raise _refused("the job was settled differently")
                return
            if known.token != claim.token:
                known.late.append(settlement)
            record = self._held(claim)
            if settlement.log_length > len(record.log):
                raise _refused("bytes of the log are missing")
            handed_over = settlement.verdict is Verdict.HANDED_OVER
            if handed_over and record.stop is None and record.workspace is None:
                raise _refused("no workspace was stored")
            record.settlement = settlement

        self._answer("settle", end)

    # --- Progress

    def entered(
        self, claim: Claim, state: RunState, *, log_offset: int, image_digest: str = ""
    ) -> str | None:
        def enter() -> str | None:
            record = self._held(claim)
            if log_offset > len(record.log):
                raise _refused("bytes of the log are missing")
            if state is record.state:
                return _stop(record)
            if _ORDER.index(state) < _ORDER.index(record.state):
                raise _refused(f"a run that is {record.state} cannot be {state}")
            if state in _WRITING and Phase.PLAN in record.job.phases:
                if record.answer is None or record.answer.next is not NextStep.APPLY:
                    raise _refused("this job may not apply")
                if record.stop is not None:
                    raise _refused("a stop was requested")
            record.state = state
            record.entered.append((state, log_offset, image_digest))
            return _stop(record)

        return self._answer("entered", enter)

    def planned(self, claim: Claim, report: PlanReport) -> PlanDecision:
        def answer() -> PlanDecision:
            record = self._held(claim)
            if record.answer is not None and record.plan != report:
                raise _refused("another plan was reported before")
            if record.state is not RunState.PLANNING:
                raise _refused(f"a run that is {record.state} has nothing planned")
            if record.answer is None:
                following = record.next if report.has_changes else NextStep.FINISH
                if following is NextStep.APPLY and (
                    record.stop or not report.applies_here
                ):
                    following = NextStep.HAND_OVER
                applies = following is NextStep.APPLY
                record.plan = report
                record.answer = PlanDecision(
                    next=following,
                    environment=record.environment if applies else (),
                    denied=record.denied,
                )
            return record.answer

        return self._answer("planned", answer)

    def tokens(self, claim: Claim) -> Tokens:
        def issue() -> Tokens:
            record = self._held(claim)
            record.issued += 1
            before = record.job.tokens
            if not before.refresh_seconds:
                raise _refused("there are no tokens for this job")
            return msgspec.structs.replace(
                before,
                api=anew(before.api, record.issued),
                oidc=anew(before.oidc, record.issued),
            )

        return self._answer("tokens", issue)

    def told(self, claim: Claim, report: OutputsReport) -> None:
        def keep() -> None:
            record = self._held(claim)
            if record.state is not RunState.APPLYING:
                raise _refused(f"a run that is {record.state} has no outputs")
            record.outputs = report

        self._answer("told", keep)

    # --- LogSink

    def append(self, claim: Claim, offset: int, data: bytes) -> LogAck:
        def store() -> LogAck:
            record = self._held(claim)
            known = len(record.log) - offset
            if known < 0:
                raise _refused("bytes of the log are missing")
            record.log += data[known:]
            return LogAck(next_offset=len(record.log), stop=_stop(record))

        return self._answer("append", store)

    # --- WorkspaceStore

    def save(self, claim: Claim, sealed: SealedFile) -> None:
        def arrived() -> int:
            record = self._held(claim)
            if record.answer is None or record.answer.next is not NextStep.HAND_OVER:
                raise _refused("nothing is handed over by this job")
            if record.upload[0] != sealed.upload:
                record.upload = (sealed.upload, bytearray())
            return len(record.upload[1])

        offset = self._answer("save", arrived)
        while part := sealed.read(offset, _PART):

            def store(part: bytes = part) -> int:
                arrived()
                content = self._held(claim).upload[1]
                content.extend(part)
                return len(content)

            offset = self._answer("save", store)

        def finish() -> None:
            arrived()
            record = self._held(claim)
            record.workspace = bytes(record.upload[1])

        self._answer("saved", finish)

    def restore(self, claim: Claim, into: BinaryIO) -> None:
        def find() -> bytes:
            record = self._held(claim)
            stored = [
                other.workspace
                for other in self.jobs.values()
                if other.job.run.id == record.job.run.id and other is not record
            ]
            if not stored or stored[-1] is None:
                raise _refused("no workspace was stored for this job")
            return stored[-1]

        self._send("restore", find, into)

    def uploaded(self, claim: Claim, into: BinaryIO) -> None:
        def find() -> bytes:
            run = self._held(claim).job.run.id
            if run not in self.uploads:
                raise _refused("no code was uploaded for this run")
            return self.uploads[run]

        self._send("uploaded", find, into)

    def _send(self, call: str, find: Callable[[], bytes], into: BinaryIO) -> None:
        offset = into.seek(0, os.SEEK_END)
        while True:
            content = self._answer(call, find)
            part = content[offset : offset + _PART]
            into.write(part)
            offset += len(part)
            if offset == len(content):
                break

    # --- details

    def _answer(self, call: str, handle: Callable[[], T]) -> T:
        with self._changed:
            waiting = self._troubles[call]
            trouble = waiting.popleft() if waiting else None
            if self._away or trouble is Trouble.REQUEST_LOST:
                self.refused += 1
                raise _unavailable()
            self.calls.append(call)
            try:
                answer = handle()
            finally:
                self._changed.notify_all()
            if action := self._after.pop(call, None):
                action()
            if trouble is Trouble.ANSWER_LOST:
                raise _unavailable()
            return answer

    def _held(self, claim: Claim) -> Record:
        record = self.jobs[claim.job.id]
        silent = time.monotonic() - record.renewed_at
        overdue = silent > self._lease_seconds and record.state not in _WRITING
        if record.token != claim.token or record.settlement is not None or overdue:
            raise LeaseLost("the job is no longer this worker's")
        return record


def anew(token: str, number: int) -> str:
    """What the *number*-th request for another *token* gets."""
    return hashlib.sha256(f"{token} {number}".encode()).hexdigest()


def _stop(record: Record) -> str | None:
    stoppable = record.state not in _WRITING and Phase.PLAN in record.job.phases
    return record.stop if stoppable else None


def _unavailable() -> ControlPlaneUnavailable:
    return ControlPlaneUnavailable("the control plane cannot be reached")


def _refused(details: str) -> ControlPlaneRefused:
    return ControlPlaneRefused(
        "the control plane refused a request of the worker", details=details
    )
