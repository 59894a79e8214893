"""Registry credentials from a dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from launcher.credentials import Found, Login
from launcher.errors import ImageUnavailable
from launcher.images import Reference
from launcher.secret import Secret
from launcher.wire.jobs import RegistryLogin


class ScriptedCredentials:
    """Knows the logins it was given, by registry; may be changed at any time."""

    def __init__(self, logins: Mapping[str, tuple[str, str]] | None = None) -> None:
        self.logins = dict(logins or {})
        self.broken = ""
        """When set: why credentials cannot be had."""

    def found(
        self, reference: Reference, given: Iterable[RegistryLogin] = (), /
    ) -> Iterator[Found]:
        if reference.registry in self.logins:
            yield Found(
                source="a dictionary",
                entry=reference.registry,
                means="by heart",
                expires="never",
                configured=True,
                fetch=lambda: self.for_image(reference),
            )

    def for_image(
        self, reference: Reference, given: Iterable[RegistryLogin] = (), /
    ) -> Login | None:
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

    def renewed(
        self,
        reference: Reference,
        refused: Login | None,
        given: Iterable[RegistryLogin] = (),
        /,
    ) -> Login | None:
        fresh = self.for_image(reference)
        return None if fresh == refused else fresh
