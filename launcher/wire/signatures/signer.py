"""The launcher's half of signed requests."""

from __future__ import annotations

import hashlib
import secrets
import time

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageSigner,
    MappingKeyResolver,
)
from http_message_signatures.algorithms import RSA_PSS_SHA512

from launcher.errors import PoolKeyMismatch, TokenUnusable
from launcher.sealing.keys import PoolKey, PoolPublicKey
from launcher.wire.messages import VERSION_HEADER
from launcher.wire.signatures.profile import (
    CERTIFICATE_HEADER,
    DIGEST_HEADER,
    INPUT_HEADER,
    INSTALLATION_HEADER,
    LABEL,
    MAX_TARGET,
    ORIGIN,
    SIGNATURE_HEADER,
    TAG,
    covered,
    digest_field,
    octets,
)


class RequestSigner:
    """Signs what a worker says.  Safe to share between threads."""

    def __init__(
        self,
        key: PoolKey,
        certificate_pem: str,
        installation: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Sign with *key* for one *installation*, a name that its control plane knows.

        *clock* gives seconds since 1970.

        Raises:
            TokenUnusable: the certificate cannot be read.
            PoolKeyUnusable: the certificate is not about an RSA key.
            PoolKeyMismatch: the certificate is about another key.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        except ValueError as exc:
            raise TokenUnusable("the pool's certificate cannot be read") from exc
        self._keyid = key.public.fingerprint
        if PoolPublicKey.of(certificate).fingerprint != self._keyid:
            raise PoolKeyMismatch(
                "the pool's certificate was not made for its private key"
            )
        self._named = {
            INSTALLATION_HEADER: installation,
            CERTIFICATE_HEADER: octets(certificate.public_bytes(Encoding.DER)),
        }
        self._clock = clock
        self._signer = HTTPMessageSigner(
            signature_algorithm=RSA_PSS_SHA512,
            key_resolver=MappingKeyResolver(
                public_keys={}, private_keys={self._keyid: key.rsa}
            ),
        )

    def headers(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: bytes = b"",
        sha256: bytes | None = None,
    ) -> dict[str, str]:
        """
        The headers to add to a request, which is good once and for a minute.

        *target* is path and query, exactly as they will be sent; *headers* are
        the request's own, with the protocol's version among them.  For a body too
        large to hold, *sha256* is its hash and takes the place of *body*.

        Raises:
            ValueError: this cannot be sent, or not signed.
        """
        if not target.startswith("/") or "#" in target or len(target) > MAX_TARGET:
            raise ValueError("a target begins with a slash, and has no fragment")
        digest = hashlib.sha256(body).digest() if sha256 is None else sha256
        added = {**self._named, DIGEST_HEADER: digest_field(digest)}
        fields = {name.lower(): value for name, value in {**headers, **added}.items()}
        if VERSION_HEADER.lower() not in fields:
            raise ValueError(f"a request has header {VERSION_HEADER}")
        message = _Request(method, ORIGIN + target, fields)
        try:
            self._signer.sign(
                message,
                key_id=self._keyid,
                created=datetime.fromtimestamp(int(self._clock()), UTC),
                nonce=secrets.token_hex(16),
                label=LABEL,
                tag=TAG,
                covered_component_ids=covered(fields),
                use_existing_digest=True,
            )
        except HTTPMessageSignaturesException as exc:
            raise ValueError("this request cannot be signed") from exc
        made = {name: fields[name] for name in (INPUT_HEADER, SIGNATURE_HEADER)}
        return {**added, **made}


@dataclass(frozen=True)
class _Request:
    """What the library asks of a request; it adds to the headers."""

    method: str
    url: str
    headers: dict[str, str]
