"""One line of hostile output, as HTML."""

import html
import re

from html.parser import HTMLParser

import pytest

from hypothesis import given
from hypothesis import strategies as st

from launcher.controlplane.web.ansi import plain, rendered


class Reader(HTMLParser):
    """What a browser would see: the tags, and the text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes))

    def handle_data(self, data):
        self.text += data


def read(text):
    reader = Reader()
    reader.feed(rendered(text))
    reader.close()
    return reader


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", '<span class="c1">red</span>'),
        ("\x1b[1;4;32mgood\x1b[m bye", '<span class="b u c2">good</span> bye'),
        ("\x1b[2;3;22;23;24mx", "x"),
        ("\x1b[97;41mx\x1b[39;49my", '<span class="c15 g1">x</span>y'),
        ("\x1b[38;5;9mx", '<span class="c9">x</span>'),
        ("\x1b[38;5;196mx", '<span class="c9">x</span>'),
        ("\x1b[38;5;255mx", '<span class="c7">x</span>'),
        ("\x1b[48;2;0;0;238mx", '<span class="g4">x</span>'),
        ("\x1b[38:5:2mx", '<span class="c2">x</span>'),
        ("\x1b[38mx", "x"),
        ("\x1b[38;2;1mx", '<span class="c0">x</span>'),
        ("\x1b[999999999999mx", "x"),
        ("10 %\r50 %\r100 %", "100 %"),
        ("a line of DOS\r", "a line of DOS"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;ZXZpbA==\x07x", "x"),
        ("cut\x1b[3", "cut"),
        ("\x1b", ""),
        ("a\tb", "a\tb"),
        ("\x00\x07\x7f", "␀␇&lt;U+007F&gt;"),
        ("moc\u202egnp.exe", "moc&lt;U+202E&gt;gnp.exe"),
        ("\u2066x\u200f", "&lt;U+2066&gt;x&lt;U+200F&gt;"),
        ("<script>alert(1)</script>", html.escape("<script>alert(1)</script>")),
        ('" onload="x', "&quot; onload=&quot;x"),
    ],
)
def test_a_line(line, shown):
    """Colours are kept, other sequences are not, and what could fool people shows."""
    assert rendered(line) == shown


def test_a_style_ends_with_its_line():
    """What follows a line is never painted by it."""
    assert rendered("\x1b[31mred").endswith("</span>")
    assert rendered("next") == "next"


@given(
    st.text(st.sampled_from("ab<&\"'>\x1b[]m;:0138\r\x07\\\u202e ") | st.characters())
)
def test_no_line_is_markup(line):
    """Whatever a line says, a browser sees spans with classes of ours, and text."""
    seen = read(line)
    assert all(
        tag == "span" and re.fullmatch(r"[bfiucg0-9 ]+", dict(attributes)["class"])
        for tag, attributes in seen.tags
    )
    assert all(len(attributes) == 1 for _, attributes in seen.tags)
    assert not re.search("[\x00-\x08\x0a-\x1f\u202a-\u202e\u2066-\u2069]", seen.text)


@given(st.text(st.characters(blacklist_categories=["Cc", "Cs", "Cf", "Zl", "Zp"])))
def test_text_is_kept(line):
    """A line without sequences is shown as it is."""
    assert read(line).text == line
    assert plain(line) == line


def test_a_long_line_of_codes_is_read_in_time():
    """Ten megabytes of sequences are no more work than ten megabytes of text."""
    assert rendered("\x1b[" + "1;" * 5_000_000 + "mx") == '<span class="b">x</span>'
    assert rendered("\x1b]" * 100_000) == ""
