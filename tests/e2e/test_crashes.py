"""A launcher that is killed with SIGKILL at any moment loses nothing and repeats nothing."""

import contextlib
import json
import signal
import sqlite3
import sys

import pytest

from examples.demo.processes import COMMAND
from given import eventually

from .conftest import SECRET, opened


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
END
export PATH=$PWD/bin:$PATH"""


def phase(name):
    """Says that it starts where nobody can take it back, and prints a lot."""
    noise = f"seq 1 20000 | sed s/^/{name}-/; echo token=$TOKEN"
    return [f"echo {name} >>/marks/starts", noise, "sleep 0.3"]


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
        "environment": [{"name": "TOKEN", "secret_env": "STACK_SECRET"}],
    }
    stacks = [
        {"slug": "deployed", "autodeploy": True, **common},
        {"slug": "confirmed", **common},
    ]
    with opened(tmp_path_factory.mktemp("site"), stacks) as site:
        yield site


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

    def killed_at(self, moment):
        """Start a launcher, let it take the run, and see it die at *moment*."""
        mortal = self.launch(command=MORTAL, MORTAL_AT=moment)
        self.site.launchers.remove(mortal)
        self.trigger()
        assert -signal.SIGKILL == mortal.wait(60)

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

    def journal(self):
        path = self.site.folder / self.name / "journal.db"
        with contextlib.closing(sqlite3.connect(path)) as opened:
            return opened.execute("SELECT job FROM jobs").fetchall()


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
