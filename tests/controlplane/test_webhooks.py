"""Telling others what runs do: what is sent, how it is signed, and where it never goes."""

import contextlib
import datetime
import hashlib
import hmac
import json
import socket
import ssl
import threading

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controlplane.site import ENVIRON, configuration, eventually, running, stack
from launcher.controlplane import webhooks as module
from launcher.controlplane.store import tables as t
from launcher.controlplane.webhooks import is_local
from launcher.errors import ConfigurationError


SECRET = ENVIRON["STACK_SECRET"].encode()


@contextlib.contextmanager
def receiver(*statuses, context=None, location="/elsewhere"):
    """
    A server that keeps what it gets, and answers as told; then 200.

    With a *context* it has TLS.
    """
    got, answers = [], iter(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((dict(self.headers), body))
            status = next(answers, 200)
            self.send_response(status)
            if status // 100 == 3:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # callers who break off are no news
    scheme = "http" if context is None else "https"
    if context is not None:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{scheme}://localhost:{server.server_port}/hook?x=1", got
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


@pytest.fixture
def company(tmp_path, monkeypatch):
    """An authority that the machine's owner has added, and a way to be certified by it."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = certificate("Company", key, "Company", key, [])
    file = tmp_path / "company.pem"
    file.write_bytes(authority)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))

    def server(*names):
        own = ec.generate_private_key(ec.SECP256R1())
        path = tmp_path / "server.pem"
        path.write_bytes(
            own.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate("server", own, "Company", key, names)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        asked = []
        context.sni_callback = lambda _, name, __: asked.append(name)
        return context, asked

    return server


def certificate(subject, key, issuer, issuer_key, names):
    """A certificate in PEM; without *names*, that of an authority."""
    now = datetime.datetime.now(datetime.UTC)
    common = lambda name: x509.Name(  # noqa: E731
        [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
    )
    extension = (
        x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        if names
        else x509.BasicConstraints(ca=True, path_length=None)
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(common(subject))
        .issuer_name(common(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(extension, critical=not names)
        .sign(issuer_key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def resolving(monkeypatch, *answers):
    """Let ``hook.example`` have these addresses, one at each look-up; return the looks."""
    real, looks, left = socket.getaddrinfo, [], iter(answers)

    def look_up(host, port, *arguments, **more):
        if host != "hook.example":
            return real(host, port, *arguments, **more)
        looks.append(host)
        return real(next(left), port, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return looks


def test_a_receiver_with_tls(tmp_path, repository, monkeypatch, company):
    """[capability 229] By a company's authority, and asked for by its name at the address that was judged."""
    context, asked = company("hook.example")
    # Whoever looks the name up once more is sent to where nobody listens.
    resolving(monkeypatch, "127.0.0.1", *["127.0.0.2"] * 100)
    with receiver(context=context) as (url, got):
        url = url.replace("localhost", "hook.example")
        with running(tmp_path, given(repository, url, allow_local=True)) as site:
            run = site.api().trigger()
            eventually(lambda: got)
            assert json.loads(got[0][1])["run"]["id"] == run
            assert got[0][0]["Host"] == url.split("/")[2]
            assert asked[0] == "hook.example"


@pytest.mark.parametrize(
    ("names", "own", "why"),
    [
        (["elsewhere.example"], True, "certificate of another"),
        (["hook.example"], False, "authority that nobody knows"),
    ],
)
def test_a_receiver_that_is_not_proven_hears_nothing(
    tmp_path, repository, monkeypatch, company, names, own, why
):
    """[capability 229] A wrong name or an unknown authority counts as a failure."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    context, _ = company(*names)
    if not own:
        monkeypatch.delenv("SSL_CERT_FILE")
    resolving(monkeypatch, *["127.0.0.1"] * 100)
    with receiver(context=context) as (url, got):
        url = url.replace("localhost", "hook.example")
        with running(tmp_path, given(repository, url, allow_local=True)) as site:
            site.api().trigger()
            eventually(lambda: rows(site, t.webhooks)[0].failures >= 1)
    assert got == [], why


def test_a_name_that_moves_to_this_machine_hears_nothing(
    tmp_path, repository, monkeypatch
):
    """[capability 229] Each delivery is judged by the address that it goes to."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    with receiver() as (url, got):
        # The first address is nobody's (documentation only), then comes our own.
        looks = resolving(monkeypatch, "192.0.2.1", *["127.0.0.1"] * 100)
        url = url.replace("localhost", "hook.example")
        with running(tmp_path, given(repository, url)) as site:
            site.api().trigger()
            eventually(lambda: rows(site, t.webhooks)[0].failures >= 2)
        assert len(looks) >= 2
        assert got == []


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::]",
    ],
)
def test_no_notation_of_this_machine_is_sent_to(
    shared_site, repository, monkeypatch, host
):
    """[capability 229] However it is written, in whatever the machine understands."""
    with receiver() as (url, got):
        parts = urlsplit(url.replace("localhost", host))
        try:
            module._connections(parts, allow_local=False)
        except (module._AddressRefused, OSError):
            assert got == []
        else:
            pytest.fail(f"{host} was taken")


def test_a_redirect_to_this_machine_is_not_followed(tmp_path, repository, monkeypatch):
    """[capability 229] Nor is any other: what was judged is the address that was configured."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    with (
        receiver() as (inner, reached),
        receiver(*[307] * 2, *[302] * 20, location=inner) as (url, got),
        running(tmp_path, given(repository, url, allow_local=True)) as site,
    ):
        site.api().trigger()
        eventually(lambda: rows(site, t.webhooks)[0].failures >= 2)
        assert len(got) >= 2
        assert reached == []


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
        ("::127.0.0.1", True),
        ("64:ff9b::127.0.0.1", True),
        ("64:ff9b::169.254.169.254", True),
        ("fd00:ec2::254", True),
        ("64:ff9b::192.0.2.1", False),
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
