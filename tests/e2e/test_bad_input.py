"""Bad input: one clear sentence for the run's owner, and nothing left behind."""

import os
import subprocess

from pathlib import Path

import pytest

from examples.demo.processes import COMMAND, database
from launcher.controlplane import pool_tokens


from .conftest import opened


pytestmark = pytest.mark.services


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory):
    stacks = [
        {"slug": "unknown-vendor", "vendor": "punchcards"},
        {"slug": "no-such-image", "runner_image": "localhost:1/nobody/nothing:1"},
        {"slug": "forbidden-image", "runner_image": "registry.example.com/x:1"},
        {"slug": "bad-branch", "branch": "nope"},
        {"slug": "vanishing"},
        {"slug": "no-project-root", "project_root": "not/there"},
        {"slug": "failing", "hooks": {"before_plan": ["echo before", "exit 7"]}},
        {"slug": "exits-early", "hooks": {"before_plan": ["exit 0"]}},
        {"slug": "bad-playbook", "vendor_config": {"playbook": "missing.yml"}},
    ]
    with opened(tmp_path_factory.mktemp("site"), stacks) as site:
        site.launcher(SPACELIFT_LAUNCHER_ALLOWED_IMAGES=_allowed())
        yield site


def _allowed():
    from examples.demo.demo import image_id

    return f"{image_id()},localhost:1/*"


@pytest.mark.parametrize(
    ("slug", "sentence"),
    [
        ("unknown-vendor", "vendor 'punchcards' is unknown to this worker"),
        ("no-such-image", "is not on this worker, which must not pull it"),
        (
            "forbidden-image",
            "comes from registry registry.example.com, which is not allowed on this worker",
        ),
        ("bad-branch", 'branch "nope" was not found in acme/bad-branch'),
        (
            "no-project-root",
            "The folder /mnt/workspace/source/not/there does not exist.",
        ),
        ("failing", "plan: before_plan hook 2 of 2 failed with exit code 7"),
        ("exits-early", "A command ended the shell before the phase was complete."),
        ("bad-playbook", "plan: exit code"),
    ],
)
def test_owner_gets_one_clear_sentence(site, slug, sentence):
    """What is wrong with a run is said in the run's own log, and nothing is left."""
    run = site.api.trigger(slug)
    texts = site.follow(slug, run)
    log = "".join(texts.values())

    assert ["FAILED"] == list(texts)[-1:]
    assert 1 == log.count(sentence)
    assert "Traceback" not in log
    assert ["", ""] == site.leftovers()


def test_repository_that_vanished(site):
    """A repository that is gone when the job comes fails the run with a sentence."""
    launcher = site.launchers.pop()
    assert 0 == launcher.stop()
    run = site.api.trigger("vanishing")
    site.follow("vanishing", run, until="READY")
    repository = site.folder / "repositories" / "ansible"
    hidden = repository.with_name("hidden")
    repository.rename(hidden)
    try:
        site.launcher()
        log = "".join(site.follow("vanishing", run).values())
    finally:
        hidden.rename(repository)

    sentence = "acme/vanishing cannot be fetched: there is no such repository"
    assert 1 == log.count(sentence)
    assert str(site.folder) not in log
    assert ["", ""] == site.leftovers()


def run_once(folder, **environment):
    return subprocess.run(
        [*COMMAND, "run"],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("SPACELIFT_")},
            "SPACELIFT_LAUNCHER_STATE_DIR": str(folder / "once"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_policy_that_does_not_parse(site):
    """A policy that cannot be loaded stops the daemon, naming file and line."""
    policy = site.folder / "broken.rego"
    policy.write_text("package spacelift\n\ndeny[x] { x == }\n")
    done = run_once(
        site.folder,
        **site.pool("other"),
        SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY=str(policy),
    )

    assert 3 == done.returncode
    assert "broken.rego:3" in done.stderr


def test_engine_that_is_not_there(site):
    """Without an engine the daemon ends at once, with a sentence and its own code."""
    done = run_once(
        site.folder,
        **site.pool("other"),
        DOCKER_HOST="tcp://127.0.0.1:1",
    )

    assert 4 == done.returncode
    assert "no container engine answers" in done.stderr


def test_unknown_setting(site):
    """A misspelt setting stops the start with its name and the likely meaning."""
    done = run_once(
        site.folder,
        **site.pool("other"),
        SPACELIFT_LAUNCHER_RUN_TIMEOT="1h",
    )

    assert 2 == done.returncode
    assert "SPACELIFT_LAUNCHER_RUN_TIMEOT" in done.stderr
    assert "SPACELIFT_LAUNCHER_RUN_TIMEOUT" in done.stderr


def test_token_that_is_refused(site):
    """A token that was reset ends the daemon with a code of its own."""
    stale = site.pool("other")
    site.pool("other", "reset")
    done = run_once(site.folder, **stale)

    assert 6 == done.returncode
    assert "the worker pool was reset" in done.stderr
    for secret in stale.values():
        assert secret not in done.stderr


def test_token_of_another_server(site, tmp_path):
    """A launcher says nothing to a server that its token was not made by."""
    made = pool_tokens.create(
        database(tmp_path),
        None,
        pool_tokens.Request(pool="other", endpoint=site.addresses.workers),
    )
    done = run_once(
        site.folder,
        SPACELIFT_TOKEN=made.token,
        SPACELIFT_POOL_PRIVATE_KEY=made.private_key,
    )

    assert 14 == done.returncode
    assert "not the one that SPACELIFT_TOKEN was made by" in done.stderr


def test_pool_that_is_reset_in_mid_life(open_site):
    """A launcher whose pool is reset drains, says why, and ends with a code."""
    site = open_site([{"slug": "reset"}])
    launcher = site.launcher()
    site.pool("default", "reset")
    refused = launcher.wait_for("worker.refused", 20)
    assert "the control plane does not accept SPACELIFT_TOKEN" == refused["error"]
    assert "the worker pool was reset" in refused["details"]
    site.launchers.remove(launcher)
    assert 6 == launcher.wait(30)


def test_secrets_of_a_running_launcher(open_site):
    """Neither its environment nor its arguments hold the token or the key."""
    site = open_site([{"slug": "secretive"}])
    launcher = site.launcher()
    shown = [
        Path(f"/proc/{launcher.pid}/{n}").read_text() for n in ("environ", "cmdline")
    ]
    assert "SPACELIFT_LAUNCHER_STATE_DIR" in shown[0]
    for secret in site.pool().values():
        assert secret not in "".join(shown) + launcher.log.read_text()


def test_control_plane_that_is_down_at_start(open_site):
    """A control plane that is away is waited for, reported once, and then used."""
    site = open_site([{"slug": "patient"}])
    run = site.api.trigger("patient")
    site.pool()
    assert 0 == site.server.stop()
    launcher = site.launcher()
    launcher.wait_for("control_plane.unreachable")
    site.restart_server()
    site.follow("patient", run, until="UNCONFIRMED")

    reports = [e for e in launcher.events() if e["msg"] == "control_plane.unreachable"]
    assert 1 == len(reports)
