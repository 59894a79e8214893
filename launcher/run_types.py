"""
What the types of runs consist of, and what a run asks of its vendor.

A control plane that hands over phases which a run of its type does not have is not
obeyed: who lets proposed runs in has not let anything be applied.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.durations import parse_duration
from launcher.errors import JobInvalid
from launcher.vendors import Asked
from launcher.wire.jobs import Job, Phase, RunType


_PHASES: Mapping[RunType, tuple[Phase, ...]] = {
    RunType.PROPOSED: (Phase.INITIALIZE, Phase.PLAN),
    RunType.TRACKED: (Phase.INITIALIZE, Phase.PLAN, Phase.APPLY),
    RunType.TASK: (Phase.INITIALIZE, Phase.PERFORM),
    RunType.TESTING: (Phase.INITIALIZE, Phase.PLAN, Phase.APPLY, Phase.DESTROY),
    RunType.DESTROY: (Phase.INITIALIZE, Phase.PLAN, Phase.DESTROY),
}
"""In their order; a job may have some of them."""

_SKIPPING = {
    Phase.PLAN: "SPACELIFT_SKIP_PLANNING",
    Phase.APPLY: "SPACELIFT_SKIP_APPLYING",
    Phase.DESTROY: "SPACELIFT_SKIP_DESTROYING",
}
_LOCKLESS = "SPACELIFT_DISABLE_STATE_LOCK"
OUTPUTS_TIMEOUT = "SPACELIFT_STATE_OUTPUTS_UPLOAD_TIMEOUT"
_OUTPUTS_SECONDS = 120.0
_LONGEST_OUTPUTS_SECONDS = 600.0


def phases(job: Job) -> tuple[Phase, ...]:
    """
    The phases of *job* that are carried out.

    Raises:
        JobInvalid: a run of its type has other ones, or has them in another order.
    """
    known = _PHASES[job.run.type]
    for phase in job.phases:
        if phase not in known:
            raise JobInvalid(f"a run of type {job.run.type} cannot {phase}")
    places = [known.index(phase) for phase in job.phases]
    if places != sorted(set(places)):
        raise JobInvalid("the job has its phases in an order that makes no sense")
    wanted = tuple(
        phase
        for phase in job.phases
        if not (job.skip_init and phase is Phase.INITIALIZE)
    )
    if not wanted:
        raise JobInvalid("the job has no phases")
    return wanted


def changing(job: Job) -> Phase:
    """What follows the plan of *job*, here or in a job of its own."""
    return Phase.DESTROY if job.run.type is RunType.DESTROY else Phase.APPLY


def asked(job: Job, variables: Mapping[str, str]) -> Asked:
    """What the vendor of *job* needs to know to fill in its commands."""
    return Asked(
        destroys=job.run.type is RunType.DESTROY,
        refresh=job.refresh_state,
        lock=not _is_on(variables, _LOCKLESS),
        targets=job.run.targets,
        command=job.run.command,
        terraformrc=any(is_terraformrc(file.path) for file in job.mounted_files),
    )


def skipped_by(phase: Phase, variables: Mapping[str, str]) -> str:
    """Name of the variable by which *phase* is skipped; empty when it is not."""
    name = _SKIPPING.get(phase, "")
    return name if name and _is_on(variables, name) else ""


def outputs_seconds(variables: Mapping[str, str]) -> float:
    """
    How long the outputs may be on their way, by what the run says: 10 min at most.

    Raises:
        JobInvalid: what it says is no duration.
    """
    text = variables.get(OUTPUTS_TIMEOUT, "")
    if not text:
        return _OUTPUTS_SECONDS
    try:
        seconds = parse_duration(text)
        if seconds <= 0:
            raise ValueError("it has to be more than nothing")  # noqa: TRY301
    except ValueError as exc:
        raise JobInvalid(f"{OUTPUTS_TIMEOUT}: {exc}") from exc
    return min(seconds, _LONGEST_OUTPUTS_SECONDS)


def is_terraformrc(path: str) -> bool:
    """Whether a mounted file holds settings for the command line of Terraform."""
    return path.endswith(".terraformrc")


def _is_on(variables: Mapping[str, str], name: str) -> bool:
    return variables.get(name, "").strip().lower() in ("true", "1")
