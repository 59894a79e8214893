"""A pod's network, with the chart's own engine in it and a cloud around it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from pathlib import Path

from given import eventually
from support.chart import ROOT, objects
from support.machine import METADATA, METADATA_6
from support.private_engine import small_disk, tiny_image


IMAGE = "tiny:1"
POD, POD_6 = "10.77.0.2", "fd00:77::2"
OUTSIDE, OUTSIDE_6 = "10.77.0.1", "fd00:77::1"
GATEWAYS = ("10.78.0.1", "fd12:3456::1")
"""The pod's addresses on the network `six`, which is like that of runs."""
_RUNS, _RUNS_6 = "10.78.0.0/24", "fd12:3456::/64"
_SERVICE = """
import select, socket, sys
all = [
    socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    for port in sys.argv[1:]
]
print("ready", flush=True)
while True:
    for each in select.select(all, [], [])[0]:
        each.accept()[0].close()
"""


class Pod:
    """
    What the chart's container of the engine does, in a network namespace of its own.

    The image's part is played by this machine: its dockerd, and those of its programs
    for packet filters that *tools* has.
    """

    def __init__(self, folder, tools):
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name, program in tools.items():
            (self._bin / name).symlink_to(program)
        entry = self._bin / "dockerd-entrypoint.sh"
        entry.write_text(f'#!/bin/sh\necho "$@" >{folder}/asked\nexec "$@"\n')
        entry.chmod(0o755)
        self._closing = contextlib.ExitStack()
        found = objects(ROOT / "tests" / "helm" / "values" / "minimal.yaml")
        (script,) = [
            each["data"]["network"]
            for each in found
            if "network" in each.get("data", {})
        ]
        self.script = folder / "network"
        self.script.write_text(script)
        (spec,) = [
            each["spec"]["template"]["spec"]
            for each in found
            if each["kind"] == "StatefulSet"
        ]
        (self._container,) = [
            each for each in spec["initContainers"] if each["name"] == "engine"
        ]
        self.engine = None
        try:
            self._surround()
        except BaseException:
            self._closing.close()
            raise

    def _surround(self):
        """Make the namespaces of pod and cloud, and what answers in the cloud."""
        self._pod, cloud = self._namespace(), self._namespace()
        _sh(f"ip link add eth0 netns {self._pod} type veth peer eth0 netns {cloud}")
        self.sh(
            f"ip link set lo up; ip link set eth0 up; ip address add {POD}/24 dev eth0;"
            f" ip -6 address add {POD_6}/64 dev eth0 nodad;"
            f" ip route add default via {OUTSIDE};"
            f" ip -6 route add default via {OUTSIDE_6};"
            " echo 1 >/proc/sys/net/ipv4/ip_forward;"
            " echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
        )
        four = "".join(f"ip address add {each}/32 dev lo;" for each in METADATA)
        six = "".join(f"ip -6 address add {each}/128 dev lo;" for each in METADATA_6)
        _sh(
            f"ip link set lo up; ip link set eth0 up; ip address add {OUTSIDE}/24 dev"
            f" eth0; ip -6 address add {OUTSIDE_6}/64 dev eth0 nodad; {four} {six}"
            f" ip -6 route add {_RUNS_6} via {POD_6}",
            within=cloud,
        )
        self._closing.enter_context(_listening(cloud, 80))

    def _namespace(self):
        """The number of a process that is in a network namespace of its own."""
        process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self._closing.callback(_end, process)
        ours = os.readlink("/proc/self/ns/net")
        eventually(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != ours)
        return process.pid

    @property
    def environment(self):
        given = {each["name"]: each.get("value") for each in self._container["env"]}
        return {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            **{name: value for name, value in given.items() if value is not None},
            "DOCKER_HOST": self.host,
        }

    def sh(self, script, **environment):
        """What became of a script in the pod's network."""
        return _sh(script, within=self._pod, env=self.environment | environment)

    def command(self):
        """That of the container, with the places that it has on this machine."""
        places = {
            "/etc/spacelift-launcher/network/network": str(self.script),
            "unix:///run/engine/docker.sock": self.host,
            "/var/lib/docker": f"{self.folder}/data",
        }
        words = [*self._container["command"], *self._container["args"]]
        for place, here in places.items():
            words = [word.replace(place, here) for word in words]
        return [
            *_within(self._pod),
            *words,
            *(f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid"),
        ]

    def start(self):
        """Start the container, and wait for the engine in it."""
        for pid in ("pid", "exec/containerd/containerd.pid"):
            (self.folder / pid).unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.engine = subprocess.Popen(
                self.command(),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(self._answers)

    def _answers(self):
        assert self.engine.poll() is None, (self.folder / "log").read_text()
        done = subprocess.run(
            ["docker", "-H", self.host, "version"], capture_output=True, check=False
        )
        return done.returncode == 0

    def stop(self):
        if self.engine is not None and self.engine.poll() is None:
            _end(self.engine)

    def load(self):
        subprocess.run(
            ["docker", "-H", self.host, "import", "-", IMAGE],
            input=tiny_image("bash", "timeout"),
            check=True,
            capture_output=True,
        )
        self.sh(
            f"docker network create --ipv6 --subnet {_RUNS} --subnet {_RUNS_6}"
            " --opt com.docker.network.bridge.name=spl-six six"
        )

    def checked(self, **environment):
        """What the launcher's own check says, from beside the engine."""
        return subprocess.run(
            [
                *_within(self._pod),
                *(sys.executable, "-m", "launcher", "check-network"),
                *("--image", IMAGE),
            ],
            env={"PATH": os.environ["PATH"], "DOCKER_HOST": self.host, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def listening(self, *ports):
        """Something in the pod takes connections at *ports*, within the block."""
        return _listening(self._pod, *ports)

    def reaches(self, address, port, network="six"):
        """Whether a run's container gets a connection there."""
        script = f": >/dev/tcp/{address}/{port}"
        done = subprocess.run(
            [
                *("docker", "-H", self.host, "run", "--rm", "--network", network),
                *(IMAGE, "timeout", "5", "bash", "-c", script),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        # At once, so that nobody waits who looks for credentials there.
        assert not done.returncode or "Connection refused" in done.stderr, done.stderr
        return done.returncode == 0

    def close(self):
        self.stop()
        self._closing.close()


def _within(pid):
    return ("nsenter", "--target", str(pid), "--net")


def _sh(script, within=None, env=None):
    done = subprocess.run(
        [*(_within(within) if within else ()), "sh", "-ec", script],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, f"{script}\n{done.stdout}\n{done.stderr}"
    return done


@contextlib.contextmanager
def _listening(pid, *ports):
    service = subprocess.Popen(
        [*_within(pid), sys.executable, "-c", _SERVICE, *map(str, ports)],
        stdout=subprocess.PIPE,
    )
    try:
        assert b"ready\n" == service.stdout.readline()
        yield
    finally:
        _end(service)
        service.stdout.close()


def _end(process):
    process.send_signal(signal.SIGTERM)
    process.wait(60)


@contextlib.contextmanager
def a_pod(tools):
    """A pod with the programs *tools* for packet filters, by their names there."""
    folder = Path(tempfile.mkdtemp(prefix="pod-", dir="/tmp"))
    try:
        with small_disk(folder, "256m"):
            pod = Pod(folder, tools)
            try:
                yield pod
            finally:
                pod.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
