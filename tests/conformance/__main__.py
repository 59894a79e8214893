"""
Run OPA's own conformance cases through the engine, and say how it went.

    python -m tests.conformance [GROUP…]

Exits with 1 when fewer pass than the project promises.
"""

from __future__ import annotations

import os
import sys

from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import structlog

from tests.conformance.cases import Case, cases, fetched
from tests.conformance.compiling import compiled
from tests.conformance.running import FAILED, NOT_OFFERED, PASSED, Verdict, verdict


CACHE = Path(
    os.environ.get("SPACELIFT_DEV_CACHE", Path.home() / ".cache/spacelift-launcher")
)
PAGE = Path(__file__).parents[2] / "docs" / "policy-conformance.md"
OF_ALL, OF_OFFERED = 0.90, 0.99


def judged(case: Case) -> Verdict:
    return verdict(case, compiled(case, CACHE / "conformance"))


def quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))


def main(groups: list[str]) -> int:
    chosen = [c for c in cases(fetched()) if not groups or c.group in groups]
    with ProcessPoolExecutor(os.cpu_count(), initializer=quiet) as pool:
        verdicts = list(pool.map(judged, chosen, chunksize=8))
    pairs = list(zip(chosen, verdicts, strict=True))
    for case, each in pairs:
        if each.outcome == FAILED:
            print(f"failed  {case.dialect} {case.note}: {each.why}")
    misses = by_builtin(pairs)
    totals = Counter(each.outcome for each in verdicts)
    print(f"\n{'':44} {PASSED:>8} {FAILED:>8} {NOT_OFFERED:>16}")
    for name, counted in sorted(misses.items()):
        print(
            f"{name:44} {counted[PASSED]:>8} {counted[FAILED]:>8}"
            f" {counted[NOT_OFFERED]:>16}"
        )
    if not groups:
        PAGE.write_text(page(pairs, misses, totals))
    of_all = totals[PASSED] / len(pairs)
    of_offered = totals[PASSED] / (totals[PASSED] + totals[FAILED] or 1)
    print(
        f"\n{len(pairs)} cases: {totals[PASSED]} passed, {totals[FAILED]} failed,"
        f" {totals[NOT_OFFERED]} not applicable"
        f"\n{of_all:.1%} of all (at least {OF_ALL:.0%}),"
        f" {of_offered:.1%} of those whose builtins are offered"
        f" (at least {OF_OFFERED:.0%})"
    )
    return 0 if groups or (of_all >= OF_ALL and of_offered >= OF_OFFERED) else 1


def by_builtin(pairs: list[tuple[Case, Verdict]]) -> dict[str, Counter[str]]:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for case, each in pairs:
        for name in each.builtins or (f"(none of the host) {case.group}",):
            counted[name][each.outcome] += 1
    return counted


def page(
    pairs: list[tuple[Case, Verdict]],
    counted: dict[str, Counter[str]],
    totals: Counter[str],
) -> str:
    lines = [
        "# Where our policies differ from OPA",
        "",
        "Made by `make conformance`, which runs OPA's own cases through the engine"
        " that judges runs.",
        "",
        f"{len(pairs)} cases: {totals[PASSED]} passed, {totals[FAILED]} failed,"
        f" {totals[NOT_OFFERED]} not applicable.",
        "",
        "## Builtins that are not offered",
        "",
        "A policy that calls one of them is refused when the launcher starts, by name.",
        "",
        "| builtin | cases |",
        "|---|---|",
    ]
    lines += [
        f"| `{name}` | {count[NOT_OFFERED]} |"
        for name, count in sorted(counted.items())
        if count[NOT_OFFERED]
    ]
    lines += [
        "",
        "## Cases that fail",
        "",
        "| case | builtins | what comes |",
        "|---|---|---|",
    ]
    for case, each in pairs:
        if each.outcome == FAILED:
            why = each.why.replace("|", "\\|").replace("\n", " ")
            names = ", ".join(f"`{name}`" for name in each.builtins)
            lines.append(f"| {case.dialect} `{case.note}` | {names} | `{why[:160]}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
