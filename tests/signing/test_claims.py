import hashlib
import subprocess

import pytest

from hypothesis import given, strategies as st

from launcher.policytools import specimens
from launcher.signing.claims import HOOKS, Subject, hooks_digest
from launcher.wire.jobs import Hooks


HOOK_LISTS = st.dictionaries(
    st.sampled_from(HOOKS), st.lists(st.text(max_size=8), max_size=3)
)


class TestHooksDigest:
    def test_every_list_counts(self):
        """
        All eleven lists are covered, and no two of them are confused.
        """
        digests = {hooks_digest({name: ["true"]}) for name in Hooks.__struct_fields__}

        assert 11 == len(digests)

    def test_nothing_is_nothing(self):
        """
        Absent, null and empty lists are the same.
        """
        nothing = f"sha256:{hashlib.sha256(b'').hexdigest()}"

        assert [nothing] * 3 == [
            hooks_digest({}),
            hooks_digest(dict.fromkeys(HOOKS)),
            hooks_digest(dict.fromkeys(HOOKS, [])),
        ]

    def test_unknown_list(self):
        """
        A misspelt list would silently not be signed, so it is an error.
        """
        with pytest.raises(ValueError, match="before_plam"):
            hooks_digest({"before_plam": ["true"]})

    @given(HOOK_LISTS, HOOK_LISTS)
    def test_unambiguous(self, one, other):
        """
        Two sets of hooks have the same digest only if they are the same.
        """
        one, other = ({k: v for k, v in each.items() if v} for each in (one, other))

        assert (one == other) is (hooks_digest(one) == hooks_digest(other))

    def test_in_a_shell(self):
        """
        What the documentation says about the digest is enough to make it.
        """
        script = """
            hash() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }
            hash "after_plan 0 $(hash 'echo "one"')
before_init 0 $(hash 'true')
before_init 1 $(hash 'two')"
        """
        made = subprocess.run(
            ["bash", "-c", script], check=True, capture_output=True, text=True
        )

        hooks = {"before_init": ["true", "two"], "after_plan": ['echo "one"']}

        assert f"sha256:{made.stdout.strip()}" == hooks_digest(hooks)


class TestSubject:
    def test_of_an_input(self):
        """
        What is judged is read from the input that policies see.
        """
        subject = Subject.of(specimens.full())

        assert ("testing-spacelift", "plan", ["deploy-metadata"]) == (
            subject.stack,
            subject.phase,
            subject.metadata,
        )

    @pytest.mark.parametrize("name", ["run_ulid", "run_type", "commit_sha", "command"])
    def test_contradictions(self, name):
        """
        An input that says a thing twice and differently is none.
        """
        document = specimens.full()
        document["static_run_environment"][name] = "another"

        with pytest.raises(ValueError, match="two values"):
            Subject.of(document)

    @pytest.mark.parametrize("name", [*HOOKS, "stack_slug", "account_name", "run_ulid"])
    def test_nothing_is_made_up(self, name):
        """
        A key that is missing is not taken for an empty one.
        """
        document = specimens.full()
        del document["static_run_environment"][name]

        with pytest.raises((ValueError, LookupError)):
            Subject.of(document)
