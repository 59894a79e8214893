"""
The units on a machine that has booted, with an engine, a control plane and a launcher.

It was installed by the page's commands and by the user data for EC2, before the first
test.  Tests come in order: each leaves the machine as it found it, but for the last one.
"""

import contextlib
import json
import re

import pytest

from support.machine import (
    LAUNCHER,
    METADATA,
    METADATA_6,
    NETWORK,
    ROOT,
    SERVER,
    eventually,
    user_data,
)


pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


@contextlib.contextmanager
def gated(site):
    """A run that has begun to plan, and goes on once the block calls what it gets."""
    site.machine.sh("rm -f /srv/gate/open")
    run = site.api.trigger("gated", kind="PROPOSED")

    def state():
        return site.api.history("gated", run)[-1]["state"]

    eventually(lambda: "waiting at the gate" in log(site, run), lambda: log(site, run))
    yield run, lambda: site.machine.sh("touch /srv/gate/open")
    site.machine.sh("touch /srv/gate/open")
    eventually(lambda: site.api.history("gated", run)[-1]["terminal"])
    assert "FINISHED" == state(), log(site, run)


def log(site, run):
    """What the run has printed so far; each state is read as far as it is stored."""
    text = ""
    for entry in site.api.history("gated", run):
        if entry["hasLogs"]:
            answer = site.api.query(
                "query($run: ID!, $state: RunState!, $version: Int!)"
                ' { stack(id: "gated") { run(id: $run)'
                " { logs(state: $state, stateVersion: $version)"
                " { messages { message } } } } }",
                {
                    "run": run,
                    "state": entry["state"],
                    "version": entry["stateVersion"],
                },
            )
            messages = answer["stack"]["run"]["logs"]["messages"]
            text += "".join(each["message"] for each in messages)
    return text


def finished(site, stack="hello", kind="PROPOSED"):
    """A run from its trigger to its end."""
    run = site.api.trigger(stack, kind=kind)
    return run, dict.fromkeys(state for state, _ in site.api.follow(stack, run))


def killed(site, unit, before):
    """Wait until *unit* runs in another process than *before*; return why."""
    machine = site.machine
    eventually(
        lambda: machine.pid(unit) not in (0, before), lambda: machine.journal(unit)
    )
    machine.active(unit)
    return machine.journal(unit)


def test_from_nothing_to_a_finished_run(site):
    """
    What the page and the user data install carries a run out, judged by the policy.
    """
    run, states = finished(site)

    assert "FINISHED" == [*states][-1]
    samples = [e["sample"] for e in site.machine.events(LAUNCHER) if "sample" in e]
    assert {"allow"} == {
        each["outcome"] for each in samples if each["input"]["run"]["id"] == run
    }


def test_the_machine_is_as_the_page_says(site):
    """
    User and number, owners and modes; the token is in nobody's environment.
    """
    said = site.machine.sh(
        f"""
        id spacelift
        id -nG spacelift-server
        stat -c '%n %a %U' /etc/spacelift/token /etc/spacelift/pool.key \
          /etc/spacelift/launcher.env /etc/spacelift/server.env /var/lib/spacelift-launcher
        cat /proc/{site.machine.pid(LAUNCHER)}/status | grep -E '^(Uid|CapBnd|Seccomp):'
        tr '\\0' '\\n' </proc/{site.machine.pid(LAUNCHER)}/environ | cut -d= -f1
        """
    )
    assert "uid=1983(spacelift)" in said
    assert "\nspacelift-server\n" in said
    for line in (
        "/etc/spacelift/token 600 root",
        "/etc/spacelift/pool.key 600 root",
        "/etc/spacelift/launcher.env 600 root",
        "/etc/spacelift/server.env 600 root",
        "/var/lib/spacelift-launcher 700 spacelift",
        "Uid:\t1983\t1983\t1983\t1983",
        "CapBnd:\t0000000000000000",
        "Seccomp:\t2",
    ):
        assert line in said
    metrics = site.machine.sh("curl -sf http://127.0.0.1:1986/metrics")
    assert "process_resident_memory_bytes" in metrics
    assert "CREDENTIALS_DIRECTORY" in said
    assert "SPACELIFT_TOKEN" not in said.splitlines()
    assert "SPACELIFT_POOL_PRIVATE_KEY" not in said.splitlines()


def test_a_worker_says_which_instance_it_is(site):
    """
    The user data asks the metadata service, version 2, and tags the worker.
    """
    answer = site.api.query("{ workerPools { workers { metadata } } }", {})
    (worker,) = answer["workerPools"][0]["workers"]
    tags = json.loads(worker["metadata"])

    assert {
        "instance_id": "i-0123456789abcdef0",
        "ami_id": "ami-0123456789abcdef0",
        "instance_type": "m7i.large",
        "availability_zone": "eu-west-1b",
        "asg_id": "launchers",
    }.items() <= tags.items()


def test_user_data_installs_nothing_else(site, release):
    """
    A file whose checksum is not the one in the user data is not installed.
    """
    before = site.machine.pid(LAUNCHER)

    done = user_data(site, release, WHEEL_SHA256="0" * 64, POWER_OFF="no")

    assert 0 != done.returncode
    assert "could not be installed" in done.stderr
    assert before == site.machine.pid(LAUNCHER)


def test_not_ready_before_it_was_let_in(site):
    """
    Without its control plane a launcher starts, and is not ready.
    """
    machine = site.machine
    machine.sh(f"systemctl stop {SERVER} && systemctl restart --no-block {LAUNCHER}")
    eventually(
        lambda: "waiting for the control plane" == machine.show(LAUNCHER, "StatusText")
    )
    assert "activating" == machine.show(LAUNCHER, "ActiveState")

    machine.sh(f"systemctl start {SERVER}")

    machine.active(LAUNCHER)
    assert "0 of 1 workers busy" == machine.show(LAUNCHER, "StatusText")


def test_runs_are_kept_from_metadata_and_machine(site):
    """
    A run is refused what the machine itself reaches, by the same means.
    """
    for address in (*(f"{each}/80" for each in METADATA), "127.0.0.1/8443"):
        site.machine.sh(f": >/dev/tcp/{address}")
    with gated(site) as (run, go_on):
        go_on()
        eventually(lambda: "looked around" in log(site, run), lambda: log(site, run))
    said = log(site, run)

    for address in METADATA:
        assert f"kept from {address}/80\n" in said
    assert re.search(r"^kept from [0-9.]+/8443$", said, re.M)
    assert "reached" not in said


def test_the_block_is_proved(site):
    """
    The preflight check finds everything blocked, and everything open without the filter.

    What it tries to reach is there: the machine itself reaches all of it.
    """
    machine = site.machine
    machine.sh(
        "docker network create --ipv6 --subnet fd12:3456::/64"
        " --opt com.docker.network.bridge.name=spl-six six"
    )
    check = f"/usr/local/bin/spacelift-launcher check-network --image {site.image}"
    with_6 = f"SPACELIFT_WORKER_NETWORK=six {check}"
    addresses = METADATA + METADATA_6

    blocked = machine.tried(f"{check} && {with_6}")

    assert 0 == blocked.returncode, blocked.stdout + blocked.stderr
    assert 10 == blocked.stdout.count(" blocked\n") - 2, blocked.stdout

    machine.sh(f"systemctl stop {NETWORK}")
    assert "inactive" == machine.show(LAUNCHER, "ActiveState")
    assert "spacelift_runs" not in machine.sh("nft list tables")
    opened = machine.tried(with_6)

    assert 1 == opened.returncode
    for address in addresses:
        assert f"metadata  {address:<16} OPEN" in opened.stdout, opened.stdout
    assert "machine " in opened.stdout
    assert "blocked" not in opened.stdout

    machine.sh(f"systemctl start {LAUNCHER}")
    assert "active" == machine.show(NETWORK, "ActiveState")
    assert 0 == machine.tried(with_6).returncode
    machine.sh("docker network rm six")


def test_a_firewall_that_starts_anew_takes_nothing_along(site):
    """
    Rules are put back after nftables flushed all; connections made in between end.
    """
    machine = site.machine
    # The engine's own rules are of another family, and would be gone as well.
    machine.put("/etc/nftables.conf", "flush ruleset inet\n")
    machine.edit("nftables", "ExecStop=\nExecStop=/usr/sbin/nft flush ruleset inet")
    before = machine.pid(LAUNCHER)
    name = machine.sh("docker network ls --format '{{.Name}}' | grep ^spacelift-runs-")
    machine.put(
        "/srv/gap/held",
        """#!/bin/bash
        exec 3<>/dev/tcp/169.254.169.254/80
        touch /gap/connected
        while [ ! -e /gap/go ]; do sleep 0.2; done
        printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3
        timeout 5 cat <&3 >/gap/answer
        touch /gap/done
        """,
        mode="755",
    )
    machine.sh("chmod 777 /srv/gap; nft delete table inet spacelift_runs")
    machine.sh(
        f"docker run --rm --detach --network {name.strip()} --volume /srv/gap:/gap"
        f" --entrypoint /gap/held {site.image}"
    )
    eventually(lambda: 0 == machine.tried("test -e /srv/gap/connected").returncode)

    def filtered():
        return "spacelift_runs" in machine.sh("nft list tables")

    for what in ("start", "restart", "stop"):
        machine.sh(f"systemctl {what} nftables")
        eventually(filtered, lambda: machine.journal(NETWORK))
    machine.sh("touch /srv/gap/go")
    eventually(lambda: 0 == machine.tried("test -e /srv/gap/done").returncode)

    assert "" == machine.sh("cat /srv/gap/answer")
    assert before == machine.pid(LAUNCHER)
    machine.edit("nftables", None)


def test_a_shutdown_waits_for_runs(site):
    """
    No shutdown is forced before the launcher has had its time to stop.
    """
    for target in ("poweroff.target", "reboot.target"):
        assert "3h" == site.machine.show(target, "JobTimeoutUSec")
    assert "infinity" == site.machine.show("halt.target", "JobTimeoutUSec")


def test_the_block_is_proved_before_a_start(site):
    """
    As the page says: an open network keeps the launcher down, a missing image does not.
    """
    machine = site.machine
    page = (ROOT / "docs" / "security.md").read_text()
    line = re.search(r"^ExecStartPre=.*check-network.*$", page, re.M)[0]

    missing = "--image not.here/image:1"
    machine.edit(LAUNCHER, line.replace("check-network", f"check-network {missing}"))
    machine.sh(f"systemctl restart {LAUNCHER}")
    assert "not.here/image" in machine.journal(LAUNCHER)

    machine.edit(LAUNCHER, line)
    machine.sh(f"systemctl restart {LAUNCHER}; nft delete table inet spacelift_runs")
    refused = machine.tried(f"systemctl restart {LAUNCHER}")
    state = machine.show(LAUNCHER, "ActiveState")

    machine.edit(LAUNCHER, None)
    machine.sh(f"systemctl reload {NETWORK}; systemctl restart {LAUNCHER}")
    assert 0 != refused.returncode
    assert "active" != state


def test_exactly_these_addresses(site):
    """
    What lies beside the metadata addresses stays reachable.
    """
    machine = site.machine
    rules = machine.sh("nft list table inet spacelift_runs")
    listed = {
        word.strip("{},")
        for line in rules.splitlines()
        if "daddr {" in line and "type" not in line
        for word in line.replace(",", " ").split()
        if word[:4] in ("169.", "fd00")
    }

    assert {*METADATA, *METADATA_6} == listed


def test_names_are_resolved_by_the_machine_itself(site):
    """
    A machine that is its own name server is one for runs, and nothing more.
    """
    machine = site.machine
    machine.sh(
        f"""
        cp /etc/resolv.conf /srv/resolv.conf
        ip link add ns0 type bridge; ip address add 10.254.0.53/32 dev ns0
        echo nameserver 10.254.0.53 >/etc/resolv.conf
        systemctl reload {NETWORK}
        systemd-run --quiet --unit names python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.254.0.53", 53))
while True:
    q, a = s.recvfrom(512)
    n = q[12:q.index(0, 12) + 5]
    four = n[-4:-2] == bytes([0, 1])
    r = bytes([192, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]) if four else b""
    s.sendto(q[:2] + bytes([129, 128, 0, 1, 0, four, 0, 0, 0, 0]) + n + r, a)
'
        """
    )
    name = machine.sh("docker network ls --format '{{.Name}}' | grep ^spacelift-runs-")
    options = f"docker run --rm --network {name.strip()} {site.image}"

    found = machine.tried(f"{options} getent ahostsv4 some.example")
    other = machine.tried(f"{options} bash -c ': >/dev/tcp/10.254.0.53/22'")

    machine.sh(
        f"""
        cat /srv/resolv.conf >/etc/resolv.conf
        systemctl stop names; ip link delete ns0; systemctl reload {NETWORK}
        """
    )
    assert "192.0.2.7" in found.stdout, found.stderr
    # At once, by a reset: whoever looks for credentials somewhere does not wait.
    assert "Connection refused" in other.stderr


def test_the_identity_of_the_machine_can_be_had(site):
    """
    Who wants runs to have it says so, is warned by both units, and gets nothing else.
    """
    machine = site.machine
    machine.sh(
        f"""
        echo SPACELIFT_RUNS_MAY_REACH_METADATA=true >/etc/spacelift/network.env
        systemctl reload {NETWORK}; systemctl restart {LAUNCHER}
        """
    )
    said = machine.sh(
        "SPACELIFT_RUNS_MAY_REACH_METADATA=true"
        f" spacelift-launcher check-network --image {site.image}"
    )
    warned = machine.journal(NETWORK), machine.journal(LAUNCHER)
    machine.sh(
        f"""
        echo SPACELIFT_RUNS_MAY_REACH_METADATA=false >/etc/spacelift/network.env
        systemctl reload {NETWORK}
        """
    )

    for address in METADATA:
        assert f"metadata  {address:<16} open, as allowed\n" in said
    assert said.endswith("blocked\n")
    assert "identity of this machine" in warned[0]
    assert "this machine's identity in its cloud" in warned[1]


def test_a_restart_in_the_middle_of_a_run_loses_nothing(site):
    """
    `systemctl restart` waits for the run, which goes on as if nothing was.
    """
    machine = site.machine
    before = machine.pid(LAUNCHER)
    with gated(site) as (run, go_on):
        machine.sh(f"systemctl restart --no-block {LAUNCHER}")
        eventually(lambda: "draining" in machine.show(LAUNCHER, "StatusText"))
        assert before == machine.pid(LAUNCHER)
        go_on()
    eventually(lambda: machine.pid(LAUNCHER) not in (0, before))
    machine.active(LAUNCHER)
    assert 1 == log(site, run).count("waiting at the gate\n")


def test_a_stop_drains(site):
    """
    `systemctl stop` lasts as long as the run, also beyond its own time limit.
    """
    machine = site.machine
    machine.edit(LAUNCHER, "TimeoutStopSec=4")
    machine.sh(f"systemctl restart {LAUNCHER}")
    with gated(site) as (run, go_on):
        machine.sh(f"systemctl stop --no-block {LAUNCHER}")
        machine.sh("sleep 9")
        assert "deactivating" == machine.show(LAUNCHER, "ActiveState")
        go_on()
    eventually(lambda: "inactive" == machine.show(LAUNCHER, "ActiveState"))
    assert "success" == machine.show(LAUNCHER, "Result")
    machine.edit(LAUNCHER, None)
    machine.sh(f"systemctl start {LAUNCHER}")


def test_a_stopped_process_is_started_again(site):
    """
    A process that does nothing at all is killed by the watchdog, and its run goes on.
    """
    machine = site.machine
    machine.edit(LAUNCHER, "WatchdogSec=10\nTimeoutAbortSec=1")
    machine.sh(f"systemctl restart {LAUNCHER}")
    with gated(site) as (run, go_on):
        eventually(
            lambda: "1 of 1 workers busy" == machine.show(LAUNCHER, "StatusText")
        )
        before = machine.pid(LAUNCHER)
        machine.sh(f"kill -STOP {before}")
        said = killed(site, LAUNCHER, before)
        go_on()
    assert "Watchdog timeout" in said
    assert 1 == log(site, run).count("waiting at the gate\n")
    machine.edit(LAUNCHER, None)


def test_a_worker_that_hangs_is_noticed(site):
    """
    One thread that hangs is enough: it is named in the log, with where it is.
    """
    machine = site.machine
    machine.put(
        "/srv/hanging.py",
        """
import os, sys, threading
from launcher import worker
from launcher.adapters.controlplane.jobs import HttpJobSource
from launcher.cli import main

receive = HttpJobSource.receive

def hangs(self, slot, *, wait):
    if os.path.exists("/srv/hang"):
        threading.Event().wait()
    return receive(self, slot, wait=min(wait, 1))

HttpJobSource.receive = hangs
worker._SLOT_SECONDS, worker._ASK_SECONDS = 15.0, 0.0
sys.argv[0] = "spacelift-launcher"
main(["run"])
""",
    )
    machine.edit(
        LAUNCHER,
        "ExecStart=\n"
        "ExecStart=/opt/spacelift-launcher/bin/python /srv/hanging.py\n"
        "WatchdogSec=10\nTimeoutAbortSec=1",
    )
    machine.sh(f"systemctl restart {LAUNCHER}")
    before = machine.pid(LAUNCHER)

    machine.sh("touch /srv/hang")
    eventually(
        lambda: machine.pid(LAUNCHER) != before, lambda: machine.journal(LAUNCHER)
    )
    machine.sh("rm /srv/hang")
    said = killed(site, LAUNCHER, before)

    assert "Watchdog timeout" in said
    late = [each for each in machine.events(LAUNCHER) if each["msg"] == "thread.late"]
    assert {"slot-0"} == {each["thread"] for each in late}
    assert any("hanging.py" in line for line in late[0]["where"])
    machine.edit(LAUNCHER, None)


def test_a_worker_that_hangs_in_the_middle_of_a_run_is_noticed(site):
    """
    Who follows a silent run is alive; once it is stuck, another life follows the run.
    """
    machine = site.machine
    machine.put(
        "/srv/stuck.py",
        """
import os, sys, time
from launcher import worker
from launcher.adapters.engines import docker
from launcher.cli import main

listen = docker._listen

def stuck(used):
    while os.path.exists("/srv/hang"):
        time.sleep(0.1)
    listen(used)

docker._listen, docker._LISTEN_SECONDS = stuck, 1.0
worker._longest_step = lambda _: 15.0
sys.argv[0] = "spacelift-launcher"
main(["run"])
""",
    )
    machine.edit(
        LAUNCHER,
        "ExecStart=\n"
        "ExecStart=/opt/spacelift-launcher/bin/python /srv/stuck.py\n"
        "WatchdogSec=10\nTimeoutAbortSec=1",
    )
    machine.sh(f"systemctl restart {LAUNCHER}")
    with gated(site) as (run, go_on):
        before = machine.pid(LAUNCHER)
        # Longer than it takes to miss somebody.
        machine.sh("sleep 30")
        assert machine.pid(LAUNCHER) == before
        machine.sh("touch /srv/hang")
        eventually(
            lambda: machine.pid(LAUNCHER) != before, lambda: machine.journal(LAUNCHER)
        )
        machine.sh("rm /srv/hang")
        said = killed(site, LAUNCHER, before)
        go_on()

    assert "Watchdog timeout" in said
    late = [each for each in machine.events(LAUNCHER) if each["msg"] == "thread.late"]
    assert any("stuck.py" in line for line in late[-1]["where"])
    assert 1 == log(site, run).count("waiting at the gate\n")
    machine.edit(LAUNCHER, None)


def test_settings_that_are_wrong_are_not_tried_again(site):
    """
    The launcher ends with 2, and stays down until somebody has looked.

    Here power-off is for other ends, as the page says how.
    """
    machine = site.machine
    machine.edit(
        LAUNCHER,
        "Environment=SPACELIFT_LAUNCHER_RUN_TIMEOUT=soon\n"
        'Environment="SPACELIFT_POWER_OFF_ON=20 21"',
    )
    machine.tried(f"systemctl restart {LAUNCHER}")
    state = machine.show(LAUNCHER, "ActiveState"), machine.show(LAUNCHER, "NRestarts")
    machine.edit(LAUNCHER, None)
    machine.sh(f"systemctl start {LAUNCHER}")

    assert ("failed", "0") == state


def applied(machine):
    """How often the control plane has applied its configuration."""
    return sum(e["msg"] == "configuration.applied" for e in machine.events(SERVER))


def test_the_control_plane_is_a_service_as_well(site):
    """
    It is ready when it answers, reads its configuration again, and is watched.
    """
    machine = site.machine
    before = machine.pid(SERVER)
    machine.edit(SERVER, "WatchdogSec=10\nTimeoutAbortSec=1")
    machine.sh(f"systemctl restart {SERVER} && curl -s -m 9 http://127.0.0.1:8080/")
    assert "serving http://127.0.0.1:8080" == machine.show(SERVER, "StatusText")
    times = applied(machine)
    machine.sh(f"systemctl reload {SERVER}")
    eventually(lambda: applied(machine) > times)
    stopped = machine.pid(SERVER)
    machine.sh(f"kill -STOP {stopped}")
    said = killed(site, SERVER, stopped)

    assert before != stopped
    assert "Watchdog timeout" in said
    machine.edit(SERVER, None)
    machine.sh(f"systemctl restart {SERVER}")
    machine.active(LAUNCHER)
    assert "FINISHED" in finished(site)[1]


def test_a_launcher_that_is_dismissed_takes_the_machine_along(site):
    """
    A stop powers nothing off; after `dismiss` and its last run the machine is gone.
    """
    machine = site.machine
    assert (ROOT / "systemd/power-off.conf").read_text() == machine.sh(
        f"cat /etc/systemd/system/{LAUNCHER}.service.d/power-off.conf"
    )
    machine.sh(f"systemctl stop {LAUNCHER}; sleep 2; systemctl start {LAUNCHER}")
    assert machine.running

    with gated(site) as (_, go_on):
        assert "ending; jobs at work: 1\n" == machine.sh("spacelift-launcher dismiss")
        assert machine.running
        go_on()

    eventually(lambda: not machine.running)
