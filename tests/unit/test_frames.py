"""The frames in which an engine sends what an exec prints."""

import contextlib
import datetime
import io
import select
import socket
import ssl
import threading

import pytest

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hypothesis import given
from hypothesis import strategies as st

from launcher.adapters.engines.frames import frames
from launcher.errors import EngineError


class Pieces(io.RawIOBase):
    """A connection on which bytes come as they were cut."""

    def __init__(self, pieces):
        self._pieces = [piece for piece in pieces if piece]

    def readable(self):
        return True

    def readinto(self, room):
        if not self._pieces:
            return 0
        piece = self._pieces[0][: len(room)]
        self._pieces[0] = self._pieces[0][len(piece) :]
        if not self._pieces[0]:
            del self._pieces[0]
        room[: len(piece)] = piece
        return len(piece)


def frame(kind, data):
    return bytes([kind, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def read(pieces):
    printed = list(frames(io.BufferedReader(Pieces(pieces))))
    return b"".join(p.stdout for p in printed), b"".join(p.stderr for p in printed)


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=12),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_frames_cut_anywhere(sent, places):
    """However they come, both streams are whole and in order."""
    data = b"".join(frame(kind, part) for kind, part in sent)
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    pieces = [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    expected = tuple(
        b"".join(part for kind, part in sent if kind == wanted) for wanted in (1, 2)
    )
    assert expected == read(pieces)


def test_a_large_frame():
    """One that is larger than what is read at once is put together again."""
    data = bytes(range(256)) * 3000
    assert (data, b"") == read([frame(1, data)])


def test_what_came_with_the_answers_head_is_not_lost():
    """Bytes that were read ahead, with the headers, are part of what is printed."""
    connection = io.BufferedReader(Pieces([b"HTTP/1.1 101\r\n" + frame(1, b"early")]))
    connection.readline()
    assert [(b"early", b"")] == [tuple(each) for each in frames(connection)]


@pytest.mark.parametrize(
    "data", [b"Error: no such", frame(1, b"x") + b"\x03" + bytes(7)]
)
def test_what_are_no_frames(data):
    """An engine that says something else is not taken at its word."""
    with pytest.raises(EngineError):
        read([data])


@contextlib.contextmanager
def plain(_):
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextlib.contextmanager
def encrypted(folder):
    """The same with TLS, as an engine on another machine has it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "engine")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = folder / "engine.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    client = ssl.create_default_context(cafile=pem)
    client.check_hostname = False
    with plain(folder) as (ours, theirs):
        ends = []

        def shake():
            ends.append(server.wrap_socket(theirs, server_side=True))

        thread = threading.Thread(target=shake)
        thread.start()
        ends.insert(0, client.wrap_socket(ours))
        thread.join(30)
        with ends[0], ends[1]:
            yield tuple(ends)


@pytest.mark.parametrize("connected", [plain, encrypted])
def test_a_connection_that_does_not_block(connected, tmp_path):
    """Whoever listens is asked to wait when there is nothing, and misses nothing."""
    sent = [frame(1, bytes([number]) * 70_000) for number in range(20)]
    waits, go_on = [], threading.Event()
    with connected(tmp_path) as (ours, theirs):

        def engine():
            theirs.sendall(sent[0][:5])
            assert go_on.wait(30)
            for part in (sent[0][5:], *sent[1:]):
                theirs.sendall(part)
            theirs.shutdown(socket.SHUT_RDWR)

        def wait():
            waits.append(True)
            if len(waits) == 3:
                go_on.set()
            select.select([ours], [], [], 0.05)

        thread = threading.Thread(target=engine)
        thread.start()
        ours.settimeout(0)
        with ours.makefile("rb") as connection:
            printed = b"".join(each.stdout for each in frames(connection, wait))
        thread.join(30)

    assert b"".join(bytes([number]) * 70_000 for number in range(20)) == printed
    assert len(waits) >= 3


@pytest.mark.parametrize("connected", [plain, encrypted])
@pytest.mark.parametrize(
    "more", [b"", b"\x01", bytes([1, 0, 0, 0, 0, 0, 0, 5]) + b"la"]
)
def test_a_pause_after_what_came_with_the_answers_head(connected, more, tmp_path):
    """What was read ahead is told at once, and what is of the next frame is kept."""
    early, late = frame(1, b"early"), frame(1, b"later")
    known, told = [], []
    with connected(tmp_path) as (ours, theirs):
        theirs.sendall(b"HTTP/1.1 101\r\n" + early + more)

        def wait():
            if not known:
                known.append(b"".join(told))
                theirs.sendall(late[len(more) :])
                theirs.shutdown(socket.SHUT_RDWR)
            select.select([ours], [], [], 0.05)

        with ours.makefile("rb") as connection:
            connection.readline()
            ours.settimeout(0)
            for each in frames(connection, wait):
                told.append(each.stdout)

    assert [b"early"] == known
    assert b"earlylater" == b"".join(told)
