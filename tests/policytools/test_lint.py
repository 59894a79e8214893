import base64
import copy
import json

import pytest

from launcher.policytools.lint import Check, lint
from launcher.testing.policies import ScriptedPolicy


def findings(script, **options):
    return lint(ScriptedPolicy(script), None, **options)


def checks(script):
    return {finding.check for finding in findings(script)}


def metadata(document):
    return document["run"].get("user_provided_metadata")


def decoded(token):
    """
    The claims of a token; none when it is no token.
    """
    parts = token.split(".")
    return base64.urlsafe_b64decode(parts[1] + "==") if len(parts) == 3 else b"{}"


class TestUnsigned:
    def test_denies_everything(self):
        """
        A policy that lets nothing in lets nothing unproven in.
        """
        assert [] == findings(lambda _: {"deny": ["no"]})

    def test_allows_everything(self):
        """
        A policy that looks at no proof is said to do so, once for each phase.
        """
        found = findings(lambda _: {})

        assert [Check.UNSIGNED_RUN] * 2 == [finding.check for finding in found]
        assert all("whatever its metadata is" in finding.sentence for finding in found)

    @pytest.mark.parametrize(
        ("allowed", "name"),
        [
            (lambda given: given is None, "null"),
            (lambda given: given == [], "an empty list"),
            (lambda given: given == "", "an empty text"),
            (lambda given: isinstance(given, dict), "an object"),
            (lambda given: given == ["garbage"], "one entry, garbage"),
            (lambda given: given == [""], "one entry, an empty text"),
            (lambda given: given and given == [None], "one entry, null"),
            (
                lambda given: (
                    isinstance(given, list) and str(given[-1:]).endswith(".']")
                ),
                "one entry, a token with alg none and no signature",
            ),
        ],
    )
    def test_by_a_hole(self, allowed, name):
        """
        The one thing that is let in is named, and shown with its input.
        """

        def script(document):
            if "user_provided_metadata" not in document["run"]:
                return {"deny": ["missing"]}
            return {} if allowed(metadata(document)) else {"deny": ["no"]}

        found = [each for each in findings(script) if each.check is Check.UNSIGNED_RUN]

        assert any(each.sentence.endswith(f"its metadata is {name}") for each in found)
        assert all(allowed(metadata(each.input)) for each in found)

    def test_missing(self):
        """
        Metadata that is not there at all is one of the holes.
        """

        def script(document):
            run = document.get("run")
            hole = isinstance(run, dict) and "user_provided_metadata" not in run
            return {} if hole else {"deny": ["no"]}

        assert ["missing"] * 2 == [
            each.sentence.rpartition(" is ")[2] for each in findings(script)
        ]


class TestUnbound:
    @staticmethod
    def found(script):
        """
        What is found where nothing is let in, except by a good signature.
        """
        nothing = ScriptedPolicy(lambda _: {"deny": ["no"]})
        found = lint(nothing, None, trusting=ScriptedPolicy(script))
        assert {Check.UNBOUND_TOKEN} >= {finding.check for finding in found}
        return [finding.sentence for finding in found]

    def test_any_signature(self):
        """
        A policy that looks at signatures only is said to do so, once for each phase.
        """
        sentences = self.found(lambda _: {})

        assert 2 == len(sentences)
        assert sentences[0].endswith("a good signature, were it one without claims")

    def test_another_run(self):
        """
        A policy that wants claims, whatever they claim, is found by those of another.
        """

        def script(document):
            claims = json.loads(decoded(metadata(document)[0]))
            return {"deny": [] if claims.get("exp", 0) > 1 else ["no"]}

        (plan, apply) = self.found(script)

        assert plan.endswith("were it one for another run of another stack")

    def test_bound(self):
        """
        A policy that compares what was signed with the run has no such hole.
        """

        def script(document):
            claims = json.loads(decoded(metadata(document)[-1]))
            bound = claims.get("commit") == document["run"]["commit"]["hash"]
            return {"deny": [] if bound and claims["exp"] > 1 else ["no"]}

        assert [] == self.found(script)


class TestEvaded:
    @staticmethod
    def no_tasks(document):
        run = document.get("run") or {}
        type_ = run.get("type") if isinstance(run, dict) else None
        return {"deny": ["no tasks"]} if type_ == "TASK" else {}

    def test_by_what_is_missing_or_new(self):
        """
        A rule that knows what it denies lets in what it does not know.
        """
        (found,) = (
            each for each in findings(self.no_tasks) if each.check is Check.EVADED
        )

        assert (
            "denies a task, and allows it when input.run.type is missing"
            in found.sentence
        )
        assert "something new" in found.sentence
        assert {} == self.no_tasks(found.input)

    def test_not_by_what_is_listed(self):
        """
        A rule that knows what it allows has no such hole.
        """

        def script(document):
            run = document.get("run")
            type_ = run.get("type") if isinstance(run, dict) else None
            return {} if type_ in ("PROPOSED", "TRACKED") else {"deny": ["no"]}

        assert Check.EVADED not in checks(script)

    def test_what_may_be_empty(self):
        """
        That a run without hooks is let in is no hole in a rule about hooks.
        """

        def script(document):
            hooks = document.get("static_run_environment", {}).get("before_init", 7)
            fine = hooks is None or hooks == []
            return {} if fine else {"deny": ["no hooks"]}

        def complete(document):
            return (
                script(document)
                if isinstance(document.get("static_run_environment"), dict)
                else {"deny": ["?"]}
            )

        assert Check.EVADED not in checks(complete)

    def test_without_an_image(self):
        """
        A rule about docker_image says nothing about the default image.
        """

        def script(document):
            image = document.get("docker_image")
            fine = image == "" or str(image).startswith("registry.example.com/")
            return {} if fine else {"deny": ["image"]}

        found = [each for each in findings(script) if each.check is Check.DEFAULT_IMAGE]

        assert 1 == len(found)
        assert "" == found[0].input["docker_image"]

    def test_once_for_each_path(self):
        """
        A hole is reported where it is, and not once more for all that is above it.
        """
        sentences = [each.sentence for each in findings(self.no_tasks)]

        assert not any("input.run is" in sentence for sentence in sentences)


class TestAnswers:
    def test_errors(self):
        """
        A policy that fails on an ordinary run is reported with the reason.
        """
        found = findings(lambda document: {"deny": document["absent"]})

        assert [Check.NO_ANSWER] == [each.check for each in found]
        assert "KeyError" in found[0].sentence


def test_ignored():
    """
    What the owner accepts is left out.
    """
    assert [] == findings(lambda _: {}, ignored=[Check.UNSIGNED_RUN])


def test_inputs_are_not_shared():
    """
    One input does not change because another was made from it.
    """
    asked = []
    findings(lambda document: asked.append((document, copy.deepcopy(document))) or {})

    assert all(kept == then for kept, then in asked)
    assert len(asked) > 100
