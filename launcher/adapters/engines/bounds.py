"""
How long an engine may take for a step, however many calls that are.

A client's timeout is for one answer, and an engine that hangs now and then would get
it again and again.
"""

from __future__ import annotations

import time

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import docker
import requests

from launcher.adapters.engines.docker_errors import VENDOR_ERRORS
from launcher.errors import EngineTimeout
from launcher.heartbeat import STEP_SECONDS, beat, within


_LEAST_SECONDS = 0.01  # nothing would mean for ever
_until: ContextVar[float | None] = ContextVar("until", default=None)


class BoundedClient(docker.APIClient):
    """Docker's client, whose calls within a `Bound` end when that does."""

    def request(self, *given: Any, **options: Any) -> requests.Response:  # noqa: ANN401
        # Attaching to a container forgets to say how long it may take.
        if options.get("timeout") is None:
            options = self._set_request_timeout({**options, "timeout": self.timeout})
        # Whoever gets here, or an answer, is not stuck: what hangs has a limit.
        beat()
        try:
            return super().request(*given, **options)
        finally:
            beat()

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if (until := _until.get()) is None:
            kwargs.setdefault("timeout", self.timeout)
        else:
            kwargs["timeout"] = max(until - time.monotonic(), _LEAST_SECONDS)
        return kwargs


class Bound:
    """
    A step that ends within *seconds* from now, or raises *error*.

    *doing* is what the engine should have done, for the public sentence.
    """

    def __init__(self, error: type[EngineTimeout], doing: str, seconds: float) -> None:
        self._error = error
        self._doing = doing
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    @contextmanager
    def held(self) -> Iterator[None]:
        """
        Calls of the engine in the block belong to the step.

        Raises:
            EngineTimeout: of the class that was given.
        """
        token = _until.set(self._until)
        left = max(self._until - time.monotonic(), 0.0)
        try:
            with within(left + STEP_SECONDS):
                yield
        except VENDOR_ERRORS as exc:
            if time.monotonic() < self._until:
                raise
            raise self.over() from exc
        finally:
            _until.reset(token)

    def over(self) -> EngineTimeout:
        """What is raised when the step took too long."""
        return self._error(
            f"the container engine did not {self._doing} within {self._seconds:g} s"
        )
