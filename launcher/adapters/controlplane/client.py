"""
One HTTP client for everything the launcher says to the control plane.

- urllib3 never follows a redirect or repeats a call here: both are decided
  above, where it is known what a call means.
- Whatever did not get an answer of the control plane itself, a proxy's 502
  included, is `ControlPlaneUnavailable`: the call may or may not have arrived.
- A handshake that fails for good says why: see `_distrust`.  With TLS 1.3 the
  server's opinion of our certificate arrives with the first answer only.
- An answer is read up to a bound of bytes and of time, whatever its headers say,
  and what is left of it is not read for the sake of the connection.
- Where a proxy is on the way, it is asked for a tunnel, in which TLS is between us and
  the control plane; what it does not let through did not arrive.
- An exchange that lasts longer than all of its parts may is cut off: see `exchanges`.
"""

from __future__ import annotations

import http.client
import ssl
import time

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

import msgspec
import urllib3

from launcher.adapters.controlplane.credentials import Credentials
from launcher.adapters.controlplane.exchanges import LATE_SECONDS, Exchange, Watched
from launcher.errors import (
    ClockWrong,
    ControlPlaneRefused,
    ControlPlaneUnavailable,
    CredentialsRefused,
    LeaseLost,
    ServerNotTrusted,
    VersionRefused,
)
from launcher.heartbeat import within
from launcher.proxies import Proxies
from launcher.wire.messages import (
    PREFIX,
    PROTOCOL_VERSION,
    TOKEN_HEADER,
    VERSION_HEADER,
    Ack,
    ErrorCode,
    Failure,
)
from launcher.wire.signatures.profile import Reason


T = TypeVar("T")

_SKEW_SECONDS = 300.0
_DISTRUSTED = {
    9: "shows a certificate that is not valid yet: is this machine's clock right?",
    10: "shows a certificate that has expired: is this machine's clock right?",
    62: "shows a certificate that is for another host than the one in SPACELIFT_TOKEN",
    64: "shows a certificate that is for another address than that in SPACELIFT_TOKEN",
}
"""By the codes of OpenSSL's X509_verify_cert_error_string."""
_LARGEST_ANSWER = 64 << 20
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_CHUNK = 1 << 16
_LONGEST = 500
"""Characters of what a proxy has to say."""
_NO_JOB = "0" * 26
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


class _Connection(Watched, urllib3.connection.HTTPConnection):
    pass


class _TlsConnection(Watched, urllib3.connection.HTTPSConnection):
    def _tunnel(self) -> None:
        try:
            super()._tunnel()
        except (OSError, http.client.HTTPException) as exc:
            raise urllib3.exceptions.ProxyError("no tunnel", exc) from exc


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Client:
    """Speaks JSON with the worker API.  Safe to share between threads."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        connections: int,
        proxies: Proxies | None = None,
        connect_seconds: float = _CONNECT_SECONDS,
        answer_seconds: float = _ANSWER_SECONDS,
        largest_answer: int = _LARGEST_ANSWER,
    ) -> None:
        self._base = credentials.token.endpoint.rstrip("/") + PREFIX
        self._headers = {VERSION_HEADER: str(PROTOCOL_VERSION)}
        self._credentials = credentials
        self._connections = connections
        self._proxies = proxies or Proxies()
        self.present()
        self.clock_skew = 0.0
        """Seconds that this machine's clock is ahead of the control plane's."""
        self._answered, self._heard = False, time.monotonic()
        self.heard_at: float | None = None
        """When it answered last, in seconds since 1970; None: not in this life."""
        self._connect_seconds = connect_seconds
        self._answer_seconds = answer_seconds
        self._largest_answer = largest_answer

    def present(self) -> None:
        """Make new connections with the certificate that the launcher has now."""
        options: dict[str, Any] = {
            "maxsize": self._connections,
            "retries": False,
            "ssl_context": self._credentials.context(),
        }
        if proxy := self._proxies.of(self._base):
            self._pool: urllib3.PoolManager = urllib3.ProxyManager(
                proxy.url,
                proxy_headers=proxy.headers(),
                proxy_ssl_context=self._proxies.context(),
                **options,
            )
        else:
            self._pool = urllib3.PoolManager(**options)
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    @property
    def connections_made(self) -> int:
        """How many connections, and so handshakes, there were since `present`."""
        pools = self._pool.pools
        return sum(pools[key].num_connections for key in pools.keys())  # noqa: SIM118

    def close(self) -> None:
        self._pool.clear()

    def require_clock(self) -> None:
        """
        Raises:
            ClockWrong: by the last answer, one of the two clocks is wrong.
        """
        if abs(self.clock_skew) > _SKEW_SECONDS:
            way = "ahead of" if self.clock_skew > 0 else "behind"
            raise ClockWrong(
                f"this machine's clock is {abs(self.clock_skew):.0f} s {way} the"
                " control plane's: set the one that is wrong"
            )

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
            CredentialsRefused: we and whoever answers do not accept each other.
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
            answered = msgspec.json.decode(content, type=answer)
        except _UNREADABLE as exc:
            raise ControlPlaneUnavailable(
                "the control plane gave an answer that cannot be understood",
                details=f"{method} {path}: {exc}",
            ) from exc
        self.heard_at, self._heard = time.time(), time.monotonic()
        return answered

    @property
    def silent_seconds(self) -> float:
        """How long ago it answered last, or this was made."""
        return time.monotonic() - self._heard

    @property
    def answered(self) -> bool:
        """Whether anybody has said what time it is."""
        return self._answered

    def greet(self) -> None:
        """
        Find out whether we would be let in; nothing comes of it over there.

        Raises:
            ControlPlaneUnavailable: nobody answers.
            CredentialsRefused: we and whoever answers do not accept each other.
        """
        try:
            # About a job that nobody has: who is let in is told that there is none.
            self.call("POST", f"/jobs/{_NO_JOB}/renew", Ack, token=_NO_JOB)
        except LeaseLost:
            pass
        except Refusal as exc:
            if exc.failure.code != ErrorCode.UNKNOWN_JOB:
                raise

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
        url, given = self._base + path, {**self._headers, **headers}
        seconds = answer_seconds or self._answer_seconds
        if isinstance(body, bytes):
            target = urllib3.util.parse_url(url).request_uri
            given |= self._credentials.signature(method, target, given, body)
        # Time to connect, to send, to wait and to read.
        longest = self._connect_seconds + 3 * seconds
        with within(longest + LATE_SECONDS), Exchange(longest):
            with translated(method, path):
                response = self._pool.request(
                    method,
                    url,
                    body=body or None,
                    headers=given,
                    timeout=urllib3.Timeout(
                        connect=self._connect_seconds, read=seconds
                    ),
                    redirect=False,
                    preload_content=False,
                )
            self._compare_clocks(response)
            try:
                with translated(method, path):
                    if not 200 <= response.status < 300:
                        _refuse(response.status, self._bounded(response), method, path)
                    yield response
            finally:
                # Harmless to the connection of an answer that was read to its end.
                response.close()

    def _compare_clocks(self, response: urllib3.BaseHTTPResponse) -> None:
        date = _moment(response.headers.get("Date"))
        if date is not None:
            self._answered = True
            self.clock_skew = time.time() - date.timestamp()

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
    except urllib3.exceptions.ProxyError as exc:
        reason = exc.original_error
        raise ControlPlaneUnavailable(
            "the proxy on the way to the control plane does not let the worker through",
            details=f"{method} {path}: {type(reason).__name__}: {reason}"[:_LONGEST],
        ) from exc
    except (urllib3.exceptions.HTTPError, OSError) as exc:
        if distrust := _distrust(exc):
            raise distrust from exc
        raise ControlPlaneUnavailable(
            "the control plane cannot be reached",
            details=f"{method} {path}: {type(exc).__name__}: {exc}",
        ) from exc


def _moment(date: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(date) if date else None
    except (ValueError, OverflowError):
        return None


def _distrust(error: BaseException | None) -> CredentialsRefused | None:
    """Why a handshake failed for good; None when it was anything else."""
    while error is not None and not isinstance(error, ssl.SSLError):
        inner = error.args[-1] if error.args else None
        error = error.__cause__ or (inner if isinstance(inner, Exception) else None)
    match error:
        case ssl.SSLCertVerificationError(verify_code=code):
            sentence = _DISTRUSTED.get(
                code, "is not the one that SPACELIFT_TOKEN was made by"
            )
            return ServerNotTrusted(
                f"whoever answers as the control plane {sentence}",
                details=error.verify_message,
            )
        case ssl.SSLError(reason=str(reason)) if "ALERT" in reason:
            details = reason.replace("_", " ").lower()
            if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
                return CredentialsRefused(
                    "the control plane does not accept the worker pool's certificate",
                    details=details,
                )
    return None


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
        case Reason.STALE | Reason.AHEAD:
            # Or held up on its way; whoever may give up compares the clocks.
            raise ControlPlaneUnavailable(
                "the control plane does not trust this machine's clock",
                details=failure.message,
            )
        case _ if status == 401:
            raise CredentialsRefused(
                "the control plane does not accept this worker's signature",
                details=failure.message,
            )
        case ErrorCode.WRONG_VERSION:
            raise VersionRefused(
                "the control plane does not speak this launcher's version of the"
                " protocol: update the one that is older",
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
