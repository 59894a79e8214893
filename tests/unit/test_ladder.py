import contextlib

import pytest

from structlog.testing import capture_logs

from given import eventually
from launcher.adapters.engines import ladder
from launcher.adapters.engines.ladder import descending
from launcher.cancel import CancelToken
from launcher.errors import EngineError
from launcher.model import PhaseScript


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(ladder, "_RETRY_SECONDS", 0.01)


class Phase:
    """A phase that ends at the signal it is told, behind an engine that may fail."""

    def __init__(self, ends_at="", failures=0):
        self.ends_at, self.failures = ends_at, failures
        self.sent, self.attempts = [], 0
        self.ended, self.given_up = CancelToken(), CancelToken()

    def send(self, signal):
        self.attempts += 1
        if self.attempts <= self.failures:
            raise EngineError("away", details="refused")
        self.sent.append(signal)
        if signal == self.ends_at:
            self.ended.cancel("ended")

    def give_up(self):
        self.given_up.cancel("given up")
        self.ended.cancel("given up")

    def run(self, *, grace=0.05, stop_seconds=0.05):
        """Cancel it while it runs; returns the signals that arrived."""
        cancel, begun = CancelToken(), CancelToken()
        begun.cancel("begun")
        script = PhaseScript(name="apply", text="", grace_seconds=grace)
        with (
            capture_logs(),
            descending(
                script,
                cancel,
                begun,
                self.send,
                give_up=self.give_up,
                stop_seconds=stop_seconds,
            ),
        ):
            cancel.cancel("test")
            assert self.ended.wait(10)
        return self.sent


def test_a_tool_that_listens_is_asked_only():
    """After a signal that helped, there is no other."""
    assert ["SIGINT"] == Phase("SIGINT").run(grace=60)


def test_every_step_is_taken():
    """Asked, urged, killed, and at last given up, in that order."""
    phase = Phase()

    assert ["SIGINT", "SIGTERM", "SIGKILL"] == phase.run()
    assert phase.given_up.cancelled


def test_an_outage_of_the_engine_costs_no_grace():
    """A tool that could not be asked for a while is still asked first, and has its time."""
    phase = Phase("SIGINT", failures=20)

    assert ["SIGINT"] == phase.run(grace=60)
    assert 21 == phase.attempts


def test_nobody_is_urged_who_was_not_asked():
    """When the engine stays away, the phase is given up, not terminated."""
    phase = Phase(failures=10**9)

    assert [] == phase.run()
    assert phase.given_up.cancelled


def test_a_phase_that_ends_during_the_outage_is_left_alone():
    """What is over needs no signal, however many did not arrive."""
    phase = Phase(failures=10**9)
    cancel, begun = CancelToken(), CancelToken()
    begun.cancel("begun")
    script = PhaseScript(name="apply", text="", grace_seconds=60)
    with (
        capture_logs(),
        contextlib.ExitStack() as block,
    ):
        block.enter_context(
            descending(script, cancel, begun, phase.send, give_up=phase.give_up)
        )
        cancel.cancel("test")
        eventually(lambda: phase.attempts > 3)

    assert not phase.given_up.cancelled
