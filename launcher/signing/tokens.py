"""Claims to signature and back: JWS in its compact form."""

from __future__ import annotations

import re

import jwt
import msgspec

from launcher.signing.claims import Claims
from launcher.signing.keys import KeySet, SigningKey


TYPE = "spacelift-run+jwt"
"""In the header of every signature, so that no token made for something else
with the same key can pass for one."""

LARGEST = 16 << 10
"""Characters of a signature; nothing longer is looked at."""

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_HEADER = frozenset({"alg", "kid", "typ"})


class NotSigned(Exception):
    """There is no proof; the message is public and quotes nothing of the token."""


def sign(claims: Claims, key: SigningKey) -> str:
    return jwt.PyJWS().encode(
        msgspec.json.encode(claims),
        key.key,
        algorithm=key.algorithm,
        headers={"typ": TYPE} | ({"kid": key.kid} if key.kid else {}),
    )


def read(token: str, keys: KeySet) -> tuple[Claims, str]:
    """
    Return what was signed and the id of the key; time and replay are not looked at.

    Raises:
        NotSigned: it was not signed by one of *keys*, or says nothing of use.
    """
    if len(token) > LARGEST:
        raise NotSigned("the signature is too long")
    if not _COMPACT.fullmatch(token):
        raise NotSigned("it is not a signature")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        raise NotSigned("it is not a signature") from None
    if header.get("typ") != TYPE or header.keys() - _HEADER:
        raise NotSigned("it is a token for something else")
    key = keys.find(header.get("kid"), header.get("alg"))
    if key is None:
        raise NotSigned("it is not signed with a known key")
    try:
        payload = jwt.PyJWS().decode(token, key.key, algorithms=[key.algorithm])
    except (jwt.PyJWTError, ValueError):
        raise NotSigned("the signature is wrong") from None
    try:
        return msgspec.json.decode(payload, type=Claims), key.kid
    except msgspec.MsgspecError:
        raise NotSigned("the signed claims are missing or malformed") from None
