"""
The way of a job.  Start reading here.

    claim → reference allowed? → credentials → resolve digest → policy → pull
          → workspace → container → phases → log home → settle

Around it, as nested scopes: the lease is renewed, container and volumes are
removed, the log is complete.  The only thing that travels backwards is a cancel
token.

Beside it lies the journal.  Every step that cannot be taken back is in it before
it is taken, and a job that an earlier life of the launcher has begun goes the same
way again: what was done is not done a second time, but looked at.
"""

from __future__ import annotations

import enum
import math
import time

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import structlog

from ulid import ULID

from launcher import (
    admission,
    environment,
    failures,
    lease,
    phases,
    run_types,
    sight,
    telemetry,
    trace_context,
    vendors,
    workspace,
)
from launcher.cancel import CancelToken
from launcher.credentials import Login
from launcher.environment import WRITING
from launcher.errors import (
    ControlPlaneUnavailable,
    CredentialsRefused,
    EngineError,
    EngineTimeout,
    JournalUnusable,
    LauncherError,
    LeaseLost,
)
from launcher.image_access import ImageAccess
from launcher.images import Reference
from launcher.journal import Entry, Held, Made, Past
from launcher.lease import Lease
from launcher.model import (
    AdmittedJob,
    Claim,
    Origin,
    Outcome,
    SandboxSpec,
)
from launcher.output.joblog import JobLog
from launcher.output.opening import opened, say_what_is_odd, warn_of_short_values
from launcher.phases import Conversation
from launcher.ports import Ports, Sandbox
from launcher.resuming import ResumedLog, Tap
from launcher.retry import Pauses
from launcher.settings import Settings
from launcher.sight import ABANDONED, Facts, Stage, Vital
from launcher.tokens import FreshTokens
from launcher.watch import Watch
from launcher.wire.jobs import Phase
from launcher.wire.messages import Offer, Settlement, Verdict


log = structlog.get_logger()

STILL_RUNNING = "Still running..."
_SILENT = lease.Ended.TOO_SILENT
_DEADLINE_MARGIN_SECONDS = 900.0
_AGAIN = "The worker was restarted before the first phase, and begins again."
_ENGINE_SECONDS = 600.0
"""How long a container of an earlier life may be out of reach."""


def run_job(
    slot: int, offer: Offer, ports: Ports, settings: Settings, abort: CancelToken
) -> None:
    """Take the offered job and see it through, whatever happens to it."""
    entry = ports.journal.claiming(slot, offer, str(ULID()))
    since = sight.now()
    try:
        claim = ports.source.claim(slot, offer, entry.past.identity)
    except BaseException:
        entry.over()
        raise
    _see_through(entry, claim, ports, settings, abort, since=since)


def resume_job(
    entry: Entry, ports: Ports, settings: Settings, abort: CancelToken
) -> None:
    """See a job through that an earlier life of this launcher has taken."""
    entry.remembered()
    past = entry.past
    log.info("job.resumed", job=past.offer.job, run=past.offer.run, sent=past.sent)
    since = sight.now()
    claim = past.held.claim if past.held else _claimed_again(entry, ports, abort)
    _see_through(entry, claim, ports, settings, abort, since=since)


def _claimed_again(entry: Entry, ports: Ports, abort: CancelToken) -> Claim | None:
    """The same claim once more, which gets the same answer."""
    past = entry.past
    for pause in Pauses():
        try:
            return ports.source.claim(past.slot, past.offer, past.identity)
        except ControlPlaneUnavailable:
            if abort.wait(pause):
                raise
    raise AssertionError("pauses are endless")


def _see_through(
    entry: Entry,
    claim: Claim | None,
    ports: Ports,
    settings: Settings,
    abort: CancelToken,
    *,
    since: int,
) -> None:
    past = entry.past
    if claim is None:
        entry.over()
        return
    with ports.sight.job(Facts.of(claim.job, claim.waited_seconds)):
        if past.held is None:
            sight.claimed(since)
            given = settings.container.passed_through
            if settings.telemetry.otlp_endpoint is not None:
                given = (*given, *trace_context.variables(claim.job))
            entry.claimed(Held(claim=claim, passed_through=given))
        settlement = _held(entry, claim, ports, settings, abort)
        verdict = settlement.verdict.value if settlement else ABANDONED
        code = settlement.code if settlement else ""
        sight.ended(verdict=verdict, code=code, resumed=past.resumed, begun_at=since)


def _held(
    entry: Entry,
    claim: Claim,
    ports: Ports,
    settings: Settings,
    abort: CancelToken,
) -> Settlement | None:
    """
    Carry the job out while its lease is held, and announce what became of it.

    None when that is nobody's business any more: the job is somebody else's.
    """
    past = entry.past
    changing = not WRITING.isdisjoint(past.sent)
    with (
        structlog.contextvars.bound_contextvars(run=past.offer.run, job=claim.job.id),
        telemetry.veiled() as hide_with,
        lease.held(
            claim, ports.source, abort, resumed=past.resumed, changing=changing
        ) as held,
    ):
        log.info("job.claimed", stack=claim.job.stack.slug, phases=claim.job.phases)
        if past.settlement:
            settlement = past.settlement
            _removed(ports, claim.job.id)
            ports.spools.discard(claim.job.id)
        else:
            settlement = _carried_out(
                entry, claim, ports, settings, held=held, hide_with=hide_with
            )
        told = _settle(claim, settlement, ports, settings, held)
        if told is not _Told.NOT_YET:
            entry.over()
        return None if told is _Told.NOBODY else settlement


def _removed(ports: Ports, job: str) -> None:
    """Remove a container of which nothing is wanted any more."""
    try:
        with ports.engine.adopt(job):
            pass
    except EngineError as exc:
        log.warning("container.not_removed", details=exc.details)


def _carried_out(
    entry: Entry,
    claim: Claim,
    ports: Ports,
    settings: Settings,
    *,
    held: Lease,
    hide_with: Callable[[Callable[[str], str]], None],
) -> Settlement:
    """
    Do what the job asks for; return what is to be announced.

    The log is complete before that, and the container is there until the log is
    complete, because a later life reads what was printed from it.  The outcome is
    announced while the lease is still ours.
    """
    past = entry.past
    passed_through = past.held.passed_through if past.held else ()
    sink = ResumedLog(ports.log, resumed=past.resumed)
    with ExitStack() as container, _noting_why(entry, held):
        with opened(
            claim,
            ports,
            settings,
            held,
            sink=sink,
            passed_through=passed_through or settings.container.passed_through,
        ) as job_log:
            hide_with(job_log.clean)
            talk, watch = _conversation(
                entry, claim, ports, settings, held=held, job_log=job_log, sink=sink
            )
            outcome = _attempt(talk, watch, container)
            if outcome.reason:
                job_log.say(outcome.reason)
            if outcome.code:
                job_log.say(failures.of(outcome.code).line)
        length = sink.position(job_log.length)
        settlement = Settlement(
            verdict=outcome.verdict,
            log_length=length,
            # What was stored and is not there any more was cut off at its source.
            log_complete=job_log.complete and length >= sink.stored,
            log_missing=job_log.missing,
            reason=job_log.clean(outcome.reason),
            code=outcome.code,
        )
        if not held.lost.cancelled:
            _noted(lambda: entry.exited(settlement))
    return settlement


def _attempt(talk: Conversation, watch: Watch, container: ExitStack) -> Outcome:
    """Turn whatever happens to the job into an outcome."""
    held, settings = talk.lease, talk.settings
    try:
        outcome = _execute(talk, watch, container)
    except LeaseLost:
        held.lose()
        return Outcome(verdict=Verdict.FAILED)
    except LauncherError as exc:
        log.warning("job.failed", exc_info=True, code=exc.code, details=exc.details)
        # What failed was being ended; but if it was silent, perhaps the engine was.
        hanging = isinstance(exc, EngineTimeout) and held.cancel.reason == _SILENT
        if held.cancel.cancelled and not hanging:
            outcome = phases.ended(held, settings)
        else:
            outcome = Outcome(verdict=Verdict.FAILED, reason=str(exc), code=exc.code)
    except Exception:  # a bug of ours must not leave the run hanging
        log.exception("job.crashed")
        outcome = Outcome(
            verdict=Verdict.FAILED,
            reason="the worker failed to run the job; its operator's log says why",
            code=LauncherError.code,
        )
    if talk.entry.past.outcome:  # the log may say so already
        return talk.entry.past.outcome
    _noted(lambda: talk.entry.decided(outcome))
    return outcome


def _execute(talk: Conversation, watch: Watch, container: ExitStack) -> Outcome:
    job, past = talk.claim.job, talk.entry.past
    variables = environment.for_phase(Phase.PLAN, job, talk.passed_through).export
    vendor = vendors.table(
        job.vendor, run_types.phases(job), run_types.asked(job, variables)
    )
    sandbox = _adopted(talk, container) if past.made else None
    if sandbox is not None and past.from_labels:
        past = _found_out(talk.entry, sandbox)
    if sandbox is None and past.sent:
        return phases.vanished(talk)
    if past.made and sandbox and (past.sent or not past.from_labels):
        admitted = admission.remembered(job, past.made.image, past.made.receipt)
        _take_up(talk, past.made)
        spent = max(time.time() - past.made.at, 0.0)
    else:
        if past.resumed:
            container.close()
            _begin_anew(talk)
        admitted, sandbox = _started(talk, vendor, container)
        spent = 0.0
    with watch.running(spent_seconds=spent), talk.tokens.kept(sandbox):
        return phases.run_phases(talk, admitted, vendor, sandbox)


def _started(
    talk: Conversation, vendor: vendors.VendorTable, container: ExitStack
) -> tuple[AdmittedJob, Sandbox]:
    """Everything up to the container that waits for its first phase."""
    job, ports, settings = talk.claim.job, talk.ports, talk.settings
    engine, begun = ports.engine, time.monotonic()
    logins: list[bytes] = []

    def logged_in(login: Login) -> None:
        logins.extend(environment.of_login(login))
        talk.log.hide(environment.of_login(login))
        if ends := login.expires_at:
            container.enter_context(sight.vital(Vital.LOGIN_EXPIRES, lambda: ends))

    permitted = admission.permit(job, vendor, settings, ports.credentials)
    if talk.entry.past.resumed:
        talk.log.say(_AGAIN)
    warn_of_short_values(job, settings, talk.log, talk.passed_through)
    say_what_is_odd(job, talk.log, talk.passed_through)
    talk.log.say(f"Image {permitted.image.reference}: {permitted.image.rule}")
    images = ImageAccess(
        job,
        engine,
        ports.credentials,
        say=talk.log.say,
        logged_in=logged_in,
        cancel=talk.lease.cancel,
    )
    with sight.stage(Stage.RESOLVE):
        resolved = admission.resolve(permitted, images, settings)
    talk.log.say(f"Digest {resolved.image.digest}")
    with sight.stage(Stage.POLICY):
        admitted = talk.gate.admit(resolved, job.phases[-1], talk.mounts)
    with sight.stage(Stage.PULL):
        images.pull(admitted.image)
    judged = time.monotonic()
    made = Made(
        image=replace(admitted.image, login=None),
        receipt=admitted.receipt,
        at=time.time(),
        # What was said so far is stored, and need not be said again.
        log_start=talk.sink.position(talk.log.finish_section()),
        masks=tuple(logins),
    )
    with ExitStack() as workspace_of_job:
        with sight.stage(Stage.FETCH):
            files = workspace_of_job.enter_context(
                workspace.contents(
                    talk.claim,
                    admitted,
                    vendor,
                    ports,
                    talk.lease,
                    adopt=talk.log.adopt,
                    say=talk.log.say,
                )
            )
        made = replace(made, adopted=talk.log.added)
        fetched = time.monotonic()
        talk.entry.created(made)
        sandbox = container.enter_context(engine.sandbox(_spec(talk, admitted, made)))
        sandbox.fill(files)
    log.info(
        "container.started",
        seconds=round(time.monotonic() - begun, 4),
        judging_seconds=round(judged - begun, 4),
        fetching_seconds=round(fetched - judged, 4),
    )
    return admitted, sandbox


def _found_out(entry: Entry, sandbox: Sandbox) -> Past:
    """Learn from the container's log which phases have begun in it."""
    for name in sandbox.begun():
        if name not in entry.past.sent:
            entry.sending(name)
        if state := phases.STATES.get(name):
            entry.entered(state)
    if not entry.past.sent:
        log.info("container.unused", job=entry.past.offer.job)
    return entry.past


def _take_up(talk: Conversation, made: Made) -> None:
    """Let the log go on where that of the container begins, hiding what it hid."""
    talk.sink.resume_at(made.log_start)
    masks, adopted = _masks(talk, made)
    talk.log.hide(masks)
    talk.log.adopt(adopted)


def _masks(
    talk: Conversation, made: Made
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """What else the log must not show: of the image's login, and of earlier jobs."""
    if not talk.entry.past.from_labels:
        return made.masks, made.adopted
    job, ports = talk.claim.job, talk.ports
    login = ports.credentials.for_image(
        Reference.parse(made.image.reference), job.registry_logins
    )
    restores = job.restores_workspace
    return (
        environment.of_login(login),
        workspace.masks(talk.claim, ports, talk.lease) if restores else (),
    )


def _adopted(talk: Conversation, container: ExitStack) -> Sandbox | None:
    """The container of an earlier life, for which an engine may be waited for."""
    job, until = talk.claim.job.id, time.monotonic() + _ENGINE_SECONDS
    for pause in Pauses():
        try:
            return container.enter_context(talk.ports.engine.adopt(job))
        except EngineError as exc:
            log.warning("container.out_of_reach", details=exc.details)
            if talk.lease.cancel.wait(pause) or time.monotonic() > until:
                raise
    raise AssertionError("pauses are endless")


def _begin_anew(talk: Conversation) -> None:
    """No phase was sent, so nothing has happened yet that must not happen twice."""
    with talk.ports.engine.adopt(talk.claim.job.id):
        pass
    talk.sink.continue_behind()


def _conversation(
    entry: Entry,
    claim: Claim,
    ports: Ports,
    settings: Settings,
    *,
    held: Lease,
    job_log: JobLog,
    sink: ResumedLog,
) -> tuple[Conversation, Watch]:
    """Introduce the job to everybody it will talk to."""
    kept = entry.past.held
    passed_through = kept.passed_through if kept else settings.container.passed_through
    watch = Watch(
        held.cancel,
        run_seconds=settings.run.run_timeout,
        silence_seconds=settings.run.logs_timeout,
        log_limit=settings.run.log_limit,
        alive=(
            (lambda: job_log.interject(STILL_RUNNING)) if settings.run.debug else None
        ),
    )
    gate = admission.Gate(
        ports.policy,
        passed_through=passed_through,
        endpoint=ports.endpoint,
    )
    writing = not WRITING.isdisjoint(claim.job.phases)
    tap = Tap(job_log.write)
    talk = Conversation(
        claim=claim,
        entry=entry,
        ports=ports,
        settings=settings,
        gate=gate,
        lease=held,
        log=job_log,
        sink=sink,
        tap=tap,
        output=watch.listening(tap, job_log.lacks_bytes),
        mounts=settings.container.mounts_for(writing=writing),
        passed_through=passed_through,
        tokens=FreshTokens(claim, entry, ports.progress, job_log),
    )
    return talk, watch


def _spec(talk: Conversation, admitted: AdmittedJob, made: Made) -> SandboxSpec:
    run, past = talk.settings.run, talk.entry.past
    return SandboxSpec(
        admitted=admitted,
        phase_class="plan" if WRITING.isdisjoint(admitted.job.phases) else "apply",
        mounts=talk.mounts,
        origin=Origin(
            slot=past.slot,
            claim=past.identity,
            attempt=past.attempts,
            log_start=made.log_start,
        ),
        # Behind our own deadline, which asks more gently; this one is for a
        # container that nobody looks after any more.
        deadline_seconds=run.run_timeout + _DEADLINE_MARGIN_SECONDS,
        log_limit=run.log_limit,
    )


@contextmanager
def _noting_why(entry: Entry, held: Lease) -> Iterator[None]:
    """Remember why the job is ended: a later life would see an exit code only."""
    if entry.past.cancelled:
        held.cancel.cancel(entry.past.cancelled)
    with held.cancel.calling(
        lambda: _noted(lambda: entry.cancelled(held.cancel.reason))
    ):
        yield


def _noted(write: Callable[[], None]) -> None:
    """Write what a later life could do without."""
    try:
        write()
    except JournalUnusable as exc:
        log.warning("journal.not_written", details=exc.details)


class _Told(enum.Enum):
    """Who knows what became of a job."""

    EVERYBODY = enum.auto()
    NOT_YET = enum.auto()
    """It may be said again, by a later life."""
    NOBODY = enum.auto()
    """Nor will anybody: the job is somebody else's, or the answer was no."""


def _settle(
    claim: Claim, settlement: Settlement, ports: Ports, settings: Settings, held: Lease
) -> _Told:
    """Announce the outcome until somebody listens; silent once the lease is lost."""
    verdict = settlement.verdict
    if held.lost.cancelled:
        log.warning("job.abandoned", verdict=verdict)
        return _Told.NOBODY
    try:
        with sight.stage(Stage.SETTLE):
            held.insist(
                lambda: ports.source.settle(claim, settlement),
                seconds=settings.run.report_timeout or math.inf,
            )
    except (ControlPlaneUnavailable, CredentialsRefused):
        # It may be heard yet, in a later life, unless there is nobody to tell.
        log.exception("job.not_settled", verdict=verdict)
        return _Told.NOBODY if held.lost.cancelled else _Told.NOT_YET
    except LauncherError:
        log.exception("job.not_settled", verdict=verdict)
        return _Told.NOBODY
    log.info("job.settled", verdict=verdict, code=settlement.code)
    return _Told.EVERYBODY
