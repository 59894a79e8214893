"""Where a control plane keeps what is not in its database."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from launcher.controlplane.store.database import sqlite_path
from launcher.errors import ConfigurationError, StoreUnusable


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


def authority_folder(data: Path) -> Path:
    """Where the certificates and their keys are."""
    return data / "tls"
