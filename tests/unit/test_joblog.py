import errno
import io
import json
import os
import re
import threading

import pytest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from given import a_claim, a_job, eventually
from launcher.cancel import CancelToken
from launcher.errors import ControlPlaneRefused, ControlPlaneUnavailable, LeaseLost
from launcher.heartbeat import watching
from launcher.lease import Ended, Lease
from launcher.output.echo import Echo
from launcher.output.joblog import JobLog, LogOptions
from launcher.output.spool import Spools
from launcher.output.stream import COMMAND, MOST_ADDED
from launcher.resuming import ResumedLog
from launcher.retry import Pauses
from launcher.sight import Facts, Sight, Vital
from launcher.threads import spawn
from launcher.wire.messages import MAX_PACKED_LOG, LogAck
from support.hearts import Watching


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


@pytest.fixture(autouse=True)
def folder(tmp_path):
    """Where spools are; one test at a time."""
    PLACE[:] = [tmp_path / "spools"]


PLACE = []


def spools(*, per_job=1 << 30, total=1 << 30):
    return Spools(PLACE[0], per_job=per_job, total=total)


def opened(sink, lease=None, secrets=(), *, spool=None, **options):
    return JobLog(
        a_claim(),
        sink,
        lease or Lease(CancelToken()),
        secrets,
        spool or spools().new("01JOB"),
        options=LogOptions(**options),
    )


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
    with opened(sink, secrets=[b"hunter2", b"unte"]) as log:
        for piece in (b"my hun", b"ter2 is h", b"unter2", b" hunte"):
            log.write(piece)
        log.say("the end")
    assert b"my ***** is ***** h*****\nthe end\n" == bytes(sink.stored)


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


def test_a_slow_sink_does_not_slow_the_writer():
    """What nobody takes waits on disk, and the writer never does."""
    sink = Sink()
    sink.open.clear()
    piece = b"x" * (MAX_PACKED_LOG // 2)
    with opened(sink) as log:
        for _ in range(40):
            log.write(piece)
        assert 40 * len(piece) == log.length
        assert not sink.stored
        sink.open.set()
    assert 40 * len(piece) == len(sink.stored)
    assert max(size for _, size in sink.calls) <= MAX_PACKED_LOG
    assert log.complete


def test_a_full_spool_makes_the_writer_wait():
    """Disk is bounded, and what does not fit is waited for and never dropped."""
    sink = Sink()
    sink.open.clear()
    limit, piece = 4 * MAX_PACKED_LOG, b"x" * (MAX_PACKED_LOG // 2)
    room = spools(per_job=limit)
    with opened(sink, spool=room.new("01JOB")) as log:
        writer = threading.Thread(target=lambda: [log.write(piece) for _ in range(40)])
        writer.start()
        eventually(lambda: log.length >= limit)
        assert log.length <= limit
        assert writer.is_alive()
        log.interject("left out")
        sink.open.set()
        writer.join(10)
    assert piece * 40 == bytes(sink.stored)
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
            target=lambda: [log.write(b"x" * MAX_PACKED_LOG) for _ in range(9)]
        )
        writer.start()
        eventually(lambda: log.length >= 4 * MAX_PACKED_LOG)
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
        log.write(b"bad" * 5 * MAX_PACKED_LOG)
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


def test_nothing_of_a_spool_is_left():
    """After the end of a job, nothing of its log is on the launcher's disk."""
    with opened(Sink()) as log:
        log.write(b"x" * 100)
        (segment,) = (PLACE[0] / "01JOB").iterdir()
        assert 0o600 == segment.stat().st_mode & 0o777
        assert 0o700 == segment.parent.stat().st_mode & 0o777
    assert [] == spools().remaining()


def test_the_spool_holds_masked_bytes_only():
    """No secret is written to the launcher's disk."""
    sink = Sink()
    sink.open.clear()
    with opened(sink, secrets=[b"hunter2"]) as log:
        log.write(b"it is hunter2, and hun")
        (segment,) = (PLACE[0] / "01JOB").iterdir()
        assert b"it is *****, and " == segment.read_bytes()
        sink.open.set()


def test_an_end_that_takes_too_long_is_marked_with_what_is_missing():
    """Past the operator's limit a job ends, and says how many bytes nobody got."""
    with opened(Sink("half", *[AWAY] * 99), flush_seconds=0.3) as log:
        log.write(b"0123456789")
    assert not log.complete
    assert 5 == log.missing
    assert 5 == log.length


def test_a_line_in_the_middle_gives_no_held_back_byte_away():
    """A sign of life comes before what may become a secret, and does not end it."""
    sink = Sink()
    with opened(sink, secrets=[b"secret"]) as log:
        log.write(b"the sec")
        log.interject("Still running...")
        log.write(b"ret")
    assert b"the \nStill running...\n*****" == bytes(sink.stored)


def test_timestamps_begin_every_line():
    """With the label, each line begins with a time of one length, also ours."""
    sink = Sink()
    with opened(sink, secrets=[b"secret"], timestamps=True) as log:
        log.write(b"one\ntw")
        log.write(b"o\n\nsecret")
        log.say("end")
    stamp = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "
    pattern = b"\n".join(
        stamp + line for line in (b"one", b"two", b"", rb"\*{5}", b"end")
    )
    assert re.fullmatch(pattern + b"\n", bytes(sink.stored))


def test_masked_output_is_echoed_line_by_line():
    """Who asks for it gets the masked lines, with run and stack, as JSON."""
    stream = io.StringIO()
    with opened(Sink(), secrets=[b"secret"], echo=Echo(a_job(), stream)) as log:
        log.write(b"one sec")
        log.write(b"ret\r\nlast \xff")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert ["one *****", "last \ufffd"] == [line["msg"] for line in lines]
    assert {"caller", "level", "msg", "run_ulid", "stack_id", "ts"} == lines[0].keys()
    assert ("01RUN", "testing-spacelift") == (
        lines[0]["run_ulid"],
        lines[0]["stack_id"],
    )


def test_an_echo_that_nobody_reads_fails_no_job():
    """A closed standard output costs the echo and nothing else."""
    stream = io.StringIO()
    stream.close()
    sink = Sink()
    with opened(sink, echo=Echo(a_job(), stream)) as log:
        log.write(b"one\n")
    assert b"one\n" == bytes(sink.stored)


def test_too_many_masks_end_the_job():
    """A job that adds too many masks is cancelled for that, and shows nothing more."""
    lease, sink = Lease(CancelToken()), Sink()
    with opened(sink, lease) as log:
        for number in range(MOST_ADDED + 1):
            log.write(COMMAND + b" value-%d\n" % number)
        log.write(b"value-1001\n")
    assert Ended.TOO_MANY_MASKS == lease.cancel.reason
    assert not log.complete
    assert b"value" not in bytes(sink.stored).replace(b"A value of", b"")


RAW = b"".join(
    b"line %d hunter2 \xc3" % number
    + (b"\n" if number % 3 else b"\n::add-mask added-%d\n" % number)
    + b"added-%d" % (number - number % 3)
    for number in range(60)
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dies=st.integers(0, len(RAW)),
    stored=st.integers(0, len(RAW)),
    size=st.integers(1, 400),
)
def test_who_goes_on_after_a_crash_loses_and_repeats_nothing(dies, stored, size):
    """Whatever an earlier life has spooled and stored, every byte is stored once."""
    whole = Sink()
    with opened(whole, secrets=[b"hunter2"]) as log:
        log.write(RAW)
    dead = JobLog(
        a_claim(), Sink(), Lease(CancelToken()), [b"hunter2"], spools().new("01JOB")
    )
    dead.write(RAW[:dies])  # never entered: nothing is uploaded, nor removed
    sink = Sink()
    sink.stored += whole.stored[: min(stored, dead.length)]
    resumed = ResumedLog(sink, resumed=True)
    with opened(resumed, secrets=[b"hunter2"], spool=spools().new("01JOB")) as log:
        for start in range(0, len(RAW), size):
            log.write(RAW[start : start + size])
    assert bytes(whole.stored) == bytes(sink.stored)
    assert log.complete
    assert len(whole.stored) == log.length


def test_segments_go_as_soon_as_they_are_stored(monkeypatch):
    """On disk is little more than what nobody else has, however long a log is."""
    monkeypatch.setattr("launcher.output.spool.SEGMENT", 100)
    spool = spools().new("01JOB")
    for offset in range(0, 1000, 50):
        spool.append(b"%050d" % offset, CancelToken())
    assert b"%050d" % 950 == spool.read(950, 99)
    assert 10 == len(list((PLACE[0] / "01JOB").iterdir()))
    spool.forget(870)
    assert 2 == len(list((PLACE[0] / "01JOB").iterdir()))
    assert b"%050d" % 900 == spool.read(900, 50)


def test_everybody_gets_some_room():
    """A job that holds nothing may spool even when others have filled the disk's share."""
    room = spools(total=10)
    room.new("greedy").append(b"0123456789abc", CancelToken())
    modest = room.new("modest")
    assert modest.append(b"x", CancelToken())
    assert modest.full


def test_a_full_disk_is_waited_for(monkeypatch):
    """While the launcher's disk is full, nothing is lost, and it goes on by itself."""
    monkeypatch.setattr("launcher.output.spool._PAUSE_SECONDS", 0.01)
    real, failures = os.write, [errno.ENOSPC] * 3

    def write(descriptor, data):
        if failures:
            raise OSError(failures.pop(), "No space left on device")
        return real(descriptor, data[:7])

    monkeypatch.setattr("launcher.output.spool.os.write", write)
    sink = Sink()
    with opened(sink) as log:
        log.write(b"0123456789" * 10)
    assert b"0123456789" * 10 == bytes(sink.stored)
    assert [] == failures
    assert log.complete


def test_an_uploader_that_is_stuck_is_missed():
    """Whoever delivers and does not come back is late, and not who waits for it."""
    sink, heart = Sink(), Watching()
    sink.open.clear()
    with heart.listening(), opened(sink) as log:

        def deliver():
            log.write(b"x")
            log.finish_section()

        job = spawn("job", watching("job", deliver))
        eventually(lambda: sink.calls and log._flushing)
        assert {"log-01JOB"} == heart.misses()
        sink.open.set()
        job.join(10)
        assert set() == heart.misses()


def test_an_outage_is_waited_for(monkeypatch):
    """However long the control plane is away, nobody is missed for it."""
    monkeypatch.setattr("launcher.lease.Pauses", lambda: Pauses(0.001, 0.001))
    monkeypatch.setattr("launcher.output.spool._LOOK_SECONDS", 0.001)
    sink, heart = Sink(*[AWAY] * 1_000_000), Watching()
    with heart.listening(), opened(sink, spool=spools(per_job=10).new("01JOB")) as log:
        job = spawn("job", watching("job", lambda: log.write(b"x" * 10_000_000)))
        # It waits for room.
        eventually(lambda: heart.beats["job"] > 50)
        assert heart.endures("log-01JOB")
        assert heart.endures("job")
        sink.script.clear()
        job.join(20)
    assert 10_000_000 == len(sink.stored)


def test_an_uploader_that_breaks_keeps_nobody_waiting(lines):
    """When the spool cannot be read any more, the log is given up, and says so."""

    class Broken:
        def __init__(self, spool):
            self._spool = spool

        def __getattr__(self, name):
            return getattr(self._spool, name)

        def read(self, offset, size):
            raise OSError(errno.EIO, "Input/output error")

    with opened(Sink(), spool=Broken(spools().new("01JOB"))) as log:
        log.write(b"x")
        assert 0 == log.finish_section()
    assert not log.complete
    assert "log.given_up" in [line["event"] for line in lines]


def test_what_nobody_needs_can_be_discarded():
    """What a crash has left of a job is found by the job's id, and can be removed."""
    spools().new("01JOB").append(b"x", CancelToken())
    assert ["01JOB"] == spools().remaining()
    spools().discard("01JOB")
    spools().discard("01JOB")
    assert [] == spools().remaining()


def test_too_many_masks_end_a_job_that_lacks_bytes_already():
    """A log that is incomplete for another reason is no way around the limit."""
    lease = Lease(CancelToken())
    with opened(Sink(), lease) as log:
        log.lacks_bytes()
        log.write(COMMAND + b" " + b"x" * 70_000 + b"\n")
    assert Ended.TOO_MANY_MASKS == lease.cancel.reason


def test_what_waits_can_be_asked_for():
    """While nobody takes the log, it is known how much waits, and for how long; later not."""
    sink, watching = Sink(), Sight()
    sink.open.clear()
    job = a_job()
    with watching.job(Facts.of(job)):
        with opened(sink) as log:
            assert [0.0] == watching.vitals(Vital.LOG_AGE)
            log.write(b"x" * 1000)
            threading.Event().wait(0.2)
            log.write(b"y" * 10)
            assert [1010.0] == watching.vitals(Vital.LOG_BACKLOG)
            (age,) = watching.vitals(Vital.LOG_AGE)
            assert age >= 0.2
            sink.open.set()
            eventually(lambda: [0.0] == watching.vitals(Vital.LOG_BACKLOG))
            assert [0.0] == watching.vitals(Vital.LOG_AGE)
            log.write(b"z")
            assert watching.vitals(Vital.LOG_AGE)[0] < age
    assert [] == watching.vitals(Vital.LOG_BACKLOG)
    assert [] == watching.vitals(Vital.LOG_AGE)
