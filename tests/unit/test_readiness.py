import threading

import pytest

from given import eventually
from launcher.errors import EngineError
from launcher.readiness import Probe


@pytest.fixture
def clock():
    """
    A clock that stands still until it is moved.
    """

    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


class Engine:
    """
    Answers, fails or hangs, and counts how often it was asked.
    """

    def __init__(self):
        self.asked = 0
        self.error = None
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self):
        self.asked += 1
        assert self.answers.wait(30)
        if self.error:
            raise self.error


def test_an_answer_is_kept_for_a_while(clock):
    """
    Whoever looks every moment does not ask every moment; a change shows soon.
    """
    engine = Engine()
    probe = Probe("engine", engine, clock=clock)
    assert [None] * 5 == [probe.trouble() for _ in range(5)]
    assert 1 == engine.asked
    engine.error = EngineError("the container engine failed")
    clock.now += 6

    assert "the container engine failed" == probe.trouble()
    engine.error = None
    assert "the container engine failed" == probe.trouble()
    clock.now += 6
    assert probe.trouble() is None
    assert 3 == engine.asked


def test_one_that_hangs(clock):
    """
    One that does not answer is asked once, is not waited for, and says so itself later.
    """
    engine = Engine()
    engine.answers.clear()
    probe = Probe("engine", engine, patience_seconds=0.05, clock=clock)

    assert "the engine has not answered for 0 s" == probe.trouble()
    clock.now += 70
    assert ["the engine has not answered for 70 s"] * 20 == [
        probe.trouble() for _ in range(20)
    ]
    assert 1 == engine.asked
    engine.answers.set()
    eventually(lambda: probe.trouble() is None)


def test_many_who_ask_at_once():
    """
    Whoever asks while the question is under way gets the same answer.
    """
    engine = Engine()
    engine.answers.clear()
    probe = Probe("engine", engine, patience_seconds=30)
    answers, threads = [], []
    for _ in range(8):
        threads.append(threading.Thread(target=lambda: answers.append(probe.trouble())))
        threads[-1].start()
    eventually(lambda: engine.asked)
    engine.answers.set()
    for thread in threads:
        thread.join()

    assert [None] * 8 == answers
    assert 1 == engine.asked


def test_a_bug_in_the_question(monkeypatch):
    """
    A question that crashes is no good sign, and none that stays without an answer.
    """
    crashed = []
    monkeypatch.setattr(threading, "excepthook", crashed.append)
    probe = Probe("engine", lambda: 1 / 0)

    assert "the check failed" == probe.trouble()
    eventually(lambda: crashed)
