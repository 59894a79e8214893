"""Threads beside the runs: one that hangs is missed, one that fails goes on."""

import contextlib
import threading

from types import SimpleNamespace

import pytest

from structlog.testing import capture_logs

from given import a_claim, a_job, eventually
from launcher import bootstrap, spot
from launcher.activity import Intake
from launcher.adapters.controlplane import renewal
from launcher.adapters.engines.ladder import descending
from launcher.cancel import CancelToken
from launcher.controlplane.look_ups import AT_ONCE, LookUps
from launcher.controlplane.webhooks import Webhooks
from launcher.model import PhaseScript
from launcher.reaper import reaping
from launcher.spot import SpotWatcher
from launcher.tokens import FreshTokens
from launcher.wire.jobs import Tokens
from support.hearts import Watching


class Script:
    """Fails twice with what nobody expects, and hangs the third time."""

    def __init__(self):
        self.calls = 0
        self.stuck, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *_, **__):
        self.calls += 1
        if self.calls < 3:
            raise RuntimeError("a bug")
        self.stuck.set()
        assert self.go_on.wait(30)
        return False


@contextlib.contextmanager
def reaper(script, _):
    with reaping(SimpleNamespace(reap=script), every=0.001):
        yield


@contextlib.contextmanager
def images(script, monkeypatch):
    monkeypatch.setattr(bootstrap, "_COLLECT_SECONDS", 0.001)
    engine = SimpleNamespace(collect_images=script)
    with bootstrap._collecting_images(engine, SimpleNamespace(used=None)):
        yield


@contextlib.contextmanager
def spot_notices(script, monkeypatch):
    monkeypatch.setattr(spot, "_AFTER_FAILURE_SECONDS", 0.001)
    monkeypatch.setattr(bootstrap, "SpotWatcher", lambda *_: watcher)
    watcher = SpotWatcher(SimpleNamespace(notices=script), Intake(), CancelToken())
    host = SimpleNamespace(spot=None, metadata_service=None)
    with bootstrap._watching_spot(host, SimpleNamespace(intake=None, abort=None)):
        try:
            yield
        finally:
            # What it is then told makes no sense, which is one more failure.
            script.go_on.set()


@contextlib.contextmanager
def certificate(script, monkeypatch):
    monkeypatch.setattr(renewal, "_LOOK_SECONDS", 0.001)
    beside = renewal.Renewal(None, None)
    monkeypatch.setattr(beside, "look", script)
    with bootstrap._renewing(beside):
        yield


@contextlib.contextmanager
def webhooks(script, monkeypatch):
    monkeypatch.setattr("launcher.controlplane.webhooks.LOOK_SECONDS", 0.001)
    hooks = Webhooks(SimpleNamespace(read=script), None)
    hooks.start()
    try:
        yield
    finally:
        script.go_on.set()
        hooks.close()


@contextlib.contextmanager
def look_up(script, _):
    runs = LookUps()
    runs.start(script)
    runs.want_all([("01", "a"), ("02", "b"), ("03", "c")])
    try:
        yield
    finally:
        script.go_on.set()
        runs.close()


@pytest.mark.parametrize(
    ("begin", "name"),
    [
        (reaper, "reaper"),
        (images, "images"),
        (spot_notices, "spot"),
        (certificate, "certificate"),
        (webhooks, "webhooks"),
        (look_up, "look-up-"),
    ],
    ids=["reaper", "images", "spot", "certificate", "webhooks", "look-ups"],
)
def test_a_thread_beside_the_runs(begin, name, monkeypatch):
    """It survives bugs, and is missed within minutes when it hangs."""
    heart, script = Watching(), Script()
    with capture_logs() as logs, heart.listening(), begin(script, monkeypatch):
        assert script.stuck.wait(30)
        assert [name] == [late.rstrip("0123") for late in heart.misses()]
        script.go_on.set()
        eventually(lambda: {} == heart.late())
    assert 2 == sum("crashed" in e["event"] or "not_" in e["event"] for e in logs[:2])


def test_threads_that_have_nothing_to_do():
    """Who waits for work may wait for ever."""
    heart, runs = Watching(), LookUps()
    with heart.listening():
        runs.start(lambda *_: None)
        eventually(lambda: all(heart.beats[f"look-up-{n}"] > 1 for n in range(AT_ONCE)))
        assert set() == heart.misses(minutes=600)
        runs.close()


def test_a_thread_between_two_looks():
    """A pause is no hanging, however long it was chosen."""
    heart = Watching()
    with heart.listening(), reaping(every=3600):
        eventually(lambda: heart.beats["reaper"] > 1)
        assert set() == heart.misses(minutes=60)
        assert {"reaper"} == heart.misses(minutes=8)


def script_of(grace):
    return PhaseScript(name="apply", text="", grace_seconds=grace)


def test_a_ladder_that_hangs_is_missed():
    """Who should end a phase and does not come back is late; who only waits is not."""
    heart, cancel, begun = Watching(), CancelToken(), CancelToken()
    begun.cancel("begun")
    stuck = Script()
    stuck.calls = 2
    with (
        heart.listening(),
        descending(script_of(60), cancel, begun, stuck, give_up=lambda: None),
    ):
        eventually(lambda: heart.beats["ladder-apply"] > 1)
        assert set() == heart.misses(minutes=600)
        cancel.cancel("stop")
        assert stuck.stuck.wait(30)
        assert {"ladder-apply"} == heart.misses()
        stuck.go_on.set()


def test_a_long_grace_is_waited_for():
    """A tool that may take two hours to save its state has them."""
    heart, cancel, begun = Watching(), CancelToken(), CancelToken()
    begun.cancel("begun")
    sent_at = []

    def send(_):
        sent_at.append(heart.beats["ladder-apply"])

    with (
        heart.listening(),
        descending(script_of(7200), cancel, begun, send, give_up=lambda: None),
    ):
        cancel.cancel("stop")
        eventually(lambda: sent_at and heart.beats["ladder-apply"] > sent_at[0])
        assert set() == heart.misses(minutes=120)
        assert {"ladder-apply"} == heart.misses(minutes=8)


class Log:
    """One that somebody writes to, who waits for room."""

    def __init__(self):
        self.asked, self.room = threading.Event(), threading.Event()

    def hide_at_once(self, _):
        self.asked.set()
        assert self.room.wait(30)


def test_tokens_that_wait_for_the_log():
    """Who refreshes tokens waits as long as the log does, and is missed when it hangs."""
    heart, log, sandbox = Watching(), Log(), Script()
    sandbox.calls = 2
    tokens = Tokens(api="api", oidc="oidc", refresh_seconds=1)
    claim = a_claim(a_job(tokens=tokens))
    entry = SimpleNamespace(
        past=SimpleNamespace(resumed=True, tokens=(), sent=("plan",)),
        issued=lambda _: None,
    )
    progress = SimpleNamespace(tokens=lambda _: tokens)
    fresh = FreshTokens(claim, entry, progress, log)
    name = f"tokens-{claim.job.id}"
    with heart.listening(), fresh.kept(SimpleNamespace(write_file=sandbox)):
        assert log.asked.wait(30)
        assert set() == heart.misses(minutes=600)
        log.room.set()
        assert sandbox.stuck.wait(30)
        assert {name} == heart.misses()
        sandbox.go_on.set()
