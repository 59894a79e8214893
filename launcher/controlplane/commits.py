"""
Looking up commits: which one a branch points at, and what it says.

A mirror of each repository is kept below the data directory.  It is a cache:
a mirror that has gone bad is thrown away and made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import re
import shutil
import threading
import time

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import structlog

from launcher.controlplane.data_directory import with_room
from launcher.controlplane.errors import CommitUnavailable, RuntimeConfigInvalid
from launcher.controlplane.git import Git, GitFailed
from launcher.heartbeat import waiting
from launcher.wire.jobs import Commit, Source


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
_REGULAR = ("100644", "100755")
K = TypeVar("K")
V = TypeVar("V")


class Commits:
    """Finds commits with git.  Safe to use from several threads."""

    def __init__(self, folder: Path, git: Git) -> None:
        self._folder = folder
        self._git = git
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._described_before = _Memory[tuple[Path, str], Commit](1000)
        self._tips = _Memory[tuple[Source, str], _Tip](1000)
        self._files = _Memory[tuple[Source, str, str, int], tuple[bytes | None]](100)

    def of_branch(
        self,
        *,
        source: Source,
        repository: str,
        branch: str,
        since: float = math.inf,
    ) -> Commit:
        """
        The newest commit of *branch*; *repository* is what people call it.

        What another caller was told will do, if it was asked for at or after *since*
        on the monotonic clock.

        Raises:
            CommitUnavailable: with a public sentence that names the cause.
            DiskFull: there is no room for a mirror now.
        """
        with self._reading(source, repository) as mirror:
            tip = self._known_tip(mirror, source, branch, since)
            if tip is None:
                raise CommitUnavailable(
                    f'branch "{branch}" was not found in {repository}'
                )
            commit = self._described(mirror, tip, branch)
            if commit is None:
                self._fetch(mirror)
                commit = self._described(mirror, tip, branch)
        if commit is None:
            raise CommitUnavailable(f'branch "{branch}" of {repository} has changed')
        return commit

    def of_hash(
        self, *, source: Source, repository: str, branch: str, sha: str
    ) -> Commit:
        """
        The commit that *sha*, maybe shortened, names; said to be of *branch*.

        Raises: as `of_branch`.
        """
        missing = CommitUnavailable(
            f'commit "{sha[:64]}" was not found in {repository}'
        )
        if not _PREFIX.fullmatch(sha):
            raise missing
        with self._reading(source, repository) as mirror:
            wanted = sha.lower()
            commit = None
            if _HASH.fullmatch(wanted):
                commit = self._described(mirror, wanted, branch)
            if commit is None:
                self._fetch(mirror)
                commit = self._described(mirror, wanted, branch)
        # A branch may have a name that looks like a hash.
        if commit is None or not commit.hash.startswith(wanted):
            raise missing
        return commit

    def file(
        self, *, source: Source, repository: str, sha: str, path: str, largest: int
    ) -> bytes | None:
        """
        The content of a file at the commit *sha*, which was looked up; None: no file.

        Raises:
            CommitUnavailable: it cannot be had.
            DiskFull: there is no room for it now.
            RuntimeConfigInvalid: it is no regular file, or has more than *largest*
                bytes.
        """
        with self._reading(source, repository) as mirror:
            key = source, sha, path, largest
            kept = self._files.get(key)
            if kept is None:
                # Not read back: others may push it out at once.
                kept = (self._file(mirror, sha, path, largest),)
                self._files.keep(key, kept)
            return kept[0]

    def _file(self, mirror: _Mirror, sha: str, path: str, largest: int) -> bytes | None:
        directory = f"--git-dir={mirror.path}"
        listed = self._git(
            directory, "ls-tree", "-z", sha, "--", path, timeout=ASK_SECONDS
        )
        if not listed:
            return None
        mode, _, blob = listed.partition(b"\t")[0].decode().split(" ")
        if mode not in _REGULAR:
            raise RuntimeConfigInvalid(f"{path} is not a regular file")
        # A mirror has no files: this one is fetched now.
        size = self._git(
            *(directory, "cat-file", "-s", blob),
            timeout=FETCH_SECONDS,
            environ=mirror.environ,
        )
        if int(size) > largest:
            raise RuntimeConfigInvalid(
                f"{path} cannot be used: it has more than {largest >> 10} KiB"
            )
        return self._git(directory, "cat-file", "blob", blob, timeout=ASK_SECONDS)

    @contextmanager
    def _reading(self, source: Source, repository: str) -> Iterator[_Mirror]:
        url = source.url
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with _taken(lock), with_room(), _alone(self._folder / f"{name}.lock"):
            try:
                with self._git.reaching(source) as (reached, environ):
                    yield _Mirror(self._folder / f"{name}.git", reached, environ)
            except GitFailed as exc:
                log.warning("repository.not_read", url=url, complaint=str(exc))
                raise CommitUnavailable(
                    f"repository {repository} cannot be read", details=str(exc)
                ) from exc

    def _known_tip(
        self, mirror: _Mirror, source: Source, branch: str, since: float
    ) -> str | None:
        # Triggers that come in crowds are mostly for the same branch.  What is known
        # to one who has a password is not for those who have another.
        key = source, branch
        known = self._tips.get(key)
        if known is not None and known.asked_at >= since:
            return known.commit
        asked_at = time.monotonic()
        tip = self._tip(mirror, branch)
        if tip is not None:
            self._tips.keep(key, _Tip(asked_at, tip))
        return tip

    def _tip(self, mirror: _Mirror, branch: str) -> str | None:
        reference = f"refs/heads/{branch}"
        try:
            lines = self._git(
                *("ls-remote", "--exit-code", "--", mirror.url, reference),
                timeout=ASK_SECONDS,
                environ=mirror.environ,
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

    def _described(self, mirror: _Mirror, sha: str, branch: str) -> Commit | None:
        # A commit never changes, and most triggers are for one just seen.
        commit = self._described_before.get((mirror.path, sha))
        if commit is None:
            commit = self._read(mirror.path, sha)
        if commit is None:
            return None
        self._described_before.keep((mirror.path, commit.hash), commit)
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

    def _fetch(self, mirror: _Mirror) -> None:
        fresh = not mirror.path.exists()
        try:
            self._update(mirror)
        except GitFailed:
            if fresh:
                raise
            log.warning("mirror.remade", url=mirror.url, mirror=mirror.path.name)
            shutil.rmtree(mirror.path, ignore_errors=True)
            self._update(mirror)

    def _update(self, mirror: _Mirror) -> None:
        directory, path = f"--git-dir={mirror.path}", mirror.path
        if not path.exists():
            self._git("init", "--quiet", "--bare", str(path), timeout=ASK_SECONDS)
            self._git(
                *(directory, "config", "remote.origin.url", mirror.url),
                timeout=ASK_SECONDS,
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
            environ=mirror.environ,
        )


class _Memory(Generic[K, V]):
    """What was found out lately.  Safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            return self._kept.get(key)

    def keep(self, key: K, value: V) -> None:
        """Remember *value* until so many younger ones have come."""
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = value
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Tip:
    asked_at: float
    commit: str


@dataclass(frozen=True, slots=True)
class _Mirror:
    path: Path
    url: str
    environ: Mapping[str, str]
    """In which git gets at the original."""


@contextmanager
def _taken(lock: threading.Lock) -> Iterator[None]:
    with waiting():
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Another server process may use the same mirror."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with waiting():
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
