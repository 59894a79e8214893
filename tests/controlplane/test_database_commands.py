"""Going back to an earlier version: the commands for the control plane's database."""

import pytest
import sqlalchemy as sa

from click.testing import CliRunner

from controlplane.site import configuration, data_of, database, running, stack
from launcher.commands.database import database as group
from launcher.controlplane.store.database import open_engine, revision_of, revisions


NEWEST = revisions()[-1].revision


def call(*arguments, answer=None):
    """Exit code and output of a command."""
    done = CliRunner().invoke(group, arguments, input=answer)
    return done.exit_code, done.output


def at_revision(folder):
    engine = open_engine(database(folder))
    try:
        return revision_of(engine)
    finally:
        engine.dispose()


@pytest.fixture
def used(tmp_path, repository):
    """The database of a server that has had a run, and has ended."""
    with running(tmp_path, configuration([stack(repository)])) as site:
        site.api().trigger()
    return tmp_path


@pytest.fixture
def at(used):
    return ("--database", database(used), "--data-directory", str(data_of(used)))


def test_a_database_goes_back_and_forward_again(used, at, repository):
    """[capability 46] What was there before stays; a server brings it up to date again."""
    assert call("version", *at[:2]) == (
        0,
        f"{NEWEST}, and this program needs {NEWEST}\n",
    )
    code, output = call("downgrade", "--to", "v0002", "--yes", *at)
    assert code == 0, output
    undone = [line[2:6] for line in output.splitlines() if line.startswith("- ")]
    expected = [each.revision for each in revisions() if each.revision > "0002"]
    assert undone == expected[::-1]
    assert call("version", *at[:2]) == (
        1,
        f"0002, and this program needs {NEWEST}\n",
    )
    engine = open_engine(database(used))
    with engine.connect() as connection:
        assert "leases" not in sa.inspect(connection).get_table_names()
        assert connection.exec_driver_sql("SELECT count(*) FROM runs").scalar_one() == 1
    engine.dispose()
    with running(used, configuration([stack(repository)])) as site:
        (found,) = site.api()("{stacks{id blocker{id}}}")["stacks"]
        assert found["id"] == "testing-spacelift"
    assert at_revision(used) == NEWEST


def test_nothing_is_lost_without_asking(used, at):
    """Whoever does not say yes keeps everything."""
    code, output = call("downgrade", "--to", "0003", *at, answer="n\n")
    assert code == 1
    assert "These are undone" in output
    assert at_revision(used) == NEWEST


def test_a_running_server_keeps_its_tables(tmp_path, repository):
    """They would be gone from under it."""
    given = configuration([stack(repository)])
    at = ("--database", database(tmp_path), "--data-directory", str(data_of(tmp_path)))
    with running(tmp_path, given) as site:
        code, output = call("downgrade", "--to", "0003", "--yes", *at)
        assert code == 8
        assert "another control plane uses" in output or "used by others" in output
        assert site.api().trigger()
    assert at_revision(tmp_path) == NEWEST


@pytest.mark.parametrize("elsewhere", [None, "nobody's", "another's"])
def test_only_its_own_data_directory_keeps_others_out(
    used, at, tmp_path_factory, repository, elsewhere
):
    """A folder that no server of this database would lock is refused, and not made."""
    own = data_of(used).rename(used / "moved")
    folder = data_of(used) if elsewhere is None else used / "elsewhere"
    if elsewhere == "another's":
        other = tmp_path_factory.mktemp("other")
        with running(other, configuration([stack(repository)])):
            pass
        folder = data_of(other)
    given = [] if elsewhere is None else ["--data-directory", str(folder)]
    existed = folder.exists()
    code, output = call("downgrade", "--to", "0003", "--yes", *at[:2], *given)
    if database(used).startswith("sqlite"):
        assert code == 2
        assert f"{folder} is not the data directory of this database" in output
        assert folder.exists() == existed
        assert at_revision(used) == NEWEST
    own.rename(data_of(used))


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("9999", "'9999' is not one before it"),
        (NEWEST, "is not one before it"),
        ("base", "is not one before it"),
        ("-1", "is not one before it"),
        ("", "is not one before it"),
    ],
)
def test_only_an_earlier_revision_is_gone_back_to(used, at, to, sentence):
    """With a sentence that lists the ones there are, and exit code 2."""
    code, output = call("downgrade", f"--to={to}", "--yes", *at)
    assert code == 2
    assert sentence in output
    assert "0001, 0002" in output
    assert at_revision(used) == NEWEST


def test_a_database_of_a_newer_program_is_left_alone(used, at):
    """Only that program knows how to undo what it has done."""
    engine = open_engine(database(used))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    code, output = call("downgrade", "--to", "0003", "--yes", *at)
    assert (code, at_revision(used)) == (8, "9999")
    assert "only a newer program knows" in output


def test_no_database_is_made_by_asking(tmp_path):
    """A typo in the URL is an error, and no empty database."""
    url = f"sqlite:///{tmp_path / 'typo.db'}"
    assert call("version", "--database", url)[0] == 8
    assert call("downgrade", "--to", "0001", "--yes", "--database", url)[0] == 8
    assert list(tmp_path.iterdir()) == []
