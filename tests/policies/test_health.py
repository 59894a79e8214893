import http.client
import json

from types import SimpleNamespace

import pytest
import structlog

from launcher.adapters.policies.loading import follow
from launcher.bootstrap import watch
from launcher.cancel import CancelToken
from launcher.health import Health, listening
from launcher.model import Address
from launcher.policy import Outcome
from launcher.settings import PolicySettings


pytestmark = pytest.mark.services


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def healthy(port):
    lines = get(port, "/metrics")[1].splitlines()
    (line,) = (x for x in lines if x.startswith("spacelift_launcher_policy_healthy "))
    return float(line.split()[1])


def test_a_broken_version(tmp_path):
    """
    A broken new policy is in the log, in a metric and in readiness, until it is mended.
    """
    path = tmp_path / "policy.rego"
    good = 'package spacelift\ndeny contains "no"\n'
    path.write_text(good)
    policy, health = (
        follow(PolicySettings(path=path), path, tmp_path, secret=b"k" * 32),
        Health(),
    )
    certificate = SimpleNamespace(trouble=lambda: None, expires=lambda: 0.0)
    watch(health, CancelToken(), policy, certificate)
    with listening(Address(host="127.0.0.1", port=0), health) as port:
        assert (200, 1) == (get(port, "/readyz")[0], healthy(port))

        path.write_text('package spacelift\ndeny contains "hunter2\n')
        with structlog.testing.capture_logs() as events:
            status, body = get(port, "/readyz")

        (failed,) = (e for e in events if e["event"] == "policy.reload_failed")
        assert "policy.rego:2" in failed["error"]
        assert (503, 0) == (status, healthy(port))
        ((check, reason),) = (each.values() for each in json.loads(body)["reasons"])
        assert "policy" == check
        assert f"{path}:2: " in reason
        assert reason.endswith("; the last good version stays in use")
        assert "hunter2" not in body + get(port, "/metrics")[1]
        assert Outcome.DENY is policy.evaluate({}).outcome

        path.write_text(good)
        assert (200, 1) == (get(port, "/readyz")[0], healthy(port))
