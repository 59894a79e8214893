"""
Making worker pool tokens, on the control plane's machine and beside its process.
"""

from __future__ import annotations

import base64
import ipaddress
import re

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import msgspec

from launcher.controlplane.authority import Authority
from launcher.controlplane.data_directory import authority_folder, data_directory
from launcher.controlplane.desired_state import pool_name as checked_name
from launcher.controlplane.pools import MAX_CSR, Pools, requested_key
from launcher.controlplane.store.database import open_store
from launcher.errors import ConfigurationError
from launcher.sealing.keys import PoolKey, PoolPublicKey
from launcher.wire.messages import PoolToken, Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a pool token is wanted for."""

    pool: str
    endpoint: str
    """How workers reach the control plane: https, or http to the same machine."""
    csr: Path | None = None
    """File with a certificate signing request; None: make a key pair."""
    proof: Proof = Proof.CERTIFICATE
    allowed_hosts: tuple[str, ...] = ()
    """Further hosts that launchers may be sent to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What is printed once, and kept nowhere."""

    token: str
    private_key: str = ""
    """Base64 of PEM; empty when the key was the operator's."""


def create(database_url: str, data: Path | None, request: Request) -> Made:
    """
    Give a pool its key, or a fresh certificate for the one that it has.

    Raises:
        ConfigurationError: there is no such pool, it has another key, or the
            request or the endpoint is wrong.
        PoolKeyUnusable: the request's key will not do.
        StoreUnusable: database or data directory cannot be used.
    """
    with _pools(database_url, data, request) as (pools, authority):
        key, own = _key(request)
        return _made(request, authority, pools.create(request.pool, key), own)


def reset(database_url: str, data: Path | None, request: Request) -> Made:
    """
    Give a pool another key and shut out the workers with the old one.

    Raises: as above.
    """
    with _pools(database_url, data, request) as (pools, authority):
        key, own = _key(request)
        return _made(request, authority, pools.reset(request.pool, key), own)


@contextmanager
def _pools(
    database_url: str, data: Path | None, request: Request
) -> Iterator[tuple[Pools, Authority]]:
    try:
        checked_name(request.pool)
    except ValueError as exc:
        raise ConfigurationError(str(exc)) from exc
    host = _host(request)
    authority = Authority(authority_folder(data_directory(database_url, data)))
    if request.proof is Proof.CERTIFICATE:
        authority.serve_as(host)
    store = open_store(database_url)
    try:
        yield Pools(store, authority), authority
    finally:
        store.close()


def _host(request: Request) -> str:
    url = _split(request.endpoint)
    if url is None or url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigurationError(
            f"endpoint {request.endpoint!r} is not an http or https URL"
        )
    if url.username is not None or url.query or url.fragment:
        raise ConfigurationError(
            f"endpoint {request.endpoint!r} has more than scheme, host, port and path"
        )
    if url.scheme == "http" and request.proof is Proof.CERTIFICATE:
        raise ConfigurationError(
            f"endpoint {request.endpoint!r} has no TLS for a certificate to be shown"
            " in: give the https address of the workers' listener, or sign requests"
        )
    if url.scheme == "http" and not _is_local(url.hostname):
        raise ConfigurationError(
            f"endpoint {request.endpoint!r} would be spoken to without TLS; http is for"
            " workers on the same machine only"
        )
    return url.hostname


def _split(endpoint: str) -> SplitResult | None:
    """The parts of a URL; None when it is not one that certificates can be for."""
    try:
        url = urlsplit(endpoint)
        url.port  # noqa: B018 (raises when it is not a number)
    except ValueError:
        return None
    return url if re.fullmatch(r"[!-\[\]-~]+", endpoint) else None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key(request: Request) -> tuple[PoolPublicKey, PoolKey | None]:
    if request.csr is None:
        own = PoolKey.make()
        return own.public, own
    try:
        with request.csr.open("rb") as file:
            text = file.read(MAX_CSR)
    except OSError as exc:
        raise ConfigurationError(
            f"{request.csr} cannot be read: {exc.strerror}"
        ) from exc
    return requested_key(text), None


def _made(
    request: Request, authority: Authority, certificate: str, own: PoolKey | None
) -> Made:
    token = PoolToken(
        endpoint=request.endpoint.rstrip("/"),
        pool=request.pool,
        authority=authority.pem,
        certificate=certificate,
        allowed_hosts=tuple(_unique([_host(request), *request.allowed_hosts])),
        proof=request.proof,
    )
    return Made(
        token=_text(msgspec.json.encode(token)),
        private_key=_text(own.pem()) if own else "",
    )


def _unique(hosts: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(hosts)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
