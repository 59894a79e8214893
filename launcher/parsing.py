"""
From the text of one setting to its value.

Each function takes the text and raises a `ValueError` whose message says what
the matter is, to be read after the name of the variable.  No message repeats a
value that may be secret.
"""

from __future__ import annotations

import base64
import binascii
import enum
import ipaddress
import json
import posixpath
import re
import ssl

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from launcher import docker_auths
from launcher.durations import parse_duration
from launcher.errors import JobInvalid
from launcher.images import Pattern, Reference
from launcher.model import WORKSPACE, Address, Mount
from launcher.policy import Program
from launcher.secret import Secret
from launcher.source_rules import SourcePattern
from launcher.wire.jobs import Scope


Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=enum.StrEnum)

OUR_MOUNT_POINTS = (WORKSPACE, "/mnt/spacelift-log", "/run/spacelift")
"""Paths in the run container that belong to the launcher."""

_KERNEL_PATHS = ("/proc", "/sys", "/dev")
_ENGINE_SOCKETS = frozenset(
    {"docker.sock", "podman.sock", "containerd.sock", "crio.sock", "buildkitd.sock"}
)
_SOCKET_PATHS = ("/run/docker.sock", "/var/run/docker.sock")

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    for _binary in (f"{_letter}iB", f"{_letter}i", _letter.lower()):
        _UNITS[_binary] = 1024**_power
_UNITS["kB"] = 1000


def text(value: str) -> str:
    return value


def docker_configuration(value: str) -> Secret:
    docker_auths.parsed(value.encode("utf-8", "surrogateescape"))
    return Secret(value)


def role_arn(value: str) -> str:
    if not re.fullmatch(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+", value):
        raise ValueError("must be the ARN of a role")
    return value


def boolean(value: str) -> bool:
    if value in _TRUE | _FALSE:
        return value in _TRUE
    raise ValueError("must be true or false")


def duration(value: str) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError("must be longer than nothing")
    return seconds


def integer(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(value)

    return parse


def percent(value: str) -> int:
    try:
        return integer(1, 100)(value.removesuffix("%").rstrip())
    except ValueError:
        raise ValueError("must be a percentage from 1 to 100") from None


def size(value: str) -> int:
    """Bytes; ``1GiB``, ``1Gi`` and ``1g`` are 1024³, ``1GB`` is 1000³."""
    match = re.fullmatch(r"([0-9]{1,18})(?:\.([0-9]{1,9}))? *([A-Za-z]*)", value)
    if match is None or match[3] not in _UNITS:
        raise ValueError("must be a size with a unit such as MiB, GiB or GB")
    unit = _UNITS[match[3]]
    whole, fraction = match[1], match[2] or "0"
    total = int(whole) * unit + int(fraction) * unit // int("1" + "0" * len(fraction))
    if total <= 0:
        raise ValueError("must be more than nothing")
    return total


def cpus(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", value) or not float(value):
        raise ValueError("must be a number of processors, more than 0")
    return float(value)


def one_of(choices: type[Choice]) -> Callable[[str], Choice]:
    def parse(value: str) -> Choice:
        for choice in choices:
            if value.lower() == choice.lower():
                return choice
        raise ValueError(f"must be one of {', '.join(choices)}")

    return parse


def address(value: str) -> Address:
    """Where to listen, as ``host:port`` or ``[IPv6]:port``."""
    match = re.fullmatch(
        r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/@]+)):([0-9]{1,5})", value
    )
    if match is None or int(match[3]) > 65535:
        raise ValueError("must be an address and a port")
    return Address(host=match[1] or match[2], port=int(match[3]))


def list_of(parse: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    """Comma-separated; the message names the entries, so not for secrets."""

    def parse_all(value: str) -> tuple[Value, ...]:
        values, problems = [], []
        for entry in filter(None, map(str.strip, value.split(","))):
            try:
                values.append(parse(entry))
            except ValueError as exc:
                problems.append(f'"{entry}": {exc}')
        if problems:
            raise ValueError("; ".join(problems))
        return tuple(values)

    return parse_all


def path(value: str) -> Path:
    return Path(value)


def absolute_path(value: str) -> Path:
    if not value.startswith("/"):
        raise ValueError("must be an absolute path")
    return Path(posixpath.normpath(value))


def name(value: str) -> str:
    """Name of an engine's object, as engines spell them."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
        raise ValueError("must be a name of letters, digits, . _ and -")
    return value


def variable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("not the name of a variable")
    return value


def scoped_variable_name(value: str) -> tuple[Scope, str]:
    """``ro_X`` is X for reading phases only, ``wo_X`` for writing ones only."""
    scope = Scope.ALWAYS
    if value.startswith(("ro_", "wo_")):
        scope = Scope.READ if value.startswith("ro_") else Scope.WRITE
        value = value[3:]
    return scope, variable_name(value)


def image(value: str) -> Reference:
    try:
        return Reference.parse(value)
    except JobInvalid as exc:
        raise ValueError(str(exc)) from None


def image_pattern(value: str) -> Pattern:
    return Pattern.parse(value)


def source_pattern(value: str) -> SourcePattern:
    return SourcePattern.parse(value)


def program(value: str) -> Program:
    path, _, pin = value.partition("@")
    if not path.startswith("/") or posixpath.normpath(path) != path:
        raise ValueError(f"{path!r} is not an absolute path in its shortest form")
    if pin or value.endswith("@"):
        algorithm, _, digest = pin.partition(":")
        if algorithm != "sha256" or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError("a program is pinned as path@sha256:<64 digits>")
        return Program(path=path, sha256=digest)
    return Program(path=path)


def mount(value: str) -> Mount:
    source, colon, target = value.partition(":")
    if not colon or ":" in target:
        raise ValueError("a mount is /path/on/the/host:/path/in/the/container")
    if not (source.startswith("/") and target.startswith("/")):
        raise ValueError("both paths of a mount must be absolute")
    if ".." in (*source.split("/"), *target.split("/")):
        raise ValueError("the paths of a mount must not hold ..")
    source, target = (
        re.sub("^//", "/", posixpath.normpath(p)) for p in (source, target)
    )
    if posixpath.basename(source) in _ENGINE_SOCKETS or any(
        _inside(socket, source) for socket in _SOCKET_PATHS
    ):
        raise ValueError(
            "whoever has the container engine's socket has the whole machine"
        )
    for ours in OUR_MOUNT_POINTS:
        if _inside(target, ours) or _inside(ours, target):
            raise ValueError(f"the launcher itself mounts {ours}")
    if any(_inside(target, kernel) for kernel in _KERNEL_PATHS):
        raise ValueError(f"nothing can be mounted over {target}")
    return Mount(source=source, target=target)


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def secret(value: str) -> Secret:
    return Secret(value)


def endpoint(value: str) -> str:
    """URL of a control plane: https, or http to this very machine."""
    url = _url(value)
    if url.scheme not in ("https", "http"):
        raise ValueError("the endpoint in it is not an https URL")
    if url.scheme == "http" and not loopback(url.hostname or ""):
        raise ValueError("the endpoint in it is neither https nor on this machine")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("the endpoint in it has more than scheme, host, port and path")
    return value


def _url(value: str) -> SplitResult:
    try:
        url = urlsplit(value)
        url.port  # noqa: B018 (raises when it is not a number)
    except ValueError:
        raise ValueError("the URL is malformed") from None
    if not url.hostname or re.search(r"[\s\\]", value):
        raise ValueError("the URL is malformed")
    return url


def loopback(host: str) -> bool:
    """Whether only this very machine reaches *host*."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def metadata_service(value: str) -> Address:
    """Where a cloud tells its machines about themselves: never far away."""
    parts = urlsplit(value)
    try:
        host, port = ipaddress.ip_address(parts.hostname or ""), parts.port or 80
    except ValueError:
        raise ValueError("must be http:// and an IP address") from None
    near = host.is_link_local or host.is_loopback or str(host) == "fd00:ec2::254"
    if parts.scheme != "http" or parts.username is not None or not near:
        raise ValueError("must be http:// and a link-local or loopback address")
    return Address(host=str(host), port=port)


def service_url(value: str) -> str:
    if _url(value).scheme not in ("http", "https"):
        raise ValueError("must be a URL that begins with https:// or http://")
    return value


def otlp_headers(value: str) -> Secret:
    headers_of(value)
    return Secret(value)


def headers_of(value: str) -> dict[str, str]:
    """Headers as OpenTelemetry writes them: ``name=value,…``, encoded as in URLs."""
    headers = {}
    for entry in value.split(","):
        name, equals, text = entry.partition("=")
        name, text = name.strip().lower(), unquote(text.strip())
        if not equals or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", name):
            raise ValueError("must be name=value, separated by commas")
        if not text.isascii() or not text.isprintable():
            raise ValueError("the value of a header has characters that it cannot have")
        headers[name] = text
    return headers


def proxy(value: str) -> Secret:
    """URL of a proxy, which may hold a password; http unless it says otherwise."""
    url = value if "://" in value else f"http://{value}"
    service_url(url)
    parts = urlsplit(url)
    # A password with one of these in it ends there: what precedes it would be taken for
    # a host and a port, which are no secrets.
    if parts.path not in ("", "/") or set("?#") & set(url):
        raise ValueError(
            "must end behind the port; a /, ? or # in a password is written %2F, %3F or"
            " %23"
        )
    return Secret(url)


def root_certificates(value: str) -> tuple[str, ...]:
    """PEM certificates; JSON ``{"caCertificates": [base64 of PEM, …]}``; its base64."""
    try:
        certificates = _certificates(value)
        for certificate in certificates:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(
                cadata=certificate
            )
    except (ValueError, KeyError, TypeError, AttributeError, ssl.SSLError):
        raise ValueError("something in it is not a certificate") from None
    if not certificates:
        raise ValueError("there is no certificate in it")
    return certificates


def _certificates(value: str) -> tuple[str, ...]:
    if value.startswith("-----BEGIN "):
        parts = re.findall(
            r"(-----BEGIN [^-]*-----.*?-----END [^-]*-----)", value, re.DOTALL
        )
        return tuple(f"{part}\n" for part in parts)
    document = json.loads(value if value.startswith("{") else _base64(value))
    return tuple(_base64(entry).decode("ascii") for entry in document["caCertificates"])


def _base64(value: str) -> bytes:
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
