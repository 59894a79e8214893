"""Builtins about networks; none of them asks the network anything."""

from __future__ import annotations

import ipaddress

from collections.abc import Iterator

from launcher.adapters.policies.builtins.checks import bounded, string
from launcher.adapters.policies.machine import Builtin, Call
from launcher.adapters.policies.values import Object, Set, Value


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(text: Value) -> Network:
    if "/" not in string(text):
        raise ValueError("not a CIDR")
    return ipaddress.ip_network(text, strict=False)


def _either(text: Value) -> Network:
    return ipaddress.ip_network(string(text), strict=False)


def _with_mask(text: Value) -> Network:
    """An address alone stands for the network of its class, as in Go."""
    if "/" in string(text):
        return _network(text)
    address = ipaddress.IPv4Address(text)
    first = int(address) >> 24
    bits = 8 if first < 128 else 16 if first < 192 else 24
    if first >= 224:
        raise ValueError("the address belongs to no class with a mask")
    return ipaddress.IPv4Network((int(address), bits), strict=False)


def is_valid(_: Call, text: Value) -> bool:
    try:
        _network(text)
    except (ValueError, TypeError):
        return False
    return True


def expand(_: Call, text: Value) -> Set:
    return Set(str(address) for address in bounded(_network(text)))


def merge(_: Call, given: Value) -> Set:
    networks = [_with_mask(each) for each in given]
    merged: list[Network] = [
        *ipaddress.collapse_addresses(n for n in networks if n.version == 4),
        *ipaddress.collapse_addresses(n for n in networks if n.version == 6),
    ]
    return Set(map(str, merged))


def contains_matches(call: Call, outer: Value, inner: Value) -> Set:
    def pairs() -> Iterator[list[Value]]:
        for left, network in _numbered(outer):
            call.check_time()
            for right, other in _numbered(inner):
                if network.version == other.version and other.subnet_of(network):  # type: ignore[arg-type]
                    yield [left, right]

    return Set(bounded(pairs()))


def _numbered(given: Value) -> Iterator[tuple[Value, Network]]:
    match given:
        case str():
            yield given, _either(given)
        case Object() | dict():
            for key, value in given.items():
                yield key, _either(_first(value))
        case Set():
            for value in given:
                yield value, _either(_first(value))
        case list():
            for number, value in enumerate(given):
                yield number, _either(_first(value))
        case _:
            raise TypeError("no networks")


def _first(value: Value) -> Value:
    return value[0] if isinstance(value, list) and not isinstance(value, Set) else value


BUILTINS: dict[str, Builtin] = {
    "net.cidr_is_valid": is_valid,
    "net.cidr_expand": expand,
    "net.cidr_merge": merge,
    "net.cidr_contains_matches": contains_matches,
}
