"""What builtins demand of their operands; a complaint makes the result undefined."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.adapters.policies.machine import Call, Halt
from launcher.adapters.policies.values import Set, Value


MOST = 1_000_000
"""Entries or characters a builtin may produce; more end the evaluation."""


def string(value: Value) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def integer(value: Value) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    if int(value) != value:
        raise ValueError("not an integer")
    return int(value)


def array(value: Value) -> list[Value]:
    if not isinstance(value, list) or isinstance(value, Set):
        raise TypeError("not an array")
    return value


def collection(value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise TypeError("neither an array nor a set")
    return value


def mapping(value: Value) -> dict[Value, Value]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


class Growing:
    """Watches over a text that is made of many parts."""

    def __init__(self, call: Call, most: int = MOST) -> None:
        self._call = call
        self._most = most
        self._length = 0

    def add(self, part: str) -> None:
        """
        Count *part*.

        Raises:
            Halt: the text is too long, or the evaluation's time is over.
        """
        self._call.check_time()
        self._length += len(part)
        if self._length > self._most:
            raise Halt(f"more than {self._most} characters")


def bounded(values: Iterable[Value]) -> list[Value]:
    """
    Collect *values*.

    Raises:
        Halt: they are too many.
    """
    collected = []
    for value in values:
        collected.append(value)
        if len(collected) > MOST:
            raise Halt(f"more than {MOST} results")
    return collected
