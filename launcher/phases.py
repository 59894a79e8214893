"""
The phases of a job, one after the other, and what follows from their results.

A phase that fails is an ordinary ending.  Nothing that the job printed decides
here: the exit code does, the plan's file, and the control plane's answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import structlog

from launcher import activity, environment
from launcher.admission import Gate
from launcher.cancel import CancelToken
from launcher.errors import ControlPlaneRefused, JobRejected, JournalUnusable
from launcher.journal import Entry
from launcher.lease import Ended, Lease
from launcher.model import (
    INTERRUPTED,
    AdmittedJob,
    Claim,
    Exit,
    Mount,
    Outcome,
    PhaseScript,
    PlanDecision,
    ResolvedJob,
)
from launcher.output.joblog import JobLog
from launcher.output.stream import MOST_ADDED, MOST_ADDED_BYTES
from launcher.ports import Output, Ports, Sandbox
from launcher.rescue import Rescued, rescue
from launcher.resuming import ResumedLog, Tap
from launcher.script import phase_script
from launcher.settings import Settings
from launcher.tokens import FreshTokens
from launcher.vendors import Plan, VendorTable
from launcher.vendors.table import PLAN_FILE
from launcher.watch import Watch
from launcher.wire.jobs import Job, Phase, RunState, Variable
from launcher.wire.messages import NextStep, PlanReport, Verdict
from launcher.workspace import project_directory, sealed


log = structlog.get_logger()

STATES: Mapping[str, RunState] = environment.STATES

_HOOKS = {
    Phase.INITIALIZE: "init",
    Phase.PLAN: "plan",
    Phase.APPLY: "apply",
    Phase.PERFORM: "perform",
    Phase.DESTROY: "destroy",
}

_LAST_HOOKS = "after_run"
_LARGEST_PLAN = 128 << 20
_LAST_HOOKS_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Everybody a running job talks to."""

    claim: Claim
    entry: Entry
    ports: Ports
    settings: Settings
    gate: Gate
    lease: Lease
    log: JobLog
    sink: ResumedLog
    tap: Tap
    output: Output
    """The log, overheard by the watch."""
    mounts: tuple[Mount, ...]
    passed_through: tuple[Variable, ...]
    tokens: FreshTokens

    def enter(self, state: RunState, digest: str = "") -> None:
        activity.entered(state.value)
        # Done again, too: the log of a later life is cut at the same places.
        offset = self.sink.position(self.log.finish_section())
        if state in self.entry.past.entered:
            return

        def report() -> str | None:
            return self.ports.progress.entered(
                self.claim, state, log_offset=offset, image_digest=digest
            )

        try:
            self.lease.heard(self.lease.insist(report, stoppable=True))
        except ControlPlaneRefused:
            # Perhaps because of a stop request that we have not heard of yet.
            stop = self.lease.insist(
                lambda: self.ports.source.renew(self.claim), stoppable=True
            )
            if stop is None:
                raise
            self.lease.heard(stop)
            return
        self.entry.entered(state)


def run_phases(
    talk: Conversation, admitted: AdmittedJob, vendor: VendorTable, sandbox: Sandbox
) -> Outcome:
    """Run the job's phases in *sandbox*; return what became of the job."""
    job = admitted.job
    remaining = list(job.phases)
    phase = remaining[0]
    while remaining:
        phase = remaining.pop(0)
        talk.enter(STATES[phase], admitted.image.digest)
        if phase in environment.WRITING and not talk.lease.begin_changes():
            return _over(talk, job, phase, sandbox, ended(talk.lease, talk.settings))
        result = _run(talk, job, vendor, phase, sandbox)
        if not result.ok:
            _rescue(talk, job, phase, sandbox)
            outcome = ended(
                talk.lease,
                talk.settings,
                result,
                phase,
                rebooted=talk.entry.past.rebooted,
            )
            return _over(talk, job, phase, sandbox, outcome)
        if phase is Phase.PLAN:
            answer = _answer(talk, job, vendor, sandbox)
            if isinstance(answer, Outcome):
                return _over(talk, job, phase, sandbox, answer)
            match answer.next:
                case NextStep.HAND_OVER:
                    return _hand_over(talk, admitted, vendor, sandbox)
                case NextStep.APPLY:
                    job = _with_variables(job, answer.environment)
                    talk.log.hide(environment.secrets(job, talk.passed_through))
                    refusal = _judge_apply(talk, job, admitted)
                    if refusal:
                        return _over(talk, job, phase, sandbox, refusal)
                    remaining.append(Phase.APPLY)
                case NextStep.FINISH:
                    pass
    outcome = _over(talk, job, phase, sandbox, Outcome(verdict=Verdict.FINISHED))
    return _confirmed(talk, sandbox, outcome)


def _confirmed(talk: Conversation, sandbox: Sandbox, outcome: Outcome) -> Outcome:
    """What went well did so only if the container's own exit code says it, too."""
    succeeded = [name for name in talk.entry.past.sent if name != _LAST_HOOKS]
    if talk.lease.lost.cancelled or sandbox.conclude(len(succeeded), talk.output):
        return outcome
    return Outcome(
        verdict=Verdict.FAILED,
        reason="the container's exit code does not confirm that its phases succeeded",
        code="unconfirmed",
    )


def _answer(
    talk: Conversation, job: Job, vendor: VendorTable, sandbox: Sandbox
) -> PlanDecision | Outcome:
    """What follows from the plan; asked for once, and then remembered."""
    if talk.entry.past.decision:
        return talk.entry.past.decision
    applying = Phase.APPLY in talk.entry.past.sent
    plan = _read_plan(job, vendor, sandbox)
    if isinstance(plan, Outcome):
        return _unmasked(talk) if applying else plan
    report = _report(talk, plan)
    try:
        answer = talk.lease.insist(
            lambda: talk.ports.progress.planned(talk.claim, report),
            stoppable=not applying,
        )
    except ControlPlaneRefused:
        if not applying:
            raise
        return _unmasked(talk)
    talk.entry.planned(answer)
    return answer


def _unmasked(talk: Conversation) -> PlanDecision:
    """The apply has begun, and what it must not print is not known any more."""
    log.warning("log.unmaskable", job=talk.claim.job.id)
    talk.log.lacks_bytes()
    talk.log.say("What the apply prints is left out: its secrets are not known here.")
    talk.tap.turn_off()
    return PlanDecision(next=NextStep.APPLY)


def vanished(talk: Conversation) -> Outcome:
    """The outcome of a job whose container was gone when the launcher came back."""
    talk.sink.continue_behind()
    talk.log.lacks_bytes()
    past = talk.entry.past
    last = past.sent[-1]
    return Outcome(
        verdict=Verdict.FAILED,
        reason=f"{last}: {_lost(last, rebooted=past.rebooted)}",
        code="container_lost",
    )


def _lost(name: str, *, rebooted: bool) -> str:
    """What is known of a phase that went on while nobody looked after it."""
    what = (
        "the worker's machine was restarted meanwhile"
        if rebooted
        else "its container was gone when the worker came back"
    )
    if name not in environment.WRITING:
        return what
    return (
        f"{what}; how much it has changed is unknown, and the state may still be locked"
    )


def ended(  # noqa: C901, PLR0912 (one case for each reason)
    lease: Lease,
    settings: Settings,
    result: Exit | None = None,
    phase: Phase | None = None,
    *,
    rebooted: bool = False,
) -> Outcome:
    """The outcome of a phase that did not succeed, or of a job cut short."""
    limits = settings.run
    result = result or Exit(code=INTERRUPTED)
    match lease.cancel.reason:
        case Ended.STOP_REQUESTED:
            return Outcome(verdict=Verdict.STOPPED, reason="stopped on request")
        case Ended.TOO_LONG:
            reason, code = f"ran for more than {limits.run_timeout:g} s", "too_long"
        case Ended.TOO_SILENT:
            reason = f"printed nothing for {limits.logs_timeout:g} s"
            code = "too_silent"
        case Ended.TOO_MUCH_OUTPUT:
            reason = f"printed more than {limits.log_limit} bytes"
            code = "too_much_output"
        case Ended.TOO_MANY_MASKS:
            reason = (
                f"added more than {MOST_ADDED} masks, or {MOST_ADDED_BYTES >> 10} KiB"
            )
            code = "too_many_masks"
        case Ended.ABORTED:
            reason, code = "the worker was told to end at once", "aborted"
        case Ended.LEASE_LOST:
            reason = "the worker could not reach the control plane for too long"
            code = "lease_lost"
        case Ended.HOST_VANISHES:
            reason = "the worker's machine is about to be taken away"
            code = "host_vanishes"
        case _ if result.oom_killed:
            reason, code = "ran out of memory", "out_of_memory"
        case _ if result.unbegun:
            reason = "the worker was restarted while handing it over; it never began"
            code = "not_begun"
        case _ if result.container_lost and rebooted and phase:
            reason, code = _lost(phase, rebooted=True), "machine_restarted"
        case _ if result.container_lost:
            reason, code = "its container was ended from outside", "container_lost"
        case _:
            reason, code = f"exit code {result.code}", "phase_failed"
    name = phase.value if phase else "the job"
    return Outcome(verdict=Verdict.FAILED, reason=f"{name}: {reason}", code=code)


def _run(
    talk: Conversation, job: Job, vendor: VendorTable, phase: Phase, sandbox: Sandbox
) -> Exit:
    variables = environment.for_phase(
        phase, talk.tokens.added_to(job), talk.passed_through
    )
    limits, hook = talk.settings.run, _HOOKS[phase]
    commands = [
        # A plan that the repository brings along is not a plan.
        *([f"rm -rf -- {PLAN_FILE}"] if phase is Phase.PLAN else []),
        *getattr(job.hooks, f"before_{hook}"),
        *vendor.commands[phase],
        *getattr(job.hooks, f"after_{hook}"),
    ]
    script = phase_script(
        phase,
        commands,
        directory=project_directory(job),
        export={**vendor.environment, **variables.export},
        unset=variables.unset,
        grace_seconds=limits.apply_grace
        if phase in environment.WRITING
        else limits.plan_grace,
    )
    if talk.settings.run.debug:
        for command in commands:
            talk.log.say(f"$ {command}")
    result = _sent(talk, sandbox, script, talk.lease.cancel)
    log.info("phase.ended", phase=phase, code=result.code, lost=result.container_lost)
    return result


def _sent(
    talk: Conversation, sandbox: Sandbox, script: PhaseScript, cancel: CancelToken
) -> Exit:
    """Hand *script* over, unless it was: then only its end is awaited."""
    entry = talk.entry
    sent = script.name in entry.past.sent
    if not sent:
        if cancel.cancelled:
            return Exit(code=INTERRUPTED)
        if entry.past.from_labels:
            # Half of a script may be waiting in the container for its other half.
            return Exit(code=INTERRUPTED, unbegun=True)
        # Before, not after: what may have begun is never sent a second time.
        entry.sending(script.name)
    result = sandbox.run(script, talk.output, cancel, sent=sent)
    if result.log_incomplete:
        talk.log.lacks_bytes()
    if not sent:
        try:
            entry.ended(script.name, result.code)
        except JournalUnusable as exc:  # nobody needs it to go on
            log.warning("journal.not_written", details=exc.details)
    return result


def _rescue(talk: Conversation, job: Job, phase: Phase, sandbox: Sandbox) -> None:
    folder = talk.ports.rescued
    if folder is not None and phase in environment.WRITING:
        kept = Rescued(folder, talk.ports.key.public)
        rescue(kept, job.run.id, project_directory(job), sandbox, talk.log)


def _over(
    talk: Conversation, job: Job, phase: Phase, sandbox: Sandbox, outcome: Outcome
) -> Outcome:
    """The run ends with this job: the after_run hooks learn how."""
    hooks = job.hooks.after_run
    if not hooks or talk.lease.given_up:
        return outcome
    state = {
        Verdict.FINISHED: RunState.FINISHED,
        Verdict.STOPPED: RunState.STOPPED,
    }.get(outcome.verdict, RunState.FAILED)
    variables = environment.for_phase(
        phase, talk.tokens.added_to(job), talk.passed_through
    )
    script = phase_script(
        _LAST_HOOKS,
        hooks,
        directory=project_directory(job),
        export={**variables.export, "TF_VAR_spacelift_final_run_state": state},
        unset=variables.unset,
    )
    # A cancelled job still gets its last hooks, for a while.
    cancel = CancelToken()
    watch = Watch(
        cancel,
        run_seconds=_LAST_HOOKS_SECONDS,
        silence_seconds=_LAST_HOOKS_SECONDS,
        log_limit=talk.settings.run.log_limit,
    )
    with (
        talk.lease.aborted.calling(lambda: cancel.cancel(Ended.ABORTED)),
        watch.running(),
    ):
        result = _sent(talk, sandbox, script, cancel)
    if result.unbegun:
        talk.log.say("The after_run hooks were not run: the worker was restarted.")
    elif not result.ok:
        talk.log.say(f"An after_run hook failed with exit code {result.code}.")
    return outcome


def _read_plan(job: Job, vendor: VendorTable, sandbox: Sandbox) -> Plan | Outcome:
    path = f"{project_directory(job)}/{PLAN_FILE}"
    content = sandbox.read_file(path, limit=_LARGEST_PLAN)
    if content is None:
        return _unplanned(f"left no {PLAN_FILE}")
    try:
        return vendor.read_plan(content)
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        log.warning("plan.unreadable", error=type(exc).__name__)
        return _unplanned(f"left a {PLAN_FILE} that cannot be read")


def _unplanned(what: str) -> Outcome:
    return Outcome(
        verdict=Verdict.FAILED, reason=f"the planning phase {what}", code="no_plan"
    )


def _report(talk: Conversation, plan: Plan) -> PlanReport:
    clean = talk.log.clean
    return PlanReport(
        has_changes=plan.has_changes,
        changes=tuple(
            msgspec.structs.replace(
                change, address=clean(change.address), type=clean(change.type)
            )
            for change in plan.changes
        ),
        # Mounts for writing phases only cannot be added to a container.
        applies_here=not talk.settings.container.write_mounts,
    )


def _with_variables(job: Job, more: tuple[Variable, ...]) -> Job:
    return msgspec.structs.replace(job, environment=(*job.environment, *more))


def _judge_apply(talk: Conversation, job: Job, admitted: AdmittedJob) -> Outcome | None:
    """Ask the owner's policy again: it has not seen what only applies may know."""
    if Phase.APPLY in talk.entry.past.sent:
        return None
    try:
        talk.gate.admit(
            ResolvedJob(job=job, image=admitted.image), Phase.APPLY, talk.mounts
        )
    except JobRejected as exc:
        return Outcome(verdict=Verdict.FAILED, reason=str(exc), code=JobRejected.code)
    return None


def _hand_over(
    talk: Conversation, admitted: AdmittedJob, vendor: VendorTable, sandbox: Sandbox
) -> Outcome:
    """Store the workspace for the job that goes on from here."""
    outcome = _confirmed(talk, sandbox, Outcome(verdict=Verdict.HANDED_OVER))
    if outcome.verdict is not Verdict.HANDED_OVER:
        return outcome
    store, claim = talk.ports.workspaces, talk.claim
    with sealed(
        admitted, vendor, talk.ports, sandbox, masks=talk.log.added
    ) as workspace:
        talk.lease.insist(lambda: store.save(claim, workspace), stoppable=True)
    return outcome
