"""
Images, by way of the Docker Engine API: found, pinned, pulled, removed.

Facts this module is built around:

- ``/distribution`` asks the registry for a manifest with the engine's own
  certificates, proxy and mirrors; by a digest it tells whether a login may have it.
- An image that is in the engine may be used by whoever can reach the engine, however
  it came there.  So who may not pull an image has to be found out before.
- The engine knows an image by an id of its own.  What registries call it is in
  ``RepoDigests``, once it was pulled from one or pushed to one.
- A pull goes on for as long as its answer is being read, and ends when that is
  closed.  It is given no end by the engine: a registry that stalls, stalls it.
- A pull by a digest leaves no tag behind.
"""

from __future__ import annotations

import contextlib
import random
import time

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import docker
import docker.errors
import requests
import structlog

from launcher.adapters.engines import image_troubles
from launcher.adapters.engines.docker_errors import VENDOR_ERRORS, translated
from launcher.adapters.engines.flights import Flight, Flights
from launcher.adapters.engines.pull_progress import LINE_SECONDS, PullProgress
from launcher.adapters.engines.pulled_images import PulledImages
from launcher.adapters.engines.pulling import Pull
from launcher.cancel import CancelToken
from launcher.credentials import Login
from launcher.errors import (
    EngineError,
    ImageAccessDenied,
    ImageUnavailable,
    JobInvalid,
)
from launcher.heartbeat import beat, pausing
from launcher.images import Permit, Reference
from launcher.model import ResolvedImage
from launcher.settings import ImageSettings, PullPolicy
from launcher.threads import spawn


log = structlog.get_logger()

Say = Callable[[str], None]
Answer = TypeVar("Answer")

_RESOLVE_ATTEMPTS, _RESOLVE_SECONDS = 3, 30.0
_PULL_ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_LOOK_SECONDS = 0.1
_NEVER_COLLECTED = 100
# An engine on the first runs what is built for the second.
_ALSO_RUNS = {("amd64", "386"), ("arm64", "arm")}
_ALIASES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class DockerImages:
    """The part of `launcher.ports.ContainerEngine` that is about images."""

    def __init__(
        self,
        api: docker.APIClient,
        settings: ImageSettings,
        pulled: PulledImages | None = None,
    ) -> None:
        self._api = api
        self._settings = settings
        self._pulled = pulled or PulledImages()
        self._flights: Flights[PullProgress] = Flights()
        self._platform: tuple[str, str] | None = None

    # --- resolving

    def resolve(self, image: Permit, login: Login | None) -> ResolvedImage:
        reference = image.reference
        policy = self._settings.pull_policy_for(reference)
        if policy is not PullPolicy.ALWAYS or reference.is_image_id:
            local = self._local(reference.engine_name)
            if local is not None:
                return self._present(reference, local, policy, login)
            if policy is PullPolicy.NEVER or reference.is_image_id:
                raise ImageUnavailable(
                    f"image {reference} is not on this worker, which must not pull it"
                )
        digest = self._distributed(reference, login)
        return ResolvedImage(
            reference=str(reference),
            digest=reference.digest or digest,
            runnable=reference.pinned(reference.digest or digest).engine_name,
            local=False,
            login=login,
        )

    def _present(
        self,
        reference: Reference,
        local: dict[str, Any],
        policy: PullPolicy,
        login: Login | None,
    ) -> ResolvedImage:
        self._note_use(local)
        known = reference.digest or _registry_digest(reference, local)
        if known and policy is not PullPolicy.NEVER and not reference.is_image_id:
            self._distributed(reference.pinned(known), login)
        return ResolvedImage(
            reference=str(reference),
            digest=known or str(local["Id"]),
            runnable=str(local["Id"]),
            local=True,
            login=login,
        )

    def _local(self, name: str) -> dict[str, Any] | None:
        with translated("looking for the image"):
            try:
                found: dict[str, Any] = self._api.inspect_image(name)  # type: ignore[no-untyped-call]
            except docker.errors.ImageNotFound:
                return None
            return found

    def _distributed(self, reference: Reference, login: Login | None) -> str:
        """Ask the registry for the manifest: what it is called, and whether we may."""

        def ask() -> str:
            with translated("resolving the image"):
                found = self._api.inspect_distribution(  # type: ignore[no-untyped-call]
                    reference.engine_name, auth_config=_auth(login)
                )
                return str(found["Descriptor"]["digest"])

        return self._insisting(
            ask,
            image=str(reference),
            login=login,
            attempts=_RESOLVE_ATTEMPTS,
            end=time.monotonic() + _RESOLVE_SECONDS,
        )

    # --- pulling

    def pull(
        self,
        image: ResolvedImage,
        *,
        say: Say = lambda _: None,
        cancel: CancelToken | None = None,
    ) -> None:
        cancel = cancel or CancelToken()
        while not (image.local or self._local(image.runnable)):
            flight, ours = self._flights.join(image.runnable, PullProgress)
            if ours:
                with self._landing(image, flight):
                    self._pull_as_the_first(image, flight.work, say, cancel)
                break
            if _waited(flight, image, say, cancel):
                break
        found = self._local(image.runnable)
        if found is None:
            raise ImageUnavailable(f"image {image.reference} is not there any more")
        self._note_use(found)
        self._check_platform(image, found)

    @contextlib.contextmanager
    def _landing(
        self, image: ResolvedImage, flight: Flight[PullProgress]
    ) -> Iterator[None]:
        try:
            yield
        except BaseException as exc:
            flight.error = exc
            raise
        finally:
            self._flights.land(image.runnable)

    def _pull_as_the_first(
        self,
        image: ResolvedImage,
        progress: PullProgress,
        say: Say,
        cancel: CancelToken,
    ) -> None:
        end = time.monotonic() + self._settings.pull_timeout

        def once() -> None:
            with translated("pulling the image"):
                self._pull_once(image, progress, end, say, cancel)

        self._insisting(
            once,
            image=image.reference,
            login=image.login,
            attempts=_PULL_ATTEMPTS,
            end=end,
            say=say,
            cancel=cancel,
        )
        if self._local(image.runnable) is None:
            raise image_troubles.unavailable(image.reference, image_troubles.UNKNOWN)
        self._pulled.pulled(image.runnable)
        say(f"Pulled the image in {progress.seconds:.1f} s")
        log.info(
            "image.pulled", image=image.runnable, seconds=round(progress.seconds, 3)
        )

    def _pull_once(
        self,
        image: ResolvedImage,
        progress: PullProgress,
        end: float,
        say: Say,
        cancel: CancelToken,
    ) -> None:
        stalled = self._settings.pull_stall_timeout
        pull = Pull(
            self._api, image.runnable, _auth(image.login), progress, quiet_for=stalled
        )
        next_line = time.monotonic() + LINE_SECONDS
        progress.touch()
        # In a thread of its own, which can be left alone when it does not end.
        spawn("pull", pull.run)
        try:
            while not pull.over.wait(_LOOK_SECONDS):
                beat()
                now = time.monotonic()
                if cancel.cancelled:
                    raise GivenUp(f"image {image.reference} was not pulled")
                if now > end:
                    seconds = self._settings.pull_timeout
                    raise Troubled(image_troubles.TOO_SLOW, seconds=seconds)
                if progress.seconds_still > stalled:
                    raise Troubled(image_troubles.STALLED, seconds=stalled)
                if now > next_line:
                    say(progress.line)
                    next_line = now + LINE_SECONDS
        finally:
            pull.leave()
        if pull.error is not None:
            raise pull.error

    def _note_use(self, found: Mapping[str, Any]) -> None:
        """By whatever name the job called it, it may be one that we pulled."""
        for name, digest in _names(found):
            self._pulled.used(f"{name}@{digest}")

    def _check_platform(self, image: ResolvedImage, found: Mapping[str, Any]) -> None:
        """Refuse what would end with ``exec format error``."""
        if not found.get("Architecture"):
            return
        built = (str(found.get("Os", "")), _architecture(found["Architecture"]))
        ours = self._engines_platform()
        if built != ours and (ours[1], built[1]) not in _ALSO_RUNS:
            raise self._unavailable(
                image.reference,
                image.login,
                Troubled(image_troubles.WRONG_PLATFORM, details="/".join(built)),
            )

    def _engines_platform(self) -> tuple[str, str]:
        """Operating system and processor, as images spell them."""
        if self._platform is None:
            with translated("asking for the engine's platform"):
                version = self._api.version()
            self._platform = str(version["Os"]), _architecture(version["Arch"])
        return self._platform

    # --- insisting

    def _insisting(
        self,
        call: Callable[[], Answer],
        *,
        image: str,
        login: Login | None,
        attempts: int,
        end: float,
        say: Say = lambda _: None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        """Repeat *call* while its trouble is of the kind that passes."""
        cancel, longest = cancel or CancelToken(), _FIRST_PAUSE
        while True:
            attempts -= 1
            try:
                return call()
            except EngineError as exc:
                troubled = _troubled(exc)
                if troubled is None:
                    raise
            except Troubled as exc:
                troubled = exc
            # Full jitter: those who failed together do not come again together.
            pause = random.uniform(0, longest)  # noqa: S311
            pause = max(pause, image_troubles.retry_after(troubled.details))
            if (
                not troubled.trouble.passes
                or not attempts
                or time.monotonic() + pause > end
            ):
                raise self._unavailable(image, login, troubled) from troubled
            log.info("image.retried", image=image, details=troubled.details)
            say(f"Trying again in {pause:.1f} s: {troubled.trouble.hint}")
            if pausing(cancel, pause):
                raise GivenUp(f"image {image} was not pulled")
            longest = min(longest * 2, _LONGEST_PAUSE)

    def _unavailable(
        self, image: str, login: Login | None, troubled: Troubled
    ) -> ImageUnavailable:
        facts = troubled.facts
        if troubled.trouble is image_troubles.WRONG_PLATFORM:
            facts = {"platform": "/".join(self._engines_platform()), **facts}
        return image_troubles.unavailable(
            image, troubled.trouble, login=login, details=troubled.details, **facts
        )

    # --- removing

    def collect(self, used: Callable[[], float], *, grace: float) -> int:
        """
        Remove what we pulled and nobody used for *grace* seconds; return how many.

        Stops as soon as *used*, the per cent of the disk in use, is low enough.
        """
        removed = 0
        threshold = self._settings.gc_threshold
        if threshold >= _NEVER_COLLECTED:
            return removed
        for name in self._pulled.unused_for(grace):
            if used() < threshold:
                break
            removed += self._removed(name)
        return removed

    def _removed(self, name: str) -> bool:
        try:
            # Not by force: containers, stopped ones too, and other names keep it.
            self._api.remove_image(name)
        except docker.errors.ImageNotFound:
            self._pulled.forget(name)
            return False
        except VENDOR_ERRORS as exc:
            log.info("image.not_removed", image=name, error=str(exc))
            return False
        self._pulled.forget(name)
        log.info("image.removed", image=name)
        return True


class GivenUp(ImageUnavailable):
    """The job does not want the image any more; others may."""


class Troubled(Exception):
    """One attempt failed; never leaves the adapter."""

    def __init__(
        self, trouble: image_troubles.Trouble, *, details: str = "", **facts: object
    ) -> None:
        super().__init__(details)
        self.trouble = trouble
        self.details = details
        self.facts = facts


def _troubled(error: EngineError) -> Troubled | None:
    """What the registry says, if it is not the engine that fails."""
    cause = error.__cause__
    if isinstance(cause, requests.Timeout) or "Read timed out" in str(cause):
        return Troubled(image_troubles.UNREACHABLE, details=str(cause))
    if isinstance(cause, docker.errors.APIError):
        text = str(cause.explanation or cause)
        trouble = image_troubles.classified(text, cause.status_code)
        return Troubled(trouble, details=text)
    return None


def _waited(
    flight: Flight[PullProgress], image: ResolvedImage, say: Say, cancel: CancelToken
) -> bool:
    """Wait for the pull of another job; False: see for yourself."""
    say("Another run on this worker pulls the same image; waiting for it")
    next_line = time.monotonic() + LINE_SECONDS
    while not flight.over.wait(_LOOK_SECONDS):
        beat()
        if cancel.cancelled:
            raise GivenUp(f"image {image.reference} was not pulled")
        if time.monotonic() > next_line:
            say(flight.work.line)
            next_line = time.monotonic() + LINE_SECONDS
    match flight.error:
        case None:
            return True
        case ImageAccessDenied() | GivenUp():
            return False
        case ImageUnavailable() as error:
            raise type(error)(str(error), details=error.details)
        case _:
            return False


def _registry_digest(reference: Reference, local: Mapping[str, Any]) -> str:
    """What the registry that *reference* names calls the image; empty: unknown."""
    digests = [digest for name, digest in _names(local) if name == reference.name]
    return min(digests, default="")


def _names(local: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """By which repositories, in full, and digests the engine knows an image."""
    for known in local.get("RepoDigests") or ():
        name, _, digest = str(known).partition("@")
        # An engine may keep names of other times that nobody would take today.
        with contextlib.suppress(JobInvalid):
            yield Reference.parse(name).name, digest


def _architecture(name: str) -> str:
    return _ALIASES.get(name, name)


def _auth(login: Login | None) -> dict[str, str]:
    if login is None:
        return {}
    if login.identity_token is not None:
        return {
            "identitytoken": login.identity_token.reveal(),
            "serveraddress": login.registry,
        }
    return {
        "username": login.username,
        "password": login.password.reveal(),
        "serveraddress": login.registry,
    }
