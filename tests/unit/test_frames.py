"""The frames in which an engine sends what an exec prints."""

import io

import pytest

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
