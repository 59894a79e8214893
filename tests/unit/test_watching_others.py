"""When engine, control plane and clock keep a launcher from getting runs."""

import pytest

from prometheus_client import generate_latest

from launcher.activity import Board, Intake
from launcher.adapters.controlplane.client import Client
from launcher.bootstrap import OPERATOR, watch_others
from launcher.cancel import CancelToken
from launcher.errors import ControlPlaneUnavailable, CredentialsRefused, EngineError
from launcher.health import Health
from launcher.worker import Outage


class Plane:
    """What is known of a control plane, without one."""

    def __init__(self):
        self.clock_skew, self.heard_at, self.silent_seconds = 0.0, 1e9, 0.0

    require_clock = Client.require_clock


class Worker:
    """What is known of the slots."""

    def __init__(self, clock):
        self.drain, self.intake = CancelToken(), Intake()
        self.board, self.outage = Board(2), Outage(clock)


class Place:
    """Everything, well, until something is changed."""

    def __init__(self):
        self.now, self.health, self.plane = 0.0, Health(), Plane()
        self.worker, self.full, self.error = Worker(lambda: self.now), None, None
        watch_others(self.health, self, self.plane, self.worker, self)

    def ping(self):
        if self.error:
            raise self.error

    def trouble(self):
        return self.full

    @property
    def reasons(self):
        return self.health.reasons()


@pytest.fixture(name="place")
def _place():
    return Place()


def test_all_is_well(place):
    """Where all answer, there is no reason."""
    assert {} == place.reasons
    assert {"engine", "control_plane", "clock"} == set(place.health.checks)


def test_the_engine(place):
    """An engine that fails is a reason, in its own public words."""
    place.error = EngineError("the container engine failed", details="a socket")

    assert {"engine": "the container engine failed"} == place.reasons


def test_nobody_has_answered(place):
    """Before the first answer a launcher is not ready."""
    place.plane.heard_at = None

    assert {"control_plane": "the control plane has not answered yet"} == place.reasons


def test_an_outage(place):
    """Polls that fail for ten seconds are a reason, until one goes well."""
    place.worker.outage.goes_on(ControlPlaneUnavailable("away"))
    place.now += 9
    assert {} == place.reasons
    place.now += 2
    assert {"control_plane": "the control plane has not answered for 11 s"} == (
        place.reasons
    )
    place.worker.outage.over()
    assert {} == place.reasons


def test_a_refusal(place):
    """A control plane that does not want the launcher is a reason at once."""
    place.worker.outage.refused(CredentialsRefused("the token is not accepted"))
    assert {"control_plane": "the token is not accepted"} == place.reasons
    place.worker.outage.over()
    assert {} == place.reasons


@pytest.mark.parametrize("situation", ["idle", "busy", "drained and busy"])
def test_silence(place, situation):
    """Where polls or renewals are to be answered, a minute and a half is too long."""
    place.plane.silent_seconds = 100.0
    if "drained" in situation:
        place.worker.intake.hold(OPERATOR, "drained")
    if "busy" in situation:
        place.worker.board._put(0, object())

    assert ["control_plane"] == list(place.reasons)


@pytest.mark.parametrize("situation", ["drained", "ending", "full"])
def test_silence_that_is_ours(place, situation):
    """Who asks for nothing is not answered."""
    place.plane.silent_seconds = 100.0
    match situation:
        case "drained":
            place.worker.intake.hold(OPERATOR, "drained")
        case "ending":
            place.worker.drain.cancel("SIGTERM")
        case "full":
            place.full = "the disk is full"

    assert {} == place.reasons


@pytest.mark.parametrize(("skew", "way"), [(400.0, "ahead of"), (-400.0, "behind")])
def test_the_clock(place, skew, way):
    """A clock that is off by more than five minutes is a reason."""
    place.plane.clock_skew = skew

    assert f"clock is 400 s {way} the control plane's" in place.reasons["clock"]
    text = generate_latest(place.health.registry).decode()
    assert f"spacelift_launcher_clock_skew_seconds {skew}" in text
    assert 'spacelift_launcher_check_ok{check="clock"} 0.0' in text


def test_drained_slots(place):
    """All slots count as drained while any hold lasts."""

    def drained():
        return place.health.registry.get_sample_value(
            "spacelift_launcher_workers_drained"
        )

    assert 0 == drained()
    place.worker.intake.hold(OPERATOR, "drained")
    assert 2 == drained()
