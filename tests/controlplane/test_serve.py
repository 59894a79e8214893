"""The server as a process: its start, its signals, its end, and its memory."""

import contextlib
import hashlib
import json
import resource
import signal
import socket
import threading
import time

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
import urllib3

from controlplane.site import (
    Held,
    Worker,
    configuration,
    database,
    eventually,
    running,
    stack,
)
from launcher.controlplane.serve import bound, serve
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import open_store
from launcher.errors import AddressUnavailable, ConfigurationError, StoreUnusable


def test_nothing_is_lost_by_a_restart(tmp_path, repository, start_process):
    """State, log, token, lease and workspace are as they were before SIGKILL."""
    given = configuration([stack(repository)])
    server = start_process(given).started()
    api = server.api()
    worker = server.worker()
    run, queued = api.trigger(metadata="deploy"), api.trigger()
    held = worker.take()
    held.log(b"preparing\n")
    server.signal(signal.SIGKILL)
    server.process.wait()

    listen = {
        "listen": server.base.removeprefix("http://"),
        "listen_workers": server.workers.removeprefix("https://"),
    }
    again = start_process(given, **listen).started()
    api, worker.http = again.api(), again.connections()
    held = Held(worker, worker.claim(held.job["id"]), held.offset)
    assert held.post("renew", b"") == {"stop": None}
    held.enter("INITIALIZING")
    held.enter("PLANNING")
    assert held.plan()["next"] == "hand_over"
    held.store(b"the workspace")
    held.settle("handed_over")
    again.signal(signal.SIGKILL)
    again.process.wait()

    last = start_process(given, **listen).started()
    api, worker.http = last.api(), last.connections()
    assert api.state(queued) == "QUEUED"
    assert api.read_log(run, "PREPARING") == "preparing\n"
    api.change("confirm", run)
    applying = worker.take()
    assert applying.job["run"]["user_provided_metadata"] == ["deploy"]
    path = f"{applying.path}/workspace"
    assert worker.raw("GET", path, token=applying.token).data == b"the workspace"
    applying.applied()
    assert api.state(run) == "FINISHED"
    assert worker.take().run == queued
    assert last.process.poll() is None


def test_an_upload_goes_on_after_a_restart(tmp_path, repository, start_process):
    """What has arrived before a server was killed need not be sent again."""
    given = configuration([stack(repository)])
    server = start_process(given).started()
    api = server.api()
    worker = server.worker()
    api.trigger()
    held = worker.take()
    held.planned()
    assert held.part(b"half") == {"next_offset": 4}
    server.signal(signal.SIGKILL)
    server.process.wait()

    again = start_process(given, listen_workers=server.workers.rpartition("/")[2])
    worker.http = again.started().connections()
    assert held.part(b"") == {"next_offset": 4}
    held.part(b"half", offset=4)
    digest = hashlib.sha256(b"halfhalf").hexdigest()
    body = {"upload": "u-1", "size": 8, "sha256": digest}
    assert held.post("workspace", body) == {"size": 8, "sha256": digest}


def test_it_leaves_within_two_seconds(tmp_path, repository, start_process):
    """SIGTERM ends waiting requests properly and the process with code 0."""
    server = start_process(configuration([stack(repository)])).started()
    api = server.api()
    worker = server.worker()
    run = api.trigger()
    held = worker.take()
    entry = api.history(run)[0]
    answers = []
    waits = [
        threading.Thread(target=lambda: answers.append(worker.poll(15))),
        threading.Thread(target=lambda: answers.append(api.log_page(run, entry))),
    ]
    for wait in waits:
        wait.start()
    waits[0].join(0.3)
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.process.wait() == 0
    assert time.monotonic() - began < 10
    for wait in waits:
        wait.join()
    assert len(answers) == 2
    assert held.run == run
    assert server.process.stdout.read() == b""
    for line in server.lines:
        assert {"level", "msg", "ts"} <= set(json.loads(line))


def test_the_configuration_is_read_again(tmp_path, repository, start_process):
    """SIGHUP applies a good file, and keeps the old state when it is bad."""
    server = start_process(configuration([stack(repository)])).started()
    api = server.api()
    slugs = lambda: [each["id"] for each in api("{stacks{id}}")["stacks"]]  # noqa: E731
    server.write(configuration([stack(repository), stack(repository, "second")]))
    server.signal(signal.SIGHUP)
    eventually(lambda: slugs() == ["second", "testing-spacelift"])
    server.write(server.config.read_text().replace("account:", "konto:"))
    server.signal(signal.SIGHUP)
    (refused,) = eventually(lambda: server.events("configuration.refused"))
    assert "unknown key 'konto'" in refused["error"]
    assert slugs() == ["second", "testing-spacelift"]
    assert api("{viewer{id}}")["viewer"]


def test_secrets_are_nowhere_in_the_clear(tmp_path, repository, start_process):
    """Neither in the log nor in any file of the installation."""
    environment = [{"name": "TOKEN", "secret_env": "STACK_SECRET"}]
    given = configuration([stack(repository, environment=environment)])
    server = start_process(given).started()
    api = server.api()
    worker = server.worker()
    api.trigger()
    assert "hunter2-of-the-stack" in json.dumps(worker.take().job)
    server.signal(signal.SIGTERM)
    server.process.wait()
    haystack = "".join(server.lines).encode()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            haystack += path.read_bytes()
            assert (
                path.stat().st_mode & 0o077 == 0
                or path == server.config
                or path.suffix == ".csr"
                or ("repositories" in path.parts)
            ), path
    assert b"acme" in haystack
    for secret in ("hunter2-of-the-stack", "hunter2-of-the-key", api.jwt):
        assert secret.encode() not in haystack


def test_a_second_server_keeps_out(tmp_path, repository):
    """Two control planes on one database would not know of each other's leases."""
    given = configuration([stack(repository)])
    with running(tmp_path, given):
        with pytest.raises(StoreUnusable, match="another control plane"):
            with running(tmp_path, given):
                pass


def test_an_address_in_use_is_said():
    """The command ends with the exit code of its own that the docs list."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressUnavailable, match=address):
            with bound(address):
                pass


def test_an_address_that_is_not_there_may_come():
    """It is no wrong setting, with which nobody would try again."""
    with pytest.raises(AddressUnavailable, match="192.0.2.1:80"):
        with bound("192.0.2.1:80", with_tls=True):
            pass


@pytest.mark.parametrize(
    ("listen", "complaint"),
    [
        ("0.0.0.0:8080", "no TLS"),
        ("[::]:8080", "no TLS"),
        ("192.0.2.1:80", "no TLS"),
        ("127.0.0.1", "not an address"),
        ("127.0.0.1:x", "not an address"),
        ("127.0.0.1:70000", "not an address"),
        ("example.org:80", "not an address"),
        ("", "not an address"),
    ],
)
def test_it_listens_on_loopback_only(listen, complaint):
    """Without TLS nobody else may be able to reach it."""
    with pytest.raises(ConfigurationError, match=complaint):
        with bound(listen):
            pass


def test_a_proxy_in_front_is_named(tmp_path):
    """Whoever says that there is one has to say at which https URL, or nothing starts."""
    config = tmp_path / "control-plane.yaml"
    for endpoint in ({}, {"endpoint": "http://cp.example.com"}):
        config.write_text(json.dumps({"account": "acme", **endpoint}))
        with pytest.raises(ConfigurationError, match="https URL of that proxy"):
            serve(
                config,
                f"sqlite:///{tmp_path}/never.db",
                "0.0.0.0:0",
                "127.0.0.1:0",
                behind_proxy=True,
            )
    assert not (tmp_path / "never.db").exists()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0"])
def test_a_free_port_is_found(listen):
    """Port 0 means any."""
    with bound(listen) as listener:
        assert listener.getsockname()[1] > 0


def test_a_removed_pool_shuts_its_workers_out(tmp_path, repository):
    """The key of a pool that is no longer configured is worth nothing."""
    given = configuration([stack(repository)])
    with running(tmp_path, given) as site:
        worker = site.worker("other")
        site.apply({**given, "worker_pools": [{"name": "default"}]})
        body = {"wait_seconds": 0}
        path = f"/workers/{worker.id}/poll"
        assert worker.refused("POST", path, body) == (401, "unauthorized")


def test_the_endpoint_can_be_configured(tmp_path, repository):
    """Behind a proxy the server cannot know its own name."""
    given = configuration([stack(repository)], endpoint="https://cp.example.com/")
    with running(tmp_path, given) as site:
        assert site.plane.endpoint == "https://cp.example.com"
        assert site.api()("{viewer{id}}")["viewer"]


def test_a_crowd_of_strangers_fills_no_log(tmp_path, repository, start_process):
    """When no more connections can be taken it is said once, and passes with them."""
    server = start_process(configuration([stack(repository)])).started()
    worker = server.worker()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (40, hard))
    host, _, port = server.base.removeprefix("http://").partition(":")
    with contextlib.ExitStack() as strangers:
        for _ in range(60):
            strangers.enter_context(socket.create_connection((host, int(port))))
        eventually(lambda: server.events("server.crowded"))
        assert worker.poll(0) is None
        time.sleep(1.5)
    assert len(server.events("server.crowded")) == 1
    assert server.events("library.said") == []
    assert server.api().trigger()


def test_claims_that_share_a_commit_survive(start_process, repository):
    """[capability 46] Killed among many claims, it keeps each that it has answered."""
    given = configuration([stack(repository)])
    server = start_process(given).started()
    workers = [server.worker(slot=slot) for slot in range(8)]
    api = server.api()
    runs = [api.trigger(type="PROPOSED") for _ in range(40)]
    eventually(lambda: {api.state(run) for run in runs} == {"READY"})
    store = open_store(database(server.folder))
    with store.read() as connection:
        jobs = list(connection.execute(sa.select(t.jobs.c.id)).scalars())
    store.close()
    answered = {}

    def claim(number):
        worker = workers[number]
        for job in jobs[number :: len(workers)]:
            body = {"worker": worker.id, "claim": f"by-{worker.slot}"}
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                response = worker.raw("POST", f"/jobs/{job}/claim", body)
                answered[job] = worker, response.json()["token"]
            if len(answered) >= 20:
                server.signal(signal.SIGKILL)

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(claim, range(len(workers))))
    assert server.process.wait() == -signal.SIGKILL
    assert 20 <= len(answered) < len(jobs)

    again = start_process(given).started()
    http = again.connections()
    for job, (worker, token) in answered.items():
        same = Worker(again.workers, http, id=worker.id)
        assert same.claim(job, f"by-{worker.slot}")["token"] == token
    other = again.worker(slot=9)
    for job in jobs:
        body = {"worker": other.id, "claim": "another"}
        response = other.raw("POST", f"/jobs/{job}/claim", body)
        assert response.status == 409 or job not in answered
