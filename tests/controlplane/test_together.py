"""Changes that share a commit: each is whole or refused, and none is lost."""

import threading

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from controlplane.site import database, eventually
from launcher.controlplane.errors import StoreAway, StoreCollided, WorkerRefused
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import open_store
from launcher.wire.messages import ErrorCode


@pytest.fixture
def rung():
    """What was rung, in order."""
    return []


@pytest.fixture
def store(tmp_path, backend, rung):
    """An empty database."""
    opened = open_store(database(tmp_path), rung.append)
    yield opened
    opened.close()


def row(name):
    return {"id": name, "secret_hash": "", "generation": "", "role": "reader"}


def adding(name, *, then=None):
    """A change that stores *name*, and then raises what it is told to."""

    def change(tx):
        tx.connection.execute(sa.insert(t.api_keys).values(row(name)))
        tx.wake(name)
        if then is not None:
            raise then
        return f"{name} is stored"

    return change


def stored(store):
    with store.read() as connection:
        return set(connection.execute(sa.select(t.api_keys.c.id)).scalars())


def held_up(store, changes):
    """Ask for *changes* while another writes, so that they come together."""
    with ThreadPoolExecutor(len(changes)) as pool:
        with store.write():
            asked = [pool.submit(store.together, change) for change in changes]
            if not store.shared:
                eventually(lambda: len(store._wishes) == len(changes))
        return [each.exception() or each.result() for each in asked]


def test_each_gets_its_own_answer(store, rung):
    """Whoever is refused has changed nothing and woken nobody; the others have."""
    refusal = WorkerRefused(ErrorCode.TAKEN, "somebody else was faster")
    changes = [adding("a"), adding("b", then=refusal), adding("c")]
    answers = held_up(store, changes)
    assert answers == ["a is stored", refusal, "c is stored"]
    assert stored(store) == {"a", "c"}
    assert set().union(*rung) == {"a", "c"}


def test_a_refusal_alone(store, rung):
    """The same for one that nobody shares a commit with."""
    refusal = WorkerRefused(ErrorCode.TAKEN, "somebody else was faster")
    with pytest.raises(WorkerRefused, match="faster"):
        store.together(adding("a", then=refusal))
    assert store.together(adding("b")) == "b is stored"
    assert stored(store) == {"b"}
    assert set().union(*rung) == {"b"}


def test_one_that_upsets_the_database_is_alone_with_it(store):
    """What is wrong with one change is not the others' trouble."""
    with store.write() as tx:
        tx.connection.execute(sa.insert(t.api_keys).values(row("known")))
    answers = held_up(store, [adding("a"), adding("known"), adding("b")])
    assert [answers[0], answers[2]] == ["a is stored", "b is stored"]
    assert isinstance(answers[1], sa.exc.IntegrityError | StoreCollided)
    assert stored(store) == {"known", "a", "b"}


def test_more_than_one_commit_takes(store, monkeypatch):
    """However many come at once, each is stored, a few at a time."""
    monkeypatch.setattr("launcher.controlplane.store.database.MOST_TOGETHER", 3)
    names = {f"k{number}" for number in range(10)}
    answers = held_up(store, [adding(name) for name in sorted(names)])
    assert answers == [f"{name} is stored" for name in sorted(names)]
    assert stored(store) == names


def test_waiting_changes_share_a_commit(tmp_path, backend):
    """On SQLite the disk is waited for once; PostgreSQL sees to it by itself."""
    store = open_store(database(tmp_path))
    commits = []
    sa.event.listen(store._engine, "commit", lambda _: commits.append(1))
    try:
        held_up(store, [adding(f"k{number}") for number in range(8)])
    finally:
        store.close()
    # The one that all of them wait for commits, too.
    assert len(commits) == (9 if store.shared else 2)


def test_nobody_is_told_that_it_is_stored_when_it_is_not(store, monkeypatch):
    """A commit that fails has failed for all who share it."""
    fails = threading.Event()

    @sa.event.listens_for(store._engine, "commit")
    def _(_connection):
        if fails.is_set():
            raise sa.exc.OperationalError("COMMIT", {}, Exception("disk I/O error"))

    fails.set()
    with pytest.raises(StoreAway):
        store.together(adding("a"))
    fails.clear()
    assert stored(store) == set()
    assert store.together(adding("a")) == "a is stored"
