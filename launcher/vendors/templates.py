"""
The few words of the Go template language in which commands are written.

Fields, `if`, `else`, `not` and `range`, and no more: who writes a template may be a
stranger, so there is nothing in the language that reads, calls or loops without end.
"""

from __future__ import annotations

import re

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


Value = bool | str | Sequence[str]

LONGEST = 16 << 10
"""Characters of one template."""
MOST_DEEP = 8
"""Levels of `if` and `range`."""
LONGEST_RESULT = 1 << 20
"""Characters of what one template makes."""

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_FIELD = re.compile(r"\.[A-Za-z][A-Za-z0-9]*")
_WORD = re.compile(r"[A-Za-z]+|\S+")


class TemplateInvalid(ValueError):
    """Public: what in a template cannot be used."""


@dataclass(slots=True)
class _Block:
    """`if` or `range` with its two sides; or, with neither, the whole template."""

    word: str = ""
    name: str = ""
    negated: bool = False
    first: list[_Part] = field(default_factory=list)
    second: list[_Part] = field(default_factory=list)
    turned: bool = False
    """`else` was there."""
    chained: bool = False
    """Part of an `else if`, and ends together with what it is part of."""

    @property
    def open_side(self) -> list[_Part]:
        return self.second if self.turned else self.first


@dataclass(frozen=True, slots=True)
class _Shown:
    name: str


_Part = str | _Shown | _Block


def render(template: str, values: Mapping[str, Value]) -> str:
    """
    Fill *values* in, by the names of fields without their dots.

    Raises:
        TemplateInvalid: it uses what we do not know, or is not well-formed.
    """
    if len(template) > LONGEST:
        raise TemplateInvalid(f"has more than {LONGEST} characters")
    made = "".join(_made(_parsed(template, values), values, None))
    if len(made) > LONGEST_RESULT:
        raise TemplateInvalid(f"makes more than {LONGEST_RESULT} characters")
    return made


def _parsed(template: str, values: Mapping[str, Value]) -> list[_Part]:
    stack, position, trims = [_Block()], 0, False
    for found in _ACTION.finditer(template):
        text = template[position : found.start()]
        if trims:
            text = text.lstrip()
        if found[1]:
            text = text.rstrip()
        _add_text(stack[-1], text)
        position, trims = found.end(), bool(found[3])
        _act(stack, found[2].strip(), values)
        if len(stack) > MOST_DEEP + 1:
            raise TemplateInvalid(f"is more than {MOST_DEEP} levels deep")
    rest = template[position:]
    _add_text(stack[-1], rest.lstrip() if trims else rest)
    if len(stack) > 1:
        raise TemplateInvalid(f"has no {{{{ end }}}} for its {stack[-1].word!r}")
    return stack[0].first


def _add_text(block: _Block, text: str) -> None:
    if "{{" in text:
        raise TemplateInvalid("has a {{ without its }}")
    if text:
        block.open_side.append(text)


def _act(  # noqa: C901 (one case for each word)
    stack: list[_Block], action: str, values: Mapping[str, Value]
) -> None:
    words = _WORD.findall(action)
    block = stack[-1]
    match words:
        case ["."] if any(each.word == "range" for each in stack):
            block.open_side.append(_Shown("."))
        case ["if" | "range", *_]:
            _open(stack, action, values, chained=False)
        case ["else", *rest] if block.word and not block.turned:
            block.turned = True
            if rest:
                if rest[0] != "if":
                    raise TemplateInvalid(_unknown(action))
                _open(stack, action.removeprefix("else").strip(), values, chained=True)
        case ["end"] if block.word:
            while stack.pop().chained:
                pass
        case ["else" | "end"]:
            raise TemplateInvalid(f"has an {words[0]!r} that belongs to nothing")
        case _ if _FIELD.fullmatch(action):
            name = _known(action, values)
            if not isinstance(values[name], (bool, str)):
                raise TemplateInvalid(f"shows {action}, which is a list")
            block.open_side.append(_Shown(name))
        case _:
            raise TemplateInvalid(_unknown(action))


def _open(
    stack: list[_Block], action: str, values: Mapping[str, Value], *, chained: bool
) -> None:
    match action.split():
        case ["range", name] if _FIELD.fullmatch(name):
            block = _Block("range", _known(name, values))
            if isinstance(values[block.name], (bool, str)):
                raise TemplateInvalid(f"ranges over {name}, which is no list")
        case ["if", name] if _FIELD.fullmatch(name):
            block = _Block("if", _known(name, values))
        case ["if", "not", name] if _FIELD.fullmatch(name):
            block = _Block("if", _known(name, values), negated=True)
        case _:
            raise TemplateInvalid(_unknown(action))
    block.chained = chained
    stack[-1].open_side.append(block)
    stack.append(block)


def _known(name: str, values: Mapping[str, Value]) -> str:
    known = name.removeprefix(".")
    if known not in values:
        has = ", ".join(f".{each}" for each in values) or "none"
        raise TemplateInvalid(f"uses {name}, which is not there; there are: {has}")
    return known


def _unknown(action: str) -> str:
    """Names what is not understood, without quoting all of it."""
    known = {"if", "else", "not", "range", "end"}
    words = _WORD.findall(action)
    strange = [w for w in words if w not in known and not w.startswith(".")]
    name = (strange or words or [""])[0][:40]
    return f"uses {name!r}; it may use fields, 'if', 'else', 'not' and 'range'"


def _made(
    parts: Sequence[_Part], values: Mapping[str, Value], item: str | None
) -> list[str]:
    made: list[str] = []
    for part in parts:
        match part:
            case str():
                made.append(part)
            case _Shown():
                shown = item if part.name == "." else values[part.name]
                made.append(
                    str(shown).lower() if isinstance(shown, bool) else str(shown)
                )
            case _Block(word="if"):
                chosen = bool(values[part.name]) is not part.negated
                made += _made(part.first if chosen else part.second, values, item)
            case _Block():
                listed = values[part.name]
                entries = () if isinstance(listed, (bool, str)) else listed
                for entry in entries:
                    made += _made(part.first, values, entry)
                if not entries:
                    made += _made(part.second, values, item)
    return made
