"""Telling others what runs do: what is sent, how it is signed, and where it never goes."""

import contextlib
import hashlib
import hmac
import json
import threading

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import sqlalchemy as sa

from controlplane.site import ENVIRON, configuration, eventually, running, stack
from launcher.controlplane import webhooks as module
from launcher.controlplane.store import tables as t
from launcher.controlplane.webhooks import is_local
from launcher.errors import ConfigurationError


SECRET = ENVIRON["STACK_SECRET"].encode()


@contextlib.contextmanager
def receiver(*statuses):
    """A server that keeps what it gets, and answers as told; then 200."""
    got, answers = [], iter(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((dict(self.headers), body))
            status = next(answers, 200)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/hook?x=1", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def given(repository, url, **more):
    hook = {"name": "ops", "url": url, "secret_env": "STACK_SECRET", **more}
    return configuration([stack(repository)], webhooks=[hook])


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)


def rows(site, table):
    with site.plane.store.read() as connection:
        return connection.execute(sa.select(table)).all()


def test_every_state_is_told_and_signed(tmp_path, repository):
    """[capability 229] With both signatures, in the order of the states."""
    with (
        receiver(500, 302) as (url, got),
        running(tmp_path, given(repository, url, allow_local=True)) as site,
    ):
        api, worker = site.api(), site.worker()
        run = api.trigger()
        held = worker.take()
        held.planned()
        held.settle("failed")
        eventually(lambda: not rows(site, t.deliveries))
        for headers, body in got:
            for name, algorithm in (
                ("X-Signature", hashlib.sha1),
                ("X-Signature-256", hashlib.sha256),
            ):
                sent = headers[name].partition("=")[2]
                assert sent == hmac.new(SECRET, body, algorithm).hexdigest()
        events = {e["stateVersion"]: e for e in (json.loads(body) for _, body in got)}
        assert [events[number]["state"] for number in sorted(events)] == api.states(run)
        last = events[max(events)]
        assert (last["account"], last["stack"]) == ("acme", {"id": site.slug})
        assert last["run"]["id"] == run
        assert last["run"]["delta"]["added"] == 1
        assert len(got) == len(events) + 2, "a redirect is a failure, and not followed"
        assert got[0][0]["Host"].startswith("localhost:")


def test_a_dead_receiver_is_given_up(tmp_path, repository, monkeypatch):
    """[capability 229] After ten failures it is turned off, until it is configured anew."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    with (
        receiver(*[500] * 10) as (url, got),
        running(tmp_path, given(repository, url, allow_local=True)) as site,
    ):
        api = site.api()
        for _ in range(5):
            run = api.trigger()
            eventually(lambda: api.state(run) == "READY")
            api.change("cancel", run)
        eventually(lambda: rows(site, t.webhooks)[0].disabled)
        assert len(got) == 10
        site.apply(given(repository, url, allow_local=True))
        assert rows(site, t.webhooks)[0].disabled, "nothing about it has changed"
        site.apply(given(repository, f"{url}&y=2", allow_local=True))
        before = len(got)
        api.trigger()
        eventually(lambda: len(got) > before)
        assert not rows(site, t.webhooks)[0].disabled


def test_a_success_forgives(tmp_path, repository, monkeypatch):
    """Ten failures in a row are meant, not ten in all."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    answers = [*[500] * 9, 200, *[500] * 9]
    with (
        receiver(*answers) as (url, got),
        running(tmp_path, given(repository, url, allow_local=True)) as site,
    ):
        api = site.api()
        while len(rows(site, t.transitions)) < 19:
            run = api.trigger(type="PROPOSED")
            eventually(lambda: api.state(run) == "READY")
            api.change("cancel", run)
        eventually(lambda: len(got) >= 19)
        eventually(lambda: not rows(site, t.deliveries))
        assert not rows(site, t.webhooks)[0].disabled


def test_nothing_is_sent_to_this_machine(tmp_path, repository, monkeypatch):
    """[capability 229] Unless its owner allows it; names are looked at when they are used."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    with receiver() as (url, got), running(tmp_path, given(repository, url)) as site:
        site.api().trigger()
        eventually(lambda: rows(site, t.webhooks)[0].failures >= 1)
        assert got == []


def test_what_was_not_told_is_told_after_a_restart(tmp_path, repository, monkeypatch):
    """It is written down with the change itself."""
    monkeypatch.setattr(module.Webhooks, "start", lambda self: None)
    with receiver() as (url, got):
        settings = given(repository, url, allow_local=True)
        with running(tmp_path, settings) as site:
            api = site.api()
            run = api.trigger()
            eventually(lambda: api.state(run) == "READY")
        assert got == []
        with running(tmp_path, settings) as site:
            site.plane.webhooks.deliver_due()
            assert [json.loads(body)["state"] for _, body in got] == ["QUEUED", "READY"]
            assert json.loads(got[0][1])["run"]["id"] == run


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("0.0.0.0", True),
        ("169.254.169.254", True),
        ("224.0.0.1", True),
        ("::1", True),
        ("::", True),
        ("fe80::1", True),
        ("fe80::1%eth0", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:169.254.169.254", True),
        ("2002:7f00:1::", True),
        ("10.0.0.1", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
    ],
)
def test_which_addresses_are_this_machines(address, local):
    """In every notation."""
    assert is_local(address) is local


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/",
        "https://",
        "https://u:p@x/",
        "https://x/#f",
        "http://x:99999/",
        "a b",
    ],
)
def test_wrong_addresses_are_refused(tmp_path, repository, url):
    """With the line they are in."""
    with pytest.raises(ConfigurationError, match="line .*url"):
        with running(tmp_path, given(repository, url)):
            pass
