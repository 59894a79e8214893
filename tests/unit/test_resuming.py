"""A log that an earlier life of the launcher has begun to upload."""

import pytest

from given import a_claim
from launcher.resuming import ResumedLog, Tap
from launcher.wire.messages import LogAck


WHOLE = bytes(range(256)) * 4
CLAIM = a_claim()


class Stored:
    """A control plane's log, with the rules of the real one; counts new bytes only."""

    def __init__(self, data=b""):
        self.data = bytearray(data)
        self.calls = 0

    def append(self, claim, offset, data):
        self.calls += 1
        assert offset <= len(self.data), "a gap"
        self.data += data[len(self.data) - offset :]
        return LogAck(next_offset=len(self.data), stop="enough")


def upload(sink, data, size):
    for offset in range(0, len(data), size):
        part = data[offset : offset + size]
        assert offset + len(part) == sink.append(CLAIM, offset, part).next_offset


@pytest.mark.parametrize("stored", [0, 1, 7, 8, 9, 500, 1023, 1024])
@pytest.mark.parametrize("size", [1, 8, 1000])
def test_what_is_stored_is_left_out(stored, size):
    """Whatever is stored already, and however it is cut, each byte is there once."""
    plane = Stored(WHOLE[:stored])
    sink = ResumedLog(plane, resumed=True)
    upload(sink, WHOLE, size)
    assert WHOLE == plane.data
    assert (stored, len(WHOLE)) == (sink.stored, sink.position(len(WHOLE)))


def test_what_is_new_comes_behind(stored=10):
    """Where nothing can be read again, what is said comes behind what is stored."""
    plane = Stored(WHOLE[:stored])
    sink = ResumedLog(plane, resumed=True)
    sink.continue_behind()
    upload(sink, b"the worker was restarted", 7)
    assert WHOLE[:stored] + b"the worker was restarted" == plane.data
    assert stored + 3 == sink.position(3)


def test_a_new_job_asks_for_nothing():
    """A log that nobody has begun is sent as it is, without a question."""
    plane = Stored()
    sink = ResumedLog(plane, resumed=False)
    assert LogAck(next_offset=3, stop="enough") == sink.append(CLAIM, 0, b"abc")
    assert 1 == plane.calls


def test_a_tap_is_turned_off():
    """Nothing passes a tap that was turned off."""
    passed = []
    tap = Tap(passed.append)
    tap(b"one")
    tap.turn_off()
    tap(b"two")
    assert [b"one"] == passed
