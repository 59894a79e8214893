"""Charts, drawn here as SVG: nothing is fetched, and a reader hears what they show."""

from __future__ import annotations

import html

from collections.abc import Sequence
from dataclasses import dataclass


_WIDTH, _HEIGHT, _GAP = 640, 120, 2


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its value, its colour's class, what it is, and where it leads."""

    value: float
    kind: str
    text: str
    link: str


def bars(title: str, values: Sequence[Bar], scale: str) -> str:
    """Bars from left to right; *scale* says what the highest one is worth."""
    highest = max((bar.value for bar in values), default=0) or 1
    step = _WIDTH / max(len(values), 20)
    drawn = []
    for index, bar in enumerate(values):
        height = max(2.0, bar.value / highest * _HEIGHT)
        drawn.append(
            f'<a href="{html.escape(bar.link)}">'
            f"<title>{html.escape(bar.text)}</title>"
            f'<rect class="{bar.kind}" x="{index * step:.1f}"'
            f' y="{_HEIGHT - height:.1f}" width="{step - _GAP:.1f}"'
            f' height="{height:.1f}"/></a>'
        )
    return _svg(title, f"at most {scale}", "".join(drawn))


def steps(title: str, points: Sequence[tuple[float, int]], scale: str) -> str:
    """A line that keeps each value until the next; times are between 0 and 1."""
    highest = max((value for _, value in points), default=0) or 1
    path, before = [], 0.0
    for time, value in points:
        x, y = time * _WIDTH, _HEIGHT - value / highest * (_HEIGHT - 2)
        path.append(f"{x:.1f},{before or y:.1f} {x:.1f},{y:.1f}")
        before = y
    drawn = f'<polyline points="{" ".join(path)}"/>' if path else ""
    return _svg(title, scale, drawn)


def _svg(title: str, scale: str, drawn: str) -> str:
    return (
        f"<figure><figcaption>{html.escape(title)}"
        f" <small>{html.escape(scale)}</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group"'
        f' aria-label="{html.escape(title)}" preserveAspectRatio="none">{drawn}</svg>'
        "</figure>"
    )
