"""
One line of a run's output, as HTML.

Colours and styles are shown as a terminal would; every other sequence is left out, and
what could fool a reader is made visible: control characters, and marks that turn the
direction of text.  A line knows nothing of the line before it: a style ends with its
line, so that no run can paint what follows its output.
"""

from __future__ import annotations

import html
import itertools
import re

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any


_SEQUENCE = re.compile(
    r"\x1b\[(?P<sgr>[0-9;:]*)m"  # colours and styles
    r"|\x1b\[[0-?]*[ -/]*[@-~]?"  # what else moves or erases (ECMA-48, 5.4)
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links and other strings
    r"|\x1b[ -/]*[0-~]?"
)
_ODD = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
_CONTROL_PICTURES = 0x2400
_LEVELS = (0, 95, 135, 175, 215, 255)
"""Of the colour cube in the palette of 256, as xterm has it."""
_BASIC = (
    (0, 0, 0),
    (205, 0, 0),
    (0, 205, 0),
    (205, 205, 0),
    (0, 0, 238),
    (205, 0, 205),
    (0, 205, 205),
    (229, 229, 229),
    (127, 127, 127),
    (255, 0, 0),
    (0, 255, 0),
    (255, 255, 0),
    (92, 92, 255),
    (255, 0, 255),
    (0, 255, 255),
    (255, 255, 255),
)
"""xterm's sixteen; the style sheet has its own, which can be read on both grounds."""
_MOST_CODES = 64
"""In one sequence; what comes behind is not looked at."""


@dataclass(frozen=True, slots=True)
class _Style:
    colour: int | None = None
    ground: int | None = None
    bold: bool = False
    faint: bool = False
    italic: bool = False
    underlined: bool = False

    @property
    def classes(self) -> str:
        words = [
            word
            for word, there in (
                ("b", self.bold),
                ("f", self.faint),
                ("i", self.italic),
                ("u", self.underlined),
            )
            if there
        ]
        if self.colour is not None:
            words.append(f"c{self.colour}")
        if self.ground is not None:
            words.append(f"g{self.ground}")
        return " ".join(words)


_PLAIN = _Style()
_CHANGES: dict[int, dict[str, Any]] = {
    1: {"bold": True},
    2: {"faint": True},
    3: {"italic": True},
    4: {"underlined": True},
    22: {"bold": False, "faint": False},
    23: {"italic": False},
    24: {"underlined": False},
    39: {"colour": None},
    49: {"ground": None},
    **{30 + index: {"colour": index} for index in range(8)},
    **{40 + index: {"ground": index} for index in range(8)},
    **{90 + index: {"colour": 8 + index} for index in range(8)},
    **{100 + index: {"ground": 8 + index} for index in range(8)},
}
"""What the codes of ECMA-48's SGR, and of xterm's bright colours, do to a style."""


def rendered(line: str) -> str:
    """
    HTML for *line*, which has no newline; safe wherever text is allowed.

    Of what carriage returns overwrite, only the last is shown.
    """
    if "\r" in line:
        # The last one may stand before the newline that ended the line.
        line = line.rstrip("\r").rpartition("\r")[2]
    if "\x1b" not in line:
        return _text(line)
    parts, style, start = [], _PLAIN, 0
    for found in _SEQUENCE.finditer(line):
        parts.append(_styled(line[start : found.start()], style))
        start = found.end()
        if (codes := found["sgr"]) is not None:
            style = _after(style, codes)
    parts.append(_styled(line[start:], style))
    return "".join(parts)


def plain(text: str) -> str:
    """*text* of one line without any sequences, and with what is odd made visible."""
    return _ODD.sub(_shown, _SEQUENCE.sub("", text))


def _styled(text: str, style: _Style) -> str:
    if not text:
        return ""
    shown = _text(text)
    return f'<span class="{style.classes}">{shown}</span>' if style.classes else shown


def _text(text: str) -> str:
    if not text.isprintable():
        text = _ODD.sub(_shown, text)
    return html.escape(text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    return f"<U+{code:04X}>"


def _after(style: _Style, codes: str) -> _Style:
    numbers = itertools.islice(_numbers(codes), _MOST_CODES)
    for code in numbers:
        if code == 0:
            style = _PLAIN
        elif code == 38:
            style = replace(style, colour=_extended(numbers))
        elif code == 48:
            style = replace(style, ground=_extended(numbers))
        else:
            style = replace(style, **_CHANGES.get(code, {}))
    return style


def _numbers(codes: str) -> Iterator[int]:
    for word in re.split("[;:]", codes):
        yield int(word[:4] or "0")


def _extended(numbers: Iterator[int]) -> int | None:
    """One of sixteen for a colour of the larger palettes; None when it is none."""
    match next(numbers, None):
        case 5:
            index = next(numbers, 0)
            return index if index < 16 else _nearest(_of_palette(index))
        case 2:
            return _nearest(itertools.islice(numbers, 3))
        case _:
            return None


def _of_palette(index: int) -> tuple[int, int, int]:
    if index >= 232:
        grey = 8 + 10 * min(index - 232, 23)
        return grey, grey, grey
    cube = index - 16
    return _LEVELS[cube // 36], _LEVELS[cube // 6 % 6], _LEVELS[cube % 6]


def _nearest(colour: Iterable[int]) -> int:
    wanted = (*colour, 0, 0, 0)[:3]

    def distance(index: int) -> int:
        pairs = zip(wanted, _BASIC[index], strict=True)
        return sum((one - other) ** 2 for one, other in pairs)

    return min(range(len(_BASIC)), key=distance)
