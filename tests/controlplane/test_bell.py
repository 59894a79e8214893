"""Who is woken by what."""

import asyncio

from contextlib import ExitStack
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from controlplane.site import eventually
from launcher.controlplane import bell
from launcher.controlplane.bell import EVERYTHING, Bell
from launcher.controlplane.errors import StoreAway
from launcher.wire.messages import PREFIX, VERSION_HEADER


def woken(*rings, ranks=("a", "c", "b", "")):
    """The ranks of those that heard *rings*; all of them wait for jobs of one pool."""

    async def listen():
        hung_up = Bell()
        hung_up.hang_up()
        topics = bell.of_work("p"), bell.of_pool("p")
        scopes = [hung_up.listening(*topics, rank=rank) for rank in ranks]
        ears = [scope.__enter__() for scope in scopes]
        hung_up.ring(rings)
        await asyncio.sleep(0)
        found = [each.rank for each in ears if each.rung.is_set()]
        for scope in scopes:
            scope.__exit__(None, None, None)
        assert not hung_up._listeners
        return found

    return asyncio.run(listen())


@pytest.mark.parametrize(
    ("ring", "heard_by"),
    [
        (bell.of_work("p"), ["c"]),
        (bell.of_pool("p"), ["a", "c", "b", ""]),
        (bell.of_work("other"), []),
        (EVERYTHING, ["a", "c", "b", ""]),
    ],
)
def test_who_hears_a_ring(ring, heard_by):
    """A job wakes one, the first in rank; what concerns all wakes all."""
    assert woken(ring) == heard_by


def test_nobody_of_rank():
    """Those without a rank are not given work, and that is fine."""
    assert woken(bell.of_work("p"), ranks=("", "")) == []


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        (("a", ""), [{bell.of_pool("p"), bell.of_run("r")}]),
        (("",), [{bell.of_pool("p"), bell.of_run("r")}, {bell.of_work("p")}]),
        ((), [{bell.of_pool("p"), bell.of_run("r")}, {bell.of_work("p")}]),
    ],
)
def test_other_servers_are_told_of_work_that_nobody_here_hears_of(ranks, told):
    """They are told all that concerns many; and of a job unless somebody here was woken."""
    said = []

    async def ring():
        hung_up = Bell()
        hung_up.elsewhere = said.append
        hung_up.hang_up()
        with ExitStack() as scope:
            for rank in ranks:
                scope.enter_context(hung_up.listening(bell.of_work("p"), rank=rank))
            hung_up.ring([bell.of_work("p"), bell.of_pool("p"), bell.of_run("r")])
            await asyncio.sleep(0)
            # What others tell is not told them again: it would go round for ever.
            hung_up.hear([bell.of_work("p"), bell.of_run("r")])
            await asyncio.sleep(0)

    asyncio.run(ring())
    assert said == told


def test_other_servers_are_told_where_nobody_listens_yet():
    """Before a server's loop runs, and after it has ended, jobs are for others."""
    said = []
    silent = Bell()
    silent.elsewhere = said.append
    silent.ring([bell.of_work("p")])
    asyncio.run(hang_up(silent))
    silent.ring([bell.of_work("p")])
    assert said == [{bell.of_work("p")}] * 2


async def hang_up(silent):
    silent.hang_up()


@pytest.fixture
def patient(monkeypatch):
    """Who waits is woken, or sleeps: nobody looks again in between."""
    monkeypatch.setattr("launcher.controlplane.worker_api.LOOK_AGAIN_SECONDS", 600)


def superseded(site):
    """Whether a poll has been told that it ends."""
    heard = site.plane.bell._listeners.get(bell.of_pool(site.pool), ())
    return any(listener.rung.is_set() for listener in heard)


def waiting(site, count):
    topic = bell.of_pool(site.pool)
    eventually(lambda: site.plane.bell.listening_to(topic) == count)


def test_as_many_are_woken_as_there_are_jobs(site, api, patient):
    """Each job finds a worker, whoever was woken for it, and the others sleep on."""
    workers = [site.worker(slot=slot) for slot in range(6)]
    with ThreadPoolExecutor(6) as pool:
        polls = [pool.submit(worker.poll, 20) for worker in workers]
        waiting(site, 6)
        runs = {api.trigger(type="PROPOSED") for _ in range(4)}
        # Those that registered last are served first.
        assert {poll.result()["run"] for poll in polls[2:]} == runs
        assert not any(poll.done() for poll in polls[:2])
        runs = {api.trigger(type="PROPOSED") for _ in range(2)}
        assert {poll.result()["run"] for poll in polls[:2]} == runs


def test_a_drained_worker_lets_others_hear(site, api, spacectl, patient):
    """The newest takes no part, so the next one is woken; later it takes part again."""
    old, new = site.worker(), site.worker(slot=1)
    drain = {"workerPool": site.pool, "worker": new.id}
    with ThreadPoolExecutor(2) as pool:
        polls = [pool.submit(worker.poll, 20) for worker in (old, new)]
        waiting(site, 2)
        spacectl("M.workerDrainSet", **drain, drain=True)
        run = api.trigger(type="PROPOSED")
        assert polls[0].result()["run"] == run
        spacectl("M.workerDrainSet", **drain, drain=False)
        run = api.trigger(type="PROPOSED")
        assert polls[1].result()["run"] == run


def test_a_poll_that_ends_passes_on_what_it_was_woken_for(
    site, api, worker, patient, monkeypatch
):
    """It was replaced by a newer one while it looked, and that one gets the job."""
    look, topic, newer = site.plane.claims.poll, bell.of_pool(site.pool), []

    def poll(pool, name, standing):
        found = look(pool, name, standing)
        if found.polled.offer is not None and not newer:
            newer.append(executor.submit(worker.poll, 20))
            waiting(site, 2)
        return found

    with ThreadPoolExecutor(2) as executor:
        older = executor.submit(worker.poll, 20)
        waiting(site, 1)
        monkeypatch.setattr(site.plane.claims, "poll", poll)
        run = api.trigger(type="PROPOSED")
        assert older.result() is None
        assert newer[0].result()["run"] == run
    assert site.plane.bell.listening_to(topic) == 0


def test_a_poll_whose_client_has_gone_keeps_no_job(
    site, api, worker, patient, monkeypatch
):
    """Whoever hangs up while it is looked what there is for it leaves it to the next one."""
    run = api.trigger(type="PROPOSED")
    eventually(lambda: api.state(run) == "READY")
    gone, topic = site.worker(slot=1), bell.of_pool(site.pool)
    look, looking, hung_up = site.plane.claims.poll, Event(), Event()

    def poll(pool, name, standing):
        if name == gone.id:
            looking.set()
            assert hung_up.wait(20)
        return look(pool, name, standing)

    monkeypatch.setattr(site.plane.claims, "poll", poll)
    with site.connected() as connection:
        body = b'{"wait_seconds": 30}'
        path = f"{PREFIX}/workers/{gone.id}/poll"
        lines = f"Host: x\r\n{VERSION_HEADER}: 1\r\nContent-Length: {len(body)}"
        connection.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n\r\n".encode() + body)
        assert looking.wait(20)
    eventually(lambda: superseded(site))
    hung_up.set()
    eventually(lambda: site.plane.bell.listening_to(topic) == 0)
    assert worker.poll(2)["run"] == run


def test_who_has_not_proven_itself_holds_up_nobody(site, worker, monkeypatch):
    """A name that nobody has registered does not count among those that wait."""
    arrive, counted = site.plane.pools.arrive, []

    def arriving(certificate, name):
        counted.append((name, dict(site.plane.claims._idle)))
        return arrive(certificate, name)

    monkeypatch.setattr(site.plane.pools, "arrive", arriving)
    path = "/workers/~zz/poll"
    for _ in range(2):
        refused = worker.raw("POST", path, {"wait_seconds": 0})
        assert refused.status == 404
    assert worker.poll(0) is None
    assert worker.poll(0) is None
    # The known one is believed from its second poll on, until it is refused.
    assert [(name, bool(idle)) for name, idle in counted] == [
        ("~zz", False),
        ("~zz", False),
        (worker.id, False),
        (worker.id, True),
        (worker.id, True),
    ]


def test_a_look_that_fails_passes_on_what_it_was_woken_for(
    site, api, patient, monkeypatch
):
    """The database was away for one of those that wait; another one has the job."""
    old, new = site.worker(), site.worker(slot=1)
    look = site.plane.claims.poll

    def poll(pool, name, standing):
        if name == new.id:
            raise StoreAway
        return look(pool, name, standing)

    with ThreadPoolExecutor(2) as executor:
        waits = executor.submit(old.poll, 20)
        waiting(site, 1)
        path = f"/workers/{new.id}/poll"
        fails = executor.submit(new.raw, "POST", path, {"wait_seconds": 20})
        waiting(site, 2)
        monkeypatch.setattr(site.plane.claims, "poll", poll)
        run = api.trigger(type="PROPOSED")
        assert fails.result().status == 503
        assert waits.result()["run"] == run
