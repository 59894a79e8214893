"""The builtin that signs requests to AWS, by Signature Version 4."""

from __future__ import annotations

import hashlib
import hmac
import re
import urllib.parse

from datetime import UTC, datetime, timedelta

from launcher.adapters.policies.builtins.checks import integer, mapping, string
from launcher.adapters.policies.builtins.structures import go_json
from launcher.adapters.policies.builtins.texts import uri_parse
from launcher.adapters.policies.machine import Builtin, Call
from launcher.adapters.policies.values import Object, Value


_WITH_DIGEST = ("s3", "glacier")
"""Services that want the body's digest among the headers."""
_CHANGED_ON_THE_WAY = ("authorization", "user-agent", "x-amzn-trace-id")
_URL = re.compile(r"(?:[a-zA-Z][a-zA-Z0-9+.-]*:)?(?://([^/]*))?(/.*)?", re.DOTALL)
_AS_WRITTEN = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@\[\]%/]*")


def sign_request(call: Call, request: Value, config: Value, time: Value) -> Object:
    """Return *request* with the headers that prove who sent it, and when."""
    given, keys = mapping(request), mapping(config)
    access, secret, service, region = (
        string(keys[f"aws_{name}"])
        for name in ("access_key", "secret_access_key", "service", "region")
    )
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        microseconds=integer(time) // 1000
    )
    host, path, query = _parts(call, string(given["url"]))
    digest = _digest(given, keys.get("disable_payload_signing", False))
    added = {"host": host, "x-amz-date": f"{moment:%Y%m%dT%H%M%SZ}"}
    if service in _WITH_DIGEST:
        added["x-amz-content-sha256"] = digest
    if token := _text(keys.get("aws_session_token")):
        added["x-amz-security-token"] = token
    own = {
        _text(name): _text(value)
        for name, value in mapping(given.get("headers", {})).items()
    }
    signed = added | {
        name.lower(): value
        for name, value in own.items()
        if name.lower() not in _CHANGED_ON_THE_WAY
    }
    names = ";".join(sorted(signed))
    listed = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    canonical = "\n".join((string(given["method"]), path, query, listed, names, digest))
    scope = f"{moment:%Y%m%d}/{region}/{service}/aws4_request"
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    to_sign = (
        f"AWS4-HMAC-SHA256\n{added['x-amz-date']}\n{scope}\n"
        f"{hashlib.sha256(canonical.encode()).hexdigest()}"
    )
    added["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access}/{scope},"
        f"SignedHeaders={names},Signature={_hmac(key, to_sign).hex()}"
    )
    return Object({**given, "headers": own | added})


def _text(value: Value) -> str:
    return value if isinstance(value, str) else ""


def _parts(call: Call, url: str) -> tuple[str, str, str]:
    """Host with its port, path and query, as they are sent."""
    uri_parse(call, url)  # raises unless it is one
    rest, _, query = url.partition("#")[0].partition("?")
    found = _URL.fullmatch(rest)
    if found is None:
        return "", "", query
    host, path = urllib.parse.unquote(found[1] or ""), found[2] or ""
    if not _AS_WRITTEN.fullmatch(path):
        path = urllib.parse.quote(urllib.parse.unquote(path), safe="-_.~$&+,/:;=@")
    return host.rpartition("@")[2], path, query


def _digest(request: dict[Value, Value], unsigned: Value) -> str:
    if not isinstance(unsigned, bool):
        raise TypeError("disable_payload_signing is neither true nor false")
    if unsigned:
        return "UNSIGNED-PAYLOAD"
    if "raw_body" in request:
        body = _text(request["raw_body"])
    else:
        body = go_json(request["body"]) if "body" in request else ""
    return hashlib.sha256(body.encode()).hexdigest()


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


BUILTINS: dict[str, Builtin] = {"providers.aws.sign_req": sign_request}
