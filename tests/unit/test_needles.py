import base64
import html
import json
import shlex
import urllib.parse

import pytest

from hypothesis import given
from hypothesis import strategies as st

from launcher.output.mask import Index, Masker
from launcher.output.needles import LONGEST, needles


SECRET = "p@ss w0rd/+ü'\"&<$`\\!%end"


def masked(text, *values, short=False):
    masker = Masker(needles(values, short=short))
    return masker.feed(text) + masker.close()


@given(st.binary(max_size=9), st.binary(min_size=4, max_size=40), st.binary(max_size=9))
def test_base64_is_masked_wherever_a_secret_lies_in_it(before, secret, after):
    """Of base64 with a secret in it, no character that only the secret decides is left."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(before + secret + after)
        first = -(-8 * len(before) // 6)
        last = 8 * (len(before) + len(secret)) // 6
        if len(secret.decode("utf-8", "replace")) >= 4:
            assert text[first:last] not in masked(text, secret)


@pytest.mark.parametrize(
    "encoded",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        json.dumps(SECRET)[1:-1].replace("\\u00fc", "\\u00FC"),
        json.dumps(SECRET)[1:-1].replace("/", "\\/"),
        json.dumps(SECRET)[1:-1].replace("<", "\\u003c").replace("&", "\\u0026"),
        urllib.parse.quote(SECRET, safe=""),
        urllib.parse.quote(SECRET),
        urllib.parse.quote(SECRET, safe="").lower(),
        urllib.parse.quote_plus(SECRET),
        urllib.parse.quote(SECRET, safe="!'()*"),
        shlex.quote(SECRET)[1:-1],
        SECRET.replace("'", "'\\''"),
        html.escape(SECRET),
        html.escape(SECRET).replace("&#x27;", "&apos;"),
        html.escape(SECRET).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
    ],
)
def test_escaped_secrets_are_masked(encoded):
    """Each way in which tools write a text down is recognised as the secret it holds."""
    assert b"a *****z" == masked(f"a {encoded}z".encode(), SECRET.encode())


def test_escapes_of_an_url_may_be_of_either_case():
    """Escapes of an URL are recognised in capital and in small letters."""
    assert b"*****" == masked(b"a%2Fb%2Bcd", b"a/b+cd")
    assert b"*****" == masked(b"a%2fb%2bcd", b"a/b+cd")
    assert b"*****" == masked(b"one+two", b"one two")


def test_lines_of_a_secret_are_masked_one_by_one():
    """A secret of many lines is masked as a whole, with other line ends, and by line."""
    secret = b"first line\n  second line\nxyz\n{\nlast line"
    assert b"*****" == masked(secret, secret)
    assert b"*****" == masked(secret.replace(b"\n", b"\r\n"), secret)
    assert b"> *****\n> *****\n" == masked(b"> second line\n> last line\n", secret)
    assert b"xyz { }" == masked(b"xyz { }", secret)
    assert b'"*****"' == masked(json.dumps(secret.decode()).encode(), secret)


@pytest.mark.parametrize("columns", [76, 64])
def test_base64_in_lines_is_masked(columns):
    """What `base64` and `openssl` break into lines is masked line by line."""
    secret = bytes(range(1, 200))
    encoded = base64.b64encode(secret)
    text = b"\n".join(
        encoded[at : at + columns] for at in range(0, len(encoded), columns)
    )
    shown = masked(text, secret)
    assert b"" == shown.replace(b"*", b"").replace(b"\n", b"").replace(b"=", b"")


def test_short_values_are_left_alone_unless_asked_for():
    """A value of three characters stays visible, in any spelling, unless opted in."""
    assert b"abc YWJj" == masked(b"abc YWJj", b"abc")
    assert b"***** *****" == masked(b"abc YWJj", b"abc", short=True)
    assert "äöü".encode() == masked("äöü".encode(), "äöü".encode())


def test_a_long_secret_is_masked_in_bounded_pieces():
    """Of a secret file, any long piece is masked; what is held back is bounded."""
    secret = "".join(str(number) for number in range(9000)).encode()
    masker = Masker(needles([secret]))
    shown = b""
    for start in range(0, len(secret), 1000):
        shown += masker.feed(secret[start : start + 1000])
        assert masker.waiting < LONGEST
    assert b"" == (shown + masker.close()).replace(b"*", b"")


@given(st.binary(max_size=60))
def test_any_bytes_may_be_secret(value):
    """A secret of any bytes has forms, and each of them has some length."""
    assert all(0 < len(needle) <= LONGEST for needle in needles([value], short=True))


def test_a_large_secret_file_has_a_bounded_number_of_forms():
    """Of a large file, lines and what `base64` prints are masked, and little else is tried."""
    lines = [b'  key-%d: "value-%d" & more' % (n, n * n) for n in range(4000)]
    secret = b"\n".join(lines)
    assert len(needles([secret])) < 2 * len(lines) + len(secret) // 40
    index = Index(needles([secret]))
    text = lines[1234].decode() + "\n" + base64.encodebytes(secret).decode()[770:847]
    assert "  *****\n*****\n" == index.text(text)
