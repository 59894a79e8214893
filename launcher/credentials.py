"""
Who we are to an image registry: found anew for every job, kept by nobody.

A port.  The real ones are in `launcher.adapters.credentials`, the fake one in
`launcher.testing.credentials`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from launcher.images import Reference
from launcher.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a registry is told; goes into one engine call and nowhere else."""

    username: str
    password: Secret
    registry: str
    """Host and, if any, port, as in `Reference.registry`."""
    identity_token: Secret | None = None
    """Given instead of a password by registries that hand out refresh tokens."""


class RegistryCredentials(Protocol):
    def for_image(self, reference: Reference, /) -> Login | None:
        """
        Return the login for the registry of *reference*; None: ask anonymously.

        Looks anew each time, so that a renewed password is used by the next job.

        Raises:
            ImageUnavailable: credentials are configured but cannot be had; the
                message is public and names neither path nor secret.
        """


class NoCredentials:
    """Asks every registry anonymously."""

    def for_image(self, reference: Reference, /) -> Login | None:
        return None
