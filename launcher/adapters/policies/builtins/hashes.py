"""Builtins about digests, encodings, identifiers and chance."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import uuid

from typing import Any

from launcher.adapters.policies.builtins.checks import integer, string
from launcher.adapters.policies.machine import Builtin, Call, Halt
from launcher.adapters.policies.values import Value


def sanitized(_: Call, value: Value) -> str:
    """The product's digest: the last eight hexadecimal digits of SHA-256."""
    if not isinstance(value, str):
        raise Halt("takes a string")
    return hashlib.sha256(value.encode()).hexdigest()[-8:]


def _digest(algorithm: str) -> Builtin:
    def digest(_: Call, text: Value) -> str:
        return hashlib.new(
            algorithm, string(text).encode(), usedforsecurity=False
        ).hexdigest()

    return digest


def _hmac(algorithm: str) -> Builtin:
    def digest(_: Call, text: Value, key: Value) -> str:
        return hmac.new(
            string(key).encode(), string(text).encode(), algorithm
        ).hexdigest()

    return digest


def hmac_equal(_: Call, one: Value, other: Value) -> bool:
    return hmac.compare_digest(string(one).encode(), string(other).encode())


def hex_encode(_: Call, text: Value) -> str:
    return string(text).encode().hex()


def hex_decode(_: Call, text: Value) -> str:
    if any(letter.isspace() for letter in string(text)):
        raise ValueError("white space")
    return bytes.fromhex(text).decode(errors="replace")


def base64url_encode_no_pad(_: Call, text: Value) -> str:
    return base64.urlsafe_b64encode(string(text).encode()).decode().rstrip("=")


def uuid_rfc4122(call: Call, key: Value) -> str:
    """Return a random one, but the same for the same *key* in one evaluation."""
    return str(call.memory.setdefault(f"uuid {string(key)}", str(uuid.uuid4())))


def rand_intn(call: Call, key: Value, limit: Value) -> int:
    """Return a random one below *limit*; the same for the same arguments."""
    most = abs(integer(limit))
    if not most:
        return 0
    name = f"rand {string(key)} {most}"
    return int(call.memory.setdefault(name, secrets.randbelow(most)))


def uuid_parse(_: Call, text: Value) -> dict[str, Any]:
    given = string(text)
    if given[:9].lower() == "urn:uuid:" and len(given) == 45:
        given = given[9:]
    elif len(given) == 38:
        given = given[1:-1]
    if re.fullmatch(_UUID, given) is None:
        raise ValueError("not a UUID")
    parsed = uuid.UUID(given)
    version = parsed.int >> 76 & 0xF
    answer: dict[str, Any] = {"variant": _VARIANTS[parsed.variant], "version": version}
    if version in (1, 2):
        mac = parsed.node.to_bytes(6, "big")
        answer |= {
            "clocksequence": parsed.clock_seq,
            "nodeid": mac.hex("-"),
            "time": (parsed.time - _TICKS_BEFORE_1970) * 100,
            "macvariables": _mac_variables(mac[0]),
        }
    if version == 2:
        number = parsed.clock_seq_low
        answer |= {
            "id": parsed.time_low,
            "domain": _DOMAINS.get(number, f"Domain{number}"),
        }
    return answer


_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}"
_TICKS_BEFORE_1970 = 0x01B21DD213814000
_DOMAINS = {0: "Person", 1: "Group", 2: "Org"}

_VARIANTS = {
    uuid.RFC_4122: "RFC4122",
    uuid.RESERVED_NCS: "Reserved",
    uuid.RESERVED_MICROSOFT: "Microsoft",
    uuid.RESERVED_FUTURE: "Future",
}


def _mac_variables(first: int) -> str:
    scope = "local" if first & 2 else "global"
    return f"{scope}:{'multicast' if first & 1 else 'unicast'}"


BUILTINS: dict[str, Builtin] = {
    "sanitized": sanitized,
    **{f"crypto.{name}": _digest(name) for name in ("md5", "sha1", "sha256")},
    **{
        f"crypto.hmac.{name}": _hmac(name)
        for name in ("md5", "sha1", "sha256", "sha512")
    },
    "crypto.hmac.equal": hmac_equal,
    "hex.encode": hex_encode,
    "hex.decode": hex_decode,
    "base64url.encode_no_pad": base64url_encode_no_pad,
    "rand.intn": rand_intn,
    "uuid.rfc4122": uuid_rfc4122,
    "uuid.parse": uuid_parse,
}
