"""
Presigned URLs: where workspaces go and come from beside the control plane.

A URL comes from the control plane, which may be hostile, and whoever has it can use
it.  So it is used as it is or not at all: https, a host that the pool's token names,
no redirects, no link-local address however its name resolves; and it appears in no
error, whose texts end up in logs.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import ipaddress
import re
import socket
import ssl
import time

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import urllib3

from urllib3.connection import HTTPSConnection

from launcher import telemetry
from launcher.adapters.controlplane.exchanges import LATE_SECONDS, Exchange, Watched
from launcher.errors import ControlPlaneUnavailable, WorkspaceUnusable
from launcher.heartbeat import within
from launcher.proxies import Proxies, Proxy


_LONGEST_URL = 8192
_TEXT = re.compile(r"[!-~]+")
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 120.0
_LONGEST_REFUSAL = 1 << 16
_CHUNK = 1 << 16
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")
_FORBIDDEN = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),  # Amazon's metadata service
)


class _Forbidden(OSError):
    """The name resolves to an address that no workspace is at."""


class _Connection(Watched, HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        # Here, because a name may resolve to something else each time; and not where a
        # proxy resolves it.
        if self.proxy is None and _is_forbidden(connected.getpeername()[0]):
            connected.close()
            raise _Forbidden("a link-local address")
        return connected


class _Connections(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes of a stored workspace."""

    content: bytes
    offset: int
    total: int


class PresignedUrls:
    """Sends to and fetches from URLs, whose use has bounds of size and time."""

    def __init__(
        self,
        allowed_hosts: Collection[str],
        *,
        context: ssl.SSLContext | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        """
        Allow the hosts that the pool's token names.

        *context* is for servers that the machine's own authorities do not know.
        """
        self._allowed = {_plain(host) for host in allowed_hosts}
        self._given_context = context
        self._proxies = proxies or Proxies()
        self._pools: dict[Proxy | None, urllib3.PoolManager] = {}

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        # Late: to read the machine's authorities takes long, and most launchers are
        # never given a URL.
        return self._given_context or ssl.create_default_context()

    def put(self, url: str, content: bytes) -> None:
        """
        Send *content*, with its checksum.

        Raises:
            WorkspaceUnusable: *url* may not be used.
            ControlPlaneUnavailable: unknown whether it arrived.
        """
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        headers = {
            "Content-Type": "application/octet-stream",
            "x-amz-checksum-sha256": checksum,
        }
        with self._request("PUT", url, headers, content) as answer:
            _bounded(answer, _LONGEST_REFUSAL)

    def get(self, url: str, offset: int, size: int) -> Piece:
        """
        Fetch *size* bytes from *offset*, or what there is of them.

        Raises: as `put`.
        """
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        with self._request("GET", url, headers) as answer:
            content = _bounded(answer, size)
        place = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if place is None or int(place[1]) != offset or not content:
            raise _unavailable("no answer to a range of bytes")
        return Piece(content=content, offset=offset, total=int(place[2]))

    @contextmanager
    def _request(
        self, method: str, url: str, headers: dict[str, str], body: bytes = b""
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        self._require_allowed(url)
        # What makes the URL worth something: a library may say it in a line of its own.
        telemetry.hide(urlsplit(url).query)
        # Time to connect, to send, to wait and to read.
        longest = _CONNECT_SECONDS + 3 * _ANSWER_SECONDS
        with within(longest + LATE_SECONDS), Exchange(longest) as exchange:
            with _translated():
                answer = self._pool(url).request(
                    method,
                    url,
                    body=body or None,
                    headers=headers,
                    timeout=urllib3.Timeout(
                        connect=_CONNECT_SECONDS, read=_ANSWER_SECONDS
                    ),
                    redirect=False,
                    preload_content=False,
                )
            try:
                with _translated():
                    if not 200 <= answer.status < 300:
                        raise _unavailable(f"{method}: status {answer.status}")
                    yield answer
                # A head that was cut short may look like a whole one.
                if exchange.late:
                    raise _unavailable("an answer that takes too long")
            finally:
                answer.close()

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = self._proxies.of(url)
        if proxy not in self._pools:
            pool = (
                urllib3.ProxyManager(
                    proxy.url,
                    proxy_headers=proxy.headers(),
                    proxy_ssl_context=self._proxies.context(),
                    retries=False,
                    ssl_context=self._context,
                )
                if proxy
                else urllib3.PoolManager(retries=False, ssl_context=self._context)
            )
            pool.pool_classes_by_scheme = {"https": _Connections}
            self._pools[proxy] = pool
        return self._pools[proxy]

    def _require_allowed(self, url: str) -> None:
        if len(url) > _LONGEST_URL or not _TEXT.fullmatch(url):
            raise _unusable("a URL that is not one")
        try:
            parts = urlsplit(url)
            host = _plain(parts.hostname or "")
            parts.port  # noqa: B018 (raises when it is not a number)
        except ValueError:
            raise _unusable("a URL that is not one") from None
        if parts.scheme != "https" or "@" in parts.netloc or parts.fragment:
            raise _unusable("a URL that is not plain https")
        if host not in self._allowed:
            raise _unusable(f"host {host[:253]!r}, which SPACELIFT_TOKEN does not name")
        if _is_forbidden(host):
            raise _unusable("a link-local address")


def _plain(host: str) -> str:
    return host.rstrip(".").lower()


def _is_forbidden(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    return any(
        address in network
        for network in _FORBIDDEN
        if network.version == address.version
    )


def _bounded(answer: urllib3.BaseHTTPResponse, most: int) -> bytes:
    content = bytearray()
    until = time.monotonic() + _ANSWER_SECONDS
    while piece := answer.read1(_CHUNK):
        content += piece
        if len(content) > most:
            raise _unavailable("an oversized answer")
        if time.monotonic() > until:
            raise _unavailable("an answer that takes too long")
    return bytes(content)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError) as exc:
        # Neither its text nor it as a cause: both have the URL.
        failure = type(exc).__name__
        forbidden = _is_caused_by_forbidden(exc)
    else:
        return
    if forbidden:
        raise _unusable("a name of a link-local address")
    raise _unavailable(failure)


def _is_caused_by_forbidden(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, _Forbidden):
            return True
        error = error.__cause__ or error.__context__
    return False


def _unavailable(details: str) -> ControlPlaneUnavailable:
    return ControlPlaneUnavailable(
        "the place of stored workspaces did not answer as it should", details=details
    )


def _unusable(details: str) -> WorkspaceUnusable:
    return WorkspaceUnusable(
        "the control plane sent the worker where workspaces may not go",
        details=details,
    )
