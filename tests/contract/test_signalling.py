"""Who gets the signals when a phase is ended; the fake engine first, then the real one."""

import contextlib
import time

from support.engines import DockerSite, ShellSite, files, run

import pytest

from launcher.cancel import CancelToken
from launcher.model import WORKSPACE


# Ends by itself after its first SIGINT, but late enough to notice another one.
RECORDER = b"""#!/usr/bin/python3
import os, signal, sys, time
counted = []
def count(number, frame):
    counted.append(number)
    os.write(1, b"interrupted\\n")
signal.signal(signal.SIGINT, count)
if "helped" in sys.argv:
    if not os.fork():
        os.execv("./helper", ["./helper"])
os.write(1, b"ready\\n")
while not counted:
    time.sleep(0.01)
end = time.monotonic() + 0.7
while time.monotonic() < end:
    os.write(1, b"saving\\n")
    time.sleep(0.05)
with open(os.environ.get("COUNT", "count"), "a") as file:
    file.write("%d\\n" % len(counted))
sys.exit(5)
"""
FORWARDER = b"""#!/usr/bin/python3
import signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: child.send_signal(number))
sys.exit(child.wait())
"""
RELAY = b"""#!/usr/bin/python3
import signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
signal.signal(signal.SIGINT, lambda number, _: child.send_signal(number))
for line in child.stdout:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
sys.exit(child.wait())
"""
SHELL_FORWARDER = b"""#!/bin/sh
trap 'kill -s INT $child' INT
"$@" & child=$!
wait $child || wait $child
"""
STEPS = b"""#!/bin/sh
./terraform
touch went-on
./terraform
"""
HELPER = b"""#!/bin/sh
trap 'touch helper-told' INT
while :; do sleep 0.05; done
"""
WORKSPACE_FILES = {
    "terraform": RECORDER,
    "recorder": RECORDER,
    "forwarder": FORWARDER,
    "relay": RELAY,
    "shell_forwarder": SHELL_FORWARDER,
    "steps": STEPS,
    "bash_steps": STEPS.replace(b"/bin/sh", b"/bin/bash"),
    "helper": HELPER,
}


@pytest.fixture(
    name="site",
    scope="module",
    params=["shell", pytest.param("docker", marks=pytest.mark.services)],
)
def _site(request, tmp_path_factory):
    if request.param == "shell":
        yield ShellSite(tmp_path_factory.mktemp("engine"))
        return
    with contextlib.closing(DockerSite()) as site:
        yield site


def content(sandbox, name):
    return sandbox.read_file(f"{WORKSPACE}/{name}", limit=1 << 20)


@pytest.mark.parametrize(
    "hook",
    [
        "./terraform",
        "./recorder",
        "./terraform helped",
        "timeout 60 ./terraform",
        "timeout 60 ./recorder",
        "timeout --foreground 60 timeout 60 ./terraform",
        "nice ./recorder",
        "./terraform | tee log",
        "./recorder 2>&1 | cat | tee log",
        "timeout 60 ./terraform | tee log",
        "./terraform | while read -r line; do echo $line; done",
        "exec 3>&1; ./terraform | (cat >&3)",
        "yes | ./terraform",
        "./forwarder ./terraform",
        "./forwarder ./recorder",
        "./forwarder ./forwarder ./recorder",
        "./forwarder timeout 60 ./terraform",
        "./relay ./terraform",
        "./relay ./recorder | tee log",
        "./shell_forwarder ./terraform",
        "./shell_forwarder ./recorder",
        "sh -c './shell_forwarder ./terraform; exit 3'",
        "echo before; ./terraform; touch went-on",
        "(./terraform; touch went-on)",
        "{ ./terraform; touch went-on; } | tee log",
        "out=$(./terraform); touch went-on",
        "sh ./steps",
        "./steps",
        "timeout 60 ./steps",
        "exec ./terraform",
        "./terraform & wait",
        "for module in a b; do ./terraform; done",
        "sleep 60 & ./terraform",
    ],
)
def test_a_tool_is_interrupted_once(site, hook):
    """However a tool was started, it gets one SIGINT, and nothing is begun after it."""
    cancel = CancelToken()
    # What is printed into a variable is not seen.
    ready = {b"ready\n": lambda: cancel.cancel("test")}
    if "$(" in hook:
        hook = hook.replace("./terraform", "echo ready >&2; ./terraform; sleep 0.1")
    with site.sandbox(files(**WORKSPACE_FILES)) as sandbox:
        begun = time.monotonic()
        result, printed = run(
            sandbox, "true", hook, "touch went-on", cancel=cancel, on=ready, grace=20
        )
        lasted = time.monotonic() - begun

        assert b"1\n" == content(sandbox, "count"), printed
        assert content(sandbox, "went-on") is None
        assert content(sandbox, "helper-told") is None
    assert not result.ok
    assert not result.container_lost
    assert lasted < 15


def test_two_tools_at_once(site):
    """Tools that run beside each other get one SIGINT each, and are waited for."""
    hook = "(COUNT=a ./terraform) & (COUNT=b ./recorder) & (COUNT=c ./terraform)"
    with site.sandbox(files(**WORKSPACE_FILES)) as sandbox:
        cancel = CancelToken()
        ready = {b"ready\n" * 3: lambda: cancel.cancel("test")}
        run(sandbox, f"{hook} & wait", cancel=cancel, on=ready, grace=20)

        assert [b"1\n"] * 3 == [content(sandbox, name) for name in "abc"]


def test_asked_again(site):
    """A signaller that is started once more, as after a lost answer, tells nobody."""
    with site.sandbox(files(**WORKSPACE_FILES)) as sandbox:
        cancel = CancelToken()

        def twice():
            sandbox._signal("SIGINT")
            cancel.cancel("test")

        ready = {b"ready\n": twice}
        run(sandbox, "./terraform", cancel=cancel, on=ready, grace=20)

        assert b"1\n" == content(sandbox, "count")


def test_what_waits_is_terminated_too(site):
    """Whoever was made to wait for a deaf tool hears the second signal like the tool."""
    deaf = b"#!/bin/sh\ntrap '' INT\ntrap 'exit 4' TERM\nwhile :; do sleep 0.05; done\n"
    with site.sandbox(files(**{**WORKSPACE_FILES, "terraform": deaf})) as sandbox:
        cancel = CancelToken()
        ready = {b"begin\n": lambda: cancel.cancel("test")}
        result, _ = run(
            sandbox,
            "echo begin; (timeout 60 ./terraform; touch went-on)",
            cancel=cancel,
            on=ready,
            grace=0.5,
        )

        assert content(sandbox, "went-on") is None
    assert not result.ok
    assert not result.container_lost
