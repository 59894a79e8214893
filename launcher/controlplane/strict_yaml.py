"""
YAML read strictly, with a line number in every complaint.

All complaints are collected, so that a file is not corrected one error at a
time.  A value that is wrong is replaced by a harmless one, and reading goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml


Check = Callable[[str], str]
"""Returns the text to use, or raises ValueError with what is wrong."""

_KINDS = {
    "tag:yaml.org,2002:str": "a string",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:null": "empty",
    "tag:yaml.org,2002:seq": "a list",
    "tag:yaml.org,2002:map": "a mapping",
}
_TOO_DEEP = 30


class Problems:
    """Every complaint about one file."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str]] = []

    def at(self, node: yaml.Node, sentence: str) -> None:
        self._found.append((node.start_mark.line + 1, sentence))

    def on_line(self, line: int, sentence: str) -> None:
        self._found.append((line, sentence))

    def sentences(self) -> list[str]:
        """One sentence per complaint, in the order of the lines."""
        return [f"line {line}: {sentence}" for line, sentence in sorted(self._found)]


class Fields:
    """One mapping of the file, whose keys are all known."""

    def __init__(
        self, node: yaml.Node, known: frozenset[str], problems: Problems
    ) -> None:
        self.node = node
        self._problems = problems
        self._values: dict[str, yaml.Node] = {}
        if not isinstance(node, yaml.MappingNode):
            problems.at(node, f"expected a mapping, not {_kind(node)}")
            return
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else _kind(key)
            if name not in known:
                problems.at(key, f"unknown key {name!r}; known: {_listed(known)}")
            elif name in self._values:
                problems.at(key, f"key {name!r} is there twice")
            else:
                self._values[name] = value

    def has(self, key: str) -> bool:
        return key in self._values

    def complain(self, key: str | None, sentence: str) -> None:
        """Note that the value of *key*, or the whole mapping, is wrong."""
        self._problems.at(self._values.get(key or "", self.node), sentence)

    def text(self, key: str, *, check: Check | None = None) -> str:
        """A string that must be there."""
        if key not in self._values:
            if isinstance(self.node, yaml.MappingNode):
                self.complain(None, f"key {key!r} is missing")
            return ""
        return self.optional_text(key, check=check)

    def optional_text(
        self, key: str, default: str = "", *, check: Check | None = None
    ) -> str:
        if key not in self._values:
            return default
        return self._string(self._values[key], key, check)

    def flag(self, key: str, *, default: bool = False) -> bool:
        node = self._values.get(key)
        if node is None:
            return default
        if node.tag != "tag:yaml.org,2002:bool":
            self.complain(key, f"{key} must be true or false, not {_kind(node)}")
            return default
        return bool(yaml.SafeLoader.bool_values[node.value.lower()])

    def number(self, key: str, default: int = 0) -> int:
        node = self._values.get(key)
        if node is None:
            return default
        if node.tag != "tag:yaml.org,2002:int":
            self.complain(key, f"{key} must be a whole number, not {_kind(node)}")
            return default
        return int(self._plain(node))

    def texts(self, key: str, *, check: Check | None = None) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(
            self._string(item, f"an item of {key}", check) for item in self._items(key)
        )

    def mappings(self, key: str, known: frozenset[str]) -> list[Fields]:
        """A list of mappings."""
        return [Fields(item, known, self._problems) for item in self._items(key)]

    def mapping(self, key: str, known: frozenset[str]) -> Fields | None:
        node = self._values.get(key)
        return None if node is None else Fields(node, known, self._problems)

    def free(self, key: str) -> dict[str, Any]:
        """A mapping whose inside is not ours to judge."""
        node = self._values.get(key)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.complain(key, f"{key} must be a mapping, not {_kind(node)}")
            return {}
        try:
            value = self._plain(node)
        except (yaml.YAMLError, ValueError, RecursionError) as exc:
            self.complain(key, f"{key} cannot be read: {exc}")
            return {}
        return {str(name): item for name, item in value.items()}

    def _items(self, key: str) -> list[yaml.Node]:
        node = self._values.get(key)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.complain(key, f"{key} must be a list, not {_kind(node)}")
            return []
        return list(node.value)

    def _string(self, node: yaml.Node, what: str, check: Check | None) -> str:
        if node.tag != "tag:yaml.org,2002:str":
            hint = "; put it in quotes" if isinstance(node, yaml.ScalarNode) else ""
            self._problems.at(node, f"{what} must be a string, not {_kind(node)}{hint}")
            return ""
        value = str(node.value)
        if check is None:
            return value
        try:
            return check(value)
        except ValueError as exc:
            self._problems.at(node, f"{what}: {exc}")
            return ""

    def _plain(self, node: yaml.Node, depth: int = 0) -> Any:  # noqa: ANN401 (it is data)
        if depth > _TOO_DEEP:
            raise ValueError("nested too deep")
        if isinstance(node, yaml.MappingNode):
            return {
                str(key.value): self._plain(value, depth + 1)
                for key, value in node.value
            }
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, depth + 1) for item in node.value]
        if node.tag not in _KINDS:
            raise ValueError(f"unexpected {node.value!r}; put it in quotes")
        return yaml.SafeLoader("").construct_object(node)


def compose(text: str, problems: Problems) -> yaml.Node | None:
    """The document in *text*; None, and a complaint, when it is not YAML."""
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        problems.on_line(line, f"not YAML: {exc.problem}")
        return None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        problems.on_line(line, f"not YAML: {exc.reason}")
        return None
    except RecursionError:
        problems.on_line(1, "not YAML that can be read: nested too deep")
        return None
    if node is None:
        problems.on_line(1, "the file is empty")
    return node


def _kind(node: yaml.Node) -> str:
    return _KINDS.get(node.tag, f"a {node.tag.rpartition(':')[2]}")


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
