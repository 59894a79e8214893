"""Several server processes on one PostgreSQL database, and the database's own fate."""

import contextlib
import signal
import threading
import time

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from controlplane.site import (
    Api,
    Backend,
    Held,
    Process,
    Worker,
    configuration,
    database,
    eventually,
    stack,
)
from launcher.controlplane.errors import StoreAway, StoreCollided
from launcher.controlplane.lanes import attempted
from launcher.controlplane.leases import LeaseTerms
from launcher.controlplane.shared import SharedLeases, UsedSignatures
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import open_store
from launcher.errors import StoreUnusable
from launcher.wire.jobs import RunState, RunType
from support.postgres import Postgres


ENDPOINT = "https://cp.example.com"


@pytest.fixture(scope="module")
def durable(backend):
    """A PostgreSQL server of this module's own, which may be stopped and started."""
    with Postgres(durable=True) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backend, "postgres", server)
        yield server


@contextlib.contextmanager
def two_servers(folder, repository):
    """Two servers on one database and one data directory; the first one leads."""
    given = configuration([stack(repository)], endpoint=ENDPOINT)
    with contextlib.ExitStack() as scope:
        started = []
        for _ in range(2):
            process = Process(folder, given)
            scope.callback(process.end)
            started.append(process.started())
            eventually(lambda: started[0].events("leadership.taken"))
        yield started


@pytest.fixture(scope="module")
def two(tmp_path_factory, repository, durable):
    """Two servers, for tests that leave no run behind that is not over."""
    with two_servers(tmp_path_factory.mktemp("two"), repository) as started:
        yield started


@pytest.fixture
def store(tmp_path, durable):
    """A database that no server uses."""
    opened = open_store(database(tmp_path))
    yield opened
    opened.close()


def api_of(server):
    """A client of one of the servers."""
    local = server.events("server.listening")[0]
    return Api(f"http://{local['host']}:{local['port']}", server.http).sign_in()


def moved(worker, server):
    """The same worker, as a load balancer sends it to another server."""
    http = server.connections()
    return Worker(server.workers, http, worker.key, worker.instance, id=worker.id)


def test_a_run_goes_through_two_servers(two):
    """[capability 46] Each request of a job may reach another server."""
    first, second = two
    api = api_of(first)
    workers = [first.worker()]
    workers.append(moved(workers[0], second))
    run = api.trigger()
    here = workers[0].take()
    there = Held(workers[1], here.claimed)
    here.log(b"one\n")
    there.offset = here.offset
    there.log(b"two\n")
    there.enter("INITIALIZING")
    here.offset = there.offset
    here.enter("PLANNING")
    assert there.plan()["next"] == "hand_over"
    here.part(b"first,")
    there.part(b"second", offset=6)
    assert here.part(b"", offset=0) == {"next_offset": 12}
    there.store_rest(b"first,second")
    here.settle("handed_over")
    api_of(second).change("confirm", run)
    applying = workers[1].take()
    path = f"{applying.path}/workspace"
    found = workers[0].raw("GET", path, token=applying.token)
    assert found.data == b"first,second"
    applying.applied()
    assert api.states(run)[-1] == "FINISHED"
    assert api.read_log(run, "PREPARING") == "one\ntwo\n"


def test_a_wait_at_one_server_hears_of_the_other(two):
    """A poll and a reader of a log are woken by what happens elsewhere, at once."""
    first, second = two
    worker, api = first.worker(), api_of(second)
    offers = []
    waiting = threading.Thread(target=lambda: offers.append(worker.poll(20)))
    waiting.start()
    run = api.trigger()
    waiting.join()
    assert offers[0]["run"] == run
    held = Held(worker, worker.claim(offers[0]["job"]))
    entry = next(e for e in api.history(run) if e["state"] == "PREPARING")
    pages = []
    reader = threading.Thread(target=lambda: pages.append(api.log_page(run, entry)))
    reader.start()
    held.log(b"hello\n")
    reader.join()
    assert pages[0]["messages"] == [{"message": "hello\n"}]
    held.settle("failed")


def test_a_job_is_claimed_at_one_server_only(two):
    """Whichever server they ask, one worker has the job and the others know."""
    first, second = two
    api = api_of(first)
    workers = [first.worker(), *(second.worker(slot=slot) for slot in (1, 2, 3))]
    for _ in range(5):
        run = api.trigger()
        job = workers[0].poll(10)["job"]
        barrier = threading.Barrier(len(workers))

        def claim(worker, job=job, barrier=barrier):
            body = {"worker": worker.id, "claim": f"by-{worker.slot}"}
            barrier.wait()
            answer = worker.raw("POST", f"/jobs/{job}/claim", body)
            return answer.status, answer.json(), worker

        with ThreadPoolExecutor(len(workers)) as pool:
            answers = list(pool.map(claim, workers))
        assert Counter(status for status, *_ in answers) == {200: 1, 409: 3}
        claimed, winner = next((a, w) for status, a, w in answers if status == 200)
        settled = {"verdict": "failed", "log_length": 0}
        winner("POST", f"/jobs/{job}/settle", settled, token=claimed["token"])
        assert api.state(run) == "FAILED"


def test_the_same_bytes_at_two_servers_are_stored_once(two):
    """A log is written by offset, whoever takes it."""
    first, second = two
    api = api_of(first)
    worker = first.worker()
    run = api.trigger()
    held = worker.take()
    data, path = b"x" * 200_000, f"{held.path}/log?offset=0"
    workers = [worker, moved(worker, second)] * 3
    with ThreadPoolExecutor(6) as pool:
        ends = pool.map(lambda w: w("PUT", path, data, token=held.token), workers)
        assert {end["next_offset"] for end in ends} == {len(data)}
    held.offset = len(data)
    held.enter("INITIALIZING")
    assert api.read_log(run, "PREPARING") == data.decode()
    held.settle("failed")


def test_one_server_is_killed_in_mid_run(tmp_path, repository, durable):
    """[capability 46] Its worker goes on at the other, which takes over what one does."""
    with two_servers(tmp_path, repository) as started:
        kill_in_mid_run(*started)


def kill_in_mid_run(first, second):
    worker = first.worker()
    run = api_of(first).trigger()
    held = worker.take()
    held.log(b"before\n")
    first.signal(signal.SIGKILL)
    first.process.wait()
    after = Held(moved(worker, second), held.claimed, held.offset)
    assert after.post("renew", b"") == {"stop": None}
    after.planned(changes=False)
    after.settle("finished")
    api = api_of(second)
    assert api.state(run) == "FINISHED"
    assert api.read_log(run, "PREPARING") == "before\npreparing\n"
    eventually(lambda: second.events("leadership.taken"))
    following = api.trigger()
    assert after.worker.take().run == following


def test_a_run_that_a_dead_server_has_triggered_is_looked_up(two):
    """No run is stuck because the server that took it is gone."""
    _, second = two
    api = api_of(second)
    run = api.trigger()
    eventually(lambda: api.state(run) == "READY")
    # As its server leaves it when it is killed between the two.
    store = open_store(database(second.folder))
    with store.write() as tx:
        (row,) = tx.connection.execute(
            sa.select(t.runs).where(t.runs.c.id == run)
        ).mappings()
        old = {
            **row,
            "id": "01" + run[2:].replace(run[2:10], "00000000", 1),
            "state": RunState.QUEUED,
            "type": RunType.PROPOSED,
            "commit_hash": None,
            "job": None,
        }
        del old["number"]
        tx.connection.execute(sa.insert(t.runs).values(old))
    store.close()
    worker = second.worker()
    taken = [worker.take(), worker.take()]
    assert {held.run for held in taken} == {run, old["id"]}
    for held in taken:
        held.settle("failed")


def test_a_database_that_restarts_costs_nothing(two, durable):
    """While it is away callers are told; afterwards everything goes on."""
    first, second = two
    api, worker = api_of(first), second.worker()
    run = api.trigger()
    held = worker.take()
    held.log(b"before\n")
    durable.stop()
    path = f"{held.path}/log?offset={held.offset}"
    answer = worker.raw("PUT", path, b"meanwhile\n", token=held.token)
    assert (answer.status, answer.json()["code"]) == (503, "unavailable")
    told = api.post("{viewer{id}}")
    assert told.status == 503
    assert "cannot be reached now" in told.json()["errors"][0]["message"]
    durable.start()
    held.log(b"after\n")
    held.planned(changes=False)
    held.settle("finished")
    assert api.state(run) == "FINISHED"
    assert api.read_log(run, "PREPARING") == "before\nafter\npreparing\n"
    for server in (first, second):
        assert server.events("request.crashed") == []
        assert server.events("sweeper.crashed") == []
    # And they hear of each other again.
    offers = []
    waiting = threading.Thread(target=lambda: offers.append(worker.poll(20)))
    waiting.start()
    following = api.trigger()
    waiting.join()
    assert offers[0]["run"] == following
    Held(worker, worker.claim(offers[0]["job"])).settle("failed")


def test_what_was_acknowledged_survives_the_databases_death(two, durable):
    """A log that a launcher was told is stored is stored, whatever is killed."""
    first, _ = two
    api, worker = api_of(first), first.worker()
    run = api.trigger()
    held = worker.take()
    for number in range(20):
        held.log(f"line {number}\n".encode())
    durable.stop(signal.SIGQUIT)
    durable.start()
    held.enter("INITIALIZING")
    lines = "".join(f"line {number}\n" for number in range(20))
    assert api.read_log(run, "PREPARING") == lines
    held.settle("failed")


# --- leases


def claimed_job(store, name="j" * 26):
    """A claimed job in *store*, with what it needs."""
    with store.write() as tx:
        tx.connection.execute(
            sa.insert(t.stacks).values(slug="s", pool="p", revision=0, created_at=0)
        )
        tx.connection.execute(
            sa.insert(t.runs).values(
                id="r" * 26,
                stack="s",
                type=RunType.TRACKED,
                state=RunState.PREPARING,
                version=1,
                created_at=0,
                updated_at=0,
                triggered_by="",
                requested_sha="",
                commit_branch="",
                commit_author="",
                commit_message="",
                commit_at=0,
            )
        )
        tx.connection.execute(
            sa.insert(t.jobs).values(
                id=name,
                run="r" * 26,
                kind=t.JobKind.PLAN,
                state=t.JobState.CLAIMED,
                created_at=0,
                log_length=0,
                image_digest="",
            )
        )
    return name


def watching(store):
    """Leases as a process keeps them, and the clock of that process."""
    at = [1000.0]
    return SharedLeases(store, LeaseTerms(), clock=lambda: at[0]), at


def passing(leases, at, seconds):
    """Let time pass while somebody watches; return what is overdue in the end."""
    overdue = []
    for _ in range(int(seconds // 5)):
        at[0] += 5
        overdue = leases.overdue()
    return overdue


def test_a_lease_is_renewed_at_any_server(store):
    """Whoever watches sees renewals that others have taken."""
    job = claimed_job(store)
    (here, at), (there, _) = watching(store), watching(store)
    assert passing(here, at, 90) == []
    there.renew(job)
    assert passing(here, at, 90) == []
    assert [one.job for one in passing(here, at, 10)] == [job]
    assert here.still_overdue(job)
    there.renew(job)
    assert not here.still_overdue(job)
    assert passing(here, at, 5) == []


def test_time_that_nobody_watched_counts_for_nobody(store, durable):
    """While the database or the server was away nobody could renew."""
    job = claimed_job(store)
    leases, at = watching(store)
    passing(leases, at, 80)
    durable.stop()
    with pytest.raises(StoreAway):
        passing(leases, at, 5)
    at[0] += 3600
    durable.start()
    assert leases.overdue() == []
    assert [one.job for one in passing(leases, at, 20)] == [job]


def test_who_takes_over_begins_anew(store):
    """A new leader gives every lease a new period, as a restart does."""
    claimed_job(store)
    leases, at = watching(store)
    assert passing(leases, at, 100)
    leases.look_away()
    assert leases.overdue() == []
    assert passing(leases, at, 90) == []


def test_counts_of_jobs_that_are_over_are_forgotten(store):
    """A renewal that came too late leaves nothing for good."""
    job = claimed_job(store)
    leases, _ = watching(store)
    leases.renew(job)
    leases.renew("x" * 26)
    leases.forget()
    with store.read() as connection:
        assert connection.execute(sa.select(t.leases.c.job)).scalars().all() == [job]


# --- who leads, and what is shared


def test_one_leads_until_it_is_gone(store):
    """The lead goes over when the leader leaves, and not before."""
    one, other = (store.leadership("testing", 60) for _ in range(2))
    assert one.held()
    assert not other.held()
    assert one.held()
    one.close()
    assert other.held()
    other.close()


def test_who_stands_still_does_not_lead(store):
    """A process that asks nothing for a while loses the lead."""
    one, other = (store.leadership("testing", 0.2) for _ in range(2))
    assert one.held()
    eventually(other.held, "the lead of one that stands still should have ended")
    assert not one.held()
    other.close()


def test_a_signed_request_is_accepted_by_one_server(store, tmp_path):
    """What one has accepted the other knows, and both forget it in time."""
    one, other = UsedSignatures(store), UsedSignatures(store)
    soon = time.time() + 60
    assert one.first(b"m" * 32, soon)
    assert not other.first(b"m" * 32, soon)
    assert other.first(b"n" * 32, time.time() - 60)
    one.forget()
    with store.read() as connection:
        marks = connection.execute(sa.select(t.used_signatures.c.mark)).scalars().all()
    assert [bytes(mark) for mark in marks] == [b"m" * 32]


def test_changes_that_collide_may_be_tried_again(store):
    """A deadlock or a row that is there already is not a failure of the server."""
    row = {"id": "a", "secret_hash": "", "generation": "", "role": "reader"}
    with store.write() as tx:
        tx.connection.execute(sa.insert(t.api_keys).values(row))
    with pytest.raises(StoreCollided), store.write() as tx:
        tx.connection.execute(sa.insert(t.api_keys).values(row))


def test_what_collides_is_tried_again(store):
    """Callers see nothing of it, unless it never ends."""
    row = {"id": "b", "secret_hash": "", "generation": "", "role": "reader"}
    tried = []

    def insert(times):
        tried.append(times)
        with store.write() as tx:
            tx.connection.execute(sa.insert(t.api_keys).values(row))
            if len(tried) <= times:
                tx.connection.execute(sa.insert(t.api_keys).values(row))

    attempted(lambda: insert(2))
    assert len(tried) == 3
    with pytest.raises(StoreCollided):
        attempted(lambda: insert(100))


def test_hostile_text_is_just_text(store):
    """NUL, which PostgreSQL has no place for, becomes the replacement character."""
    row = {
        "id": "a\0b",
        "secret_hash": "\x1b[2J'; DROP",
        "generation": "",
        "role": "reader",
    }
    with store.write() as tx:
        tx.connection.execute(sa.insert(t.api_keys).values(row))
    with store.read() as connection:
        found = connection.execute(sa.select(t.api_keys)).one()
    assert found.id == "a\N{REPLACEMENT CHARACTER}b"
    assert found.secret_hash == row["secret_hash"]


def test_a_database_with_another_order_is_refused(durable):
    """Text that is sorted by a language would make pages of lists skip entries."""
    durable.execute(
        "CREATE DATABASE elsewhere TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'"
    )
    url = durable.url("x")
    other = "elsewhere".join((url[: url.index("@/") + 2], url[url.index("?") :]))
    with pytest.raises(StoreUnusable, match="UTF8"):
        open_store(other)


def test_two_processes_may_start_at_once(tmp_path, durable):
    """One of them makes the tables."""
    with ThreadPoolExecutor(4) as pool:
        url = database(tmp_path)
        for opened in pool.map(lambda _: open_store(url), range(4)):
            opened.close()


def test_a_password_is_in_no_message(durable):
    """What goes wrong with a database is said without its password."""
    url = "postgresql+psycopg://someone:hunter2@/nowhere?host=/nowhere"
    with pytest.raises(StoreUnusable) as caught:
        open_store(url)
    assert "hunter2" not in f"{caught.value} {caught.value.details}"
