"""Builtins about text: formatting, escaping, versions, units, regular expressions."""

from __future__ import annotations

import re
import urllib.parse

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice

import re2
import yaml

from launcher.adapters.policies.builtins import gofmt
from launcher.adapters.policies.builtins.checks import (
    MOST,
    Growing,
    array,
    collection,
    integer,
    string,
)
from launcher.adapters.policies.machine import Builtin, Call, Halt
from launcher.adapters.policies.values import Object, Set, Value


_LARGEST = 32 << 20
"""Characters that a replacement may make of a text."""


def sprintf(call: Call, template: Value, operands: Value) -> str:
    text = gofmt.sprintf(string(template), array(operands), Growing(call).add)
    if len(text) > MOST:
        raise Halt(f"more than {MOST} characters")
    return text


def prefix_match(_: Call, texts: Value, bases: Value) -> bool:
    given = tuple(map(string, _listed(bases)))
    return any(string(text).startswith(given) for text in _listed(texts))


def suffix_match(_: Call, texts: Value, bases: Value) -> bool:
    given = tuple(map(string, _listed(bases)))
    return any(string(text).endswith(given) for text in _listed(texts))


def _listed(value: Value) -> list[Value]:
    return [value] if isinstance(value, str) else collection(value)


def replaced(call: Call, patterns: Value, text: Value) -> str:
    pairs = {string(old): string(new) for old, new in patterns.items()}
    return _replacer(call, tuple(sorted(pairs.items())), string(text))


def _replacer(call: Call, pairs: tuple[tuple[str, str], ...], text: str) -> str:
    """Go's ``strings.Replacer``: at each place the first pair that matches."""
    parts: list[str] = []
    growing = Growing(call, _LARGEST)
    at = 0
    matched_empty_at = -1
    while at <= len(text):
        growing.add(parts[-1] if parts else "")
        for old, new in pairs:
            if old and text.startswith(old, at):
                parts.append(new)
                at += len(old)
                break
            if not old and matched_empty_at != at:
                parts.append(new)
                matched_empty_at = at
        else:
            parts.append(text[at : at + 1])
            at += 1
    return "".join(parts)


def count(_: Call, text: Value, part: Value) -> int:
    if not part:
        return len(string(text)) + 1
    return string(text).count(string(part))


def split_n(_: Call, text: Value, delimiter: Value, number: Value) -> list[str]:
    """The first parts, or with a negative number the last ones."""
    most = integer(number)
    if not string(delimiter):
        parts = list(string(text))
    else:
        parts = string(text).split(delimiter)
    return parts[:most] if most >= 0 else parts[most:]


def indexof_n(_: Call, text: Value, part: Value) -> list[int]:
    if not string(part):
        raise ValueError("nothing to search for")
    return [at for at in range(len(string(text))) if text.startswith(part, at)]


def urlquery_encode(_: Call, text: Value) -> str:
    return urllib.parse.quote_plus(string(text), safe="")


def urlquery_decode(_: Call, text: Value) -> str:
    return _unescaped(string(text))


def _unescaped(text: str) -> str:
    if re.search("%(?![0-9a-fA-F]{2})", text):
        raise ValueError("a % without two hexadecimal digits")
    return urllib.parse.unquote_plus(text, errors="strict")


def urlquery_encode_object(_: Call, given: Value) -> str:
    pairs = []
    for key, value in sorted(given.items()):
        texts = [value] if isinstance(value, str) else collection(value)
        ordered = sorted(texts) if isinstance(texts, Set) else texts
        pairs += [(string(key), string(text)) for text in ordered]
    return urllib.parse.urlencode(pairs)


def urlquery_decode_object(_: Call, text: Value) -> Object:
    found = Object()
    for pair in string(text).split("&"):
        if not pair:
            continue
        if ";" in pair:
            raise ValueError("a semicolon separates nothing")
        key, _equals, value = pair.partition("=")
        found.setdefault(_unescaped(key), []).append(_unescaped(value))
    return found


def uri_parse(_: Call, text: Value) -> Object:
    """The parts of a URL that are not empty, as Go tells them apart."""
    given, parts = string(text), Object()
    rest, _hash, fragment = given.partition("#")
    if any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in given):
        raise ValueError("a control character")
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", rest)
    if scheme:
        parts["scheme"] = scheme[1].lower()
        rest = rest[scheme.end() :]
    elif rest.startswith(":"):
        raise ValueError("the scheme is missing")
    rest, _question, query = rest.partition("?")
    if scheme and rest and not rest.startswith("/"):
        path = ""  # opaque, such as an address of mail
    elif rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        path = slash + path
        _host(authority, parts)
    else:
        path = rest
        if not scheme and ":" in path.partition("/")[0]:
            raise ValueError("a colon in the first part of the path")
    if path:
        parts["path"] = plain = _percent(path)
        # Go keeps the path as it was written if it would write it differently.
        as_go = urllib.parse.quote(plain, safe="-_.~$&+,/:;=@")
        parts["raw_path"] = plain if as_go == path else path
    if query:
        parts["raw_query"] = query
    if fragment:
        parts["fragment"] = _percent(fragment)
    return parts


def _host(authority: str, parts: Object) -> None:
    user, at, host = authority.rpartition("@")
    if at and not re.fullmatch(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*", user):
        raise ValueError("the user is not valid")
    found = re.fullmatch(r"(\[[^\]]*\]|[^\[:]*)(?::([0-9]*))?", host)
    # Only what is no ASCII may be escaped here, and the % of an IPv6 zone.
    if found is None or re.search(r'[ <>"]|%(?!25)[0-7]', host):
        raise ValueError("the host is not valid")
    name = _percent(found[1].strip("[]") if found[1][:1] == "[" else found[1])
    if name:
        parts["hostname"] = name
    if found[2]:
        parts["port"] = found[2]


def _percent(text: str) -> str:
    if re.search("%(?![0-9a-fA-F]{2})", text):
        raise ValueError("a % without two hexadecimal digits")
    return urllib.parse.unquote(text, errors="strict")


def uri_is_valid(call: Call, text: Value) -> bool:
    try:
        uri_parse(call, text)
    except (TypeError, ValueError):
        return False
    return bool(text)


# Regular expressions: the same engine that OPA's WebAssembly has inside.


@lru_cache(256)
def _pattern(text: str) -> re2._Regexp:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(text, options)


def regex_split(_: Call, pattern: Value, text: Value) -> list[str]:
    string(text)
    if not text:
        return [""]
    parts, begin = [], 0
    for found in _pattern(string(pattern)).finditer(text):
        if found.end() == 0:
            continue
        if found.start() == len(text) and found.end() == len(text):
            break
        parts.append(text[begin : found.start()])
        begin = found.end()
    return [*parts, text[begin:]]


def regex_replace(call: Call, text: Value, pattern: Value, new: Value) -> str:
    expanded = _expander(string(new), Growing(call, _LARGEST))
    return str(_pattern(string(pattern)).sub(expanded, string(text)))


_REFERENCE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})", re.ASCII)


def _expander(template: str, growing: Growing) -> Callable[[re2._Match], str]:
    def expand(match: re2._Match) -> str:
        def value(reference: re.Match[str]) -> str:
            if reference[1]:
                return "$"
            name = reference[2] or reference[3]
            try:
                return match.group(int(name) if name.isdecimal() else name) or ""
            except (IndexError, KeyError):
                return ""

        expanded = _REFERENCE.sub(value, template)
        growing.add(expanded)
        return expanded

    return expand


def regex_find_n(_: Call, pattern: Value, text: Value, number: Value) -> list[str]:
    most = integer(number)
    found = (
        match.group() for match in _pattern(string(pattern)).finditer(string(text))
    )
    return list(found) if most < 0 else list(islice(found, most))


def regex_template_match(
    _: Call, template: Value, text: Value, begin: Value, end: Value
) -> bool:
    if len(string(begin)) != 1 or len(string(end)) != 1:
        raise ValueError("a delimiter is one character")
    parts: list[str] = []
    level, at = 0, 0
    for place, letter in enumerate(string(template)):
        if letter == begin:
            if level == 0:
                parts.append(re2.escape(template[at:place]))
                at = place + 1
            level += 1
        elif letter == end:
            level -= 1
            if level < 0:
                raise ValueError("delimiters do not match")
            if level == 0:
                parts.append(f"({template[at:place]})")
                at = place + 1
    if level:
        raise ValueError("delimiters do not match")
    parts.append(re2.escape(template[at:]))
    return bool(_pattern(f"^{''.join(parts)}$").search(string(text)))


_Token = tuple[frozenset[str] | None, bool]
"""The letters that fit, None for all of them; whether any number of them does."""


def globs_match(call: Call, one: Value, other: Value) -> bool:
    """Whether there is a text that both of two simple patterns describe."""
    left, right = _tokens(string(one)), _tokens(string(other))
    waiting, seen = [(0, 0)], {(0, 0)}
    while waiting:
        call.check_time()
        x, y = waiting.pop()
        if (x, y) == (len(left), len(right)):
            return True
        for place in _steps(left, right, x, y):
            if place not in seen:
                seen.add(place)
                waiting.append(place)
    return False


def _steps(
    left: list[_Token], right: list[_Token], x: int, y: int
) -> Iterator[tuple[int, int]]:
    if x < len(left) and left[x][1]:
        yield x + 1, y
    if y < len(right) and right[y][1]:
        yield x, y + 1
    if x < len(left) and y < len(right):
        (these, repeated), (those, again) = left[x], right[y]
        if these is None or those is None or these & those:
            yield x + (not repeated), y + (not again)


def _tokens(pattern: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(pattern):
        letters: frozenset[str] | None
        match pattern[at]:
            case "[":
                end = re.compile(r"(?:[^\\\]]|\\.)*\]", re.DOTALL).match(
                    pattern, at + 1
                )
                if end is None:
                    raise ValueError("a set without its end")
                letters = _letters(pattern[at + 1 : end.end() - 1])
                at = end.end()
            case "]" | "+" | "*":
                raise ValueError("nothing before it that it could belong to")
            case "\\":
                letters = frozenset(pattern[at + 1])
                at += 2
            case ".":
                letters, at = None, at + 1
            case letter:
                letters, at = frozenset(letter), at + 1
        flag = pattern[at : at + 1]
        if flag in ("+", "*"):
            at += 1
        if flag != "*":
            tokens.append((letters, False))
        if flag in ("+", "*"):
            tokens.append((letters, True))
    return tokens


def _letters(text: str) -> frozenset[str]:
    plain = re.findall(r"\\.|.", text, re.DOTALL)
    found: set[str] = set()
    at = 0
    while at < len(plain):
        first = plain[at][-1]
        if plain[at + 1 : at + 2] == ["-"] and at + 2 < len(plain):
            last = plain[at + 2][-1]
            if last < first:
                raise ValueError("a range that ends before it begins")
            found.update(map(chr, range(ord(first), ord(last) + 1)))
            at += 3
        else:
            found.add(first)
            at += 1
    return frozenset(found)


def glob_quote_meta(_: Call, text: Value) -> str:
    return re.sub(r"([*?\\\[\]{}])", r"\\\1", string(text))


# Versions and units.

_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
    r"(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)


def semver_is_valid(_: Call, text: Value) -> bool:
    return isinstance(text, str) and _SEMVER.fullmatch(text) is not None


def semver_compare(_: Call, one: Value, other: Value) -> int:
    left, right = _version(one), _version(other)
    return (left > right) - (left < right)


def _version(text: Value) -> tuple[list[int], bool, list[tuple[int, int, str]]]:
    found = _SEMVER.fullmatch(string(text))
    if found is None:
        raise ValueError("not a version")
    suffix = found[4]
    parts = [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in (suffix or "").split(".")
    ]
    return [int(found[n]) for n in (1, 2, 3)], suffix is None, parts


_DECIMAL = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_UNIT = re.compile(r"([0-9.eE+-]*?[0-9.])([a-zA-Z]*)", re.ASCII)


def _measure(text: Value) -> tuple[Fraction, str]:
    given = string(text).replace('"', "")
    found = _UNIT.fullmatch(given)
    if found is None:
        raise ValueError("not an amount")
    return Fraction(found[1]), found[2]


def units_parse(_: Call, text: Value) -> int | float:
    amount, unit = _measure(text)
    if unit == "m":
        return _number(amount / 1000)
    return _number(amount * _factor(unit.lower()))


def units_parse_bytes(_: Call, text: Value) -> int:
    amount, unit = _measure(text)
    return int(amount * _factor(unit.lower().removesuffix("b")))


def _factor(unit: str) -> int:
    if unit.endswith("i"):
        return int(1024 ** _DECIMAL[unit[:-1]])
    return int(1000 ** _DECIMAL[unit])


def _number(amount: Fraction) -> int | float:
    return amount.numerator if amount.denominator == 1 else float(amount)


# YAML as Go reads it: `on` and `yes` are words, and so are dates.


class _Loader(yaml.SafeLoader):
    """Knows true and false by these names only, and no time."""

    check_time: Callable[[], None] | None = None

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_time is not None:
            self.check_time()
        return super().compose_node(parent, index)


_ABSENT = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag not in _ABSENT]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool",
    re.compile("true|True|TRUE|false|False|FALSE"),
    list("tTfF"),
)


def loaded(text: str, check_time: Callable[[], None] | None = None) -> Value:
    """
    Read the first document of *text*; *check_time* is called at each of its nodes.

    Raises:
        ValueError: it is not YAML.
    """
    loader = _Loader(text)
    loader.check_time = check_time
    try:
        node = loader.get_node() if loader.check_node() else None
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as exc:
        raise ValueError("not YAML") from exc
    finally:
        loader.dispose()


def yaml_is_valid(call: Call, text: Value) -> bool:
    try:
        loaded(string(text), call.check_time)
        # What comes after the first document is not read, yet it counts.
        for _event in yaml.parse(text, _Loader):
            call.check_time()
    except (TypeError, ValueError, yaml.YAMLError):
        return False
    return True


def yaml_marshal(_: Call, value: Value) -> str:
    return str(yaml.safe_dump(_plain(value), allow_unicode=True, width=1 << 30))


def yaml_unmarshal(call: Call, text: Value) -> Value:
    return loaded(string(text), call.check_time)


def _plain(value: Value) -> Value:
    if isinstance(value, dict):
        return {string(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        ordered = sorted(value, key=gofmt.order) if isinstance(value, Set) else value
        return [_plain(entry) for entry in ordered]
    return value


BUILTINS: dict[str, Builtin] = {
    "sprintf": sprintf,
    "strings.any_prefix_match": prefix_match,
    "strings.any_suffix_match": suffix_match,
    "strings.count": count,
    "strings.split_n": split_n,
    "indexof_n": indexof_n,
    "strings.replace_n": replaced,
    "urlquery.encode": urlquery_encode,
    "urlquery.decode": urlquery_decode,
    "urlquery.encode_object": urlquery_encode_object,
    "urlquery.decode_object": urlquery_decode_object,
    "uri.parse": uri_parse,
    "uri.is_valid": uri_is_valid,
    "regex.split": regex_split,
    "regex.replace": regex_replace,
    "regex.find_n": regex_find_n,
    "regex.globs_match": globs_match,
    "regex.template_match": regex_template_match,
    "glob.quote_meta": glob_quote_meta,
    "semver.is_valid": semver_is_valid,
    "semver.compare": semver_compare,
    "units.parse": units_parse,
    "units.parse_bytes": units_parse_bytes,
    "yaml.is_valid": yaml_is_valid,
    "yaml.marshal": yaml_marshal,
    "yaml.unmarshal": yaml_unmarshal,
}
