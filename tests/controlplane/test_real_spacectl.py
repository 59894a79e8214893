"""
The real spacectl against the real server, on machines that have one.

Elsewhere this file is not collected: what the client sends was recorded, and is
replayed by the other tests.
"""

import json
import os
import subprocess
import threading

import pytest

from controlplane.site import ENVIRON


@pytest.fixture
def command(site, tmp_path):
    """Runs spacectl, signed in, and gives what it prints."""

    def run(*arguments, code=0, given=None):
        done = subprocess.run(
            ["spacectl", *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "SPACELIFT_API_KEY_ENDPOINT": site.base,
                "SPACELIFT_API_KEY_ID": "ci",
                "SPACELIFT_API_KEY_SECRET": ENVIRON["CI_SECRET"],
            },
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "panic" not in done.stderr
        return done.stdout

    return run


def test_a_walk_through_with_the_real_client(site, api, command):
    """Deploying and confirming, each with metadata and a live log, ends as the run does."""
    command("profile", "login", "test", "--endpoint", site.base, "--method", "api")
    assert "ci" in command("whoami")
    assert "SaaS" in command("version")
    listed = json.loads(command("stack", "list", "-o", "json"))
    assert [each["id"] for each in listed] == [site.slug]

    worker, at = site.worker(), ("--id", site.slug)
    deployed = command("stack", "deploy", *at, "--run-metadata", "deploy-metadata")
    assert f"/stack/{site.slug}/run/" in deployed
    held = worker.take()
    assert held.run in deployed
    held.handed_over()
    tailed = []
    tail = threading.Thread(
        target=lambda: tailed.append(
            command(
                *("stack", "confirm", *at, "--run", held.run, "--tail"),
                *("--run-metadata", "confirm-metadata"),
            )
        )
    )
    tail.start()
    applying = worker.take()
    said = applying.job["run"]["user_provided_metadata"]
    assert said == ["deploy-metadata", "confirm-metadata"]
    applying.applied()
    tail.join()
    assert "applying" in tailed[0]
    assert api.state(held.run) == "FINISHED"
    logs = command("stack", "logs", *at, "--run", held.run)
    assert "planning" in logs

    waiting = command("stack", "deploy", *at)
    run = worker.take().run
    assert run in waiting
    command("stack", "stop", *at, "--run", run)
    shown = json.loads(command("stack", "show", *at, "-o", "json"))
    assert shown["id"] == site.slug


def test_the_other_commands_of_the_real_client(site, command):
    """Each of these is understood, and says what there is."""
    at = ("--id", site.slug)
    command("stack", "environment", "setvar", *at, "GREETING", "hello")
    assert "GREETING" in command("stack", "environment", "list", *at, "-o", "json")
    command("stack", "environment", "delete", *at, "GREETING")
    command("stack", "lock", *at, "--note", "mine")
    command("stack", "unlock", *at)
    command("stack", "disable", *at)
    command("stack", "enable", *at)
    command("stack", "task", *at, "echo hello")
    for kind in ("run", "task"):
        assert json.loads(command("stack", kind, "list", *at, "-o", "json")) is not None
    assert site.pool in command("workerpool", "list", "-o", "json")
    command("policy", "list", "-o", "json")
    assert "stack.lock" in command("audit-trail", "list", "-o", "json")
    refused = ("stack", "deploy", *at, "--force-apply", "single")
    command(*refused, code=1)
