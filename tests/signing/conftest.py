import json
import secrets
import time

from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.policytools import specimens
from launcher.signing.claims import HOOKS, Claims, hooks_digest
from launcher.signing.keys import KeySet, SigningKey
from launcher.signing.replay import ReplayCache
from launcher.signing.tokens import sign
from launcher.wire.jobs import Phase, RunType


@dataclass(frozen=True)
class Signer:
    """Somebody of ours: a key, the set it is published in, and what they sign."""

    key: SigningKey
    public: Path

    def claims(self, **changes):
        """What is true of `document()`, but for *changes*; None leaves a claim out."""
        now = int(time.time())
        static = specimens.FULL
        fields = {
            "jti": secrets.token_urlsafe(24),
            "iat": now,
            "exp": now + 900,
            "stack": static.stack.slug,
            "commit": static.run.commit.hash,
            "run_type": RunType.TRACKED,
            "phase": Phase.PLAN,
            "hooks": hooks_digest(dict.fromkeys(HOOKS, ["true"])),
        }
        return Claims(**(fields | changes))

    def sign(self, **changes):
        return sign(self.claims(**changes), self.key)

    def keys(self):
        return KeySet.load(self.public)


@pytest.fixture(params=["EdDSA", "ES256"])
def signer(request, tmp_path):
    """
    A key of each kind, in a key set.
    """
    return signer_of(request.param, tmp_path)


def signer_of(algorithm, folder, kid="ci"):
    key = SigningKey.generate(kid, algorithm)
    public = folder / "run-keys.json"
    public.write_text(json.dumps({"keys": [key.jwk]}))
    public.chmod(0o644)
    return Signer(key, public)


@pytest.fixture
def document():
    """
    Makes the input that a policy sees for the run that is signed.
    """

    def made(*metadata, phase="plan", **changes):
        content = specimens.full()
        content["phase"] = phase
        content["run"]["created_at"] = time.time_ns()
        content["run"]["user_provided_metadata"] = list(metadata)
        for path, value in changes.items():
            *above, last = path.split("__")
            here = content
            for name in above:
                here = here[name]
            here[last] = value
        return content

    return made


@pytest.fixture
def cache(tmp_path):
    """
    The replay cache of a machine.
    """
    return ReplayCache(tmp_path / "state" / "replay.db")
