"""
The forms in which a secret may turn up: what a `Masker` looks for.

A tool rarely prints a secret as it got it.  It puts it into JSON, an URL, a shell
command or base64, perhaps in the middle of something else.  So each value is looked
for in every one of these spellings.  In base64, a character stands for six bits;
those that belong to the value alone are the same whatever surrounds it, and there
are three ways in which they fall.
"""

from __future__ import annotations

import base64
import html
import json
import re
import string

from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus


SHORTEST = 4
"""Characters of the shortest value that is masked unless asked for."""

LONGEST = 4096
"""
Bytes of a needle.  Longer ones are looked for in pieces of that size, so that a
masker never holds back more than this, and a part of a secret file is masked, too.
"""

LARGE = 32 << 10
"""
Bytes from which on a value is looked for as it is, line by line, and as `base64`
prints it, but in no other form: there would be too many.
"""

_WRAPPED = (76, 64)  # columns at which `base64` and `openssl` begin a new line
_URL_SAFE = ("", "/", "!'()*", "/:")
_SHELL_SPECIAL = re.compile(r"[^A-Za-z0-9_@%+=:,./-]")
_UPPER_HEX = re.compile(r"\\u[0-9a-f]{4}")


def too_short(value: bytes) -> bool:
    """Whether masking *value* would make a log unreadable rather than safe."""
    return len(value.decode("utf-8", "replace")) < SHORTEST


def needles(values: Iterable[bytes], *, short: bool = False) -> frozenset[bytes]:
    """Every form of *values*; of those that are too short, only if *short*."""
    return frozenset(
        piece
        for value in values
        if value and (short or not too_short(value))
        for form in _forms(value)
        for piece in _pieces(form)
    )


def _forms(value: bytes) -> Iterator[bytes]:
    yield value
    if len(value) > LARGE:
        yield from _lines(base64.b64encode(value), _WRAPPED[0])
        yield from (line for line in map(bytes.strip, value.splitlines()) if line[3:])
        return
    yield from _in_base64(value)
    yield from _in_text(value)
    if b"\n" in value or b"\r" in value:
        yield from _of_lines(value)


def _of_lines(value: bytes) -> Iterator[bytes]:
    lines = value.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for end in (b"\n", b"\r\n"):
        other = end.join(lines)
        yield other
        yield from _in_base64(other)
        yield from _in_text(other)
    for line in lines:
        # Whoever prints it may indent it.
        stripped = line.strip()
        if not too_short(stripped):
            yield stripped
            yield from _in_text(stripped)


def _in_base64(value: bytes) -> Iterator[bytes]:
    for before in range(3):
        first = -(-8 * before // 6)
        last = 8 * (before + len(value)) // 6
        padded = bytes(before) + value
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(padded)
            if not before:
                yield encoded.rstrip(b"=")
            stable = encoded[first:last]
            # Of a value that is short because it was asked for, nothing may be left.
            if len(stable) >= min(SHORTEST, len(value)):
                yield stable
    alone = base64.b64encode(value)
    for columns in _WRAPPED:
        if len(alone) > columns:
            yield from _lines(alone, columns)


def _lines(text: bytes, columns: int) -> Iterator[bytes]:
    for start in range(0, len(text), columns):
        line = text[start : start + columns]
        if len(line) >= 2 * SHORTEST:
            yield line


def _in_text(value: bytes) -> Iterator[bytes]:
    yield from _in_urls(value)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    for form in (*_in_json(text), *_in_shells(text), *_in_xml(text)):
        yield form.encode()


def _in_urls(value: bytes) -> Iterator[bytes]:
    for safe in _URL_SAFE:
        for encoded in (quote(value, safe=safe), quote_plus(value, safe=safe)):
            yield encoded.encode()
            yield _lower_escapes(encoded).encode()


def _lower_escapes(encoded: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), encoded)


def _in_json(text: str) -> Iterator[str]:
    """As Python, Go, JavaScript, PHP and HCL write a string."""
    for ascii_only in (True, False):
        plain = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield plain
        yield plain.replace("/", "\\/")
        yield plain.replace("${", "$${").replace("%{", "%%{")
        yield _UPPER_HEX.sub(lambda found: "\\u" + found[0][2:].upper(), plain)
        careful = plain
        for special in "<>&":
            careful = careful.replace(special, f"\\u{ord(special):04x}")
        yield careful
    yield text.replace("'", "\\'")


def _in_shells(text: str) -> Iterator[str]:
    yield text.replace("'", "'\\''")
    yield text.replace("'", "'\"'\"'")
    yield re.sub(r'[\\"$`]', r"\\\g<0>", text)
    yield _SHELL_SPECIAL.sub(r"\\\g<0>", text)
    if any(character in string.whitespace for character in text):
        escaped = text.replace("\\", "\\\\").replace("'", "\\'")
        for raw, shown in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
            escaped = escaped.replace(raw, shown)
        yield escaped


def _in_xml(text: str) -> Iterator[str]:
    bare = html.escape(text, quote=False)
    for double in ('"', "&quot;", "&#34;"):
        for single in ("'", "&apos;", "&#39;", "&#x27;"):
            yield bare.replace('"', double).replace("'", single)


def _pieces(form: bytes) -> Iterator[bytes]:
    if len(form) <= LONGEST:
        if form:
            yield form
        return
    for start in range(0, len(form) - LONGEST, LONGEST):
        yield form[start : start + LONGEST]
    yield form[-LONGEST:]
