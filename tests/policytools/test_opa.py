import json
import os
import tarfile

import pytest

from launcher.errors import PolicyUnusable
from launcher.policytools.opa import OpaMissing, PolicyText
from launcher.policytools.schema import schema


pytestmark = pytest.mark.services


@pytest.fixture
def text(tmp_path):
    """
    Reads a policy from its lines.
    """

    def read(*lines, name="policy.rego"):
        path = tmp_path / name
        path.write_text("\n".join(["package spacelift", *lines]))
        return PolicyText.of(path)

    return read


class TestMistakes:
    @pytest.mark.parametrize(
        ("rule", "sentence"),
        [
            (
                'deny["x"] { input.run.usr_provided_metadata[0] }',
                "input.run.usr_provided_metadata[0] is never there;"
                " did you mean user_provided_metadata?",
            ),
            (
                'deny contains "x" if input.run.usr_provided_metadata[0]',
                "input.run.usr_provided_metadata[0] is never there;"
                " did you mean user_provided_metadata?",
            ),
            (
                'deny["x"] { r := input.run; r.kommit.hash }',
                "r.kommit.hash is never there; did you mean commit?",
            ),
            (
                'deny["x"] { input["run"]["type_"] }',
                "input.run.type_ is never there; did you mean type?",
            ),
            (
                'deny["x"] { not input.phse }',
                "input.phse is never there; did you mean phase?",
            ),
            ('deny["x"] { input.stack.name }', "input.stack.name is never there"),
            ('deny["x"] { input.run.type.name }', "input.run.type.name is never there"),
            (
                'deny["x"] { input.run.user_provided_metadata[i].foo }',
                "input.run.user_provided_metadata[i].foo is never there",
            ),
            (
                'deny["x"] { object.get(input, ["run", "type_"], "") == "TASK" }',
                "input.run.type_ is never there; did you mean type?",
            ),
            (
                'deny["x"] { object.get(input.run, "type_", "") == "TASK" }',
                "input.run.type_ is never there; did you mean type?",
            ),
            (
                'deny["x"] { input.static_run_environment.mounted_files[_].pth }',
                "input.static_run_environment.mounted_files[_].pth is never there; did you mean path?",
            ),
            (
                'deny["x"] { input.phase == 3 }',
                "string is compared with number, which is never true",
            ),
        ],
    )
    def test_found(self, text, rule, sentence):
        """
        What the input never holds is found, through variables and in both dialects.
        """
        assert [sentence] == [
            mistake.sentence for mistake in text("", rule).mistakes(schema())
        ]

    def test_place(self, text, tmp_path):
        """
        A mistake is shown with file and line.
        """
        (mistake,) = text("sample { true }", 'deny["x"] { input.phse }').mistakes(
            schema()
        )

        assert f"{tmp_path / 'policy.rego'}:3" == str(mistake.place)

    @pytest.mark.parametrize(
        "rule",
        [
            'deny["x"] { input.run.changes[_].entity.anything }',
            'deny["x"] { input.static_run_environment.vendor_specific_config.typed_config.new }',
            'deny["x"] { input.static_run_environment.environment_variables.LD_PRELOAD }',
            'deny["x"] { startswith(input.static_run_environment.before_init[_], "curl") }',
            'deny["x"] { input.static_run_environment.before_init == null }',
            'deny["x"] { object.get(input.run, "type", "") == "TASK" }',
            'deny["x"] { object.get(input.static_run_environment, ["environment_variables", "A"], 1) }',
            'deny["x"] { object.get(data.other, ["phse"], 1) }',
            'deny["x"] { sanitized(input.phase) == "x" }',
            'deny["x"] { exec(["/bin/x"]).status == 0 }',
        ],
    )
    def test_right(self, text, rule):
        """
        What may be there is no mistake, whether or not it was in a specimen.
        """
        assert [] == text(rule).mistakes(schema())

    def test_directory(self, tmp_path):
        """
        Every file of a directory is read, but not its tests.
        """
        for name in ("one.rego", "two.rego", "two_test.rego"):
            (tmp_path / name).write_text(
                f'package spacelift\ndeny["{name}"] {{ input.phse }}\n'
            )
        mistakes = PolicyText.of(tmp_path).mistakes(schema())

        assert ["one.rego", "two.rego"] == [
            os.path.basename(each.place.file) for each in mistakes
        ]

    def test_aliases(self, text):
        """
        Names that the launcher adds to a policy are known here, too.
        """
        mistakes = text(
            'deny["x"] { run.commit.hsh }', 'deny["y"] { commit.hash }'
        ).mistakes(schema())

        assert ["run.commit.hsh is never there; did you mean hash?"] == [
            mistake.sentence.removeprefix("data.spacelift.") for mistake in mistakes
        ]

    def test_bundle(self, tmp_path):
        """
        The Rego in a bundle is read, if it is to be compiled here.
        """
        (tmp_path / "policy.rego").write_text(
            'package spacelift\ndeny["x"] { input.phse }\n'
        )
        with tarfile.open(tmp_path / "policy.tar.gz", "w:gz") as bundle:
            bundle.add(tmp_path / "policy.rego", "policy.rego")
        (mistake,) = PolicyText.of(tmp_path / "policy.tar.gz").mistakes(schema())

        assert "policy.tar.gz/policy.rego:2" in str(mistake.place)


class TestRules:
    POLICY = (
        'deny["short"] { count(input.phase) < 5; late }',
        'deny["hashed"] { sanitized(input.phase) == "29f1ae47" }',
        'late { startswith(input.phase, "app") }',
        "sample { true }",
        "default mood = 1",
        'mood = 2 { input.phase == "apply" } else = 3 { input.phase == "plan" }',
    )

    def test_fired(self, text):
        """
        Each rule is told apart, with those that call our own functions.
        """
        rules = text(*self.POLICY).rules({"phase": "plan"})

        assert {
            'deny "short"': False,
            'deny "hashed"': False,
            "late": False,
            "sample": True,
            "default mood": False,
            "mood": False,
            "else of mood": True,
        } == {rule.name: rule.fired for rule in rules}
        assert sorted(rule.place.row for rule in rules) == [
            rule.place.row for rule in rules
        ]

    def test_sanitized(self, text):
        """
        The stand-in for `sanitized` gives the documented values.
        """
        (rule,) = text('deny["x"] { sanitized(input.x) == "59832d41" }').rules(
            {"x": "exampledb"}
        )

        assert rule.fired

    def test_nothing_is_called(self, text, tmp_path):
        """
        An explanation runs no command.
        """
        mark = tmp_path / "mark"
        rules = text(
            f'deny["x"] {{ exec(["/bin/touch", "{mark}"]).status == 0 }}'
        ).rules({})

        assert [False] == [rule.fired for rule in rules]
        assert not mark.exists()

    def test_aliases(self, text):
        """
        A rule that uses a name that the launcher adds fires as it does there.
        """
        rules = text('deny["x"] { run.id == "r" }').rules({"run": {"id": "r"}})

        assert [True] == [rule.fired for rule in rules]

    def test_data(self, tmp_path):
        """
        A directory's data is there when it is explained.
        """
        (tmp_path / "policy.rego").write_text(
            'package spacelift\ndeny["x"] { data.limits.on }\n'
        )
        (tmp_path / "data.json").write_text(json.dumps({"limits": {"on": True}}))

        assert [True] == [rule.fired for rule in PolicyText.of(tmp_path).rules({})]


def test_calls(text):
    """
    Calls are found wherever they are written.
    """
    called = text('deny["x"] { y := [exec(["/x"]).status | true]; y[0] > 0 }')

    assert (True, False) == (called.calls("exec"), called.calls("http.send"))


def test_not_understood(text):
    """
    What OPA cannot read is an error, and no policy without mistakes.
    """
    with pytest.raises(PolicyUnusable, match="policy.rego:2: "):
        text("deny[")


def test_without_opa(text, monkeypatch, tmp_path):
    """
    Without opa one is told so.
    """
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(OpaMissing, match="install opa"):
        text("sample { true }")


def test_compiled(tmp_path):
    """
    What was compiled has no text.
    """
    (tmp_path / "policy.wasm").write_bytes(b"")

    assert PolicyText.of(tmp_path / "policy.wasm") is None
