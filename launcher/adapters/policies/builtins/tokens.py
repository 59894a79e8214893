"""
Builtins about JSON Web Tokens, by PyJWT and cryptography.

Whatever cannot be verified is not valid; what is no token at all is undefined.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import time

from collections.abc import Iterable
from functools import partial
from typing import Any

import jwt

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)
from jwt.algorithms import get_default_algorithms

from launcher.adapters.policies.builtins.checks import mapping, string
from launcher.adapters.policies.builtins.structures import go_json
from launcher.adapters.policies.machine import Builtin, Call
from launcher.adapters.policies.values import Object, Value


_ALGORITHMS = get_default_algorithms()
_SYMMETRIC = ("HS256", "HS384", "HS512")
_BY_KEY = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    "EdDSA": "Ed25519",
}
_KEYS: dict[str, type[Any]] = {
    "RSA": rsa.RSAPublicKey,
    "EC": ec.EllipticCurvePublicKey,
    "Ed25519": ed25519.Ed25519PublicKey,
}
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_KNOWN = frozenset({"alg", "secret", "cert", "iss", "aud", "time"})
_SECOND = 1_000_000_000


class _Token:
    def __init__(self, text: Value) -> None:
        parts = string(text).split(".")
        if len(parts) != 3:
            raise ValueError("a token has three parts")
        self.signed = f"{parts[0]}.{parts[1]}".encode()
        self.header = mapping(_json(parts[0]))
        self.payload = _decoded(parts[1])
        self.signature = _decoded(parts[2])
        if "enc" in self.header:
            raise ValueError("the token is encrypted")

    def claims(self) -> dict[str, Any]:
        if str(self.header.get("cty", "")).upper() == "JWT":
            return _Token(self.payload.decode().strip('"')).claims()
        return mapping(json.loads(self.payload))


def _decoded(part: str) -> bytes:
    try:
        data = part.rstrip("=").encode("ascii")
        return base64.b64decode(
            data + b"=" * (-len(data) % 4), altchars=b"-_", validate=True
        )
    except (binascii.Error, UnicodeEncodeError) as exc:
        raise ValueError("not base64url") from exc


def _json(part: str) -> Value:
    return json.loads(_decoded(part))


def decode(_: Call, text: Value) -> list[Value]:
    token = _Token(text)
    if str(token.header.get("cty", "")).upper() == "JWT":
        return decode(_, token.payload.decode().strip('"'))
    return [token.header, token.claims(), token.signature.hex()]


def encode_sign(_: Call, header: Value, payload: Value, key: Value) -> str:
    return _encoded(go_json(header), go_json(payload), go_json(key))


def encode_sign_raw(_: Call, header: Value, payload: Value, key: Value) -> str:
    return _encoded(string(header), string(payload), string(key))


def _encoded(header: str, payload: str, key: str) -> str:
    headers, jwk = mapping(json.loads(header)), mapping(json.loads(key))
    algorithm = headers.get("alg")
    if algorithm not in (*_SYMMETRIC, *_BY_KEY):
        raise ValueError("no such algorithm")
    if headers.get("typ", "JWT") == "JWT":
        json.loads(payload)
    jwk = jwk["keys"][0] if "keys" in jwk else jwk
    private = jwt.PyJWK(jwk, algorithm).key
    signed = ".".join(
        base64.urlsafe_b64encode(part.encode()).decode().rstrip("=")
        for part in (header, payload)
    )
    signature = _ALGORITHMS[algorithm].sign(signed.encode(), private)
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _public_keys(text: Value) -> list[tuple[str | None, Any]]:
    """Identifier and key of each in a PEM certificate, a PEM key or a JWKS."""
    given = string(text)
    if given.lstrip().startswith("{"):
        document = mapping(json.loads(given))
        entries = document.get("keys", [document])
        found = []
        for entry in entries:
            try:
                key = jwt.PyJWK(entry)
            except jwt.PyJWTError:
                continue
            found.append((entry.get("kid"), key.key))
        if not found:
            raise ValueError("no key in the set")
        return found
    data = given.encode()
    if not data.rstrip().endswith(b"-----") or data.count(b"-----BEGIN") != 1:
        raise ValueError("there is something beside the one PEM block")
    if b"BEGIN CERTIFICATE" in data:
        return [(None, x509.load_pem_x509_certificate(data).public_key())]
    return [(None, load_pem_public_key(data))]


def _verified(algorithm: str, token: _Token, keys: Iterable[Any]) -> bool:
    for key in keys:
        if not isinstance(key, _KEYS[_BY_KEY[algorithm]]):
            continue
        if isinstance(key, ec.EllipticCurvePublicKey) and (
            key.curve.name != _CURVES[algorithm]
        ):
            continue
        try:
            if _ALGORITHMS[algorithm].verify(token.signed, key, token.signature):
                return True
        except (InvalidSignature, ValueError):
            continue
    return False


def _authentic(algorithm: str, token: _Token, secret: str) -> bool:
    digest = f"sha{algorithm[2:]}"
    expected = hmac.new(secret.encode(), token.signed, digest).digest()
    return hmac.compare_digest(expected, token.signature)


def parse_rsa_private_key(_: Call, text: Value) -> dict[str, Any]:
    data = string(text).encode()
    if b"-----BEGIN" not in data:
        data = base64.b64decode(data, validate=True)
    key = load_pem_private_key(data, password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("not a key for RSA")
    return {
        name: value
        for name, value in jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True).items()
        if name != "key_ops"
    }


def _asymmetric(algorithm: str) -> Builtin:
    def verify(_: Call, text: Value, certificate: Value) -> bool:
        keys = _public_keys(certificate)
        token = _Token(text)
        kid = token.header.get("kid")
        chosen = [key for name, key in keys if name == kid] if kid else []
        return _verified(algorithm, token, chosen or [key for _name, key in keys])

    return verify


def _symmetric(algorithm: str) -> Builtin:
    def verify(_: Call, text: Value, secret: Value) -> bool:
        return _authentic(algorithm, _Token(text), string(secret))

    return verify


def decode_verify(
    call: Call, text: Value, constraints: Value, *, trusting: bool = False
) -> list[Value]:
    """Valid or not, header and payload; those are empty unless it is valid."""
    wanted = mapping(constraints)
    if unknown := set(wanted) - _KNOWN:
        raise ValueError(f"unknown constraints {sorted(map(str, unknown))}")
    if ("cert" in wanted) == ("secret" in wanted):
        raise ValueError("either cert or secret is needed")
    keys = _public_keys(wanted["cert"]) if "cert" in wanted else []
    secret = string(wanted.get("secret", ""))
    now = wanted.get("time")
    if now is None:
        now = call.memory.setdefault("now", time.time_ns())
    elif isinstance(now, bool) or not isinstance(now, int | float) or now < 0:
        raise ValueError("time is not a number")
    refused = [False, Object(), Object()]
    token = _Token(text)
    while True:
        if not (_may_be_signed if trusting else _signed)(token, wanted, keys, secret):
            return refused
        if str(token.header.get("cty", "")).upper() != "JWT":
            break
        token = _Token(token.payload.decode().strip('"'))
    claims = token.claims()
    if not _acceptable(claims, wanted, now):
        return refused
    return [True, token.header, claims]


def _signed(
    token: _Token,
    wanted: dict[str, Value],
    keys: list[tuple[str | None, Any]],
    secret: str,
) -> bool:
    if not _may_be_signed(token, wanted):
        return False
    algorithm = token.header["alg"]
    if algorithm in _SYMMETRIC:
        return "secret" in wanted and _authentic(algorithm, token, secret)
    kid = token.header.get("kid")
    chosen = [key for name, key in keys if name == kid] if kid else []
    return _verified(algorithm, token, chosen or [key for _name, key in keys])


def _may_be_signed(token: _Token, wanted: dict[str, Value], *_: object) -> bool:
    """Whether it lacks nothing but a signature."""
    algorithm = token.header.get("alg")
    if "crit" in token.header or algorithm not in (*_SYMMETRIC, *_BY_KEY):
        return False
    return "alg" not in wanted or bool(string(wanted["alg"]) == algorithm)


def _acceptable(claims: dict[str, Any], wanted: dict[str, Value], now: float) -> bool:
    if "iss" in wanted and claims.get("iss") != string(wanted["iss"]):
        return False
    audience = claims.get("aud")
    if audience is not None or "aud" in wanted:
        named = audience if isinstance(audience, list) else [audience]
        if "aud" not in wanted or wanted["aud"] not in named:
            return False
    expiry, begin = claims.get("exp"), claims.get("nbf")
    for name in ("exp", "nbf"):
        claim = claims.get(name)
        if name in claims and (
            isinstance(claim, bool) or not isinstance(claim, int | float)
        ):
            raise ValueError("a time that is no number")
    if expiry is not None and now >= expiry * _SECOND:
        return False
    return begin is None or now >= begin * _SECOND


BUILTINS: dict[str, Builtin] = {
    "crypto.x509.parse_rsa_private_key": parse_rsa_private_key,
    "io.jwt.decode": decode,
    "io.jwt.decode_verify": decode_verify,
    "io.jwt.encode_sign": encode_sign,
    "io.jwt.encode_sign_raw": encode_sign_raw,
    **{f"io.jwt.verify_{name.lower()}": _symmetric(name) for name in _SYMMETRIC},
    **{f"io.jwt.verify_{name.lower()}": _asymmetric(name) for name in _BY_KEY},
}

_VERIFYING = [name for name in BUILTINS if name.startswith("io.jwt.verify_")]


def _trusted(_: Call, text: Value, _key: Value) -> bool:
    return bool(_Token(text).header)


TRUSTING: dict[str, Builtin] = {
    "io.jwt.decode_verify": partial(decode_verify, trusting=True),
    **dict.fromkeys(_VERIFYING, _trusted),
}
"""The same for a policy that is only tried: every token counts as well signed."""
