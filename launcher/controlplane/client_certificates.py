"""
The certificate of whoever is connected, handed on to the application.

uvicorn 0.54 does not tell; this protocol puts it where the ASGI specification's TLS
extension says.  The handshake has verified it, and that its key is there.
"""

from __future__ import annotations

import asyncio
import ssl

from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol


class TlsProtocol(H11Protocol):
    """HTTP over TLS whose scopes know the client's certificate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
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
