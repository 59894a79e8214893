import contextlib
import os
import random
import signal
import subprocess
import sys

from importlib import resources
from pathlib import Path

import pytest

from given import PATIENCE, eventually
from launcher.adapters.engines.entry import SIGNALLER
from launcher.output.markers import Mark, MarkParser
from launcher.script import phase_script
from support.shells import sh


__all__ = ["sh"]

NONCE = "5ec4e7"


def _moved(text, root):
    """Paths of a container, below a folder."""
    return text.replace("/run/spacelift", str(root / "private")).replace(
        "/mnt/workspace", str(root)
    )


class Container:
    """The entry script as a process of this machine, in a session of its own."""

    def __init__(self, shell, root, *, deadline=3600, limit=1 << 30, look_every=5):
        self.root = root
        self.number = 0
        self.private = root / "private"
        self.log = root / "log"
        self.work = root / "work"
        for folder in (self.private, self.log, self.work):
            folder.mkdir()
        text = (
            resources.files("launcher.adapters.engines")
            .joinpath("entry.sh")
            .read_text()
        )
        for old, new in {
            "/mnt/spacelift-log": str(self.log),
            "/run/spacelift": str(self.private),
            "/mnt/workspace": str(root),
            "/bin/sh ": f"{shell} ",
            "sleep 5;": f"sleep {look_every};",
            "sleep 30": "sleep 0.1",
            "sleep 1\n": "sleep 0.05\n",
            # Outside of a container, "everything" is this machine.
            "-- -1 ": '-- "-$$" ',
        }.items():
            assert old in text
            text = text.replace(old, new)
        assert " -1" not in text
        script = root / "entry"
        script.write_text(text)
        moved = SIGNALLER.decode().replace("/run/spacelift", str(self.private))
        (self.log / "signal").write_text(moved)
        self.process = subprocess.Popen(
            [shell, script, NONCE, str(deadline), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self.work,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait()

    def send(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def phase(self, name, *commands, number=None, **export):
        if number is None:
            number, self.number = self.number, self.number + 1
        script = phase_script(name, commands, directory=str(self.work), export=export)
        text = _moved(script.text, self.root)
        return f"phase {number} {name} 30\n{text}{NONCE}\n".encode()

    def run(self, name, *commands, **export):
        self.send(self.phase(name, *commands, **export))
        return self.ended(name)

    def printed(self):
        """What is in the log now: the output, and the marks in it."""
        path, parser = self.log / "output", MarkParser(NONCE)
        items = list(parser.feed(path.read_bytes() if path.exists() else b""))
        output = b"".join(item for item in items if isinstance(item, bytes))
        return output + parser.close(), [i.words for i in items if isinstance(i, Mark)]

    def ended(self, name):
        """Wait for the end of a phase; return its exit code."""

        def mark():
            _, marks = self.printed()
            return [words for words in marks if words[:2] == ("end", name)]

        return int(eventually(mark)[-1][2])

    @property
    def output(self):
        return self.printed()[0]

    def signal(self, number):
        os.killpg(self.process.pid, number)


@pytest.fixture
def container(sh, tmp_path):
    with Container(sh, tmp_path) as running:
        yield running


def test_what_was_sent_twice_runs_once(container):
    """Two who believe they have the same container start each of its phases once."""
    assert 0 == container.run("initialize", "echo one")
    container.send(container.phase("plan", "echo two", number=1) * 2)
    assert 0 == container.ended("plan")
    container.number = 2
    assert 0 == container.run("apply", "echo three")

    output, marks = container.printed()
    assert b"one\ntwo\nthree\n" == output
    begun = [words[1] for words in marks if words[0] == "begin"]
    assert ["initialize", "plan", "apply"] == begun


def test_phases_run_one_after_the_other(container):
    """Each phase prints between its own two marks, which bear its exit code."""
    assert 0 == container.run("initialize", "echo out", "echo err >&2")
    assert 3 == container.run("plan", "echo out", "sh -c 'exit 3'", "echo never")
    output, marks = container.printed()
    assert b"out\nerr\nout\n" == output
    assert [
        ("begin", "initialize"),
        ("end", "initialize", "0", "at:end"),
        ("begin", "plan"),
        ("end", "plan", "3", "at:2"),
    ] == marks


def test_exports_reach_the_next_phase(container):
    """What one phase exports is there in the next, which is another process."""
    container.run("initialize", "export FROM_HOOK='a\nb'", GIVEN="x y")
    assert 0 == container.run("plan", 'printf "%s|" "$FROM_HOOK" "${GIVEN-}"')
    assert b"a\nb||" == container.output


def test_output_is_kept_byte_for_byte(container):
    """Whatever bytes a tool prints are in the log, and no others."""
    noise = random.Random(3).randbytes(200_000)
    (container.work / "noise").write_bytes(noise)
    assert 0 == container.run("plan", "cat noise")
    assert noise == container.output


def test_a_script_arrives_as_it_was_sent(container):
    """Commands of the conversation, backslashes and spaces mean nothing in a script."""
    odd = "phase x\nexit\n\\ \\\\n\t  leading and trailing  \n\n" + "ü\r" * 3000
    assert 0 == container.run("plan", 'printf %s "$ODD" >odd', ODD=odd)
    assert odd.encode() == (container.work / "odd").read_bytes()
    assert 0 == container.run("next", "true")


def test_leaving_the_shell_early_is_a_failure(container):
    """A hook that exits with 0 has not done the phase."""
    assert 1 == container.run("plan", "exit 0", "echo never")
    assert (
        b"A command ended the shell before the phase was complete.\n"
        == container.output
    )
    assert 0 == container.run("next", "true")


def test_a_syntax_error_is_a_failure(container):
    """A hook that does not parse fails its phase, and only that one."""
    assert 0 != container.run("plan", "if true", "echo never")
    assert b"never\n" not in container.output
    assert 0 == container.run("next", "true")


def test_a_killed_shell_is_a_failure(container):
    """A phase whose shell is killed has not succeeded."""
    assert 137 == container.run("plan", "kill -9 $$")


def test_the_tool_has_no_input(container):
    """Nothing of the conversation can be read by what a phase runs."""
    assert 0 == container.run("plan", "cat; cat <&0; cat 2>/dev/null <&3 || echo none")
    assert b"none\n" == container.output


def test_secrets_lie_where_only_the_user_looks(container):
    """Scripts, with the secrets in them, are in no argument and in no readable file."""
    assert 0 == container.run("plan", "umask 0", "touch running", TOKEN="hunter2")
    arguments = Path(f"/proc/{container.process.pid}/cmdline").read_bytes()
    assert b"hunter2" not in arguments
    modes = {path.stat().st_mode & 0o777 for path in container.private.glob("s*")}
    assert {0o600} == modes
    assert 0o600 == (container.root / ".spacelift-environment").stat().st_mode & 0o777


def test_it_ends_when_it_is_told_to(container):
    """The word exit ends the conversation, and the container with it."""
    container.run("plan", "true")
    container.send(b"exit\n")
    assert 0 == container.process.wait(PATIENCE)


def test_it_ends_with_its_input(container):
    """Without anybody who could send a phase, nothing waits for one."""
    container.process.stdin.close()
    assert container.process.wait(PATIENCE) is not None


TOOL = (
    "trap 'echo saving; while [ ! -e go ]; do sleep 0.01; done; echo saved; exit 5'"
    " HUP INT TERM\n"
    "touch ready\n"
    "while :; do sleep 0.01; done\n"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signalled_tool_ends_its_phase_in_its_own_time(container, number):
    """The tool saves its state, its code is reported, and the next phase runs."""
    (container.work / "tool").write_text(TOOL)
    container.send(container.phase("apply", "sh ./tool", "echo never"))
    eventually((container.work / "ready").exists)
    container.signal(number)
    eventually(lambda: b"saving\n" in container.output)
    assert ("begin", "apply") == container.printed()[1][-1]
    (container.work / "go").touch()
    assert 5 == container.ended("apply")
    assert b"saving\nsaved\n" in container.output
    assert b"never" not in container.output
    assert 0 == container.run("after_run", "echo next")


def test_a_signal_between_phases_changes_nothing(container):
    """A signal that comes too late for its phase leaves the next one alone."""
    container.run("plan", "true")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * 3:
        container.signal(number)
    assert 0 == container.run("after_run", "echo next")
    assert b"next\n" == container.output


def test_a_signal_while_a_script_comes_in_loses_nothing(container):
    """A script of which half is there when a signal comes is still run as it was sent."""
    container.run("initialize", "true")
    script = container.phase("plan", 'printf %s "$TEXT"', TEXT="0123456789" * 50)
    middle = script.index(b"0123456789") + 255
    container.send(script[:middle])
    eventually(lambda: b"begin plan" in (container.private / "script").read_bytes())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * 2:
        container.signal(number)
    container.send(script[middle:])
    assert 0 == container.ended("plan")
    assert b"0123456789" * 50 == container.output


COUNTING_TOOL = """
import os, signal, sys, time
counted = []
signal.signal(signal.SIGINT, lambda *_: counted.append(1))
while not counted:
    time.sleep(0.01)
time.sleep(0.5)
with open("new", "w") as file:
    file.write(str(len(counted)))
os.rename("new", "count")
sys.exit(5)
"""


def test_a_deadline_ends_everything(sh, tmp_path):
    """A container that nobody looks after any more ends itself, and says why."""
    with Container(sh, tmp_path, deadline=0, look_every=0.02) as container:
        container.send(
            container.phase("plan", "trap '' INT TERM; while :; do sleep 1; done")
        )
        assert -signal.SIGKILL == container.process.wait(PATIENCE)
        assert ("deadline",) in container.printed()[1]


def test_a_deadline_interrupts_a_tool_once(sh, tmp_path):
    """At the deadline, too, a tool gets one SIGINT, and the time to save its state."""
    with Container(sh, tmp_path, deadline=1, look_every=0.02) as container:
        (container.work / "tool").write_text(COUNTING_TOOL)
        command = f"timeout 60 {sys.executable} tool | cat"
        container.send(container.phase("apply", command, "touch went-on"))
        eventually((container.work / "count").exists)
        assert 0 != container.ended("apply")
        assert "1" == (container.work / "count").read_text()
        assert not (container.work / "went-on").exists()


def test_too_long_a_log_ends_everything(sh, tmp_path):
    """A job that prints without end is asked to stop, and does."""
    with Container(sh, tmp_path, limit=100, look_every=0.02) as container:
        container.send(
            container.phase("plan", "while :; do echo 0123456789; sleep 0.001; done")
        )
        assert 0 != container.ended("plan")
        assert ("log-limit",) in container.printed()[1]
