"""What a supervisor sees of a real launcher."""

import json
import re
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest

from given import eventually
from support.metrics import documented, published

from .conftest import opened


pytestmark = pytest.mark.services

GOOD = "package spacelift\nsample { true }\n"


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory):
    stacks = [{"slug": "waiting", "hooks": {"before_init": ["echo begun; sleep 8"]}}]
    with opened(tmp_path_factory.mktemp("site"), stacks) as site:
        yield site


def get(launcher, path):
    address = launcher.wait_for("health.listening")["address"]
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


# Only there for a job with a login of ECR's, or while runs are traced.
SELDOM = {
    "spacelift_launcher_registry_login_expires_seconds",
    "spacelift_launcher_trace_spans_lost",
}


def value(metrics, name):
    (line,) = re.findall(rf"^spacelift_launcher_{name} (.*)$", metrics, re.M)
    return float(line)


def reasons(launcher):
    status, body = get(launcher, "/readyz")
    found = {each["check"]: each["reason"] for each in json.loads(body)["reasons"]}
    assert status == (503 if found else 200)
    return found


def test_a_broken_policy(site):
    """
    A policy that was broken turns readiness and its gauge off, until it is mended.
    """
    path = site.folder / "policy.rego"
    path.write_text(GOOD)
    launcher = site.launcher(SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY=str(path))
    eventually(lambda: not reasons(launcher))  # the first answer of the control plane
    assert "spacelift_launcher_policy_healthy 1.0\n" in get(launcher, "/metrics")[1]

    path.write_text("package spacelift\n:=\n")

    assert ["policy"] == list(reasons(launcher))
    assert "spacelift_launcher_policy_healthy 0.0\n" in get(launcher, "/metrics")[1]
    assert (200, "ok\n") == get(launcher, "/livez")
    assert f"{path}:2" in launcher.wait_for("policy.reload_failed")["error"]

    path.write_text(GOOD)
    launcher.signal(signal.SIGHUP)
    launcher.wait_for("policy.reloaded")

    assert {} == reasons(launcher)
    assert "spacelift_launcher_policy_healthy 1.0\n" in get(launcher, "/metrics")[1]
    assert 0 == launcher.stop()


def test_two_at_one_address(site):
    """
    A second launcher at the same address ends with a code of its own, and says why.
    """
    first = site.launcher("first")
    address = first.wait_for("health.listening")["address"]
    with pytest.raises(RuntimeError) as caught:
        site.launcher("second", SPACELIFT_LAUNCHER_LISTEN=address)

    assert f"SPACELIFT_LAUNCHER_LISTEN at {address}: " in str(caught.value)
    assert '"exit_code":7' in str(caught.value).replace(" ", "")
    assert 0 == first.stop()


def test_draining(site):
    """
    A launcher that drains gets no runs, lives until the last one ended, and counted it.
    """
    launcher = site.launcher("draining")
    run = site.api.trigger("waiting", kind="PROPOSED")
    launcher.wait_for("container.started")
    assert {} == reasons(launcher)

    launcher.signal(signal.SIGTERM)
    launcher.wait_for("signal.received")
    pause, deadline = threading.Event(), time.monotonic() + 10
    while not reasons(launcher) and time.monotonic() < deadline:
        pause.wait(0.05)

    assert {"drain": "draining"} == reasons(launcher)
    metrics = get(launcher, "/metrics")[1]
    assert 'spacelift_launcher_policy_verdicts_total{outcome="allow"} 1.0' in metrics
    assert run not in metrics
    found = published(metrics)
    assert documented() == found | {name: set() for name in SELDOM}
    for running in (
        "spacelift_launcher_workers_busy 1.0",
        "spacelift_launcher_workers_drained 1.0",
        'spacelift_launcher_check_ok{check="drain"} 0.0',
        'spacelift_launcher_check_ok{check="engine"} 1.0',
        'spacelift_launcher_stage_seconds_count{stage="start"} 1.0',
        "spacelift_launcher_queue_wait_seconds_count 1.0",
    ):
        assert f"{running}\n" in metrics
    states = re.findall(
        r'^spacelift_launcher_jobs_running.*state="(.*)"} 1.0$', metrics, re.M
    )
    assert 1 == len(states)
    assert 0 < value(metrics, "lease_slack_seconds") <= 90
    assert 0 < value(metrics, "engine_disk_used_percent") <= 100
    assert abs(value(metrics, "clock_skew_seconds")) < 5
    site.follow("waiting", run)
    assert 0 == launcher.wait(60)


def test_a_full_disk(site):
    """
    At the threshold of the disk a launcher is not ready, asks for no jobs, and says so.
    """
    launcher = site.launcher("full", SPACELIFT_LAUNCHER_DISK_USAGE_THRESHOLD="1")

    assert "disk" in reasons(launcher)
    # It does not even register, so nobody has answered it.
    assert {"disk", "control_plane"} >= set(reasons(launcher))
    trouble = launcher.wait_for("disk.full")["trouble"]
    assert "at 1 % no run begins" in trouble
    assert 0 == launcher.stop()
