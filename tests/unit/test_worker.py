import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import launcher.worker
import pytest

from structlog.testing import capture_logs

from given import eventually
from launcher.errors import ControlPlaneUnavailable, CredentialsRefused, Cycled
from launcher.heartbeat import Heart
from launcher.ports import Ports
from launcher.settings import RunSettings, Settings
from launcher.threads import spawn
from launcher.wire.messages import Offer
from launcher.worker import Outage, Worker, escalation
from support.hearts import Watching
from support.journals import NoEngine, a_journal


OFFER = Offer(job="01JOB", run="01RUN")


class Source:
    """Offers what a script says, one entry a poll; a poll without one stays open."""

    def __init__(self, *script):
        self._script = iter(script)
        self._lock = threading.Lock()
        self.polls = []
        self.claims = []
        self.release_polls = threading.Event()
        self.release_claims = threading.Event()
        self.late = None

    def receive(self, slot, *, wait):
        with self._lock:
            self.polls.append(slot)
            step = next(self._script, "wait")
        if isinstance(step, Exception):
            raise step
        if step == "wait":
            assert self.release_polls.wait(30)
            return self.late
        return step

    def claim(self, slot, offer, identity):
        """A job is at work as long as its claim is."""
        self.claims.append((slot, offer))
        assert self.release_claims.wait(30)


@contextlib.contextmanager
def working(source, *, workers=1, **more):
    """A worker in a thread of its own; yields it, and how its run ended."""
    with a_journal() as journal:
        nobody = dict.fromkeys(Ports.__dataclass_fields__)
        given = {"source": source, "journal": journal, "engine": NoEngine()}
        ports = Ports(**(nobody | given))
        worker = Worker(ports, Settings(run=RunSettings(workers=workers)), **more)
        yield from _working(source, worker)


def _working(source, worker):
    endings = []

    def run():
        try:
            worker.run()
        except CredentialsRefused as exc:
            endings.append(exc)
        else:
            endings.append("drained")

    # It has the test's context, as a thread of the launcher's own has.
    thread = spawn("main", run)
    try:
        yield worker, endings
    finally:
        worker.drain.cancel("end of the test")
        source.release_polls.set()
        source.release_claims.set()
        thread.join(10)
        eventually(
            lambda: not [t for t in threading.enumerate() if t.name.startswith("slot-")]
        )


def test_every_slot_polls():
    """As many jobs as there are slots are asked for at the same time."""
    source = Source()
    with working(source, workers=3):
        eventually(lambda: {0, 1, 2} == set(source.polls))


def test_an_idle_worker_drains_at_once():
    """Slots that wait for an offer are not waited for."""
    source = Source()
    with working(source, workers=3) as (worker, endings):
        eventually(lambda: 3 == len(source.polls))
        worker.drain.cancel("SIGTERM")
        assert ["drained"] == eventually(lambda: endings)
        assert not source.release_polls.is_set()


def test_an_unfit_machine_takes_no_job():
    """While the machine is unfit nobody is asked for jobs; a drain still ends it."""
    source, looked = Source(OFFER), threading.Event()
    with working(source, unfit=lambda: looked.set() or True) as (worker, endings):
        assert looked.wait(10)
        worker.drain.cancel("SIGTERM")
        assert ["drained"] == eventually(lambda: endings)
    assert [] == source.polls


def test_a_machine_that_is_fit_again(monkeypatch):
    """Once there is room again, jobs are asked for."""
    monkeypatch.setattr(launcher.worker, "_PAUSE_WHILE_UNFIT_SECONDS", 0.01)
    source, readings = Source(), iter([True, True])
    with working(source, unfit=lambda: next(readings, False)):
        eventually(lambda: source.polls)


def test_a_busy_slot_is_waited_for():
    """A job that runs is finished before the worker ends."""
    source = Source(OFFER)
    with working(source, workers=2) as (worker, endings):
        eventually(lambda: source.claims)
        worker.drain.cancel("SIGTERM")
        eventually(lambda: worker.drain.cancelled)
        assert [] == endings
        source.release_claims.set()
        assert ["drained"] == eventually(lambda: endings)


def test_a_busy_slot_does_not_poll():
    """A slot asks for the next job when it has done the one before."""
    source = Source(OFFER, OFFER)
    with working(source):
        eventually(lambda: source.claims)
        assert [0] == source.polls
        source.release_claims.set()
        eventually(lambda: 3 == len(source.polls))
        assert 2 == len(source.claims)


def test_an_offer_that_comes_too_late_is_left_to_others():
    """A draining worker claims nothing."""
    source = Source()
    with working(source) as (worker, endings):
        eventually(lambda: source.polls)
        source.late = OFFER
        worker.drain.cancel("SIGTERM")
        eventually(lambda: endings)
    assert [] == source.claims


def test_a_held_worker_claims_nothing_until_it_is_released():
    """While the intake is held an offer is left to others; afterwards jobs are taken."""
    source = Source(OFFER)
    with working(source) as (worker, endings):
        eventually(lambda: source.claims)
        worker.intake.hold("operator", "for a while")
        source.release_claims.set()
        eventually(lambda: worker.board.now() == {0: None})
        assert [0] == source.polls
        assert [] == endings
        worker.intake.release("operator")
        eventually(lambda: 2 == len(source.polls))


def test_an_offer_that_meets_a_hold_is_left_to_others():
    """A poll that was open when the intake was held claims nothing."""
    source = Source()
    with working(source) as (worker, _):
        eventually(lambda: source.polls)
        waits, wait = [], worker.intake.wait
        worker.intake.wait = lambda stop: (waits.append(stop), wait(stop))
        source.late = OFFER
        worker.intake.hold("operator", "for a while")
        source.release_polls.set()
        eventually(lambda: waits)
        assert [] == source.claims
        source.late = None


def test_a_held_worker_can_be_drained():
    """A worker that is held ends like any other when it is told to."""
    with working(Source()) as (worker, endings):
        worker.intake.hold("operator", "for a while")
        worker.drain.cancel("SIGTERM")
        assert ["drained"] == eventually(lambda: endings)


REFUSED = CredentialsRefused("the token is not accepted")


@pytest.fixture(name="hasty")
def _hasty(monkeypatch):
    """Slots that hardly wait between two refusals."""
    monkeypatch.setattr(launcher.worker, "_REFUSED_PAUSE_SECONDS", 0.001)


def test_a_refused_token_ends_the_worker(hasty):
    """Who is never going to be answered does not go on asking."""
    source = Source(REFUSED, REFUSED)
    with working(source) as (_, endings):
        assert [REFUSED] == eventually(lambda: endings)
    assert 2 == len(source.polls)


def test_a_cycled_worker_ends_as_if_drained():
    """[capability 55] Nothing is wrong with it: whoever supervises it starts it anew."""
    source = Source(Cycled("the worker pool is cycled"))
    with working(source) as (worker, ended):
        assert eventually(lambda: worker.drain.cancelled)
        eventually(lambda: ended)
        assert 20 == worker.exit_code
    assert source.claims == []


@pytest.mark.parametrize(("reason", "code"), [("SIGTERM", 0), ("dismissed", 21)])
def test_why_a_worker_ended_is_in_its_exit_code(reason, code):
    """Whoever would start it again learns from it whether to; the first reason counts."""
    with working(Source()) as (worker, endings):
        worker.drain.cancel(reason)
        worker.drain.cancel("cycled")
        eventually(lambda: endings)
        assert code == worker.exit_code


def test_up_once_a_poll_was_answered(hasty):
    """The first poll asks for an answer at once; nobody is up before one came."""
    source = Source(ControlPlaneUnavailable("nobody answers"), None)
    waits, receive = [], source.receive
    source.receive = lambda slot, *, wait: (
        waits.append(wait) or receive(slot, wait=wait)
    )
    with working(source) as (worker, _):
        assert "waiting for the control plane" == worker.saying()
        eventually(lambda: worker.up.cancelled)
        eventually(lambda: 3 == len(waits))
        assert [0, 0] == waits[:2]
        assert waits[2] > 0
        assert "0 of 1 workers busy" == worker.saying()
        worker.intake.hold("operator", "drained over the admin socket")
        assert worker.saying().startswith("taking no jobs (drained over")


def test_a_slot_that_hangs_is_late(monkeypatch):
    """A poll that does not come back in its time is missed, a job's wait is not."""
    monkeypatch.setattr(launcher.worker, "_SLOT_SECONDS", 0.05)
    monkeypatch.setattr(launcher.worker, "_ASK_SECONDS", 0.0)
    heart = Heart()
    with heart.listening():
        busy, hanging = Source(OFFER), Source()
        with working(busy):
            eventually(lambda: busy.claims)
            time.sleep(0.1)
            assert "slot-0" not in heart.late()
        with working(hanging):
            eventually(lambda: "slot-0" in heart.late())


def test_a_job_that_hangs_is_late():
    """A slot that is stuck in the middle of a run is missed within minutes, not hours."""
    heart, source = Watching(), Source(OFFER)
    with heart.listening(), working(source):
        eventually(lambda: source.claims)
        assert "slot-0" not in heart.misses(minutes=6)
        assert "slot-0" in heart.misses(minutes=2)


def test_one_refusal_ends_nothing(hasty):
    """What a stranger on the way says once does not end a launcher."""
    source = Source(REFUSED, None, REFUSED, OFFER)
    with working(source) as (worker, endings):
        eventually(lambda: source.claims)
        assert not worker.drain.cancelled
        assert [] == endings


def test_refusals_end_no_worker_with_jobs(hasty):
    """While a job is at work refusals are waited out; after it they count."""
    source = Source(OFFER, *[REFUSED] * 10_000)
    with working(source, workers=2) as (worker, endings):
        eventually(lambda: source.claims and len(source.polls) > 10)
        assert not worker.drain.cancelled
        source.release_claims.set()
        assert [REFUSED] == eventually(lambda: endings)


def test_empty_answers_do_not_make_it_busy(monkeypatch):
    """A control plane that has nothing, and says so at once, is not asked without end."""
    monkeypatch.setattr(launcher.worker, "_SHORTEST_POLL_SECONDS", 3600)
    source = Source(None, None)
    with working(source) as (worker, endings):
        eventually(lambda: source.polls)
        worker.drain.cancel("SIGTERM")
        eventually(lambda: endings)
    assert 1 == len(source.polls)


def test_an_absent_control_plane_is_asked_again():
    """A slot survives that nobody answers, and says so once."""
    away = ControlPlaneUnavailable("away", details="connection refused")
    source = Source(away, away, OFFER)
    with capture_logs() as lines, working(source):
        eventually(lambda: source.claims)
    events = [line["event"] for line in lines]
    assert 1 == events.count("control_plane.unreachable")
    assert 1 == events.count("control_plane.back")


def test_a_slot_survives_its_own_bugs():
    """An exception that nobody expected costs a pause, not the slot."""
    source = Source(ZeroDivisionError("a bug"), OFFER)
    with capture_logs() as lines, working(source, pause_after_crash=0.001):
        eventually(lambda: source.claims)
    assert "slot.crashed" in [line["event"] for line in lines]


def test_a_draining_worker_does_not_sit_out_its_pauses():
    """A pause ends when the worker is told to drain."""
    source = Source(ZeroDivisionError("a bug"))
    with capture_logs() as lines:
        with working(source, pause_after_crash=3600) as (worker, endings):
            eventually(lambda: "slot.crashed" in [line["event"] for line in lines])
            worker.drain.cancel("SIGTERM")
            eventually(lambda: endings)


# --- outages


def complaints(*steps):
    """What an outage logs: (seconds, event) for each line."""
    now, found = [0.0], []
    outage = Outage(lambda: now[0])
    with capture_logs() as lines:
        for now[0], step in steps:
            before = len(lines)
            if step == "away":
                outage.goes_on(ControlPlaneUnavailable("away", details="why"))
            else:
                outage.over()
            found += [(now[0], line["event"].split(".")[1]) for line in lines[before:]]
    return found


def test_an_outage_is_reported_once_a_minute():
    """However often it is noticed, an outage is one line a minute, and one at its end."""
    steps = [(second, "away") for second in range(150)]
    assert [
        (0, "unreachable"),
        (60, "unreachable"),
        (120, "unreachable"),
        (150, "back"),
    ] == complaints(*steps, (150, "back"), (151, "back"))


def test_many_short_outages_are_not_many_lines():
    """A control plane that comes and goes is reported once a minute, too."""
    steps = [(s, "away" if s % 2 else "back") for s in range(120)]
    assert [
        (1, "unreachable"),
        (2, "back"),
        (61, "unreachable"),
        (62, "back"),
    ] == complaints(*steps)


def test_a_new_outage_is_reported_at_once():
    """An outage that begins after a quiet minute is reported when it begins."""
    assert [(0, "unreachable"), (5, "back"), (100, "unreachable")] == complaints(
        (0, "away"), (5, "back"), (99, "back"), (100, "away")
    )


def test_an_outage_says_what_is_wrong():
    """The operator reads how long it lasts, and the details."""
    times = itertools.count(step=90)
    outage = Outage(lambda: float(next(times)))
    with capture_logs() as lines:
        for _ in range(2):
            outage.goes_on(ControlPlaneUnavailable("public", details="details"))
    assert [0, 90] == [line["seconds"] for line in lines]
    assert {("public", "details")} == {
        (line["error"], line["details"]) for line in lines
    }


# --- signals


def test_signals_drain_then_abort_then_leave():
    """The first signal takes no new job, the second ends the running ones, the third all."""
    source, left = Source(), threading.Event()
    with working(source) as (worker, _):
        on_signal = escalation(worker, left.set)
        on_signal("SIGTERM")
        assert worker.drain.wait(10)
        assert not worker.abort.cancelled
        on_signal("SIGINT")
        assert worker.abort.wait(10)
        assert ("SIGTERM", "SIGINT") == (worker.drain.reason, worker.abort.reason)
        assert not left.is_set()
        on_signal("SIGTERM")
        assert left.wait(10)


def test_a_stuck_abort_does_not_keep_anybody():
    """The third signal leaves, also while the second one is still at work."""
    source, left, stuck = Source(), threading.Event(), threading.Event()
    with working(source) as (worker, _):
        with worker.abort.calling(lambda: stuck.wait(30)):
            on_signal = escalation(worker, left.set)
            for name in ("SIGTERM", "SIGTERM", "SIGTERM"):
                on_signal(name)
            assert left.wait(10)
            stuck.set()


def test_a_handler_waits_for_no_lock():
    """A signal that comes while the main thread holds every lock does no harm."""
    source, left = Source(), threading.Event()
    with working(source) as (worker, _):
        on_signal = escalation(worker, left.set)
        with worker.drain._lock, worker._changed, threading._active_limbo_lock:
            on_signal("SIGTERM")
        assert worker.drain.wait(10)


@pytest.mark.parametrize(("signals", "code"), [(1, 0), (3, 9)])
def test_real_signals(signals, code):
    """A process with a job at work drains after one signal and is gone after three."""
    program = """
        import os, signal, sys
        from launcher import telemetry
        from support.journals import NoEngine, a_journal
        from launcher.ports import Ports
        from launcher.settings import Settings
        from launcher.wire.messages import Offer
        from launcher.worker import Worker, escalation

        class Source:
            def receive(self, slot, *, wait):
                return Offer(job="01JOB", run="01RUN")
            def claim(self, slot, offer, identity):
                print("busy", flush=True)
                sys.stdin.readline()

        telemetry.configure()
        nobody = dict.fromkeys(Ports.__dataclass_fields__)
        journal = a_journal()
        given = {"source": Source(), "journal": journal.__enter__(), "engine": NoEngine()}
        worker = Worker(Ports(**(nobody | given)), Settings())
        on_signal = escalation(worker, lambda: os._exit(9))
        signal.signal(signal.SIGTERM, lambda number, _: on_signal(signal.Signals(number).name))
        worker.run()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert "busy\n" == eventually(process.stdout.readline)
            for _ in range(signals):
                os.kill(process.pid, signal.SIGTERM)
                eventually(lambda: "signal.received" in process.stderr.readline())
            if signals == 1:
                process.stdin.write("done\n")
                process.stdin.flush()
            assert code == process.wait(10)
        finally:
            process.kill()
