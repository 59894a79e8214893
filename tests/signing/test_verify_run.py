import json
import os
import subprocess
import sys

from pathlib import Path

import pytest

from launcher.policytools import specimens
from launcher.signing.claims import HOOKS


SIGN = Path(__file__).parents[2] / "examples" / "signed-runs" / "sign.py"
COMMAND = [sys.executable, "-m", "launcher", "verify-run"]


def called(*arguments, document=b""):
    """In an environment as empty as a policy's exec makes it."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=document,
        capture_output=True,
        env={"PATH": os.defpath},
        cwd=Path(__file__).parents[2],
    )


@pytest.fixture
def verify_run(signer, tmp_path):
    """
    Calls the command as a policy does.
    """

    def verified(document, *arguments):
        cache = tmp_path / "state" / "replay.db"
        return called(
            "--keys",
            signer.public,
            "--cache",
            cache,
            *arguments,
            document=json.dumps(document).encode(),
        )

    return verified


def test_valid(verify_run, signer, document):
    """
    A proven run ends with 0 and a verdict in JSON, with nothing else printed.
    """
    done = verify_run(document(signer.sign()))

    assert (0, b"") == (done.returncode, done.stderr)
    assert {"valid": True, "reason": "", "kid": "ci"}.items() <= json.loads(
        done.stdout
    ).items()


def test_invalid(verify_run, signer, document):
    """
    An unproven run ends with 1, and the verdict says why.
    """
    done = verify_run(document(signer.sign(stack="another")))

    assert (1, b"") == (done.returncode, done.stderr)
    assert not json.loads(done.stdout)["valid"]


def test_replay_across_processes(verify_run, signer, document):
    """
    The next call knows what the last one has seen.
    """
    token = signer.sign()
    other = {"run__id": "01OTHER", "static_run_environment__run_ulid": "01OTHER"}
    codes = [
        verify_run(given).returncode
        for given in (document(token), document(token), document(token, **other))
    ]

    assert [0, 0, 1] == codes


@pytest.mark.parametrize("given", [b"", b"{", b"[]", b"\xff", b"null"])
def test_no_input(signer, tmp_path, given):
    """
    Garbage on standard input is no proof, and no traceback either.
    """
    done = called("--keys", signer.public, "--cache", tmp_path / "r.db", document=given)

    assert (1, b"") == (done.returncode, done.stderr)
    assert not json.loads(done.stdout)["valid"]


def test_no_keys(tmp_path, document):
    """
    Without keys it ends with 2; the verdict, which runs see, tells no paths.
    """
    done = called(
        "--keys",
        tmp_path / "absent",
        "--cache",
        tmp_path / "r.db",
        document=json.dumps(document("x")).encode(),
    )

    assert 2 == done.returncode
    assert b"cannot be read" in done.stderr
    assert str(tmp_path) not in done.stdout.decode()
    assert not json.loads(done.stdout)["valid"]


def test_no_cache(signer, tmp_path, document):
    """
    Without a place to remember nonces even a good signature ends with 2.
    """
    (tmp_path / "file").touch()
    done = called(
        "--keys",
        signer.public,
        "--cache",
        tmp_path / "file" / "r.db",
        document=json.dumps(document(signer.sign())).encode(),
    )

    assert 2 == done.returncode
    assert not json.loads(done.stdout)["valid"]


def test_longest(verify_run, signer, document):
    """
    The machine's owner says how long a signature may be good for.
    """
    done = verify_run(document(signer.sign()), "--longest", "5m")

    assert "too long" in json.loads(done.stdout)["reason"]


@pytest.mark.parametrize(
    "arguments", [(), ("--keys",), ("--keys", "k", "--longest", "soon")]
)
def test_usage(arguments):
    """
    Wrong arguments end with 2.
    """
    assert 2 == called(*arguments).returncode


class TestExample:
    """The script that signs, and the command that verifies, as the README shows."""

    @pytest.fixture(params=["EdDSA", "ES256"])
    def sign(self, request, tmp_path):
        """
        Signs with a key that the script made itself.
        """
        private, public = tmp_path / "ci.pem", tmp_path / "keys.json"

        def script(*arguments):
            return subprocess.run(
                [sys.executable, SIGN, *map(str, arguments)],
                check=True,
                capture_output=True,
                text=True,
                cwd=Path(__file__).parents[2],
            ).stdout.strip()

        script(
            "keys",
            "--kid",
            "ci",
            "--alg",
            request.param,
            "--private",
            private,
            "--public",
            public,
        )
        assert 0o600 == private.stat().st_mode & 0o777

        def signed(*arguments):
            run = specimens.FULL
            return script(
                "run",
                "--key",
                private,
                "--kid",
                "ci",
                "--stack",
                run.stack.slug,
                "--commit",
                run.run.commit.hash,
                "--type",
                "TRACKED",
                *arguments,
            )

        signed.public, signed.cache, signed.script = public, tmp_path / "r.db", script
        return signed

    def verdict(self, sign, document):
        done = called(
            "--keys",
            sign.public,
            "--cache",
            sign.cache,
            document=json.dumps(document).encode(),
        )
        return json.loads(done.stdout)

    def test_plan_and_apply(self, sign, document):
        """
        Signed at the trigger and at the confirmation, both jobs are proven.
        """
        hooks = [part for name in HOOKS for part in ("--hook", f"{name}=true")]
        plan = sign("--phase", "plan", *hooks)
        apply = sign("--phase", "apply", "--run", specimens.FULL.run.id, *hooks)

        assert [True, True] == [
            self.verdict(sign, given)["valid"]
            for given in (document(plan), document(plan, apply, phase="apply"))
        ]

    def test_hooks_from_a_sample(self, sign, document, tmp_path):
        """
        The hooks can be taken from a sample as it is, and more can be pinned.
        """
        static = document()["static_run_environment"]
        sample = tmp_path / "static.json"
        sample.write_text(json.dumps(static))
        token = sign(
            "--phase",
            "plan",
            "--hooks",
            sample,
            "--also",
            f"/static_run_environment/source_url={json.dumps(static['source_url'])}",
        )

        assert self.verdict(sign, document(token))["valid"]
        moved = document(
            token, static_run_environment__source_url="https://evil.example.org"
        )
        assert "source_url is not as signed" in self.verdict(sign, moved)["reason"]

    def test_unsigned_hooks(self, sign, document):
        """
        Who signs without naming hooks signs a run without hooks.
        """
        assert (
            "hooks" in self.verdict(sign, document(sign("--phase", "plan")))["reason"]
        )

    def test_rotation(self, sign, tmp_path):
        """
        A second key is added to the set, and a kid is not used twice.
        """
        sign.script(
            "keys",
            "--kid",
            "next",
            "--private",
            tmp_path / "n.pem",
            "--public",
            sign.public,
        )
        kids = [key["kid"] for key in json.loads(sign.public.read_text())["keys"]]

        assert ["ci", "next"] == kids
        with pytest.raises(subprocess.CalledProcessError):
            sign.script(
                "keys",
                "--kid",
                "next",
                "--private",
                tmp_path / "m.pem",
                "--public",
                sign.public,
            )


def test_quick_enough(verify_run, signer, document):
    """
    One call takes far less than the five seconds that a policy waits for it.
    """
    given = document(signer.sign())
    before = os.times()
    verify_run(given)
    after = os.times()

    spent = after.children_user - before.children_user
    spent += after.children_system - before.children_system
    assert spent < 2.5
