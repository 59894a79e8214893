"""Runs whose launcher is killed under way, and the site that they run on."""

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
ON_TERRAFORM = {
    "vendor": "terraform",
    "hooks": HOOKS,
    "environment": [
        {"name": "TOKEN", "secret_env": "STACK_SECRET"},
        {"name": "PATH", "value": PATH},
    ],
}
"""A stack whose phases tell that they begin, and can be held."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    stacks = [
        {"slug": "deployed", "autodeploy": True, **ON_TERRAFORM},
        {"slug": "confirmed", **ON_TERRAFORM},
    ]
    with opened(tmp_path_factory.mktemp("site"), stacks) as site:
        yield site


@pytest.fixture(autouse=True)
def no_strangers(site):
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


@pytest.fixture(scope="module")
def whole(site):
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


def survives(site, whole, moment):
    """A run whose launcher dies at *moment* ends well: each phase once, each byte once."""
    crash = Crash(site, moment.replace(" ", "-"), "deployed")
    crash.killed_at(moment)

    crash.launch()
    ends_well(crash, whole)


def ends_well(crash, whole):
    texts = crash.finished()

    assert "FINISHED" in texts
    assert PHASES == crash.starts
    assert whole == {state: texts[state] for state in STATES}
    crash.close()
