"""
Running git on behalf of the control plane, with as little trust as possible.

- No configuration but ours: a hostile ``~/.gitconfig`` or system file does not
  count, hooks and credential helpers are off, and git never asks anybody.
- Only the transports file, https and ssh; ``ext::`` would run a command.
- Every run has a deadline, and its children (ssh, upload-pack) end with it.
- A repository that belongs to another user is refused by git ("dubious
  ownership"), also on the far side of file://; the paths the operator named are
  declared safe in the one configuration file there is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from launcher.controlplane.errors import DiskFull, ShuttingDown
from launcher.fetching.access import Login, Machine, Memory, access
from launcher.fetching.addresses import PRIVATE, Remote
from launcher.heartbeat import STEP_SECONDS, within
from launcher.wire.jobs import Source


_PASSED = ("PATH", "HOME", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY")
_OPTIONS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.autoDetach=false",
    "protocol.version=2",
    "transfer.fsckObjects=true",
)


class GitFailed(Exception):
    """git exited with an error, or not in time; `str` is for the operator."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


_FULL = re.compile(
    r"^(?!remote:|fatal: remote error:).*(No space left on device|Disk quota exceeded)",
    re.MULTILINE,
)


class Git:
    """Runs git commands in one folder."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._config = folder / "gitconfig"
        name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
        self._secrets = Memory.of(f"server-{name}", folder)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False
        self._pools: dict[str, str] = {}
        self._environ = {
            name: environ[name] for name in (*_PASSED, *_PROXIES) if name in environ
        } | {
            "LC_ALL": "C",
            "GIT_ALLOW_PROTOCOL": "file:https:ssh",
            "GIT_ASKPASS": "true",
            "GIT_CONFIG_GLOBAL": str(self._config),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=15",
            "GIT_TERMINAL_PROMPT": "0",
        }

    def use_pools(self, pools: Mapping[str, str]) -> None:
        """Reach the VCS agent pools by these endpoints from now on."""
        self._pools = dict(pools)

    def trust(self, urls: list[str]) -> None:
        """Let git read the repositories on this machine that are in *urls*."""
        paths = [unquote(urlsplit(url).path) for url in urls]
        local = [
            path for url, path in zip(urls, paths, strict=True) if url[:5] == "file:"
        ]
        lines = ["[safe]"]
        for path in local:
            quoted = path.rstrip("/").replace("\\", "\\\\").replace('"', '\\"')
            lines += [f'\tdirectory = "{quoted}"', f'\tdirectory = "{quoted}/.git"']
        fresh = self._config.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
        fresh.rename(self._config)

    def close(self) -> None:
        """End what is running, and begin nothing any more."""
        self._closed = True
        for process in tuple(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    @contextmanager
    def reaching(self, source: Source) -> Iterator[tuple[str, Mapping[str, str]]]:
        """
        The URL of *source* as git takes it, and the environment in which it does.

        Raises:
            GitFailed: its URL is none that we fetch.
        """
        try:
            remote = Remote.parse(source.url)
            if mapped := remote.protocol == PRIVATE:
                if remote.host not in self._pools:
                    raise GitFailed(f"there is no VCS agent pool {remote.host}", None)
                remote = remote.below(self._pools[remote.host])
        except ValueError as exc:
            raise GitFailed(f"the URL {exc}", None) from exc
        login = Login(
            username=source.username,
            password=source.password,
            ssh_key=source.ssh_key,
            known_hosts=source.known_hosts,
            agent=True,
        )
        if login == Login(agent=True) and not mapped:
            # Then it is the user of this process who knows hosts and has keys.
            yield source.url, self._environ
            return
        machine = Machine(environment=self._environ, home=self._folder)
        with access(remote, login, (), machine, self._secrets) as environment:
            yield remote.url, environment

    def __call__(
        self,
        *arguments: str,
        timeout: float,
        environ: Mapping[str, str] | None = None,
    ) -> bytes:
        """
        Run git and return what it prints.

        Raises:
            GitFailed: it failed, or took longer than *timeout* seconds.
            DiskFull: it failed because there is no room for what it fetches.
            ShuttingDown: we were closed, so the result means nothing.
        """
        if self._closed:
            raise ShuttingDown("git is not run any more")
        options = [part for option in _OPTIONS for part in ("-c", option)]
        with subprocess.Popen(
            ["git", *options, *arguments],
            cwd=self._folder,
            env=dict(environ or self._environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            self._running.add(process)
            try:
                with within(timeout + STEP_SECONDS):
                    output, complaint = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as exc:
                os.killpg(process.pid, signal.SIGKILL)
                raise GitFailed(f"no answer in {timeout:.0f} s", None) from exc
            finally:
                self._running.discard(process)
        if self._closed:
            raise ShuttingDown("git was interrupted")
        if process.returncode != 0:
            text = complaint.decode(errors="replace").strip()[-2000:]
            if _FULL.search(text):
                raise DiskFull(text)
            raise GitFailed(text, process.returncode)
        return output
