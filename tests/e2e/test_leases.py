"""Networks that are cut for longer than a lease, and two launchers with one run."""

import shutil
import signal
import sys
import threading

import pytest

from given import eventually
from support.relay import Relay

from .conftest import docker, opened
from .crashes import ON_TERRAFORM, PHASES, STATES, Crash


pytestmark = pytest.mark.services

LEASE_SECONDS = 4.0
OUTAGE_SECONDS = LEASE_SECONDS * 1.5
SERVER = [sys.executable, "-m", "tests.support.short_leases"]


@pytest.fixture(scope="module", name="cut_off")
def _cut_off(tmp_path_factory):
    """A site with short leases, and the relay by which its launchers reach it."""
    with opened(
        tmp_path_factory.mktemp("site"),
        [{"slug": "deployed", "autodeploy": True, **ON_TERRAFORM}],
        server_command=SERVER,
        LEASE_SECONDS=str(LEASE_SECONDS),
    ) as site:
        host = site.addresses.workers.replace("https:", "tcp:")
        with Relay(host) as relay:
            site.relay = relay.host.replace("tcp:", "https:")
            yield site, relay
            while site.launchers:
                site.launchers.pop().stop()


@pytest.fixture(autouse=True)
def _no_strangers(cut_off):
    """A launcher that a failed test leaves takes no run of the next one."""
    yield
    while cut_off[0].launchers:
        cut_off[0].launchers.pop().stop()


def begun(crash, name):
    """Let a launcher take a run, and wait in the middle of that phase."""
    (crash.marks / f"hold-{name}").touch()
    launcher = crash.launch()
    crash.trigger()
    until(lambda: name in crash.starts)
    return launcher


def until(condition, seconds=60.0):
    pause = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it did not come to that")


def state(crash):
    return crash.site.api.history(crash.stack, crash.run)[-1]["state"]


def sleep(seconds):
    threading.Event().wait(seconds)


@pytest.mark.parametrize("name", ["initialize", "plan"])
def test_network_cut_while_reading(cut_off, name):
    """What only reads is ended when nobody answers for as long as the lease lasts."""
    site, relay = cut_off
    crash = Crash(site, f"cut-{name}", "deployed")
    launcher = begun(crash, name)

    with relay.outage():
        launcher.wait_for("phase.signalled")
        until(lambda: state(crash) == "FAILED")
    crash.release()

    assert PHASES[: PHASES.index(name) + 1] == crash.starts
    assert f"{name} is over" not in "".join(crash.finished().values())
    crash.close()


def test_network_cut_before_the_apply(cut_off):
    """A plan that nobody could be told of in time is followed by no apply."""
    site, relay = cut_off
    crash = Crash(site, "cut-before-apply", "deployed")
    launcher = begun(crash, "plan")

    with relay.outage():
        crash.release()
        until(lambda: state(crash) == "FAILED")
    until(lambda: over(launcher))

    assert PHASES[:2] == crash.starts
    crash.close()


@pytest.mark.parametrize("name", ["apply", "after_run"])
def test_network_cut_while_changing(cut_off, name):
    """An apply goes on without anybody to tell, and so do its last hooks."""
    site, relay = cut_off
    crash = Crash(site, f"cut-{name}", "deployed")
    begun(crash, name)

    with relay.outage():
        sleep(OUTAGE_SECONDS)
        assert "APPLYING" == state(crash)
    crash.release()
    texts = crash.finished()

    assert "FINISHED" in texts
    assert PHASES == crash.starts
    for phase in ("apply", "after_run"):
        assert f"{phase}-20000\n" in texts["APPLYING"]
    crash.close()


def test_network_cut_while_reporting(cut_off):
    """An outcome that nobody hears of is told again until somebody does."""
    site, relay = cut_off
    crash = Crash(site, "cut-reporting", "deployed")
    begun(crash, "after_run")

    with relay.outage():
        crash.release()
        sleep(OUTAGE_SECONDS)
        assert "APPLYING" == state(crash)
    texts = crash.finished()

    assert "FINISHED" in texts
    assert PHASES == crash.starts
    assert "after_run is over\n" in texts["APPLYING"]
    crash.close()


# --- two launchers, one run


def twin(crash, launcher, *, asleep):
    """Another launcher with a copy of the first one's state, which then may be *asleep*."""
    launcher.signal(signal.SIGSTOP)
    folder = crash.site.folder / crash.name
    copy = folder.with_name(f"{crash.name}-twin")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("lock", "*.sock"))
    if not asleep:
        launcher.signal(signal.SIGCONT)
    crash.site.launcher(copy.name, **crash.mounts).wait_for("job.resumed")


@pytest.mark.parametrize("name", ["plan", "apply"])
def test_two_launchers_at_work(cut_off, name):
    """
    Two launchers with one run start each of its phases once, and store its log once.

    The slower one may find the container gone, and be the first to say so.
    """
    site, _ = cut_off
    crash = Crash(site, f"twins-{name}", "deployed")
    twin(crash, begun(crash, name), asleep=False)
    crash.release()
    texts = crash.finished()

    # All of what ran is in the log of the one container; a second one would have left
    # its mark besides.
    for phase, where in zip(PHASES, [*STATES, "APPLYING"], strict=True):
        assert 1 == texts[where].count(f"{phase}-20000\n")
        assert crash.starts.count(phase) <= 1
    last = site.api.history(crash.stack, crash.run)[-1]
    failed = "FAILED" == last["state"] and "container" in last["note"]
    assert failed or "FINISHED" == last["state"], last
    ended(crash)


def test_launcher_that_slept_comes_back(cut_off):
    """One that slept while its twin ended the run changes nothing and starts nothing."""
    site, _ = cut_off
    crash = Crash(site, "sleeper", "deployed")
    first = begun(crash, "apply")
    twin(crash, first, asleep=True)
    crash.release()
    texts = crash.finished()
    first.signal(signal.SIGCONT)
    ended(crash)

    assert PHASES == crash.starts
    assert "FINISHED" == state(crash)
    assert texts == crash.finished()


def test_stale_launcher_is_silent(cut_off):
    """One that slept through its lease is told so by a 409, and ends what it had begun."""
    site, _ = cut_off
    crash = Crash(site, "stale", "deployed")
    first = begun(crash, "plan")
    first.signal(signal.SIGSTOP)
    until(lambda: state(crash) == "FAILED")
    texts = crash.finished()
    first.signal(signal.SIGCONT)
    first.wait_for("job.abandoned")
    crash.release()

    assert PHASES[:2] == crash.starts
    assert texts == crash.finished()
    assert "job.settled" not in [event["msg"] for event in first.events()]
    crash.close()


def over(launcher):
    said = [event["msg"] for event in launcher.events()]
    return {"job.settled", "job.abandoned", "job.not_settled"} & set(said)


def ended(crash):
    """Both end well, and nothing of the run is left in the engine."""
    for launcher in crash.site.launchers:
        until(lambda: over(launcher))  # noqa: B023
    eventually(lambda: crash.site.leftovers(crash.name) == ["", ""], "leftovers")
    codes = [launcher.stop() for launcher in crash.site.launchers]
    crash.site.launchers.clear()
    assert [0, 0] == codes
    assert "" == docker("ps", "--quiet", "--filter", f"name={crash.run.lower()}")
