"""The page about speed says what was measured."""

import json
import re

from benchmarks import document
from benchmarks.report import RESULTS
from benchmarks.run import GROUPS


def test_the_page_is_made_from_the_results():
    """Nobody has changed the page, or its picture, by hand."""
    results = json.loads(RESULTS.read_text())
    assert document.PAGE.read_text() == document.page(results)
    assert document.PICTURE.read_text() == document.picture(results)


def test_every_group_is_on_the_page():
    """Each that `make bench` knows, with its figures, targets and ratios."""
    assert document.GROUPS.keys() == GROUPS.keys()
    row = {
        "name": "a | b",
        "unit": "ms",
        "statistic": "p99",
        "figure": 12.345,
        "repetitions": 5,
        "min": 1.0,
        "max": 20.0,
        "baseline": "c",
        "ratio": 1.5,
        "target": "at most 15",
    }
    group = {"environment": {"python": "3.11"}, "rows": [row]}
    text = document.page(dict.fromkeys(GROUPS, group))
    line = "| a \\| b | 12.3 ms, p99 | 1, 20 | at most 15 | 1.50 (c) |"
    assert text.count(line) == len(GROUPS)
    assert "Not measured yet" not in text


def test_lines_go_through_what_was_measured():
    """Where a figure is missing the others are shown all the same."""
    names = [
        name.format(store=store, x=x)
        for _, _, name, xs, _ in document.CHARTS
        for store in document.STORES
        for x in xs
    ]
    assert len(names) == len(set(names))
    rows = [{"name": name, "figure": 10.0} for name in names]
    drawn = document.picture({"controlplane": {"rows": rows}})
    assert drawn.count("<circle") == len(names)
    fewer = document.picture({"controlplane": {"rows": rows[1:]}})
    assert fewer.count("<circle") == len(names) - 1
    points = re.findall(r'cx="([0-9.]+)" cy="([0-9.]+)"', drawn)
    assert all(40 <= float(x) <= 330 and 0 <= float(y) <= 230 for x, y in points)
