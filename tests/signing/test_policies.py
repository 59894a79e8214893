"""
The shipped policies, asked through the real engine: every row of the table of
what the product's reference implementation lets in, and what else should not be.
"""

import hashlib
import hmac
import json
import sys
import time

from pathlib import Path

import jwt
import msgspec
import pytest

from launcher.adapters.policies.loading import load, load_trusting
from launcher.policy import Outcome
from launcher.policytools import specimens
from launcher.policytools.lint import Check, lint
from launcher.policytools.opa import PolicyText
from launcher.policytools.schema import schema
from launcher.settings import PolicySettings, Settings
from launcher.signing.claims import HOOKS
from launcher.signing.keys import SigningKey
from launcher.signing.tokens import TYPE, sign

from .conftest import signer_of
from .test_verification import part, signed


pytestmark = pytest.mark.services

EXAMPLES = Path(__file__).parents[2] / "examples" / "signed-runs"
RUN = specimens.FULL.run.id

# What the product's signed-run reference does, in our own words: it denies for
# what is wrong about a token, so a token about which nothing can be said gets in.
REFERENCE = """
package spacelift

verified := io.jwt.decode_verify(input.run.user_provided_metadata[0], {"cert": keys, "alg": "ALG"})

claims := verified[2]

deny["Invalid token"] { not verified[0]; verified }
deny["Stack mismatch"] { claims.stack != input.static_run_environment.stack_slug }
deny["Commit mismatch"] { claims.commit != input.run.commit.hash }
"""


def loaded(path, **environ):
    settings = Settings.from_environ(
        {"SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY": str(path), **environ},
    )
    return load(settings.policy)


# Each dialect of each way, and each kind of key with each way.
SHIPPED = [
    ("exec.rego", "EdDSA"),
    ("exec-v0.rego", "ES256"),
    ("jwt.rego", "ES256"),
    ("jwt-v0.rego", "EdDSA"),
]


@pytest.fixture(scope="module", params=SHIPPED, ids=[name for name, _ in SHIPPED])
def machine(request, tmp_path_factory):
    """
    A machine with one of the policies that we ship, and its keys.
    """
    name, algorithm = request.param
    folder = tmp_path_factory.mktemp("machine")
    signer = signer_of(algorithm, folder)
    return signer, shipped(name, signer, folder)


@pytest.fixture
def signer(machine):
    """
    Whose signatures that machine accepts.
    """
    return machine[0]


@pytest.fixture
def policy(machine):
    """
    The policy of that machine, loaded.
    """
    return machine[1]


def shipped(name, signer, folder):
    text = (EXAMPLES / name).read_text()
    path = folder / name
    environ = {}
    if name.startswith("exec"):
        command = folder / "verify-run"
        cache = folder / "state" / "replay.db"
        command.write_text(
            f"#!{sys.executable}\n"
            f"import sys\nsys.path.insert(0, {str(EXAMPLES.parents[1])!r})\n"
            "from launcher.cli import main\n"
            f"main([*sys.argv[1:], '--cache', {str(cache)!r}])\n"
        )
        command.chmod(0o755)
        text = text.replace("/usr/local/bin/spacelift-launcher", str(command))
        text = text.replace("/etc/spacelift-launcher/run-keys.json", str(signer.public))
        environ["SPACELIFT_LAUNCHER_POLICY_EXEC_ALLOWED"] = str(command)
    else:
        text = text.replace('{"keys": []}', json.dumps({"keys": [signer.key.jwk]}))
        text = text.replace('"EdDSA"', json.dumps(signer.key.algorithm))
    path.write_text(text)
    engine = loaded(path, **environ)
    engine.name = name
    return engine


def other_run(document, token, **changes):
    return document(
        token, run__id="01OTHER", static_run_environment__run_ulid="01OTHER", **changes
    )


class TestTable:
    """Rows of the table, in its order: what is given, and that it is denied."""

    def test_valid(self, policy, signer, document):
        """
        A good token for the right stack and commit is let in, and only that.
        """
        evaluation = policy.evaluate(document(signer.sign()))

        assert (Outcome.ALLOW, "") == (evaluation.outcome, evaluation.error)

    @pytest.mark.parametrize(
        "metadata",
        [
            pytest.param(lambda s: [sign(s.claims(), foreign(s))], id="wrong key"),
            pytest.param(lambda s: [s.sign(iat=0, exp=1)], id="expired"),
            pytest.param(
                lambda s: [s.sign(exp=int(time.time()) - 1)], id="just expired"
            ),
            pytest.param(lambda s: [s.sign(commit="0" * 40)], id="other commit"),
            pytest.param(lambda s: [], id="empty list"),
            pytest.param(lambda s: None, id="null"),
            pytest.param(lambda s: ["xx"], id="garbage"),
            pytest.param(lambda s: ["xx", s.sign()], id="garbage first, valid second"),
            pytest.param(lambda s: [signed(s, {})], id="no claims"),
            pytest.param(
                lambda s: [
                    signed(s, {"iat": int(time.time()), "exp": int(time.time()) + 60})
                ],
                id="no claims about the run",
            ),
            pytest.param(lambda s: [s.sign(stack="another")], id="wrong stack"),
            pytest.param(lambda s: [""], id="empty"),
            pytest.param(lambda s: "", id="a text"),
            pytest.param(lambda s: s.sign(), id="a token that is no list"),
            pytest.param(lambda s: {"0": s.sign()}, id="an object"),
            pytest.param(lambda s: [[s.sign()]], id="a list in the list"),
            pytest.param(lambda s: [None, s.sign()], id="null first"),
            pytest.param(lambda s: [7], id="a number"),
            pytest.param(lambda s: [without_algorithm(s)], id="alg none"),
            pytest.param(
                lambda s: [with_public_secret(s)], id="HS256 with the public key"
            ),
            pytest.param(lambda s: ["A" * (60 << 10)], id="huge"),
            pytest.param(lambda s: [s.sign(run_type="PROPOSED")], id="wrong type"),
            pytest.param(lambda s: [s.sign(phase="apply", run=RUN)], id="wrong phase"),
            pytest.param(
                lambda s: [s.sign(hooks=f"sha256:{'0' * 64}")], id="wrong hooks"
            ),
            pytest.param(
                lambda s: [s.sign(image=f"sha256:{'0' * 64}")], id="wrong image"
            ),
            pytest.param(lambda s: [s.sign(account="another")], id="wrong account"),
            pytest.param(lambda s: [s.sign(run="another")], id="wrong run"),
            pytest.param(lambda s: [s.sign(command="ls")], id="wrong command"),
            pytest.param(lambda s: [s.sign(exp=1 << 40)], id="valid for ever"),
            pytest.param(lambda s: [without(s, "exp")], id="no expiry"),
            pytest.param(lambda s: [without(s, "jti")], id="no nonce"),
            pytest.param(lambda s: [without(s, "hooks")], id="no hooks"),
            pytest.param(lambda s: [with_more(s)], id="a claim nobody knows"),
            pytest.param(lambda s: [unnamed(s)], id="a token for something else"),
        ],
    )
    def test_denied(self, policy, signer, document, metadata):
        """
        Whatever is not a signature for this very run is denied.
        """
        given = document(run__user_provided_metadata=metadata(signer))

        assert not policy.evaluate(given).allowed

    @pytest.mark.parametrize(
        "path",
        [
            "run",
            "phase",
            "docker_image_digest",
            "static_run_environment",
            "run.id",
            "run.type",
            "run.commit",
            "run.user_provided_metadata",
            "run.command",
            "static_run_environment.stack_slug",
            "static_run_environment.before_init",
        ],
    )
    def test_missing(self, policy, signer, document, path):
        """
        An input without one of its parts is denied, with a good signature, too.
        """
        given = here = document(signer.sign())
        *above, last = path.split(".")
        for name in above:
            here = here[name]
        del here[last]

        assert not policy.evaluate(given).allowed

    def test_empty_input(self, policy):
        """
        Nothing is proven about nothing.
        """
        assert not policy.evaluate({}).allowed

    def test_replayed(self, policy, signer, document):
        """
        Another run with the same signature is denied, when it was not made with it.
        """
        token = signer.sign(iat=int(time.time()) - 400)
        first = document(token, run__created_at=(int(time.time()) - 400) * 10**9)

        assert policy.evaluate(first).allowed
        assert not policy.evaluate(other_run(document, token)).allowed
        assert policy.evaluate(first).allowed

    def test_replayed_at_once(self, policy, signer, document):
        """
        Within minutes only the replay cache tells two runs apart; docs say so.
        """
        token = signer.sign()

        assert policy.evaluate(document(token)).allowed
        again = policy.evaluate(other_run(document, token))
        assert again.allowed is policy.name.startswith("jwt")

    def test_hooks(self, policy, signer, document):
        """
        A command that was not signed is denied, in each of the eleven lists.
        """
        # Starting verify-run takes a while, and its own tests try them all.
        names = HOOKS[-1:] if policy.name.startswith("exec") else HOOKS
        for name in names:
            given = document(
                signer.sign(), **{f"static_run_environment__{name}": ["evil"]}
            )

            assert not policy.evaluate(given).allowed, name


class TestApply:
    def test_own_signature(self, policy, signer, document):
        """
        An apply is let in with the signature of its confirmation.
        """
        given = document(
            signer.sign(), signer.sign(phase="apply", run=RUN), phase="apply"
        )

        assert policy.evaluate(given).allowed

    @pytest.mark.parametrize(
        "metadata",
        [
            pytest.param(lambda s: [s.sign()], id="the plan's"),
            pytest.param(lambda s: [s.sign(), s.sign()], id="another for the plan"),
            pytest.param(
                lambda s: [s.sign(phase="apply", run=RUN)], id="at the trigger"
            ),
            pytest.param(lambda s: [s.sign(), "yes"], id="an unsigned remark"),
            pytest.param(
                lambda s: [s.sign(), s.sign(phase="apply")], id="run not named"
            ),
            pytest.param(
                lambda s: [s.sign(), s.sign(phase="apply", run="x")], id="other run"
            ),
            pytest.param(
                lambda s: [s.sign(), s.sign(phase="apply", run=RUN), "yes"],
                id="not the last",
            ),
        ],
    )
    def test_denied(self, policy, signer, document, metadata):
        """
        Nothing else is a signature for an apply.
        """
        given = document(phase="apply", run__user_provided_metadata=metadata(signer))

        assert not policy.evaluate(given).allowed


class TestLint:
    @pytest.mark.parametrize("name", ["jwt.rego", "jwt-v0.rego"])
    def test_shipped(self, name, tmp_path):
        """
        `policy lint` finds nothing in the policies that we ship.
        """
        policy = shipped(name, signer_of("EdDSA", tmp_path), tmp_path)

        path = tmp_path / name
        trusting = load_trusting(PolicySettings(path=path))

        assert [] == lint(policy, PolicyText.of(path), trusting=trusting)

    def test_shipped_without_a_comparison(self, tmp_path):
        """
        It finds what a good signature would open, were the claims not compared.
        """
        policy = shipped("jwt.rego", signer_of("EdDSA", tmp_path), tmp_path)
        path = tmp_path / "jwt.rego"
        text = path.read_text()
        before, _, rest = text.partition("proven if {")
        careless = "proven if signed.exp\n\n# This also"
        path.write_text(before + careless + rest.partition("# This also")[2])
        trusting = load_trusting(PolicySettings(path=path))

        found = lint(policy, None, trusting=trusting)

        assert {Check.UNBOUND_TOKEN} == {finding.check for finding in found}

    @pytest.mark.parametrize("name", ["exec.rego", "exec-v0.rego"])
    def test_text(self, name):
        """
        The text of those that call a command has no mistakes.
        """
        assert [] == PolicyText.of(EXAMPLES / name).mistakes(schema())

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
    def test_reference(self, algorithm, tmp_path):
        """
        It finds what is wrong about a policy that asks for reasons to deny.
        """
        signer = signer_of(algorithm, tmp_path)
        path = tmp_path / "reference.rego"
        keys = json.dumps({"keys": [signer.key.jwk]})
        path.write_text(
            REFERENCE.replace("ALG", signer.key.algorithm) + f"\nkeys := `{keys}`\n"
        )
        sentences = [
            finding.sentence for finding in lint(loaded(path), PolicyText.of(path))
        ]

        for hole in ("missing", "null", "an empty list", "one entry, garbage"):
            assert (
                f"this policy allows an unsigned run to plan: its metadata is {hole}"
                in sentences
            )


def foreign(signer):
    return SigningKey.generate(signer.key.kid, signer.key.algorithm)


def without_algorithm(signer):
    return f"{part({'alg': 'none', 'typ': TYPE})}.{signer.sign().split('.')[1]}."


def with_public_secret(signer):
    payload = jwt.PyJWS().decode(
        signer.sign(), signer.key.key.public_key(), algorithms=[signer.key.algorithm]
    )
    secret = signer.public.read_bytes()
    text = (
        f"{part({'alg': 'HS256', 'typ': TYPE, 'kid': signer.key.kid})}.{part(payload)}"
    )
    return f"{text}.{part(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def without(signer, claim):
    claims = decoded(signer)
    del claims[claim]
    return signed(signer, claims)


def with_more(signer):
    return signed(signer, decoded(signer) | {"only_on_sundays": True})


def decoded(signer):
    return json.loads(msgspec.json.encode(signer.claims()))


def unnamed(signer):
    return jwt.encode(
        decoded(signer), signer.key.key, signer.key.algorithm, {"kid": signer.key.kid}
    )
