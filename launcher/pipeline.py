"""
The way of a job.  Start reading here.

    claim → reference allowed? → credentials → resolve digest → policy → pull
          → workspace → container → phases → log home → settle

Around it, as nested scopes: the lease is renewed, the log is complete, container
and volumes are removed.  The only thing that travels backwards is a cancel token.
"""

from __future__ import annotations

import time

import structlog

from launcher import (
    admission,
    environment,
    lease,
    phases,
    telemetry,
    vendors,
    workspace,
)
from launcher.cancel import CancelToken
from launcher.environment import WRITING
from launcher.errors import LauncherError, LeaseLost
from launcher.image_access import ImageAccess
from launcher.lease import Lease
from launcher.model import (
    AdmittedJob,
    Claim,
    Outcome,
    SandboxSpec,
)
from launcher.output.joblog import JobLog
from launcher.output.opening import opened
from launcher.phases import Conversation
from launcher.ports import Ports
from launcher.settings import Settings
from launcher.watch import Watch
from launcher.wire.messages import Offer, Settlement, Verdict


log = structlog.get_logger()

STILL_RUNNING = "Still running..."
_DEADLINE_MARGIN_SECONDS = 900.0


def run_job(
    slot: int, offer: Offer, ports: Ports, settings: Settings, abort: CancelToken
) -> None:
    """Take the offered job and see it through, whatever happens to it."""
    claim = ports.source.claim(slot, offer)
    if claim is None:
        return
    with (
        structlog.contextvars.bound_contextvars(run=offer.run, job=claim.job.id),
        telemetry.veiled() as hide_with,
        lease.held(claim, ports.source, abort) as held,
    ):
        log.info("job.claimed", stack=claim.job.stack.slug, phases=claim.job.phases)
        # The log is complete before the outcome is announced, and the outcome
        # is announced while the lease is still ours.
        with opened(claim, ports, settings, held) as job_log:
            hide_with(job_log.clean)
            outcome = _attempt(claim, ports, settings, held, job_log)
            if outcome.reason:
                job_log.say(outcome.reason)
        _settle(claim, outcome, ports, held, job_log)


def _attempt(
    claim: Claim, ports: Ports, settings: Settings, held: Lease, job_log: JobLog
) -> Outcome:
    """Turn whatever happens to the job into an outcome."""
    try:
        return _execute(claim, ports, settings, held, job_log)
    except LeaseLost:
        held.lose()
        return Outcome(verdict=Verdict.FAILED)
    except LauncherError as exc:
        log.warning("job.failed", exc_info=True, code=exc.code)
        if held.cancel.cancelled:  # what failed was being ended
            return phases.ended(held, settings)
        return Outcome(verdict=Verdict.FAILED, reason=str(exc), code=exc.code)
    except Exception:  # a bug of ours must not leave the run hanging
        log.exception("job.crashed")
        return Outcome(
            verdict=Verdict.FAILED,
            reason="the worker failed to run the job; its operator's log says why",
            code=LauncherError.code,
        )


def _execute(
    claim: Claim, ports: Ports, settings: Settings, held: Lease, job_log: JobLog
) -> Outcome:
    job, engine, begun = claim.job, ports.engine, time.monotonic()
    talk, watch = _conversation(claim, ports, settings, held, job_log)

    vendor = vendors.table(job.vendor, job.phases)
    permitted = admission.permit(job, vendor, settings, ports.credentials)
    job_log.say(f"Image {permitted.image.reference}: {permitted.image.rule}")
    images = ImageAccess(
        job,
        engine,
        ports.credentials,
        say=job_log.say,
        logged_in=lambda login: job_log.hide(environment.of_login(login)),
        cancel=held.cancel,
    )
    resolved = admission.resolve(permitted, images, settings)
    job_log.say(f"Digest {resolved.image.digest}")
    admitted = talk.gate.admit(resolved, job.phases[-1], talk.mounts)
    images.pull(admitted.image)
    judged = time.monotonic()
    with workspace.contents(
        claim, admitted, vendor, ports, held, adopt=job_log.adopt
    ) as contents:
        fetched = time.monotonic()
        with engine.sandbox(_spec(admitted, talk)) as sandbox:
            sandbox.fill(contents)
            log.info(
                "container.started",
                seconds=round(time.monotonic() - begun, 4),
                judging_seconds=round(judged - begun, 4),
                fetching_seconds=round(fetched - judged, 4),
            )
            if held.cancel.cancelled:
                return phases.ended(held, settings)
            with watch.running():
                return phases.run_phases(talk, admitted, vendor, sandbox)


def _conversation(
    claim: Claim, ports: Ports, settings: Settings, held: Lease, job_log: JobLog
) -> tuple[Conversation, Watch]:
    """Introduce the job to everybody it will talk to."""
    passed_through = settings.container.passed_through
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
    talk = Conversation(
        claim=claim,
        ports=ports,
        settings=settings,
        gate=gate,
        lease=held,
        log=job_log,
        output=watch.listening(job_log.write, job_log.lacks_bytes),
        mounts=settings.container.mounts_for(writing=writing),
        passed_through=passed_through,
    )
    return talk, watch


def _spec(admitted: AdmittedJob, talk: Conversation) -> SandboxSpec:
    run = talk.settings.run
    return SandboxSpec(
        admitted=admitted,
        phase_class="plan" if WRITING.isdisjoint(admitted.job.phases) else "apply",
        mounts=talk.mounts,
        # Behind our own deadline, which asks more gently; this one is for a
        # container that nobody looks after any more.
        deadline_seconds=run.run_timeout + _DEADLINE_MARGIN_SECONDS,
        log_limit=run.log_limit,
    )


def _settle(
    claim: Claim, outcome: Outcome, ports: Ports, held: Lease, job_log: JobLog
) -> None:
    """Announce the outcome until somebody listens; silent once the lease is lost."""
    settlement = Settlement(
        verdict=outcome.verdict,
        log_length=job_log.length,
        log_complete=job_log.complete,
        log_missing=job_log.missing,
        reason=job_log.clean(outcome.reason),
        code=outcome.code,
    )
    if held.lost.cancelled:
        log.warning("job.abandoned", verdict=outcome.verdict)
        return
    try:
        held.insist(lambda: ports.source.settle(claim, settlement))
    except LauncherError:
        log.exception("job.not_settled", verdict=outcome.verdict)
    else:
        log.info("job.settled", verdict=outcome.verdict, code=outcome.code)
