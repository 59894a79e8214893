"""
The one form that signed requests have, out of the many that RFC 9421 allows.

What is signed is what decides the meaning of a request: method, path and query as
they are sent, the digest of the body, and every header whose name begins with
``Spacelift-``.  The last rule needs no list, so no header that the protocol will
ever get can be forgotten, changed on the way, taken away or slipped in.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re

from collections.abc import Iterable, Mapping

from cryptography import x509

from launcher.errors import LauncherError
from launcher.wire.messages import VERSION_HEADER


INSTALLATION_HEADER = "Spacelift-Installation"
"""Which control plane a request is meant for."""
CERTIFICATE_HEADER = "Spacelift-Pool-Certificate"
"""The pool's certificate: DER, as a byte sequence of RFC 9651."""
DIGEST_HEADER = "Content-Digest"
SIGNATURE_HEADER = "Signature"
INPUT_HEADER = "Signature-Input"

LABEL = "spacelift"
TAG = "spacelift-worker/1"
"""Tells these signatures from all others that a key might ever make."""

ORIGIN = "https://control-plane.invalid"
"""Stands for scheme and host, which are not signed: a proxy may change them."""
MAX_TARGET = 8192
"""Bytes of path and query together, at most."""
MAX_VALUE = 8192
"""Bytes of one header, at most."""
MAX_HEADERS = 16
"""Headers of the protocol in one request, at most."""

_OURS = "spacelift-"
_NAME = re.compile(r"[a-z0-9-]+")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_REQUIRED = (
    INPUT_HEADER,
    SIGNATURE_HEADER,
    DIGEST_HEADER,
    CERTIFICATE_HEADER,
    INSTALLATION_HEADER,
    VERSION_HEADER,
)
_READ = {name.lower() for name in _REQUIRED}


class Reason(enum.StrEnum):
    """Why a signed request is refused; stable, for programs."""

    MISSING = "signature_missing"
    """There is no signature, or a header is missing that has to be signed."""
    MALFORMED = "signature_malformed"
    """It is not of the one form that is accepted."""
    WRONG_INSTALLATION = "signature_wrong_installation"
    """It is meant for another control plane."""
    WRONG_KEY = "signature_wrong_key"
    """It names another key than that of the certificate."""
    INVALID = "signature_invalid"
    """The key did not sign this: what is signed was changed, or never signed."""
    WRONG_DIGEST = "signature_wrong_digest"
    """The body is not the one that was signed."""
    STALE = "signature_stale"
    """Made too long ago, or by a clock that is behind."""
    AHEAD = "signature_ahead"
    """Made by a clock that is ahead."""
    FORGOTTEN = "signature_forgotten"
    """Made when the control plane had not started, so it may have been used."""
    REPLAYED = "signature_replayed"
    """It was used before."""
    CROWDED = "signature_crowded"
    """The pool has used so many that no more can be remembered."""


_PASSING = {Reason.WRONG_DIGEST, Reason.FORGOTTEN, Reason.REPLAYED, Reason.CROWDED}


class SignatureRefused(LauncherError):
    """A signed request does not count.  Shown to whoever sent it."""

    def __init__(self, reason: Reason, sentence: str, *, seconds: int = 0) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.seconds = seconds
        """
        Of STALE and AHEAD: the sender's clock minus ours, so that -3600 is an hour
        behind.  Of FORGOTTEN and CROWDED: how long to wait before signing again.
        """

    @property
    def passing(self) -> bool:
        """Whether the same request, signed again, may be accepted."""
        return self.reason in _PASSING


def signed_fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """
    Those of *headers*, as an ASGI scope lists them, that a signature is made of.

    Names are in lower case.  Each is there once, and those that every signed
    request has are there.

    Raises:
        SignatureRefused: MISSING or MALFORMED.
    """
    fields: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        if name not in _READ and not name.startswith(_OURS):
            continue
        value = raw_value.decode("latin-1")
        if not _NAME.fullmatch(name):
            raise malformed("a header of the protocol has a strange name")
        if name in fields:
            raise malformed(f"header {name} is there twice")
        if len(value) > MAX_VALUE or not _VALUE.fullmatch(value):
            raise malformed(f"header {name} is empty, too long or not plain text")
        fields[name] = value
    for required in _REQUIRED:
        if required.lower() not in fields:
            raise SignatureRefused(
                Reason.MISSING, f"the request is not signed: no header {required}"
            )
    if len(covered(fields)) > MAX_HEADERS:
        raise malformed("there are too many headers of the protocol")
    return fields


def presented_certificate(headers: Iterable[tuple[bytes, bytes]]) -> x509.Certificate:
    """
    The certificate that a signed request names; it proves nothing yet.

    Find out whose it is and whether it is still good, then verify the request
    with the key in it.

    Raises:
        SignatureRefused: MISSING or MALFORMED.
    """
    fields = signed_fields(headers)
    try:
        der = from_octets(fields[CERTIFICATE_HEADER.lower()])
        return x509.load_der_x509_certificate(der)
    except ValueError as exc:
        raise malformed("the pool's certificate cannot be read") from exc


def covered(fields: Mapping[str, str]) -> tuple[str, ...]:
    """What a signature of a request with *fields* covers, in its order."""
    ours = sorted(name for name in fields if name.startswith(_OURS))
    return ("@method", "@path", "@query", DIGEST_HEADER.lower(), *ours)


def digest_field(sha256: bytes) -> str:
    """The value of Content-Digest for a body with this hash."""
    return f"sha-256={octets(sha256)}"


def octets(data: bytes) -> str:
    """*data* as a byte sequence of RFC 9651."""
    return f":{base64.b64encode(data).decode()}:"


def from_octets(text: str) -> bytes:
    """
    The opposite of `octets`, and of nothing else: one way to write each value.

    Raises:
        ValueError: it is not of this form.
    """
    try:
        data = base64.b64decode(text[1:-1], validate=True)
    except binascii.Error as exc:
        raise ValueError("this is not base64") from exc
    if octets(data) != text:
        raise ValueError("this is not how a byte sequence is written")
    return data


def malformed(sentence: str) -> SignatureRefused:
    return SignatureRefused(Reason.MALFORMED, sentence)
