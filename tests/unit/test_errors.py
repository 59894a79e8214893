import inspect
import re

from pathlib import Path

from launcher import errors
from launcher.bootstrap import LEFT_AT_ONCE
from launcher.worker import EXIT_CODES


DOCUMENT = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def classes():
    return [
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.LauncherError)
    ]


def test_exit_codes_are_unique():
    """
    No two errors that can end a command share an exit code.
    """
    own = [
        cls.__dict__["exit_code"] for cls in classes() if "exit_code" in cls.__dict__
    ]

    assert len(own) == len(set(own)) > 5


def test_exit_codes_are_documented():
    """
    Every exit code has its row in the documentation, and no row is invented.
    """
    documented = {
        int(code) for code in re.findall(r"^\| (\d+) \|", DOCUMENT.read_text(), re.M)
    }

    codes = {cls.exit_code for cls in classes()}
    others = {LEFT_AT_ONCE, *EXIT_CODES.values()}
    assert codes | others == documented
    assert not codes & others


def test_codes_of_failed_runs_are_unique():
    """
    Errors that can end a run have a machine-readable code each.
    """
    own = [cls.__dict__["code"] for cls in classes() if "code" in cls.__dict__]

    assert len(own) == len(set(own)) > 5


def test_details_are_not_public():
    """
    What is meant for the operator is not part of the public sentence.
    """
    error = errors.EngineError("it failed", details="at 10.0.0.1")

    assert "it failed" == str(error)
    assert "10.0.0.1" not in repr(error)
