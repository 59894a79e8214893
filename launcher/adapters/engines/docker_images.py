"""Images, by way of the Docker Engine API: found, pinned, pulled."""

from __future__ import annotations

import contextlib
import time

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import docker
import docker.errors

from launcher.adapters.engines.docker_errors import translated
from launcher.credentials import Login
from launcher.errors import ImageUnavailable
from launcher.images import Permit
from launcher.model import ResolvedImage
from launcher.settings import ImageSettings, PullPolicy


_PULL_SECONDS = 900


class DockerImages:
    """The part of `launcher.ports.ContainerEngine` that is about images."""

    def __init__(self, api: docker.APIClient, settings: ImageSettings) -> None:
        self._api = api
        self._images = settings

    def resolve(self, image: Permit, login: Login | None) -> ResolvedImage:
        reference = image.reference
        policy = self._images.pull_policy_for(reference)
        if policy is not PullPolicy.ALWAYS or reference.is_image_id:
            local = self._local(reference.engine_name)
            if local is not None:
                return ResolvedImage(
                    reference=str(reference),
                    digest=reference.digest or local,
                    runnable=local,
                    local=True,
                )
            if policy is PullPolicy.NEVER or reference.is_image_id:
                raise ImageUnavailable(
                    f"image {reference} is not on this worker, which must not pull it"
                )
        digest = reference.digest or self._distributed(reference.engine_name, login)
        return ResolvedImage(
            reference=str(reference),
            digest=digest,
            runnable=reference.pinned(digest).engine_name,
            local=False,
            login=login,
        )

    def pull(self, image: ResolvedImage) -> None:
        if image.local:
            return
        name, _, digest = image.runnable.rpartition("@")
        with (
            translated("pulling the image"),
            _image_errors(image.reference),
            contextlib.closing(
                self._api.pull(
                    name,
                    tag=digest,
                    stream=True,
                    decode=True,
                    auth_config=_auth(image.login),
                )
            ) as progress,
        ):
            self._follow_pull(image.reference, progress)

    def _follow_pull(
        self, reference: str, progress: Iterable[Mapping[str, Any]]
    ) -> None:
        until = time.monotonic() + _PULL_SECONDS
        for line in progress:
            if error := line.get("error"):
                raise ImageUnavailable(
                    f"image {reference} cannot be pulled", details=str(error)
                )
            if time.monotonic() > until:
                raise ImageUnavailable(
                    f"image {reference} was not pulled within {_PULL_SECONDS} s"
                )

    def _local(self, name: str) -> str | None:
        with translated("looking for the image"):
            try:
                found = self._api.inspect_image(name)  # type: ignore[no-untyped-call]
                return str(found["Id"])
            except docker.errors.ImageNotFound:
                return None

    def _distributed(self, name: str, login: Login | None) -> str:
        with translated("resolving the image"), _image_errors(name):
            found = self._api.inspect_distribution(  # type: ignore[no-untyped-call]
                name, auth_config=_auth(login)
            )
        return str(found["Descriptor"]["digest"])


@contextmanager
def _image_errors(reference: str) -> Iterator[None]:
    """Tell apart what the registry says from what the engine does."""
    try:
        yield
    except docker.errors.APIError as exc:
        raise ImageUnavailable(
            f"image {reference} cannot be pulled: it does not exist, or this worker"
            " has no access to it",
            details=str(exc),
        ) from exc


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
