"""
The tree of one commit, by way of git.

What this module is built around:

- The repository and its URL are untrusted.  Nothing is checked out: `git archive`
  reads the tree from the object store, so no hook, filter, submodule or link of
  the repository acts on the launcher's host.
- ``ext::``, ``fd::`` and friends run commands; GIT_ALLOW_PROTOCOL shuts them out,
  and so does the list of protocols the operator allows.
- Servers that speak protocol version 2 hand out any commit by its hash; others
  hand out branches only, so the branch is the second attempt.
- `git archive` obeys ``export-ignore`` and ``export-subst`` of the repository.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.wire.jobs import Job


log = structlog.get_logger()

_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SCP_LIKE = re.compile(r"[\w.-]+@[\w.-]+:(?!//)")
_CHUNK = 1 << 16


class GitSource:
    """Implements `launcher.ports.SourceFetcher`."""

    def __init__(
        self,
        scratch: Path,
        *,
        protocols: Sequence[str],
        environment: Mapping[str, str],
        timeout_seconds: float = 300,
    ) -> None:
        self._scratch = scratch
        self._inherited = dict(environment)
        self._protocols = tuple(protocols)
        self._timeout = timeout_seconds

    @contextmanager
    def fetch(self, job: Job, cancel: CancelToken) -> Iterator[Iterator[bytes]]:
        commit = job.run.commit.hash
        if not _HASH.fullmatch(commit):
            raise SourceUnavailable(f"{commit!r} is not the hash of a commit")
        self._check_protocol(job)
        with tempfile.TemporaryDirectory(prefix="source-", dir=self._scratch) as folder:
            self._git(["init", "--quiet", "--bare", folder], cancel)
            git = ["--git-dir", folder]
            self._fetch_commit([*git, "fetch", "--quiet", "--no-tags"], job, cancel)
            with self._archive([*git, "archive", "--format=tar", commit]) as tree:
                yield tree

    def _check_protocol(self, job: Job) -> None:
        url = job.source.url
        protocol = "ssh" if _SCP_LIKE.match(url) else urlsplit(url).scheme
        if not url or url.startswith("-"):
            raise SourceUnavailable(
                f"stack {job.stack.slug!r} names no repository to fetch"
            )
        if protocol not in self._protocols:
            raise SourceUnavailable(
                f"repositories are not fetched by {protocol or 'a local path'!r} on"
                " this worker",
                details=f"SPACELIFT_LAUNCHER_GIT_PROTOCOLS is {self._protocols}",
            )

    def _fetch_commit(
        self, fetch: Sequence[str], job: Job, cancel: CancelToken
    ) -> None:
        commit, branch = job.run.commit.hash, job.run.commit.branch
        try:
            self._git([*fetch, "--depth=1", "--", job.source.url, commit], cancel)
        except _GitFailed as by_hash:
            try:
                reference = f"refs/heads/{branch}"
                self._git([*fetch, "--", job.source.url, reference], cancel)
                self._git([*fetch[:2], "cat-file", "-e", f"{commit}^{{tree}}"], cancel)
            except _GitFailed as by_branch:
                raise SourceUnavailable(
                    f"commit {commit[:12]} of branch {branch!r} cannot be fetched from"
                    f" {job.stack.repository_path}",
                    details=f"{by_hash}; {by_branch}",
                ) from by_branch

    def _git(self, arguments: Sequence[str], cancel: CancelToken) -> None:
        with (
            subprocess.Popen(
                ["git", *arguments],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            ) as process,
            cancel.calling(process.kill),
        ):
            try:
                _, errors = process.communicate(timeout=self._timeout)
            except subprocess.TimeoutExpired as exc:
                process.kill()
                raise _GitFailed(f"no end after {self._timeout} s") from exc
        if process.returncode != 0:
            raise _GitFailed(errors.decode("utf-8", "replace").strip()[-2000:])

    @contextmanager
    def _archive(self, arguments: Sequence[str]) -> Iterator[Iterator[bytes]]:
        with subprocess.Popen(
            ["git", *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield _chunks(process)
            finally:
                process.kill()

    def _environment(self) -> dict[str, str]:
        """Nothing of the host's git configuration, and nobody to ask."""
        return self._inherited | {
            "GIT_ALLOW_PROTOCOL": ":".join(self._protocols),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
            "HOME": str(self._scratch),
            "LC_ALL": "C",
            # A bare file:// repository may belong to another user.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }


class _GitFailed(Exception):
    """What git said; for the operator."""


def _chunks(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    while process.stdout is not None and (part := process.stdout.read(_CHUNK)):
        yield part
    if process.wait() != 0:
        said = process.stderr.read() if process.stderr else b""
        raise SourceUnavailable(
            "the commit cannot be read from the repository",
            details=said.decode("utf-8", "replace")[-2000:],
        )
