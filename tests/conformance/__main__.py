"""
Run OPA's own conformance cases through the engine, and say how it went.

    python -m tests.conformance [GROUP…]

Exits with 1 when fewer pass than the project promises.
"""

from __future__ import annotations

import os
import sys

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from tests.conformance.cases import Case, cases, fetched
from tests.conformance.compiling import compiled
from tests.conformance.running import FAILED, NOT_OFFERED, PASSED, Verdict, verdict


CACHE = Path(
    os.environ.get("SPACELIFT_DEV_CACHE", Path.home() / ".cache/spacelift-launcher")
)
PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
BEGIN, END = "<!-- made by make conformance -->\n", "<!-- end -->\n"
OF_ALL, OF_OFFERED = 0.90, 0.99

T = TypeVar("T")


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
        head, _, rest = PAGE.read_text().partition(BEGIN)
        section = "\n".join(lines(pairs, misses, totals))
        PAGE.write_text(f"{head}{BEGIN}\n{section}\n\n{END}{rest.partition(END)[2]}")
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


REASONS = {
    "crypto.parse_private_keys": "shows keys in the form of a library of Go",
    "crypto.x509.parse_and_verify_certificates": "shows certificates as Go does",
    "crypto.x509.parse_certificate_request": "shows requests as Go does",
    "crypto.x509.parse_certificates": "shows certificates as Go does",
    "crypto.x509.parse_keypair": "shows certificates as Go does",
    "graphql.": "shows documents, and judges schemas, as a library of Go does",
    "http.send": "refused: policies must be self-contained",
    "json.match_schema": "reports in the words of a library of Go",
    "json.verify_schema": "reports in the words of a library of Go",
    "net.lookup_ip_addr": "asks the network, and policies must be self-contained",
    "opa.runtime": "refused: policies must be self-contained",
    "rego.parse_module": "refused: policies must be self-contained",
    "rule data.conformance_question": "not a builtin: the case asks for all of `data`,"
    " and so for the module that asks",
    "strings.render_template": "the templates are a language of Go",
    "test.sleep": "exists in tests of OPA only",
    "time.now_ns": "refused: take the time from the input",
}
"""Why builtins are not offered, by how their names begin."""

LIMITS = {
    "data/": (
        "references",
        "OPA's WebAssembly takes a number in a reference for no key of a text",
    ),
    "jsonbuiltins/unmarshal": (
        "`json.unmarshal`",
        "OPA's WebAssembly also reads numbers beyond OPA's own limit",
    ),
    "strings/format_int": (
        "`format_int`",
        "OPA's WebAssembly ends the evaluation, so the run is denied",
    ),
}
"""What failing cases are about, and why they fail, by how they begin."""


def because(name: str, reasons: Mapping[str, T]) -> T:
    """The reason; whoever adds a miss has to say why."""
    return next(why for start, why in reasons.items() if name.startswith(start))


def lines(
    pairs: list[tuple[Case, Verdict]],
    counted: dict[str, Counter[str]],
    totals: Counter[str],
) -> Iterator[str]:
    """Every case that does not pass, and why, for the policies' page."""
    yield (
        f"{len(pairs)} cases: {totals[PASSED]} pass"
        f" ({totals[PASSED] / len(pairs):.1%}), {totals[FAILED]} fail,"
        f" {totals[NOT_OFFERED]} ask for what is not offered."
    )
    yield "\nNot offered; a policy that calls one of these is refused at start, by name:\n"
    yield "| builtin | cases | why not |\n|---|---|---|"
    for name, count in sorted(counted.items()):
        if count[NOT_OFFERED]:
            why = because(name, REASONS)
            yield f"| `{name}` | {count[NOT_OFFERED]} | {why} |"
    yield "\nOffered, but these cases fail:\n"
    yield "| case | what it is about | why | what comes |\n|---|---|---|---|"
    for case, each in pairs:
        if each.outcome == FAILED:
            what = each.why.replace("|", "\\|").replace("\n", " ")[:160]
            about, why = because(case.note, LIMITS)
            yield f"| {case.dialect} `{case.note}` | {about} | {why} | `{what}` |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
