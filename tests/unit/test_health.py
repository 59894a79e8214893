import http.client
import json
import socket
import threading

from contextlib import ExitStack

import pytest

from given import eventually

from launcher import health as module
from launcher.errors import AddressUnavailable, ConfigurationError
from launcher.health import Health, MeasuredPolicy, listening
from launcher.model import NOWHERE, Address
from launcher.policy import Evaluation


HERE = Address(host="127.0.0.1", port=0)


@pytest.fixture
def health():
    return Health()


@pytest.fixture
def ask(health):
    """
    Asks the listener, over HTTP; answers with status and body.
    """
    with listening(HERE, health) as port:

        def get(path, method="GET"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer.status, body

        yield get


def readiness(ask):
    status, body = ask("/readyz")
    return status, json.loads(body)


def values(ask):
    """
    The samples in the text of /metrics, by name and labels.
    """
    status, body = ask("/metrics")
    assert 200 == status
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines)}


def test_well(ask):
    """
    A launcher without trouble is alive and ready.
    """
    assert (200, b"ok\n") == ask("/livez")
    assert (200, {"ready": True, "reasons": []}) == readiness(ask)
    assert 1 == values(ask)["spacelift_launcher_ready"]


def test_unwell(health, ask):
    """
    Every check that finds something makes it unready, with its reason, and not dead.
    """
    found = {"disk": "the disk is full", "engine": None, "drain": "draining"}
    for name in found:
        health.check(name, lambda name=name: found[name])

    assert readiness(ask) == (
        503,
        {
            "ready": False,
            "reasons": [
                {"check": "disk", "reason": "the disk is full"},
                {"check": "drain", "reason": "draining"},
            ],
        },
    )
    assert 0 == values(ask)["spacelift_launcher_ready"]
    assert 200 == ask("/livez")[0]

    found.update(disk=None, drain=None)

    assert 200 == readiness(ask)[0]
    assert 1 == values(ask)["spacelift_launcher_ready"]


def test_a_check_that_fails(health, ask):
    """
    A check that raises counts as trouble, and its words, maybe secret, stay inside.
    """

    def ask_engine():
        raise RuntimeError("password hunter2")

    health.check("engine", ask_engine)
    status, answer = readiness(ask)

    assert 503 == status
    assert [{"check": "engine", "reason": "the check failed: RuntimeError"}] == (
        answer["reasons"]
    )


def test_gauges_are_asked_when_somebody_looks(health, ask):
    """
    A gauge has the value of the moment.
    """
    value = [3]
    health.gauge("busy_workers", "How many work.", lambda: value[0])
    assert 3 == values(ask)["spacelift_launcher_busy_workers"]

    value[0] = 0

    assert 0 == values(ask)["spacelift_launcher_busy_workers"]


def test_verdicts(health, ask):
    """
    Evaluations are counted by outcome, which are all there from the start, and timed.
    """
    answers = [Evaluation.of({}), Evaluation.of({"deny": ["no"]}), Evaluation.of({})]

    class Policy:
        def evaluate(self, document):
            return answers.pop()

    policy = MeasuredPolicy(Policy(), health)
    total = 'spacelift_launcher_policy_verdicts_total{{outcome="{}"}}'
    assert 0 == values(ask)[total.format("error")]

    assert [True, False, True] == [policy.evaluate({}).allowed for _ in range(3)]

    found = values(ask)
    assert [2, 1, 0] == [found[total.format(x)] for x in ("allow", "deny", "error")]
    assert 3 == found["spacelift_launcher_policy_evaluation_seconds_count"]


@pytest.mark.parametrize("path", ["/", "/readyz/", "/metrics.json", "/%00"])
def test_elsewhere(ask, path):
    """
    There is nothing else.
    """
    assert 404 == ask(path)[0]


def test_methods(ask):
    """
    It can be looked at, and not be told anything.
    """
    assert (200, b"") == ask("/livez", "HEAD")
    assert 501 == ask("/readyz", "POST")[0]


def test_in_use(health):
    """
    An address that somebody has is an error that names the setting.
    """
    with listening(HERE, health) as port:
        with pytest.raises(
            AddressUnavailable, match=f"_LISTEN at 127.0.0.1:{port}: "
        ) as info:
            with listening(Address(host="127.0.0.1", port=port), health):
                pass

    assert 7 == info.value.exit_code


def test_no_address_of_ours(health):
    """
    An address that is not there may come, so that it is tried again.
    """
    with pytest.raises(
        AddressUnavailable, match="SPACELIFT_LAUNCHER_LISTEN at 192.0"
    ) as info:
        with listening(Address(host="192.0.2.1", port=1986), health):
            pass

    assert 7 == info.value.exit_code


def test_no_such_name(health):
    """
    A name that is no address is a setting that is wrong.
    """
    with pytest.raises(ConfigurationError, match="SPACELIFT_LAUNCHER_LISTEN at no.in"):
        with listening(Address(host="no.invalid", port=1986), health):
            pass


def test_off(health):
    """
    Without an address, nobody listens.
    """
    before = threading.active_count()
    with listening(NOWHERE, health) as port:
        assert 0 == port
        assert before == threading.active_count()


def test_ipv6(health):
    """
    An address in the new notation will do.
    """
    with listening(Address(host="::1", port=0), health) as port:
        connection = http.client.HTTPConnection("::1", port, timeout=10)
        connection.request("GET", "/livez")
        assert 200 == connection.getresponse().status
        connection.close()


def test_clients_that_say_nothing(health, ask, monkeypatch):
    """
    Those who connect and keep silent are left behind, and do not shut out the others.
    """
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    with listening(HERE, health) as port:
        silent = [
            socket.create_connection(("127.0.0.1", port), 10)
            for _ in range(module._AT_ONCE + 4)
        ]
        for each in silent:
            assert b"" == each.recv(1)
            each.close()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/livez")
        assert 200 == connection.getresponse().status
        connection.close()


def test_a_client_that_takes_all_it_can(health):
    """
    One address gets no more than its part, and all others are answered meanwhile.
    """

    def answered(port, client):
        connection = http.client.HTTPConnection(
            "127.0.0.1", port, timeout=10, source_address=(client, 0)
        )
        try:
            connection.request("GET", "/livez")
            return 200 == connection.getresponse().status
        except OSError:  # closed without an answer
            return False
        finally:
            connection.close()

    with listening(HERE, health) as port, ExitStack() as closing:
        held = [
            closing.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            for _ in range(module._AT_ONCE + 4)
        ]
        for each in held[module._PER_CLIENT :]:
            assert b"" == each.recv(1)
        assert not answered(port, "127.0.0.1")
        assert answered(port, "127.0.0.2")

        for each in held:
            each.close()
        eventually(lambda: answered(port, "127.0.0.1"))
