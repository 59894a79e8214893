"""
What was measured last, as docs/performance.md and its picture.

`make bench` writes both; ``python -m benchmarks.document`` writes them again.
"""

from __future__ import annotations

import html
import json
import math

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS


DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"
PICTURE = DOCS / "performance.svg"

GROUPS = {
    "controlplane": "The control plane: claims, waiting workers, triggers and logs",
    "pages": "Pages of runs: first paint, and 200 who watch one log",
    "jobs": "What the launcher adds to a job, and what it costs when there is none",
    "workspaces": "Sealing and storing workspaces; registering",
    "logs": "Logs, from the container to the control plane",
    "adoption": "Coming back to running containers",
    "images": "Judging and pulling images",
    "phases": "Phases and hooks",
    "sources": "Fetching commits",
    "masking": "Masking",
    "policies": "Policies",
    "health": "Starting, and being looked at",
}

WORKERS = (10, 100, 1000)
RUNS = (100, 10_000, 100_000)
STORES = ("SQLite", "PostgreSQL")
TRIGGERED = "trigger to claim at 50 triggers a second"
CHARTS: Sequence[tuple[str, str, str, Sequence[int], str]] = (
    (
        "Claims per second",
        "runs that are over",
        "claims, {store}, beside {x} runs: 1/s",
        RUNS,
        "higher is better",
    ),
    (
        "p99 from trigger to claim, ms",
        "runs that are over",
        TRIGGERED + ", {store}, beside {x} runs",
        RUNS,
        "at 50 triggers a second",
    ),
    (
        "p99 from trigger to claim, ms",
        "workers that wait",
        TRIGGERED + ", {x} workers, {store}",
        WORKERS,
        "at 50 triggers a second",
    ),
    (
        "Share of a core, %",
        "workers that wait",
        "{x} idle workers, {store}: share of a core",
        WORKERS,
        "nothing to do",
    ),
    (
        "Memory, MB",
        "workers that wait",
        "{x} idle workers, {store}: memory",
        WORKERS,
        "nothing to do",
    ),
)

HEAD = """\
# How fast it is

Written by `make bench` (`make bench ARGS=controlplane` for one group), which measures
everything in the processes it has in use: real server, launcher, engine, database, TLS.
A figure is the median of its repetitions, or the quantile that is named.  A ratio is to
another row of the same run, its baseline; it says more than a figure does, because the
machine, and what else it had to do, is in both.  The load average says how much else
that was: with two processors, 2 means that both were busy, 10 that five wanted each.

The results are kept in `benchmarks/results.json`, from which this page is made.

## How it grows

![Claims, latency, processor and memory, over runs and over workers](performance.svg)
"""


def page(results: Mapping[str, Any]) -> str:
    """The text of the page."""
    parts = [HEAD]
    for group, title in GROUPS.items():
        parts.append(f"## {title}\n\n`make bench ARGS={group}`\n")
        if group not in results:
            parts.append("Not measured yet.\n")
            continue
        found = results[group]
        where = ", ".join(f"{name} {v}" for name, v in found["environment"].items())
        parts.append(f"Measured on: {where}.\n")
        rows = ["| what | figure | least, most | target | ratio to its baseline |"]
        rows += ["|---|---|---|---|---|", *map(_line, found["rows"])]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _line(row: Mapping[str, Any]) -> str:
    ratio = ""
    if row["ratio"] is not None:
        ratio = f"{row['ratio']:.2f} ({row['baseline']})"
    figure = f"{row['figure']:.3g} {row['unit']}"
    if row["statistic"] != "p50":
        figure += f", {row['statistic']}"
    cells = (
        row["name"],
        figure,
        f"{row['min']:.3g}, {row['max']:.3g}",
        row["target"] or "",
        ratio,
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


# --- the picture

_WIDTH, _HEIGHT, _MARGIN = 330, 230, 46
_FONT = 'font-family="sans-serif" font-size="11"'
_COLOURS = {"SQLite": "#0b6e99", "PostgreSQL": "#b4551d"}


def picture(results: Mapping[str, Any]) -> str:
    """Lines over logarithmic scales, as SVG."""
    rows = results.get("controlplane", {"rows": []})["rows"]
    figures = {row["name"]: float(row["figure"]) for row in rows}
    columns = 3
    height = _HEIGHT * math.ceil(len(CHARTS) / columns)
    box = f"0 0 {_WIDTH * columns} {height}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {_FONT}>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (title, below, name, xs, note) in enumerate(CHARTS):
        lines = {
            store: [
                (x, figures[key])
                for x in xs
                if (key := name.format(store=store, x=x)) in figures
            ]
            for store in STORES
        }
        left, top = _WIDTH * (number % columns), _HEIGHT * (number // columns)
        parts.append(f'<g transform="translate({left} {top})">')
        parts += _chart(title, f"{below} ({note})", xs, lines)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _chart(
    title: str,
    below: str,
    xs: Sequence[int],
    lines: Mapping[str, Sequence[tuple[int, float]]],
) -> Iterator[str]:
    right, bottom = _WIDTH - 16, _HEIGHT - _MARGIN
    most = max((y for points in lines.values() for _, y in points), default=1.0)
    step = 10 ** math.floor(math.log10(most))
    most = step * math.ceil(most / step)

    def place(x: float, y: float) -> tuple[float, float]:
        share = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        return (
            _MARGIN + share * (right - _MARGIN),
            bottom - y / most * (bottom - 34),
        )

    yield f'<text x="{_MARGIN}" y="18" font-weight="bold">{html.escape(title)}</text>'
    yield (
        f'<text x="{(_MARGIN + right) / 2}" y="{bottom + 34}" text-anchor="middle">'
        f"{html.escape(below)}</text>"
    )
    for tick in range(5):
        value = most * tick / 4
        _, y = place(xs[0], value)
        yield f'<path d="M{_MARGIN} {y:.1f}H{right}" stroke="#ddd"/>'
        yield (
            f'<text x="{_MARGIN - 5}" y="{y + 4:.1f}" text-anchor="end">'
            f"{value:g}</text>"
        )
    for x in xs:
        at, _ = place(x, 0)
        yield (
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{x:,}</text>'
        )
    for number, (store, points) in enumerate(lines.items()):
        colour = _COLOURS[store]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in points))
        yield (
            f'<polyline points="{path}" fill="none" stroke="{colour}"'
            ' stroke-width="2"/>'
        )
        for x, y in (place(*point) for point in points):
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        yield (
            f'<text x="{right - 140 + 60 * number}" y="30" fill="{colour}">{store}'
            "</text>"
        )


def write() -> None:
    """Write both from the results that were kept."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(page(results), encoding="utf-8")
    PICTURE.write_text(picture(results), encoding="utf-8")


if __name__ == "__main__":
    write()
