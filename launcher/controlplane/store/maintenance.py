"""Going back to the tables of an earlier version, with no server at work."""

from __future__ import annotations

import re

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from launcher.controlplane.configuration import owns
from launcher.controlplane.data_directory import data_directory, is_sqlite, owned
from launcher.controlplane.keys import load_keyring
from launcher.controlplane.store import postgresql
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import (
    downgrade,
    open_engine,
    revision_of,
    revisions,
    sqlite_path,
)
from launcher.errors import ConfigurationError, StoreUnusable


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A revision that is to be undone."""

    revision: str
    brought: str
    """What came with it, and goes with it."""


def version(database_url: str) -> tuple[str | None, str]:
    """
    The revision of the database, None for one without tables, and the program's own.

    Raises:
        StoreUnusable: the database cannot be read.
    """
    with _opened(database_url) as engine:
        return revision_of(engine), revisions()[-1].revision


def steps_down(database_url: str, to: str) -> list[Step]:
    """
    What going back to the revision *to* undoes, the newest first.

    Raises:
        ConfigurationError: the database cannot go back to that.
        StoreUnusable: it cannot be read, or is newer than this program.
    """
    wanted = re.sub("^v", "", to)
    known = [each.revision for each in revisions()]
    with _opened(database_url) as engine:
        found = revision_of(engine)
    if found is None:
        raise ConfigurationError("the database has no tables yet")
    if found not in known:
        raise StoreUnusable(
            f"the database is of revision {found}, which only a newer program knows:"
            " go back with that one"
        )
    if wanted not in known[: known.index(found)]:
        earlier = ", ".join(known[: known.index(found)]) or "none"
        raise ConfigurationError(
            f"the database is of revision {found}; {to[:40]!r} is not one before it"
            f" ({earlier})"
        )
    undone = revisions()[known.index(wanted) + 1 : known.index(found) + 1]
    return [
        Step(revision=each.revision, brought=(each.doc or "").splitlines()[0])
        for each in reversed(undone)
    ]


def go_back(database_url: str, data: Path | None, to: str) -> None:
    """
    Bring the tables down to the revision *to*; what only later ones hold is lost.

    Raises:
        ConfigurationError: the database cannot go back to that.
        StoreUnusable: a server is at work, or the database cannot be changed.
    """
    steps_down(database_url, to)
    # A server would find its tables gone.
    alone = (
        owned(_own_data(database_url, data), shared=False)
        if is_sqlite(database_url)
        else nullcontext()
    )
    with alone, _opened(database_url) as engine:
        if not is_sqlite(database_url):
            postgresql.require_nobody_else(engine)
        downgrade(engine, re.sub("^v", "", to))


def _own_data(database_url: str, data: Path | None) -> Path:
    """
    The data directory of the database, which keeps other processes out.

    Raises:
        ConfigurationError: this one is another's, or nobody's.
    """
    folder = data_directory(database_url, data)
    with _opened(database_url) as engine, engine.connect() as connection:
        mark = connection.execute(sa.select(t.installation.c.key_mark)).scalar()
    if mark is None:  # no server has come far enough to have data
        return folder
    key = folder / "key"
    # An existing one: looking must not make a folder that is then locked.
    if not key.exists() or not owns(load_keyring(key), mark):
        raise ConfigurationError(
            f"{folder} is not the data directory of this database; name the one"
            " in the configuration with --data-directory"
        )
    return folder


@contextmanager
def _opened(database_url: str) -> Iterator[sa.Engine]:
    if is_sqlite(database_url):
        path = sqlite_path(sa.make_url(database_url))
        if not path.exists():
            raise StoreUnusable(f"there is no database {path}")
    engine = open_engine(database_url)
    try:
        yield engine
    except sa.exc.SQLAlchemyError as exc:
        raise StoreUnusable(
            "the database cannot be used", details=f"{type(exc).__name__}: {exc}"
        ) from exc
    finally:
        engine.dispose()
