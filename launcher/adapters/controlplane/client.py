"""
One HTTP client for everything the launcher says to the control plane.

- urllib3 never follows a redirect or repeats a call here: both are decided
  above, where it is known what a call means.
- Whatever did not get an answer of the control plane itself, a proxy's 502
  included, is `ControlPlaneUnavailable`: the call may or may not have arrived.
- An answer is read up to a bound, whatever its headers say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

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


class Refusal(ControlPlaneRefused):
    """A refusal with the control plane's code, for adapters of this package."""

    def __init__(self, failure: Failure, status: int) -> None:
        super().__init__(
            "the control plane refused a request of the worker",
            details=f"{status} {failure.code}: {failure.message}",
        )
        self.failure = failure


class Client:
    """Speaks JSON with the worker API.  Safe to share between threads."""

    def __init__(self, token: PoolToken, *, connections: int) -> None:
        self._base = token.endpoint.rstrip("/") + PREFIX
        self._headers = {
            "Authorization": f"Bearer {token.key}",
            VERSION_HEADER: str(PROTOCOL_VERSION),
        }
        self._pool = urllib3.PoolManager(maxsize=connections, retries=False)

    def close(self) -> None:
        self._pool.clear()

    def call(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        body: msgspec.Struct | bytes | Iterable[bytes] = b"",
        token: str = "",
        headers: Mapping[str, str] | None = None,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> T:
        """
        Make one request and return its answer.

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
            content = _bounded(response)
        try:
            return msgspec.json.decode(content, type=answer)
        except msgspec.MsgspecError as exc:
            raise ControlPlaneUnavailable(
                "the control plane gave an answer that cannot be understood",
                details=f"{method} {path}: {exc}",
            ) from exc

    @contextmanager
    def download(self, path: str, *, token: str) -> Iterator[urllib3.BaseHTTPResponse]:
        with self._request("GET", path, headers={TOKEN_HEADER: token}) as response:
            yield response

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str],
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        with translated(method, path):
            response = self._pool.request(
                method,
                self._base + path,
                body=body or None,
                headers={**self._headers, **headers},
                timeout=urllib3.Timeout(_CONNECT_SECONDS, answer_seconds),
                redirect=False,
                preload_content=False,
            )
        try:
            if not 200 <= response.status < 300:
                _refuse(response, f"{method} {path}")
            with translated(method, path):
                yield response
        finally:
            response.drain_conn()
            response.release_conn()


@contextmanager
def translated(method: str, path: str) -> Iterator[None]:
    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError) as exc:
        raise ControlPlaneUnavailable(
            "the control plane cannot be reached",
            details=f"{method} {path}: {type(exc).__name__}: {exc}",
        ) from exc


def _bounded(response: urllib3.BaseHTTPResponse) -> bytes:
    content = response.read(_LARGEST_ANSWER + 1)
    if len(content) > _LARGEST_ANSWER:
        raise ControlPlaneUnavailable("the control plane gave an oversized answer")
    return content


def _refuse(response: urllib3.BaseHTTPResponse, doing: str) -> None:
    content = response.read(_CHUNK)
    try:
        failure = msgspec.json.decode(content, type=Failure)
    except msgspec.MsgspecError as exc:
        raise ControlPlaneUnavailable(
            "something between worker and control plane answered in its place",
            details=f"{doing}: status {response.status}",
        ) from exc
    match failure.code:
        case ErrorCode.UNAUTHORIZED:
            raise CredentialsRefused(
                "the control plane does not accept SPACELIFT_TOKEN",
                details=failure.message,
            )
        case ErrorCode.STALE_TOKEN:
            raise LeaseLost("the job is no longer this worker's")
        case _ if response.status >= 500:
            raise ControlPlaneUnavailable(
                "the control plane failed to answer",
                details=f"{doing}: {response.status} {failure.message}",
            )
        case _:
            raise Refusal(failure, response.status)
