"""
Keeping secrets: sealed in the database, hashed where a comparison will do.

Each secret is encrypted with a data key of its own, which is stored beside it,
encrypted with the key file's.  The key file lies beside the database and not in it,
so that a stolen backup of the one is worth nothing without the other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import stat

from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from launcher.errors import StoreUnusable


_NONCE = 12
_TAG = 16
_KEY = 32
_SALT = 16
_COST = 1 << 14


class Keyring:
    """The keys of one installation, all derived from one file."""

    def __init__(self, root: bytes) -> None:
        self._wrap = AESGCM(_derived(root, b"wrap"))
        self._mark = _derived(root, b"mark")
        self.jwt = _derived(root, b"jwt")
        self.forms = _derived(root, b"forms")

    def seal(self, plain: bytes, purpose: str) -> bytes:
        """Encrypt *plain* so that only `open`, for the same *purpose*, reads it."""
        data_key = AESGCM.generate_key(_KEY * 8)
        wrapped = _encrypted(self._wrap, data_key, purpose)
        return wrapped + _encrypted(AESGCM(data_key), plain, purpose)

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """
        Give back what was sealed.

        Raises:
            StoreUnusable: it was sealed with another key, or changed since.
        """
        length = _NONCE + _KEY + _TAG
        try:
            data_key = _decrypted(self._wrap, sealed[:length], purpose)
            return _decrypted(AESGCM(data_key), sealed[length:], purpose)
        except (InvalidTag, ValueError) as exc:
            raise StoreUnusable("a stored secret cannot be read") from exc

    def mark(self, plain: bytes) -> bytes:
        """A fingerprint that says nothing without the key."""
        return hmac.digest(self._mark, plain, "sha256")


def load_keyring(path: Path) -> Keyring:
    """
    Read the key file, or make one (mode 0600) where there is none.

    Raises:
        StoreUnusable: it is damaged, or others may read it.
    """
    try:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(secrets.token_bytes(32)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise StoreUnusable(f"others may read the key file {path}; make it 0600")
        root = base64.b64decode(path.read_bytes(), validate=False)
    except (OSError, ValueError) as exc:
        raise StoreUnusable(f"the key file {path} cannot be used: {exc}") from exc
    if len(root) != 32:
        raise StoreUnusable(f"the key file {path} is damaged")
    return Keyring(root)


def hash_secret(secret: str) -> str:
    """Hash a secret that a person may have chosen: slow on purpose, salted."""
    salt = secrets.token_bytes(_SALT)
    digest = _scrypt(salt, _COST).derive(secret.encode())
    return f"scrypt${_COST}${_text(salt)}${_text(digest)}"


def secret_matches(secret: str, hashed: str | None) -> bool:
    """Compare in constant time; without a hash, take as long and say no."""
    if hashed is None:
        hash_secret(secret)
        return False
    _, cost, salt, digest = hashed.split("$")
    given = _scrypt(base64.b64decode(salt), int(cost)).derive(secret.encode())
    return hmac.compare_digest(given, base64.b64decode(digest))


def hash_token(token: str) -> str:
    """Hash what is random anyway: nobody can try all of them, so be fast."""
    return hashlib.sha256(token.encode()).hexdigest()


def _scrypt(salt: bytes, cost: int) -> Scrypt:
    return Scrypt(salt=salt, length=32, n=cost, r=8, p=1)


def _encrypted(cipher: AESGCM, plain: bytes, purpose: str) -> bytes:
    nonce = secrets.token_bytes(_NONCE)
    return nonce + cipher.encrypt(nonce, plain, purpose.encode())


def _decrypted(cipher: AESGCM, sealed: bytes, purpose: str) -> bytes:
    return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], purpose.encode())


def _derived(root: bytes, purpose: bytes) -> bytes:
    info = b"spacelift-launcher control plane " + purpose
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(root)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
