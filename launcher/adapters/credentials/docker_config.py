"""
Logins from the ``config.json`` that ``docker login`` writes.

Facts this is built around:

- Keys of ``auths`` are host names, with or without scheme and path; Docker Hub
  is ``https://index.docker.io/v1/``.  Beside it the client may keep other keys
  of the same host, so the exact key wins.
- An entry without ``auth`` means that a credential helper has the login.
- Somebody renews the file while we run, so it is read for every job.
"""

from __future__ import annotations

import json

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from docker import auth
from docker.errors import DockerException

from launcher.credentials import Login
from launcher.errors import ImageUnavailable
from launcher.images import DOCKER_HUB, Reference
from launcher.secret import Secret


log = structlog.get_logger()


class DockerConfigCredentials:
    """Reads *directory*, what the operator's ``--config`` or DOCKER_CONFIG was."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "config.json"

    def for_image(self, reference: Reference, /) -> Login | None:
        if reference.is_image_id:
            return None
        config = self._config()
        key = _key(config, reference.registry)
        if key is None:
            if _has_helper(config, reference.registry):
                log.warning("credentials.helper_ignored", registry=reference.registry)
            return None
        try:
            return _login(key, config["auths"][key], reference.registry)
        except (DockerException, ValueError, TypeError, AttributeError) as exc:
            raise self._unusable(f"entry {key}: {type(exc).__name__}") from exc

    def _config(self) -> dict[str, Any]:
        try:
            config = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            log.warning("credentials.file_missing", path=str(self._file))
            return {"auths": {}}
        except OSError as exc:
            raise self._unusable(str(exc.strerror)) from exc
        except ValueError as exc:
            raise self._unusable("not JSON") from exc
        if not (
            isinstance(config, dict)
            and isinstance(config.setdefault("auths", {}), dict)
        ):
            raise self._unusable("not a Docker configuration")
        return config

    def _unusable(self, why: str) -> ImageUnavailable:
        return ImageUnavailable(
            "the registry credentials of this worker cannot be read",
            details=f"{self._file}: {why}",
        )


def _key(config: Mapping[str, Any], registry: str) -> str | None:
    """The key of the entry that holds a login for *registry*."""
    auths = config["auths"]
    exact = [registry, f"https://{registry}"]
    if registry == DOCKER_HUB:
        exact.insert(0, auth.INDEX_URL)
    same_host = (key for key in auths if auth.resolve_index_name(key) == registry)
    return next((key for key in (*exact, *same_host) if auths.get(key)), None)


def _has_helper(config: Mapping[str, Any], registry: str) -> bool:
    helpers = config.get("credHelpers")
    named = isinstance(helpers, dict) and registry in helpers
    return named or bool(config.get("credsStore"))


def _login(key: str, entry: dict[str, Any], registry: str) -> Login | None:
    token = entry.get("identitytoken")
    if not isinstance(token, str | None):
        raise TypeError("identitytoken")
    rest = {name: value for name, value in entry.items() if name != "identitytoken"}
    parsed = auth.AuthConfig.parse_auth({key: rest}, raise_on_error=True)[key]
    if not parsed and not token:
        return None
    return Login(
        username=parsed.get("username", ""),
        password=Secret(parsed.get("password", "")),
        registry=registry,
        identity_token=Secret(token) if token else None,
    )
