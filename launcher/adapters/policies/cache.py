"""
What was made of policies, kept by what it was made from.

Whoever can put a file here decides about every run, and with machine code does what
he likes.  So directory and files belong to us, nobody else may write them, and the name
of a file holds a MAC of its content, of what it was made from and by what.  The key for
it lies in no file beside them: a directory that was brought here from elsewhere, or a
file that we were brought to write, is not believed.  What is not so is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat

from collections.abc import Iterator
from pathlib import Path

import structlog


log = structlog.get_logger()

_KEPT = 16
_LARGEST = 64 << 20
"""Bytes of an entry; a policy's code has less than one MiB."""


class PolicyCache:
    """
    A directory of entries that end in *suffix*, of which so many are *kept*.

    Only who knows *secret* can make an entry that is used.
    """

    def __init__(
        self,
        directory: Path,
        secret: bytes,
        *,
        suffix: str = "wasm",
        kept: int = _KEPT,
    ) -> None:
        self._directory = directory
        self._key = hmac.digest(secret, suffix.encode(), "sha256")
        self._suffix = suffix
        self._kept = kept

    def get(self, key: str, tool: str = "*") -> bytes | None:
        """What was made of *key* by *tool*, or by any tool, the newest first."""
        for path in self._newest_first(f"{key}.{tool}.*.{self._suffix}"):
            content = _read(path)
            if content is not None and self._made_here(path, key, content):
                return content
            log.warning(
                "policy_cache.entry_ignored",
                path=str(path),
                consequence="it is made anew",
            )
        return None

    def put(self, key: str, tool: str, content: bytes) -> None:
        """Keep *content*; failing to is no reason not to start."""
        mac = self._mac(key, tool, content)
        path = self._directory / f"{key}.{tool}.{mac}.{self._suffix}"
        temporary = path.with_suffix(".tmp")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            for old in list(self._newest_first(f"*.{self._suffix}"))[self._kept :]:
                old.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("policy_cache.not_written", error=str(exc))
            # What a full disk has taken of it would stay there for ever.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _made_here(self, path: Path, key: str, content: bytes) -> bool:
        _, tool, claimed, *_ = path.name.split(".")
        mac = self._mac(key, tool, content)
        return hmac.compare_digest(os.fsencode(claimed), mac.encode())

    def _mac(self, key: str, tool: str, content: bytes) -> str:
        # Hashed: where it ends and the content begins must not be for a name to say.
        label = hashlib.sha256(os.fsencode(f"{key}\n{tool}")).digest()
        return hmac.digest(self._key, label + content, "sha256").hex()

    def _newest_first(self, pattern: str) -> Iterator[Path]:
        try:
            status = self._directory.lstat()
        except OSError:
            return iter(())
        if not (stat.S_ISDIR(status.st_mode) and _ours(status)):
            log.warning("policy_cache.not_ours", path=str(self._directory))
            return iter(())
        return iter(sorted(self._directory.glob(pattern), key=_age))


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return -path.lstat().st_mtime
    return 0


def _ours(status: os.stat_result) -> bool:
    """True for what belongs to us and nobody else can write."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _read(path: Path) -> bytes | None:
    """What is in *path*, unless somebody else could have written there."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            if not (stat.S_ISREG(status.st_mode) and _ours(status)):
                return None
            return file.read(_LARGEST)
    except OSError:
        return None
