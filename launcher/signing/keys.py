"""
Keys: Ed25519 and P-256, from PEM files and JSON Web Key Sets.

A key is good for one algorithm, which follows from the key and never from a
token.  That is all it takes against ``alg: none`` and against a public key
used as the secret of an HMAC.
"""

from __future__ import annotations

import json
import os

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import jwt

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

from launcher.errors import KeysUnusable


ALGORITHMS = ("EdDSA", "ES256")

PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_LARGEST = 1 << 20
_WRITABLE_BY_OTHERS = 0o022
_CURVES = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256"}


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    kid: str
    """Empty for a key from a PEM file, which has no name."""
    algorithm: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class SigningKey:
    kid: str
    algorithm: str
    key: PrivateKey = field(repr=False)

    @classmethod
    def generate(cls, kid: str, algorithm: str) -> Self:
        if algorithm == "EdDSA":
            return cls(kid, algorithm, ed25519.Ed25519PrivateKey.generate())
        return cls(kid, algorithm, ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path, kid: str = "") -> Self:
        """
        Read a private key in PEM.

        Raises:
            KeysUnusable: it is none, has a password, or is of another kind.
        """
        try:
            key = serialization.load_pem_private_key(_content(path), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise KeysUnusable(
                f"{path} is not a private key in PEM without a password"
            ) from exc
        match key:
            case ed25519.Ed25519PrivateKey():
                return cls(kid, "EdDSA", key)
            case ec.EllipticCurvePrivateKey(curve=ec.SECP256R1()):
                return cls(kid, "ES256", key)
            case _:
                raise KeysUnusable(f"{path} is neither an Ed25519 nor a P-256 key")

    @property
    def pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def public_pem(self) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half, as an entry of a key set."""
        public = self.key.public_key()
        if isinstance(public, ed25519.Ed25519PublicKey):
            jwk = OKPAlgorithm.to_jwk(public, as_dict=True)
        else:
            jwk = ECAlgorithm.to_jwk(public, as_dict=True)
        named = {"kid": self.kid} if self.kid else {}
        return {**jwk, **named, "alg": self.algorithm, "use": "sig"}


class KeySet:
    """The public keys that may vouch for a run."""

    def __init__(self, keys: Iterable[VerifyingKey]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Read a public key in PEM, a key or a set of keys as JSON.

        Keys in a set that are for other uses are passed over.

        Raises:
            KeysUnusable: there is no key in it, or others could replace it.
        """
        content = _content(path, trusted=True)
        if content.lstrip().startswith(b"-----BEGIN"):
            return cls([_from_pem(content, path)])
        try:
            document = json.loads(content)
            entries = document.get("keys", [document])
            keys = [key for entry in entries for key in _from_jwk(entry, path)]
        except (ValueError, TypeError, LookupError, AttributeError) as exc:
            raise KeysUnusable(f"{path} is neither PEM nor a JSON Web Key Set") from exc
        if not keys:
            raise KeysUnusable(f"{path} holds no Ed25519 or P-256 key for signatures")
        kids = [key.kid for key in keys]
        if len(keys) > 1 and (len(set(kids)) < len(kids) or "" in kids):
            raise KeysUnusable(f"{path} needs a different kid for each key")
        return cls(keys)

    def find(self, kid: object, algorithm: object) -> VerifyingKey | None:
        """Return the key a token names, if it can have signed as the token says."""
        for key in self._keys:
            if key.kid in ("", kid) and key.algorithm == algorithm:
                return key
        return None


def _content(path: Path, *, trusted: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LARGEST + 1)
    except OSError as exc:
        raise KeysUnusable(f"the keys {path} cannot be read: {exc.strerror}") from exc
    if trusted and mode & _WRITABLE_BY_OTHERS:
        raise KeysUnusable(
            f"group or others may write {path}, and so could vouch for any run:"
            f" chmod go-w {path}"
        )
    if len(content) > _LARGEST:
        raise KeysUnusable(f"{path} is too large for a file of keys")
    return content


def _from_pem(content: bytes, path: Path) -> VerifyingKey:
    _refuse_private(b"PRIVATE KEY" in content, path)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise KeysUnusable(f"{path} is not a public key in PEM") from exc
    match key:
        case ed25519.Ed25519PublicKey():
            return VerifyingKey("", "EdDSA", key)
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return VerifyingKey("", "ES256", key)
        case _:
            raise KeysUnusable(f"{path} is neither an Ed25519 nor a P-256 key")


def _from_jwk(entry: Mapping[str, Any], path: Path) -> list[VerifyingKey]:
    algorithm = _CURVES.get((entry.get("kty", ""), entry.get("crv", "")))
    fit = (
        algorithm is not None
        and entry.get("alg", algorithm) == algorithm
        and entry.get("use", "sig") == "sig"
        and "verify" in entry.get("key_ops", ["verify"])
    )
    if algorithm is None or not fit:
        return []
    _refuse_private("d" in entry, path)
    kid = entry.get("kid", "")
    if not isinstance(kid, str):
        raise TypeError("kid is not a string")
    try:
        key: PublicKey = jwt.PyJWK(dict(entry), algorithm).key
    except jwt.PyJWTError as exc:
        raise KeysUnusable(f"{path} holds a malformed key") from exc
    return [VerifyingKey(kid, algorithm, key)]


def _refuse_private(private: object, path: Path) -> None:
    if private:
        raise KeysUnusable(
            f"{path} holds a private key: a worker that has it could sign runs itself"
        )
