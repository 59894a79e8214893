import hashlib
import math
import os
import subprocess
import sys
import tarfile
import textwrap
import threading
import time

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from structlog.testing import capture_logs

from given import PATIENCE
from launcher.adapters.policies.loading import evaluate_file, follow, load
from launcher.errors import PolicyUnusable
from launcher.policy import Evaluation, NoPolicy, Outcome
from launcher.settings import PolicySettings, RegoVersion
from launcher.testing.policies import ScriptedPolicy


services = pytest.mark.services


@pytest.fixture(params=["scripted", pytest.param("opa", marks=services)])
def engine(request, tmp_path):
    """
    A maker of engines: the same policy, as a script and as Rego.
    """

    def make(script, rego, timeout=5.0):
        if request.param == "scripted":
            return ScriptedPolicy(script, body=rego)
        return load_rego(tmp_path, rego, timeout=timeout)

    return make


def load_rego(directory, rego, *, state_dir=None, secret=b"k" * 32, **settings):
    path = directory / "policy.rego"
    path.write_text(textwrap.dedent(rego))
    chosen = PolicySettings(path=path, **settings)
    if state_dir is None:
        return load(chosen)
    return follow(chosen, path, state_dir, secret=secret)


def raising(error):
    def script(_):
        raise error

    return script


def test_silence_allows(engine):
    """
    A policy that says nothing allows the run and asks for no sample.
    """
    evaluation = engine(lambda _: {}, "package spacelift\n").evaluate({})

    assert evaluation.allowed
    assert (Outcome.ALLOW, (), False, "") == (
        evaluation.outcome,
        evaluation.deny,
        evaluation.sample,
        evaluation.refusal,
    )
    assert {"deny": [], "sample": False} == evaluation.results


def test_denial(engine):
    """
    Every message of deny is a reason, and one is enough.
    """
    policy = engine(
        lambda _: {"deny": ["no apples", "no pears"]},
        """
        package spacelift
        deny contains "no pears"
        deny contains "no apples"
        """,
    )

    evaluation = policy.evaluate({})

    assert not evaluation.allowed
    assert (Outcome.DENY, ("no apples", "no pears")) == (
        evaluation.outcome,
        evaluation.deny,
    )
    assert "no apples; no pears" in evaluation.refusal


def test_an_empty_message_denies(engine):
    """
    A reason without words is a reason.
    """
    policy = engine(
        lambda _: {"deny": [""]}, 'package spacelift\ndeny contains "" if true\n'
    )

    assert not policy.evaluate({}).allowed


def test_messages_are_sorted(engine):
    """
    Messages come in one order, however the policy found them.
    """
    policy = engine(
        lambda _: {"deny": ["z", "é", "a"]},
        "package spacelift\ndeny contains input.x[_]\n",
    )

    assert ("a", "z", "é") == policy.evaluate({"x": ["z", "é", "a"]}).deny


@pytest.mark.parametrize(
    ("document", "outcome"),
    [
        ({"allow": True}, Outcome.ALLOW),
        ({"allow": False}, Outcome.DENY),
        ({}, Outcome.DENY),
        ({"allow": True, "deny": True}, Outcome.DENY),
        ({"allow": "yes"}, Outcome.ERROR),
    ],
)
def test_an_allow_rule_must_be_true(engine, document, outcome):
    """
    Where a policy says what it allows, silence denies; deny wins over it.
    """
    policy = engine(
        lambda document: {
            "deny": ["no"] if "deny" in document else [],
            "allow": document.get("allow", False),
        },
        """
        package spacelift
        allow := input.allow
        deny contains "no" if input.deny
        """,
    )

    evaluation = policy.evaluate(document)

    assert outcome is evaluation.outcome
    assert bool(evaluation.refusal) != evaluation.allowed


def test_sample(engine):
    """
    Whether to sample may depend on the input, and changes no outcome.
    """
    policy = engine(
        lambda document: {"sample": document["x"] > 1},
        "package spacelift\nsample if input.x > 1\n",
    )

    assert [False, True] == [policy.evaluate({"x": x}).sample for x in (1, 2)]
    assert policy.evaluate({"x": 2}).allowed


def test_the_body_is_there_for_the_sample(engine):
    """
    An evaluation carries the source of the policy, to be logged with it.
    """
    policy = engine(lambda _: {}, "package spacelift\nsample := true\n")

    assert "package spacelift\nsample := true\n" == policy.evaluate({}).body


def test_all_of_the_input_is_seen(engine):
    """
    Large integers, text of all languages, null and nesting arrive as they are.
    """
    document = {
        "created_at": 1630588655754344000,
        "text": "ünï\U0001f680\u2028\x00",
        "nothing": None,
        "list": [{"a": (1, 2.5, True)}],
    }
    policy = engine(
        lambda document: {} if document == document_again() else {"deny": ["no"]},
        r"""
        package spacelift
        deny contains "no" if not same
        same if {
          input.created_at == 1630588655754344000
          input.created_at != 1630588655754344001
          count(input.text) == 6
          startswith(input.text, "ünï🚀")
          input.nothing == null
          input.list[0].a == [1, 2.5, true]
        }
        """,
    )

    def document_again():
        return document

    assert policy.evaluate(document).allowed


@pytest.mark.parametrize("deny", [1, ["x"], {"x": True}, True, False, None])
def test_messages_of_another_type(engine, deny):
    """
    When deny is no set of strings nobody knows what was meant, so it is an error.
    """
    policy = engine(
        lambda _: {"deny": [deny]}, "package spacelift\ndeny contains input.x\n"
    )

    evaluation = policy.evaluate({"x": deny})

    assert not evaluation.allowed
    assert (Outcome.ERROR, "deny is not a set of strings") == (
        evaluation.outcome,
        evaluation.error,
    )


def test_sample_of_another_type(engine):
    """
    A sample that is neither true nor false makes the evaluation an error.
    """
    policy = engine(lambda _: {"sample": 1}, "package spacelift\nsample := input.x\n")

    assert Outcome.ERROR is policy.evaluate({"x": 1}).outcome


def test_a_failing_evaluation_denies(engine):
    """
    A policy that contradicts itself gives an error, not an exception.
    """
    policy = engine(
        raising(ValueError("conflict")),
        """
        package spacelift
        sample := true if input.x
        sample := false if input.y
        """,
    )

    evaluation = policy.evaluate({"x": 1, "y": 1})

    assert not evaluation.allowed
    assert Outcome.ERROR is evaluation.outcome
    assert "conflict" in evaluation.error
    assert "conflict" not in evaluation.refusal


SLOW = """
package spacelift
numbers_ := numbers.range(1, 300)
deny contains "slow" if {
  input.x
  some a in numbers_
  some b in numbers_
  some c in numbers_
  some d in numbers_
  a + b + c + d == input.x
}
"""


def test_a_slow_evaluation_denies(engine):
    """
    An evaluation that takes too long is ended soon after its limit, by an error.
    """
    policy = engine(raising(TimeoutError("took longer")), SLOW, timeout=0.2)

    began = time.monotonic()
    evaluation = policy.evaluate({"x": -1})

    assert 20 > time.monotonic() - began
    assert Outcome.ERROR is evaluation.outcome
    assert "took longer" in evaluation.error


@pytest.mark.parametrize(
    "document", [{"x": math.nan}, {"x": b"bytes"}, {"x": {1, 2}}, {(1, 2): 3}]
)
def test_never_raises(engine, document):
    """
    Input that is not JSON is an error of the evaluation like any other.
    """
    policy = engine(raising(TypeError("not JSON")), "package spacelift\n")

    assert Outcome.ERROR is policy.evaluate(document).outcome


def test_evaluations_at_the_same_time(engine):
    """
    Threads share an engine, and each gets the answer to its own question.
    """
    policy = engine(
        lambda document: {"deny": [f"run {document['x']}"]},
        """
        package spacelift
        deny contains sprintf("run %d", [input.x])
        """,
    )

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda x: policy.evaluate({"x": x}).deny, range(100))

    assert [(f"run {x}",) for x in range(100)] == list(answers)


def test_one_failure_does_not_spoil_the_next(engine):
    """
    After an error the engine answers the next question as if nothing happened.
    """

    def script(document):
        return {"sample": not 1 / document["x"] > 2}

    policy = engine(
        script,
        """
        package spacelift
        sample := true if input.x
        sample := false if input.x == 0
        """,
    )

    assert Outcome.ERROR is policy.evaluate({"x": 0}).outcome
    assert Outcome.ALLOW is policy.evaluate({"x": 1}).outcome


def test_no_policy():
    """
    Without a policy everything is allowed, and nothing is sampled.
    """
    engine = load(PolicySettings())

    assert isinstance(engine, NoPolicy)
    assert Evaluation(
        outcome=Outcome.ALLOW, results={"deny": [], "sample": False}
    ) == engine.evaluate({"anything": 1})


def test_no_policy_is_cheap():
    """
    A worker without a policy does not load WebAssembly.
    """
    code = """
import sys
from launcher.adapters.policies.loading import load
from launcher.settings import PolicySettings
load(PolicySettings()).evaluate({})
sys.exit("wasmtime" in sys.modules or "opapywasm" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@services
class TestDialects:
    @pytest.mark.parametrize(
        "rego",
        [
            'package spacelift\ndeny["no"] { input.x }\nsample { true }\n',
            'package spacelift\ndeny[m] { input.x; m := "no" }\nsample { true }\n',
            "package spacelift\nimport future.keywords.in\nsample = true\n"
            'deny["no"] { 1 in [input.x] }\n',
            'package spacelift\nsample if true\ndeny contains "no" if input.x\n',
            "package spacelift\nimport rego.v1\nsample := true\n"
            'deny contains "no" if input.x\n',
            "package spacelift\nimport future.keywords\nsample := true\n"
            'deny contains "no" if { input.x; re_match("a", "a") }\n',
        ],
    )
    def test_found_by_itself(self, tmp_path, rego):
        """
        Policies of both dialects work without a word about which they are.
        """
        policy = load_rego(tmp_path, rego)

        evaluations = [policy.evaluate(document) for document in ({"x": 1}, {})]

        assert [("no",), ()] == [each.deny for each in evaluations]
        assert all(each.sample for each in evaluations)

    def test_the_two_line_policy(self, tmp_path):
        """
        The policy of the product's documentation works as it stands there.
        """
        rego = "package spacelift\nsample { true }\n"

        assert Evaluation(
            outcome=Outcome.ALLOW,
            sample=True,
            results={"deny": [], "sample": True},
            body=rego,
        ) == load_rego(tmp_path, rego).evaluate({})

    @pytest.mark.parametrize(
        ("version", "rego"),
        [
            (RegoVersion.V1, "package spacelift\nsample { true }\n"),
            (RegoVersion.V0, "package spacelift\nsample if true\n"),
        ],
    )
    def test_only_the_one_that_was_asked_for(self, tmp_path, version, rego):
        """
        A dialect that is set is not second-guessed.
        """
        with pytest.raises(PolicyUnusable, match=r"policy.rego:2: "):
            load_rego(tmp_path, rego, rego_version=version)


@services
class TestUnusable:
    @pytest.mark.parametrize(
        ("rego", "complaint"),
        [
            (
                "package spacelift\nsample { true }\n\ndeny[m] { m := = 1 }\n",
                "policy.rego:4: unexpected eq token",
            ),
            (
                "package spacelift\n\ndeny contains 1 if {\n  x := = 1\n}\n",
                "policy.rego:4: unexpected eq token",
            ),
            (
                'package spacelift\ndeny contains "x" if y\n',
                "policy.rego:2: var y is unsafe",
            ),
            (
                "package other\nsample := true\n",
                "of package other: begin it with `package spacelift`",
            ),
            (
                "package spacelift.rules\nsample := true\n",
                "of package spacelift.rules: begin it",
            ),
            ("", "policy.rego"),
            ("sample := true\n", "package expected"),
            *(
                (
                    f"package spacelift\n{rule}\n",
                    f"policy.rego:2: {rule.split()[0][:4]}",
                )
                for rule in (
                    'deny["x"] if input.x',
                    "deny(x) := 1",
                    'deny := {"x"}',
                    "deny if input.x",
                )
            ),
            *(
                (f"package spacelift\n{rule}\n", f" {name} must be true or false")
                for name in ("sample", "allow")
                for rule in (
                    f'{name} contains "x"',
                    f'{name}["x"] := 1',
                    f"{name}(x) := true",
                    f"{name} := 1",
                    f'{name} := "yes" if input.x',
                )
            ),
            (
                "package spacelift\ndeny contains 1\n",
                "policy.rego: deny must be a set of strings",
            ),
            (
                "package spacelift\nsample := data.spacelift_launcher.prelude.result\n",
                "policy.rego:2: rule data.spacelift.sample is recursive",
            ),
            (
                'package spacelift\nsample := exec("/bin/true").status == 0\n',
                "policy.rego:2: exec: invalid argument(s)",
            ),
            (
                "package spacelift\ndeny contains stack.name\n",
                "policy.rego:2: var stack is unsafe: use input.static_run_environment",
            ),
            *(
                (
                    f"package spacelift\nsample := {call} == 1\n",
                    f"policy.rego:2: {call.partition('(')[0]} is not available: ",
                )
                for call in (
                    'http.send({"method": "get", "url": "http://169.254.169.254"})',
                    "opa.runtime()",
                    'rego.parse_module("a", "b")',
                    "time.now_ns()",
                    'trace("x")',
                )
            ),
            (
                'package spacelift\nsample if graphql.is_valid("x", "y")\n'
                'deny contains net.lookup_ip_addr("x")[_]\n',
                "calls what this launcher does not provide: "
                "graphql.is_valid, net.lookup_ip_addr",
            ),
        ],
    )
    def test_says_what_and_where(self, tmp_path, rego, complaint):
        """
        A policy that cannot be used stops the start, with file and line.
        """
        with pytest.raises(PolicyUnusable) as caught:
            load_rego(tmp_path, rego)

        assert complaint in str(caught.value)

    def test_source_is_not_repeated(self, tmp_path):
        """
        The public message quotes nothing of the policy's text.
        """
        rego = 'package spacelift\ndeny contains "hunter2" if { "hunter2" = = 1 }\n'

        with pytest.raises(PolicyUnusable) as caught:
            load_rego(tmp_path, rego)

        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("absent.rego", None, "there is no policy file"),
            ("latin.rego", b"package spacelift # \xe9\n", "not UTF-8"),
            ("empty.wasm", b"", "not a policy compiled by OPA"),
            ("module.wasm", b"\0asm\1\0\0\0", "not a policy compiled by OPA"),
            ("text.tar.gz", b"package spacelift", "not a bundle"),
        ],
    )
    def test_files(self, tmp_path, name, content, complaint):
        """
        A file that is no policy is refused by name.
        """
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)

        with pytest.raises(PolicyUnusable, match=complaint):
            load(PolicySettings(path=path))


@services
class TestLimits:
    def test_memory(self, tmp_path):
        """
        An evaluation that eats memory is an error before the machine suffers.
        """
        policy = load_rego(
            tmp_path,
            """
            package spacelift
            deny contains "x" if count(many) == input.x
            many := [[a, b, c] |
              some a in numbers.range(1, 400)
              some b in numbers.range(1, 400)
              some c in numbers.range(1, 400)
            ]
            """,
            timeout=60.0,
        )

        evaluation = policy.evaluate({"x": 0})

        assert "the evaluation needed more than 256 MiB of memory" == evaluation.error
        assert evaluation.error in evaluation.refusal

    def test_large_input(self, tmp_path):
        """
        A megabyte of metadata is judged; an absurd amount is refused in a sentence.
        """
        rego = 'package spacelift\ndeny contains "x" if count(input.x) > 1000000\n'
        policy = load_rego(tmp_path, rego)

        assert ("x",) == policy.evaluate({"x": "y" * 2_000_000}).deny
        absurd = policy.evaluate({"x": "y" * 10_000_000})
        assert Outcome.ERROR is absurd.outcome
        assert "its input has 10000009 bytes, more than the 8 MiB" in absurd.refusal

    def test_nothing_runs_between_evaluations(self, tmp_path):
        """
        An engine that is not asked keeps no thread, so it costs no processor.
        """
        before = set(threading.enumerate())
        policy = load_rego(tmp_path, "package spacelift\nsample := true\n")
        policy.evaluate({})
        deadline = time.monotonic() + PATIENCE
        while set(threading.enumerate()) - before and time.monotonic() < deadline:
            threading.Event().wait(0.01)

        assert set() == set(threading.enumerate()) - before

    def test_limits_of_evaluations_at_the_same_time(self, tmp_path):
        """
        A slow evaluation does not shorten the time of a quick one beside it.
        """
        quickly = 'deny contains "quick" if not input.x\n'
        policy = load_rego(tmp_path, SLOW + quickly, timeout=1.0)

        with ThreadPoolExecutor(2) as pool:
            slow = pool.submit(policy.evaluate, {"x": -1})
            quick = [policy.evaluate({}).outcome for _ in range(3)]

        assert Outcome.ERROR is slow.result().outcome
        assert [Outcome.DENY] * 3 == quick


@services
class TestSanitized:
    @pytest.mark.parametrize(
        ("plain", "digest"),
        [
            ("exampledb", "59832d41"),
            ("mysql", "eae35047"),
            ("5.7", "fc40d152"),
            ("db.t3.micro", "4f8189cd"),
            ("default.mysql5.7", "bead1390"),
        ],
    )
    def test_as_documented(self, tmp_path, plain, digest):
        """
        The product's own samples come out, called with one argument or two.
        """
        policy = load_rego(
            tmp_path,
            """
            package spacelift
            deny contains sanitized(input.x)
            deny contains concat("", ["out ", out]) if sanitized(input.x, out)
            """,
        )

        assert (digest, f"out {digest}") == policy.evaluate({"x": plain}).deny


@pytest.fixture
def without_opa(monkeypatch, tmp_path):
    """
    A PATH on which there is no opa.
    """
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


class TestWithoutOpa:
    REGO = 'package spacelift\ndeny contains "no" if input.x\n'

    def test_says_both_ways_out(self, tmp_path, without_opa):
        """
        Without opa a policy in Rego cannot be used, and one is told what to do.
        """
        with pytest.raises(PolicyUnusable, match=r"install opa .* or give a policy"):
            load_rego(tmp_path, self.REGO, state_dir=tmp_path)

    @services
    def test_what_was_compiled_before(self, tmp_path, monkeypatch):
        """
        A policy that opa compiled once is used when opa has gone.
        """
        load_rego(tmp_path, self.REGO, state_dir=tmp_path)
        monkeypatch.setenv("PATH", "")

        policy = load_rego(tmp_path, self.REGO, state_dir=tmp_path)

        assert ("no",) == policy.evaluate({"x": 1}).deny
        with pytest.raises(PolicyUnusable):
            load_rego(tmp_path, f"{self.REGO}# changed\n", state_dir=tmp_path)

    @services
    @pytest.mark.parametrize("name", ["policy.tar.gz", "policy.wasm"])
    def test_compiled_elsewhere(self, tmp_path, monkeypatch, name):
        """
        The output of `opa build -t wasm -e spacelift` needs no opa here.
        """
        (tmp_path / "policy.rego").write_text(self.REGO)
        command = "opa build -t wasm -e spacelift -o policy.tar.gz policy.rego"
        subprocess.run(command.split(), cwd=tmp_path, check=True)
        with tarfile.open(tmp_path / "policy.tar.gz") as bundle:
            wasm = bundle.extractfile("/policy.wasm").read()
        (tmp_path / "policy.wasm").write_bytes(wasm)
        monkeypatch.setenv("PATH", "")

        policy = load(PolicySettings(path=tmp_path / name))

        assert [("no",), ()] == [policy.evaluate(each).deny for each in ({"x": 1}, {})]

    @services
    def test_an_entrypoint_of_another_name(self, tmp_path):
        """
        A compiled policy without our entrypoint is refused with the command.
        """
        (tmp_path / "policy.rego").write_text("package other\nallow := true\n")
        command = "opa build -t wasm -e other/allow -o policy.tar.gz policy.rego"
        subprocess.run(command.split(), cwd=tmp_path, check=True)

        with pytest.raises(PolicyUnusable, match="opa build -t wasm -e spacelift"):
            load(PolicySettings(path=tmp_path / "policy.tar.gz"))


@services
class TestCache:
    REGO = "package spacelift\nsample := true\n"

    @pytest.fixture
    def entry(self, tmp_path):
        """
        The file that compiling the policy once has left.
        """
        load_rego(tmp_path, self.REGO, state_dir=tmp_path)
        (path,) = (tmp_path / "policy-cache").glob("*.wasm")
        return path

    def test_private(self, entry):
        """
        Nobody else can read or replace what was compiled.
        """
        assert (0o600, 0o700) == (
            entry.stat().st_mode & 0o777,
            entry.parent.stat().st_mode & 0o777,
        )

    def test_used(self, tmp_path, entry):
        """
        The same policy is not compiled twice.
        """
        before = entry.stat()

        load_rego(tmp_path, self.REGO, state_dir=tmp_path)

        assert [entry] == list(entry.parent.glob("*.wasm"))
        assert before.st_ino == entry.stat().st_ino

    @pytest.mark.parametrize(
        "tamper",
        [
            lambda path: path.write_bytes(path.read_bytes() + b"\0"),
            lambda path: path.write_bytes(b""),
            lambda path: path.chmod(0o666),
            lambda path: path.parent.chmod(0o777),
            lambda path: os.chown(path, 1234, 1234),
            lambda path: path.symlink_to(path.rename(path.with_suffix(".moved"))),
        ],
        ids=["longer", "empty", "writable", "directory", "owner", "link"],
    )
    def test_not_trusted(self, tmp_path, entry, monkeypatch, tamper):
        """
        What somebody else could have written is not used.
        """
        tamper(entry)
        monkeypatch.setenv("PATH", "")

        with pytest.raises(PolicyUnusable, match="there is no opa command"):
            load_rego(tmp_path, self.REGO, state_dir=tmp_path)

    def test_of_a_policy_that_allows_everything(self, tmp_path):
        """
        What was compiled of another policy, here or elsewhere, is not taken for this one.
        """
        places = {"x" * 32: tmp_path / "elsewhere", "k" * 32: tmp_path / "here"}
        strict = 'package spacelift\ndeny contains "no"\n'
        load_rego(tmp_path, strict, state_dir=tmp_path)
        (entry,) = (tmp_path / "policy-cache").glob("*.wasm")
        key, tool, _, _ = entry.name.split(".")
        entry.unlink()
        for secret, place in places.items():
            load_rego(
                tmp_path,
                "package spacelift\n",
                state_dir=place,
                secret=secret.encode(),
            )
            (theirs,) = (place / "policy-cache").glob("*.wasm")
            content, mac = theirs.read_bytes(), theirs.name.split(".")[2]
            for third in (mac, hashlib.sha256(content).hexdigest()):
                put = entry.with_name(f"{key}.{tool}.{third}.wasm")
                put.write_bytes(content)
                put.chmod(0o600)

        with capture_logs() as logs:
            policy = load_rego(tmp_path, strict, state_dir=tmp_path)

        assert ("no",) == policy.evaluate({}).deny
        ignored = [each for each in logs if "ignored" in each["event"]]
        assert 3 == len(ignored)

    def test_of_another_pool(self, tmp_path, entry):
        """
        What bears no MAC by this pool's key is compiled anew.
        """
        load_rego(tmp_path, self.REGO, state_dir=tmp_path, secret=b"x" * 32)

        assert 2 == len(list(entry.parent.glob("*.wasm")))

    def test_repaired(self, tmp_path, entry):
        """
        A damaged entry is replaced as long as opa is there.
        """
        content = entry.read_bytes()
        entry.write_bytes(b"damaged")

        load_rego(tmp_path, self.REGO, state_dir=tmp_path)

        assert content == entry.read_bytes()

    def test_unwritable(self, tmp_path):
        """
        A cache that cannot be written is no reason not to start.
        """
        (tmp_path / "policy-cache").write_text("a file in the way")

        policy = load_rego(tmp_path, self.REGO, state_dir=tmp_path)

        assert policy.evaluate({}).sample

    def test_bounded(self, tmp_path):
        """
        Policies of the past do not pile up for ever.
        """
        for number in range(20):
            load_rego(tmp_path, f"{self.REGO}# {number}\n", state_dir=tmp_path)

        assert 16 == len(list((tmp_path / "policy-cache").glob("*.wasm")))


@services
class TestEvaluateFile:
    def test_answer(self, tmp_path):
        """
        The building block of `policy eval` gives the three keys of a sample.
        """
        policy, document = tmp_path / "p.rego", tmp_path / "input.json"
        policy.write_text('package spacelift\ndeny contains "no" if input.x\n')
        document.write_text('{"x": 1}')

        assert {
            "outcome": "deny",
            "results": {"deny": ["no"], "sample": False},
            "error": "",
        } == evaluate_file(policy, document)
        assert {policy, document} == set(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("rego", "document", "complaint"),
        [
            ("package spacelift\nx := = 1\n", "{}", "p.rego:2: "),
            ("package spacelift\n", "{", "is not JSON"),
            ("package spacelift\n", "[]", "is not a JSON object"),
            ("package spacelift\n", None, "No such file"),
        ],
    )
    def test_error(self, tmp_path, rego, document, complaint):
        """
        What would deny every run is an error here, too.
        """
        (tmp_path / "p.rego").write_text(rego)
        if document is not None:
            (tmp_path / "input.json").write_text(document)

        answer = evaluate_file(Path(tmp_path / "p.rego"), tmp_path / "input.json")

        assert ("error", {}) == (answer["outcome"], answer["results"])
        assert complaint in answer["error"]
