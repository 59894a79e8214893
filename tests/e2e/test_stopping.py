"""How a real launcher ends, drains, and tells what it is doing."""

import datetime
import json
import signal
import subprocess
import threading
import time

import pytest

from examples.demo.processes import COMMAND
from support.metadata import metadata_service

from .conftest import docker, opened


pytestmark = pytest.mark.services

# Counts its SIGINTs, and takes some time to save its state, like Terraform.
RECORDER = """cat >recorder <<'END'
#!/usr/bin/python3
import signal, sys, time
counted = []
signal.signal(signal.SIGINT, lambda *_: counted.append(1))
print("waiting", flush=True)
while not counted:
    time.sleep(0.05)
time.sleep(1)
print("interrupts:", len(counted), flush=True)
sys.exit(5)
END
chmod +x recorder"""
WAIT = "touch /opt/signs/begun; until [ -e /opt/signs/go ]; do sleep 0.1; done"


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory):
    stacks = [
        {
            "slug": "recording",
            "hooks": {
                "before_plan": [RECORDER, "timeout 300 ./recorder | tee log"],
                "after_run": ["echo last: $TF_VAR_spacelift_final_run_state"],
            },
        },
        {"slug": "waiting", "hooks": {"before_plan": [WAIT, "echo went on"]}},
        {
            "slug": "changing",
            "autodeploy": True,
            "hooks": {"before_apply": [RECORDER, WAIT, "./recorder"]},
        },
    ]
    with opened(tmp_path_factory.mktemp("site"), stacks) as site:
        yield site


@pytest.fixture(name="signs")
def _signs(tmp_path):
    """A folder that a job and the test both see."""
    folder = tmp_path / "signs"
    folder.mkdir()
    folder.chmod(0o777)
    tmp_path.chmod(0o755)
    return folder


def until(condition, seconds=60):
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        pause.wait(0.05)
    raise AssertionError("it did not come to that")


def asked(site, name, *command):
    """What a command says about the launcher of that name: exit code and output."""
    done = subprocess.run(
        [*COMMAND, *command, "--state-dir", str(site.folder / name)],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def status(site, name):
    code, said = asked(site, name, "status", "--json")
    assert 0 == code
    return json.loads(said)


def received(launcher):
    """How many signals it has noticed."""
    return [event["msg"] for event in launcher.events()].count("signal.received")


def printed(site, stack, run, text):
    """Wait until a run has printed *text*."""
    for _, part in site.api.follow(stack, run):
        if text in part:
            return


def test_a_stop_interrupts_the_tool_once(site):
    """A stop from the control plane reaches a tool below timeout and a pipe, once."""
    launcher = site.launcher("stopping")
    run = site.api.trigger("recording", kind="PROPOSED")
    texts = {}
    for state, text in site.api.follow("recording", run):
        texts[state] = texts.get(state, "") + text
        if state == "PLANNING" and text.startswith("waiting"):
            site.api.stop("recording", run)

    assert "interrupts: 1" in texts["PLANNING"]
    assert "last: STOPPED" in "".join(texts.values())
    assert "STOPPED" == site.api.history("recording", run)[-1]["state"]
    assert 0 == launcher.stop()


def test_drain_and_undrain(site, signs):
    """
    A drained launcher finishes its job and stays, takes no other, and does when undrained.
    """
    launcher = site.launcher(
        "draining", SPACELIFT_WORKER_EXTRA_MOUNTS=f"{signs}:/opt/signs"
    )
    assert {"run": None, "slot": 0} == {
        key: status(site, "draining")["slots"][0][key] for key in ("run", "slot")
    }
    first = site.api.trigger("waiting", kind="PROPOSED")
    until((signs / "begun").exists)

    assert (0, "draining; jobs at work: 1\n") == asked(site, "draining", "drain")
    second = site.api.trigger("waiting", kind="PROPOSED")
    said = status(site, "draining")
    (slot,) = said["slots"]
    assert (first, "PLANNING") == (slot["run"], slot["phase"])
    assert (True, False) == (said["draining"], said["ready"])
    assert {"drain": "draining"} == said["reasons"]

    (signs / "go").touch()
    assert "went on" in site.follow("waiting", first)["PLANNING"]
    until(lambda: status(site, "draining")["slots"][0]["run"] is None)
    launcher.wait_for("job.settled")
    claimed = [event for event in launcher.events() if event["msg"] == "job.claimed"]
    assert 1 == len(claimed)

    assert (0, "taking jobs\n") == asked(site, "draining", "undrain")
    assert "went on" in site.follow("waiting", second)["PLANNING"]
    assert status(site, "draining")["ready"]
    assert 0 == launcher.stop()
    assert (1, "") == asked(site, "draining", "status")


def test_a_second_signal_ends_a_plan_by_the_ladder(site):
    """After a second SIGTERM the tool is interrupted once, and the outcome is reported."""
    launcher = site.launcher("ending")
    run = site.api.trigger("recording", kind="PROPOSED")
    texts = {}
    for state, text in site.api.follow("recording", run):
        texts[state] = texts.get(state, "") + text
        if state == "PLANNING" and text.startswith("waiting"):
            launcher.signal(signal.SIGTERM)
            launcher.signal(signal.SIGINT)

    assert 0 == launcher.wait(60)
    assert "interrupts: 1" in texts["PLANNING"]
    assert "the worker was told to end at once" in "".join(texts.values())
    assert "FAILED" == site.api.history("recording", run)[-1]["state"]


def test_a_third_signal_leaves_the_container(site):
    """After a third signal the launcher is gone at once; what ran goes on running."""
    launcher = site.launcher("leaving")
    run = site.api.trigger("recording", kind="PROPOSED")
    printed(site, "recording", run, "waiting")
    instance = (site.folder / "leaving" / "instance").read_text().strip()
    label = f"label=spacelift.launcher.instance={instance}"
    for count in range(3):
        # Of two that come at the same time, the kernel delivers one.
        until(lambda: count == received(launcher))
        launcher.signal(signal.SIGTERM)

    assert 16 == launcher.wait(5)
    left = docker("container", "ls", "--quiet", "--filter", label)
    assert 1 == len(left.split())
    docker("container", "rm", "--force", "--volumes", left)
    site.launchers.remove(launcher)
    volumes = docker("volume", "ls", "--quiet", "--filter", label)
    docker("volume", "rm", *volumes.split())


def test_an_apply_is_not_stopped_by_users(site, signs):
    """A stop request while a run applies is refused, and the apply goes on."""
    from examples.demo.api import ApiError

    launcher = site.launcher(
        "applying", SPACELIFT_WORKER_EXTRA_MOUNTS=f"{signs}:/opt/signs"
    )
    run = site.api.trigger("changing")
    until((signs / "begun").exists)
    with pytest.raises(ApiError):
        site.api.stop("changing", run)
    assert "APPLYING" == status(site, "applying")["slots"][0]["phase"]
    (signs / "go").touch()
    printed(site, "changing", run, "waiting")
    launcher.signal(signal.SIGTERM)
    launcher.wait_for("signal.received")
    launcher.signal(signal.SIGTERM)

    assert "interrupts: 1" in site.follow("changing", run)["APPLYING"]
    assert 0 == launcher.wait(60)


def test_a_vanishing_machine(site):
    """From a spot notice on nothing begins; a tool is interrupted 45 s before the end."""
    with metadata_service() as service:
        launcher = site.launcher(
            "vanishing",
            SPACELIFT_LAUNCHER_SPOT_NOTICES="on",
            AWS_EC2_METADATA_SERVICE_ENDPOINT=service.url,
        )
        run = site.api.trigger("recording", kind="PROPOSED")
        printed(site, "recording", run, "waiting")
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=55)
        service.interrupt(ends.strftime("%Y-%m-%dT%H:%M:%SZ"))

        launcher.wait_for("spot.interruption", seconds=10)
        assert ["host"] == list(status(site, "vanishing")["holds"])
        texts = site.follow("recording", run)

        assert "interrupts: 1" in texts["PLANNING"]
        assert "machine is about to be taken away" in "".join(texts.values())
        left = ends - datetime.datetime.now(datetime.UTC)
        assert 30 < left.total_seconds() <= 45
        assert "FAILED" == site.api.history("recording", run)[-1]["state"]
        assert 0 == launcher.stop()
