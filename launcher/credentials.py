"""
Who we are to an image registry: found anew for every job, kept by nobody.

A port.  The real ones are in `launcher.adapters.credentials`, the fake one in
`launcher.testing.credentials`.
"""

from __future__ import annotations

import dataclasses

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from launcher.images import DOCKER_HUB, DOCKER_HUB_HOSTS, Reference
from launcher.secret import Secret
from launcher.wire.jobs import RegistryLogin


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a registry is told; goes into one engine call and nowhere else."""

    username: str
    password: Secret
    registry: str
    """Host and, if any, port, as in `Reference.registry`."""
    identity_token: Secret | None = None
    """Given instead of a password by registries that hand out refresh tokens."""
    source: str = ""
    """Where it comes from, in public words, for whoever wonders why it is refused."""
    expires_at: float = 0.0
    """When it ends, in seconds since 1970, if whoever issued it has said so; else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a login would come from: named, not fetched."""

    source: str
    """``the job``, the name of a setting, or ``ECR``."""
    entry: str
    """The part of an image's name that it is for: a registry, perhaps with a path."""
    means: str
    """How the login is had, in public words."""
    expires: str
    """When it ends, in public words; fetching alone would tell more."""
    configured: bool
    """True when the machine's owner wrote down this very registry."""
    fetch: Callable[[], Login | None] = dataclasses.field(repr=False)
    """
    Get it; None: it turns out that there is none.

    Raises:
        ImageUnavailable: it cannot be had.
    """

    def __str__(self) -> str:
        return f"{self.source} ({self.entry}: {self.means})"


class RegistryCredentials(Protocol):
    def found(
        self, reference: Reference, given: Iterable[RegistryLogin] = (), /
    ) -> Iterable[Found]:
        """
        Return where logins for *reference* may come from, what is tried first first.

        Nothing is executed, and nobody is asked.  *given* came with the job.

        Raises:
            ImageUnavailable: as below.
        """

    def for_image(
        self, reference: Reference, given: Iterable[RegistryLogin] = (), /
    ) -> Login | None:
        """
        Return the login for *reference*; None: ask anonymously.

        Looks anew each time, so that a renewed password is used by the next job.

        Raises:
            ImageUnavailable: credentials are configured but cannot be had; the
                message is public and names neither path nor secret.
        """

    def renewed(
        self,
        reference: Reference,
        refused: Login | None,
        given: Iterable[RegistryLogin] = (),
        /,
    ) -> Login | None:
        """
        Return another login after the registry said no; None: there is no other.

        Raises:
            ImageUnavailable: as above.
        """


class NoCredentials:
    """Asks every registry anonymously."""

    def found(self, *_: object) -> Iterable[Found]:
        return ()

    def for_image(self, *_: object) -> Login | None:
        return None

    def renewed(self, *_: object) -> Login | None:
        return None


def configured_rule(
    credentials: RegistryCredentials,
) -> Callable[[Reference], str | None]:
    """Return what tells by which entry of the owner's a registry is known to them."""

    def rule(reference: Reference) -> str | None:
        for found in credentials.found(reference):
            if found.configured:
                return f"credentials configured: {found.entry} in {found.source}"
        return None

    return rule


def longest(entries: Iterable[str], reference: Reference) -> str | None:
    """
    Return the entry that names most of *reference*, in whole parts.

    An entry is a host, with its port if it has one, and perhaps a path below it, as
    in ``registry.example.com:5000/team``.  Docker Hub may be called by any of its
    names.  What has a scheme was written by ``docker login``, and names a host only.
    """
    name, best, most = _parts(reference.name), None, 0
    for entry in entries:
        parts = _parts(entry)
        if len(parts) > most and parts == name[: len(parts)]:
            best, most = entry, len(parts)
    return best


_OF_THE_PROTOCOL: tuple[list[str], ...] = ([], ["v1"], ["v2"])


def _parts(entry: str) -> tuple[str, ...]:
    _, has_scheme, rest = entry.rpartition("://")
    host, *path = rest.rstrip("/").split("/")
    if host in DOCKER_HUB_HOSTS:
        host = DOCKER_HUB
    if path in _OF_THE_PROTOCOL:
        return (host,)
    # Beside a login, the client keeps other things under URLs of the same host.
    return () if has_scheme else (host, *path)
