"""
The URL of a repository, taken apart and judged before git sees it.

Only what is known to be harmless gets through: git understands far more than URLs,
and takes some of it for options and commands.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
import socket

from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from launcher.proxies import Proxies, Proxy
from launcher.source_rules import Address


PORTS = {"https": 443, "http": 80, "ssh": 22}
PRIVATE = "private"
"""Scheme of a URL that names a VCS agent pool instead of a host."""

_LONGEST = 2000
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
_SCP_LIKE = re.compile(r"(?:([^@/:]+)@)?([^@/:\[\]]+):([^:].*)")
_ODD = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A repository somewhere, without any secret."""

    protocol: str
    """``https``, ``http``, ``ssh``, ``file``, or `PRIVATE`."""
    host: str = ""
    """Name or address, in lower case; empty for files."""
    port: int = 0
    user: str = ""
    """The login's name, of ssh only."""
    path: str
    """From the first slash on; what it may be is the server's business."""
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    """What a URL for http has before its host, as meant; not part of `url`."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """
        Take *url* apart; understands scp's ``user@host:path``, too.

        Raises:
            ValueError: it is no URL of a repository, or of a kind that we shut out.
        """
        if not url or url.startswith("-") or len(url) > _LONGEST or _ODD.search(url):
            raise ValueError("is not the URL of a repository")
        if not url.isprintable():
            raise ValueError("is not the URL of a repository")
        if "://" not in url:
            match = _SCP_LIKE.fullmatch(url)
            # The helper of "ext::" and its like runs commands.
            if match is None or "::" in url or not match[1]:
                raise ValueError("is not the URL of a repository")
            url = f"ssh://{match[1]}@{match[2]}/{match[3].removeprefix('/')}"
        parts = urlsplit(url)
        if parts.query or parts.fragment or "?" in url or "#" in url:
            raise ValueError("has more than a host and a path")
        if parts.scheme == "file":
            if parts.netloc or not parts.path.startswith("/"):
                raise ValueError("is not the URL of a local repository")
            return cls(protocol="file", path=parts.path)
        if parts.scheme == PRIVATE:
            return cls(protocol=PRIVATE, host=parts.netloc, path=parts.path)
        return cls._of_host(url)

    @classmethod
    def _of_host(cls, url: str) -> Self:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        literal = host.strip("[]")
        if ":" in literal:
            ipaddress.IPv6Address(literal)
        elif not _HOST.fullmatch(host):
            raise ValueError("has no host that can be one")
        if parts.path in ("", "/") or port == 0:
            raise ValueError("names no repository")
        remote = cls(
            protocol=parts.scheme,
            host=literal.rstrip("."),
            port=port or PORTS.get(parts.scheme, 0),
            path=parts.path,
        )
        if parts.scheme in ("http", "https"):
            username, password = parts.username or "", parts.password or ""
            return replace(
                remote, username=unquote(username), password=unquote(password)
            )
        if parts.password is not None:
            raise ValueError("has a password, which ssh cannot be given")
        if parts.username is not None and not _USER.fullmatch(parts.username):
            raise ValueError("has no user that can be one")
        return replace(remote, user=parts.username or "")

    @property
    def url(self) -> str:
        """What git is told; always the same for the same repository."""
        if self.protocol == "file":
            return f"file://{self.path}"
        return self.site + self.path

    @property
    def site(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{self.protocol}://{user}{self.netloc}"

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = self.port == PORTS.get(self.protocol)
        return host if default or not self.port else f"{host}:{self.port}"

    @property
    def server(self) -> tuple[str, str, int]:
        """Who is told the credentials; equal for what may share them."""
        return self.protocol, self.host, self.port

    def below(self, base: str) -> Self:
        """The same repository at the endpoint *base*."""
        remote = type(self).parse(base.rstrip("/") + "/x")
        return replace(remote, path=remote.path.removesuffix("/x") + self.path)

    def joined(self, url: str) -> Self:
        """
        What *url* means in a file ``.gitmodules`` of this repository.

        Raises:
            ValueError: it is no URL, or leaves the server by the way of ``..``.
        """
        if not url.startswith(("./", "../")):
            return type(self).parse(url)
        path = self.path.rstrip("/")
        rest = url
        while rest.startswith(("./", "../")):
            if rest.startswith("../"):
                if not path:
                    raise ValueError("leaves the server")
                path = posixpath.dirname(path).rstrip("/")
            rest = rest.partition("/")[2]
        if not rest or _ODD.search(rest) or not rest.isprintable() or "?" in rest:
            raise ValueError("is not the URL of a repository")
        return replace(self, path=f"{path}/{rest}")


def addresses_of(remote: Remote) -> tuple[Address, ...]:
    """
    Every address of a host, found by this machine's resolver.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(remote.host, remote.port, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return tuple(ipaddress.ip_address(text) for text in texts)


def proxy_of(remote: Remote, proxies: Proxies) -> Proxy | None:
    """By whom git reaches it, who then finds the address; None: git itself does."""
    if remote.protocol not in ("http", "https"):
        return None
    return proxies.of(remote.site)


def in_url(text: str) -> str:
    """*text* with everything quoted that a URL gives a meaning to."""
    return quote(text, safe="")
