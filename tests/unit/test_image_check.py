"""`image check`: what it answers, and that the table in docs/images.md is its answer."""

import base64
import json
import os

from pathlib import Path

import pytest

from click.testing import CliRunner

from launcher.cli import main
from launcher.commands.image_work import answered
from launcher.settings import Settings


PAGE = Path(__file__).parents[2] / "docs" / "images.md"
DIGEST = f"sha256:{'5e' * 32}"
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
AUTH = base64.b64encode(b"anna:hunter2").decode()
ENVIRONMENT = {
    "SPACELIFT_LAUNCHER_ALLOWED_IMAGES": "registry.example.com/infra/*,"
    "*.corp.example.com/*,!docker.io/evil/*,!ghcr.io/*:edge",
    "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG": json.dumps(
        {
            "auths": {
                "ghcr.io/acme": {"auth": AUTH},
                "private.example.net:5000/team": {"auth": AUTH},
            }
        }
    ),
}
REFERENCES = [
    "alpine",
    "acme/runner:1.4",
    f"acme/runner@{DIGEST}",
    "docker.io/evil/miner",
    "index.docker.io/evil/miner:1",
    "registry-1.docker.io/acme/runner",
    "docker.io.evil.org/acme/runner",
    "evil.org/docker.io/runner",
    "docker.io:443/acme/runner",
    "registry.example.com/infra/runner:1",
    "registry.example.com/other/runner:1",
    "registry.example.com:5000/infra/runner:1",
    "registry.example.com.evil.org/infra/runner",
    "build.corp.example.com/runner",
    "a.build.corp.example.com/runner",
    "ghcr.io/acme/runner:1",
    "ghcr.io/acme/runner:edge",
    "ghcr.io/acmes/runner:1",
    "private.example.net:5000/team/runner",
    "private.example.net:5000/teams/runner",
    "private.example.net/team/runner",
    f"{ECR}/infra/runner:1",
    "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com/runner",
    "123456789012.dkr-ecr.eu-west-1.on.aws/runner",
    f"{ECR}.evil.org/runner",
    "public.ecr.aws/spacelift/runner-terraform:latest",
    "europe-west1-docker.pkg.dev/project/repository/runner:1",
    "user@ghcr.io/acme/runner",
    "ghcr.io/Acme/runner",
    "registry.example.com:5000",
]


def check(*arguments, **environment):
    return CliRunner().invoke(
        main, ["image", "check", *arguments], env={**ENVIRONMENT, **environment}
    )


def row(reference):
    answer = answered(reference, Settings.from_environ(ENVIRONMENT), {})
    verdict = "admitted" if answer.admitted else "refused"
    if not answer.reference:
        verdict = "no reference"
    why = answer.rule or answer.refusal.replace(f'"{reference}"', "…")
    login = answer.credentials.partition(" (")[0]
    shown = reference.replace(DIGEST, "sha256:…")
    return f"| `{shown}` | {verdict} | {why.replace('|', '')} | {login} |"


def table():
    head = "| image | | by, or because | login |\n|---|---|---|---|\n"
    return head + "\n".join(map(row, REFERENCES)) + "\n"


def test_the_table_of_the_page():
    """The thirty answers in docs/images.md are those of the command."""
    text = PAGE.read_text()
    begin, end = "<!-- made by image check -->\n", "<!-- end -->\n"
    published = text.partition(begin)[2].partition(end)[0]

    assert 30 == len(REFERENCES) == len(set(REFERENCES))
    assert f"\n{table()}\n" == published


def test_the_settings_of_the_page():
    """The settings above the table are those it was made with."""
    text = PAGE.read_text()

    for name, value in ENVIRONMENT.items():
        assert f"export {name}='{value}'".replace(AUTH, "…").replace(
            " ", ""
        ) in text.replace(" ", "")


@pytest.mark.parametrize("reference", REFERENCES)
def test_exit_codes(reference):
    """The exit code is 0 for admitted, 1 for refused, 2 for what is no reference."""
    done = check(reference, "--json")
    answer = json.loads(done.stdout)

    expected = 0 if answer["admitted"] else 1 if answer["reference"] else 2
    assert expected == done.exit_code
    assert bool(answer["rule"]) == answer["admitted"] == (not answer["refusal"])
    assert "hunter2" not in done.output
    assert AUTH not in done.output


def test_for_people():
    """Without --json the same is told in lines that can be read."""
    done = check("ghcr.io/acme/runner:1")

    assert 0 == done.exit_code
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert "ghcr.io/acme/runner:1" == lines["image"]
    assert "yes, by built-in list: ghcr.io" == lines["admitted"]
    assert (
        "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG (ghcr.io/acme: auths)" == lines["login"]
    )
    assert "none: anonymous" == lines["otherwise"]
    refused = check("evil.org/x")
    assert "comes from registry evil.org" in refused.stdout
    assert 1 == refused.exit_code


def test_nothing_is_executed_or_fetched(tmp_path):
    """A helper is named and not run, and AWS is not asked for anything."""
    helper = tmp_path / "docker-credential-trap"
    helper.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    helper.chmod(0o755)
    config = json.dumps({"credHelpers": {ECR: "trap"}, "credsStore": "trap"})
    done = check(
        f"{ECR}/x",
        SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG=config,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        AWS_ENDPOINT_URL="http://127.0.0.1:1",
    )

    assert f"({ECR}: docker-credential-trap)" in done.stdout
    assert "a token from eu-west-1" in done.stdout
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "environment",
    [
        {"SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG": "{hunter2"},
        {"SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG": '{"credsStore": "../hunter2"}'},
        {"SPACELIFT_LAUNCHER_ECR_ASSUME_ROLE_ARN": "hunter2"},
        {"SPACELIFT_LAUNCHER_ALLOWED_IMAGES": "*"},
    ],
)
def test_settings_that_are_wrong(environment):
    """A setting that is wrong is named, and nothing of a secret one is shown."""
    done = check("alpine", **environment)

    assert 2 == done.exit_code
    assert next(iter(environment)) in done.output
    assert "hunter2" not in done.output


def test_an_unreadable_configuration(tmp_path):
    """Logins that cannot be read are no reason to admit anything."""
    (tmp_path / "config.json").write_text("{hunter2")
    done = check(
        "registry.example.com/infra/x", SPACELIFT_DOCKER_CONFIG_DIR=str(tmp_path)
    )

    assert 1 == done.exit_code
    assert "cannot be read" in done.output
    assert "hunter2" not in done.output
