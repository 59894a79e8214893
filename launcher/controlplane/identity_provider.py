"""
The control plane as an OpenID provider: clouds believe what it says about runs.

One RSA key signs; it lies sealed in the data directory, so that neither a stolen
database nor a stolen copy of that file is worth anything without the key file.
"""

from __future__ import annotations

import hashlib
import string
import threading

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import structlog

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from launcher import private_files
from launcher.controlplane.keys import Keyring
from launcher.errors import StoreUnusable


log = structlog.get_logger()

JWKS_PATH = "/.well-known/jwks"
CONFIGURATION_PATH = "/.well-known/openid-configuration"
SUBJECT = "space:{spaceId}:{callerType}:{callerId}:run_type:{runType}:scope:{scope}"
PLACEHOLDERS = (
    "spaceId",
    "spacePath",
    "callerType",
    "callerId",
    "runId",
    "runType",
    "scope",
)
_ALGORITHM = "RS256"
_BITS = 2048
_PURPOSE = "identity provider"
_CLAIMS = ("spaceId", "callerType", "callerId", "runType", "runId", "scope")


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """How clouds are to see this control plane; empty: as it sees itself."""

    issuer: str = ""
    jwks_uri: str = ""
    subject: str = SUBJECT
    """A template with `PLACEHOLDERS`."""


def checked_subject(template: str) -> str:
    """
    Return *template*, if it is one for the subject of tokens.

    Raises:
        ValueError: it has a placeholder that means nothing, or none at all.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        raise ValueError("braces belong around the name of a placeholder") from None
    names = [name for _, name, _, _ in parts if name is not None]
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError("a placeholder is a name in braces, and nothing more")
    for name in names:
        if name not in PLACEHOLDERS:
            known = ", ".join(PLACEHOLDERS)
            raise ValueError(f"there is no placeholder {name!r}; known: {known}")
    if not names:
        raise ValueError("without a placeholder every run would be the same subject")
    return template


class IdentityProvider:
    """Signs what is true of a run, and publishes the key that it signs with."""

    def __init__(self, file: Path, keyring: Keyring, endpoint: str) -> None:
        self._key = _load(file, keyring)
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._federation = Federation()
        public = self._key.public_key()
        der = public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.key_id = hashlib.sha256(der).hexdigest()[:32]
        self._jwk = {
            **RSAAlgorithm.to_jwk(public, as_dict=True),
            "alg": _ALGORITHM,
            "kid": self.key_id,
            "use": "sig",
        }
        self._jwk.pop("key_ops", None)

    def present_as(self, federation: Federation) -> None:
        """From now on be what *federation* says."""
        with self._lock:
            self._federation = federation

    @property
    def issuer(self) -> str:
        return self._seen.issuer or self._endpoint

    @property
    def _seen(self) -> Federation:
        with self._lock:
            return self._federation

    def configuration(self) -> dict[str, Any]:
        """The discovery document."""
        return {
            "issuer": self.issuer,
            "jwks_uri": self._seen.jwks_uri or self.issuer + JWKS_PATH,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [_ALGORITHM],
            "scopes_supported": ["openid"],
            "claims_supported": [
                *("aud", "exp", "iat", "iss", "jti", "nbf", "sub"),
                *_CLAIMS,
            ],
        }

    def keys(self) -> dict[str, Any]:
        """The key set that signatures are verified with."""
        return {"keys": [self._jwk]}

    def token(
        self, facts: dict[str, str], *, identity: str, issued: int, seconds: int
    ) -> str:
        """
        A signed token that says *facts*, a value for each of `PLACEHOLDERS`.

        The same arguments make the same token.
        """
        claims = {
            "iss": self.issuer,
            "sub": self._seen.subject.format_map(facts),
            "aud": urlsplit(self.issuer).hostname or "",
            "iat": issued,
            "nbf": issued,
            "exp": issued + seconds,
            "jti": identity,
            **{name: facts[name] for name in _CLAIMS},
        }
        return jwt.encode(
            claims, self._key, algorithm=_ALGORITHM, headers={"kid": self.key_id}
        )


def _load(file: Path, keyring: Keyring) -> rsa.RSAPrivateKey:
    try:
        sealed = file.read_bytes()
    except FileNotFoundError:
        return _made(file, keyring)
    except OSError as exc:
        raise StoreUnusable(f"the signing key {file} cannot be read: {exc}") from exc
    try:
        plain = keyring.open(sealed, _PURPOSE)
    except StoreUnusable as exc:
        raise StoreUnusable(
            f"the signing key {file} was made with another key file, or is damaged"
        ) from exc
    key = serialization.load_der_private_key(plain, None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise StoreUnusable(f"the signing key {file} is of another kind")
    return key


def _made(file: Path, keyring: Keyring) -> rsa.RSAPrivateKey:
    key = rsa.generate_private_key(public_exponent=65537, key_size=_BITS)
    plain = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        private_files.write(file, keyring.seal(plain, _PURPOSE))
    except OSError as exc:
        raise StoreUnusable(f"the signing key {file} cannot be kept: {exc}") from exc
    log.info("signing_key.made", file=str(file))
    return key
