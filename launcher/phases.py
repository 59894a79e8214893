"""
The phases of a job, one after the other, and what follows from their results.

A phase that fails is an ordinary ending.  Nothing that the job printed decides
here: the exit code does, the plan's file, and the control plane's answer.
"""

from __future__ import annotations

import shlex
import time

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from launcher import activity, environment, findings, run_types, sight
from launcher.admission import Gate
from launcher.cancel import CancelToken
from launcher.errors import (
    ControlPlaneRefused,
    ControlPlaneUnavailable,
    JobInvalid,
    JobRejected,
    JournalUnusable,
    WorkspaceUnusable,
)
from launcher.journal import Entry
from launcher.lease import Ended, Lease
from launcher.model import (
    INTERRUPTED,
    WORKSPACE,
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
from launcher.retry import Pauses
from launcher.script import phase_script
from launcher.settings import Settings
from launcher.sight import Stage
from launcher.steps import Steps
from launcher.tokens import FreshTokens
from launcher.vendors import Plan, VendorTable
from launcher.vendors.table import OUTPUTS_FILE, PLAN_FILE
from launcher.watch import Watch
from launcher.wire.jobs import Job, Phase, RunState, Variable
from launcher.wire.messages import NextStep, OutputsReport, PlanReport, Verdict
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
_LARGEST_WORKFLOW = 64 << 10
_LAST_SECONDS = 600.0
_SKIPPED = "This phase is skipped, because {} is set."


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


class _Table:
    """The vendor's table, completed by what only the checkout has."""

    def __init__(self, vendor: VendorTable, sandbox: Sandbox) -> None:
        self._vendor = vendor
        self._sandbox = sandbox

    def completed(self) -> VendorTable:
        """
        Read it once: what a phase changes in the checkout does not change the next.

        Raises:
            JobInvalid: what it would be completed by is missing or wrong.
        """
        complete = self._vendor.complete
        if complete is not None:
            contents = (
                self._sandbox.read_file(f"{WORKSPACE}/{path}", limit=_LARGEST_WORKFLOW)
                for path in self._vendor.wanted
            )
            found = next((each for each in contents if each is not None), None)
            self._vendor = complete(found)
        return self._vendor


@dataclass(frozen=True, slots=True)
class _Work:
    """A job that is being carried out, and where."""

    talk: Conversation
    admitted: AdmittedJob
    table: _Table
    sandbox: Sandbox


def run_phases(
    talk: Conversation, admitted: AdmittedJob, vendor: VendorTable, sandbox: Sandbox
) -> Outcome:
    """Run the job's phases in *sandbox*; return what became of the job."""
    phases = run_types.phases(admitted.job)
    if talk.lease.cancel.cancelled and not talk.entry.past.sent:
        outcome = ended(talk.lease, talk.settings)
        return _over(talk, admitted.job, phases[0], sandbox, outcome)
    work = _Work(talk, admitted, _Table(vendor, sandbox), sandbox)
    try:
        found = _in_order(work, phases)
    except (JobInvalid, JobRejected, WorkspaceUnusable) as exc:
        log.warning("job.failed", exc_info=True, code=exc.code, details=exc.details)
        outcome = Outcome(verdict=Verdict.FAILED, reason=str(exc), code=exc.code)
        return _over(talk, admitted.job, phases[0], sandbox, outcome)
    return found if found is not None else _hand_over(work)


def _in_order(work: _Work, phases: tuple[Phase, ...]) -> Outcome | None:
    """What became of the job; None when another one goes on from here."""
    talk, sandbox = work.talk, work.sandbox
    job, remaining = work.admitted.job, list(phases)
    phase, denied = remaining[0], False
    if not talk.entry.past.sent:
        work.table.completed()
    while remaining:
        phase = remaining.pop(0)
        outcome = _carried_out(work, job, phase)
        if outcome:
            if Phase.DESTROY in remaining and Phase.APPLY in talk.entry.past.sent:
                phase = Phase.DESTROY
                _clean_up(work, job)
            return _over(talk, job, phase, sandbox, outcome)
        if phase is not Phase.PLAN:
            continue
        answer = _answer(talk, job, work.table, sandbox)
        match answer.next:
            case NextStep.HAND_OVER if remaining:
                raise JobInvalid("a test is carried out in one container")
            case NextStep.HAND_OVER:
                return None
            case NextStep.APPLY:
                job = _with_variables(job, answer.environment)
                talk.log.hide(environment.secrets(job, talk.passed_through))
                remaining = remaining or [run_types.changing(job)]
                _judge(talk, job, work.admitted, remaining[0])
            case NextStep.FINISH:
                remaining, denied = [], answer.denied
    outcome = _over(
        talk, job, phase, sandbox, Outcome(verdict=Verdict.FINISHED), denied=denied
    )
    return _confirmed(talk, sandbox, outcome)


def _carried_out(work: _Work, job: Job, phase: Phase) -> Outcome | None:
    """Enter *phase* and run it, unless it is to be skipped; return why it failed."""
    talk = work.talk
    skipped = _skipped_by(talk, job, phase)
    talk.enter(STATES[phase], work.admitted.image.digest)
    if skipped and phase is not Phase.PLAN:
        talk.log.say(_SKIPPED.format(skipped))
        return None
    if phase in environment.WRITING and not talk.lease.begin_changes():
        return ended(talk.lease, talk.settings)
    steps = _steps(work, job, phase, skipped)
    result = _run(work, job, phase, steps, talk.lease.cancel)
    if not result.ok:
        _rescue(talk, job, phase, work.sandbox)
        return ended(
            talk.lease,
            talk.settings,
            result,
            phase,
            steps,
            rebooted=talk.entry.past.rebooted,
        )
    if phase is Phase.APPLY:
        _report_outputs(work, job)
    return None


def _skipped_by(talk: Conversation, job: Job, phase: Phase) -> str:
    variables = environment.for_phase(
        phase, talk.tokens.added_to(job), talk.passed_through
    )
    return run_types.skipped_by(phase, variables.export)


def _clean_up(work: _Work, job: Job) -> None:
    """What a test has made is destroyed, whatever became of it."""
    talk, phase = work.talk, Phase.DESTROY
    if talk.lease.lost.cancelled or talk.lease.aborted.cancelled:
        return
    try:
        talk.enter(STATES[phase])
    except ControlPlaneRefused as exc:
        log.warning("destroying.refused", details=exc.details)
        talk.log.say("What the test made is left: the control plane wants it so.")
        return
    if skipped := _skipped_by(talk, job, phase):
        talk.log.say(_SKIPPED.format(skipped))
        return
    steps = _steps(work, job, phase, "")
    with _uncancelled(talk) as cancel:
        result = _run(work, job, phase, steps, cancel)
    if not result.ok:
        reason, _ = steps.failure(result)
        talk.log.say(f"What the test made could not be destroyed: {reason}.")


@contextmanager
def _uncancelled(talk: Conversation) -> Iterator[CancelToken]:
    """A while for what has to be done at the end of a job that was cancelled, too."""
    cancel = CancelToken()
    watch = Watch(
        cancel,
        run_seconds=_LAST_SECONDS,
        silence_seconds=_LAST_SECONDS,
        log_limit=talk.settings.run.log_limit,
    )
    with (
        talk.lease.aborted.calling(lambda: cancel.cancel(Ended.ABORTED)),
        watch.running(),
    ):
        yield cancel


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
    talk: Conversation, job: Job, table: _Table, sandbox: Sandbox
) -> PlanDecision:
    """What follows from the plan; asked for once, and then remembered."""
    if talk.entry.past.decision:
        return talk.entry.past.decision
    applying = not environment.WRITING.isdisjoint(talk.entry.past.sent)
    try:
        directory = project_directory(job)
        report = _report(
            talk,
            findings.plan(
                directory,
                table.completed(),
                sandbox,
                values=talk.settings.run.plan_values,
                clean=talk.log.clean,
            ),
            findings.custom(directory, sandbox, talk.log.clean),
        )
    except (WorkspaceUnusable, JobInvalid):
        if not applying:
            raise
        return _unmasked(talk)
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
    steps: Steps | None = None,
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
        case _ if result.volume_full:
            reason, code = "the workspace's disk is full", "workspace_full"
        case _ if result.unbegun:
            reason = "the worker was restarted while handing it over; it never began"
            code = "not_begun"
        case _ if result.container_lost and rebooted and phase:
            reason, code = _lost(phase, rebooted=True), "machine_restarted"
        case _ if result.container_lost:
            reason, code = "its container was ended from outside", "container_lost"
        case _:
            reason, code = (steps or Steps()).failure(result)
    name = phase.value if phase else "the job"
    return Outcome(verdict=Verdict.FAILED, reason=f"{name}: {reason}", code=code)


def _steps(work: _Work, job: Job, phase: Phase, skipped: str) -> Steps:
    """The commands of *phase*, which nobody needs to know if they run already."""
    talk, hook = work.talk, _HOOKS[phase]
    before: tuple[str, ...] = getattr(job.hooks, f"before_{hook}")
    after: tuple[str, ...] = getattr(job.hooks, f"after_{hook}")
    if phase in talk.entry.past.sent:
        return Steps(hook=hook, before=before, after=after)
    vendor = work.table.completed()
    if skipped and vendor.skipped_plan is not None:
        talk.log.say(_SKIPPED.format(skipped))
        plan = shlex.quote(vendor.skipped_plan.decode())
        return Steps(own=(f"printf %s {plan} >{PLAN_FILE}",))
    if skipped:
        talk.log.say(f"{skipped} has no effect here: {vendor.name} applies a plan.")
    return Steps(hook=hook, before=before, own=vendor.commands[phase], after=after)


def _run(
    work: _Work, job: Job, phase: Phase, steps: Steps, cancel: CancelToken
) -> Exit:
    talk = work.talk
    script = _script(work, job, phase, steps)
    if talk.settings.run.debug:
        for command in steps.commands:
            talk.log.say(f"$ {command}")
    result = _sent(talk, work.sandbox, script, cancel)
    log.info("phase.ended", phase=phase, code=result.code, lost=result.container_lost)
    return result


def _script(work: _Work, job: Job, phase: Phase, steps: Steps) -> PhaseScript:
    talk = work.talk
    limits, directory = talk.settings.run, project_directory(job)
    grace = limits.apply_grace if phase in environment.WRITING else limits.plan_grace
    if phase in talk.entry.past.sent:
        return PhaseScript(name=phase, text="", grace_seconds=grace)
    variables = environment.for_phase(
        phase, talk.tokens.added_to(job), talk.passed_through
    )
    vendor = work.table.completed()
    export = {**vendor.environment, **variables.export}
    plain = environment.plain_names(job, talk.passed_through) & variables.export.keys()
    # What the repository brings along is neither a plan nor an output.
    stale = {Phase.PLAN: vendor.plan_files, Phase.APPLY: (OUTPUTS_FILE,)}.get(phase, ())
    return phase_script(
        phase,
        steps.commands,
        directory=directory,
        export={name: value for name, value in export.items() if name not in plain},
        plain={name: variables.export[name] for name in sorted(plain)},
        unset=variables.unset,
        grace_seconds=grace,
        first=phase is run_types.phases(job)[0] and not job.restores_workspace,
        prepare=[f"rm -rf -- {' '.join(stale)}"] if stale else [],
        conclude=[findings.listing(directory)] if phase is Phase.PLAN else [],
    )


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
    with sight.stage(Stage.PHASE, phase=script.name):
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
    talk: Conversation,
    job: Job,
    phase: Phase,
    sandbox: Sandbox,
    outcome: Outcome,
    *,
    denied: bool = False,
) -> Outcome:
    """The run ends with this job: the after_run hooks learn how."""
    hooks = job.hooks.after_run
    if not hooks or talk.lease.given_up:
        return outcome
    state = {
        # The worker has done its part; the run fails by what a policy said.
        Verdict.FINISHED: RunState.FAILED if denied else RunState.FINISHED,
        Verdict.STOPPED: RunState.STOPPED,
    }.get(outcome.verdict, RunState.FAILED)
    variables = environment.for_phase(
        phase, talk.tokens.added_to(job), talk.passed_through
    )
    export = {**variables.export, "TF_VAR_spacelift_final_run_state": state}
    plain = environment.plain_names(job, talk.passed_through) & variables.export.keys()
    script = phase_script(
        _LAST_HOOKS,
        hooks,
        directory=project_directory(job),
        export={name: value for name, value in export.items() if name not in plain},
        plain={name: variables.export[name] for name in sorted(plain)},
        unset=variables.unset,
        first=not talk.entry.past.sent and not job.restores_workspace,
    )
    with _uncancelled(talk) as cancel:
        result = _sent(talk, sandbox, script, cancel)
    if result.unbegun:
        talk.log.say("The after_run hooks were not run: the worker was restarted.")
    elif not result.ok:
        reason, _ = Steps(hook="run", after=hooks).failure(result)
        talk.log.say(f"The run's end: {reason}.")
    return outcome


def _report(talk: Conversation, plan: Plan, custom: dict[str, Any]) -> PlanReport:
    return PlanReport(
        has_changes=plan.has_changes,
        changes=plan.changes,
        # Mounts for writing phases only cannot be added to a container.
        applies_here=not talk.settings.container.write_mounts
        or not environment.WRITING.isdisjoint(talk.claim.job.phases),
        custom=custom,
    )


def _report_outputs(work: _Work, job: Job) -> None:
    """Tell what the stack tells others; that nobody can is no failure of the apply."""
    talk, vendor = work.talk, work.table.completed()
    if not vendor.has_outputs:
        return
    try:
        outputs = findings.outputs(
            project_directory(job),
            vendor,
            work.sandbox,
            with_sensitive=talk.settings.run.sensitive_output_upload,
            clean=talk.log.clean,
        )
    except WorkspaceUnusable as exc:
        talk.log.say(f"The outputs of the stack are not stored: {exc}.")
        return
    if outputs is None:
        return
    variables = environment.for_phase(Phase.APPLY, job, talk.passed_through).export
    try:
        until = time.monotonic() + run_types.outputs_seconds(variables)
    except JobInvalid as exc:
        talk.log.say(f"The outputs of the stack are not stored: {exc}.")
        return
    report = OutputsReport(outputs=outputs)
    for pause in Pauses():
        try:
            talk.ports.progress.told(talk.claim, report)
        except ControlPlaneRefused as exc:
            log.warning("outputs.refused", details=exc.details)
        except ControlPlaneUnavailable as exc:
            # One that is older than we are does not know what outputs are.
            if time.monotonic() < until and not talk.lease.lost.wait(pause):
                continue
            log.warning("outputs.not_stored", details=exc.details)
            talk.log.say("The outputs of the stack are not stored: nobody took them.")
        return


def _with_variables(job: Job, more: tuple[Variable, ...]) -> Job:
    return msgspec.structs.replace(job, environment=(*job.environment, *more))


def _judge(talk: Conversation, job: Job, admitted: AdmittedJob, phase: Phase) -> None:
    """
    Ask the owner's policy again: it has not seen what only applies may know.

    Raises:
        JobRejected: it says no, or nobody can tell.
    """
    if phase not in talk.entry.past.sent:
        resolved = ResolvedJob(job=job, image=admitted.image)
        with sight.stage(Stage.POLICY):
            talk.gate.admit(resolved, phase, talk.mounts)


def _hand_over(work: _Work) -> Outcome:
    """Store the workspace for the job that goes on from here."""
    talk, sandbox = work.talk, work.sandbox
    outcome = _confirmed(talk, sandbox, Outcome(verdict=Verdict.HANDED_OVER))
    if outcome.verdict is not Verdict.HANDED_OVER:
        return outcome
    store, claim = talk.ports.workspaces, talk.claim
    with sealed(
        work.admitted,
        work.table.completed(),
        talk.ports,
        sandbox,
        masks=talk.log.added,
    ) as workspace:
        talk.lease.insist(lambda: store.save(claim, workspace), stoppable=True)
    return outcome
