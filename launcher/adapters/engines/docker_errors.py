"""What goes wrong in Docker's client, in the launcher's own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import docker.errors
import requests
import urllib3

from launcher.errors import EngineError, EngineTimeout


VENDOR_ERRORS = (
    docker.errors.DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)


_TIMEOUTS = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Let no vendor exception escape; it stays the cause."""
    try:
        yield
    except _TIMEOUTS as exc:
        raise EngineTimeout(
            f"the container engine did not answer while {doing}",
            details=f"{doing}: {type(exc).__name__}: {exc}",
        ) from exc
    except VENDOR_ERRORS as exc:
        full = "no space left on device" in str(exc).lower()
        raise EngineError(
            "the worker's disk is full"
            if full
            else f"the container engine failed while {doing}",
            details=f"{doing}: {type(exc).__name__}: {exc}",
        ) from exc
