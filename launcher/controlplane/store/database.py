"""
Opening the database, and the two ways to use it: read, or change.

Facts this module is built around:

- SQLite has one writer.  A transaction that begins as a reader and then writes
  can fail at once, whatever the busy timeout; so a change begins with
  ``BEGIN IMMEDIATE``, and threads of this process queue for a lock of ours
  instead of polling for SQLite's.
- Python's driver opens transactions by itself, and late.  It is told not to.
- In WAL mode ``synchronous=FULL`` makes a commit survive a power cut; NORMAL
  does not.  What a launcher was told is stored must stay stored: FULL.
- On PostgreSQL two changes run at once; whoever reads a row in order to change
  it says ``with_for_update`` (which means nothing to SQLite), and every update
  repeats in its WHERE clause what it believes.
"""

from __future__ import annotations

import os
import stat
import threading

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection

from launcher.errors import StoreUnusable


Record = TypeVar("Record")
Ring = Callable[[frozenset[str]], None]

BUSY_SECONDS = 30


class Transaction:
    """One change of the database, and whom to wake when it has happened."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.topics: set[str] = set()

    def wake(self, topic: str) -> None:
        """Wake who waits for *topic* once the change is committed."""
        self.topics.add(topic)

    def change(self, statement: sa.Update | sa.Delete) -> int:
        """Execute, and say how many rows were as the statement believed."""
        return self.connection.execute(statement).rowcount


class Store:
    """The database.  Safe to use from several threads."""

    def __init__(self, engine: sa.Engine, ring: Ring) -> None:
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._ring = ring
        self._one_writer = engine.dialect.name == "sqlite"
        self._writing = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """See one consistent state of the database; keep it short."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """
        Change the database: all of the block or, if it raises, nothing.

        Who waits for one of the transaction's topics is woken afterwards.
        """
        turn = self._writing if self._one_writer else nullcontext()
        with turn, self._writer.connect() as connection, connection.begin():
            transaction = Transaction(connection)
            yield transaction
        if transaction.topics:
            self._ring(frozenset(transaction.topics))

    def close(self) -> None:
        self._engine.dispose()


def one(
    connection: sa.Connection, record: type[Record], query: sa.Select[Any]
) -> Record | None:
    """The only row of *query*, if there is one."""
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else record(**row)


def every(
    connection: sa.Connection, record: type[Record], query: sa.Select[Any]
) -> list[Record]:
    """All rows of *query*."""
    return [record(**row) for row in connection.execute(query).mappings()]


def open_store(url: str, ring: Ring = lambda _: None) -> Store:
    """
    Open the database at *url* and bring its tables up to date.

    Raises:
        StoreUnusable: it cannot be opened, or is newer than this program.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            _make_private(sqlite_path(parsed))
        engine = sa.create_engine(
            parsed, pool_size=10, max_overflow=50, hide_parameters=True
        )
        if engine.dialect.name == "sqlite":
            _tame(engine)
        _migrate(engine)
    except StoreUnusable:
        raise
    except Exception as exc:
        raise StoreUnusable(
            "the database cannot be opened", details=f"{type(exc).__name__}: {exc}"
        ) from exc
    return Store(engine, ring)


def sqlite_path(url: sa.URL) -> Path:
    """The file of an SQLite database."""
    if not url.database or url.database == ":memory:":
        raise StoreUnusable("an SQLite database must be a file")
    return Path(url.database).absolute()


def _make_private(path: Path) -> None:
    # SQLite gives its side files the mode of the database file.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)


def _tame(engine: sa.Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _: object) -> None:
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {BUSY_SECONDS * 1000}",
            "page_size = 16384",  # of a new one: logs are long, and take half the time
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: sa.Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.execution_options(writes=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
