"""
One HTTP client for everything the launcher says to the control plane.

- urllib3 never follows a redirect or repeats a call here: both are decided
  above, where it is known what a call means.
- Whatever did not get an answer of the control plane itself, a proxy's 502
  included, is `ControlPlaneUnavailable`: the call may or may not have arrived.
- An answer is read up to a bound of bytes and of time, whatever its headers say,
  and what is left of it is not read for the sake of the connection.
"""

from __future__ import annotations

import time

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import msgspec
import urllib3

from launcher.errors import (
    ControlPlaneRefused,
    ControlPlaneUnavailable,
    CredentialsRefused,
    LeaseLost,
)
from launcher.wire.messages import (
    PREFIX,
    PROTOCOL_VERSION,
    TOKEN_HEADER,
    VERSION_HEADER,
    ErrorCode,
    Failure,
    PoolToken,
)


T = TypeVar("T")

_LARGEST_ANSWER = 64 << 20
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_CHUNK = 1 << 16
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Refusal(ControlPlaneRefused):
    """A refusal with the control plane's code, for adapters of this package."""

    def __init__(self, failure: Failure, status: int) -> None:
        super().__init__(
            "the control plane refused a request of the worker",
            details=f"{status} {failure.code}: {failure.message}",
        )
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer that is not JSON."""

    content: bytes
    headers: Mapping[str, str]
    """Names may be asked for in any case."""


class Client:
    """Speaks JSON with the worker API.  Safe to share between threads."""

    def __init__(
        self,
        token: PoolToken,
        *,
        connections: int,
        connect_seconds: float = _CONNECT_SECONDS,
        answer_seconds: float = _ANSWER_SECONDS,
        largest_answer: int = _LARGEST_ANSWER,
    ) -> None:
        self._base = token.endpoint.rstrip("/") + PREFIX
        self._headers = {
            "Authorization": f"Bearer {token.key}",
            VERSION_HEADER: str(PROTOCOL_VERSION),
        }
        self._pool = urllib3.PoolManager(maxsize=connections, retries=False)
        self._connect_seconds = connect_seconds
        self._answer_seconds = answer_seconds
        self._largest_answer = largest_answer

    def close(self) -> None:
        self._pool.clear()

    def call(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        body: msgspec.Struct | bytes = b"",
        token: str = "",
        headers: Mapping[str, str] | None = None,
        answer_seconds: float = 0,
    ) -> T:
        """
        Make one request and return its answer, which may take *answer_seconds*.

        Raises:
            ControlPlaneUnavailable: no answer; unknown whether it arrived.
            CredentialsRefused: the pool's key is not accepted.
            LeaseLost: *token* is stale.
            Refusal: any other answer that is not a success.
        """
        sent = msgspec.json.encode(body) if isinstance(body, msgspec.Struct) else body
        with self._request(
            method,
            path,
            body=sent,
            headers={**({TOKEN_HEADER: token} if token else {}), **(headers or {})},
            answer_seconds=answer_seconds,
        ) as response:
            content = self._bounded(response, answer_seconds)
        try:
            return msgspec.json.decode(content, type=answer)
        except _UNREADABLE as exc:
            raise ControlPlaneUnavailable(
                "the control plane gave an answer that cannot be understood",
                details=f"{method} {path}: {exc}",
            ) from exc

    def fetch(
        self, path: str, *, token: str, headers: Mapping[str, str] | None = None
    ) -> Fetched:
        """
        Get an answer that is not JSON, no larger than any other.

        Raises: as `call`.
        """
        given = {TOKEN_HEADER: token, **(headers or {})}
        with (
            self._request("GET", path, headers=given) as response,
            translated("GET", path),
        ):
            return Fetched(self._bounded(response), response.headers)

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str],
        answer_seconds: float = 0,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        with translated(method, path):
            response = self._pool.request(
                method,
                self._base + path,
                body=body or None,
                headers={**self._headers, **headers},
                timeout=urllib3.Timeout(
                    connect=self._connect_seconds,
                    read=answer_seconds or self._answer_seconds,
                ),
                redirect=False,
                preload_content=False,
            )
        try:
            with translated(method, path):
                if not 200 <= response.status < 300:
                    _refuse(response.status, self._bounded(response), method, path)
                yield response
        finally:
            # Harmless to the connection of an answer that was read to its end.
            response.close()

    def _bounded(
        self, response: urllib3.BaseHTTPResponse, answer_seconds: float = 0
    ) -> bytes:
        content = bytearray()
        until = time.monotonic() + (answer_seconds or self._answer_seconds)
        while part := response.read1(_CHUNK):
            content += part
            if len(content) > self._largest_answer:
                raise ControlPlaneUnavailable(
                    "the control plane gave an oversized answer"
                )
            if time.monotonic() > until:
                raise ControlPlaneUnavailable("the control plane answers too slowly")
        return bytes(content)


@contextmanager
def translated(method: str, path: str) -> Iterator[None]:
    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError) as exc:
        raise ControlPlaneUnavailable(
            "the control plane cannot be reached",
            details=f"{method} {path}: {type(exc).__name__}: {exc}",
        ) from exc


def _refuse(status: int, content: bytes, method: str, path: str) -> NoReturn:
    doing = f"{method} {path}"
    try:
        failure = msgspec.json.decode(content, type=Failure)
    except _UNREADABLE as exc:
        raise ControlPlaneUnavailable(
            "something between worker and control plane answered in its place",
            details=f"{doing}: status {status}",
        ) from exc
    match failure.code:
        case ErrorCode.UNAUTHORIZED:
            raise CredentialsRefused(
                "the control plane does not accept SPACELIFT_TOKEN",
                details=failure.message,
            )
        case ErrorCode.STALE_TOKEN:
            raise LeaseLost("the job is no longer this worker's")
        case _ if status >= 500:
            raise ControlPlaneUnavailable(
                "the control plane failed to answer",
                details=f"{doing}: {status} {failure.message}",
            )
        case _:
            raise Refusal(failure, status)
