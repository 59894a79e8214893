"""A launcher that is killed with SIGKILL at any moment loses nothing and repeats nothing."""

import contextlib
import json
import signal
import sqlite3
import sys
import time

import pytest

from given import eventually
from launcher.cancel import CancelToken

from .conftest import SECRET, docker, opened


pytestmark = pytest.mark.services

MORTAL = [sys.executable, "-m", "tests.support.mortal"]
PLAN = json.dumps(
    {
        "format_version": "1.2",
        "resource_changes": [
            {"address": "a.b", "type": "a", "change": {"actions": ["create"]}}
        ],
    }
)
TOOL = f"""mkdir -p bin && cat >bin/terraform <<'END' && chmod +x bin/terraform
#!/bin/sh
[ "$1" = show ] || echo "+ terraform $1"
[ "$1" != show ] || echo '{PLAN}'
END"""
PATH = "/mnt/workspace/source/bin:/usr/local/bin:/usr/bin:/bin"


def phase(name):
    """Says that it starts where nobody can take it back, and prints a lot."""
    noise = f"seq 1 20000 | sed s/^/{name}-/; echo token=$TOKEN"
    hold = f"while [ -e /marks/hold-{name} ]; do sleep 0.05; done"
    return [f"echo {name} >>/marks/starts", noise, hold, f"echo {name} is over"]


HOOKS = {
    "before_init": [TOOL, *phase("initialize")],
    "before_plan": phase("plan"),
    "before_apply": phase("apply"),
    "after_run": phase("after_run"),
}
PHASES = ["initialize", "plan", "apply", "after_run"]
STATES = ["INITIALIZING", "PLANNING", "APPLYING"]


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory):
    common = {
        "vendor": "terraform",
        "hooks": HOOKS,
        "environment": [
            {"name": "TOKEN", "secret_env": "STACK_SECRET"},
            {"name": "PATH", "value": PATH},
        ],
    }
    stacks = [
        {"slug": "deployed", "autodeploy": True, **common},
        {"slug": "confirmed", **common},
    ]
    with opened(tmp_path_factory.mktemp("site"), stacks) as site:
        yield site


@pytest.fixture(autouse=True)
def _no_strangers(site):
    """A launcher that a failed test leaves takes no run of the next one."""
    yield
    while site.launchers:
        site.launchers.pop().stop()


class Crash:
    """One run on a launcher that dies under way, and on the one that comes after it."""

    def __init__(self, site, name, stack):
        self.site, self.name, self.stack = site, name, stack
        self.marks = site.folder / f"{name}-marks"
        self.marks.mkdir()
        self.marks.chmod(0o777)
        self.mounts = {"SPACELIFT_WORKER_EXTRA_MOUNTS": f"{self.marks}:/marks"}

    def launch(self, **more):
        return self.site.launcher(self.name, **self.mounts, **more)

    def trigger(self):
        self.run = self.site.api.trigger(self.stack)

    def killed_at(self, moment, *, new=True, **more):
        """Start a launcher, let it take a *new* run, and see it die at *moment*."""
        mortal = self.launch(command=MORTAL, MORTAL_AT=moment, **more)
        self.site.launchers.remove(mortal)
        if new:
            self.trigger()
        assert -signal.SIGKILL == mortal.wait(60)

    def killed_in(self, name):
        """See a launcher die in the middle of a phase, which `release` lets go on."""
        (self.marks / f"hold-{name}").touch()
        launcher = self.launch()
        self.site.launchers.remove(launcher)
        self.trigger()
        until = time.monotonic() + 60
        while name not in self.starts:
            assert time.monotonic() < until, f"{name} never began"
            CancelToken().wait(0.01)
        launcher.signal(signal.SIGKILL)
        assert -signal.SIGKILL == launcher.wait(10)

    def release(self):
        for hold in self.marks.glob("hold-*"):
            hold.unlink()

    def finished(self, until=""):
        """States of the run by the end of it, and the text of each."""
        return self.site.follow(self.stack, self.run, until=until)

    @property
    def starts(self):
        file = self.marks / "starts"
        return file.read_text().split() if file.exists() else []

    def close(self):
        """The launcher ends well, and leaves nothing: not in the engine, not on disk."""
        eventually(lambda: self.site.leftovers(self.name) == ["", ""], "leftovers")
        eventually(lambda: self.journal() == [], "an unfinished entry")
        launcher = self.site.launchers.pop()
        assert 0 == launcher.stop()
        assert SECRET not in launcher.log.read_text()

    @property
    def journal_path(self):
        return self.site.folder / self.name / "journal.db"

    def journal(self, statement="SELECT job FROM jobs"):
        with contextlib.closing(sqlite3.connect(self.journal_path)) as opened, opened:
            return opened.execute(statement).fetchall()

    @property
    def container(self):
        instance = (self.site.folder / self.name / "instance").read_text().strip()
        label = f"label=spacelift.launcher.instance={instance}"
        return docker("container", "ls", "--all", "--quiet", "--filter", label)


@pytest.fixture(scope="module", name="whole")
def _whole(site):
    """What the log of an undisturbed run says, state by state."""
    crash = Crash(site, "undisturbed", "deployed")
    crash.launch()
    crash.trigger()
    texts = crash.finished()
    assert PHASES == crash.starts
    assert "token=*****\n" in texts["APPLYING"]
    assert "plan-20000\n" in texts["PLANNING"]
    crash.close()
    return {state: texts[state] for state in STATES}


RESUMED = [
    "before claiming",
    "after claiming",
    "before claimed",
    "after claimed",
    "before created",
    "after created",
    *(f"{when} entered {state}" for state in STATES for when in ("before", "after")),
    *(f"before sending {phase}" for phase in PHASES),
    *(f"{when} ended {phase} 0" for phase in PHASES for when in ("before", "after")),
    "before planned",
    "after planned",
    "before decided",
    "after decided",
    "before exited",
    "after exited",
    "before over",
    "after over",
]


@pytest.mark.parametrize("moment", RESUMED)
def test_killed_at_a_step(site, whole, moment):
    """Wherever the journal stands, the run ends well: each phase once, each byte once."""
    crash = Crash(site, moment.replace(" ", "-"), "deployed")
    crash.killed_at(moment)

    crash.launch()
    texts = crash.finished()

    assert "FINISHED" in texts
    assert PHASES == crash.starts
    assert whole == {state: texts[state] for state in STATES}
    crash.close()


@pytest.mark.parametrize("name", PHASES)
def test_killed_while_sending(site, name):
    """A phase that may have been sent and did not begin never begins; the run says so."""
    crash = Crash(site, f"sending-{name}", "deployed")
    crash.killed_at(f"after sending {name}")

    crash.launch()
    texts = crash.finished()

    assert PHASES[: PHASES.index(name)] == crash.starts
    if name == "after_run":
        assert "The after_run hooks were not run" in texts["APPLYING"]
    else:
        last = list(texts)[-2]
        assert f"{name}: the worker was restarted while handing it over" in texts[last]
    assert "FAILED" in texts
    crash.close()


def test_killed_again_and_again(site, whole):
    """A launcher that dies in each of its lives still loses nothing."""
    crash = Crash(site, "again-and-again", "deployed")
    crash.killed_at("before ended initialize 0")
    for moment in ("after entered PLANNING", "before planned", "before ended apply 0"):
        crash.killed_at(moment, new=False)

    crash.launch()
    texts = crash.finished()

    assert "FINISHED" in texts
    assert PHASES == crash.starts
    assert whole == {state: texts[state] for state in STATES}
    crash.close()


@pytest.mark.parametrize("moment", ["before planned", "after planned", "before exited"])
def test_killed_while_handing_over(site, moment):
    """A run that waits for its confirmation has its workspace, whenever its worker died."""
    crash = Crash(site, f"handing-over-{moment.replace(' ', '-')}", "confirmed")
    crash.killed_at(moment)

    crash.launch()
    planned = crash.finished(until="UNCONFIRMED")
    assert PHASES[:2] == crash.starts
    site.api.confirm(crash.stack, crash.run)
    applied = crash.finished()

    assert "plan-20000\n" in planned["PLANNING"]
    assert "apply-20000\n" in applied["APPLYING"]
    assert "FINISHED" in applied
    assert PHASES == crash.starts
    crash.close()


def lose(path):
    path.unlink()


def damage(path):
    path.write_bytes(b"no journal at all\n" * 1000)


@pytest.mark.parametrize("harm", [lose, damage])
@pytest.mark.parametrize("name", ["initialize", "plan"])
def test_journal_lost(site, whole, name, harm):
    """Without its journal a launcher adopts by labels, and begins nothing any more."""
    crash = Crash(site, f"lost-{harm.__name__}-{name}", "deployed")
    crash.killed_at(f"before ended {name} 0")
    harm(crash.journal_path)
    for beside in ("-wal", "-shm"):
        crash.journal_path.with_name(f"journal.db{beside}").unlink(missing_ok=True)

    crash.launch()
    texts = crash.finished()

    begun = PHASES[: PHASES.index(name) + 1]
    assert begun == crash.starts
    for state in STATES[: len(begun)]:
        assert texts[state].startswith(whole[state])
    assert "it never began" in texts[STATES[len(begun)]]
    assert "FAILED" in texts
    crash.close()


def test_journal_lost_while_applying(site, whole):
    """An apply is followed to its end without a journal, masked, and ends its run well."""
    crash = Crash(site, "lost-applying", "deployed")
    crash.killed_at("before ended apply 0")
    crash.journal_path.unlink()

    crash.launch()
    texts = crash.finished()

    assert PHASES[:3] == crash.starts
    assert "apply-20000\ntoken=*****\napply is over\n" in texts["APPLYING"]
    assert "The after_run hooks were not run" in texts["APPLYING"]
    assert "FINISHED" in texts
    crash.close()


@pytest.mark.parametrize(
    ("name", "known"),
    [("plan", ""), ("apply", "the state may still be locked")],
)
def test_container_lost(site, name, known):
    """A container that is gone is reported, with what is known of what it did."""
    crash = Crash(site, f"container-lost-{name}", "deployed")
    crash.killed_at(f"before ended {name} 0")
    docker("container", "rm", "--force", crash.container)

    crash.launch()
    texts = crash.finished()

    last = texts[list(texts)[-2]]
    assert f"{name}: its container was gone when the worker came back" in last
    assert known in last
    assert "FAILED" in texts
    assert PHASES[: PHASES.index(name) + 1] == crash.starts
    crash.close()


def test_machine_restarted_while_applying(site):
    """A restart of the machine in the middle of an apply is reported as what it is."""
    crash = Crash(site, "machine-restarted", "deployed")
    crash.killed_in("apply")
    docker("container", "kill", crash.container)
    crash.journal("UPDATE jobs SET boot = 'an earlier one'")

    crash.launch()
    texts = crash.finished()

    reason = "apply: the worker's machine was restarted meanwhile; how much it has"
    assert reason in texts["APPLYING"]
    assert "the state may still be locked" in texts["APPLYING"]
    assert "FAILED" in texts
    assert PHASES[:3] == crash.starts
    crash.close()


@pytest.mark.parametrize("name", PHASES)
def test_killed_in_the_middle_of_a_phase(site, whole, name):
    """A phase goes on without its launcher, and the next one follows it to its end."""
    crash = Crash(site, f"middle-{name}", "deployed")
    crash.killed_in(name)

    crash.launch().wait_for("job.resumed")
    crash.release()
    texts = crash.finished()

    assert "FINISHED" in texts
    assert PHASES == crash.starts
    assert whole == {state: texts[state] for state in STATES}
    crash.close()


def test_phase_ends_while_nobody_is_there(site, whole):
    """A phase that ends before the next launcher is there is not run again."""
    crash = Crash(site, "nobody-there", "deployed")
    crash.killed_in("apply")
    crash.release()
    CancelToken().wait(1)

    crash.launch()
    texts = crash.finished()

    assert "FINISHED" in texts
    assert PHASES == crash.starts
    assert whole == {state: texts[state] for state in STATES}
    crash.close()


def test_control_plane_restarted(site, whole):
    """A control plane that dies with the launcher, and comes back first, changes nothing."""
    crash = Crash(site, "control-plane", "deployed")
    crash.killed_at("before planned")
    site.server.signal(signal.SIGKILL)
    site.server.wait(10)
    site.restart_server()

    crash.launch()
    texts = crash.finished()

    assert "FINISHED" in texts
    assert PHASES == crash.starts
    assert whole == {state: texts[state] for state in STATES}
    crash.close()


def test_broken_order_turns_red(site, whole):
    """
    These tests can fail: with a journal that forgets steps, phases start twice.
    """
    crash = Crash(site, "broken", "deployed")
    forgotten = "created,sending initialize,sending plan"
    crash.killed_at("before ended plan 0", MORTAL_FORGETS=forgotten)

    crash.launch()
    crash.finished()

    assert ["initialize", "plan", "initialize", "plan"] == crash.starts[:4]
    crash.close()


def test_container_begins_no_phase_twice(site, whole):
    """Where the journal forgets only that a phase was sent, the container knows."""
    crash = Crash(site, "forgetful", "deployed")
    crash.killed_at("before ended plan 0", MORTAL_FORGETS="sending plan")

    crash.launch()
    texts = crash.finished()

    assert PHASES == crash.starts
    assert whole == {state: texts[state] for state in STATES}
    crash.close()
