import re
import subprocess

from pathlib import Path

import pytest

from launcher.adapters.policies.loading import load
from launcher.policytools.lint import Check, lint
from launcher.policytools.opa import PolicyText
from launcher.settings import PolicySettings


pytestmark = pytest.mark.services

DOCUMENT = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
RECIPES = DOCUMENT.partition("## Recipes")[2].partition("\n## ")[0]


def blocks(text):
    return [block for block in re.findall(r"```rego\n(.*?)```", text, re.S)]


def findings(folder, rego):
    path = folder / "policy.rego"
    path.write_text(rego)
    return lint(load(PolicySettings(path=path)), PolicyText.of(path))


@pytest.mark.parametrize("rego", blocks(RECIPES), ids=re.findall(r"### (.*)", RECIPES))
def test_recipes(tmp_path, rego):
    """
    No recipe has a hole, except that none of them is about signatures.
    """
    found = {finding.check for finding in findings(tmp_path, rego)}

    assert set() == found - {Check.UNSIGNED_RUN}


def test_recipes_together(tmp_path):
    """
    All recipes in one file are a policy.
    """
    bodies = [block.partition("import rego.v1\n")[2] for block in blocks(RECIPES)]
    found = findings(
        tmp_path, "package spacelift\nimport rego.v1\n" + "\n".join(bodies)
    )

    assert set() == {finding.check for finding in found} - {Check.UNSIGNED_RUN}


def test_why_things_must_be_proven(tmp_path):
    """
    Of the two examples of what to do and what not, lint tells which is which.
    """
    section = DOCUMENT.partition("**Prove, don't look for reasons.**")[2].partition(
        "## "
    )[0]
    wrong, right = (f"package spacelift\n{block}" for block in blocks(section))

    assert Check.UNSIGNED_RUN in {
        finding.check for finding in findings(tmp_path, wrong)
    }
    assert [] == findings(tmp_path, right)


def test_in_ci(tmp_path):
    """
    The tests shown for a CI pass for the recipe they are about.
    """
    tests = blocks(DOCUMENT.partition("### In CI")[2])[0]
    (tmp_path / "policy.rego").write_text(blocks(RECIPES)[-1])
    (tmp_path / "policy_test.rego").write_text(tests)
    done = subprocess.run(
        ["opa", "test", "."], cwd=tmp_path, capture_output=True, text=True
    )

    assert "PASS: 2/2" in done.stdout
