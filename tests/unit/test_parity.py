"""The page that compares, kept true."""

import ast
import re

from pathlib import Path


TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "parity.md"
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| \d", line)
]
CAPABILITIES = 257


def names_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_no_number_is_left_out():
    """Every capability of the product has one row, in order."""
    assert [int(row[0]) for row in ROWS] == list(range(1, CAPABILITIES + 1))


def test_what_is_done_names_a_test():
    """What is done names tests that exist; what is not for us says why."""
    wrong = [row for row in ROWS if not _holds(status=row[2], reason=row[3])]
    assert not wrong


def _holds(*, status: str, reason: str) -> bool:
    if status == "done":
        named = re.findall(r"`([^`:]+)(?:::(test_\w+))?`", reason)
        return bool(named) and all(_exists(*name) for name in named)
    return status == "planned" or (status == "not for us" and bool(reason))


def _exists(path: str, test: str) -> bool:
    file = TESTS / path
    return file.is_file() and (not test or test in names_of(file))
