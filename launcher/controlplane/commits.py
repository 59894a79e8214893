"""
Looking up commits: which one a branch points at, and what it says.

A mirror of each repository is kept below the data directory.  It is a cache:
a mirror that has gone bad is thrown away and made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import threading

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog

from launcher.controlplane.errors import CommitUnavailable
from launcher.controlplane.git import Git, GitFailed
from launcher.wire.jobs import Commit


log = structlog.get_logger()

ASK_SECONDS = 30
FETCH_SECONDS = 300
_MAX_MESSAGE = 16 * 1024
_MAX_AUTHOR = 500
_LATEST = (1 << 33) - 1
_FORMAT = "%H%x00%an%x00%ct%x00%B"
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-fA-F]{4,64}")
_NOTHING_MATCHED = 2
_REMEMBERED = 1000


class Commits:
    """Finds commits with git.  Safe to use from several threads."""

    def __init__(self, folder: Path, git: Git) -> None:
        self._folder = folder
        self._git = git
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._described_before: OrderedDict[tuple[Path, str], Commit] = OrderedDict()

    def of_branch(self, *, url: str, repository: str, branch: str) -> Commit:
        """
        The newest commit of *branch*; *repository* is what people call it.

        Raises:
            CommitUnavailable: with a public sentence that names the cause.
        """
        with self._reading(url, repository) as mirror:
            tip = self._tip(url, branch)
            if tip is None:
                raise CommitUnavailable(
                    f'branch "{branch}" was not found in {repository}'
                )
            commit = self._described(mirror, tip, branch)
            if commit is None:
                self._fetch(mirror, url)
                commit = self._described(mirror, tip, branch)
        if commit is None:
            raise CommitUnavailable(f'branch "{branch}" of {repository} has changed')
        return commit

    def of_hash(self, *, url: str, repository: str, branch: str, sha: str) -> Commit:
        """
        The commit that *sha*, maybe shortened, names; said to be of *branch*.

        Raises:
            CommitUnavailable: with a public sentence that names the cause.
        """
        missing = CommitUnavailable(
            f'commit "{sha[:64]}" was not found in {repository}'
        )
        if not _PREFIX.fullmatch(sha):
            raise missing
        with self._reading(url, repository) as mirror:
            wanted = sha.lower()
            commit = None
            if _HASH.fullmatch(wanted):
                commit = self._described(mirror, wanted, branch)
            if commit is None:
                self._fetch(mirror, url)
                commit = self._described(mirror, wanted, branch)
        # A branch may have a name that looks like a hash.
        if commit is None or not commit.hash.startswith(wanted):
            raise missing
        return commit

    @contextmanager
    def _reading(self, url: str, repository: str) -> Iterator[Path]:
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock, _alone(self._folder / f"{name}.lock"):
            try:
                yield self._folder / f"{name}.git"
            except GitFailed as exc:
                log.warning("repository.not_read", url=url, complaint=str(exc))
                raise CommitUnavailable(
                    f"repository {repository} cannot be read", details=str(exc)
                ) from exc

    def _tip(self, url: str, branch: str) -> str | None:
        reference = f"refs/heads/{branch}"
        try:
            lines = self._git(
                "ls-remote", "--exit-code", "--", url, reference, timeout=ASK_SECONDS
            )
        except GitFailed as exc:
            if exc.code == _NOTHING_MATCHED:
                return None
            raise
        for line in lines.decode(errors="replace").splitlines():
            tip, _, name = line.partition("\t")
            if name == reference and _HASH.fullmatch(tip):
                return tip
        return None

    def _described(self, mirror: Path, sha: str, branch: str) -> Commit | None:
        # A commit never changes, and most triggers are for one just seen.
        with self._lock:
            commit = self._described_before.get((mirror, sha))
        if commit is None:
            commit = self._read(mirror, sha)
        if commit is None:
            return None
        with self._lock:
            self._described_before[mirror, commit.hash] = commit
            if len(self._described_before) > _REMEMBERED:
                self._described_before.popitem(last=False)
        return msgspec.structs.replace(commit, branch=branch)

    def _read(self, mirror: Path, sha: str) -> Commit | None:
        if not mirror.exists():
            return None
        try:
            text = self._git(
                f"--git-dir={mirror}",
                "show",
                "--no-patch",
                "--no-show-signature",
                "--encoding=UTF-8",
                f"--format={_FORMAT}",
                "--end-of-options",
                f"{sha}^{{commit}}",
                timeout=ASK_SECONDS,
            )
        except GitFailed:
            return None
        found, author, at, message = text.decode(errors="replace").split("\0", 3)
        return Commit(
            hash=found,
            branch="",
            author=author[:_MAX_AUTHOR],
            message=message[:_MAX_MESSAGE].replace("\0", "").strip(),
            # Whoever commits chooses the time, and may choose any number.
            created_at=min(max(int(at), 0), _LATEST) * 1_000_000_000,
        )

    def _fetch(self, mirror: Path, url: str) -> None:
        fresh = not mirror.exists()
        try:
            self._update(mirror, url)
        except GitFailed:
            if fresh:
                raise
            log.warning("mirror.remade", url=url, mirror=mirror.name)
            shutil.rmtree(mirror, ignore_errors=True)
            self._update(mirror, url)

    def _update(self, mirror: Path, url: str) -> None:
        directory = f"--git-dir={mirror}"
        if not mirror.exists():
            self._git("init", "--quiet", "--bare", str(mirror), timeout=ASK_SECONDS)
            self._git(
                directory, "config", "remote.origin.url", url, timeout=ASK_SECONDS
            )
        # Files are of no interest here, only what commits say about themselves.
        self._git(
            directory,
            "fetch",
            "--quiet",
            "--prune",
            "--no-tags",
            "--no-write-fetch-head",
            "--filter=blob:none",
            "origin",
            "+refs/heads/*:refs/heads/*",
            "+refs/tags/*:refs/tags/*",
            timeout=FETCH_SECONDS,
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Another server process may use the same mirror."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
