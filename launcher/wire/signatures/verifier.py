"""The control plane's half of signed requests."""

from __future__ import annotations

import hashlib
import hmac
import time

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import cryptography.exceptions
import msgspec

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from http_message_signatures import (
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    InvalidSignature,
    VerifyResult,
)
from http_message_signatures.algorithms import RSA_PSS_SHA512

from launcher.sealing.keys import PoolPublicKey
from launcher.wire.signatures.nonces import Nonces
from launcher.wire.signatures.profile import (
    DIGEST_HEADER,
    INPUT_HEADER,
    INSTALLATION_HEADER,
    LABEL,
    MAX_TARGET,
    ORIGIN,
    SIGNATURE_HEADER,
    Reason,
    SignatureRefused,
    covered,
    digest_field,
    from_octets,
    malformed,
    signed_fields,
)


AHEAD_SECONDS = 5.0
Elsewhere = Callable[[bytes, float], bool]
"""
Notes a mark for all processes and says whether it is new; it need not be
remembered after a moment, in seconds since 1970.
"""


class RequestVerifier:
    """
    Tells signed requests from others, each of which it accepts once.

    Safe to share between threads.  There is one for all requests of a process: two
    would accept the same request once each, unless they share their memory.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        window_seconds: float = 60.0,
        ahead_seconds: float = AHEAD_SECONDS,
        most_nonces: int = 100_000,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """
        Accept what was signed up to *window_seconds* ago.

        The sender's clock may be *ahead_seconds* ahead; for as long after its
        making, a verifier accepts nothing, because its predecessor may have.
        Within the window each key can sign *most_nonces* requests.  *clock* gives
        seconds since 1970.  *elsewhere* is asked whether another process has
        accepted the same.
        """
        self._clock = clock
        self._window = window_seconds
        self._ahead = ahead_seconds
        self._elsewhere = elsewhere
        self._nonces = Nonces(
            since=clock() + ahead_seconds,
            window_seconds=window_seconds,
            most=most_nonces,
        )

    def verify(
        self,
        method: str,
        raw_path: bytes,
        raw_query: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        *,
        public_key: PoolPublicKey,
        installation: str,
    ) -> None:
        """
        Accept a request whose body is there; path and query are as they were sent.

        *public_key* is that of the certificate the request presented, after it
        was found good, and *installation* this control plane's name.

        Raises:
            SignatureRefused: with the reason; then the signature is not used.
        """
        request = _Request(method, _url(raw_path, raw_query), signed_fields(headers))
        signed = self._signed(request, public_key, installation)
        if not hmac.compare_digest(signed.sha256, hashlib.sha256(body).digest()):
            raise SignatureRefused(
                Reason.WRONG_DIGEST, "the request's body is not the one that was signed"
            )
        self._use(signed)

    def verify_head(
        self,
        method: str,
        raw_path: bytes,
        raw_query: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        public_key: PoolPublicKey,
        installation: str,
    ) -> bytes:
        """
        Accept a request before its body is read, and return the body's SHA-256.

        Nothing of the body may count before it is found to have that hash; see
        `verify` for the rest.

        Raises:
            SignatureRefused: with the reason; then the signature is not used.
        """
        request = _Request(method, _url(raw_path, raw_query), signed_fields(headers))
        signed = self._signed(request, public_key, installation)
        self._use(signed)
        return signed.sha256

    def _use(self, signed: _Signed) -> None:
        self._nonces.use(signed.key, signed.nonce, signed.created, now=signed.now)
        if self._elsewhere is not None:
            mark = f"{signed.key} {signed.created} {signed.nonce.hex()}".encode()
            first = self._elsewhere(
                hashlib.sha256(mark).digest(), signed.now + 2 * self._window
            )
            if not first:
                raise SignatureRefused(
                    Reason.REPLAYED, "the request's signature was used before"
                )

    def _signed(
        self, request: _Request, public_key: PoolPublicKey, installation: str
    ) -> _Signed:
        fields = request.headers
        if fields[INSTALLATION_HEADER.lower()] != installation:
            raise SignatureRefused(
                Reason.WRONG_INSTALLATION,
                "the request was signed for another control plane",
            )
        sha256 = _sha256(fields)
        parameters = _parameters(fields, _verified(request, public_key))
        now = self._clock()
        self._check_time(parameters.created, now)
        return _Signed(
            key=public_key.fingerprint,
            nonce=bytes.fromhex(parameters.nonce),
            created=parameters.created,
            now=now,
            sha256=sha256,
        )

    def _check_time(self, created: int, now: float) -> None:
        off = created - now
        seconds = round(off)
        if off < -self._window:
            raise SignatureRefused(
                Reason.STALE,
                f"the request was signed {-seconds} s ago by the control plane's clock:"
                " the worker's clock is behind, or the request was held up",
                seconds=seconds,
            )
        if off > self._ahead:
            raise SignatureRefused(
                Reason.AHEAD,
                f"the request was signed by a clock that is {seconds} s ahead of the"
                " control plane's",
                seconds=seconds,
            )


@dataclass(frozen=True, slots=True)
class _Request:
    """What the library asks of a request."""

    method: str
    url: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Signed:
    """What is known once a signature was found good."""

    key: str
    nonce: bytes
    created: int
    now: float
    sha256: bytes


class _Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    created: int
    keyid: str
    alg: str
    nonce: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    tag: Literal["spacelift-worker/1"]


class _WrongKey(InvalidSignature):
    pass


class _OneKey(HTTPSignatureKeyResolver):
    def __init__(self, key: PoolPublicKey) -> None:
        self._key = key

    def resolve_public_key(self, key_id: str) -> RSAPublicKey:
        if key_id != self._key.fingerprint:
            raise _WrongKey
        return self._key.rsa


class _Verifier(HTTPMessageVerifier):
    def validate_created_and_expires(
        self, sig_input: object, max_age: object = None
    ) -> None:
        """Time is ours to judge: it takes a good signature to speak of clocks."""


def _verified(request: _Request, key: PoolPublicKey) -> VerifyResult:
    verifier = _Verifier(signature_algorithm=RSA_PSS_SHA512, key_resolver=_OneKey(key))
    try:
        [result] = verifier.verify(request, max_age=None)
    except _WrongKey as exc:
        raise SignatureRefused(
            Reason.WRONG_KEY, "the request was signed by another key than it presents"
        ) from exc
    except InvalidSignature as exc:
        if isinstance(exc.__cause__, cryptography.exceptions.InvalidSignature):
            raise SignatureRefused(
                Reason.INVALID,
                "the request's signature is wrong: it was changed on the way, or is"
                " not the pool's",
            ) from exc
        raise malformed("the request's signature cannot be understood") from exc
    return result


def _parameters(fields: dict[str, str], result: VerifyResult) -> _Parameters:
    """What a good signature says of itself, if it is of our form."""
    *components, last = result.covered_components
    if components != [f'"{name}"' for name in covered(fields)]:
        raise malformed("the signature does not cover exactly what it has to")
    # The library reads more ways to write the same than the signer uses.
    if fields[INPUT_HEADER.lower()] != f"{LABEL}={result.covered_components[last]}":
        raise malformed(f"{INPUT_HEADER} is not written as it has to be")
    if not _is_octets(fields[SIGNATURE_HEADER.lower()].removeprefix(f"{LABEL}=")):
        raise malformed(f"{SIGNATURE_HEADER} is not written as it has to be")
    try:
        return msgspec.convert(result.parameters, _Parameters)
    except msgspec.ValidationError as exc:
        raise malformed("the signature's parameters are not the right ones") from exc


def _url(raw_path: bytes, raw_query: bytes) -> str:
    target = raw_path + b"?" + raw_query
    # A fragment would not be signed, and neither would a host in front.
    if (
        not raw_path.startswith(b"/")
        or b"?" in raw_path
        or b"#" in target
        or len(target) > MAX_TARGET
    ):
        raise malformed("the request's target is not a plain path")
    return ORIGIN + target.decode("latin-1")


def _sha256(fields: dict[str, str]) -> bytes:
    text = fields[DIGEST_HEADER.lower()]
    try:
        digest = from_octets(text.removeprefix("sha-256="))
    except ValueError as exc:
        raise malformed(f"{DIGEST_HEADER} cannot be read") from exc
    if len(digest) != hashlib.sha256().digest_size or digest_field(digest) != text:
        raise malformed(f"{DIGEST_HEADER} is not one SHA-256")
    return digest


def _is_octets(text: str) -> bool:
    try:
        from_octets(text)
    except ValueError:
        return False
    return True
