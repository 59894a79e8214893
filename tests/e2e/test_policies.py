"""The walk-through of docs/policies.md, and signed runs, on real parts."""

import json
import subprocess
import sys

from pathlib import Path

import pytest

from examples.demo.processes import COMMAND

from .conftest import opened


pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
SIGN = ROOT / "examples" / "signed-runs" / "sign.py"
STACK = "testing-spacelift"


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory):
    stacks = [{"slug": STACK, "hooks": {"before_plan": ["echo planning"]}}]
    with opened(tmp_path_factory.mktemp("site"), stacks) as site:
        yield site


def policy(*arguments, stdin=b""):
    return subprocess.run(
        [*COMMAND, "policy", *map(str, arguments)], input=stdin, capture_output=True
    )


def samples(launcher):
    return [event["sample"] for event in launcher.events() if "sample" in event]


@pytest.fixture(scope="module", name="launcher")
def _launcher(site):
    """
    A launcher that has deployed and confirmed one run with metadata.
    """
    path = site.folder / "sample.rego"
    path.write_text("package spacelift\nsample { true }\n")
    launcher = site.launcher(SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY=str(path))
    run, _ = site.deploy(STACK, metadata="deploy-metadata")
    site.api.confirm(STACK, run, metadata="confirm-metadata")
    site.follow(STACK, run)
    launcher.stop()
    return launcher


@pytest.fixture(scope="module", name="signed", params=["exec.rego", "jwt-v0.rego"])
def _signed(request, site):
    """
    Signs what `site` deploys, with the shipped script and the shipped policy.
    """
    folder = site.folder / request.param
    folder.mkdir()
    private, public = folder / "ci.pem", folder / "keys.json"
    script("keys", "--kid", "ci", "--private", private, "--public", public)
    path = folder / "policy.rego"
    text = (SIGN.parent / request.param).read_text()
    environ = {"SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY": str(path)}
    if request.param.startswith("exec"):
        command = folder / "verify-run"
        command.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            "from launcher.cli import main\n"
            f"main([*sys.argv[1:], '--cache', {str(folder / 'replay.db')!r}])\n"
        )
        command.chmod(0o755)
        text = text.replace("/usr/local/bin/spacelift-launcher", str(command))
        text = text.replace("/etc/spacelift-launcher/run-keys.json", str(public))
        environ["SPACELIFT_LAUNCHER_POLICY_EXEC_ALLOWED"] = str(command)
    else:
        keys = json.dumps(json.loads(public.read_text()))
        text = text.replace('{"keys": []}', keys)
    path.write_text(text)
    launcher = site.launcher(f"launcher-{folder.suffix}-{folder.stem}", **environ)
    commit = head(site)

    def sign(*arguments):
        return script(
            "run",
            "--key",
            private,
            "--kid",
            "ci",
            "--stack",
            STACK,
            "--commit",
            commit,
            "--type",
            "TRACKED",
            "--hook",
            "before_plan=echo planning",
            *arguments,
        )

    yield sign
    launcher.stop()


class TestWalkThrough:
    def test_samples(self, launcher):
        """
        Each interaction adds an entry, which the policy sees from then on.
        """
        assert [["deploy-metadata"], ["deploy-metadata", "confirm-metadata"]] == [
            sample["input"]["run"]["user_provided_metadata"]
            for sample in samples(launcher)
        ]

    def test_eval(self, launcher, site):
        """
        A sample's input can be asked about again, with another policy.
        """
        path = site.folder / "no-applies.rego"
        path.write_text(
            'package spacelift\ndeny["no applies"] { input.phase == "apply" }\n'
        )
        codes = [
            policy(
                "eval",
                "--policy",
                path,
                "--input",
                "-",
                stdin=json.dumps(sample["input"]).encode(),
            ).returncode
            for sample in samples(launcher)
        ]

        assert [0, 1] == codes

    def test_replay(self, launcher, site):
        """
        The launcher's whole log says what a new policy would have changed.
        """
        same = policy("replay", "--policy", site.folder / "sample.rego", launcher.log)
        path = site.folder / "no-applies.rego"
        path.write_text(
            'package spacelift\ndeny["no applies"] { input.phase == "apply" }\n'
        )
        other = policy("replay", "--policy", path, launcher.log)

        assert (0, b"2 samples, 0 would change\n") == (same.returncode, same.stdout)
        assert 1 == other.returncode
        assert (
            b"apply: allow -> deny (no applies)\n2 samples, 1 would change\n"
            in other.stdout
        )


class TestSigned:
    """A launcher whose policy wants signatures; runs as people would sign them."""

    def test_deployed(self, site, signed):
        """
        A run that is signed at its trigger and at its confirmation is applied.
        """
        run = site.api.trigger(STACK, metadata=signed("--phase", "plan"))
        site.follow(STACK, run, until="UNCONFIRMED")
        apply = signed("--phase", "apply", "--run", run)
        site.api.confirm(STACK, run, metadata=apply)

        assert "FINISHED" in site.follow(STACK, run)

    def test_unsigned(self, site, signed):
        """
        A run without a signature fails, and its log says why.
        """
        run = site.api.trigger(STACK)
        texts = site.follow(STACK, run)

        assert "FAILED" in texts
        assert "nobody of ours signed this run" in "".join(texts.values())

    def test_unsigned_confirmation(self, site, signed):
        """
        A run whose confirmation was not signed is not applied.
        """
        run = site.api.trigger(STACK, metadata=signed("--phase", "plan"))
        site.follow(STACK, run, until="UNCONFIRMED")
        site.api.confirm(STACK, run, metadata="looks good to me")
        texts = site.follow(STACK, run)

        assert "FAILED" in texts and "APPLYING" not in texts


def script(*arguments):
    done = subprocess.run(
        [sys.executable, SIGN, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return done.stdout.strip()


def head(site):
    return subprocess.run(
        ["git", "-C", site.folder / "repositories" / "ansible", "rev-parse", "main"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
