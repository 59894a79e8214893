"""Rows of figures: median and spread, and the ratio to a baseline of the same run."""

from __future__ import annotations

import json
import os
import platform
import statistics

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


RESULTS = Path(__file__).parent / "results.json"
"""What was measured last, by group, and where; `benchmarks.document` shows it."""
FEWEST = 5
"""A row of fewer repetitions says too little to be printed."""


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    unit: str
    values: tuple[float, ...]
    target: str = ""
    baseline: str = ""
    """Name of the row whose median this one's is divided by."""
    quantile: float = 0.5
    lost_bytes: int = 0

    @property
    def printable(self) -> bool:
        return len(self.values) >= FEWEST and self.lost_bytes == 0

    @property
    def figure(self) -> float:
        """The median, or the upper quantile that the target is about."""
        ordered = sorted(self.values)
        if self.quantile == 0.5:
            return statistics.median(ordered)
        return ordered[min(int(len(ordered) * self.quantile), len(ordered) - 1)]


def cpu_seconds(process: psutil.Process) -> float:
    """What *process* has used of the processors so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def environment(engine_version: str) -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "engine": engine_version,
        "python": platform.python_version(),
        "processors": _processors(),
        "load average": round(os.getloadavg()[0], 1),
    }


def _processors() -> int:
    return Path("/proc/cpuinfo").read_text().count("processor\t:")


def published(group: str, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Print the table of one group, and keep it among the results."""
    shown = [row for row in rows if row.printable]
    medians = {row.name: row.figure for row in shown}
    print(group, *(f"{name} {value}" for name, value in facts.items()), sep="  ")
    print(f"{'':64} {'n':>4} {'figure':>10} {'min':>9} {'max':>9} {'ratio':>6}  target")
    written = []
    for row in shown:
        ratio = row.figure / medians[row.baseline] if row.baseline in medians else None
        kind = "p50" if row.quantile == 0.5 else f"p{row.quantile * 100:g}"
        print(
            f"{row.name:64} {len(row.values):>4} {row.figure:>10.4g}"
            f" {min(row.values):>9.4g} {max(row.values):>9.4g}"
            f" {'' if ratio is None else f'{ratio:.2f}':>6}"
            f"  {kind}, {row.unit}{row.target and f'; {row.target}'}"
        )
        written.append(
            {
                "name": row.name,
                "unit": row.unit,
                "statistic": kind,
                "figure": row.figure,
                "repetitions": len(row.values),
                "min": min(row.values),
                "max": max(row.values),
                "baseline": row.baseline or None,
                "ratio": ratio,
                "target": row.target or None,
            }
        )
    for row in rows:
        if not row.printable:
            print(
                f"{row.name}: not shown, with {len(row.values)} repetitions"
                f" and {row.lost_bytes} bytes lost"
            )
    results = {**json.loads(RESULTS.read_text()), group: None}
    results[group] = {"environment": facts, "rows": written}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
