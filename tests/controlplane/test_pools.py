"""Worker pools: their keys, their certificates, and what nobody else can do."""

import base64
import contextlib
import os
import socket
import ssl
import threading
import time

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import urllib3

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from structlog.testing import capture_logs

from controlplane.site import (
    Held,
    Worker,
    configuration,
    database,
    eventually,
    running,
    stack,
)
from support.pool_keys import (
    KEY,
    OTHER_KEY,
    credentials,
    credentials_of,
    request,
    token_of,
)
from support.tunnel import Tunnel
from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.credentials import Credentials
from launcher.adapters.controlplane.jobs import HttpJobSource
from launcher.adapters.controlplane import renewal as renewing
from launcher.adapters.controlplane.renewal import Renewal
from launcher.controlplane import authority as authorities
from launcher.controlplane import doorkeeper, pool_tokens
from launcher.controlplane.authority import Authority
from launcher.controlplane.clock import new_id
from launcher.controlplane.errors import WorkerRefused
from launcher.controlplane.leases import LeaseTerms
from launcher.controlplane.services import Limits
from launcher.bootstrap import watch
from launcher.cancel import CancelToken
from launcher.errors import (
    ClockWrong,
    ConfigurationError,
    ControlPlaneUnavailable,
    CredentialsRefused,
    PoolKeyUnusable,
    ServerNotTrusted,
    StoreUnusable,
)
from launcher.health import Health
from launcher.identity import Identity, identified
from launcher.policy import NoPolicy
from launcher.secret import Secret
from launcher.wire.messages import Proof, Settlement, Verdict


def wanted(folder, **given):
    return pool_tokens.Request(
        **{
            "pool": "default",
            "endpoint": "https://127.0.0.1:8443",
            "csr": request(folder),
            **given,
        }
    )


@contextlib.contextmanager
def client(known):
    with contextlib.closing(Client(known, connections=2)) as opened:
        yield opened


def source_of(opened, key=KEY):
    return HttpJobSource(opened, key, instance="i-0", metadata={})


# --- tokens


def test_a_token_says_what_a_launcher_needs(tmp_path):
    """Made from a signing request, it holds certificates and addresses, and no key."""
    given = wanted(tmp_path, allowed_hosts=("files.example.com", "127.0.0.1"))
    made = pool_tokens.create(database(tmp_path), None, given)
    token = token_of(made)
    assert made.private_key == ""
    assert (token.endpoint, token.pool) == ("https://127.0.0.1:8443", "default")
    assert token.allowed_hosts == ("127.0.0.1", "files.example.com")
    certificate = x509.load_pem_x509_certificate(token.certificate.encode())
    authority = x509.load_pem_x509_certificate(token.authority.encode())
    certificate.verify_directly_issued_by(authority)
    assert certificate.public_key() == KEY.rsa.public_key()


def test_a_key_is_made_printed_and_kept_nowhere(tmp_path):
    """Without a request the pool gets a fresh key, which only its owner has."""
    made = pool_tokens.create(database(tmp_path), None, wanted(tmp_path, csr=None))
    identity = identified(Secret(made.token), Secret(made.private_key))
    assert identity.key.rsa.key_size == 4096
    line = base64.b64decode(made.private_key).splitlines()[5]
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or line not in file.read_bytes()


def test_a_token_can_be_made_before_the_first_start(tmp_path, repository):
    """Launchers may be set up first; the pool is there once it is configured."""
    made = pool_tokens.create(database(tmp_path), None, wanted(tmp_path))
    with running(tmp_path, configuration([stack(repository)])) as site:
        http = site.connections_with(credentials_of(made).context())
        assert Worker(site.workers, http).register().poll(0) is None


def test_the_same_key_gets_a_fresh_token(tmp_path, repository):
    """A lost or expired token is replaced without disturbing anybody."""
    with running(tmp_path, configuration([stack(repository)])) as site:
        first = site.worker()
        again = pool_tokens.create(database(tmp_path), None, wanted(tmp_path))
        http = site.connections_with(credentials_of(again).context())
        assert Worker(site.workers, http, slot=1).register().poll(0) is None
        assert first.poll(0) is None


def test_another_key_needs_a_reset(tmp_path, repository):
    """Nobody shuts workers out by mistake."""
    with running(tmp_path, configuration([stack(repository)])) as site:
        worker = site.worker()
        other = wanted(tmp_path, csr=request(tmp_path, OTHER_KEY))
        with pytest.raises(ConfigurationError, match="another key already"):
            pool_tokens.create(database(tmp_path), None, other)
        with pytest.raises(ConfigurationError, match="this key already"):
            pool_tokens.reset(database(tmp_path), None, wanted(tmp_path))
        assert worker.poll(0) is None


@pytest.mark.parametrize(
    ("pool", "endpoint", "complaint"),
    [
        ("nope", "https://x", "no worker pool 'nope'; in the configuration: default"),
        ("default", "x", "not an http or https URL"),
        ("default", "ftp://x", "not an http or https URL"),
        ("default", "http://127.0.0.1:8080", "has no TLS"),
        ("default", "https://cp.example.com:https", "not an http or https URL"),
        ("default", "https://cp example.com", "not an http or https URL"),
        ("default", "https://[cp.example.com", "not an http or https URL"),
        ("default", "https://käse.example.com", "not an http or https URL"),
        ("default", "https://ann:x@cp.example.com", "more than scheme, host"),
        ("default", "https://cp.example.com/?x=1", "more than scheme, host"),
        ("../x", "https://x", "name"),
        ("default", "signed http://10.0.0.1", "without TLS"),
        ("default", "signed http://localhost.example.com", "without TLS"),
    ],
)
def test_a_token_needs_a_pool_and_an_endpoint(
    tmp_path, repository, pool, endpoint, complaint
):
    """A typing mistake must not give a token that looks right."""
    proof = Proof.SIGNATURE if "signed" in endpoint else Proof.CERTIFICATE
    given = wanted(
        tmp_path, pool=pool, endpoint=endpoint.removeprefix("signed "), proof=proof
    )
    with running(tmp_path, configuration([stack(repository)])):
        with pytest.raises(ConfigurationError, match=complaint):
            pool_tokens.create(database(tmp_path), None, given)


def signing_request(key):
    built = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return built.sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    ("content", "error", "complaint"),
    [
        (b"hunter2", ConfigurationError, "not a certificate signing request in PEM"),
        (KEY.pem(), ConfigurationError, "not a certificate signing request in PEM"),
        (
            signing_request(KEY.rsa).public_bytes(Encoding.DER),
            ConfigurationError,
            "not a certificate signing request in PEM",
        ),
        (
            signing_request(
                rsa.generate_private_key(public_exponent=65537, key_size=2048)
            ).public_bytes(Encoding.PEM),
            PoolKeyUnusable,
            "has 2048 bits; at least 3072",
        ),
        (
            signing_request(ec.generate_private_key(ec.SECP256R1())).public_bytes(
                Encoding.PEM
            ),
            PoolKeyUnusable,
            "not an RSA key",
        ),
    ],
    ids=["garbage", "a key", "DER", "2048 bits", "a curve"],
)
def test_requests_that_will_not_do(tmp_path, content, error, complaint):
    """Each is refused with what is wrong about it."""
    file = tmp_path / "pool.csr"
    file.write_bytes(content)
    with pytest.raises(error, match=complaint):
        pool_tokens.create(database(tmp_path), None, wanted(tmp_path, csr=file))


def test_a_request_by_somebody_else_is_refused(tmp_path):
    """Who asks for a certificate for a key must have the key."""
    honest, stolen = signing_request(KEY.rsa), signing_request(OTHER_KEY.rsa)
    der = honest.public_bytes(Encoding.DER)
    forged = der.replace(honest.signature, stolen.signature)
    body = base64.encodebytes(forged).decode()
    kind = "CERTIFICATE REQUEST"
    file = tmp_path / "pool.csr"
    file.write_text(f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n")
    with pytest.raises(ConfigurationError, match="signature of the signing request"):
        pool_tokens.create(database(tmp_path), None, wanted(tmp_path, csr=file))


# --- resets


def reset(folder, key=OTHER_KEY):
    given = wanted(folder, csr=request(folder, key))
    return pool_tokens.reset(database(folder), None, given)


def test_a_reset_shuts_out_whoever_waits(tmp_path, repository):
    """Within seconds a worker in the middle of a poll learns that it is out."""
    with running(tmp_path, configuration([stack(repository)])) as site:
        worker, fresh = site.worker(), []
        answers = []

        def wait():
            path = f"/workers/{worker.id}/poll"
            answers.append(worker.refused("POST", path, {"wait_seconds": 15}))

        waiting = threading.Thread(target=wait)
        waiting.start()
        eventually(lambda: site.plane.bell._listeners)
        began = time.monotonic()
        fresh.append(reset(tmp_path))
        waiting.join()
        assert answers == [(401, "unauthorized")]
        assert time.monotonic() - began < 12
        assert worker.refused("POST", "/workers", {}) == (401, "unauthorized")
        http = site.connections_with(credentials_of(fresh[0], OTHER_KEY).context())
        assert Worker(site.workers, http, OTHER_KEY, slot=1).register().poll(0) is None


def test_a_reset_fails_what_only_the_old_key_opens(tmp_path, repository):
    """Runs that wait with a sealed workspace end with a sentence; others go on."""
    stacks = [
        stack(repository),
        stack(repository, "second"),
        stack(repository, "third"),
    ]
    with running(tmp_path, configuration(stacks)) as site:
        api, worker = site.api(), site.worker()
        waiting, confirmed = api.trigger(), api.trigger("second")
        for _ in range(2):
            worker.take().handed_over()
        api.change("confirm", confirmed, "second")
        untouched = api.trigger("third")
        made = reset(tmp_path)
        for run, slug in ((waiting, "testing-spacelift"), (confirmed, "second")):
            last = api.history(run, slug)[0]
            assert last["state"] == "FAILED"
            assert "worker pool was reset after the plan was made" in last["note"]
        http = site.connections_with(credentials_of(made, OTHER_KEY).context())
        fresh = Worker(site.workers, http, OTHER_KEY).register()
        assert fresh.take().run == untouched


def test_a_settlement_that_a_reset_has_overtaken(two):
    """No run begins to wait with a workspace that the old key alone opens."""
    two.api().trigger()
    held = two.worker("default").take()
    assert held.planned()["next"] == "hand_over"
    held.store()
    two.plane.pools.reset("default", OTHER_KEY.public)
    settlement = Settlement(verdict=Verdict.HANDED_OVER, log_length=held.offset)
    # Who asks was found out before the reset.
    with pytest.raises(WorkerRefused, match="was reset"):
        two.plane.settling.settle("default", held.job["id"], held.token, settlement)


# --- what others can do with what is not theirs


@pytest.fixture(name="two")
def _two(tmp_path, repository):
    """A site with two pools, each with a stack."""
    stacks = [stack(repository), stack(repository, "second", worker_pool="other")]
    with running(tmp_path, configuration(stacks)) as site:
        yield site


def test_pools_see_nothing_of_each_other(two):
    """Even with a stolen fencing token, another pool's worker gets nowhere."""
    mine, theirs = two.worker("default"), two.worker("other", OTHER_KEY)
    two.api().trigger()
    held = mine.take()
    stolen = Held(theirs, held.claimed, held.offset)
    for what, body in (
        ("renew", b""),
        ("state", {"state": "INITIALIZING", "log_offset": 0}),
        ("plan", {"has_changes": True}),
        ("settle", {"verdict": "failed", "log_length": 0}),
    ):
        assert stolen.refused(what, body) == (404, "unknown_job")
    claim = {"worker": theirs.id, "claim": "c"}
    path = f"{held.path}/claim"
    assert theirs.refused("POST", path, claim) == (404, "unknown_job")
    assert theirs.refused(
        "PUT", f"{held.path}/log?offset=0", b"x", token=held.token
    ) == (404, "unknown_job")
    assert theirs.poll(0) is None
    assert held.post("renew", b"") == {"stop": None}


def test_a_stolen_token_needs_the_key(two):
    """A fencing token, and the pool's certificate, are nothing without the key."""
    worker = two.worker()
    two.api().trigger()
    held = worker.take()
    certificate = two.plane.pools.create("default", KEY.public)
    context = ssl.create_default_context(cadata=two.plane.authority.pem)
    with pytest.raises(ssl.SSLError, match="(?i)key"):
        folder = two.folder / "thief.pem"
        folder.write_text(certificate + OTHER_KEY.pem().decode())
        context.load_cert_chain(folder)
    worker.http = two.connections_with(context)
    with pytest.raises(urllib3.exceptions.HTTPError):
        worker.raw("POST", f"{held.path}/renew", token=held.token)


def test_a_certificate_of_another_installation_is_refused(two, tmp_path_factory):
    """Only this control plane's own authority lets workers in."""
    foreign = Authority(tmp_path_factory.mktemp("foreign"))
    token = credentials(two.plane, two.workers, "default").token
    issued = foreign.pool_certificate("default", new_id(), KEY.public)
    identity = Identity(token=token, key=KEY)
    thief = Credentials(identity, Path("/nonexistent"))
    thief.certificate = x509.load_pem_x509_certificate(issued.encode())
    worker = Worker(two.workers, two.connections_with(thief.context()))
    with pytest.raises(urllib3.exceptions.HTTPError):
        worker.raw("POST", "/workers", {})


def test_the_generation_in_a_certificate_counts(two):
    """A certificate that our authority issued for something else opens nothing."""
    issued = two.plane.authority.pool_certificate("default", new_id(), KEY.public)
    two.plane.pools.create("default", KEY.public)
    worker = Worker(two.workers, two.connections(certificate=issued))
    assert worker.refused("POST", "/workers", {}) == (401, "unauthorized")
    foreign = two.plane.authority.pool_certificate("other", new_id(), KEY.public)
    worker = Worker(two.workers, two.connections(certificate=foreign))
    assert worker.refused("POST", "/workers", {}) == (401, "unauthorized")


def test_recorded_bytes_are_worth_nothing(two):
    """What somebody recorded between the two, and sends again, changes nothing."""
    port = int(two.workers.rpartition(":")[2])
    two.api().trigger()
    with Tunnel(port) as tunnel:
        known = credentials(two.plane, f"https://{tunnel.address}", "default")
        with client(known) as opened:
            claim = source_of(opened).claim(
                0, source_of(opened).receive(0, wait=5), "c"
            )
            assert claim is not None
            recorded = [bytes(sent) for sent in tunnel.sent]
        before = two.api().history(claim.job.run.id)
        for sent in recorded:
            assert b"claim" not in sent and b"fencing" not in sent
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port)) as replayed:
                    replayed.settimeout(2)
                    replayed.sendall(sent)
                    while replayed.recv(4096):
                        pass
        assert two.api().history(claim.job.run.id) == before


# --- connections


def test_a_stranger_is_not_waited_for(tmp_path, monkeypatch):
    """A connection on which nothing is shown is closed, and others work meanwhile."""
    monkeypatch.setattr(doorkeeper, "HANDSHAKE_SECONDS", 0.3)
    with running(tmp_path, configuration([])) as site:
        host, _, port = site.workers.removeprefix("https://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as idle:
            assert site.worker().poll(0) is None
            assert idle.recv(1) == b""


def test_a_crowd_of_strangers_is_kept_outside(tmp_path, repository):
    """However many knock and say nothing, people are served, and so is the pool."""
    with running(tmp_path, configuration([stack(repository)])) as site:
        worker, api = site.worker(), site.api()
        host, _, port = site.workers.removeprefix("https://").partition(":")
        before = len(os.listdir("/proc/self/fd"))
        with contextlib.ExitStack() as strangers, capture_logs() as events:
            for _ in range(300):
                strangers.enter_context(socket.create_connection((host, int(port))))
            eventually(
                lambda: [e for e in events if e["event"] == "server.turned_away"]
            )
            opened = len(os.listdir("/proc/self/fd")) - before - 300
            assert opened <= doorkeeper.PER_ADDRESS + 16
            assert worker.poll(0) is None
            assert api.trigger()
        assert len([e for e in events if e["event"] == "server.turned_away"]) == 1

        def served():
            # The last strangers may still be at the door for a moment.
            with contextlib.suppress(urllib3.exceptions.SSLError):
                return site.worker(slot=1).poll(5)

        assert eventually(served)


def test_one_handshake_for_many_requests(two):
    """A launcher's requests share their connection, and its handshake."""
    port = int(two.workers.rpartition(":")[2])
    with Tunnel(port) as tunnel:
        known = credentials(two.plane, f"https://{tunnel.address}", "default")
        with client(known) as opened:
            for _ in range(50):
                assert source_of(opened).receive(0, wait=0) is None
        assert tunnel.connections == 1


def test_the_token_of_another_server_is_noticed(two, tmp_path_factory, repository):
    """A launcher tells nothing to a server that its token was not made by."""
    foreign = Authority(tmp_path_factory.mktemp("foreign"))
    known = credentials(two.plane, two.workers, "default")
    token = known.token
    lied_to = Identity(
        token=type(token)(
            endpoint=token.endpoint,
            pool=token.pool,
            authority=foreign.pem,
            certificate=foreign.pool_certificate("default", new_id(), KEY.public),
            allowed_hosts=token.allowed_hosts,
        ),
        key=KEY,
    )
    with client(Credentials(lied_to, Path("/nonexistent"))) as opened:
        with pytest.raises(ServerNotTrusted, match="not the one that SPACELIFT_TOKEN"):
            source_of(opened).receive(0, wait=0)


def test_a_server_at_another_address_is_noticed(two):
    """The certificate must be for the host in the token."""
    with Tunnel(int(two.workers.rpartition(":")[2]), "127.0.0.2") as tunnel:
        known = credentials(two.plane, f"https://{tunnel.address}", "default")
        with client(known) as opened:
            with pytest.raises(ServerNotTrusted, match="for another address"):
                source_of(opened).receive(0, wait=0)


def test_a_reset_pool_is_told_so(two):
    """The launcher learns from the refusal that no retry will help."""
    with client(credentials(two.plane, two.workers, "default")) as opened:
        source = source_of(opened)
        assert source.receive(0, wait=0) is None
        two.plane.pools.reset("default", OTHER_KEY.public)
        with pytest.raises(CredentialsRefused) as caught:
            source.receive(0, wait=0)
    assert "the worker pool was reset or removed" in caught.value.details


def test_a_clock_that_is_off_is_told_so(two, monkeypatch):
    """An hour between the two clocks ends polling; reports about jobs still arrive."""
    two.api().trigger()
    with client(credentials(two.plane, two.workers, "default")) as opened:
        source = source_of(opened)
        claim = source.claim(0, source.receive(0, wait=5), "c")
        behind = SimpleNamespace(
            time=lambda: time.time() - 3600, monotonic=time.monotonic
        )
        monkeypatch.setattr("launcher.adapters.controlplane.client.time", behind)
        with pytest.raises(ClockWrong, match=r"clock is (3599|36\d\d) s behind"):
            source.receive(0, wait=0)
        assert source.renew(claim) is None


def test_a_server_known_by_a_new_name(tmp_path, repository):
    """A pool made for another host finds the running server under that name."""
    with running(tmp_path, configuration([stack(repository)])) as site:
        given = wanted(tmp_path, endpoint="https://cp.example.com:8443")
        made = pool_tokens.create(database(tmp_path), None, given)
        context = credentials_of(made).context()
        host, _, port = site.workers.removeprefix("https://").partition(":")

        def answered():
            with (
                socket.create_connection((host, int(port))) as plain,
                contextlib.suppress(ssl.SSLCertVerificationError),
                context.wrap_socket(plain, server_hostname="cp.example.com"),
            ):
                return True

        eventually(answered)
        assert site.worker().poll(0) is None


# --- certificates that end


@pytest.fixture(name="short_lived")
def _short_lived(monkeypatch):
    """Certificates of pools last for so many seconds from now."""

    def last(seconds):
        monkeypatch.setattr(authorities, "POOL_DAYS", seconds / 86400)

    return last


def test_an_expired_certificate_is_refused(two, short_lived):
    """The server's clock counts, and the worker is told."""
    short_lived(-60)
    expired = two.plane.pools.create("default", KEY.public)
    short_lived(3600)
    known = credentials(two.plane, two.workers, "default")
    known.certificate = x509.load_pem_x509_certificate(expired.encode())
    worker = Worker(two.workers, two.connections_with(known.context()))
    response = worker.raw("POST", "/workers", {})
    assert response.status == 401
    assert "is valid until" in response.json()["message"]


def test_a_certificate_that_ends_in_mid_life_is_refused(two, short_lived):
    """A connection that was made in time does not outlive its certificate."""
    short_lived(1)
    worker = Worker(two.workers, two.connections()).register()
    refused = lambda: worker.refused(  # noqa: E731
        "POST", f"/workers/{worker.id}/poll", {"wait_seconds": 0}
    )
    eventually(
        lambda: (
            worker.raw("POST", f"/workers/{worker.id}/poll", {"wait_seconds": 0}).status
            == 401
        )
    )
    assert refused() == (401, "unauthorized")


def test_certificates_are_renewed_in_time(two, short_lived, tmp_path):
    """With a third of its life left it is replaced, for good and over a restart."""
    kept = tmp_path / "pool-certificate.pem"
    short_lived(120)
    known = credentials(two.plane, two.workers, "default")
    known._kept = kept
    first = known.certificate
    short_lived(86400)
    with client(known) as opened:
        Renewal(opened, known).look()
        assert known.certificate.not_valid_after_utc > first.not_valid_after_utc
        assert source_of(opened).receive(0, wait=0) is None
        renewed = known.certificate
        Renewal(opened, known).look()
        assert known.certificate is renewed
    assert kept.stat().st_mode & 0o777 == 0o600
    again = Credentials(Identity(token=known.token, key=KEY), kept)
    assert again.certificate == renewed


def test_a_launcher_warns_of_the_end(two, short_lived):
    """Whose certificate ends soon, and cannot be renewed, says so each time."""
    short_lived(86400 * 20 + 3600)
    known = credentials(two.plane, two.workers, "default")

    def away(*_, **__):
        raise ControlPlaneUnavailable("away")

    with pytest.MonkeyPatch.context() as patch, capture_logs() as events:
        patch.setattr(renewing, "is_due", lambda _: True)
        with pytest.raises(ControlPlaneUnavailable):
            Renewal(SimpleNamespace(call=away), known).look()
    (event,) = events
    assert event["event"] == "certificate.expires_soon"
    assert event["days_left"] == 20


def test_a_kept_certificate_of_no_use_is_not_used(two, tmp_path):
    """Damaged, or for another key, it does not take the place of the token's."""
    kept = tmp_path / "pool-certificate.pem"
    known = credentials(two.plane, two.workers, "default")
    other = two.plane.authority.pool_certificate("x", new_id(), OTHER_KEY.public)
    for content in ("hunter2", other):
        kept.write_text(content)
        again = Credentials(Identity(token=known.token, key=KEY), kept)
        assert again.certificate == known.certificate


def test_a_kept_certificate_of_another_pool_is_not_used(two, tmp_path, short_lived):
    """A launcher that moves to a pool with the same key is not of the old one still."""
    kept = tmp_path / "pool-certificate.pem"
    short_lived(3600)
    known = credentials(two.plane, two.workers, "default")
    short_lived(7200)
    kept.write_text(two.plane.pools.create("other", KEY.public))
    again = Credentials(Identity(token=known.token, key=KEY), kept)
    assert again.certificate == known.certificate
    with pytest.raises(ServerNotTrusted):
        known.renewed(kept.read_text())


def test_a_renewed_certificate_must_be_ours(two):
    """A control plane that issues something else is not believed."""
    known = credentials(two.plane, two.workers, "default")
    before = known.certificate
    other = two.plane.authority.pool_certificate("x", new_id(), OTHER_KEY.public)
    for issued in ("hunter2", other):
        with pytest.raises(ServerNotTrusted):
            known.renewed(issued)
    assert known.certificate is before


@pytest.mark.parametrize(
    ("csr", "refusal"),
    [
        ("hunter2", (400, "malformed")),
        (
            signing_request(OTHER_KEY.rsa).public_bytes(Encoding.PEM).decode(),
            (403, "wrong_key"),
        ),
    ],
)
def test_certificates_are_for_the_pools_key_only(two, csr, refusal):
    """A worker cannot have a key of its own choice certified."""
    assert two.worker().refused("POST", "/certificate", {"csr": csr}) == refusal


def test_expiry_can_be_watched(two):
    """Metrics say when certificates expire, of the server and of a launcher."""
    text = two.http.request("GET", f"{two.base}/metrics").data.decode()
    expiries = two.plane.authority.expiries()
    for name, ends in expiries.items():
        line = f'_certificate_expires_seconds{{certificate="{name}"}} '
        (value,) = [row.split()[-1] for row in text.splitlines() if line in row]
        assert float(value) == ends.timestamp()

    known, health = credentials(two.plane, two.workers, "default"), Health()
    watch(health, CancelToken(), NoPolicy(), known)
    assert health.reasons() == {}
    (value,) = [
        row.split()[-1]
        for row in health.metrics().decode().splitlines()
        if row.startswith("spacelift_launcher_certificate_expires_seconds ")
    ]
    assert float(value) == known.expires()


def test_an_expired_certificate_is_no_good_health(two, short_lived):
    """A launcher that nobody lets in any more is not ready, and says why."""
    known, health = credentials(two.plane, two.workers, "default"), Health()
    short_lived(-60)
    expired = two.plane.pools.create("default", KEY.public)
    known.certificate = x509.load_pem_x509_certificate(expired.encode())
    watch(health, CancelToken(), NoPolicy(), known)
    assert "expired on" in health.reasons()["certificate"]


def test_an_operator_is_warned_of_the_end(two, monkeypatch):
    """Three weeks before a certificate of the server expires, the log says so daily."""
    two.plane._warned_on = None
    with capture_logs() as events:
        two.plane._warn_of_expiries()
        assert events == []
        two.plane._warned_on = None
        soon = datetime.now(UTC) + timedelta(days=20, hours=1)
        monkeypatch.setattr(two.plane.authority, "expiries", lambda: {"server": soon})
        two.plane._warn_of_expiries()
        two.plane._warn_of_expiries()
    (event,) = events
    assert event["event"] == "certificate.expires_soon"
    assert (event["certificate"], event["days_left"]) == ("server", 20)


def test_a_renewal_that_fails_is_warned_of(tmp_path, monkeypatch):
    """What keeps the server's certificate from being renewed keeps no warning back."""
    soon = datetime.now(UTC) + timedelta(days=2)

    def full(_):
        raise StoreUnusable("no space left on the disk")

    monkeypatch.setattr(Authority, "expiries", lambda _: {"server": soon})
    monkeypatch.setattr(Authority, "renew", full)
    limits = Limits(lease_terms=LeaseTerms(sweep_seconds=0.05))
    with capture_logs() as events, running(tmp_path, configuration([]), limits):
        eventually(lambda: [e for e in events if e["event"] == "sweeper.crashed"])
    assert "certificate.expires_soon" in [event["event"] for event in events]


# --- the authority's files


def test_files_of_the_authority_are_private(tmp_path):
    """Nobody else can read a key, and one that others can read is refused."""
    folder = tmp_path / "tls"
    first = Authority(folder)
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o077 == 0
    assert Authority(folder).pem == first.pem
    (folder / "authority-key.pem").chmod(0o640)
    with pytest.raises(StoreUnusable, match="others may read the key"):
        Authority(folder)


def test_a_damaged_authority_is_not_replaced(tmp_path):
    """A new one in its place would shut every worker out without a word."""
    folder = tmp_path / "tls"
    Authority(folder)
    (folder / "authority.pem").write_text("hunter2")
    with pytest.raises(StoreUnusable, match="not a certificate in PEM"):
        Authority(folder)
    (folder / "authority.pem").unlink()
    with pytest.raises(StoreUnusable):
        Authority(folder)


def test_an_operators_own_certificates_are_used(tmp_path):
    """Authority and server may have been certified elsewhere; they are left alone."""
    folder, donor = tmp_path / "tls", tmp_path / "donor"
    given = Authority(donor)
    given.serve_as("cp.example.com")
    folder.mkdir(mode=0o700)
    for name in ("authority.pem", "authority-key.pem"):
        (folder / name).write_bytes((donor / name).read_bytes())
        (folder / name).chmod(0o600)
    assert Authority(folder).pem == given.pem

    key = ec.generate_private_key(ec.SECP256R1())
    at = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ops")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(given.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(at - timedelta(days=80))
        .not_valid_after(at + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("cp.example.com"), x509.DNSName("*.ops.example.com")]
            ),
            False,
        )
        .sign(given._key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server-key.pem").write_bytes(authorities._key_pem(key))
    theirs = Authority(folder)
    theirs.renew()
    theirs.serve_as("cp.example.com")
    theirs.serve_as("cp.ops.example.com")
    assert (folder / "server.pem").read_bytes() == certificate.public_bytes(
        Encoding.PEM
    )
    for elsewhere in ("elsewhere.example.com", "a.b.ops.example.com"):
        with pytest.raises(StoreUnusable, match=f"not for host {elsewhere}"):
            theirs.serve_as(elsewhere)
    theirs.server_key.write_bytes(
        authorities._key_pem(ec.generate_private_key(ec.SECP256R1()))
    )
    with pytest.raises(StoreUnusable, match="not for the key"):
        theirs.renew()


@pytest.mark.parametrize("lost", ["server.pem", "server-key.pem"])
def test_an_end_between_two_files_of_the_server(tmp_path, lost):
    """Whichever of certificate and key a crash left as it was, the next start works."""
    folder = tmp_path / "tls"
    first = Authority(folder)
    first.serve_as("cp.example.com")
    other = authorities._key_pem(ec.generate_private_key(ec.SECP256R1()))
    first.server_key.write_bytes(other)
    again = Authority(folder)
    again.server_context()
    names = authorities._hosts(authorities._read(again.server_certificate))
    assert "cp.example.com" in names
    (folder / lost).unlink()
    Authority(folder).server_context()


def test_an_end_between_two_files_of_the_authority(tmp_path, monkeypatch):
    """A first start that ended before both files had their names is made good."""
    folder, write = tmp_path / "tls", authorities.private_files.write
    for writes in (1, 2):
        left = iter(range(writes))

        def ending(path, content, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(path, content)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(authorities.private_files, "write", ending)
            Authority(folder)
    Authority(folder).server_context()


def test_a_replaced_authority_gets_a_server_of_its_own(tmp_path):
    """What an earlier authority issued is recognised by nobody any more."""
    folder, donor = tmp_path / "tls", tmp_path / "donor"
    Authority(folder).serve_as("cp.example.com")
    given = Authority(donor)
    for name in ("authority.pem", "authority-key.pem"):
        (donor / name).replace(folder / name)
    replaced = Authority(folder)
    server = authorities._read(replaced.server_certificate)
    server.verify_directly_issued_by(given.certificate)
    assert "cp.example.com" in authorities._hosts(server)


def test_an_authority_that_has_expired_is_told_so(tmp_path, monkeypatch):
    """Nothing can be issued by it, and the start says why."""
    monkeypatch.setattr(authorities, "AUTHORITY_DAYS", -0.001)
    with pytest.raises(StoreUnusable, match="expired on .* nothing can be issued"):
        Authority(tmp_path / "tls")


def test_an_authority_certified_by_another(tmp_path, repository):
    """It need not be a root, and may name its key as it likes, as companies' own do."""
    folder = tmp_path / "control-plane.db.data" / "tls"
    folder.mkdir(parents=True, mode=0o700)
    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    at = datetime.now(UTC)
    named, above = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in ("ops", "company")
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(at - timedelta(days=1))
        .not_valid_after(at + timedelta(days=900))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(x509.SubjectKeyIdentifier(b"ours"), False)
        .sign(root, hashes.SHA256())
    )
    (folder / "authority.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    authorities.private_files.write(
        folder / "authority-key.pem", authorities._key_pem(key)
    )
    with running(tmp_path, configuration([stack(repository)])) as site:
        assert site.worker().poll(0) is None


def test_a_server_certificate_replaced_in_two_steps_is_presented(tmp_path, repository):
    """An operator copies the certificate first and its key later; both count then."""
    with running(tmp_path, configuration([stack(repository)])) as site:
        authority = site.plane.authority
        before = authority.server_certificate.read_bytes()
        known = credentials(site.plane, site.workers, "default")
        donor = tmp_path / "donor"
        donor.mkdir(mode=0o700)
        for name in ("authority.pem", "authority-key.pem"):
            content = (authority.server_certificate.parent / name).read_bytes()
            authorities.private_files.write(donor / name, content)
        given = Authority(donor)
        new = given.server_certificate.read_bytes()
        assert new != before
        with capture_logs() as events:
            authorities.private_files.write(authority.server_certificate, new)
            seen = lambda what: what in [e["event"] for e in events]  # noqa: E731
            eventually(lambda: seen("certificate.not_presented"))
            key = given.server_key.read_bytes()
            authorities.private_files.write(authority.server_key, key)
            eventually(lambda: seen("certificate.presented"))
        with client(known) as opened:
            assert source_of(opened).receive(0, wait=0) is None


def test_the_servers_certificate_is_renewed(tmp_path, monkeypatch):
    """Ours is made anew when a third of its life is left, with all of its names."""
    monkeypatch.setattr(authorities, "SERVER_DAYS", 0.001)
    authority = Authority(tmp_path / "tls")
    authority.serve_as("cp.example.com")
    before = authority.expiries()["server"]
    monkeypatch.setattr(authorities, "SERVER_DAYS", 90)
    authority.renew()
    assert authority.expiries()["server"] > before + timedelta(days=80)
    names = authorities._hosts(authorities._read(authority.server_certificate))
    assert {"cp.example.com", "localhost", "127.0.0.1", "::1"} == names


# --- signed requests


def test_a_signed_request_counts_once(two):
    """Recorded at the proxy and sent again, or cut short, it is refused."""
    known = credentials(two.plane, two.base, "default", proof=Proof.SIGNATURE)
    target = "/worker/v1/workers"
    body = b'{"instance": "i", "slot": 0, "version": "1"}'
    given = {"Spacelift-Worker-Protocol": "1", "Content-Type": "application/json"}

    def answer(sent, headers):
        response = two.http.request(
            "POST", two.base + target, body=sent, headers=headers
        )
        return response.status, response.json().get("code")

    def fresh():
        return {**given, **known.signature("POST", target, given, body)}

    eventually(lambda: answer(body, fresh())[0] == 200)
    signed = fresh()
    assert answer(body, signed) == (200, None)
    assert answer(body, signed) == (503, "signature_replayed")
    assert answer(body[:-1], fresh()) == (503, "signature_wrong_digest")
    assert answer(body, given) == (401, "signature_missing")
    late = dict(fresh())
    late["Signature-Input"] = late["Signature-Input"].replace("created=1", "created=2")
    assert answer(body, late) == (401, "signature_invalid")


def test_signed_requests_out_of_order_are_refused(tmp_path, repository):
    """Somebody who holds requests back and changes their order gets nowhere."""
    with running(tmp_path, configuration([stack(repository)])) as site:
        site.api().trigger()
        held = site.worker().take()
        known = credentials(site.plane, site.base, "default", proof=Proof.SIGNATURE)

        def signed(method, what, body):
            target = f"/worker/v1{held.path}/{what}"
            given = {
                "Spacelift-Worker-Protocol": "1",
                "Spacelift-Fencing-Token": held.token,
            }
            headers = {**given, **known.signature(method, target, given, body)}

            def send():
                response = site.http.request(
                    method, site.base + target, body=body, headers=headers
                )
                return response.status, response.json().get("code")

            return send

        eventually(lambda: signed("POST", "renew", b"")()[0] == 200)
        first = signed("PUT", "log?offset=0", b"one\n")
        second = signed("PUT", "log?offset=4", b"two\n")
        initializing = signed(
            "POST", "state", b'{"state": "INITIALIZING", "log_offset": 8}'
        )
        planning = signed("POST", "state", b'{"state": "PLANNING", "log_offset": 8}')
        settling = signed("POST", "settle", b'{"verdict": "finished", "log_length": 8}')
        assert settling() == (409, "wrong_offset")
        assert planning()[0] == 409
        assert second() == (409, "wrong_offset")
        assert first() == (200, None)
        assert initializing() == (409, "wrong_offset")


def test_an_answer_is_sent_to_its_end(two):
    """A large answer after which the connection ends arrives whole at a slow reader."""
    run = two.api().trigger()
    held = two.worker().take()
    held.planned()
    content = os.urandom(6 << 20)
    held.store(content)
    held.settle("handed_over")
    two.api().change("confirm", run)
    applying = two.worker(slot=1).take()
    with two.connected() as slow:
        slow.sendall(
            f"GET /worker/v1{applying.path}/workspace HTTP/1.1\r\nHost: x\r\n"
            f"Spacelift-Worker-Protocol: 1\r\nConnection: close\r\n"
            f"Spacelift-Fencing-Token: {applying.token}\r\n\r\n".encode()
        )
        got = bytearray()
        while part := slow.recv(1 << 16):
            got += part
            if len(got) < 2 << 20:
                threading.Event().wait(0.02)
    assert got.endswith(content)
