"""
Which way a connection of the launcher's own takes: by a proxy, or directly.

What says so is what curl, git and Go read: a proxy for each scheme, and a list of
those that are reached directly.  This machine itself is one of them, always.
"""

from __future__ import annotations

import base64
import ipaddress
import ssl

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from launcher.secret import Secret


_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a proxy is, and what it is told about who asks."""

    url: str
    """Without a password; with a port, as defaults differ from client to client."""
    credentials: Secret | None
    """``user:password``, as meant."""

    def headers(self) -> Mapping[str, str]:
        """Those that are for the proxy only."""
        if self.credentials is None:
            return {}
        encoded = base64.b64encode(self.credentials.reveal().encode()).decode("ascii")
        return {"proxy-authorization": f"Basic {encoded}"}

    def whole(self) -> Secret:
        """The URL with the credentials, for those who take nothing else."""
        if self.credentials is None:
            return Secret(self.url)
        scheme, _, place = self.url.partition("://")
        user, _, password = self.credentials.reveal().partition(":")
        who = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return Secret(f"{scheme}://{who}@{place}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxies:
    """What `NO_PROXY` and its like say."""

    http: Secret | None = None
    https: Secret | None = None
    """URLs of the proxies for either scheme, which may hold passwords."""
    direct: tuple[str, ...] = ()
    """
    Hosts, domains, addresses and networks that need none; a name stands for all
    below it, with or without a dot; ``:443`` behind it narrows it to a port; ``*`` is
    everything.  Blanks separate, too.
    """
    roots: tuple[str, ...] = ()
    """Authorities, in PEM, that a proxy which speaks TLS may be certified by, too."""

    def of(self, url: str) -> Proxy | None:
        """The proxy by which *url* is reached; None: directly."""
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        if proxy is None or self._is_direct(
            (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(parts.scheme)
        ):
            return None
        return _parsed(proxy)

    def context(self) -> ssl.SSLContext:
        """Whom to believe to be the proxy, where that has a certificate."""
        context = ssl.create_default_context()
        for root in self.roots:
            context.load_verify_locations(cadata=root)
        return context

    def _is_direct(self, host: str, port: int | None) -> bool:
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        entries = (entry for each in self.direct for entry in each.lower().split())
        return any(_covers(entry, host, address, port) for entry in entries)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _covers(entry: str, host: str, address: _Address | None, port: int | None) -> bool:
    if entry == "*":
        return True
    network = _network(entry)
    if network is None:
        name, colon, digits = entry.rpartition(":")
        if colon and digits.isdecimal():
            if int(digits) != port:
                return False
            entry = name
        network = _network(entry.strip("[]"))
    if network is not None:
        return address is not None and address in network
    entry = entry.removeprefix("*").strip(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _parsed(url: Secret) -> Proxy:
    parts = urlsplit(url.reveal())
    place = parts.netloc.rpartition("@")[2].removesuffix(":")
    if parts.port is None:
        place = f"{place}:{_PORTS[parts.scheme]}"
    credentials = None
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        credentials = Secret(f"{user}:{password}")
    return Proxy(f"{parts.scheme}://{place}", credentials)
