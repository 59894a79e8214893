"""How a worker proves that it has the key of its pool's certificate."""

from __future__ import annotations

import hashlib
import hmac

from typing import Protocol

from cryptography.hazmat.primitives.serialization import Encoding
from starlette.requests import Request

from launcher.controlplane.client_certificates import shown_certificate
from launcher.controlplane.lanes import Lane
from launcher.controlplane.pools import Pools
from launcher.errors import PoolKeyUnusable
from launcher.sealing.keys import PoolPublicKey
from launcher.wire.signatures.profile import (
    Reason,
    SignatureRefused,
    presented_certificate,
)
from launcher.wire.signatures.verifier import RequestVerifier


class Prover(Protocol):
    """One way to prove it."""

    async def __call__(self, request: Request) -> bytes | None:
        """
        The certificate, in DER, whose key the sender of *request* has; or None.

        Raises:
            SignatureRefused: the request's signature does not count.
            WorkerRefused: the certificate does not.
        """


async def by_handshake(request: Request) -> bytes | None:
    """The proof of mutual TLS, which was over before the request came."""
    return shown_certificate(request.scope)


class BySignature:
    """The proof of a signed request, where TLS ends at a proxy or there is none."""

    def __init__(
        self, verifier: RequestVerifier, pools: Pools, installation: str, lane: Lane
    ) -> None:
        self._verifier = verifier
        self._pools = pools
        self._installation = installation
        self._lane = lane

    async def __call__(self, request: Request) -> bytes | None:
        certificate, sha256 = await self._lane.run(self._verified, request)
        request.state.body_sha256 = sha256
        return certificate

    def _verified(self, request: Request) -> tuple[bytes, bytes]:
        headers = request.scope["headers"]
        presented = presented_certificate(headers)
        certificate = presented.public_bytes(Encoding.DER)
        # First, so that a stranger's key costs no more than a look.
        self._pools.authenticate(certificate)
        try:
            key = PoolPublicKey.of(presented)
        except PoolKeyUnusable as exc:
            raise SignatureRefused(Reason.WRONG_KEY, str(exc)) from exc
        sha256 = self._verifier.verify_head(
            request.method,
            request.scope["raw_path"],
            request.scope["query_string"],
            headers,
            public_key=key,
            installation=self._installation,
        )
        return certificate, sha256


def require_signed(request: Request, body: bytes) -> None:
    """
    Check that *body* is what a signed *request* has promised.

    Raises:
        SignatureRefused: it is another one, or not all of it.
    """
    promised = getattr(request.state, "body_sha256", None)
    if promised is not None and not hmac.compare_digest(
        promised, hashlib.sha256(body).digest()
    ):
        raise SignatureRefused(
            Reason.WRONG_DIGEST, "the request's body is not the one that was signed"
        )
