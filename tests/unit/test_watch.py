import itertools
import threading

from given import eventually
from launcher.cancel import CancelToken
from launcher.lease import Ended
from launcher.watch import Watch


FOR_EVER = 1e6


class Leaping:
    """A clock on which much time passes between two looks."""

    def __init__(self):
        self._hours = itertools.count(step=3600)
        self.looks = 0

    def __call__(self):
        self.looks += 1
        return float(next(self._hours))


def a_watch(cancel, **changes):
    settings = {
        "run_seconds": FOR_EVER,
        "silence_seconds": FOR_EVER,
        "log_limit": 1 << 30,
    }
    return Watch(cancel, **(settings | changes))


def never():
    raise AssertionError("nothing was left out")


def test_a_job_that_takes_too_long_is_ended():
    """The time for a run is over, however much it prints."""
    cancel = CancelToken()
    with a_watch(cancel, run_seconds=0.001).running():
        assert cancel.wait(10)
    assert Ended.TOO_LONG == cancel.reason


def test_a_silent_job_is_ended():
    """A job that prints nothing for too long is ended."""
    cancel = CancelToken()
    with a_watch(cancel, silence_seconds=0.001).running():
        assert cancel.wait(10)
    assert Ended.TOO_SILENT == cancel.reason


def test_a_job_that_ends_in_time_is_left_alone():
    """The watch ends with the job and leaves no thread behind."""
    cancel = CancelToken()
    with a_watch(cancel).running():
        pass
    assert not cancel.cancelled
    assert not [t for t in threading.enumerate() if t.name == "watch"]


def test_output_breaks_the_silence():
    """Each output gives the whole time again."""
    cancel, now = CancelToken(), [0.0]
    watch = a_watch(cancel, silence_seconds=10, clock=lambda: now[0])
    output = watch.listening(lambda data: None, never)
    now[0] = 9.0
    output(b"here I am")
    now[0] = 18.0
    with watch.running():
        pass
    assert not cancel.cancelled


def test_waiting_for_the_control_plane_is_not_silence():
    """A job whose output cannot be passed on is not blamed for it."""
    cancel, clock, stuck = CancelToken(), Leaping(), threading.Event()
    watch = a_watch(cancel, run_seconds=1e12, silence_seconds=0.001, clock=clock)
    output = watch.listening(lambda data: stuck.wait(10), never)
    writer = threading.Thread(target=output, args=(b"much",))
    writer.start()
    eventually(lambda: watch._passing_on)
    with watch.running():
        seen = clock.looks
        eventually(lambda: clock.looks > seen + 20)
        assert not cancel.cancelled
        stuck.set()
        writer.join(10)
        assert cancel.wait(10)
    assert Ended.TOO_SILENT == cancel.reason


def test_too_much_output_ends_a_job():
    """Exactly what is allowed is passed on; the rest is confessed and ends the job."""
    cancel, passed, cuts = CancelToken(), [], []
    watch = a_watch(cancel, log_limit=10)
    output = watch.listening(passed.append, lambda: cuts.append(1))
    output(b"0123456")
    output(b"789")
    assert not cancel.cancelled
    assert not cuts
    output(b"abc")
    output(b"def")
    assert b"0123456789" == b"".join(passed)
    assert cuts
    assert Ended.TOO_MUCH_OUTPUT == cancel.reason


def test_the_limit_does_not_depend_on_the_chunks():
    """A chunk that crosses the limit is passed on as far as it is allowed."""
    cancel, passed = CancelToken(), []
    output = a_watch(cancel, log_limit=10).listening(passed.append, lambda: None)
    output(b"0123456789abc")
    assert [b"0123456789"] == passed
    assert Ended.TOO_MUCH_OUTPUT == cancel.reason


def test_the_first_reason_counts():
    """A job that is being ended for another reason is not ended again."""
    cancel = CancelToken()
    cancel.cancel(Ended.STOP_REQUESTED)
    with a_watch(cancel, run_seconds=0, silence_seconds=0).running():
        pass
    assert Ended.STOP_REQUESTED == cancel.reason


def test_a_silent_job_shows_that_it_is_alive():
    """While a job prints nothing, somebody is told so again and again."""
    beats, enough = [], threading.Event()

    def alive():
        beats.append(1)
        if len(beats) == 3:
            enough.set()

    with a_watch(CancelToken(), alive=alive, heartbeat_seconds=0.01).running():
        assert enough.wait(10)


def test_a_job_that_prints_needs_no_sign_of_life():
    """Output counts as a sign of life; nobody is told while there is some."""
    clock = iter(range(10**6))
    cancel, beats = CancelToken(), []
    watch = a_watch(
        cancel,
        alive=lambda: beats.append(1),
        heartbeat_seconds=1e5,
        clock=lambda: float(next(clock)),
    )
    heard = watch.listening(lambda _: None, never)
    with watch.running():
        for _ in range(50):
            heard(b"x")
    assert [] == beats
