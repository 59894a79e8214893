"""What is SQLite's own: a file, its mode, and how it is set up."""

import stat

import pytest
import sqlalchemy as sa

from controlplane.site import database
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import open_store
from launcher.errors import StoreUnusable


ROW = {"id": "a", "secret_hash": "", "generation": "", "role": "reader"}


@pytest.fixture
def store(tmp_path):
    """An empty database."""
    opened = open_store(database(tmp_path))
    yield opened
    opened.close()


def test_the_file_is_private(tmp_path, store):
    """Also when it was not before, and so are the files beside it."""
    path = tmp_path / "control-plane.db"
    path.chmod(0o644)
    open_store(database(tmp_path)).close()
    with store.write() as tx:
        tx.connection.execute(sa.insert(t.api_keys).values(ROW))
    for file in tmp_path.glob("control-plane.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


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
