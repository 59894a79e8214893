"""
The certificate of whoever is connected, handed on to the application.

Facts this module is built around:

- uvicorn 0.54 does not hand it over; this protocol puts it where the ASGI
  specification's TLS extension says.  The handshake has verified it, and that its
  key is there.
- asyncio gives each TLS connection a buffer of 256 KiB, of which a launcher that
  waits needs nothing: a thousand of them were most of the server's memory.
- A TLS connection that asyncio closes waits half a minute for the other side to
  agree, and an idle launcher does not listen.  So it is given a moment only.
"""

from __future__ import annotations

import asyncio
import ssl

from asyncio.sslproto import SSLProtocol
from typing import Any

from starlette.types import Receive, Scope, Send

from launcher.controlplane.patience import PromptProtocol


_FAREWELL_SECONDS = 0.25
_LINGER_SECONDS = 60.0
"""How long the other side may take to receive what was sent before the end."""

SSLProtocol.max_size = 16 * 1024
"""Bytes that are decrypted at a time: one record, at its largest."""


class _PromptTransport:
    """A transport that is gone soon after it was closed and all was sent."""

    def __init__(self, inner: asyncio.Transport) -> None:
        self._inner = inner
        self._closed = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (it is all of asyncio's)
        return getattr(self._inner, name)

    def close(self) -> None:
        # Closed twice, asyncio's forgets what it would have to abort; and it closes
        # by itself when the other side is first.
        if self._closed or self._inner.is_closing():
            return
        self._closed = True
        self._inner.close()
        self._wait(asyncio.get_running_loop().time() + _LINGER_SECONDS)

    def _wait(self, until: float) -> None:
        asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self._leave, until)

    def _leave(self, until: float) -> None:
        sending = self._inner.get_write_buffer_size() > 0
        if sending and asyncio.get_running_loop().time() < until:
            self._wait(until)
        else:
            self._inner.abort()


class TlsProtocol(PromptProtocol):
    """HTTP over TLS whose scopes know the client's certificate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_PromptTransport(transport))  # type: ignore[arg-type]
        session = transport.get_extra_info("ssl_object")
        certificate = session.getpeercert(binary_form=True) if session else None
        chain = [ssl.DER_cert_to_PEM_cert(certificate)] if certificate else []
        inner: Any = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            extensions = {
                **(scope.get("extensions") or {}),
                "tls": {"client_cert_chain": chain},
            }
            await inner({**scope, "extensions": extensions}, receive, send)

        self.app = app


def shown_certificate(scope: Scope) -> bytes | None:
    """The certificate, in DER, that the connection of *scope* was made with."""
    tls = (scope.get("extensions") or {}).get("tls", {})
    chain = tls.get("client_cert_chain", [])
    return ssl.PEM_cert_to_DER_cert(chain[0]) if chain else None
