import re

import pytest

from hypothesis import given
from hypothesis import strategies as st

from launcher.output.markers import Mark, MarkParser


NONCE = "0f1e"
START = b"\x1e0f1e "
REAL = START + b"end plan 0\x1f"


def parsed(chunks: list[bytes]) -> tuple[bytes, list[tuple[str, ...]]]:
    """All output as one, and all marks in order, of a stream that ends."""
    parser = MarkParser(NONCE)
    items = [item for chunk in chunks for item in parser.feed(chunk)]
    output = b"".join(item for item in items if isinstance(item, bytes))
    marks = [item.words for item in items if isinstance(item, Mark)]
    return output + parser.close(), marks


def reference(text: bytes) -> tuple[bytes, list[tuple[str, ...]]]:
    """The same, of a stream that is there as a whole."""
    longest = 200 - len(START) - 1
    pattern = re.escape(START) + rb"([^\x1e\x1f]{0,%d})\x1f" % longest
    words = [m[1].decode("ascii", "replace") for m in re.finditer(pattern, text)]
    return re.sub(pattern, b"", text), [tuple(each.split()) for each in words]


pieces = st.sampled_from(
    [
        REAL,
        START,
        START + b"begin plan\x1f",
        b"\x1e",
        b"\x1f",
        b"\x1e\x1e0f",
        b"0f1e ",
        b"\x1eother end plan 0\x1f",
        b"text\n",
        b"\xff\x00",
        START + b"y" * 192 + b"\x1f",
        START + b"x" * 193 + b"\x1f",
        b"z" * 250,
    ]
)


@given(st.lists(pieces, max_size=6), st.lists(st.integers(0, 1500), max_size=8))
def test_every_chunking_gives_the_same(parts, places):
    """However a stream is cut, the same marks are found and the same output is left."""
    text = b"".join(parts)
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    chunks = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert reference(text) == parsed(chunks)


@given(st.lists(pieces, max_size=4))
def test_single_bytes_give_the_same(parts):
    """A stream that drips in byte by byte is read like one that comes at once."""
    text = b"".join(parts)
    assert reference(text) == parsed([text[i : i + 1] for i in range(len(text))])


def test_order_of_output_and_marks_is_kept():
    """What is printed before a mark comes out before it, what follows after it."""
    items = list(MarkParser(NONCE).feed(b"before" + REAL + b"after"))
    assert [b"before", Mark(("end", "plan", "0")), b"after"] == items


@pytest.mark.parametrize(
    "forged", [START, START + b"end pl", b"\x1e0f1", START * 3, START + b"x" * 190]
)
def test_a_forged_beginning_does_not_hide_the_real_mark(forged):
    """A job that prints half a mark cannot swallow the one of the entry script."""
    assert (forged, [("end", "plan", "0")]) == parsed([forged + REAL])


def test_a_mark_with_another_nonce_is_output():
    """Who does not know the nonce cannot make a mark."""
    foreign = b"\x1edead end plan 0\x1f"
    assert (foreign, []) == parsed([foreign])


def test_an_overlong_mark_is_output():
    """Text that begins like a mark and does not end soon is passed on unchanged."""
    endless = START + b"x" * 10_000
    parser = MarkParser(NONCE)
    assert endless == b"".join(parser.feed(endless)) + parser.close()


def test_what_may_become_a_mark_waits():
    """A mark that has not ended yet is held back, and given out at the end."""
    parser = MarkParser(NONCE)
    assert [b"x"] == list(parser.feed(b"x" + REAL[:-1]))
    assert REAL[:-1] == parser.close()
    assert b"" == parser.close()


def test_little_is_ever_held_back():
    """However long the stream, less than the longest mark waits in memory."""
    parser, given_out = MarkParser(NONCE), 0
    for turn in range(2000):
        given_out += sum(len(item) for item in parser.feed(START + b"ab"))
        assert (turn + 1) * len(START + b"ab") - given_out < 200


def test_words_that_are_not_ascii_do_not_break_the_stream():
    """A forged mark of arbitrary bytes is a mark with odd words, nothing worse."""
    _, marks = parsed([START + b"end plan \xff\xfe\x1f"])
    assert [("end", "plan", "\ufffd\ufffd")] == marks
