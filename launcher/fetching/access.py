"""
What git needs to get at one repository: its configuration, and credentials.

Secrets are in files that only this user reads, in memory where the machine has a
file system for that, and for as long as one fetch takes.  Their names, and never
they themselves, are arguments and variables.  Nothing of the host's own
configuration of git and ssh is read.
"""

from __future__ import annotations

import os
import shlex
import shutil
import ssl
import tempfile

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launcher.fetching.addresses import Remote, in_url, proxy_of
from launcher.proxies import Proxies
from launcher.source_rules import Address


_MEMORY = Path("/dev/shm")  # noqa: S108 (what is made there is checked)
_SYSTEMS_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_SSH = (
    # Not even the system's configuration, and nobody to ask.
    *("-F", "/dev/null", "-oBatchMode=yes", "-oConnectTimeout=20"),
    *("-oStrictHostKeyChecking=yes", "-oUpdateHostKeys=no", "-oCheckHostIP=no"),
    *("-oForwardAgent=no", "-oClearAllForwardings=yes", "-oPermitLocalCommand=no"),
    # A connection that is kept for later would keep us waiting for its end.
    *("-oControlMaster=no", "-oControlPath=none"),
    *("-oServerAliveInterval=15", "-oServerAliveCountMax=4"),
)
_CONFIGURATION = """\
[core]
\thooksPath = /dev/null
\tfsmonitor = false
\tcompression = 1
[safe]
\tdirectory = *
[gc]
\tauto = 0
[maintenance]
\tauto = false
[fetch]
\tunpackLimit = 1
\trecurseSubmodules = false
[protocol]
\tversion = 2
[credential]
\thelper =
[http]
\tfollowRedirects = false
\tlowSpeedLimit = 100
\tlowSpeedTime = 120
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What one server is told, and how it is recognised."""

    username: str = ""
    password: str = ""
    ssh_key: str = ""
    known_hosts: tuple[str, ...] = ()
    agent: bool = False
    """Whether the launcher's own ssh agent may be asked."""

    def __repr__(self) -> str:
        return "Login(…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What all fetches on this machine have in common."""

    environment: Mapping[str, str]
    home: Path
    roots: tuple[str, ...] = ()
    """Certificate authorities to trust beside the system's, in PEM."""
    known_hosts: Path | None = None
    """The operator's; where it is set, no job says which hosts to believe."""
    proxies: Proxies | None = None
    """What git is told of proxies; None: it knows from the environment."""


@contextmanager
def access(
    remote: Remote,
    login: Login,
    addresses: tuple[Address, ...],
    machine: Machine,
    memory: Memory,
) -> Iterator[dict[str, str]]:
    """
    The environment in which git reaches *remote*, at *addresses* if they are known.

    Files for it are in *memory*, and gone in the end.
    """
    place = memory.make()
    try:
        text = _CONFIGURATION + _pinned(remote, addresses)
        if machine.roots:
            roots = _write(place, "roots", _all_of(machine))
            text += _entry("http", "sslCAInfo", roots)
            text += _entry("http", "proxySSLCAInfo", roots)
        if machine.proxies is not None:
            text += _entry("http", "proxy", _way(remote, machine.proxies))
        if remote.protocol in ("http", "https") and (login.username or login.password):
            kept = _write(place, "credentials", _stored(remote, login))
            helper = f"store --file={shlex.quote(str(kept))}"
            text += _entry(f'credential "{remote.site}"', "helper", helper)
        # What is not for ssh has no use for the agent.
        variables = {k: v for k, v in machine.environment.items() if k != _AGENT}
        if remote.protocol == "ssh":
            variables["GIT_SSH_COMMAND"] = shlex.join(
                _ssh(remote, login, addresses, machine, place)
            )
            variables["GIT_SSH_VARIANT"] = "ssh"
            if login.agent and not login.ssh_key and _AGENT in machine.environment:
                variables[_AGENT] = machine.environment[_AGENT]
        yield variables | {
            "GIT_ALLOW_PROTOCOL": remote.protocol,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(_write(place, "configuration", text)),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "HOME": str(machine.home),
            "LC_ALL": "C",
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)


_AGENT = "SSH_AUTH_SOCK"


def offline(environment: Mapping[str, str]) -> dict[str, str]:
    """The same environment, for git commands that must not talk to anybody."""
    return dict(environment) | {"GIT_ALLOW_PROTOCOL": "none"}


@dataclass(frozen=True, slots=True)
class Memory:
    """Where folders for secrets are made, and how their names begin."""

    folder: Path
    prefix: str

    @classmethod
    def of(cls, name: str, instead: Path) -> Self:
        """
        In memory if the machine has that, or else in the folder *instead*.

        What an earlier life that went by the same *name* has left is removed.
        """
        folder = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else instead
        made = cls(folder, f"spacelift-launcher-{name}-")
        for left in folder.glob(f"{made.prefix}*"):
            # Others may write there, too, and choose names as they like.
            if left.lstat().st_uid == os.geteuid() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        return made

    def make(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=self.prefix, dir=self.folder))


def _write(place: Path, name: str, text: str) -> Path:
    path = place / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _entry(section: str, key: str, value: object) -> str:
    quoted = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'[{section}]\n\t{key} = "{quoted}"\n'


def _pinned(remote: Remote, addresses: tuple[Address, ...]) -> str:
    """The name stands for the addresses that were judged, and for no other."""
    if remote.protocol not in ("http", "https") or not addresses or _is_address(remote):
        return ""
    listed = ",".join(
        f"[{each}]" if each.version == 6 else str(each) for each in addresses
    )
    value = f"{remote.host}:{remote.port}:{listed}"
    return _entry("http", "curloptResolve", value)


def _way(remote: Remote, proxies: Proxies) -> str:
    """
    The proxy that is decided on; an empty one forbids all others.

    Its password is nowhere but in the configuration, which git does not pass on.
    """
    proxy = proxy_of(remote, proxies)
    return proxy.whole().reveal() if proxy else ""


def _is_address(remote: Remote) -> bool:
    return ":" in remote.host or remote.host.replace(".", "").isdigit()


def _stored(remote: Remote, login: Login) -> str:
    """In the form of `git credential-store`, which tells them to this site only."""
    who = f"{in_url(login.username)}:{in_url(login.password)}"
    return f"{remote.protocol}://{who}@{remote.netloc}\n"


def _all_of(machine: Machine) -> str:
    system = ssl.get_default_verify_paths().cafile
    bundle = machine.environment.get("SSL_CERT_FILE") or system
    texts = [Path(bundle).read_text("utf-8")] if bundle else []
    return "\n".join((*texts, *machine.roots))


def _ssh(
    remote: Remote,
    login: Login,
    addresses: tuple[Address, ...],
    machine: Machine,
    place: Path,
) -> Iterable[str]:
    yield from ("ssh", *_SSH)
    if machine.known_hosts is not None:
        yield f"-oUserKnownHostsFile={_quoted(machine.known_hosts)}"
        yield "-oGlobalKnownHostsFile=/dev/null"
    else:
        lines = "".join(f"{line}\n" for line in login.known_hosts)
        yield f"-oUserKnownHostsFile={_quoted(_write(place, 'known-hosts', lines))}"
        yield f"-oGlobalKnownHostsFile={_SYSTEMS_KNOWN_HOSTS}"
    if addresses:
        # Known under its name all the same, in the way of known_hosts.
        default = remote.port == 22
        alias = remote.host if default else f"[{remote.host}]:{remote.port}"
        yield f"-oHostName={addresses[0]}"
        yield f"-oHostKeyAlias={alias}"
    if login.ssh_key:
        key = login.ssh_key.replace("\r\n", "\n").rstrip("\n") + "\n"
        yield from ("-oIdentityAgent=none", "-oIdentitiesOnly=yes")
        yield from ("-i", str(_write(place, "key", key)))
    elif not login.agent:
        yield from ("-oIdentityAgent=none", "-oIdentityFile=none")


def _quoted(path: Path) -> str:
    """As ssh's options take a path with blanks in it."""
    return '"' + str(path).replace("%", "%%") + '"'
