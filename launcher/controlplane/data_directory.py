"""Where a control plane keeps what is not in its database."""

from __future__ import annotations

import errno
import fcntl
import os

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from launcher.controlplane.errors import DiskFull
from launcher.controlplane.store.database import sqlite_path
from launcher.errors import ConfigurationError, StoreUnusable


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def data_directory(database_url: str, given: Path | None) -> Path:
    """
    The directory that was *given*, or else the one beside an SQLite database.

    Raises:
        ConfigurationError: nobody said where data goes.
        StoreUnusable: the URL is not one.
    """
    if given is not None:
        return given
    if not is_sqlite(database_url):
        raise ConfigurationError(
            "key 'data_directory' is needed when the database is not SQLite"
        )
    path = sqlite_path(sa.make_url(database_url))
    return path.with_name(path.name + ".data")


def is_sqlite(database_url: str) -> bool:
    """
    Whether the database is a file that one process uses.

    Raises:
        StoreUnusable: the URL is not one.
    """
    try:
        return sa.make_url(database_url).get_backend_name() == "sqlite"
    except sa.exc.ArgumentError as exc:
        raise StoreUnusable("the database's URL cannot be understood") from exc


@contextmanager
def with_room() -> Iterator[None]:
    """
    Do what writes to the data directory.

    Raises:
        DiskFull: nothing more fits in there.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise DiskFull(exc.strerror or "") from exc
        raise


def authority_folder(data: Path) -> Path:
    """Where the certificates and their keys are."""
    return data / "tls"


@contextmanager
def owned(data: Path, *, shared: bool) -> Iterator[None]:
    """
    Keep other control planes out, unless the database is for several.

    On SQLite leases are known to one process only.

    Raises:
        StoreUnusable: another one is in, or the directory cannot be used.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as exc:
        raise StoreUnusable(f"the data directory cannot be used: {exc}") from exc
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise StoreUnusable(f"another control plane uses {data}") from exc
    try:
        yield
    finally:
        os.close(descriptor)
