import threading

import pytest

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from given import a_claim, eventually
from launcher.cancel import CancelToken
from launcher.errors import ControlPlaneRefused, ControlPlaneUnavailable, LeaseLost
from launcher.lease import Ended, Lease
from launcher.output.joblog import JobLog
from launcher.wire.messages import MAX_LOG_CHUNK, LogAck


@pytest.fixture(autouse=True)
def lines():
    with capture_logs() as lines:
        yield lines


class Sink:
    """Stores by offset as the protocol says; fails by a script, one entry a call."""

    def __init__(self, *script):
        self.script = list(script)
        self.stored = bytearray()
        self.calls = []
        self.open = threading.Event()
        self.open.set()

    def append(self, claim, offset, data):
        self.calls.append((offset, len(data)))
        assert self.open.wait(10)
        step = self.script.pop(0) if self.script else "store"
        if isinstance(step, Exception):
            raise step
        if step == "half":
            data = data[: (len(data) + 1) // 2]
        assert offset <= len(self.stored), "a gap"
        self.stored[offset:] = self.stored[offset : offset + len(data)] or b""
        self.stored[offset : offset + len(data)] = data
        if step == "answer lost":
            raise ControlPlaneUnavailable("the answer got lost")
        if isinstance(step, LogAck):
            return step
        return LogAck(next_offset=len(self.stored))


def opened(sink, lease=None, secrets=()):
    return JobLog(a_claim(), sink, lease or Lease(CancelToken()), secrets)


AWAY = ControlPlaneUnavailable("away")


def test_every_byte_arrives_once_and_in_order():
    """Leaving the log means that all of it is stored."""
    sink, pieces = Sink(), [bytes([n % 256]) * (n * 37) for n in range(200)]
    with opened(sink) as log:
        for piece in pieces:
            log.write(piece)
    assert b"".join(pieces) == bytes(sink.stored)
    assert log.complete
    assert log.length == len(sink.stored)


def test_secrets_do_not_reach_the_sink():
    """What leaves the process is masked, also where a secret is cut in two."""
    sink = Sink()
    with opened(sink, secrets=[b"hunter2", b"unt"]) as log:
        for piece in (b"my hun", b"ter2 is h", b"unter2", b" hunte"):
            log.write(piece)
        log.say("the end")
    assert b"my ***** is ***** h*****e\nthe end\n" == bytes(sink.stored)


@settings(max_examples=25)
@given(
    st.lists(st.binary(min_size=1, max_size=50), max_size=12),
    st.lists(st.sampled_from(["store", "half"]), max_size=12),
    st.lists(st.integers(0, 11), max_size=4),
)
def test_parts_that_are_taken_are_not_sent_again(pieces, script, sections):
    """A sink may take less than it is given, and sections may end anywhere."""
    sink = Sink(*script)
    with opened(sink) as log:
        for number, piece in enumerate(pieces):
            log.write(piece)
            if number in sections:
                assert log.finish_section() == len(sink.stored) == log.length
    assert b"".join(pieces) == bytes(sink.stored)
    assert log.complete


def test_an_outage_neither_loses_nor_repeats_a_byte():
    """Failing calls and lost answers are repeated until the very bytes are stored."""
    sink = Sink(AWAY, "answer lost", "half", "answer lost")
    with opened(sink) as log:
        log.write(b"first ")
        log.finish_section()
        log.write(b"second ")
        log.write(b"third")
    assert b"first second third" == bytes(sink.stored)
    assert log.complete
    assert log.length == len(sink.stored)


def test_a_section_ends_when_it_is_stored():
    """The length of a section counts what was held back for masking, too."""
    sink = Sink()
    with opened(sink, secrets=[b"secret"]) as log:
        log.write(b"init sec")
        assert 8 == log.finish_section()
        assert b"init sec" == bytes(sink.stored)
        log.write(b"ret plan")
    assert b"init secret plan" == bytes(sink.stored)


def test_what_the_sink_says_about_stopping_is_heard():
    """A stop request that comes with an upload's answer reaches the job."""
    lease = Lease(CancelToken())
    sink = Sink(LogAck(next_offset=3, stop="stopped by a user"))
    with opened(sink, lease) as log:
        log.write(b"abc")
        assert lease.cancel.wait(10)
    assert Ended.STOP_REQUESTED == lease.cancel.reason
    assert log.complete


def test_a_slow_sink_makes_the_writer_wait():
    """Memory is bounded, and what does not fit is waited for and never dropped."""
    sink = Sink()
    sink.open.clear()
    written = []
    piece = b"x" * (MAX_LOG_CHUNK // 2)
    with opened(sink) as log:

        def write():
            for _ in range(40):
                log.write(piece)
                written.append(len(piece))

        writer = threading.Thread(target=write)
        writer.start()
        eventually(lambda: log.length >= 4 * MAX_LOG_CHUNK)
        assert log.length < 5 * MAX_LOG_CHUNK
        assert writer.is_alive()
        sink.open.set()
        writer.join(10)
    assert 40 * len(piece) == sum(written) == len(sink.stored)
    assert max(size for _, size in sink.calls) <= MAX_LOG_CHUNK
    assert log.complete


def test_small_writes_travel_together():
    """Many small writes take few uploads."""
    sink = Sink()
    sink.open.clear()
    with opened(sink) as log:
        log.write(b"first")
        eventually(lambda: sink.calls)
        for _ in range(1000):
            log.write(b".")
        sink.open.set()
    assert 1005 == len(sink.stored)
    assert len(sink.calls) <= 3


def test_a_stale_token_gives_the_log_up():
    """Nothing is uploaded after the lease is lost, and nobody waits for it."""
    lease = Lease(CancelToken())
    sink = Sink("store", LeaseLost("stale"))
    with opened(sink, lease) as log:
        log.write(b"stored")
        assert 6 == log.finish_section()
        log.write(b"gone")
        assert lease.lost.wait(10)
        log.write(b"gone, too")
        assert 6 == log.finish_section()
    assert b"stored" == bytes(sink.stored)
    assert not log.complete
    assert 2 == len(sink.calls)


def test_a_lease_lost_elsewhere_frees_a_writer_that_waits():
    """A blocked writer goes on as soon as nothing can be stored any more."""
    lease, sink = Lease(CancelToken()), Sink(AWAY)
    sink.open.clear()
    with opened(sink, lease) as log:
        writer = threading.Thread(
            target=lambda: [log.write(b"x" * MAX_LOG_CHUNK) for _ in range(9)]
        )
        writer.start()
        eventually(lambda: log.length >= 4 * MAX_LOG_CHUNK)
        lease.lose()
        sink.open.set()
        writer.join(10)
        assert not writer.is_alive()
    assert not log.complete


@pytest.mark.parametrize(
    "failure", [ControlPlaneRefused("too large"), ZeroDivisionError("a bug")]
)
def test_a_refused_log_is_given_up(failure):
    """What is refused for good is not sent for ever, nor does anybody wait for it."""
    sink = Sink("store", failure)
    with opened(sink) as log:
        log.write(b"good")
        assert 4 == log.finish_section()
        log.write(b"bad" * 5 * MAX_LOG_CHUNK)
        log.write(b"worse")
        assert 4 == log.finish_section()
    assert not log.complete
    assert b"good" == bytes(sink.stored)


def test_the_length_of_a_given_up_log_is_what_was_stored():
    """The end of a job is announced with a length that the control plane has."""
    sink = Sink("half", ControlPlaneRefused("no"))
    with opened(sink) as log:
        log.write(b"0123456789")
        log.finish_section()
    assert 5 == log.length == len(sink.stored)
    assert not log.complete


@pytest.mark.parametrize("wanted", [0, 2, 3, 99])
def test_an_answer_that_cannot_be_is_not_followed(wanted):
    """An offset that goes back, stands still or leaps ends the log, marked as such."""
    sink = Sink("store", LogAck(next_offset=wanted))
    with opened(sink) as log:
        log.write(b"abc")
        log.finish_section()
        log.write(b"def")
        log.finish_section()
        log.write(b"ghi")
    assert not log.complete
    assert 3 == log.length
    assert 2 == len(sink.calls)


def test_an_aborted_worker_does_not_wait_for_the_sink():
    """When the operator wants the process gone, an absent control plane is not insisted on."""
    abort = CancelToken()
    lease, sink = Lease(abort), Sink(*[AWAY] * 50)
    with lease.until_aborted():
        with opened(sink, lease) as log:
            log.write(b"lost")
            eventually(lambda: sink.calls)
            abort.cancel("second signal")
        assert not log.complete


def test_secrets_that_come_later_are_masked():
    """What only a later phase may know is masked from there on, like the rest."""
    sink = Sink()
    with opened(sink, secrets=[b"early"]) as log:
        log.write(b"early late ")
        log.hide([b"late"])
        log.write(b"early late")
    assert b"***** late ***** *****" == bytes(sink.stored)


def test_missing_bytes_are_confessed():
    """A log that lacks bytes of the container is complete no more."""
    with opened(Sink()) as log:
        log.lacks_bytes()
    assert not log.complete


def test_the_launchers_own_lines_stand_alone():
    """What the launcher says begins a line, also after output that did not end its own."""
    sink = Sink()
    with opened(sink) as log:
        log.say("first")
        log.write(b"a tool")
        log.write(b"")
        log.say("second")
        log.write(b"a line\n")
        log.say("third")
    assert b"first\na tool\nsecond\na line\nthird\n" == bytes(sink.stored)
