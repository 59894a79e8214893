"""Builtins about arrays, objects and graphs that OPA's WebAssembly lacks."""

from __future__ import annotations

import copy
import json

from collections.abc import Iterator

from launcher.adapters.policies.builtins.checks import (
    MOST,
    array,
    bounded,
    collection,
    integer,
    mapping,
    string,
)
from launcher.adapters.policies.builtins.gofmt import order
from launcher.adapters.policies.machine import Builtin, Call, Halt
from launcher.adapters.policies.values import Set, Value


def range_step(_: Call, begin: Value, end: Value, step: Value) -> list[int]:
    first, last, width = integer(begin), integer(end), integer(step)
    if width <= 0:
        raise ValueError("the step must be positive")
    if first <= last:
        return bounded(range(first, last + 1, width))
    return bounded(range(first, last - 1, -width))


def reachable_paths(call: Call, graph: Value, initial: Value) -> Set:
    """Every path from *initial* to where it ends or would repeat itself."""
    edges = mapping(graph)

    def paths(path: list[Value], node: Value) -> Iterator[list[Value]]:
        call.check_time()
        if not isinstance(node, str) or node not in edges:
            yield path
            return
        path = [*path, node]
        following = _vertices(edges[node])
        if not following:
            yield path
        for neighbour in following:
            if neighbour in path:
                yield path
            else:
                yield from paths(path, neighbour)

    begins = [
        node for node in collection(initial) if isinstance(node, str) and node in edges
    ]
    return Set(bounded(path for node in begins for path in paths([], node)))


def _vertices(edges: Value) -> list[Value]:
    return edges if isinstance(edges, list) else []


def subset(_: Call, whole: Value, part: Value) -> bool:
    match whole, part:
        case dict(), dict():
            return _object_subset(whole, part)
        case list(), Set():
            # Both of a set in a set and of a set in an array.
            members = [order(each) for each in whole]
            return all(order(each) in members for each in part)
        case Set(), _:
            raise TypeError("a set has subsets that are sets")
        case list(), list():
            return _array_subset(whole, part)
        case _:
            raise TypeError("neither objects nor arrays nor sets")


def _object_subset(whole: Value, part: Value) -> bool:
    for key, entry in part.items():
        if key not in whole:
            return False
        other = whole[key]
        if order(other) == order(entry):
            continue
        same_kind = isinstance(other, Set) == isinstance(entry, Set)
        try:
            if not same_kind or not subset(None, other, entry):  # type: ignore[arg-type]
                return False
        except TypeError:
            return False
    return True


def _array_subset(whole: list[Value], part: list[Value]) -> bool:
    """Search as OPA does, which does not go back after a partial match."""
    at = matched = 0
    while matched < len(part):
        if at + matched == len(whole):
            return False
        if order(whole[at + matched]) == order(part[matched]):
            matched += 1
        else:
            at, matched = at + 1, 0
    return True


def cast_array(_: Call, value: Value) -> list[Value]:
    return sorted(value, key=order) if isinstance(value, Set) else array(value)


def cast_set(_: Call, value: Value) -> Set:
    return value if isinstance(value, Set) else Set(array(value))


def _cast(kind: type) -> Builtin:
    def cast(_: Call, value: Value) -> Value:
        if not isinstance(value, kind):
            raise TypeError("a value of another type")
        return value

    return cast


def marshal_with_options(_: Call, value: Value, options: Value) -> str:
    indent, prefix, pretty = "\t", "", None
    for name, option in mapping(options).items():
        match name, option:
            case "indent", str():
                indent = option
            case "prefix", str():
                prefix = option
            case "pretty", bool():
                pretty = option
            case _:
                raise ValueError("no option of that name and type")
    if pretty is None:
        pretty = "indent" in options or "prefix" in options
    if not pretty:
        return go_json(value)
    text = go_json(value, indent=indent)
    return "\n".join(prefix + line for line in text.split("\n"))


def go_json(value: Value, indent: str | None = None) -> str:
    """JSON as Go writes it: keys sorted, and fit to be put into HTML."""
    text = json.dumps(
        _plain(value),
        ensure_ascii=False,
        sort_keys=True,
        indent=indent,
        separators=(",", ": " if indent is not None else ":"),
    )
    return text.translate(_HTML)


_HTML = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def _plain(value: Value) -> Value:
    match value:
        case float() if value.is_integer() and abs(value) < 1e21:
            return int(value)
        case Set():
            return [_plain(each) for each in sorted(value, key=order)]
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {string(key): _plain(each) for key, each in value.items()}
        case _:
            return value


def json_patch(_: Call, document: Value, patches: Value) -> Value:
    """RFC 6902, where sets are addressed by their members."""
    value = copy.deepcopy(document)
    copied = 0
    for patch in array(patches):
        if patch["op"] == "copy":
            # A few of these, each of all before it, would fill any memory.
            copied += _entries(_get(value, _path(patch["from"])))
            if copied > MOST:
                raise Halt(f"more than {MOST} entries are copied")
        value = _patched(value, patch)
    return value


def _entries(value: Value) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_entries, value.values()))
    return 1 + sum(map(_entries, value)) if isinstance(value, list) else 1


def _patched(value: Value, patch: Value) -> Value:
    path = _path(patch["path"])
    match patch["op"]:
        case "add":
            return _put(value, path, patch["value"], new=True)
        case "remove":
            return _removed(value, path)
        case "replace":
            _get(value, path)
            return _put(value, path, patch["value"], new=False)
        case "move":
            origin = _path(patch["from"])
            moved = _get(value, origin)
            return _put(_removed(value, origin), path, moved, new=True)
        case "copy":
            copied = copy.deepcopy(_get(value, _path(patch["from"])))
            return _put(value, path, copied, new=True)
        case "test":
            if order(_get(value, path)) != order(patch["value"]):
                raise ValueError("the test failed")
            return value
        case _:
            raise ValueError("no operation of that name")


def _path(given: Value) -> list[Value]:
    if isinstance(given, str):
        if not given:
            return []
        parts = given.lstrip("/").split("/")
        return [part.replace("~1", "/").replace("~0", "~") for part in parts]
    return list(array(given))


def _index(value: list[Value], step: Value, *, end: bool = False) -> int:
    if step == "-" and end:
        return len(value)
    text = str(step)
    if not text.isdecimal() or (text != "0" and text.startswith("0")):
        raise ValueError("not an index")
    number = int(text)
    if number >= len(value) + end:
        raise IndexError("beyond the end")
    return number


def _member(value: Set, step: Value) -> int:
    for number, member in enumerate(value):
        if order(member) == order(step):
            return number
    raise KeyError("not in the set")


def _get(value: Value, path: list[Value]) -> Value:
    for step in path:
        if isinstance(value, Set):
            value = value[_member(value, step)]
        elif isinstance(value, list):
            value = value[_index(value, step)]
        else:
            value = value[step]
    return value


def _put(value: Value, path: list[Value], entry: Value, *, new: bool) -> Value:
    if not path:
        return entry
    parent, step = _get(value, path[:-1]), path[-1]
    if isinstance(parent, Set):
        if order(step) != order(entry):
            raise ValueError("a set's member is its own address")
        if new:
            parent.append(entry)
    elif isinstance(parent, list):
        number = _index(parent, step, end=new)
        parent[number : number + (not new)] = [entry]
    elif isinstance(parent, dict):
        parent[string(step)] = entry
    else:
        raise TypeError("nothing can be put there")
    return value


def _removed(value: Value, path: list[Value]) -> Value:
    if not path:
        raise ValueError("the whole cannot be removed")
    parent, step = _get(value, path[:-1]), path[-1]
    if isinstance(parent, Set):
        del parent[_member(parent, step)]
    elif isinstance(parent, list):
        del parent[_index(parent, step)]
    else:
        del parent[step]
    return value


BUILTINS: dict[str, Builtin] = {
    "numbers.range_step": range_step,
    "graph.reachable_paths": reachable_paths,
    "json.patch": json_patch,
    "json.marshal_with_options": marshal_with_options,
    "object.subset": subset,
    "cast_array": cast_array,
    "cast_set": cast_set,
    "cast_string": _cast(str),
    "cast_boolean": _cast(bool),
    "cast_null": _cast(type(None)),
    "cast_object": _cast(dict),
}
