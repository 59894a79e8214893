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
- On PostgreSQL two changes run at once, also of several server processes; whoever
  reads a row in order to change it says ``with_for_update`` (which means nothing
  to SQLite), and every update repeats in its WHERE clause what it believes.  Two
  that collide all the same, on a new row or in a deadlock, are `StoreCollided`:
  `launcher.controlplane.lanes` lets them try again.
- A database may be away for a while: `StoreAway`, which callers are told, and
  which is logged once.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec
import sqlalchemy as sa
import structlog

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection

from launcher.controlplane.errors import StoreAway, StoreCollided
from launcher.controlplane.store import postgresql
from launcher.errors import StoreUnusable


log = structlog.get_logger()

Record = TypeVar("Record")
T = TypeVar("T")
Values = Mapping[str, Any]
"""What the named parameters of a statement stand for."""
Ring = Callable[[frozenset[str]], None]

BUSY_SECONDS = 30
MOST_TOGETHER = 32
"""Changes that share one commit."""
MIGRATIONS = Path(__file__).parent / "migrations"
_AWAY = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.InternalError,  # a server that may only be read from
    sa.exc.TimeoutError,
)
_COLLISIONS = frozenset({"40001", "40P01", "55P03", "23505"})
"""Serialization, deadlock, lock not available, unique: by their SQLSTATE."""


class Transaction:
    """One change of the database, and whom to wake when it has happened."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.topics: set[str] = set()

    def wake(self, topic: str) -> None:
        """Wake who waits for *topic* once the change is committed."""
        self.topics.add(topic)

    def alone(self, what: str) -> None:
        """Wait until nobody else is at *what*, and keep others out till the end."""
        if self.connection.dialect.name == "postgresql":
            postgresql.lock_alone(self.connection, what)

    def change(
        self, statement: sa.Update | sa.Delete, values: Values | None = None
    ) -> int:
        """Execute, and say how many rows were as the statement believed."""
        return self.connection.execute(statement, values).rowcount


class Leadership(Protocol):
    """What one process of several has to do."""

    def held(self) -> bool:
        """Whether this process is the one; it becomes it if nobody is."""

    def close(self) -> None:
        """Let another process be it."""


class _Alone:
    """Nobody else is there who could lead."""

    def held(self) -> bool:
        return True

    def close(self) -> None:
        pass


class _Wish(Generic[T]):
    """A change that somebody waits for, and what became of it."""

    def __init__(self, change: Callable[[Transaction], T]) -> None:
        self.settled = False
        self._change = change
        self._result: T | None = None
        self._refusal: Exception | None = None

    def granted(self, connection: sa.Connection, *, alone: bool) -> set[str]:
        """
        Do it; whom to wake.

        A refusal is kept for whoever asked, and nothing has happened; only if nobody
        else would suffer from it, or must, is it raised.
        """
        self._result = self._refusal = None
        tx = Transaction(connection)
        try:
            with nullcontext() if alone else _savepoint(connection):
                self._result = self._change(tx)
        except Exception as exc:
            if alone or isinstance(exc, sa.exc.SQLAlchemyError | sqlite3.Error):
                raise
            self._refusal = exc
            return set()
        return tx.topics

    def fail(self, error: Exception) -> None:
        self._refusal, self.settled = error, True

    def outcome(self) -> T:
        if self._refusal is not None:
            raise self._refusal
        return cast("T", self._result)


class Store:
    """The database.  Safe to use from several threads."""

    def __init__(
        self, engine: sa.Engine, ring: Ring, hear: Ring = lambda _: None
    ) -> None:
        self.shared = engine.dialect.name == "postgresql"
        """Whether other processes may use it at the same time."""
        self._engine = engine
        self._reader: sa.Engine = engine
        self._writer: sa.Engine = engine
        self._glancer: sa.Engine
        self._ring = ring
        self._writing = threading.Lock()
        self._asking = threading.Lock()
        self._wishes: deque[_Wish[Any]] = deque()
        self._away = False
        self._notices: postgresql.Notices | None = None
        if self.shared:
            self._reader = engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._glancer = engine.execution_options(isolation_level="AUTOCOMMIT")
            self._notices = postgresql.Notices(postgresql.connecting(engine), hear)
        else:
            self._writer = engine.execution_options(writes=True)
            self._glancer = engine.execution_options(glances=True)

    @contextmanager
    def glance(self) -> Iterator[sa.Connection]:
        """
        Ask one question; a second one may see a later state.

        Cheaper than `read`, whose transaction costs more than a look at a row.

        Raises:
            StoreAway: it cannot be reached.
        """
        with self._reachable(), self._glancer.connect() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """
        See one consistent state of the database; keep it short.

        Raises:
            StoreAway: it cannot be reached.
        """
        with (
            self._reachable(),
            self._reader.connect() as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Transaction]:
        """
        Change the database: all of the block or, if it raises, nothing.

        Who waits for one of the transaction's topics is woken afterwards.  Unless
        *durable*, a change may be lost if the machine fails in the next moment.

        Raises:
            StoreAway: it cannot be reached; unknown whether the change happened.
            StoreCollided: with another change; nothing happened.
        """
        with ExitStack() as scope:
            scope.enter_context(self._reachable())
            scope.enter_context(nullcontext() if self.shared else self._writing)
            connection = scope.enter_context(self._writer.connect())
            scope.enter_context(connection.begin())
            if self.shared and not durable:
                connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
            transaction = Transaction(connection)
            yield transaction
        if transaction.topics:
            self._ring(frozenset(transaction.topics))

    def together(self, change: Callable[[Transaction], T]) -> T:
        """
        What *change* returns, once it is stored: all of it or, if it raises, nothing.

        On SQLite those who come while another commits share the next commit, and
        wait for the disk once.  So *change* may be called from any thread, and again.

        Raises:
            StoreAway: the database cannot be reached; unknown whether it happened.
            StoreCollided: with another change; nothing happened.
        """
        if self.shared:  # which does the same by itself
            with self.write() as tx:
                return change(tx)
        mine = _Wish(change)
        with self._asking:
            self._wishes.append(mine)
        while not mine.settled:
            with self._writing:
                if not mine.settled:
                    self._grant(self._first_wishes())
        return mine.outcome()

    def _first_wishes(self) -> list[_Wish[Any]]:
        with self._asking:
            count = min(len(self._wishes), MOST_TOGETHER)
            return [self._wishes.popleft() for _ in range(count)]

    def _grant(self, wishes: list[_Wish[Any]]) -> None:
        """Settle *wishes* in one commit; this thread is the one that writes."""
        try:
            self._commit(wishes)
        except Exception as exc:  # noqa: BLE001 (raised where it was asked for)
            if isinstance(exc, StoreAway) or len(wishes) == 1:
                for wish in wishes:
                    wish.fail(exc)
                return
            # One of them upsets the database: each for itself, to spare the others.
            for wish in wishes:
                self._grant([wish])

    def _commit(self, wishes: list[_Wish[Any]]) -> None:
        with (
            self._reachable(),
            self._writer.connect() as connection,
            connection.begin(),
        ):
            alone = len(wishes) == 1
            granted = [wish.granted(connection, alone=alone) for wish in wishes]
        topics = frozenset().union(*granted)
        for wish in wishes:
            wish.settled = True
        if topics:
            self._ring(topics)

    def tell(self, topics: frozenset[str]) -> None:
        """Let other processes on the same database hear *topics*, if there are any."""
        if self._notices is not None:
            self._notices.tell(topics)

    def listen(self) -> None:
        """Hear from now on what other processes ring."""
        if self._notices is not None:
            self._notices.start()

    def leadership(self, what: str, seconds: float) -> Leadership:
        """Who does *what*: of several processes one that asks every *seconds*."""
        if not self.shared:
            return _Alone()
        return postgresql.Leadership(postgresql.connecting(self._engine), what, seconds)

    def close(self) -> None:
        if self._notices is not None:
            self._notices.close()
        self._engine.dispose()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as exc:
            state = getattr(exc.orig, "sqlstate", None)
            if self.shared and state in _COLLISIONS:
                log.info("database.collided", sqlstate=state)
                raise StoreCollided from exc
            if not isinstance(exc, _AWAY):
                raise
            self._note_away(exc)
            raise StoreAway from exc
        except sa.exc.TimeoutError as exc:
            self._note_away(exc)
            raise StoreAway from exc
        if self._away:
            self._away = False
            log.info("database.back")

    def _note_away(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            cause = getattr(error, "orig", None) or error
            log.error(
                "database.away", error=type(cause).__name__, details=str(cause)[:1000]
            )


def one(
    connection: sa.Connection,
    record: type[Record],
    query: sa.Select[Any],
    values: Values | None = None,
) -> Record | None:
    """The only row of *query*, if there is one."""
    result = connection.execute(query, values)
    row = result.one_or_none()
    return None if row is None else record(**dict(zip(result.keys(), row, strict=True)))


def every(
    connection: sa.Connection,
    record: type[Record],
    query: sa.Select[Any],
    values: Values | None = None,
) -> list[Record]:
    """All rows of *query*."""
    result = connection.execute(query, values)
    names = tuple(result.keys())
    return [record(**dict(zip(names, row, strict=True))) for row in result]


@contextmanager
def _savepoint(connection: sa.Connection) -> Iterator[None]:
    """Undo, if the block raises, what it has done; on SQLite only."""
    # Not SQLAlchemy's: it makes the statements anew each time, which costs more than
    # to execute them.
    execute = connection.connection.driver_connection.execute  # type: ignore[union-attr]
    execute("SAVEPOINT change")
    try:
        yield
    except BaseException:
        execute("ROLLBACK TO change")
        execute("RELEASE change")
        raise
    execute("RELEASE change")


def open_store(
    url: str, ring: Ring = lambda _: None, hear: Ring = lambda _: None
) -> Store:
    """
    Open the database at *url* and bring its tables up to date.

    *ring* is told what each change is about, *hear* what other processes tell.

    Raises:
        StoreUnusable: it cannot be opened, or is newer than this program.
    """
    with ExitStack() as undone:
        try:
            engine = open_engine(url)
            undone.callback(engine.dispose)
            upgrade(engine)
        except StoreUnusable:
            raise
        except Exception as exc:
            raise StoreUnusable(
                "the database cannot be opened", details=f"{type(exc).__name__}: {exc}"
            ) from exc
        undone.pop_all()
    return Store(engine, ring, hear)


def open_engine(url: str) -> sa.Engine:
    """
    What talks to the database at *url*, whatever tables it has.

    Raises:
        StoreUnusable: it is not a database that we can work with.
    """
    parsed = sa.make_url(url)
    match parsed.get_backend_name():
        case "postgresql":
            return postgresql.make_engine(parsed)
        case "sqlite":
            _make_private(sqlite_path(parsed))
            engine = sa.create_engine(
                parsed,
                pool_size=20,
                max_overflow=40,
                hide_parameters=True,
                json_deserializer=msgspec.json.decode,
            )
            _tame(engine)
            return engine
        case other:
            raise StoreUnusable(f"there is no way to work with a database {other!r}")


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
        options = connection.get_execution_options()
        if not options.get("glances", False):
            writes = options.get("writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def revision_of(engine: sa.Engine) -> str | None:
    """The revision that the tables of a database are of; None: it has no tables."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def revisions() -> list[Script]:
    """Every revision that this program knows, the one it works with last."""
    script = ScriptDirectory.from_config(_configured())
    return list(script.walk_revisions())[::-1]


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """
    Bring the tables up to *revision*.

    Raises:
        StoreUnusable: the database is not one that we can work with.
    """
    with _migrating(engine) as config:
        command.upgrade(config, revision)


def downgrade(engine: sa.Engine, revision: str) -> None:
    """Bring the tables down to *revision*, and lose what only later ones hold."""
    with _migrating(engine) as config:
        command.downgrade(config, revision)


def _configured() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


@contextmanager
def _migrating(engine: sa.Engine) -> Iterator[Config]:
    config = _configured()
    with engine.execution_options(writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            postgresql.begin_migration(connection)
        config.attributes["connection"] = connection
        yield config
