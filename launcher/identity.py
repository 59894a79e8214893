"""
Who this launcher is: its pool's token and private key, checked before anything else.

They are checked against each other and against the clock, so that a launcher that
nobody will ever accept ends at once, with what is wrong.
"""

from __future__ import annotations

import base64
import binascii

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from cryptography import x509

from launcher.errors import (
    CertificateExpired,
    ClockWrong,
    ConfigurationError,
    PoolKeyMismatch,
    PoolKeyUnusable,
    TokenUnusable,
)
from launcher.parsing import endpoint
from launcher.sealing.keys import PoolKey, PoolPublicKey
from launcher.secret import Secret
from launcher.wire.messages import PoolToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A worker pool's token, and the key that makes it worth something."""

    token: PoolToken
    key: PoolKey

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate in the token; the launcher may have a newer one."""
        return x509.load_pem_x509_certificate(self.token.certificate.encode())

    @property
    def authority(self) -> x509.Certificate:
        """The certificate that the control plane's own is issued by."""
        return x509.load_pem_x509_certificate(self.token.authority.encode())


def identified(token: Secret | None, private_key: Secret | None) -> Identity:
    """
    Read what `pool create` printed.

    Raises:
        ConfigurationError: one of the two is missing.
        TokenUnusable: the token is not one, or not a whole one.
        PoolKeyUnusable: the key is not one that will do.
        PoolKeyMismatch: the token was made for another key.
    """
    if token is None:
        raise ConfigurationError(
            "SPACELIFT_TOKEN: required, the worker pool token that was printed when"
            " the pool was made (example: SPACELIFT_TOKEN=eyJlbmRwb2ludCI6…)"
        )
    read = _token(token)
    if private_key is None:
        raise ConfigurationError(
            "SPACELIFT_POOL_PRIVATE_KEY: required, base64 of the pool's private key"
            " in PEM (example: SPACELIFT_POOL_PRIVATE_KEY=LS0tLS1CRUdJTiBQUklW…)"
        )
    identity = Identity(token=read, key=pool_key(private_key))
    try:
        owner = PoolPublicKey.of(identity.certificate)
        identity.authority  # noqa: B018 (raises when it cannot be read)
    except ValueError as exc:
        raise TokenUnusable("SPACELIFT_TOKEN: a certificate in it is damaged") from exc
    if owner.fingerprint != identity.key.public.fingerprint:
        raise PoolKeyMismatch(
            "SPACELIFT_POOL_PRIVATE_KEY is not the key that SPACELIFT_TOKEN was made"
            f" for: the token is for the pool {read.pool!r}"
        )
    return identity


def require_valid(certificate: x509.Certificate, now: datetime | None = None) -> None:
    """
    Check the dates of a pool's certificate against this machine's clock.

    Raises:
        CertificateExpired: it is over.
        ClockWrong: it has not begun, which it had when it was made.
    """
    at = now or datetime.now(UTC)
    if at > certificate.not_valid_after_utc:
        raise CertificateExpired(
            "the worker pool's certificate expired on"
            f" {_moment(certificate.not_valid_after_utc)}; make a new token with"
            " `spacelift-launcher pool create` and a request by the same key. This"
            f" machine's clock says {_moment(at)}"
        )
    if at < certificate.not_valid_before_utc:
        raise ClockWrong(
            f"this machine's clock says {_moment(at)}, but the worker pool's"
            f" certificate was made after {_moment(certificate.not_valid_before_utc)}:"
            " set the clock"
        )


def _token(text: Secret) -> PoolToken:
    try:
        token = msgspec.json.decode(_unspaced(text), type=PoolToken)
    except (ValueError, msgspec.MsgspecError):
        raise TokenUnusable(
            "SPACELIFT_TOKEN: it is not a whole worker pool token; copy all of it"
            " again from where it was made"
        ) from None
    try:
        endpoint(token.endpoint)
    except ValueError as exc:
        raise TokenUnusable(f"SPACELIFT_TOKEN: {exc}") from None
    return token


def pool_key(text: Secret) -> PoolKey:
    """
    Read a pool's private key: base64 of the PEM file, or the file itself.

    Raises:
        PoolKeyUnusable: it is not one that will do.
    """
    try:
        pem = _unspaced(text)
    except ValueError:
        # The file itself, in a variable or named by one.
        pem = text.reveal().encode("utf-8", "surrogateescape")
    try:
        return PoolKey.read(pem)
    except PoolKeyUnusable as exc:
        raise PoolKeyUnusable(f"SPACELIFT_POOL_PRIVATE_KEY: {exc}") from exc


def _unspaced(text: Secret) -> bytes:
    """Base64 as people copy it, with line breaks in it."""
    try:
        return base64.b64decode("".join(text.reveal().split()), validate=True)
    except (binascii.Error, UnicodeEncodeError) as exc:
        raise ValueError("not base64") from exc


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
