"""
The launcher's own nouns: frozen, free of I/O.

Each stage of the line returns a richer noun than it was given, and the next
stage demands it: what starts containers takes an `AdmittedJob`, so that a
forgotten admission does not type-check.  What comes over the wire (`Job` and
its parts) is in `launcher.wire.jobs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.credentials import Login
from launcher.images import Permit
from launcher.wire.jobs import Job, Variable
from launcher.wire.messages import NextStep, Verdict


WORKSPACE = "/mnt/workspace"
"""Where a job's workspace is mounted; the product's own path."""

SOURCE = f"{WORKSPACE}/source"

UID = GID = 1983
"""The user and group of every run container; images must know the user."""


INTERRUPTED = 130
"""Exit code of a phase that was cancelled before it began, as after SIGINT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where this machine can be asked something."""

    host: str
    """An address of this machine, or a name of one."""
    port: int
    """0 is any that is free."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


NOWHERE = Address(host="", port=0)


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is ours for as long as the lease is renewed."""

    job: Job
    token: str = field(repr=False)
    lease_seconds: float
    renew_seconds: float
    waited_seconds: float | None = None
    """How long the job had been there for the taking, if that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How a container came to be: with it, who lost everything else finds back."""

    slot: int = 0
    claim: str = ""
    """Identity of the claim; worth nothing without the pool's key."""
    attempt: int = 1
    log_start: int = 0
    """Where in the job's log that of this container begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDecision:
    """What comes after a plan, and what only an apply in the same job may know."""

    next: NextStep
    environment: tuple[Variable, ...] = ()
    denied: bool = False
    """Whether the run fails although its plan went well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PermittedJob:
    """A job whose image reference may be used here; nothing was pulled yet."""

    job: Job
    image: Permit


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedJob:
    """A permitted job whose image is known by what will really run."""

    job: Job
    image: ResolvedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedJob:
    """
    A job that the machine's owner lets run; made by `admission.admit` only.

    Whatever creates containers takes this type and never a bare `Job`.
    """

    job: Job
    image: ResolvedImage
    receipt: str
    """SHA-256 of the evaluation that said so, in hexadecimal digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """An image, pinned."""

    reference: str
    """As written in the job or the settings, normalised."""
    digest: str
    """``sha256:…`` of the manifest, or of the image where there is none."""
    runnable: str
    """What the engine is asked to run: names the digest, never a tag."""
    local: bool
    """True when the image is in the engine already."""
    login: Login | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A directory or file of the engine's host, seen by the job."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What the engine needs to know to make a job's container."""

    admitted: AdmittedJob
    phase_class: str
    """``plan`` or ``apply``, for the labels."""
    mounts: tuple[Mount, ...] = ()
    origin: Origin = Origin()
    deadline_seconds: float
    """After this long the container ends itself, whoever is alive."""
    log_limit: int
    """Bytes after which the container ends itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A job's container, as its labels describe it."""

    job: str
    run: str
    phase_class: str
    image: ResolvedImage
    receipt: str
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseScript:
    """What one shell process executes; travels by standard input only."""

    name: str
    text: str = field(repr=False)
    grace_seconds: float = 30.0
    """After the first signal, how long the tool may take to save its state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a phase ended; an ordinary result, whatever the code."""

    code: int
    oom_killed: bool = False
    volume_full: bool = False
    """The workspace had no room for another byte when the phase failed."""
    container_lost: bool = False
    """The container ended before the phase did."""
    log_incomplete: bool = False
    """Some of what was printed is known to be missing."""
    unbegun: bool = False
    """It was handed over by an earlier life of the launcher, and never began."""
    at: int | None = None
    """
    Number of the command that was begun last, from 1; 0 when none was, None when that
    is not known, or all of them succeeded.  The job could make it say anything.
    """

    @property
    def ok(self) -> bool:
        return self.code == 0 and not (self.container_lost or self.unbegun)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job; `reason` is public."""

    verdict: Verdict
    reason: str = ""
    code: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    """For the operator's log."""
