import contextlib
import os
import socket
import threading

import pytest

from structlog.testing import capture_logs

from given import eventually
from launcher.cancel import CancelToken
from launcher.heartbeat import (
    Heart,
    Nobody,
    beat,
    tended,
    waiting,
    watched,
    within,
)
from launcher.systemd import Systemd, supervisor
from launcher.threads import helper


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def heart(clock):
    heart = Heart(clock)
    with heart.listening():
        yield heart


# --- promises


def test_a_thread_is_late_after_its_time(heart, clock):
    """
    A promise that is not kept is known by the thread's name and the time since.
    """
    with watched("slot-0", 60):
        clock.now += 60
        assert {} == heart.late()
        clock.now += 5
        assert {"slot-0": 5} == heart.late()


def test_progress_begins_the_time_anew(heart, clock):
    """
    Who makes progress may take as long again.
    """
    with watched("slot-0", 60):
        clock.now += 50
        beat()
        clock.now += 50
        assert {} == heart.late()


def test_a_step_with_a_time_of_its_own(heart, clock):
    """
    A longer step is waited for, a shorter one is not, and afterwards the old time holds.
    """
    with watched("slot-0", 60):
        with within(3600):
            clock.now += 3000
            assert {} == heart.late()
            with within(10):
                clock.now += 11
                assert {"slot-0": 1} == heart.late()
            clock.now += 3000
            assert {} == heart.late()
        clock.now += 59
        assert {} == heart.late()
        clock.now += 2
        assert {"slot-0": 1} == heart.late()


def test_a_step_that_fails_is_over(heart, clock):
    """
    The old time holds again after an exception, too.
    """
    with watched("slot-0", 60):
        with contextlib.suppress(ValueError), within(3600):
            raise ValueError
        clock.now += 61
        assert {"slot-0": 1} == heart.late()


def test_who_waits_for_others_is_never_late(heart, clock):
    """
    Waiting for somebody who is watched himself may last for ever.
    """
    with watched("slot-0", 60), waiting():
        clock.now += 10**9
        assert {} == heart.late()


def test_who_has_ended_is_not_missed(heart, clock):
    """
    A thread that is done has nothing to promise.
    """
    with watched("slot-0", 60):
        pass
    clock.now += 100
    assert {} == heart.late()


def test_a_thread_with_two_promises(heart, clock):
    """
    While it keeps one of another name, the first one waits.
    """
    with watched("main", 60):
        with watched("job", 3600):
            clock.now += 3000
            assert {} == heart.late()
            clock.now += 1000
            assert {"job": 400} == heart.late()
        clock.now += 59
        assert {} == heart.late()
        clock.now += 2
        assert {"main": 1} == heart.late()


def test_a_child_does_not_keep_its_parents_promise(heart, clock):
    """
    A thread that was started by a watched one makes no progress for that one.
    """
    with watched("slot-0", 60):
        clock.now += 61
        with helper("child", beat, lambda: None):
            pass
        assert {"slot-0": 1} == heart.late()


def test_a_child_is_watched_by_the_same_heart(heart, clock):
    """
    Threads find the heart of whoever has started them.
    """
    inside, go_on = threading.Event(), threading.Event()

    def work():
        with watched("child", 10):
            inside.set()
            go_on.wait(30)

    with helper("child", work, go_on.set):
        assert inside.wait(30)
        clock.now += 11
        assert {"child": 1} == heart.late()


def test_nobody_is_watched_without_a_heart():
    """
    What is said to nobody is harmless.
    """
    with watched("slot-0", 1), within(1), waiting():
        beat()


def test_where_a_late_thread_is(heart):
    """
    Its calls are named by file, line and function; the innermost comes last.
    """
    with watched("slot-0", 60):
        where = heart.where("slot-0")

    assert "test_heartbeat.py" in "".join(where)
    assert where[-1].endswith(" where")
    assert [] == heart.where("nobody")


# --- what systemd hears


class Listener:
    """systemd's end of the socket."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(30)

    def hears(self):
        return self.socket.recv(4096).decode()

    def hears_until(self, last):
        said = []
        while last not in said:
            said.append(self.hears())
        return said


@pytest.fixture(params=["path", "abstract"])
def listening(request, tmp_path):
    """A socket of either kind; yields its name for $NOTIFY_SOCKET, and who listens."""
    name = f"spacelift-test-{os.getpid()}-{id(request)}"
    path = str(tmp_path / "notify")
    address, told = (
        (path, path) if request.param == "path" else (f"\0{name}", f"@{name}")
    )
    listener = Listener(address)
    yield told, listener
    listener.socket.close()


def test_sentences_of_the_protocol(listening):
    """
    Each thing is told in the words of sd_notify, by either kind of socket.
    """
    address, listener = listening
    told = supervisor({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000"})
    assert 60 == told.patience

    told.ready()
    told.alive()
    told.status("two\nlines " + "x" * 300)
    told.stopping()
    told.extend(1.5)

    assert "READY=1" == listener.hears()
    assert "WATCHDOG=1" == listener.hears()
    assert ("STATUS=two lines " + "x" * 300)[:207] == listener.hears()
    assert "STOPPING=1" == listener.hears()
    assert "EXTEND_TIMEOUT_USEC=1500000" == listener.hears()


def test_a_status_is_told_once(listening):
    """
    The same again is no news.
    """
    address, listener = listening
    told = Systemd(address, patience=None)
    for sentence in ("idle", "idle", "busy"):
        told.status(sentence)

    assert ["STATUS=idle", "STATUS=busy"] == [listener.hears(), listener.hears()]


def test_without_a_watchdog_nobody_is_alive(listening):
    """
    systemd is not told what it did not ask for; nor is the watchdog of another process.
    """
    address, listener = listening
    for more in (
        {},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
    ):
        told = supervisor({"NOTIFY_SOCKET": address, **more})
        assert told.patience is None
        told.alive()
        told.ready()
        assert "READY=1" == listener.hears()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_without_systemd_nobody_is_told(address):
    """
    A process that was started by hand has no supervisor.
    """
    told = supervisor({"NOTIFY_SOCKET": address})

    assert isinstance(told, Nobody)
    assert told.patience is None


def test_a_supervisor_that_has_gone_costs_nothing(tmp_path):
    """
    What nobody hears is logged once, and is no error.
    """
    told = Systemd(str(tmp_path / "gone"), patience=1)
    with capture_logs() as logs:
        told.ready()
        told.alive()

    assert ["supervisor.unheard"] == [entry["event"] for entry in logs]


# --- tending


@contextlib.contextmanager
def tending(listening, heart, patience=0.03):
    address, listener = listening
    up, drain = CancelToken(), CancelToken()
    told = Systemd(address, patience=patience)
    with tended(told, heart, up=up, drain=drain, say=lambda: "idle"):
        yield listener, up, drain


def test_ready_when_it_is_up(listening, heart):
    """
    More time is asked for until the process is up, and no more then.
    """
    with tending(listening, heart) as (listener, up, _):
        before = listener.hears_until("EXTEND_TIMEOUT_USEC=40000")
        assert "READY=1" not in before
        up.cancel("up")
        listener.hears_until("READY=1")
        listener.hears_until("WATCHDOG=1")
        listener.hears_until("WATCHDOG=1")
        assert "WATCHDOG=1" == listener.hears()


def test_more_time_is_asked_for_while_draining(listening, heart):
    """
    The end is announced, and takes as long as there is progress.
    """
    with tending(listening, heart) as (listener, up, drain):
        up.cancel("up")
        listener.hears_until("READY=1")
        drain.cancel("SIGTERM")
        listener.hears_until("STOPPING=1")
        listener.hears_until("EXTEND_TIMEOUT_USEC=40000")
        listener.hears_until("WATCHDOG=1")


def test_one_late_thread_silences_all(listening, heart, clock):
    """
    systemd hears nothing but which one it is; the log says where it is, once.
    """
    with (
        capture_logs() as logs,
        watched("slot-3", 60),
        tending(listening, heart) as (listener, up, _),
    ):
        up.cancel("up")
        listener.hears_until("WATCHDOG=1")
        clock.now += 61
        listener.hears_until("STATUS=hanging: slot-3")
        listener.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.hears()
        listener.socket.settimeout(30)

        beat()

        assert "WATCHDOG=1" == listener.hears()
    late = [entry for entry in logs if entry["event"] == "thread.late"]
    assert [("slot-3", 1)] == [(entry["thread"], entry["seconds"]) for entry in late]
    assert any("test_heartbeat.py" in line for line in late[0]["where"])


def test_without_a_supervisor_a_late_thread_is_logged(heart, clock):
    """
    Whoever started the launcher by hand reads it in the log.
    """
    up, drain = CancelToken(), CancelToken()
    with capture_logs() as logs, watched("slot-0", 60):
        clock.now += 61
        with tended(Nobody(), heart, up=up, drain=drain, say=lambda: ""):
            eventually(lambda: "thread.late" in [each["event"] for each in logs])
