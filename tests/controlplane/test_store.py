"""The database: its tables, its file, and what a transaction promises."""

import stat

from pathlib import Path

import pytest
import sqlalchemy as sa

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from controlplane.site import configuration, database, running, stack
from launcher.controlplane.store import migrations
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import open_store
from launcher.errors import StoreUnusable


@pytest.fixture
def store(tmp_path):
    """An empty database."""
    opened = open_store(database(tmp_path))
    yield opened
    opened.close()


def test_the_migrations_make_the_tables(store):
    """What the code believes about the tables is what migrating gives."""
    with store.read() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, t.metadata) == []


def migrated(connection, step, revision):
    config = Config()
    folder = Path(migrations.__file__).parent
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    step(config, revision)


def test_migrations_go_up_and_down(store):
    """What there was before is there after going back, and again after going on."""
    with store.write() as tx:
        tx.connection.execute(
            sa.insert(t.stacks).values(
                slug="s", pool="p", revision=1, created_at=1, locked_by="x"
            )
        )
        tx.connection.execute(sa.insert(t.runs).values(A_RUN))
        tx.connection.execute(
            sa.insert(t.reviews).values(
                id="r",
                run="01RUN",
                author="a",
                approves=True,
                note="",
                state="QUEUED",
                version=1,
                created_at=1,
            )
        )
    inspected = lambda connection: sa.inspect(connection).get_table_names()  # noqa: E731
    with store._writer.begin() as connection:
        migrated(connection, command.downgrade, "0001")
        assert "reviews" not in inspected(connection)
        assert connection.exec_driver_sql("SELECT id FROM runs").scalar_one() == "01RUN"
        migrated(connection, command.upgrade, "head")
        assert (
            compare_metadata(MigrationContext.configure(connection), t.metadata) == []
        )
        (stack_row,) = connection.execute(sa.select(t.stacks)).all()
        assert (stack_row.slug, stack_row.locked_by) == ("s", None)
        (run,) = connection.execute(sa.select(t.runs)).all()
        assert (run.targets, run.flags, run.prioritized) == ([], [], False)
    with store._writer.begin() as connection:
        migrated(connection, command.downgrade, "base")
        assert set(inspected(connection)) <= {"alembic_version", "sqlite_sequence"}


A_RUN = {
    "id": "01RUN",
    "stack": "s",
    "type": "TRACKED",
    "state": "QUEUED",
    "version": 1,
    "created_at": 1,
    "updated_at": 1,
    "triggered_by": "x",
    "requested_sha": "",
    "commit_branch": "main",
    "commit_author": "",
    "commit_message": "",
    "commit_at": 0,
}


def test_the_file_is_private(tmp_path, store):
    """Also when it was not before, and so are the files beside it."""
    path = tmp_path / "control-plane.db"
    path.chmod(0o644)
    open_store(database(tmp_path)).close()
    with store.write() as tx:
        tx.connection.execute(sa.insert(t.api_keys).values(ROW))
    for file in tmp_path.glob("control-plane.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


ROW = {"id": "a", "secret_hash": "", "generation": ""}


def test_sqlite_is_set_up_for_safety(store):
    """A commit survives a power cut, and references are checked."""
    with store.write() as tx:
        pragma = lambda name: tx.connection.exec_driver_sql(  # noqa: E731
            f"PRAGMA {name}"
        ).scalar_one()
        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 2
        assert pragma("foreign_keys") == 1
        assert pragma("busy_timeout") > 1000


def test_a_change_happens_as_a_whole(store):
    """What raises leaves nothing behind, and wakes nobody."""
    rung = []
    store._ring = rung.append
    with pytest.raises(RuntimeError), store.write() as tx:
        tx.connection.execute(sa.insert(t.api_keys).values(ROW))
        tx.wake("x")
        raise RuntimeError
    with store.read() as connection:
        assert connection.execute(sa.select(t.api_keys)).all() == []
    assert rung == []
    with store.write() as tx:
        tx.connection.execute(sa.insert(t.api_keys).values(ROW))
        tx.wake("x")
        assert rung == [], "nobody is woken before the commit"
    assert rung == [frozenset({"x"})]


def test_a_reader_sees_one_state(store):
    """What is committed in the middle of a read is not part of it."""
    count = sa.select(sa.func.count()).select_from(t.api_keys)
    with store.read() as connection:
        assert connection.execute(count).scalar_one() == 0
        with store.write() as tx:
            tx.connection.execute(sa.insert(t.api_keys).values(ROW))
        assert connection.execute(count).scalar_one() == 0


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "nonsense",
        "cobol://x",
        "sqlite:////proc/nowhere/x.db",
    ],
)
def test_an_unusable_database_is_said(url):
    """One error class, with the vendor's words as details only."""
    with pytest.raises(StoreUnusable):
        open_store(url)


def test_what_is_no_database_is_refused(tmp_path):
    """A file of something else is not overwritten."""
    path = tmp_path / "control-plane.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreUnusable):
        open_store(database(tmp_path))
    assert path.read_bytes().startswith(b"not a database")


def test_a_newer_database_is_refused(tmp_path, store):
    """A program that does not know the tables must not touch them."""
    with store.write() as tx:
        tx.connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreUnusable):
        open_store(database(tmp_path))


def test_another_key_file_is_noticed_at_once(tmp_path, repository):
    """And not when the first secret is needed."""
    given = configuration([stack(repository)])
    with running(tmp_path, given):
        pass
    (tmp_path / "control-plane.db.data" / "key").unlink()
    with pytest.raises(StoreUnusable, match="another key"):
        with running(tmp_path, given):
            pass


def test_old_secrets_do_not_pile_up(tmp_path, repository):
    """A stack as it was is forgotten once no active run needs it."""

    def given(value):
        environment = [{"name": "A", "value": value}]
        return configuration([stack(repository, environment=environment)])

    with running(tmp_path, given("1")) as site:
        api, worker = site.api(), site.worker()
        count = lambda: len(rows(site, t.revisions))  # noqa: E731
        api.trigger()
        held = worker.take()
        site.apply(given("1"))
        assert count() == 1
        site.apply(given("2"))
        site.apply(given("3"))
        assert count() == 2, "the run's own and the newest"
        held.settle("failed")
        site.apply(given("3"))
        assert count() == 1


def rows(site, table):
    with site.plane.store.read() as connection:
        return connection.execute(sa.select(table)).all()


def test_it_would_work_on_postgresql():
    """Every table can be made there; nothing is SQLite's own."""
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    for table in t.metadata.sorted_tables:
        assert "CREATE TABLE" in str(
            CreateTable(table).compile(dialect=postgresql.dialect())
        )
