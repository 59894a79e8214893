"""The database: its tables, its file, and what a transaction promises."""

import itertools

from pathlib import Path

import pytest
import sqlalchemy as sa

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from controlplane.site import configuration, database, running, stack
from launcher.controlplane.store import migrations
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import (
    MIGRATIONS,
    downgrade,
    open_engine,
    open_store,
    upgrade,
)
from launcher.errors import StoreUnusable


@pytest.fixture
def store(tmp_path, backend):
    """An empty database."""
    opened = open_store(database(tmp_path))
    yield opened
    opened.close()


def test_the_migrations_make_the_tables(store):
    """What the code believes about the tables is what migrating gives."""
    with store.read() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, t.metadata) == []


def test_a_database_is_migrated_up_and_down(tmp_path, backend):
    """[capability 46] Every revision can be gone back from, and forward again."""
    engine = open_engine(database(tmp_path))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    revisions = [each.revision for each in script.walk_revisions()]
    assert len(script.get_heads()) == 1
    seen = {}
    for revision in reversed(revisions):
        upgrade(engine, revision)
        seen[revision] = described(engine)
    for revision, before in itertools.pairwise(revisions):
        downgrade(engine, before)
        assert described(engine) == seen[before], f"going back from {revision}"
    downgrade(engine, "base")
    assert described(engine).keys() == {"alembic_version"}
    upgrade(engine)
    assert described(engine) == seen[revisions[0]]
    engine.dispose()


def test_each_migration_is_listed_for_those_who_go_back():
    """docs/upgrade.md has every revision, so nobody has to guess one."""
    page = (Path(__file__).parents[2] / "docs" / "upgrade.md").read_text()
    for each in MIGRATIONS.glob("versions/v*.py"):
        assert f"| `{each.name[1:5]}` |" in page, each


def described(engine):
    """Tables with their columns and indexes."""
    found = sa.inspect(engine)
    return {
        table: (
            sorted(column["name"] for column in found.get_columns(table)),
            sorted(index["name"] for index in found.get_indexes(table)),
        )
        for table in found.get_table_names()
    }


def migrated(connection, step, revision):
    config = Config()
    folder = Path(migrations.__file__).parent
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    step(config, revision)


def test_keys_from_before_there_were_roles(store):
    """Whoever could do everything still can, until the file says otherwise."""
    key = {"id": "ci", "secret_hash": "x", "generation": "g", "role": "reader"}
    with store.write() as tx:
        tx.connection.execute(sa.insert(t.api_keys).values(key))
    with store._writer.begin() as connection:
        migrated(connection, command.downgrade, "0005")
        before = connection.exec_driver_sql("SELECT * FROM api_keys").mappings().one()
        assert before == {
            name: key[name] for name in ("id", "secret_hash", "generation")
        }
        migrated(connection, command.upgrade, "head")
    with store.read() as connection:
        assert connection.execute(sa.select(t.api_keys.c.role)).scalar_one() == "admin"


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


ROW = {"id": "a", "secret_hash": "", "generation": "", "role": "reader"}


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
