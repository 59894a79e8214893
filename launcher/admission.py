"""
May this job run here?  Answered before anything of it is started.

What is cheap and local comes first: the image's name decides before a registry
is asked.  The owner's policy comes last, and judges the digest that will run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import structlog

from ulid import ULID

from launcher import __version__, environment
from launcher.credentials import RegistryCredentials, configured_rule
from launcher.errors import (
    ImageUnavailable,
    JobInvalid,
    PolicyDenied,
    PolicyUndecided,
)
from launcher.images import Permit, Reference, permitted, refuse_denied
from launcher.model import (
    AdmittedJob,
    Mount,
    PermittedJob,
    ResolvedImage,
    ResolvedJob,
)
from launcher.output.mask import Index
from launcher.output.needles import needles
from launcher.policy import Evaluation, Outcome, PolicyEngine
from launcher.policy_input import policy_input, receipt, sample
from launcher.settings import Settings
from launcher.vendors import VendorTable
from launcher.wire.jobs import Job, Phase, Variable


log = structlog.get_logger()


class Registry(Protocol):
    """Whoever knows what a name stands for, such as `launcher.image_access`."""

    def resolve(self, permit: Permit, /) -> ResolvedImage:
        """
        Find out what the image stands for now.

        Raises:
            ImageUnavailable: there is no such image, or no access to it.
        """


def permit(
    job: Job,
    vendor: VendorTable,
    settings: Settings,
    credentials: RegistryCredentials,
) -> PermittedJob:
    """
    Decide by the name of the job's image alone.

    Of *credentials* only those count that the machine's owner configured for a
    registry by its name; what came with the job admits nothing.

    Raises:
        ImageNotAllowed: the image may not be used on this worker.
    """
    default = settings.images.default_runner_image
    if vendor.uses_ansible_image:
        default = settings.images.default_ansible_runner_image
    image = permitted(
        Reference.parse(job.docker_image) if job.docker_image else default,
        settings.images.allowed_images,
        require_digest=settings.images.require_digest,
        configured=configured_rule(credentials),
    )
    return PermittedJob(job=job, image=image)


def resolve(
    permitted: PermittedJob, registry: Registry, settings: Settings
) -> ResolvedJob:
    """
    Learn the digest behind the name, and whether the owner forbids that digest.

    A job that goes on where another ended runs what that one ran, wherever the name
    points to by now.

    Raises:
        ImageNotAllowed: a pattern that denies matches the image by its digest.
        ImageUnavailable: there is no such image.
    """
    reference = permitted.image.reference
    image = _as_planned(permitted, registry)
    if not reference.is_image_id:
        refuse_denied(reference.pinned(image.digest), settings.images.allowed_images)
    return ResolvedJob(job=permitted.job, image=image)


def _as_planned(permitted: PermittedJob, registry: Registry) -> ResolvedImage:
    planned, reference = permitted.job.image_digest, permitted.image.reference
    if not planned or reference.is_image_id:
        return registry.resolve(permitted.image)
    try:
        image = registry.resolve(permitted.image)
        if image.digest == planned:
            # Perhaps one that no registry knows, and only the name leads there.
            return image
    except ImageUnavailable:
        log.info("image.moved", image=str(reference))
    try:
        pinned = reference.pinned(planned)
    except ValueError as exc:
        raise JobInvalid("the job names a digest that is none") from exc
    permit = Permit(reference=pinned, rule=permitted.image.rule)
    return registry.resolve(permit)


class Gate:
    """The owner's policy, and what else it takes to ask it."""

    def __init__(
        self,
        policy: PolicyEngine,
        *,
        passed_through: Iterable[Variable],
        endpoint: str,
    ) -> None:
        self._policy = policy
        self._passed_through = tuple(passed_through)
        self._endpoint = endpoint

    def admit(
        self, resolved: ResolvedJob, phase: Phase, mounts: Iterable[Mount]
    ) -> AdmittedJob:
        """
        Let the owner's policy decide about *phase* of the job.

        Raises:
            PolicyDenied: denied.
            PolicyUndecided: nobody could tell.
        """
        job = resolved.job
        document = policy_input(
            resolved,
            phase=phase,
            environment=environment.for_phase(phase, job, self._passed_through),
            mounts=mounts,
            endpoint=self._endpoint,
            worker_version=__version__,
        )
        evaluation = self._policy.evaluate(document)
        hidden = environment.secrets(job, self._passed_through)
        sampled = _sample(evaluation, document, hidden)
        if sampled and (evaluation.sample or evaluation.error):
            name = f"Sample 0/INITIALIZATION/{ULID()}/{evaluation.outcome}"
            log.info(name, sample=sampled)
        if not evaluation.allowed:
            # A policy may quote what it was asked about, secrets included.
            clean = Index(needles(hidden, short=True)).text
            undecided = evaluation.outcome is Outcome.ERROR
            raise (PolicyUndecided if undecided else PolicyDenied)(
                clean(evaluation.refusal), details=clean(evaluation.error)
            )
        unseen = {"body": evaluation.body, "input": None, "outcome": Outcome.ALLOW}
        return AdmittedJob(
            job=job, image=resolved.image, receipt=receipt(sampled or unseen)
        )


def remembered(job: Job, image: ResolvedImage, receipt: str) -> AdmittedJob:
    """A job that was let run before, and whose container is there to prove it."""
    return AdmittedJob(job=job, image=image, receipt=receipt)


def _sample(
    evaluation: Evaluation, document: Mapping[str, Any], secrets: Iterable[bytes]
) -> dict[str, Any] | None:
    """The sample; that there cannot be one is no reason to decide otherwise."""
    try:
        return sample(evaluation, document, secrets)
    except Exception as exc:  # noqa: BLE001
        # Its type only: the words may quote a secret that nobody masked.
        log.error("sample.failed", error=type(exc).__name__)  # noqa: TRY400
        return None
