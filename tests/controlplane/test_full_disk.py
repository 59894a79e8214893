"""A full disk: runs wait, whoever asks is told, and nothing is lost."""

import contextlib
import gzip
import os

import pytest

from controlplane.site import Process, configuration, eventually, running, stack
from launcher.controlplane import services
from launcher.controlplane.leases import LeaseTerms
from launcher.controlplane.services import Limits
from support.private_engine import small_disk


@pytest.fixture
def disk(tmp_path):
    """A file system of 24 MiB."""
    with small_disk(tmp_path / "disk", "24m") as folder:
        yield folder


@contextlib.contextmanager
def filled(disk):
    """Not a byte is left during the block."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    try:
        yield
    finally:
        ballast.unlink()


def test_a_full_database_loses_nothing(disk, repository):
    """Who writes is told to come again, who reads is served, and what was taken is kept."""
    given = configuration([stack(repository), stack(repository, "second")])
    with contextlib.ExitStack() as scope:
        server = Process(disk, given)
        scope.callback(server.end)
        server.started()
        api, worker = server.api(), server.worker()
        run = api.trigger()
        held = worker.take()
        taken = "before\n"
        held.log(taken.encode())
        with filled(disk):
            # What SQLite has set aside already is used up first.
            for _ in range(100):
                part = os.urandom(150_000).hex() + "\n"
                path = f"{held.path}/log?offset={held.offset}"
                answer = worker.raw("PUT", path, part.encode(), token=held.token)
                if answer.status != 200:
                    break
                held.offset = answer.json()["next_offset"]
                taken += part
            assert (answer.status, answer.json()["code"]) == (503, "unavailable")
            told = api.post('mutation{runTrigger(stack: "second"){id}}')
            # So little may find room; if not, the answer says when to come again.
            said = [each["message"] for each in told.json().get("errors", ())]
            away = "the database cannot be reached now: try again in a moment"
            assert said in ([], [away])
            assert api.state(run) == "PREPARING"
            assert held.post("renew", b"") == {"stop": None}
        held.log(b"after\n")
        held.enter("INITIALIZING")
        assert api.read_log(run, "PREPARING") == f"{taken}after\n"
        held.enter("PLANNING")
        assert held.plan()["next"] == "hand_over"
        held.store(b"workspace")
        held.settle("handed_over")
        api.change("confirm", run)
        worker.take().applied()
        assert api.state(run) == "FINISHED"
        assert api.trigger("second")
        assert server.events("request.crashed") == []
        assert server.process.poll() is None


def test_a_full_data_directory_makes_runs_wait(tmp_path, disk, repository, monkeypatch):
    """No run fails because its commit, its workspace or its code finds no room."""
    monkeypatch.setattr(services, "FORGOTTEN_SECONDS", 0)
    stacks = [stack(repository, local_preview=True)]
    given = configuration(stacks, data_directory=str(disk / "data"))
    limits = Limits(lease_terms=LeaseTerms(sweep_seconds=0.05))
    with running(tmp_path, given, limits) as site:
        api, worker = site.api(), site.worker()
        first = api.trigger()
        held = worker.take()
        held.planned()
        commit = repository.commit()
        upload = api(
            'mutation{uploadLocalWorkspace(stack: "testing-spacelift"){id uploadUrl}}'
        )["uploadLocalWorkspace"]
        archive = gzip.compress(os.urandom(100_000))
        with filled(disk):
            waiting = api.trigger()
            preview = api.trigger(type="PROPOSED")
            path = f"{held.path}/workspace?upload=u&offset=0"
            body = os.urandom(100_000)
            answer = worker.raw("PUT", path, body, token=held.token)
            assert (answer.status, answer.json()["code"]) == (503, "unavailable")
            put = api.http.request("PUT", upload["uploadUrl"], body=archive)
            assert put.status == 503
            assert b"disk is full" in put.data
            # Looked up again and again, and never given up.
            eventually(lambda: len(site.plane.runs.without_commit()) == 2)
            worker.poll(0.5)
            assert {api.state(run) for run in (waiting, preview)} == {"QUEUED"}
        held.store(b"workspace")
        held.settle("handed_over")
        eventually(lambda: api.state(preview) == "READY")
        api.change("discard", first)
        eventually(lambda: api.state(waiting) == "READY")
        assert api.http.request("PUT", upload["uploadUrl"], body=archive).status == 201
        # Previews and deployments alike have the commit that did not fit at first.
        jobs = [worker.take().job for _ in range(2)]
        assert {job["run"]["commit"]["hash"] for job in jobs} == {commit}
