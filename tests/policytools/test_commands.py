import json
import os
import subprocess
import sys

from pathlib import Path

import pytest

from launcher.commands.policy import CHECKS
from launcher.policytools import specimens
from launcher.policytools.lint import Check


pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]

NO_TASKS = """\
package spacelift

import rego.v1

sample := true

deny contains "no tasks here" if input.run.type == "TASK"

deny contains "no applies here" if input.phase == "apply"
"""

SIGNED_OR_NOTHING = """\
package spacelift

deny["unsigned"] { not input.run.user_provided_metadata == ["the password"] }
"""


@pytest.fixture
def policy(tmp_path):
    """
    Calls one of the commands, without settings, token, engine or state.
    """

    def call(*arguments, rego=None, stdin=b"", path=os.environ["PATH"], **environ):
        if rego is not None:
            (tmp_path / "policy.rego").write_text(rego)
        return subprocess.run(
            [sys.executable, "-m", "launcher", "policy", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env={
                "PATH": path,
                "PYTHONPATH": str(ROOT),
                "HOME": "/nonexistent",
                **environ,
            },
        )

    return call


def document(**changes):
    given = specimens.full()
    given["run"] |= changes
    return json.dumps(given).encode()


class TestEval:
    @pytest.mark.parametrize(
        ("rego", "code", "answer"),
        [
            (
                NO_TASKS,
                0,
                {
                    "outcome": "allow",
                    "results": {"deny": [], "sample": True},
                    "error": "",
                },
            ),
            (
                SIGNED_OR_NOTHING,
                1,
                {
                    "outcome": "deny",
                    "results": {"deny": ["unsigned"], "sample": False},
                    "error": "",
                },
            ),
        ],
    )
    def test_answers(self, policy, rego, code, answer):
        """
        The three keys of a sample are printed, and the code says allow or deny.
        """
        done = policy(
            "eval",
            "--policy",
            "policy.rego",
            "--input",
            "-",
            rego=rego,
            stdin=document(),
        )

        assert (code, b"") == (done.returncode, done.stderr)
        printed = json.loads(done.stdout)
        assert ["outcome", "results", "error"] == list(printed)
        assert answer["outcome"] == printed["outcome"]
        assert answer["results"].items() <= printed["results"].items()

    @pytest.mark.parametrize(
        ("rego", "stdin", "complaint"),
        [
            ("package spacelift\nx := = 1\n", b"{}", "policy.rego:2"),
            (NO_TASKS, b"", "not JSON"),
            (NO_TASKS, b"\xff", "not JSON"),
            (NO_TASKS, b"[]", "not a JSON object"),
            (NO_TASKS, b"[" * 100_000, "not JSON"),
            (None, b"{}", "policy"),
        ],
    )
    def test_errors(self, policy, rego, stdin, complaint):
        """
        What cannot be judged is an error in the answer, too, and ends with 2.
        """
        done = policy(
            "eval", "--policy", "policy.rego", "--input", "-", rego=rego, stdin=stdin
        )

        assert 2 == done.returncode
        assert ("error", {}) == tuple(
            json.loads(done.stdout)[key] for key in ("outcome", "results")
        )
        assert complaint in done.stderr.decode()
        assert b"Traceback" not in done.stderr

    def test_explain(self, policy):
        """
        Rules that fired are told from rules that did not, apart from the answer.
        """
        done = policy(
            "eval",
            "--policy",
            "policy.rego",
            "--input",
            "-",
            "--explain",
            rego=NO_TASKS,
            stdin=document(type="TASK"),
        )
        shown = [line.split(maxsplit=2) for line in done.stderr.decode().splitlines()]

        assert "deny" == json.loads(done.stdout)["outcome"]
        assert [
            ["fired", "policy.rego:5", "sample"],
            ["fired", "policy.rego:7", 'deny "no tasks here"'],
            ["-", "policy.rego:9", 'deny "no applies here"'],
        ] == shown

    def test_explain_without_opa(self, policy, tmp_path):
        """
        The answer does not depend on the explanation, which says what it lacks.
        """
        (tmp_path / "source.rego").write_text(NO_TASKS)
        subprocess.run(
            [
                "opa",
                "build",
                "-t",
                "wasm",
                "-e",
                "spacelift",
                "-o",
                "policy.tar.gz",
                "source.rego",
            ],
            cwd=tmp_path,
            check=True,
        )
        done = policy(
            "eval",
            "--policy",
            "policy.tar.gz",
            "--input",
            "-",
            "--explain",
            stdin=document(),
            path="/nonexistent",
        )

        assert 0 == done.returncode
        assert b"no text" in done.stderr

    def test_leaves_nothing_behind(self, policy, tmp_path):
        """
        Asking changes nothing on the machine.
        """
        policy(
            "eval",
            "--policy",
            "policy.rego",
            "--input",
            "-",
            rego=NO_TASKS,
            stdin=document(),
        )

        assert ["policy.rego"] == os.listdir(tmp_path)


class TestEffects:
    """What a policy calls is run only if the caller says so."""

    @pytest.fixture
    def call(self, policy, tmp_path):
        """
        Calls a command about a policy that leaves a mark, and says if it did.
        """
        program, mark = tmp_path / "program", tmp_path / "mark"
        program.write_text(f"#!/bin/sh\ntouch {mark}\n")
        program.chmod(0o755)
        rego = f'package spacelift\ndeny["x"] {{ exec(["{program}"]).status > 0 }}\n'
        log = tmp_path / "log"
        log.write_text(sample("allow", []))

        def called(*arguments):
            done = policy(
                *(str(log) if each == "LOG" else each for each in arguments),
                rego=rego,
                stdin=document(),
                SPACELIFT_LAUNCHER_POLICY_EXEC_ALLOWED=str(program),
            )
            return done.returncode, mark.exists()

        called.program = program
        return called

    @pytest.mark.parametrize(
        "arguments",
        [
            ("eval", "--policy", "policy.rego", "--input", "-", "--explain"),
            ("lint", "policy.rego"),
            ("replay", "--policy", "policy.rego", "LOG"),
        ],
    )
    def test_none(self, call, arguments):
        """
        The setting of the daemon does not count, so nothing is run.
        """
        code, marked = call(*arguments)

        assert code > 0
        assert not marked

    def test_allowed(self, call):
        """
        What is allowed by the option is run.
        """
        arguments = ("eval", "--policy", "policy.rego", "--input", "-")

        assert (0, True) == call(*arguments, "--exec-allowed", call.program)


class TestLint:
    def test_clean(self, policy):
        """
        A policy that denies what is unproven has nothing to be found.
        """
        done = policy("lint", "policy.rego", rego=SIGNED_OR_NOTHING)

        assert (0, b"nothing found\n", b"") == (
            done.returncode,
            done.stdout,
            done.stderr,
        )

    def test_findings(self, policy):
        """
        Each finding is a sentence with the input that proves it.
        """
        done = policy("lint", "policy.rego", rego=NO_TASKS)
        lines = done.stdout.decode().splitlines()

        assert 1 == done.returncode
        assert "unsigned-run: this policy allows an unsigned run" in lines[0]
        assert "TRACKED" == json.loads(lines[1])["run"]["type"]
        assert any(
            "this policy denies a task, and allows it when input.run.type is missing"
            in line
            for line in lines
        )

    def test_the_input_proves_it(self, policy):
        """
        What is shown for a finding is let in by `policy eval`.
        """
        found = policy(
            "lint", "--json", "policy.rego", rego=NO_TASKS
        ).stdout.splitlines()
        inputs = [json.loads(line)["input"] for line in found]

        assert len(inputs) > 2
        for given in (inputs[0], inputs[-1]):
            asked = policy(
                "eval",
                "--policy",
                "policy.rego",
                "--input",
                "-",
                stdin=json.dumps(given).encode(),
            )
            assert 0 == asked.returncode

    def test_typo(self, policy):
        """
        A path that is never there is found with its line and what was meant.
        """
        rego = SIGNED_OR_NOTHING.replace("user_provided", "usr_provided")
        done = policy("lint", "policy.rego", rego=rego)

        assert 1 == done.returncode
        assert (
            "unknown-input: policy.rego:3: input.run.usr_provided_metadata is never there;"
            " did you mean user_provided_metadata?"
        ) in done.stdout.decode().splitlines()

    def test_ignored(self, policy):
        """
        A policy that is not about signatures can be found clean.
        """
        rego = """
            package spacelift
            import rego.v1
            deny contains "type" if not known
            known if input.run.type in {"PROPOSED", "TRACKED"}
        """
        arguments = ("lint", "--ignore", "unsigned-run", "policy.rego")

        assert 0 == policy(*arguments, rego=rego).returncode

    @pytest.mark.parametrize(
        "verified",
        [
            'io.jwt.decode_verify(token, {"secret": "x", "alg": "HS256"})[0] == true',
            'io.jwt.verify_hs256(token, "x")',
        ],
    )
    def test_any_token(self, policy, verified):
        """
        A policy that is content with any good signature is found, without a key.
        """
        rego = f"""
            package spacelift
            import rego.v1
            deny contains "unsigned" if not signed
            token := input.run.user_provided_metadata[0]
            signed if {verified}
        """
        done = policy("lint", "policy.rego", rego=rego)

        assert 1 == done.returncode
        assert (
            b"unbound-token: this policy allows a run to plan for any token with a good"
            b" signature, were it one without claims"
        ) in done.stdout
        assert b"unsigned-run" not in done.stdout

    def test_a_trap(self, policy):
        """
        OPA takes `not x in y` for undefined, not for true, when there is no x.
        """
        rego = """
            package spacelift
            import rego.v1
            deny contains "type" if not input.run.type in {"PROPOSED", "TRACKED"}
        """
        done = policy("lint", "--ignore", "unsigned-run", "policy.rego", rego=rego)

        assert b"allows it when input.run.type is missing" in done.stdout

    @pytest.mark.parametrize(
        "rego", [None, "package spacelift\nx := = 1\n", "package other\n", ""]
    )
    def test_cannot_be_loaded(self, policy, rego):
        """
        A policy that cannot be loaded ends with 2 and no finding.
        """
        done = policy("lint", "policy.rego", rego=rego)

        assert (2, b"") == (done.returncode, done.stdout)
        assert done.stderr.startswith(b"spacelift-launcher: ")

    def test_checks(self):
        """
        What can be ignored is what can be found.
        """
        assert list(Check) == list(CHECKS)


def sample(outcome, deny, **changes):
    given = specimens.full()
    given["run"] |= changes
    content = {
        "input": given,
        "outcome": outcome,
        "results": {"deny": deny},
        "error": "",
        "body": "",
    }
    return json.dumps({"level": "info", "msg": "Sample", "sample": content})


class TestReplay:
    @pytest.fixture
    def log(self, tmp_path):
        """
        A launcher's log with two samples and other lines, cut short at its end.
        """
        lines = [
            '{"level": "info", "msg": "launcher.started"}',
            sample("allow", []),
            "not JSON",
            sample("deny", ["no tasks here"], type="TASK"),
            sample("allow", [])[:-20],
        ]
        path = tmp_path / "launcher.log"
        path.write_text("\n".join(lines))
        return path

    def test_nothing_changes(self, policy, log):
        """
        The policy that made a log would make it again.
        """
        done = policy("replay", "--policy", "policy.rego", log, rego=NO_TASKS)

        assert (0, b"2 samples, 0 would change\n") == (done.returncode, done.stdout)

    def test_changes(self, policy, log):
        """
        Each run that would be judged otherwise is shown with both outcomes.
        """
        done = policy("replay", "--policy", "policy.rego", log, rego=SIGNED_OR_NOTHING)
        run = f"{specimens.FULL.run.id} testing-spacelift plan"

        assert 1 == done.returncode
        assert [
            f"{log}:2: {run}: allow -> deny (unsigned)",
            f"{log}:4: {run}: deny (no tasks here) -> deny (unsigned)",
            "2 samples, 2 would change",
        ] == done.stdout.decode().splitlines()

    def test_standard_input(self, policy, log):
        """
        A log can be piped in.
        """
        done = policy(
            "replay",
            "--policy",
            "policy.rego",
            "-",
            rego=NO_TASKS,
            stdin=log.read_bytes(),
        )

        assert 0 == done.returncode

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("", "no sample"),
            ('{"msg": "launcher.started"}\n', "no sample"),
            ("\x00\xff\n", "no sample"),
            ('{"sample": {"outcome": "allow"}}\n', "line 1 is not a whole sample"),
        ],
    )
    def test_unusable(self, policy, tmp_path, content, complaint):
        """
        A log without samples proves nothing, so it is no success.
        """
        (tmp_path / "log").write_text(content)
        done = policy("replay", "--policy", "policy.rego", "log", rego=NO_TASKS)

        assert 2 == done.returncode
        assert complaint in done.stderr.decode()

    def test_no_policy(self, policy, log):
        """
        Without a policy there is nothing to compare with.
        """
        assert 2 == policy("replay", "--policy", "absent.rego", log).returncode


def test_schema(policy):
    """
    The published schema is what the command prints.
    """
    published = (ROOT / "docs" / "policy-input.schema.json").read_text()

    assert published == policy("schema").stdout.decode()
