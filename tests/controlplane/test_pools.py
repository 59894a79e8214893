"""Worker pools: their keys, their certificates, and what nobody else can do."""

import base64
import contextlib
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
from launcher.adapters.controlplane.renewal import Renewal
from launcher.controlplane import authority as authorities
from launcher.controlplane import pool_tokens
from launcher.controlplane.authority import Authority
from launcher.controlplane.clock import new_id
from launcher.errors import (
    ClockWrong,
    ConfigurationError,
    CredentialsRefused,
    PoolKeyUnusable,
    ServerNotTrusted,
    StoreUnusable,
)
from launcher.identity import Identity, identified
from launcher.secret import Secret
from launcher.wire.messages import Proof


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
        ("../x", "https://x", "name"),
    ],
)
def test_a_token_needs_a_pool_and_an_endpoint(
    tmp_path, repository, pool, endpoint, complaint
):
    """A typing mistake must not give a token that looks right."""
    given = wanted(tmp_path, pool=pool, endpoint=endpoint)
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
        assert time.monotonic() - began < 6
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


def test_a_kept_certificate_of_no_use_is_not_used(two, tmp_path):
    """Damaged, or for another key, it does not take the place of the token's."""
    kept = tmp_path / "pool-certificate.pem"
    known = credentials(two.plane, two.workers, "default")
    other = two.plane.authority.pool_certificate("x", new_id(), OTHER_KEY.public)
    for content in ("hunter2", other):
        kept.write_text(content)
        again = Credentials(Identity(token=known.token, key=KEY), kept)
        assert again.certificate == known.certificate


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
            x509.SubjectAlternativeName([x509.DNSName("cp.example.com")]), False
        )
        .sign(given._key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server-key.pem").write_bytes(authorities._key_pem(key))
    theirs = Authority(folder)
    theirs.renew()
    theirs.serve_as("cp.example.com")
    assert (folder / "server.pem").read_bytes() == certificate.public_bytes(
        Encoding.PEM
    )
    with pytest.raises(StoreUnusable, match="not for host elsewhere.example.com"):
        theirs.serve_as("elsewhere.example.com")


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
