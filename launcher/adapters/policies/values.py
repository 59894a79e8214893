"""
Values of Rego as Python has them, and the text that WebAssembly exchanges.

JSON has no sets and no keys but strings, so what a builtin is given or returns
travels in Rego's own notation: JSON, and beside it ``{1, 2}`` and ``set()``.
"""

from __future__ import annotations

import json
import math

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, TypeAlias


Value: TypeAlias = Any
"""None, bool, int, float, str, list, `Set` or `Object`."""


class Set(list[Value]):
    """A set, in no order of its own; whoever fills it may repeat himself."""


class Object(dict[Value, Value]):
    """An object; a key that is no string is a `Key`."""


@dataclass(frozen=True, slots=True)
class Key:
    """The notation of a key that is no string."""

    text: str


_LONGEST = 32 << 20
_SPACE = " \t\r\n"
_NUMBER = frozenset("+-.eE0123456789")
_PLAIN = (("true", True), ("false", False), ("null", None))


def parsed(text: str) -> Value:
    """
    Read one value.

    Raises:
        ValueError: it is none.
    """
    try:
        # The usual case, and whatever is JSON means the same here.
        return json.loads(text, parse_float=_float)
    except ValueError:
        pass
    value, end = _value(text, _skip(text, 0))
    if _skip(text, end) != len(text):
        raise ValueError("there is more than one value")
    return value


def notation(value: Value) -> str:
    """
    Write *value* so that `parsed` and OPA read it.

    Raises:
        ValueError, TypeError: it is no value.
        MemoryError: it is too long; a few aliases in YAML can make it so.
    """
    # Asked first: what is small here may take minutes to write.
    _refuse_long(_size(value, {}))
    parts, length = [], 0
    for part in _written(value):
        parts.append(part)
        length += len(part)
        _refuse_long(length)
    return "".join(parts)


def _refuse_long(length: int) -> None:
    if length > _LONGEST:
        raise MemoryError(f"a value of more than {_LONGEST >> 20} MiB")


def _size(value: Value, known: dict[int, int]) -> int:
    """At least how long *value* is, where what it refers to twice is counted twice."""
    if isinstance(value, str):
        return len(value) + 2
    if not isinstance(value, list | tuple | dict):
        return 1
    if id(value) not in known:
        entries = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 2 + sum(_size(each, known) + 1 for each in entries)
    return known[id(value)]


def _written(value: Value) -> Iterator[str]:
    match value:
        case Key():
            yield value.text
        case Huge():
            yield value.text
        case None | bool() | int() | float() | str():
            yield json.dumps(value, allow_nan=False)
        case Set():
            yield "{" if value else "set("
            yield from _listed(value)
            yield "}" if value else ")"
        case list() | tuple():
            yield "["
            yield from _listed(value)
            yield "]"
        case dict():
            yield "{"
            for number, (key, entry) in enumerate(value.items()):
                yield "," if number else ""
                yield from _written(key)
                yield ":"
                yield from _written(entry)
            yield "}"
        case _:
            raise TypeError(f"no value of Rego: {type(value).__name__}")


def _listed(values: Iterable[Value]) -> Iterator[str]:
    for number, entry in enumerate(values):
        yield "," if number else ""
        yield from _written(entry)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _value(text: str, at: int) -> tuple[Value, int]:
    match text[at : at + 1]:
        case '"':
            string, end = scanstring(text, at + 1)
            return string, end
        case "[":
            return _entries(text, at + 1, "]", [])
        case "{":
            return _braces(text, at)
        case _:
            return _scalar(text, at)


def _scalar(text: str, at: int) -> tuple[Value, int]:
    if text.startswith("set(", at):
        end = _skip(text, at + 4)
        if text[end : end + 1] != ")":
            raise ValueError("a set() with something in it")
        return Set(), end + 1
    for name, value in _PLAIN:
        if text.startswith(name, at):
            return value, at + len(name)
    end = at
    while end < len(text) and text[end] in _NUMBER:
        end += 1
    token = text[at:end]
    # Rego knows numbers without a digit before the point.
    number = json.loads(f"0{token}" if token[:1] == "." else token, parse_float=_float)
    return number, end


class Huge(float):
    """A number beyond floats; what it was written as is all there is to it."""

    text: str


def _float(text: str) -> float:
    number = float(text)
    if not math.isinf(number):
        return number
    huge = Huge(number)
    huge.text = text
    return huge


def _entries(
    text: str, at: int, closing: str, into: list[Value]
) -> tuple[list[Value], int]:
    at = _skip(text, at)
    while text[at : at + 1] != closing:
        value, at = _value(text, at)
        into.append(value)
        at = _after(text, at, closing)
    return into, at + 1


def _after(text: str, at: int, closing: str) -> int:
    """Return where the next entry or *closing* is."""
    at = _skip(text, at)
    if text[at : at + 1] == ",":
        return _skip(text, at + 1)
    if text[at : at + 1] == closing:
        return at
    raise ValueError(f"neither a comma nor {closing}")


def _braces(text: str, at: int) -> tuple[Value, int]:
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        return Object(), at + 1
    begin = at
    first, at = _value(text, at)
    end = _skip(text, at)
    if text[end : end + 1] != ":":
        start = _after(text, at, "}")
        return _entries(text, start, "}", Set([first]))
    into, key = Object(), first
    while True:
        value, at = _value(text, _skip(text, end + 1))
        into[key if isinstance(key, str) else Key(notation(key))] = value
        at = _after(text, at, "}")
        if text[at] == "}":
            return into, at + 1
        begin = at
        key, at = _value(text, begin)
        end = _skip(text, at)
        if text[end : end + 1] != ":":
            raise ValueError("neither a set nor an object")
