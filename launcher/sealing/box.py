"""
Sealed boxes: short messages that only a worker pool can read.

    "SLB1" | length of the wrapped key, 2 bytes | wrapped key | nonce, 12 bytes
           | AES-256-GCM ciphertext and tag

Each box has a data key of its own, wrapped with RSA-OAEP-SHA256.  What the box is
for is bound in: a box opens for the same purpose only.  Who made a box, it does not
say; anybody who knows the pool's public key can.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from launcher.errors import SealBroken
from launcher.sealing.keys import PoolKey, PoolPublicKey


_MAGIC = b"SLB1"
_LENGTH = 2
_NONCE = 12
_KEY = 32


def seal(plain: bytes, *, purpose: str, to: PoolPublicKey) -> bytes:
    """Put *plain* into a box for the pool that *to* belongs to."""
    key, nonce = os.urandom(_KEY), os.urandom(_NONCE)
    wrapped = to.wrap(key)
    head = _MAGIC + len(wrapped).to_bytes(_LENGTH, "big") + wrapped
    return head + nonce + AESGCM(key).encrypt(nonce, plain, _bound(head, purpose))


def opened(box: bytes, *, purpose: str, key: PoolKey) -> bytes:
    """
    What is in *box*.

    Raises:
        SealBroken: it is not a box, was made for another pool or purpose, or was
            changed since.
    """
    start = len(_MAGIC) + _LENGTH
    length = int.from_bytes(box[len(_MAGIC) : start], "big")
    head, rest = box[: start + length], box[start + length :]
    if not box.startswith(_MAGIC) or len(rest) < _NONCE:
        raise SealBroken("what was sealed to the pool is damaged")
    secret = key.unwrap(head[start:])
    try:
        cipher = AESGCM(secret)
        return cipher.decrypt(rest[:_NONCE], rest[_NONCE:], _bound(head, purpose))
    except (InvalidTag, ValueError) as exc:
        raise SealBroken("what was sealed to the pool is damaged") from exc


def _bound(head: bytes, purpose: str) -> bytes:
    return head + purpose.encode()
