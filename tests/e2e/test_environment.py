"""What a repository says about its runs, and what they prove who they are with."""

import hashlib
import json
import subprocess

import pytest
import yaml

from .conftest import opened


pytestmark = pytest.mark.services

CLAIMS = (
    'python3 -c \'import base64; part = open("/mnt/workspace/spacelift.oidc").read()'
    '.split(".")[1]; print("CLAIMS", base64.urlsafe_b64decode(part + "==").decode())\''
)
CONFIG = {
    "version": 2,
    "colour": "red",
    "stacks": {
        "configured": {
            "before_init": [CLAIMS, "cat /mnt/workspace/spacelift.oidc; echo"],
            "before_apply": [CLAIMS, 'echo "$GREETING, $NAME"'],
            "environment": {
                "GREETING": "hello",
                "NAME": "${TF_VAR_spacelift_stack_id}",
            },
        }
    },
}


@pytest.fixture(scope="module", name="finished")
def _finished(tmp_path_factory):
    stacks = [
        {
            "slug": "configured",
            "hooks": {"before_init": ["echo never"]},
            "environment": [{"name": "NAME", "value": "never"}],
        }
    ]
    folder = tmp_path_factory.mktemp("site")
    with opened(folder, stacks) as site:
        repository = folder / "repositories" / "ansible"
        file = repository / ".spacelift" / "config.yml"
        file.parent.mkdir()
        file.write_text(yaml.safe_dump(CONFIG))
        user = ("-c", "user.name=Ann", "-c", "user.email=a@b", "--work-tree=.")
        for command in (
            ("add", ".spacelift"),
            ("commit", "--quiet", "--message", "Configure"),
        ):
            subprocess.run(["git", *user, *command], cwd=repository, check=True)
        launcher = site.launcher()
        run, texts = site.deploy("configured")
        site.api.confirm("configured", run)
        texts |= site.follow("configured", run)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        yield run, texts, launcher.events(), sha256


def claims(text):
    (line,) = [line for line in text.splitlines() if line.startswith("CLAIMS ")]
    return json.loads(line.removeprefix("CLAIMS "))


def test_the_repository_configures_its_runs(finished):
    """[capability 140] Hooks and variables come from the file, and the log says what is odd."""
    _, texts, _, _ = finished
    assert "FINISHED" in texts
    assert "never" not in texts["INITIALIZING"]
    assert "hello, configured" in texts["APPLYING"]
    note = ".spacelift/config.yml: line 1: unknown key 'colour' is ignored"
    assert note in texts["PREPARING"]


def test_a_run_says_what_it_is(finished):
    """[capability 130] A plan reads, its apply writes, and the token itself is masked."""
    run, texts, _, _ = finished
    planned, applied = (claims(texts[state]) for state in ("INITIALIZING", "APPLYING"))
    subject = "space:root:stack:configured:run_type:TRACKED:scope"
    assert (f"{subject}:read", f"{subject}:write") == (planned["sub"], applied["sub"])
    assert run == planned["runId"] == applied["runId"]
    assert "*****" in texts["INITIALIZING"].splitlines()
    assert "eyJ" not in "".join(texts.values())


def test_the_policy_knows(finished):
    """[capability 141] What the file says is judged, and no token is in the sample."""
    _, _, events, sha256 = finished
    samples = [event["sample"] for event in events if "sample" in event]
    assert 2 == len(samples)
    for sample in samples:
        asked = sample["input"]["static_run_environment"]
        assert sha256 == asked["runtime_config_sha256"]
        assert CLAIMS in asked["before_init"]
        assert "configured" == asked["environment_variables"]["NAME"]
        assert "*****" == asked["environment_variables"]["SPACELIFT_OIDC_TOKEN"]
        assert "eyJ" not in json.dumps(sample["input"])
