import base64
import hashlib
import hmac
import json
import time

import jwt
import msgspec
import pytest

from hypothesis import HealthCheck, given, settings, strategies as st

from launcher.errors import ReplayCacheUnusable
from launcher.policytools import specimens
from launcher.signing.keys import KeySet, SigningKey
from launcher.signing.replay import ReplayCache
from launcher.signing.tokens import LARGEST, TYPE, sign
from launcher.signing.verification import verify


RUN = specimens.FULL.run.id


@pytest.fixture
def ask(signer, cache):
    """
    Asks about an input, at a time of the test's choice.
    """

    def asked(document, *, after=0.0, keys=None):
        return verify(
            json.dumps(document).encode(),
            keys or signer.keys(),
            cache,
            now=time.time() + after,
        )

    return asked


def part(content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


class TestProven:
    def test_plan(self, ask, signer, document):
        """
        A run that is as signed is proven, and the verdict names the key.
        """
        verdict = ask(document(signer.sign()))

        assert (True, "", "ci") == (verdict.valid, verdict.reason, verdict.kid)

    def test_everything_claimed(self, ask, signer, document):
        """
        What may be claimed on top is compared, too, and fits here.
        """
        given = document()
        token = signer.sign(
            account="acme",
            image=given["docker_image_digest"],
            run=RUN,
            command="",
            also={
                "/static_run_environment/terraform_version": "1.5.7",
                "/run/changes/0/action": "added",
                "/static_run_environment/environment_variables/PLAIN": "plain",
            },
            iss="a test",
        )

        assert ask(document(token)).valid

    def test_the_same_run_again(self, ask, signer, document):
        """
        A job that is handed over again is still proven.
        """
        token = signer.sign()

        assert [True, True] == [ask(document(token)).valid for _ in range(2)]

    def test_apply(self, ask, signer, document):
        """
        An apply is proven by the last entry, which names the run.
        """
        apply = signer.sign(phase="apply", run=RUN)

        assert ask(document(signer.sign(), "a remark", apply, phase="apply")).valid

    def test_task(self, ask, signer, document):
        """
        A task is proven with its command.
        """
        given = document(
            signer.sign(run_type="TASK", phase="perform", command="ls"),
            phase="perform",
            run__type="TASK",
            run__command="ls",
            static_run_environment__run_type="TASK",
            static_run_environment__command="ls",
        )

        assert ask(given).valid


class TestDifferent:
    @pytest.mark.parametrize(
        ("claim", "value", "reason"),
        [
            ("stack", "another", "it is for the stack another"),
            ("commit", "0" * 40, "it is for the commit 000"),
            ("run_type", "PROPOSED", "it is for the run type PROPOSED"),
            ("phase", "apply", "it is for the phase apply"),
            ("hooks", f"sha256:{'0' * 64}", "the hooks are not the signed ones"),
            ("account", "another", "it is for another account"),
            ("image", f"sha256:{'0' * 64}", "the image is not the signed one"),
            ("run", "another", "it is for another run"),
            ("command", "rm -rf /", "the command is not the signed one"),
            ("also", {"/run/triggered_by": "me"}, "/run/triggered_by is not as signed"),
            ("also", {"/run/absent": None}, "/run/absent is not as signed"),
            ("also", {"/run/changes/9": {}}, "/run/changes/9 is not as signed"),
            ("also", {"/run/changes/x": {}}, "/run/changes/x is not as signed"),
            ("also", {"/run/id/x": {}}, "/run/id/x is not as signed"),
            ("also", {"run": {}}, "run is not as signed"),
            ("also", {"/static_run_environment/auto_deploy": 0}, "is not as signed"),
        ],
    )
    def test_signed_otherwise(self, ask, signer, document, claim, value, reason):
        """
        A signature for something else proves nothing, and the verdict says why.
        """
        verdict = ask(document(signer.sign(**{claim: value})))

        assert not verdict.valid
        assert reason in verdict.reason

    @pytest.mark.parametrize("name", sorted(specimens.FULL.hooks.__struct_fields__))
    def test_every_hook(self, ask, signer, document, name):
        """
        A command in any of the eleven lists that was not signed is found.
        """
        given = document(
            signer.sign(), **{f"static_run_environment__{name}": ["true", "evil"]}
        )

        assert "the hooks are not the signed ones" == ask(given).reason

    def test_task_with_another_command(self, ask, signer, document):
        """
        A task signed without its command would be a licence for any.
        """
        given = document(
            signer.sign(run_type="TASK", phase="perform"),
            phase="perform",
            run__type="TASK",
            run__command="ls",
            static_run_environment__run_type="TASK",
            static_run_environment__command="ls",
        )

        assert "the command is not the signed one" == ask(given).reason


class TestApply:
    def test_signature_of_the_plan(self, ask, signer, document):
        """
        The signature that came with the trigger is not one for the apply.
        """
        plan = signer.sign()

        assert (
            "without a signature of its own"
            in ask(document(plan, phase="apply")).reason
        )
        assert "for the phase plan" in ask(document(plan, plan, phase="apply")).reason

    def test_unsigned_confirmation(self, ask, signer, document):
        """
        A confirmation with other metadata is none, whatever came earlier.
        """
        earlier = signer.sign(phase="apply", run=RUN)

        assert (
            "not a signature"
            in ask(document(signer.sign(), earlier, "ok", phase="apply")).reason
        )

    def test_run_not_named(self, ask, signer, document):
        """
        The run has a name by now, so the signature must say it.
        """
        token = signer.sign(phase="apply")

        assert (
            "does not name the run" in ask(document("x", token, phase="apply")).reason
        )

    def test_plan_by_the_last_entry(self, ask, signer, document):
        """
        A plan is proven by what came with the trigger and by nothing else.
        """
        assert "not a signature" in ask(document("garbage", signer.sign())).reason


class TestReplay:
    def test_another_run(self, ask, signer, document):
        """
        A signature that one run has used is worth nothing to another.
        """
        token = signer.sign()
        ask(document(token))
        again = document(
            token, run__id="01ANOTHER", static_run_environment__run_ulid="01ANOTHER"
        )

        assert "the signature was used for another run" == ask(again).reason

    def test_only_the_proven_are_remembered(self, ask, signer, document):
        """
        A run that is not as signed does not use the signature up.
        """
        token = signer.sign()
        ask(document(token, static_run_environment__before_init=["evil"]))

        assert ask(document(token)).valid

    def test_nobody_can_tell(self, signer, document, tmp_path):
        """
        Without a cache there is no verdict.
        """
        (tmp_path / "file").touch()
        broken = ReplayCache(tmp_path / "file" / "replay.db")
        given = json.dumps(document(signer.sign())).encode()

        with pytest.raises(ReplayCacheUnusable):
            verify(given, signer.keys(), broken, now=time.time())


class TestTime:
    @pytest.mark.parametrize(
        ("after", "changes", "reason"),
        [
            (901, {}, "has expired"),
            (0, {"exp": 0}, "has expired"),
            (0, {"exp": -1}, "has expired"),
            (0, {"iat": 1 << 40, "exp": 1 << 41}, "from the future"),
            (0, {"iat": 0, "exp": 1 << 40}, "valid for too long"),
            (0, {"iat": -(1 << 62), "exp": 1 << 40}, "valid for too long"),
        ],
    )
    def test_not_now(self, ask, signer, document, after, changes, reason):
        """
        A signature is for now, and never for ever.
        """
        assert reason in ask(document(signer.sign(**changes)), after=after).reason


class TestForged:
    def test_another_key(self, ask, signer, document):
        """
        A key of the same name that is not ours does not count.
        """
        foreign = SigningKey.generate("ci", signer.key.algorithm)

        assert "wrong" in ask(document(sign(signer.claims(), foreign))).reason

    def test_unknown_kid(self, ask, signer, document):
        """
        A signature by a key that is not in the set does not count.
        """
        foreign = SigningKey.generate("another", signer.key.algorithm)

        assert "known key" in ask(document(sign(signer.claims(), foreign))).reason

    @pytest.mark.parametrize(
        "algorithm", ["none", "None", "NONE", "", None, "HS256", 7, ["EdDSA"]]
    )
    def test_algorithm(self, ask, signer, document, algorithm):
        """
        What a token says about its algorithm decides nothing.
        """
        head, body, signature = signer.sign().split(".")
        head = part({"alg": algorithm, "typ": TYPE, "kid": "ci"})
        tokens = [f"{head}.{body}.{signature}", f"{head}.{body}.", f"{head}.{body}"]

        assert [False] * 3 == [ask(document(token)).valid for token in tokens]

    def test_public_key_as_a_secret(self, ask, signer, document):
        """
        HMAC with what everybody knows proves nothing, however it is written.
        """
        claims = msgspec.json.encode(signer.claims())
        for secret in (
            signer.key.public_pem,
            signer.public.read_bytes(),
            json.dumps(signer.key.jwk).encode(),
            base64.urlsafe_b64decode(signer.key.jwk["x"] + "=="),
        ):
            signed = (
                f"{part({'alg': 'HS256', 'typ': TYPE, 'kid': 'ci'})}.{part(claims)}"
            )
            mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()

            assert not ask(document(f"{signed}.{part(mac)}")).valid

    def test_with_a_pem_file(self, ask, signer, document, tmp_path):
        """
        The same holds where the key comes from a PEM file.
        """
        path = tmp_path / "key.pem"
        path.write_bytes(signer.key.public_pem)
        path.chmod(0o644)
        keys = KeySet.load(path)
        foreign = SigningKey.generate("ci", signer.key.algorithm)
        forged = jwt.encode({"a": 1}, "secret" * 8, "HS256", {"typ": TYPE})

        assert ask(document(signer.sign()), keys=keys).valid
        assert not ask(document(sign(signer.claims(), foreign)), keys=keys).valid
        assert not ask(document(forged), keys=keys).valid

    @pytest.mark.parametrize(
        "header",
        [
            {"typ": "JWT"},
            {"typ": None},
            {"crit": ["exp"]},
            {"b64": False},
            {"jwk": {"kty": "OKP"}},
            {"jku": "https://evil.example.org"},
            {"x5c": []},
        ],
    )
    def test_header(self, ask, signer, document, header):
        """
        A token for something else, or with more in its header, is not one of ours.
        """
        token = jwt.PyJWS().encode(
            msgspec.json.encode(signer.claims()),
            signer.key.key,
            algorithm=signer.key.algorithm,
            headers={"typ": TYPE, "kid": "ci"} | header,
        )

        assert not ask(document(token)).valid

    @pytest.mark.parametrize(
        "missing",
        ["jti", "iat", "exp", "stack", "commit", "run_type", "phase", "hooks"],
    )
    def test_claims_left_out(self, ask, signer, document, missing):
        """
        A claim that is not made is not granted.
        """
        claims = json.loads(msgspec.json.encode(signer.claims()))
        del claims[missing]

        assert "claims" in ask(document(signed(signer, claims))).reason

    @pytest.mark.parametrize(
        "changes",
        [
            {"exp": None},
            {"exp": "4102444800"},
            {"exp": float(2**60)},
            {"jti": ""},
            {"jti": "short"},
            {"jti": "../../../../etc/passwd"},
            {"stack": ""},
            {"stack": None},
            {"stack": ["testing-spacelift"]},
            {"commit": "7d629c6"},
            {"hooks": ""},
            {"also": []},
            {"only_on_sundays": True},
        ],
    )
    def test_claims_of_another_kind(self, ask, signer, document, changes):
        """
        What cannot be understood is not passed over.
        """
        claims = json.loads(msgspec.json.encode(signer.claims())) | changes

        assert not ask(document(signed(signer, claims))).valid

    @pytest.mark.parametrize(
        "payload", [b"", b"{}", b"null", b"[]", b"\xff", b'{"exp":', b"1" * 9]
    )
    def test_no_claims(self, ask, signer, document, payload):
        """
        A good signature over nothing proves nothing.
        """
        token = jwt.PyJWS().encode(
            payload, signer.key.key, signer.key.algorithm, {"typ": TYPE, "kid": "ci"}
        )

        assert not ask(document(token)).valid

    @pytest.mark.parametrize(
        "token",
        [
            "",
            " ",
            "garbage",
            "..",
            "a.b.c",
            "ä.ö.ü",
            "\0",
            "A" * (1 << 20),
            "." * 9,
            "[]",
            "null",
        ],
    )
    def test_garbage(self, ask, document, token):
        """
        What is no token is refused, at any length.
        """
        assert not ask(document(token)).valid

    def test_too_long(self, ask, signer, document):
        """
        Even a good signature has a size beyond which nobody reads it.
        """
        token = signer.sign(iss="x" * LARGEST)

        assert "the signature is too long" == ask(document(token)).reason

    def test_white_space(self, ask, signer, document):
        """
        A token is exactly a token: a newline at its end makes it something else.
        """
        assert [False] * 3 == [
            ask(document(change(signer.sign()))).valid
            for change in (lambda t: f"{t}\n", lambda t: f" {t}", lambda t: f"{t}=")
        ]


def signed(signer, claims):
    return jwt.PyJWS().encode(
        json.dumps(claims).encode(),
        signer.key.key,
        signer.key.algorithm,
        {"typ": TYPE, "kid": "ci"},
    )


class TestInput:
    @pytest.mark.parametrize(
        "document",
        [b"", b"{}", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"run": {}}'],
    )
    def test_none(self, signer, cache, document):
        """
        What is not the input of a policy is refused with a sentence.
        """
        verdict = verify(document, signer.keys(), cache, now=time.time())

        assert not verdict.valid
        assert "this is not the input of a policy" in verdict.reason

    @pytest.mark.parametrize(
        "metadata",
        [None, "", "text", 7, True, {}, {"0": "x"}, [None], [1], [[]], [{}], []],
    )
    def test_metadata(self, ask, document, metadata):
        """
        Metadata of any other form than a list of texts proves nothing.
        """
        assert not ask(document(run__user_provided_metadata=metadata)).valid

    @pytest.mark.parametrize(
        "path", ["run", "phase", "docker_image_digest", "static_run_environment"]
    )
    def test_missing(self, ask, signer, document, path):
        """
        An input without a part that is compared is refused.
        """
        given = document(signer.sign())
        del given[path]

        assert not ask(given).valid

    def test_nothing_secret_is_said(self, ask, signer, document):
        """
        A verdict repeats neither tokens nor commands nor values.
        """
        token = signer.sign(command="hunter2", also={"/run/id": "hunter2"})
        verdict = ask(document(token, static_run_environment__before_init=["hunter2"]))

        assert "hunter2" not in str(verdict)
        assert token.partition(".")[0] not in str(verdict)

    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        deadline=None,
        max_examples=50,
    )
    @given(
        content=st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda child: (
                st.lists(child, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["run", "phase", "static_run_environment", "id"]),
                    child,
                )
            ),
            max_leaves=8,
        )
    )
    def test_anything(self, ask, content):
        """
        Whatever comes in, the answer is no, and it is an answer.
        """
        assert not ask(content).valid

    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        deadline=None,
        max_examples=50,
    )
    @given(position=st.integers(0, 10_000), bit=st.integers(0, 5), data=st.data())
    def test_any_bit(self, ask, signer, document, position, bit, data):
        """
        A token in which any character was changed is refused.
        """
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        token = signer.sign(jti="0123456789abcdef", iat=int(time.time()))
        position %= len(token)
        if token[position] == "." or token[position] == token[-1]:
            return
        other = alphabet[alphabet.index(token[position]) ^ (1 << bit)]

        assert not ask(
            document(f"{token[:position]}{other}{token[position + 1 :]}")
        ).valid
