"""Registry credentials from a dictionary."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.credentials import Login
from launcher.errors import ImageUnavailable
from launcher.images import Reference
from launcher.secret import Secret


class ScriptedCredentials:
    """Knows the logins it was given, by registry; may be changed at any time."""

    def __init__(self, logins: Mapping[str, tuple[str, str]] | None = None) -> None:
        self.logins = dict(logins or {})
        self.broken = ""
        """When set: why credentials cannot be had."""

    def for_image(self, reference: Reference, /) -> Login | None:
        if self.broken:
            raise ImageUnavailable(
                "the registry credentials of this worker cannot be read",
                details=self.broken,
            )
        found = self.logins.get(reference.registry)
        if found is None:
            return None
        username, password = found
        return Login(
            username=username, password=Secret(password), registry=reference.registry
        )
