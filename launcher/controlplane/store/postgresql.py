"""
What PostgreSQL adds: several server processes on one database.

Facts this module is built around:

- A lock of the advisory kind belongs to a session and goes with it.  A process
  that stands still keeps its session, so the database ends one that asks nothing.
- NOTIFY is delivered with a commit, and commits that notify wait for each other.
  So rings are sent after the change that they are about, many at once, and
  without waiting for the disk: they are hints, and who missed one looks again.
- A text may hold any character but NUL, which a worker or a user may well send.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import threading

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import psycopg
import sqlalchemy as sa
import structlog

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection

from launcher.errors import StoreUnusable
from launcher.heartbeat import beat, waiting, watching
from launcher.threads import spawn


log = structlog.get_logger()

Connect = Callable[[], psycopg.Connection]
Ring = Callable[[frozenset[str]], None]

EVERYTHING = frozenset({""})
"""Rings for everybody: nobody knows what was missed."""
_CHANNEL = "spacelift_launcher"
_MOST_TOPICS = 10_000
_LOOK_SECONDS = 0.5
_GATHER_SECONDS = 0.005
_AGAIN_SECONDS = (0.2, 5.0)
_JOIN_SECONDS = 5.0
_SESSION = {
    # Nobody waits for long for what a process that stands still has locked.
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",
    "statement_timeout": "60s",
}
_CONNECTING = {
    "application_name": "spacelift-launcher",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
_ORDERED_BY_BYTES = frozenset({"C", "POSIX", "C.UTF-8", "C.utf8"})


def make_engine(url: sa.URL) -> sa.Engine:
    """An engine for the database at *url*, whose own query settings win."""
    options = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    given = {
        name: value
        for name, value in {**_CONNECTING, "options": options}.items()
        if name not in url.query
    }
    engine = sa.create_engine(
        url,
        connect_args=given,
        pool_size=10,
        max_overflow=50,
        pool_timeout=10,
        hide_parameters=True,
        json_deserializer=msgspec.json.decode,
    )

    @event.listens_for(engine, "checkout")
    def still_there(
        connection: DBAPIConnection, _record: object, _proxy: object
    ) -> None:
        # A database that was restarted costs nobody a request.  It has nothing to
        # say to an idle connection but that this one ends, and a look at the socket
        # costs less than a question.
        if _has_news(connection):
            raise sa.exc.InvalidatePoolError

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def without_nul(
        _connection: sa.Connection,
        _cursor: object,
        statement: str,
        parameters: Any,  # noqa: ANN401 (one set of them, or a list)
        _context: object,
        many: bool,
    ) -> tuple[str, Any]:
        if many:
            return statement, [_clean(each) for each in parameters]
        return statement, _clean(parameters)

    return engine


def _has_news(connection: DBAPIConnection) -> bool:
    """Whether *connection*, which nobody uses, was closed or has something to say."""
    poll = select.poll()
    try:
        poll.register(connection.fileno(), select.POLLIN | select.POLLPRI)
    except psycopg.OperationalError:
        return True
    return bool(poll.poll(0))


def _clean(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    for value in parameters.values():
        if isinstance(value, str) and "\0" in value:
            return {
                name: each.replace("\0", "\N{REPLACEMENT CHARACTER}")
                if isinstance(each, str)
                else each
                for name, each in parameters.items()
            }
    return parameters


def begin_migration(connection: sa.Connection) -> None:
    """
    Take as long as it takes, and alone: another process may be starting, too.

    Raises:
        StoreUnusable: the database orders or encodes text in another way than we.
    """
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    _require_suitable(connection)
    lock_alone(connection, "migration")


def require_nobody_else(engine: sa.Engine) -> None:
    """
    Check that the database is used by nobody but *engine*.

    Raises:
        StoreUnusable: there are other sessions.
    """
    others = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    with engine.connect() as connection:
        count = connection.execute(others).scalar_one()
    if count:
        raise StoreUnusable(
            f"the database is used by others ({count} sessions): stop every server"
        )


def _require_suitable(connection: sa.Connection) -> None:
    found = connection.execute(
        sa.text(
            "SELECT datcollate, pg_encoding_to_char(encoding) AS encoding"
            " FROM pg_database WHERE datname = current_database()"
        )
    ).one()
    if found.datcollate not in _ORDERED_BY_BYTES or found.encoding != "UTF8":
        raise StoreUnusable(
            "the database must be made with ENCODING 'UTF8' LOCALE 'C' TEMPLATE"
            f" template0; this one has {found.encoding} and {found.datcollate}"
        )


def connecting(engine: sa.Engine) -> Connect:
    """Connections of their own, beside the engine's pool."""

    def connect() -> psycopg.Connection:
        arguments, given = engine.dialect.create_connect_args(engine.url)
        return psycopg.connect(
            *arguments,
            **{**_CONNECTING, **given},
            autocommit=True,
        )

    return connect


def lock_alone(connection: sa.Connection, what: str) -> None:
    """Let nobody else do *what* until the transaction ends."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_number(what))))


def _number(what: str) -> int:
    """The advisory lock that stands for *what*."""
    digest = hashlib.sha256(f"spacelift-launcher {what}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class Leadership:
    """
    One process of several does what one has to do.

    Held by asking: whoever has not asked for *seconds* has lost it to whoever
    asks next.  For a moment two may believe that they have it, so what a leader
    does is safe to be done twice.
    """

    def __init__(self, connect: Connect, what: str, seconds: float) -> None:
        self._connect = connect
        self._number = _number(what)
        self._what = what
        self._seconds = seconds
        self._session: psycopg.Connection | None = None

    def held(self) -> bool:
        """Whether this process leads, as it will if nobody else does."""
        try:
            if self._session is not None:
                self._session.execute("SELECT 1")
                return True
            self._session = self._elected()
        except psycopg.Error as exc:
            if self._session is not None:
                log.warning(
                    "leadership.lost", what=self._what, error=type(exc).__name__
                )
            self.close()
            return False
        return self._session is not None

    def _elected(self) -> psycopg.Connection | None:
        session = self._connect()
        try:
            limit = f"{max(int(self._seconds * 1000), 1)}ms"
            session.execute(
                "SELECT set_config('idle_session_timeout', %s, false)", [limit]
            )
            row = session.execute(
                "SELECT pg_try_advisory_lock(%s)", [self._number]
            ).fetchone()
        except BaseException:
            session.close()
            raise
        if row is None or not row[0]:
            session.close()
            return None
        log.info("leadership.taken", what=self._what)
        return session

    def close(self) -> None:
        """Let another process lead."""
        if self._session is not None:
            with contextlib.suppress(psycopg.Error):
                self._session.close()
            self._session = None


class Notices:
    """What processes on one database tell each other."""

    def __init__(self, connect: Connect, hear: Ring) -> None:
        self._connect = connect
        self._hear_of = hear
        self._waiting: set[str] = set()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._own_sessions: set[int] = set()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to hear what others ring, and to let them hear."""
        self._threads = [
            spawn("notices-in", watching("notices-in", self._hear)),
            spawn("notices-out", watching("notices-out", self._tell)),
        ]

    def tell(self, topics: Iterable[str]) -> None:
        """Let the other processes hear soon."""
        if not self._threads:
            return
        with self._changed:
            self._waiting |= frozenset(topics)
            if len(self._waiting) > _MOST_TOPICS:
                self._waiting = set(EVERYTHING)
            self._changed.notify()

    def close(self) -> None:
        self._closing.set()
        with self._changed:
            self._changed.notify()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def _tell(self) -> None:
        def work(session: psycopg.Connection) -> None:
            self._own_sessions.add(session.info.backend_pid)
            session.execute("SET synchronous_commit = off")
            while not self._closing.is_set():
                with waiting(), self._changed:
                    self._changed.wait_for(
                        lambda: self._waiting or self._closing.is_set()
                    )
                # Whoever commits a moment later shares the notice, and its cost.
                self._closing.wait(_GATHER_SECONDS)
                with self._changed:
                    topics, self._waiting = list(self._waiting), set()
                if topics:
                    session.execute(
                        "SELECT pg_notify(%s, topic) FROM unnest(%s::text[]) AS topic",
                        [_CHANNEL, topics],
                    )

        self._keep_at(work)

    def _hear(self) -> None:
        def work(session: psycopg.Connection) -> None:
            session.execute(f"LISTEN {_CHANNEL}")
            # What was rung meanwhile nobody has heard.
            self._hear_of(EVERYTHING)
            while not self._closing.is_set():
                beat()
                heard = {
                    notice.payload
                    for notice in session.notifies(timeout=_LOOK_SECONDS, stop_after=1)
                    if notice.pid not in self._own_sessions
                }
                if heard:
                    self._hear_of(frozenset(heard))

        self._keep_at(work)

    def _keep_at(self, work: Callable[[psycopg.Connection], None]) -> None:
        """Do *work* in one session after the other, as they break."""
        shortest, longest = _AGAIN_SECONDS
        pause = shortest
        while not self._closing.is_set():
            beat()
            try:
                with self._connect() as session:
                    pause = shortest
                    work(session)
            except psycopg.Error as exc:
                log.warning("notices.interrupted", error=type(exc).__name__)
                self._closing.wait(pause)
                pause = min(2 * pause, longest)
