"""
All sources of logins, in the order in which they are asked.

The job's own; SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG; the Docker configuration that
SPACELIFT_DOCKER_CONFIG_DIR names; ECR, by the registry's name; nobody.  In each, what
names most of the image's name wins.
"""

from __future__ import annotations

import dataclasses

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from launcher.adapters.credentials.docker_config import (
    Configuration,
    ConfigurationFile,
    ConfigurationText,
    DockerConfigCredentials,
)
from launcher.adapters.credentials.ecr import EcrCredentials, identity_likely
from launcher.adapters.credentials.helpers import Helpers
from launcher.credentials import Found, Login, longest
from launcher.images import Reference
from launcher.secret import Secret
from launcher.settings import ImageSettings
from launcher.wire.jobs import RegistryLogin


class Source(Protocol):
    def found(self, reference: Reference, /) -> Iterable[Found]:
        """Yield where it has a login for *reference*; fetch nothing."""


class CredentialChain:
    """Implements `launcher.credentials.RegistryCredentials`."""

    def __init__(self, sources: Sequence[Source], ecr: EcrCredentials) -> None:
        self._sources = (*sources, ecr)
        self._ecr = ecr

    def prepare(self, settings: ImageSettings) -> None:
        """
        Make what is slow to make and sure to be needed; call it in the main thread.

        That is the AWS clients for private registries that *settings* name in full.
        """
        named = [
            settings.default_runner_image.registry,
            settings.default_ansible_runner_image.registry,
            *(pattern.registry for pattern in settings.allowed_images),
        ]
        self._ecr.prepare(named)

    def found(
        self, reference: Reference, given: Iterable[RegistryLogin] = (), /
    ) -> Iterator[Found]:
        yield from _of_the_job(reference, given)
        for source in self._sources:
            yield from source.found(reference)

    def for_image(
        self, reference: Reference, given: Iterable[RegistryLogin] = (), /
    ) -> Login | None:
        for found in self.found(reference, given):
            login = found.fetch()
            if login is not None:
                return dataclasses.replace(login, source=str(found))
        return None

    def renewed(
        self,
        reference: Reference,
        refused: Login | None,
        given: Iterable[RegistryLogin] = (),
        /,
    ) -> Login | None:
        fresh = self.for_image(reference, given)
        if fresh != refused:
            # Renewed meanwhile by whoever looks after it.
            return fresh
        if refused is None or not refused.source.startswith("ECR "):
            return None
        fresh = self._ecr.renewed(reference, refused)
        if fresh is None or fresh.password == refused.password:
            return None
        return dataclasses.replace(fresh, source=refused.source)


def chain(
    settings: ImageSettings,
    environment: Mapping[str, str],
    *,
    on_ec2: Callable[[], bool] = lambda: False,
    roots: Sequence[str] = (),
) -> CredentialChain:
    """
    Return what *settings* ask for; helpers see *environment* and nothing else.

    *on_ec2* tells whether this machine is Amazon's, and so may have an identity;
    *roots* are further authorities, in PEM, to trust in connections to AWS.
    """
    helpers = Helpers(environment)
    configurations: list[Configuration] = []
    if settings.docker_auth_config is not None:
        name = "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG"
        configurations.append(ConfigurationText(name, settings.docker_auth_config))
    if settings.docker_config_dir is not None:
        name = "SPACELIFT_DOCKER_CONFIG_DIR"
        configurations.append(ConfigurationFile(name, settings.docker_config_dir))
    return CredentialChain(
        [DockerConfigCredentials(each, helpers) for each in configurations],
        EcrCredentials(
            settings.ecr_assume_role_arn,
            roots=roots,
            identity_likely=lambda: identity_likely(environment) or on_ec2(),
        ),
    )


def _of_the_job(
    reference: Reference, given: Iterable[RegistryLogin]
) -> Iterator[Found]:
    by_entry = {login.registry: login for login in given}
    entry = longest(by_entry, reference)
    if entry is None:
        return
    login = Login(
        username=by_entry[entry].username,
        password=Secret(by_entry[entry].password),
        registry=reference.registry,
    )
    yield Found(
        source="the job",
        entry=entry,
        means="what came with the run",
        expires="not known here; it is sent with every job",
        configured=False,
        fetch=lambda: login,
    )
