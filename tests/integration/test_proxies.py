"""The launcher's own connections through a real proxy: what passes, and who sees what."""

import contextlib
import http.server
import json
import ssl
import threading

from pathlib import Path

import pytest

from moto.server import ThreadedMotoServer

from given import a_job
from support.aws import identity
from support.collector import collecting
from support.connect_proxy import proxying
from support.pool_keys import KEY
from support.tunnel import Tunnel

from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.credentials import Credentials
from launcher.adapters.controlplane.presigned import PresignedUrls
from launcher.adapters.credentials.aws import AwsClients
from launcher.adapters.traces.otlp import Traces
from launcher.controlplane.authority import Authority
from launcher.controlplane.clock import new_id
from launcher.ecr import EcrEndpoint
from launcher.errors import (
    ControlPlaneUnavailable,
    ServerNotTrusted,
    WorkspaceUnusable,
)
from launcher.identity import Identity
from launcher.proxies import Proxies
from launcher.secret import Secret
from launcher.sight import Facts
from launcher.wire.messages import Ack, PoolToken


pytestmark = pytest.mark.processes
PLANE, BUCKET = "plane.example", "bucket.example"
ECR, STS = "api.ecr.eu-west-1.amazonaws.com", "sts.eu-west-1.amazonaws.com"
COLLECTOR = "collector.example"
PASSWORD = "jane:p@ss:wörd"
ASCII_PASSWORD = "jane:p@ss:word"
"""Of boto3, no other can be had."""
SECRET = "fencing-token-of-a-job"


class _Plane(http.server.BaseHTTPRequestHandler):
    """Says yes to everything, and who asked."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        shown = getattr(self.connection, "getpeercert", lambda **_: b"")(
            binary_form=True
        )
        self.server.asked.append((self.path, dict(self.headers), shown))
        body = json.dumps({"stop": "enough"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST

    def log_message(self, *_):
        pass


class _Dripping(_Plane):
    """Begins to say yes, and comes to no end: in the head, or in the body."""

    def do_PUT(self):
        self._drip(b"HTTP/1.1 200 OK\r\nX-Endless: ")

    def do_GET(self):
        self._drip(
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-999/1000\r\n\r\n"
        )

    def _drip(self, beginning):
        with contextlib.suppress(OSError):
            self.wfile.write(beginning)
            while not self.server.over.wait(0.05):
                self.wfile.write(b"x")


@pytest.fixture(name="authority", scope="module")
def _authority(tmp_path_factory):
    """One for everybody here: it certifies what listens on loopback by these names."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    for host in (PLANE, BUCKET, ECR, STS, COLLECTOR, "127.0.0.1"):
        authority.serve_as(host)
    return authority


@contextlib.contextmanager
def serving(tls, handler=_Plane):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.asked = True, []
        server.over = threading.Event()
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def anybody(authority):
    """TLS for everybody who trusts the authority."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.present(tls)
    return tls


@pytest.fixture(name="plane")
def _plane(authority):
    """A control plane that lets in who has a pool's certificate."""
    with serving(authority.server_context()) as server:
        yield server


def by(proxy, *direct, roots=()):
    return Proxies(https=Secret(proxy.url), direct=direct, roots=roots)


@contextlib.contextmanager
def a_client(authority, proxies, endpoint=f"https://{PLANE}"):
    token = PoolToken(
        endpoint=endpoint,
        pool="p",
        authority=authority.pem,
        certificate=authority.pool_certificate("p", new_id(), KEY.public),
        allowed_hosts=(),
    )
    known = Credentials(Identity(token=token, key=KEY), Path("/nonexistent"))
    with contextlib.closing(
        Client(
            known, connections=2, proxies=proxies, connect_seconds=1, answer_seconds=1
        )
    ) as client:
        yield client


def call(client):
    return client.call("POST", "/jobs/x/renew", Ack, token=SECRET)


def there(server, host=PLANE):
    return {f"{host}:443": server.server_port}


@pytest.mark.parametrize("speaks", ["http", "https"])
def test_mutual_tls_goes_through_a_tunnel(authority, plane, speaks):
    """
    The proxy learns where to, and no more; the control plane knows the pool.

    Also where the proxy itself is spoken to by TLS; and it is asked once for a connection
    that serves many calls.
    """
    tls = anybody(authority) if speaks == "https" else None
    with (
        proxying(there(plane), credentials=PASSWORD, tls=tls) as proxy,
        a_client(authority, by(proxy, roots=(authority.pem,))) as client,
    ):
        assert ["enough"] * 3 == [call(client).stop for _ in range(3)]

        assert 1 == client.connections_made
        assert [("CONNECT", f"{PLANE}:443")] == proxy.asked
        for text in (SECRET, "renew", "Fencing", "jane"):
            assert text.encode() not in proxy.seen
    for path, headers, shown in plane.asked:
        assert "/worker/v1/jobs/x/renew" == path
        assert "p" == authority.bearer(shown).pool
        assert "proxy-authorization" not in {name.lower() for name in headers}


def test_a_renewed_certificate_goes_the_same_way(authority, plane):
    """Who presents another certificate still takes the proxy."""
    with (
        proxying(there(plane)) as proxy,
        a_client(authority, by(proxy)) as client,
    ):
        call(client)
        client.present()
        call(client)
        assert 2 == len(proxy.asked)


def test_what_needs_no_proxy_takes_none(authority, plane):
    """The control plane on this machine, or in NO_PROXY, is reached directly."""
    with proxying(there(plane)) as proxy:
        here = f"https://127.0.0.1:{plane.server_port}"
        with a_client(authority, by(proxy), here) as client:
            assert "enough" == call(client).stop
        with (
            a_client(authority, by(proxy, ".example")) as client,
            # Nobody but the proxy knows where that is.
            pytest.raises(ControlPlaneUnavailable),
        ):
            call(client)
        assert [] == proxy.asked


@pytest.mark.parametrize("speaks", ["http", "https"])
@pytest.mark.parametrize(
    ("given", "mood", "detail"),
    [
        ("jane:wrong", "willing", "407"),
        ("", "willing", "407"),
        (PASSWORD, "refusing", "403"),
        (PASSWORD, "silent", "timed out"),
        # It has said yes, and goes on.
        (PASSWORD, "dripping", "cannot be reached"),
        (PASSWORD, "babbling", "BadStatusLine"),
    ],
)
def test_a_proxy_that_is_no_help(authority, plane, speaks, given, mood, detail):
    """What it does not let through did not arrive, in bounded time; nothing leaks."""
    tls = anybody(authority) if speaks == "https" else None
    with proxying(there(plane), credentials=PASSWORD, mood=mood, tls=tls) as proxy:
        who = given and given.replace("@", "%40") + "@"
        asked = Secret(f"{speaks}://{who}127.0.0.1:{proxy.port}")
        proxies = Proxies(https=asked, roots=(authority.pem,))
        with (
            a_client(authority, proxies) as client,
            pytest.raises(ControlPlaneUnavailable) as caught,
        ):
            call(client)

    said = f"{caught.value} {caught.value.details}"
    assert ("the proxy on the way" in said) == (mood != "dripping")
    assert detail in said
    for secret in ("jane", "p@ss", "p%40ss", "wrong", SECRET):
        assert secret not in said
    assert [] == plane.asked


def test_a_proxy_that_is_not_there(authority):
    """A proxy that does not answer is named as what cannot be reached."""
    proxies = Proxies(https=Secret("http://jane:secret@127.0.0.1:1"))
    with (
        a_client(authority, proxies) as client,
        pytest.raises(ControlPlaneUnavailable, match="proxy") as caught,
    ):
        call(client)
    assert "secret" not in caught.value.details


def test_a_proxy_that_is_not_the_one(authority, plane):
    """One that shows a strange certificate gets no password, and is not the control plane."""
    with (
        proxying(there(plane), credentials=PASSWORD, tls=anybody(authority)) as proxy,
        a_client(authority, by(proxy)) as client,
        pytest.raises(ControlPlaneUnavailable, match="proxy"),
    ):
        call(client)
    assert [] == proxy.asked


def test_a_proxy_that_reads_along(authority, plane, tmp_path):
    """One that ends TLS itself is found out, and is told nothing."""
    other = Authority(tmp_path)
    other.serve_as(PLANE)
    with (
        serving(anybody(other)) as middle,
        proxying(there(middle)) as proxy,
        a_client(authority, by(proxy)) as client,
        pytest.raises(ServerNotTrusted),
    ):
        call(client)
    assert [] == middle.asked
    assert [] == plane.asked


def test_workspaces_take_the_proxy(authority):
    """Presigned URLs too; a host that may not be used is not asked for there."""
    trusting = ssl.create_default_context(cadata=authority.pem)
    with (
        serving(anybody(authority)) as bucket,
        proxying(there(bucket, BUCKET), credentials=PASSWORD) as proxy,
    ):
        urls = PresignedUrls(
            [BUCKET, "169.254.169.254"], context=trusting, proxies=by(proxy)
        )
        urls.put(f"https://{BUCKET}/key?X-Amz-Signature=abc", b"sealed")
        for forbidden in ("https://elsewhere.example/x", "https://169.254.169.254/x"):
            with pytest.raises(WorkspaceUnusable):
                urls.put(forbidden, b"sealed")

        assert [("CONNECT", f"{BUCKET}:443")] == proxy.asked
        assert b"X-Amz-Signature" not in proxy.seen
    assert ["/key?X-Amz-Signature=abc"] == [path for path, *_ in bucket.asked]


@pytest.mark.parametrize(
    "use",
    [lambda urls, url: urls.put(url, b"sealed"), lambda urls, url: urls.get(url, 0, 9)],
    ids=["put", "get"],
)
@pytest.mark.parametrize("speaks", ["http", "https", ""])
def test_workspaces_that_drip(authority, monkeypatch, speaks, use):
    """A store or proxy that comes to no end is left in bounded time, and has not said yes."""
    for name in ("_CONNECT_SECONDS", "_ANSWER_SECONDS"):
        monkeypatch.setattr(f"launcher.adapters.controlplane.presigned.{name}", 0.5)
    trusting = ssl.create_default_context(cadata=authority.pem)
    tls = anybody(authority) if speaks == "https" else None
    with (
        serving(anybody(authority), _Dripping) as bucket,
        proxying({}, mood="dripping", tls=tls) as proxy,
    ):
        proxies = by(proxy, roots=(authority.pem,)) if speaks else Proxies()
        host = BUCKET if speaks else f"127.0.0.1:{bucket.server_port}"
        urls = PresignedUrls([BUCKET, "127.0.0.1"], context=trusting, proxies=proxies)
        with pytest.raises(ControlPlaneUnavailable, match="stored workspaces"):
            use(urls, f"https://{host}/key?X-Amz-Signature=abc")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_traces_take_the_proxy(authority, scheme):
    """By a tunnel where the collector speaks TLS, and by asking the proxy where not."""
    with contextlib.ExitStack() as opened:
        collector = opened.enter_context(collecting())
        port = int(collector.url.rpartition(":")[2])
        if scheme == "https":
            tunnel = opened.enter_context(Tunnel(port, tls=anybody(authority)))
            port = int(tunnel.address.rpartition(":")[2])
        place = f"{COLLECTOR}:443" if scheme == "https" else f"{COLLECTOR}:4318"
        proxy = opened.enter_context(proxying({place: port}, credentials=PASSWORD))
        given = Secret(proxy.url)
        traces = Traces(
            f"{scheme}://{place}",
            headers={"x-key": "of-the-collector"},
            roots=(authority.pem,),
            proxies=Proxies(http=given, https=given),
            service="s",
            instance="i",
            pool="p",
        )
        traces.claimed(Facts.of(a_job(), waited_seconds=1), 2_000_000_000)
        traces.close()

        assert 1 == len(collector.spans)
        method = "CONNECT" if scheme == "https" else "POST"
        assert [method] == [asked for asked, _ in proxy.asked]
        assert 0 == traces.lost
        assert (b"of-the-collector" in proxy.seen) == (scheme == "http")


@pytest.mark.parametrize("role", [None, "arn:aws:iam::123456789012:role/pull"])
def test_aws_takes_the_proxy(authority, monkeypatch, role):
    """Tokens of ECR, and the role that they are asked for as, come by the proxy."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    with contextlib.ExitStack() as opened:
        opened.callback(moto.stop)
        _, port = moto.get_host_and_port()
        tunnel = opened.enter_context(Tunnel(port, tls=anybody(authority)))
        proxy = opened.enter_context(proxying({}, credentials=ASCII_PASSWORD))
        port = int(tunnel.address.rpartition(":")[2])
        proxy.places = {f"{host}:443": port for host in (ECR, STS)}
        identity(
            monkeypatch, "", HTTPS_PROXY=proxy.url, NO_PROXY="", AWS_REGION="eu-west-1"
        )
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        clients = AwsClients(role, roots=(authority.pem,))
        client = clients.for_tokens(EcrEndpoint(region="eu-west-1"))
        answer = client.get_authorization_token()

        assert answer["authorizationData"][0]["authorizationToken"]
        wanted = [STS, ECR] if role else [ECR]
        assert [("CONNECT", f"{host}:443") for host in wanted] == proxy.asked
        assert b"AKIAIOSFODNN7EXAMPLE" not in proxy.seen
