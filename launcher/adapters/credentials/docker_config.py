"""
Logins from a Docker configuration: what ``docker login`` writes, or its like.

Facts this is built around:

- Keys of ``auths`` are host names, with or without scheme, and with a path in the
  form that other tools than Docker understand; Docker Hub is
  ``https://index.docker.io/v1/``.
- An entry without ``auth`` means that a credential helper has the login.
- ``credHelpers`` names a helper for one registry, ``credsStore`` one for all.
- Somebody renews the file while we run.
"""

from __future__ import annotations

import functools
import os
import threading

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from docker import auth
from docker.errors import DockerException

from launcher.adapters.credentials.helpers import Helpers
from launcher.credentials import Found, Login, longest
from launcher.docker_auths import parsed
from launcher.errors import ImageUnavailable
from launcher.images import DOCKER_HUB, Reference
from launcher.secret import Secret


log = structlog.get_logger()

_EXPIRES = "not known here; it is read anew for every job"


class Configuration(Protocol):
    """One way to come by a Docker configuration."""

    @property
    def name(self) -> str:
        """The setting that it is from."""

    def read(self) -> dict[str, Any]:
        """
        Return it as it is now.

        Raises:
            ValueError: with what is wrong with it, for the operator.
        """


class ConfigurationText:
    """A configuration that was given in a setting."""

    def __init__(self, name: str, text: Secret) -> None:
        self.name = name
        self._document = parsed(text.reveal().encode())

    def read(self) -> dict[str, Any]:
        return self._document


class ConfigurationFile:
    """``config.json`` in a directory; parsed again when it has changed."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._file = directory / "config.json"
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._document: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        try:
            with self._file.open("rb") as file, self._lock:
                state = os.fstat(file.fileno())
                seen = (state.st_ino, state.st_size, state.st_mtime_ns)
                if seen != self._seen:
                    self._document = parsed(file.read())
                    self._seen = seen
                return self._document
        except FileNotFoundError:
            log.warning("credentials.file_missing", path=str(self._file))
            return {}
        except OSError as exc:
            raise ValueError(f"{self._file}: {exc.strerror}") from exc
        except ValueError as exc:
            raise ValueError(f"{self._file}: {exc}") from exc


@dataclass(frozen=True, slots=True)
class DockerConfigCredentials:
    """Knows the logins of one configuration."""

    configuration: Configuration
    helpers: Helpers

    def found(self, reference: Reference) -> Iterator[Found]:
        """
        Yield where the configuration has a login for *reference*.

        Raises:
            ImageUnavailable: nobody can read it.
        """
        if reference.is_image_id:
            return
        try:
            document = self.configuration.read()
        except ValueError as exc:
            raise self._unusable(str(exc)) from exc
        auths, named = document.get("auths", {}), document.get("credHelpers", {})
        entry = longest(_preferred([*named, *auths], reference), reference)
        if entry is not None and entry in named:
            yield self._of_helper(entry, named[entry], reference)
        elif entry is not None:
            login = functools.partial(self._login, entry, auths[entry], reference)
            yield self._found(entry, "auths", login, configured=True)
        if store := document.get("credsStore"):
            server = auth.INDEX_URL if _on_hub(reference) else reference.registry
            ask = functools.partial(self.helpers.ask, store, server, reference.registry)
            means = f"docker-credential-{store}"
            # It says nothing about this very registry, so it admits none.
            yield self._found("every registry", means, ask, configured=False)

    def _of_helper(self, entry: str, name: str, reference: Reference) -> Found:
        server = auth.INDEX_URL if _on_hub(reference) else entry
        ask = functools.partial(self.helpers.ask, name, server, reference.registry)
        return self._found(entry, f"docker-credential-{name}", ask, configured=True)

    def _found(
        self,
        entry: str,
        means: str,
        fetch: Callable[[], Login | None],
        *,
        configured: bool,
    ) -> Found:
        return Found(
            source=self.configuration.name,
            entry=entry,
            means=means,
            expires=_EXPIRES,
            configured=configured,
            fetch=fetch,
        )

    def _login(self, entry: str, value: object, reference: Reference) -> Login | None:
        try:
            return _login(entry, value, reference.registry)
        except (DockerException, ValueError, TypeError, AttributeError) as exc:
            raise self._unusable(f"entry {entry}: {type(exc).__name__}") from None

    def _unusable(self, why: str) -> ImageUnavailable:
        return ImageUnavailable(
            "the registry credentials of this worker cannot be read",
            details=f"{self.configuration.name}: {why}",
        )


def _preferred(entries: Iterable[str], reference: Reference) -> list[str]:
    """Of spellings that name the same, the one that the client itself writes first."""
    exact = [reference.registry, f"https://{reference.registry}"]
    if _on_hub(reference):
        exact.insert(0, auth.INDEX_URL)
    return sorted(entries, key=lambda entry: entry not in exact)


def _on_hub(reference: Reference) -> bool:
    return reference.registry == DOCKER_HUB


def _login(entry: str, value: object, registry: str) -> Login | None:
    if not isinstance(value, dict):
        raise TypeError(entry)
    token = value.get("identitytoken")
    if not isinstance(token, str | None):
        raise TypeError("identitytoken")
    rest = {name: value for name, value in value.items() if name != "identitytoken"}
    parsed_entry = auth.AuthConfig.parse_auth({entry: rest}, raise_on_error=True)
    known = parsed_entry[entry]
    if not known and not token:
        return None
    return Login(
        username=known.get("username", ""),
        password=Secret(known.get("password", "")),
        registry=registry,
        identity_token=Secret(token) if token else None,
    )
