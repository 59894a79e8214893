import io
import json
import os
import subprocess
import tarfile
import textwrap

import pytest

from structlog.testing import capture_logs

from launcher.adapters.policies.loading import follow, load
from launcher.errors import PolicyUnusable
from launcher.policy import Outcome
from launcher.settings import PolicySettings


pytestmark = pytest.mark.services


@pytest.fixture
def place(tmp_path):
    """
    A maker of directories with the given files.
    """

    def make(**files):
        root = tmp_path / "policy"
        for name, text in files.items():
            path = root / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return root

    return make


def evaluate(path, document=None, **settings):
    return load(PolicySettings(path=path, **settings)).evaluate(document or {})


class TestDirectory:
    def test_files_and_data(self, place):
        """
        All files of Rego count, with data at its place; tests and other files do not.
        """
        root = place(
            main_dot_rego="""
                package spacelift
                import data.lib.owners
                deny contains sprintf("%s is not ours", [input.x]) if {
                  not owners.known(input.x)
                }
                sample := data.settings.sample
            """,
            lib__owners_dot_rego="""
                package lib.owners
                known(x) if x in data.people.names
            """,
            lib__owners_test_dot_rego="package lib.owners\nbroken ( \n",
            people__data_dot_yaml="names: [ann, bob]\n",
            data_dot_json='{"settings": {"sample": true}}',
            README_dot_md="no policy",
            other_dot_json="{broken",
        )

        assert evaluate(root, {"x": "ann"}).allowed
        assert evaluate(root, {"x": "ann"}).sample
        assert ("eve is not ours",) == evaluate(root, {"x": "eve"}).deny

    def test_the_way_kubernetes_mounts(self, tmp_path):
        """
        Files that are links into a hidden directory are read once.
        """
        hidden = tmp_path / "policy" / "..2024"
        hidden.mkdir(parents=True)
        (hidden / "p.rego").write_text('package spacelift\ndeny contains "no"\n')
        (tmp_path / "policy" / "..data").symlink_to("..2024")
        (tmp_path / "policy" / "p.rego").symlink_to("..data/p.rego")

        assert ("no",) == evaluate(tmp_path / "policy").deny

    def test_errors_name_the_file(self, place):
        """
        A mistake is reported with the file it is in.
        """
        root = place(
            good_dot_rego="package spacelift\n", bad_dot_rego="package lib\nx := := 1\n"
        )

        with pytest.raises(PolicyUnusable, match=r"policy/bad.rego:2: unexpected"):
            evaluate(root)

    def test_tests_are_passed_over(self, place):
        """
        The owner's tests lie beside the policy, and are no part of it.
        """
        root = place(
            a_dot_rego='package spacelift\ndeny contains "a"\n',
            a_test_dot_rego='package spacelift\ndeny contains "test" if http.send({})\n',
        )

        assert ("a",) == evaluate(root).deny

    @pytest.mark.parametrize(
        ("files", "complaint"),
        [
            ({"a_dot_txt": "x"}, "holds neither"),
            ({"a_dot_rego": "package lib\n"}, "of package lib: begin it"),
            ({"a_dot_rego": "package spacelift\n", "data_dot_json": "{"}, "compiled"),
            ({"spacelift_launcher_names_dot_rego": "package spacelift\n"}, "no file"),
        ],
    )
    def test_unusable(self, place, files, complaint):
        """
        A directory that is no policy is refused.
        """
        with pytest.raises(PolicyUnusable, match=complaint):
            evaluate(place(**files))

    def test_what_is_shown(self, place):
        """
        The body of a sample is all files, each under its name.
        """
        root = place(a_dot_rego="package spacelift\n", b_dot_rego="package lib\n")

        assert (
            "# a.rego\npackage spacelift\n\n# b.rego\npackage lib\n"
            == evaluate(root).body
        )


class TestBundle:
    def test_without_wasm(self, place, tmp_path):
        """
        A bundle that holds Rego and data is compiled like a directory.
        """
        place(
            p_dot_rego="package spacelift\ndeny contains m if some m in data.reasons\n",
            data_dot_json='{"reasons": ["b", "a"]}',
        )
        command = "opa build -b policy -o bundle.tar.gz"
        subprocess.run(command.split(), cwd=tmp_path, check=True)

        assert ("a", "b") == evaluate(tmp_path / "bundle.tar.gz").deny

    def test_compiled_with_data(self, place, tmp_path):
        """
        A bundle that was compiled elsewhere brings its data along.
        """
        place(
            p_dot_rego="package spacelift\ndeny contains m if some m in data.reasons\n",
            data_dot_json='{"reasons": ["b", "a"]}',
        )
        command = "opa build -t wasm -e spacelift -b policy -o bundle.tar.gz"
        subprocess.run(command.split(), cwd=tmp_path, check=True)

        assert ("a", "b") == evaluate(tmp_path / "bundle.tar.gz").deny

    @pytest.mark.parametrize("suffix", [".tar.gz", ".wasm"])
    def test_allow_that_was_compiled_elsewhere(self, place, tmp_path, suffix):
        """
        Where nobody but the module itself knows of an allow rule, it still counts.
        """
        place(p_dot_rego="package spacelift\nallow if input.x\n")
        command = "opa build -t wasm -e spacelift -b policy -o bundle.tar.gz"
        subprocess.run(command.split(), cwd=tmp_path, check=True)
        with tarfile.open(tmp_path / "bundle.tar.gz") as bundle:
            wasm = bundle.extractfile("/policy.wasm").read()
        (tmp_path / "bundle.wasm").write_bytes(wasm)
        path = tmp_path / f"bundle{suffix}"

        assert Outcome.DENY is evaluate(path).outcome
        assert Outcome.ALLOW is evaluate(path, {"x": 1}).outcome

    def test_a_bomb(self, tmp_path):
        """
        A small file that unpacks to a large one is refused.
        """
        path = tmp_path / "bomb.tar.gz"
        with tarfile.open(path, "w:gz") as bundle:
            member = tarfile.TarInfo("policy.wasm")
            member.size = 64 << 20
            bundle.addfile(member, io.BytesIO(bytes(member.size)))

        with pytest.raises(PolicyUnusable, match="larger than 32 MiB"):
            evaluate(path)


class TestPrelude:
    @pytest.mark.parametrize(
        "rego",
        [
            "allow if count(deny) == 0\n",
            "allow if not sample\n",
            "default deny := set()\n",
            "default sample := false\nsample if input.y\n",
        ],
    )
    def test_names_that_are_not_defined(self, tmp_path, rego):
        """
        A policy may use the predefined names without defining them.
        """
        path = tmp_path / "p.rego"
        path.write_text(f"package spacelift\n{rego}")
        if "default deny" in rego:
            with pytest.raises(PolicyUnusable, match="deny must be a set"):
                evaluate(path)
            return

        assert evaluate(path, {"x": 1}).allowed

    @pytest.mark.parametrize(
        ("rego", "denied"),
        [
            ('deny contains "a" if run.id == "7"\n', ("a",)),
            ('deny contains "a" if commit.hash == "c0"\n', ("a",)),
            ("deny contains h if some h in runtime_config.before_init\n", ("x",)),
            ("deny contains runtime_config.runner_image\n", ("img",)),
            ("deny contains p if p := runtime_config.project_root\n", ()),
            # Names that the policy binds itself are its own.
            ('run := {"id": "own"}\ndeny contains run.id\n', ("own",)),
            ("import input.static_run_environment as run\n"
             "deny contains h if some h in run.before_init\n", ("x",)),
            ('deny contains run if { run := "local" }\n', ("local",)),
            ('f(commit) := commit\ndeny contains f("arg")\n', ("arg",)),
        ],
    )  # fmt: skip
    def test_aliases(self, tmp_path, rego, denied):
        """
        Short names stand for parts of the input, unless the policy defines them.
        """
        path = tmp_path / "p.rego"
        path.write_text(f"package spacelift\n{rego}")
        document = {
            "docker_image": "img",
            "run": {"id": "7", "commit": {"hash": "c0"}},
            "static_run_environment": {"before_init": ["x"]},
        }
        engine = load(PolicySettings(path=path))

        if "project_root" in rego:
            assert Outcome.ERROR is engine.evaluate(document).outcome
        else:
            assert denied == engine.evaluate(document).deny

    def test_a_local_variable_of_the_old_dialect(self, tmp_path):
        """
        A variable that v0 binds by unification does not become an alias.
        """
        path = tmp_path / "p.rego"
        path.write_text("package spacelift\ndeny[run] { run = input.x }\n")

        assert ("other",) == evaluate(path, {"x": "other", "run": {}}).deny


class TestErrors:
    def test_caret(self, tmp_path):
        """
        The operator sees the line, with a caret under the place.
        """
        path = tmp_path / "p.rego"
        path.write_text("package spacelift\n\ndeny contains m if {\n\tm := = 1\n}\n")

        with pytest.raises(PolicyUnusable) as caught:
            load(PolicySettings(path=path))

        assert f"{path}:4: " in str(caught.value)
        assert "\tm := = 1\n\t     ^" in caught.value.details

    def test_not_text(self, tmp_path):
        """
        A file that is no UTF-8 is refused with the line.
        """
        path = tmp_path / "p.rego"
        path.write_bytes(b"package spacelift\n# \xe9\n")

        with pytest.raises(PolicyUnusable, match="not UTF-8 text: line 2"):
            load(PolicySettings(path=path))

    def test_missing_builtins_are_named(self, tmp_path):
        """
        What OPA has and nobody here provides stops the start by name.
        """
        path = tmp_path / "p.rego"
        path.write_text(
            "package spacelift\nsample if graphql.is_valid(input.x, input.y)\n"
        )

        with pytest.raises(PolicyUnusable, match=r"does not provide: graphql.is_valid"):
            load(PolicySettings(path=path))


class TestCache:
    def test_facts_are_kept(self, tmp_path):
        """
        What was learned of a policy is known when only the cache is left.
        """
        path = tmp_path / "p.rego"
        path.write_text("package spacelift\nallow if run.id == data.x.y\n")
        root = tmp_path / "dir"
        root.mkdir()
        path.rename(root / "p.rego")
        (root / "data.json").write_text(json.dumps({"x": {"y": "7"}}))
        settings = PolicySettings(path=root)
        follow(settings, root, tmp_path, secret=b"s" * 32)
        before, os.environ["PATH"] = os.environ["PATH"], ""
        try:
            with capture_logs() as logs:
                engine = follow(settings, root, tmp_path, secret=b"s" * 32)
        finally:
            os.environ["PATH"] = before

        assert engine.evaluate({"run": {"id": "7"}}).allowed
        assert Outcome.DENY is engine.evaluate({"run": {"id": "8"}}).outcome
        assert [["run"]] == [
            each["aliases"] for each in logs if each["event"] == "policy.loaded"
        ]

    def test_the_dialect_is_told(self, tmp_path):
        """
        A policy that is valid in both dialects is v1, and that is said.
        """
        path = tmp_path / "p.rego"
        path.write_text("package spacelift\nimport rego.v1\nsample := true\n")
        engine = load(PolicySettings(path=path))
        path.write_text("package spacelift\nsample { true }\n")
        other = load(PolicySettings(path=path))

        assert ("v1", "v1 wins") == (engine.facts["dialect"], engine.facts["note"][-7:])
        assert "v0" == other.facts["dialect"]
        assert "note" not in other.facts


class TestExec:
    @pytest.fixture
    def program(self, tmp_path):
        """
        A program that says what the input holds.
        """
        path = tmp_path / "program"
        path.write_text("#!/bin/sh\ncat; exit $1\n")
        path.chmod(0o755)
        return path

    @pytest.fixture
    def policy(self, tmp_path, program):
        """
        A policy that lets that program decide.
        """
        path = tmp_path / "p.rego"
        path.write_text(
            "package spacelift\n"
            f'answer := exec(["{program}", input.status])\n'
            "allow if { answer.status == 0; not answer.stdout_cut\n"
            '  json.unmarshal(answer.stdout).status == "0" }\n'
            'deny contains answer.stderr if answer.stderr != ""\n'
        )
        return path

    def test_decides(self, tmp_path, policy, program):
        """
        A program on the list decides; its time is longer then.
        """
        from launcher.policy import Program

        settings = PolicySettings(
            path=policy, exec_allowed=(Program(path=str(program)),)
        )
        engine = load(settings)

        assert [True, False] == [
            engine.evaluate({"status": status}).allowed for status in ("0", "1")
        ]
        assert 20 == engine.facts["seconds"]

    @pytest.mark.parametrize("document", [{"status": "0"}, {"status": 1}, {}])
    def test_not_allowed(self, policy, document):
        """
        Without the list nothing is started, and the run is denied.
        """
        evaluation = evaluate(policy, document)

        assert not evaluation.allowed
        if "status" in document:
            assert Outcome.ERROR is evaluation.outcome
            assert "exec: " in evaluation.error


class TestSemantics:
    def test_a_failing_builtin_is_undefined(self, tmp_path):
        """
        A builtin of OPA that fails ends its rule and not the evaluation.
        """
        path = tmp_path / "p.rego"
        path.write_text(
            "package spacelift\n"
            'deny contains "bad" if time.parse_rfc3339_ns(input.x) > 0\n'
            'deny contains "not a time" if not time.parse_rfc3339_ns(input.x)\n'
        )

        assert ("not a time",) == evaluate(path, {"x": "garbage"}).deny
        assert ("bad",) == evaluate(path, {"x": "2024-01-01T00:00:00Z"}).deny

    def test_sanitized_does_not_fail_silently(self, tmp_path):
        """
        Where our own function fails, the evaluation does.
        """
        path = tmp_path / "p.rego"
        path.write_text("package spacelift\ndeny contains sanitized(input.x)\n")

        assert Outcome.ERROR is evaluate(path, {"x": 1}).outcome

    def test_sets_reach_builtins(self, tmp_path):
        """
        Sets are sets for builtins of the host, too, and come in OPA's order.
        """
        path = tmp_path / "p.rego"
        path.write_text(
            'package spacelift\ndeny contains sprintf("%v", [{3, "x", [1], {2, 1}}])\n'
        )

        assert ('{3, "x", [1], {1, 2}}',) == evaluate(path).deny

    def test_a_flood_of_results(self, tmp_path):
        """
        A builtin that would produce without end ends the evaluation.
        """
        path = tmp_path / "p.rego"
        path.write_text(
            'package spacelift\ndeny contains "x" if '
            "count(net.cidr_expand(input.x)) > 5\n"
        )

        assert Outcome.ERROR is evaluate(path, {"x": "0.0.0.0/0"}).outcome
