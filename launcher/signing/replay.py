"""
Which run a nonce belongs to, remembered on this machine's disk.

Whoever could write here could make a nonce fresh again, so the file is ours
alone.  What is recorded is on the disk before anybody is told, and two
verifiers at the same time agree about who came first.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat

from pathlib import Path

from launcher.errors import ReplayCacheUnusable


MOST = 100_000
"""Nonces that have not expired.  Only signed ones get in, so this many is a fault."""

_PATIENCE = 3.0
"""Seconds for another verifier to finish; less than a policy waits for us."""

_KEPT = 24 * 60 * 60
"""Seconds for which an expired nonce is kept, should the clock be set back."""

_TABLE = """
    CREATE TABLE IF NOT EXISTS nonces (
        nonce TEXT PRIMARY KEY, run TEXT NOT NULL, expires INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
"""
_INDEX = "CREATE INDEX IF NOT EXISTS by_expiry ON nonces (expires)"


class ReplayCache:
    def __init__(self, path: Path, *, most: int = MOST) -> None:
        self._path = path
        self._most = most

    def claim(self, nonce: str, run: str, *, expires: int, now: float) -> bool:
        """
        Give *nonce* to *run*, unless it is another run's; False if it is.

        Raises:
            ReplayCacheUnusable: nobody can tell.
        """
        try:
            self._prepare()
            with contextlib.closing(self._connect()) as database:
                return self._claim(database, nonce, run, expires, now)
        except sqlite3.Error as exc:
            raise ReplayCacheUnusable(
                f"the replay cache {self._path} cannot be used: {exc}"
            ) from exc
        except OSError as exc:
            raise ReplayCacheUnusable(
                f"the replay cache {self._path} cannot be used: {exc.strerror}"
            ) from exc

    def _prepare(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self._path.parent.stat()
        sticky = folder.st_mode & stat.S_ISVTX
        if folder.st_mode & 0o022 and not sticky:
            raise ReplayCacheUnusable(
                f"others may replace files in {self._path.parent}, and so make the"
                " replay cache forget"
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        if not (stat.S_ISREG(status.st_mode) and private):
            raise ReplayCacheUnusable(
                f"the replay cache {self._path} is not a file of ours alone:"
                f" chmod 600 {self._path}"
            )

    def _connect(self) -> sqlite3.Connection:
        # Without isolation_level, transactions are exactly where we begin them.
        database = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)
        # EXTRA also syncs the directory, so that a commit survives a power cut.
        database.execute("PRAGMA synchronous = EXTRA")
        return database

    def _claim(
        self,
        database: sqlite3.Connection,
        nonce: str,
        run: str,
        expires: int,
        now: float,
    ) -> bool:
        database.execute("BEGIN IMMEDIATE")
        database.execute(_TABLE)
        database.execute(_INDEX)
        database.execute("DELETE FROM nonces WHERE expires <= ?", (int(now) - _KEPT,))
        owner = database.execute(
            "SELECT run FROM nonces WHERE nonce = ?", (nonce,)
        ).fetchone()
        if owner is None:
            (known,) = database.execute("SELECT count(*) FROM nonces").fetchone()
            if known >= self._most:
                raise ReplayCacheUnusable(
                    f"the replay cache {self._path} is full of nonces that have"
                    " not expired"
                )
            database.execute(
                "INSERT INTO nonces VALUES (?, ?, ?)", (nonce, run, expires)
            )
        database.execute("COMMIT")
        return owner is None or owner == (run,)
