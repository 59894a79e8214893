"""
Which repositories may be fetched: the operator's list, and what holds without one.

A name is worth no more than the addresses behind it, and whoever chooses a URL may
choose a name that leads into the network of this machine.  So both are judged: a
name that nobody listed has to have public addresses only, and no name at all, listed
or not, opens the link-local addresses at which clouds hand out credentials.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import posixpath
import re

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAME = re.compile(
    r"[a-z0-9*]([a-z0-9*-]*[a-z0-9*])?(\.[a-z0-9*]([a-z0-9*-]*[a-z0-9*])?)*"
)
_ANYBODY = "*"
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePattern:
    """One entry of the list: exactly one of *name*, *network* and *folder* is there."""

    name: str = ""
    """A host, perhaps with ``*``, in lower case; ``*`` alone is any public one."""
    port: int | None = None
    network: Network | None = None
    folder: str = ""
    """A path on this machine, itself and all below it."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        ``host``, ``*.domain:port``, ``10.0.0.0/8``, ``[::1]:8443`` or ``file:///path``.

        Raises:
            ValueError: it is none of these.
        """
        if text.startswith("file://"):
            path = text.removeprefix("file://")
            if not path.startswith("/") or ".." in path.split("/"):
                raise ValueError("must be file:///an/absolute/path")
            return cls(folder=posixpath.normpath(path))
        match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?", text)
        if match is None and text.count(":") < 2:
            match = re.fullmatch(
                r"([^:/\[\]]+(?:/[0-9]{1,3})?)(?::([0-9]{1,5}))?", text
            )
        host = match[1] if match else text
        port = int(match[2]) if match and match[2] else None
        if port is not None and not 0 < port <= 65535:
            raise ValueError("must not have a port that does not exist")
        try:
            return cls(network=ipaddress.ip_network(host), port=port)
        except ValueError:
            pass
        if not _NAME.fullmatch(host.lower()) or re.fullmatch(r"[0-9.]+", host):
            raise ValueError("must be a host, a network, or file:///path")
        return cls(name=host.lower(), port=port)

    def names(self, host: str, port: int) -> bool:
        if not self.name or self.port not in (None, port):
            return False
        return fnmatch.fnmatchcase(host, self.name)

    def holds(self, address: Address, port: int) -> bool:
        if self.network is None or self.port not in (None, port):
            return False
        return address in self.network


def public(address: Address) -> bool:
    """Whether *address* is one of the whole internet's, whatever it is wrapped in."""
    return all(each.is_global and not each.is_multicast for each in _meanings(address))


def link_local(address: Address) -> bool:
    """Whether only this machine's own network reaches it, as a cloud's metadata."""
    return any(
        each.is_link_local or each.is_unspecified or str(each) == "fd00:ec2::254"
        for each in _meanings(address)
    )


def _meanings(address: Address) -> Iterable[Address]:
    """Where a packet to *address* may end up."""
    if address.version == 6:
        inner = address.ipv4_mapped or address.sixtofour
        if address.teredo is not None:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return (inner,)
    return (address,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRules:
    """The operator's list; empty, it means: what everybody can reach."""

    patterns: tuple[SourcePattern, ...] = ()
    trusted: tuple[SourcePattern, ...] = ()
    """What the operator has named elsewhere, and so is allowed beside the list."""

    @classmethod
    def of(
        cls, patterns: tuple[SourcePattern, ...], *, endpoints: Iterable[str] = ()
    ) -> Self:
        """The rules of an operator who also reaches what is at *endpoints*, by URL."""
        trusted = []
        for endpoint in endpoints:
            parts = urlsplit(endpoint)
            port = parts.port or _PORTS.get(parts.scheme, 0)
            host = (
                f"[{parts.hostname}]"
                if ":" in (parts.hostname or "")
                else parts.hostname
            )
            trusted.append(SourcePattern.parse(f"{host}:{port}"))
        return cls(patterns=patterns, trusted=tuple(trusted))

    def judges_files(self) -> bool:
        """Whether the list says which folders of this machine are open."""
        return any(pattern.folder for pattern in self.patterns)

    def refused_folder(self, path: str) -> bool:
        clean = posixpath.normpath(path)
        return not any(
            clean == pattern.folder
            or clean.startswith(pattern.folder.rstrip("/") + "/")
            for pattern in self.patterns
            if pattern.folder
        )

    def refusal(self, host: str, port: int, addresses: Iterable[Address]) -> str:
        """
        Why *host*, which is at *addresses*, is not talked to; empty when it is.

        Without *addresses*, because a proxy finds them, the name alone is judged.
        """
        literal = _literal(host)
        known = tuple(addresses) or (() if literal is None else (literal,))
        listed = (*self.patterns, *self.trusted)
        if known and all(any(one.holds(it, port) for one in listed) for it in known):
            return ""
        if any(link_local(address) for address in known):
            return "is at a link-local address, which no name may stand for"
        if any(one.names(host, port) and one.name != _ANYBODY for one in listed):
            return ""
        if self.patterns and not any(one.names(host, port) for one in self.patterns):
            return "is not in SPACELIFT_LAUNCHER_ALLOWED_SOURCES"
        if not all(public(address) for address in known):
            return (
                "is in a private network and not in SPACELIFT_LAUNCHER_ALLOWED_SOURCES"
            )
        return ""


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
