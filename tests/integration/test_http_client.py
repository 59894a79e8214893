"""The launcher's HTTP client among proxies and servers that mean no good."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import tempfile
import threading
import time

from pathlib import Path

from given import PATIENCE, a_claim, a_job, eventually
from support.pool_keys import KEY

import msgspec
import pytest

from launcher.adapters.controlplane.client import Client, Refusal
from launcher.adapters.controlplane.credentials import Credentials
from launcher.adapters.controlplane.jobs import HttpJobSource, HttpLogSink, HttpProgress
from launcher.adapters.controlplane.presigned import PresignedUrls
from launcher.adapters.controlplane.workspaces import HttpWorkspaceStore
from launcher.controlplane.authority import Authority
from launcher.controlplane.clock import new_id
from launcher.errors import (
    ControlPlaneRefused,
    ControlPlaneUnavailable,
    CredentialsRefused,
    LeaseLost,
    WorkspaceUnusable,
)
from launcher.identity import Identity
from launcher.sealing import box
from launcher.sealing.workspace import SealedFile
from launcher.wire.messages import (
    CHECKSUM_HEADER,
    Ack,
    Claimed,
    Offer,
    PoolToken,
    Proof,
    for_job,
)


ANSWER_SECONDS = 1.0
LARGEST = 1 << 20


class Answers(http.server.BaseHTTPRequestHandler):
    """Notes the request and answers what the server's script says."""

    protocol_version = "HTTP/1.1"

    def _handle(self):
        self.close_connection = True
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b""
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        with contextlib.suppress(OSError):
            self.server.script(self)

    do_GET = do_POST = do_PUT = _handle

    def log_message(self, *_):
        pass


@pytest.fixture(name="server")
def _server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked, server.over = [], threading.Event()
        server.script = answer(200, b"{}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture(name="client")
def _client(server):
    with contextlib.closing(
        Client(
            known(f"http://127.0.0.1:{server.server_port}/"),
            connections=2,
            connect_seconds=ANSWER_SECONDS,
            answer_seconds=ANSWER_SECONDS,
            largest_answer=LARGEST,
        )
    ) as client:
        yield client


@functools.cache
def _authority():
    with tempfile.TemporaryDirectory() as folder:
        return Authority(Path(folder))


def known(endpoint):
    """What a launcher has whose requests are signed."""
    authority = _authority()
    token = PoolToken(
        endpoint=endpoint,
        pool="p",
        authority=authority.pem,
        certificate=authority.pool_certificate("p", new_id(), KEY.public),
        allowed_hosts=("127.0.0.1",),
        proof=Proof.SIGNATURE,
    )
    return Credentials(Identity(token=token, key=KEY), Path("/nonexistent"))


def answer(status, body=b"", *, length=None, **headers):
    """An answer with that body, whatever length it claims."""

    def script(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header(
            "Content-Length", str(len(body) if length is None else length)
        )
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(body)

    return script


def failure(status, code, **more):
    body = json.dumps({"code": code, "message": "because", **more}).encode()
    return answer(status, body, Content_Type="application/json")


def raw(data):
    def script(handler):
        handler.wfile.write(data)

    return script


def call(client):
    return client.call("POST", "/jobs/x/renew", Ack, token="fencing")


HTML = b"<html><body><h1>Bad Gateway</h1></body></html>"
UNAVAILABLE = {
    "proxy says 502": answer(502, HTML, Content_Type="text/html"),
    "proxy says 503": answer(503),
    "proxy says 404": answer(404, HTML),
    "proxy says 401": answer(401, HTML),
    "proxy says 407": answer(407, HTML),
    "proxy says 200": answer(200, HTML, Content_Type="text/html"),
    "captive portal": answer(200, b"Please sign in"),
    "empty": answer(200, b""),
    "no content": answer(204),
    "not JSON": answer(200, b"{'stop': null}"),
    "JSON of another kind": answer(200, b"[1, 2]"),
    "wrong type": answer(200, b'{"stop": 7}'),
    "not UTF-8": answer(200, b'{"stop": "\xff\xfe"}'),
    "refusal not UTF-8": answer(409, b'{"code": "\xff", "message": ""}'),
    "deeply nested": answer(200, b"[" * 100_000),
    "redirect": answer(302, Location="http://127.0.0.1:1/elsewhere"),
    "permanent redirect": answer(308, Location="/worker/v1/elsewhere"),
    "redirect with a failure": answer(307, b"{}", Location="http://example.com/"),
    "not modified": answer(304),
    "server fails": failure(500, "internal_error"),
    "server is ending": failure(503, "ending"),
    "cut short": answer(200, b'{"stop": nu', length=100),
    "refusal cut short": answer(409, b'{"code": "stale_tok', length=100),
    "closed at once": raw(b""),
    "closed in the head": raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "endless head": raw(b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 10_000 + b"\r\n"),
    "bad chunks": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"),
    "chunks cut short": raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
    ),
    "negative length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{"),
    "bad compression": answer(200, b"{}", Content_Encoding="gzip"),
    "oversized": answer(200, b" " * (LARGEST + 1)),
    "oversized refusal": answer(500, b" " * (LARGEST + 1)),
    "oversized when unpacked": answer(
        200, gzip.compress(bytes(LARGEST * 10)), Content_Encoding="gzip"
    ),
}


@pytest.mark.parametrize("script", UNAVAILABLE.values(), ids=UNAVAILABLE)
def test_unavailable(server, client, script):
    """What is not an answer of the control plane is none, however it looks."""
    server.script = script

    with pytest.raises(ControlPlaneUnavailable) as caught:
        call(client)

    assert 1 == len(server.asked)
    assert "fencing" not in str(caught.value) + caught.value.details
    assert "127.0.0.1" not in str(caught.value)


def test_next_call_after_a_bad_answer(server, client):
    """An answer that was given up does not spoil the next one."""
    for script in UNAVAILABLE.values():
        server.script = script
        with pytest.raises(ControlPlaneUnavailable):
            call(client)

    server.script = answer(200, b'{"stop": "enough"}')
    assert "enough" == call(client).stop


@pytest.mark.parametrize(
    "date",
    [
        "yesterday",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2024 99999999999999999999:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999999",
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "Mon, 31 Dec 9999 23:59:59 -2359",
    ],
)
def test_odd_dates(server, client, date):
    """An answer counts whatever it says of the time."""

    def script(handler):
        body = b'{"stop": "enough"}'
        handler.send_response_only(200)
        handler.send_header("Date", date)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server.script = script
    assert "enough" == call(client).stop


def slow_head(handler):
    handler.server.over.wait(30)


def slow_body(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.server.over.wait(30)


def dripping(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b" ")


def dripping_head(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b"x")


def dripping_chunk(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b"0")


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.is_set():
        handler.wfile.write(b" " * 65536)


def slow_refusal(handler):
    handler.send_response(409)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.server.over.wait(30)


@pytest.mark.parametrize(
    "script",
    [
        slow_head,
        slow_body,
        dripping,
        dripping_head,
        dripping_chunk,
        endless,
        slow_refusal,
    ],
)
def test_slow_answers(server, client, script):
    """An answer that does not come to an end is given up in time."""
    server.script = script
    start = time.monotonic()

    with pytest.raises(ControlPlaneUnavailable):
        call(client)

    assert time.monotonic() - start < PATIENCE / 2


@pytest.mark.parametrize(
    ("lease", "renew", "bounded"),
    [
        (0, 0, (1.0, 0.2)),
        (-5, -5, (1.0, 0.2)),
        (1e300, 1e300, (3600.0, 60.0)),
        (90, 1e9, (90.0, 30.0)),
        (90, 20, (90.0, 20.0)),
    ],
)
def test_terms_of_a_lease_are_bounded(server, client, lease, renew, bounded):
    """No control plane keeps a launcher busy for nothing, or from noticing its silence."""

    def script(handler):
        if handler.path.endswith("/workers"):
            return answer(200, b'{"worker": "w", "poll_seconds": 1}')(handler)
        sealed = box.seal(
            msgspec.json.encode(a_job(id="j")), purpose=for_job("j"), to=KEY.public
        )
        claimed = Claimed(
            token="t", sealed_job=sealed, lease_seconds=lease, renew_seconds=renew
        )
        return answer(200, msgspec.json.encode(claimed))(handler)

    server.script = script
    source = HttpJobSource(client, KEY, instance="i", metadata={})

    claim = source.claim(0, Offer(job="j", run="r"), "c")

    assert bounded == (claim.lease_seconds, claim.renew_seconds)


@pytest.mark.parametrize(("asked", "told"), [(-1, 1), (0, 1), (1e300, 25), (7, 7)])
def test_time_of_a_poll_is_bounded(server, client, asked, told):
    """A poll is held for a sensible time, whatever the control plane asks for."""

    def script(handler):
        if handler.path.endswith("/workers"):
            body = {"worker": "w", "poll_seconds": asked}
            return answer(200, json.dumps(body).encode())(handler)
        return answer(200, b'{"offer": null}')(handler)

    server.script = script
    HttpJobSource(client, KEY, instance="i", metadata={}).receive(0, wait=25)

    assert told == json.loads(server.asked[-1][3])["wait_seconds"]


def test_nobody_there(client, server):
    """Where nobody listens, the call says so."""
    with contextlib.closing(
        Client(known("http://127.0.0.1:1"), connections=1)
    ) as nobody:
        with pytest.raises(ControlPlaneUnavailable):
            call(nobody)


def test_redirects_are_not_followed(server, client):
    """The pool's key goes nowhere else, whatever the answer suggests."""
    server.script = answer(
        307, Location=f"http://127.0.0.1:{server.server_port}/stolen"
    )

    with pytest.raises(ControlPlaneUnavailable):
        call(client)
    with pytest.raises(ControlPlaneUnavailable):
        client.fetch("/jobs/x/workspace", token="t")

    assert not [path for _, path, _, _ in server.asked if "stolen" in path]


def test_no_call_is_repeated_here(server, client):
    """Whether a call may be repeated is decided by who makes it."""
    server.script = raw(b"")

    with pytest.raises(ControlPlaneUnavailable):
        call(client)

    assert 1 == len(server.asked)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (failure(401, "unauthorized"), CredentialsRefused),
        (failure(409, "stale_token"), LeaseLost),
        (failure(409, "wrong_offset", next_offset=7), ControlPlaneRefused),
        (failure(409, "taken"), ControlPlaneRefused),
        (failure(400, "malformed"), ControlPlaneRefused),
        (failure(418, "from_the_future", extra="x"), ControlPlaneRefused),
    ],
    ids=["unauthorized", "stale", "offset", "taken", "malformed", "unknown"],
)
def test_refusals(server, client, script, error):
    """What the control plane itself says is told apart."""
    server.script = script

    with pytest.raises(error) as caught:
        call(client)

    assert "because" not in str(caught.value)


def test_wrong_offset_says_which(server, client):
    """A refusal carries what the control plane wants instead."""
    server.script = failure(409, "wrong_offset", next_offset=7)

    with pytest.raises(Refusal) as caught:
        HttpLogSink(client).append(a_claim(), 10, b"x")

    assert 7 == caught.value.failure.next_offset


def test_what_is_sent(server, client):
    """A request carries the pool's signature, the protocol's version and the job's token."""
    server.script = answer(200, b'{"next_offset": 3}')
    HttpLogSink(client).append(a_claim(), 0, b"\x00\xff\n")

    ((method, path, headers, body),) = server.asked
    assert ("PUT", "/worker/v1/jobs/01JOB/log?offset=0", b"\x00\xff\n") == (
        method,
        path,
        body,
    )
    assert {"Signature", "Signature-Input", "Content-Digest"} <= set(headers)
    assert "1" == headers["Spacelift-Worker-Protocol"]
    assert "fencing-token" == headers["Spacelift-Fencing-Token"]


def test_answers_of_the_next_version(server, client):
    """Keys that a later version adds are ignored."""
    server.script = answer(200, b'{"stop": null, "new": {"x": [1]}}')

    assert call(client).stop is None


def test_forgotten_worker_registers_again(server, client):
    """A control plane that lost its memory gets to know the worker again."""
    known = []

    def script(handler):
        if handler.path.endswith("/workers"):
            known.append(f"w-{len(known)}")
            body = {"worker": known[-1], "poll_seconds": 1}
            return answer(200, json.dumps(body).encode())(handler)
        if "w-0" in handler.path:
            return failure(404, "unknown_worker")(handler)
        return answer(200, b'{"offer": {"job": "j", "run": "r"}}')(handler)

    server.script = script

    offer = HttpJobSource(client, KEY, instance="i", metadata={}).receive(0, wait=0.1)

    assert (Offer(job="j", run="r"), ["w-0", "w-1"]) == (offer, known)


def test_worker_that_stays_unknown(server, client):
    """A control plane that never knows us is an error, and no endless loop."""

    def script(handler):
        if handler.path.endswith("/workers"):
            return answer(200, b'{"worker": "w", "poll_seconds": 1}')(handler)
        return failure(404, "unknown_worker")(handler)

    server.script = script

    with pytest.raises(ControlPlaneRefused):
        HttpJobSource(client, KEY, instance="i", metadata={}).receive(0, wait=0.1)

    assert len(server.asked) < 10


def test_poll_waits_as_long_as_the_control_plane_holds_it(server, client):
    """A poll is not given up while the control plane may still hold it."""

    def script(handler):
        if handler.path.endswith("/workers"):
            return answer(200, b'{"worker": "w", "poll_seconds": 60}')(handler)
        handler.server.over.wait(ANSWER_SECONDS * 2)
        return answer(200, b'{"offer": null}')(handler)

    server.script = script

    assert (
        HttpJobSource(client, KEY, instance="i", metadata={}).receive(0, wait=30)
        is None
    )


def test_claim_survives_a_short_outage(server, client):
    """A claim is repeated for a while, with the same identity."""

    def script(handler):
        if handler.path.endswith("/workers"):
            return answer(200, b'{"worker": "w", "poll_seconds": 1}')(handler)
        claims.append(json.loads(server.asked[-1][3])["claim"])
        return (failure(409, "taken") if len(claims) == 4 else answer(502, HTML))(
            handler
        )

    server.script, claims = script, []

    assert (
        HttpJobSource(client, KEY, instance="i", metadata={}).claim(
            0, Offer(job="j", run="r"), "c"
        )
        is None
    )
    assert (4, 1) == (len(claims), len(set(claims)))


# --- workspaces

WORKSPACE = os.urandom(3000)
CHECKSUM = hashlib.sha256(WORKSPACE).hexdigest()
PART = 1000


def restored(client, into=None):
    into = into or io.BytesIO()
    HttpWorkspaceStore(client, PresignedUrls([]), part=PART).restore(a_claim(), into)
    return into.getvalue()


def serving(content, *, checksum=CHECKSUM, shift=0, total=None, cut=0):
    """Gives parts of *content*, and perhaps says something else about them."""

    def script(handler):
        first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1]
        place = f"bytes {int(first) + shift}-{last}/{total or len(content)}"
        answer(
            206,
            part[: len(part) - cut],
            length=len(part),
            **{CHECKSUM_HEADER: checksum, "Content-Range": place},
        )(handler)

    return script


def test_workspace_in_parts(server, client):
    """A workspace comes in parts, each asked for by its place."""
    server.script = serving(WORKSPACE)

    assert WORKSPACE == restored(client)
    ranges = [headers["Range"] for _, _, headers, _ in server.asked]
    assert ["bytes=0-999", "bytes=1000-1999", "bytes=2000-2999"] == ranges


def test_uploaded_code_in_parts(server, client):
    """[capability 233] Code that was uploaded comes in parts, from an address of its own."""
    server.script, into = serving(WORKSPACE), io.BytesIO()

    HttpWorkspaceStore(client, PresignedUrls([]), part=PART).uploaded(a_claim(), into)

    assert WORKSPACE == into.getvalue()
    assert {"/worker/v1/jobs/01JOB/source"} == {asked[1] for asked in server.asked}


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (serving(WORKSPACE, checksum="0" * 64), "was damaged on its way"),
        (serving(WORKSPACE, total=(1 << 30) + 1), "larger than any that is taken"),
    ],
)
def test_bad_uploaded_code(server, client, script, sentence):
    """Code that is too large, or not what was uploaded, is not taken."""
    server.script = script

    with pytest.raises(WorkspaceUnusable, match=sentence):
        HttpWorkspaceStore(client, PresignedUrls([]), part=PART).uploaded(
            a_claim(), io.BytesIO()
        )


def test_workspace_goes_on(server, client):
    """What came before is not asked for again."""
    server.script = serving(WORKSPACE)

    assert WORKSPACE == restored(client, io.BytesIO(WORKSPACE[:1500]))
    assert "bytes=1499-2498" == server.asked[0][2]["Range"]
    assert 2 == len(server.asked)


@pytest.mark.parametrize(
    "script",
    [
        serving(WORKSPACE, checksum="0" * 64),
        serving(WORKSPACE, checksum=""),
        serving(WORKSPACE[:-1] + b"?"),
        serving(WORKSPACE[:-1]),
        serving(WORKSPACE + b"?"),
        serving(WORKSPACE, total=2999),
    ],
    ids=["wrong sum", "no sum", "other bytes", "too few", "too many", "wrong size"],
)
def test_damaged_workspace(server, client, script):
    """A workspace that is not what was stored is not used."""
    server.script = script

    with pytest.raises(WorkspaceUnusable, match="damaged on its way"):
        restored(client)


@pytest.mark.parametrize(
    "script",
    [
        serving(WORKSPACE, shift=1),
        serving(WORKSPACE, total=10**20),
        serving(b"", total=10),
        serving(WORKSPACE, total=4000),
        serving(WORKSPACE, cut=1),
        lambda handler: answer(200, WORKSPACE)(handler),
        lambda handler: slow_body(handler),
    ],
    ids=["shifted", "absurd", "empty", "ends early", "cut off", "no range", "slow"],
)
def test_workspace_that_does_not_come(server, client, script):
    """A part that is not the one that was asked for may come another time."""
    server.script = script

    with pytest.raises(ControlPlaneUnavailable):
        restored(client)


def test_workspace_of_absurd_size(server, client):
    """Nobody fills a launcher's disk with what no launcher can have sealed."""
    server.script = serving(WORKSPACE, total=1 << 40)

    with pytest.raises(WorkspaceUnusable, match="larger than any"):
        restored(client)
    assert 1 == len(server.asked)


def storing(handler):
    """Takes what it is sent, and says that it is stored, or what the test says."""
    server = handler.server
    body = server.asked[-1][3]
    there = sum(len(given) for command, *_, given in server.asked if command == "PUT")
    if handler.command == "POST" and not server.said and there < len(WORKSPACE):
        refused = {"code": "wrong_offset", "message": "", "next_offset": there}
        answer(409, json.dumps(refused).encode())(handler)
        return
    if handler.command == "POST":
        content = server.said or body
    else:
        offset = int(handler.path.rpartition("=")[2])
        content = b'{"next_offset": %d}' % (offset + len(body) + server.skipped)
    answer(200, content)(handler)


def saved(client, content=WORKSPACE):
    sealed = SealedFile(io.BytesIO(content))
    HttpWorkspaceStore(client, PresignedUrls([]), part=PART).save(a_claim(), sealed)


def test_upload_in_parts(server, client):
    """A workspace is sent in parts of a bounded size, and then declared whole."""
    server.script, server.said, server.skipped = storing, b"", 0

    saved(client)

    sent = [body for command, _, _, body in server.asked if command == "PUT"]
    assert [b"", WORKSPACE[:1000], WORKSPACE[1000:2000], WORKSPACE[2000:]] == sent
    assert all("Transfer-Encoding" not in headers for _, _, headers, _ in server.asked)


@pytest.mark.parametrize(
    ("said", "skipped"),
    [
        (b'{"size": 3000, "sha256": "0"}', 0),
        (json.dumps({"size": 2999, "sha256": CHECKSUM}).encode(), 0),
        (b"", 7),
        (b"", -7),
    ],
    ids=["wrong sum", "wrong size", "skips bytes", "negative"],
)
def test_upload_is_compared(server, client, said, skipped):
    """A workspace counts as stored when what arrived is what was sent."""
    server.script, server.said, server.skipped = storing, said, skipped

    with pytest.raises(ControlPlaneUnavailable):
        saved(client)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("wrong_state", ControlPlaneRefused),
        ("wrong_offset", ControlPlaneUnavailable),
        ("wrong_checksum", ControlPlaneUnavailable),
        ("too_large", WorkspaceUnusable),
        ("stale_token", LeaseLost),
    ],
)
def test_upload_that_is_refused(server, client, code, error):
    """What is lost is sent again, what is too large fails the job, and so on."""
    server.script = failure(409, code)

    with pytest.raises(error):
        saved(client)


def test_progress_hears_the_stop(server, client):
    """The answer to a report says why the run should be stopped."""
    server.script = answer(200, b'{"stop": "by Ada"}')

    progress = HttpProgress(client, KEY)

    assert "by Ada" == progress.entered(a_claim(), "PLANNING", log_offset=0)
    eventually(lambda: server.asked)
