"""What goes wrong in Docker's client, in the launcher's own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import docker.errors
import requests
import urllib3

from launcher.errors import EngineError


VENDOR_ERRORS = (
    docker.errors.DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Let no vendor exception escape; it stays the cause."""
    try:
        yield
    except VENDOR_ERRORS as exc:
        full = "no space left on device" in str(exc).lower()
        raise EngineError(
            "the worker's disk is full"
            if full
            else f"the container engine failed while {doing}",
            details=f"{doing}: {type(exc).__name__}: {exc}",
        ) from exc
