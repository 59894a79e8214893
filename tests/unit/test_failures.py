import importlib
import pkgutil
import re

from pathlib import Path

import pytest

import launcher

from launcher import failures
from launcher.errors import JobRejected, LauncherError
from launcher.failures import FAILURES, Blame
from launcher.settings import documentation as settings


PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
OF_THE_CONTROL_PLANE = "launcher.controlplane."


def errors(kind=LauncherError):
    for each in kind.__subclasses__():
        yield each
        yield from errors(each)


def test_every_error_is_explained():
    """
    Whatever error ends a job, its code is in the list.
    """
    for module in pkgutil.walk_packages(launcher.__path__, "launcher."):
        if not module.name.startswith(OF_THE_CONTROL_PLANE) and (
            "__main__" not in module.name and "ansible_plan" not in module.name
        ):
            importlib.import_module(module.name)
    found = {
        each.code: each
        for each in errors()
        if not each.__module__.startswith(OF_THE_CONTROL_PLANE)
    }

    assert set(found) <= set(FAILURES)
    assert len(found) > 25
    assert all(each.code != LauncherError.code for each in errors(JobRejected))


def test_every_code_in_the_source_is_explained():
    """
    What becomes of phases has codes without an error: they are in the list, too.
    """
    source = Path(launcher.__file__).parent
    text = "".join(
        (source / name).read_text()
        for name in ("phases.py", "steps.py", "pipeline.py", "findings.py")
    )
    literal = set(re.findall(r'code = "([a-z_]+)"|code="([a-z_]+)"', text))
    paired = set(re.findall(r'reason, code = .*, "([a-z_]+)"$', text, re.M))
    codes = {one or other for one, other in literal} | paired

    assert codes <= set(FAILURES)
    assert {"too_long", "phase_failed", "aborted", "unconfirmed"} <= codes


def test_the_page_is_true():
    """
    docs/failures.md is what the code gives.
    """
    assert failures.documentation() == PAGE.read_text(), (
        "bring it up to date: python -m launcher.failures > docs/failures.md"
    )


@pytest.mark.parametrize("failure", FAILURES.values(), ids=lambda each: each.code)
def test_hints(failure):
    """
    Each says in one line whose matter it is and what to do, with settings that exist.
    """
    assert "\n" not in failure.line
    assert failure.line.startswith(f"Code {failure.code} ({failure.blame}). ")
    assert failure.hint.endswith(".")
    assert failure.meaning.endswith(".")
    for name in re.findall(r"SPACELIFT_[A-Z_]+", failure.hint):
        assert f"`{name}`" in settings()


def test_everybody_is_to_blame_for_something():
    """
    Whose matter a failure is, is one of seven.
    """
    assert 7 == len(Blame)
    assert set(Blame) == {each.blame for each in FAILURES.values()}
