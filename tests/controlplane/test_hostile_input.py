"""Whatever is sent: refused with a sentence or taken, never a crash, and others are served."""

import contextlib
import json
import select
import socket
import ssl

import graphql
import pytest
import requests
import schemathesis

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from controlplane.site import Held, eventually
from controlplane.spacectl import OPERATIONS
from launcher.controlplane import openapi, patience, worker_api, serve
from launcher.controlplane.graphql import schema
from launcher.wire.messages import PREFIX, TOKEN_HEADER, VERSION_HEADER
from support.pool_keys import KEY


HOSTILE = [
    "",
    " ",
    "\0",
    "a\0b",
    "\x1b]0;title\x07",
    "'; DROP TABLE runs; --",
    "%s%n{0}${7*7}",
    "../../etc/passwd",
    "\u202eevil\u2066",
    "x\r\nSet-Cookie: a=b",
    "\ud800",
    "\N{PILE OF POO}" * 100,
    "x" * 70_000,
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(HOSTILE)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NUMBERS = (
    st.sampled_from([0, -1, 2**31 - 1, 2**31, 2**53, 2**63, 10**30])
    | st.integers()
    | st.floats(allow_nan=False)
)
CALM = settings(
    max_examples=12,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch):
    monkeypatch.setattr(worker_api, "POLL_SECONDS", 0.05)


@pytest.fixture
def no_crash(capsys):
    """Whatever a test does, the server's log shows no exception of ours."""
    yield
    printed = capsys.readouterr().out
    assert "crashed" not in printed
    assert "Traceback" not in printed


# --- the API


def values(kind, names):
    """What may be said where the schema wants *kind*, and what may not."""
    match kind:
        case graphql.GraphQLNonNull(of_type=inner):
            return values(inner, names)
        case graphql.GraphQLList(of_type=inner):
            return st.none() | st.lists(values(inner, names), max_size=3)
        case graphql.GraphQLEnumType():
            return st.none() | st.sampled_from([*kind.values, "NOPE", 1])
        case graphql.GraphQLInputObjectType():
            fields = {
                name: values(field.type, names) for name, field in kind.fields.items()
            }
            return st.none() | st.fixed_dictionaries({}, optional=fields)
        case graphql.GraphQLScalarType(name="String" | "ID"):
            return st.none() | st.sampled_from([*names, *HOSTILE]) | st.text() | NUMBERS
        case graphql.GraphQLScalarType(name="Boolean"):
            return st.none() | st.booleans()
        case _:
            return st.none() | NUMBERS


def variables_of(document, names):
    """Variables for the operation in *document*, most of the types that it declares."""
    (operation,) = graphql.parse(document).definitions
    return st.fixed_dictionaries(
        {
            variable.variable.name.value: st.one_of(
                *[values(graphql.type_from_ast(schema(), variable.type), names)] * 4,
                JSON,
            )
            for variable in operation.variable_definitions
        }
    )


@pytest.mark.parametrize(
    "name", [name for name, each in OPERATIONS.items() if each["exampleVariables"]]
)
def test_any_variables_of_any_operation(site, api, repository, no_crash, name):
    """Each recorded operation answers whatever its variables are, and nothing crashes."""
    site.configure(repository, local_preview=True, run_promotion=True)
    operation = OPERATIONS[name]
    names = [site.slug, site.pool, "ci", api.trigger()]

    @CALM
    @given(variables_of(operation["document"], names))
    def ask(variables):
        body = {"query": operation["document"], "variables": variables}
        response = api.http.request(
            "POST",
            f"{api.base}/graphql",
            body=json.dumps(body),
            headers={
                "Authorization": f"Bearer {api.jwt}",
                **operation["extraHeaders"],
            },
        )
        answer = response.json()
        said = [error["message"] for error in answer.get("errors") or ()]
        assert said or answer["data"] is not None
        assert "internal error" not in said
        understood = response.status == 200
        assert understood or "not a GraphQL request" in said[0], response.data

    ask()
    assert api("{viewer{id}}")["viewer"]


# --- the worker protocol


DOCUMENT = schemathesis.openapi.from_dict(openapi.document())
ENDPOINTS = {each.ok().label: each.ok() for each in DOCUMENT.get_all_operations()}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture
def identity(tmp_path, site):
    """Files with which `requests` is a launcher of the site's pool, and whom it trusts."""
    certificate = site.plane.pools.create(site.pool, KEY.public)
    own, authority = tmp_path / "own.pem", tmp_path / "authority.pem"
    own.write_bytes(KEY.pem() + certificate.encode())
    authority.write_text(site.plane.authority.pem)
    with requests.Session() as session:
        yield {"session": session, "cert": str(own), "verify": str(authority)}


@pytest.mark.parametrize("label", ENDPOINTS)
def test_whatever_a_worker_sends(site, api, worker, identity, no_crash, label):
    """Answers are as the shipped document says, for a held job and for an unknown one."""
    api.trigger()
    held = Held(worker, worker.claim(eventually(worker.poll)["job"]))
    held.enter("INITIALIZING")
    held.enter("PLANNING")
    ours = {"job": held.job["id"], "worker": worker.id}
    headers = {VERSION_HEADER: "1", TOKEN_HEADER: held.token}

    @CALM
    @given(ENDPOINTS[label].as_strategy(), st.booleans())
    def ask(case, known):
        if known:
            case.path_parameters = {
                name: ours.get(name, value)
                for name, value in (case.path_parameters or {}).items()
            }
        case.headers = {**(case.headers or {}), **headers}
        response = case.call(base_url=site.workers, **identity)
        case.validate_response(response, checks=CHECKS)

    ask()
    worker.register()
    worker.poll(0)


# --- on the wire


def connected(base):
    """A connection to the listener for people, without anything on top."""
    host, _, port = base.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)))


def head(path, token, length, method="POST", **headers):
    """The beginning of a request whose body is to have *length* bytes."""
    lines = {
        "Host": "localhost",
        "Authorization": f"Bearer {token}",
        "Content-Length": length,
        **headers,
    }
    said = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{said}\r\n".encode()


def until_closed(connection):
    """Everything that comes until the other side hangs up."""
    answer = b""
    connection.settimeout(60)
    while part := connection.recv(1 << 16):
        answer += part
    return answer


@pytest.fixture
def held(api, worker):
    api.trigger()
    return Held(worker, worker.claim(eventually(worker.poll)["job"]))


@pytest.fixture
def begin(site, api, held):
    """Opens a connection and begins a request of some kind whose body is 100 bytes."""

    def opened(kind):
        if kind == "worker":
            connection = stack_of.enter_context(site.connected())
            path = f"{PREFIX}{held.path}/log?offset=0"
            own = {VERSION_HEADER: 1, TOKEN_HEADER: held.token}
            connection.sendall(head(path, "", 100, "PUT", **own))
            return connection
        path = {
            "graphql": "/graphql",
            "form": "/sign-in",
            "upload": "/uploads/x?token=y",
        }[kind]
        connection = stack_of.enter_context(connected(site.base))
        method = "PUT" if kind == "upload" else "POST"
        connection.sendall(head(path, api.jwt, 100, method))
        return connection

    with contextlib.ExitStack() as stack_of:
        yield opened


@pytest.mark.parametrize("kind", ["graphql", "form", "worker"])
def test_a_slow_body_is_given_up(api, held, begin, no_crash, monkeypatch, kind):
    """Whoever stops in the middle, or trickles, is told so, and others are served meanwhile."""
    monkeypatch.setattr(patience, "BODY_SECONDS", 1.0)
    connection = begin(kind)
    connection.sendall(b"{")
    assert api("{viewer{id}}")["viewer"]
    held.log(b"meanwhile\n")
    answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    trickling = begin(kind)
    with contextlib.suppress(OSError):
        for _ in range(90):
            trickling.sendall(b" ")
            if select.select([trickling], [], [], 0.05)[0]:
                break
        else:
            pytest.fail("a body of one byte now and then is waited for")
    # A byte that was on its way when the server hung up takes the answer with it.
    with contextlib.suppress(ConnectionResetError):
        assert until_closed(trickling).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("piece", [b"X: " + 1000 * b"x" + b"\r\n", 1000 * b"x"])
def test_headers_without_an_end_are_given_up(site, api, held, no_crash, piece):
    """However they go on: a line after the other, or one that does not end."""
    for connection in (connected(site.base), site.connected()):
        # It may hang up while the rest is on its way, which takes the answer with it.
        with connection as opened, contextlib.suppress(ConnectionError, ssl.SSLError):
            opened.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nY: ")
            for _ in range(4 * serve._MAX_HEADERS // len(piece)):
                opened.sendall(piece)
            opened.sendall(b"\r\n\r\n")
            assert until_closed(opened).startswith(b"HTTP/1.1 400 ")
    assert api("{viewer{id}}")["viewer"]
    held.log(b"meanwhile\n")


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length : 5\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: +5\r\n",
    ],
)
def test_a_request_has_one_length(site, no_crash, headers):
    """Nobody gets a second request past a proxy that has understood another length."""
    with connected(site.base) as connection:
        head = b"POST /graphql HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"
        connection.sendall(head + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("begun", [b"", b"POST /gra", b"GET / HTTP/1.1\r\nHost: x\r\n"])
@pytest.mark.parametrize("after_another", [False, True])
def test_slow_headers_are_given_up(
    site, api, held, no_crash, monkeypatch, begun, after_another
):
    """Before the first request, and between two; who has one under way is waited for."""
    if after_another and not begun:
        begun = b"G"  # who says nothing at all may stay a while, for the next request
    monkeypatch.setattr(patience, "HEADERS_SECONDS", 1.0)
    for connection in (connected(site.base), site.connected()):
        with connection as opened:
            if after_another:
                opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert opened.recv(1 << 16).startswith(b"HTTP/1.1 ")
            opened.sendall(begun)
            assert b"HTTP/1.1" not in until_closed(opened)
    monkeypatch.setattr(worker_api, "POLL_SECONDS", 2.0)
    assert held.worker.poll(2.0) is None
    assert api("{viewer{id}}")["viewer"]


@pytest.mark.parametrize("kind", ["graphql", "form", "upload", "worker"])
def test_a_truncated_body_is_no_request(api, held, begin, no_crash, kind):
    """Whoever hangs up in the middle has asked for nothing."""
    connection = begin(kind)
    connection.sendall(b'{"query": "mutation{')
    connection.close()
    assert api("{viewer{id}}")["viewer"]
    held.log(b"")
    assert held.offset == 0


@pytest.mark.parametrize(
    ("path", "kind", "body", "statuses"),
    [
        ("/graphql", "application/xml", b"<query/>", {400}),
        ("/graphql", "application/x-www-form-urlencoded", b"query={viewer{id}}", {400}),
        ("/graphql", "multipart/form-data; boundary=x", b"--x--", {400}),
        ("/graphql", "application/json; charset=utf-16", b"\xff\xfe{\0}\0", {400}),
        ("/graphql", "\x00\xff", b"{}", {400}),
        ("/sign-in", "application/json", b'{"key": "ci"}', {400, 401, 403}),
        ("/sign-in", "multipart/form-data", b"--", {400, 401, 403}),
        (f"{PREFIX}/workers", "application/xml", b"<worker/>", {400, 401}),
        ("/uploads/x?token=y", "application/gzip", b"\x1f\x8b", {403, 404, 405}),
    ],
)
def test_a_wrong_content_type(api, no_crash, path, kind, body, statuses):
    """What counts is whether the body is what is wanted; everything else is refused."""
    connection = connected(api.base)
    with connection:
        named = {"Content-Type": kind, "Connection": "close"}
        connection.sendall(head(path, api.jwt, len(body), **named) + body)
        status = int(until_closed(connection).split(b" ", 2)[1])
    assert status in statuses


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
        b"Content-Length: 2\r\n\r\n{}",
        b"POST /graphql HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 300_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 60_000,
    ],
)
def test_what_is_no_http_is_hung_up_on(api, no_crash, raw):
    """With status 400 at most, and nobody else notices."""
    with connected(api.base) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = until_closed(connection)
        assert not answer or answer.split(b" ", 2)[1][:1] == b"4", answer
    assert api("{viewer{id}}")["viewer"]
