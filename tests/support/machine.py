"""A machine with systemd and an engine of its own: a container without privileges."""

import json
import subprocess
import time

from pathlib import Path


LAUNCHER = "spacelift-launcher"
SERVER = "spacelift-launcher-server"
NETWORK = "spacelift-launcher-network"
METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23")
METADATA_6 = ("fd00:ec2::254", "fd00:ec2::23")
ROOT = Path(__file__).parents[2]
IMAGE = "spacelift-launcher/systemd:local"
RUNNER = "spacelift-launcher/runner:local"
# What systemd and an engine need beside a usual container: to mount, to make networks,
# and to see the processes that they have put into a sandbox.
_OPTIONS = (
    *("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE"),
    *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
    *("--security-opt", "systempaths=unconfined"),
    *("--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
    *("--sysctl", "net.ipv4.ip_forward=1"),
    *("--sysctl", "net.ipv6.conf.all.disable_ipv6=0"),
    *("--tmpfs", "/run:exec", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec"),
    *("--env", "container=docker"),
    # An engine's file system cannot lie on another engine's.
    *("--volume", "/var/lib/docker"),
)


PATIENCE = 150.0


def eventually(condition, what=lambda: "it never happened"):
    """Wait until *condition* is true; each look may be a command on the machine."""
    until = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < until, what()
        time.sleep(0.2)
    return value


class Failed(Exception):
    """A command on the machine failed; with what it said."""


class Machine:
    def __init__(self):
        made = docker("run", "--detach", *_OPTIONS, IMAGE)
        self.name = made.strip()

    def close(self):
        docker("rm", "--force", "--volumes", self.name)

    def booted(self):
        """Wait until everything is up; nothing may have failed."""
        eventually(lambda: self.state() == "running", self.state)
        return self

    def state(self):
        return self.tried("systemctl is-system-running").stdout.strip()

    @property
    def running(self):
        return (
            docker("inspect", "--format", "{{.State.Running}}", self.name) == "true\n"
        )

    @property
    def address(self):
        return docker(
            "inspect", "--format", "{{.NetworkSettings.IPAddress}}", self.name
        ).strip()

    def tried(self, script, *, given=None, env=()):
        """What became of a script of bash, run as root."""
        options = [part for each in env for part in ("--env", each)]
        return subprocess.run(
            [
                "docker",
                "exec",
                "--interactive",
                *options,
                self.name,
                "bash",
                "-c",
                script,
            ],
            capture_output=True,
            input=given,
            text=not isinstance(given, bytes),
            timeout=240,
        )

    def sh(self, script, **options):
        """Run a script of bash; every command in it must succeed."""
        done = self.tried(f"set -euo pipefail\n{script}", **options)
        if done.returncode:
            raise Failed(f"{script}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def put(self, path, content, mode="644"):
        data = content if isinstance(content, bytes) else content.encode()
        self.sh(
            f"mkdir -p $(dirname {path}); cat >{path}; chmod {mode} {path}", given=data
        )

    def copy(self, source, path):
        """Files of the project, readable by everybody."""
        self.sh(f"mkdir -p {path}")
        docker("cp", f"{source}", f"{self.name}:{path}")

    def load(self, image):
        """Give the machine's engine an image of the tests' engine."""
        with subprocess.Popen(
            ["docker", "save", image], stdout=subprocess.PIPE
        ) as saved:
            subprocess.run(
                ["docker", "exec", "--interactive", self.name, "docker", "load", "-q"],
                stdin=saved.stdout,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        return self.sh(f"docker image inspect --format '{{{{.Id}}}}' {image}").strip()

    # --- units

    def show(self, unit, name):
        return self.sh(f"systemctl show --property {name} --value {unit}").strip()

    def pid(self, unit):
        return int(self.show(unit, "MainPID"))

    def edit(self, unit, lines, name="test"):
        """Give *unit* a drop-in; None takes it away."""
        path = f"/etc/systemd/system/{unit}.service.d/{name}.conf"
        if lines is None:
            self.sh(f"rm -f {path}; systemctl daemon-reload")
        else:
            self.put(path, f"[Service]\n{lines}\n")
            self.sh("systemctl daemon-reload")

    def events(self, unit):
        """What a daemon has logged, whole lines of JSON only."""
        said = self.sh(f"journalctl --unit {unit} --output cat --no-pager")
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    def journal(self, unit, count=60):
        return self.sh(f"journalctl --unit {unit} --no-pager --lines {count}")

    def active(self, unit):
        """Wait until *unit* is, and say what happened if it is not."""
        eventually(
            lambda: "active" == self.show(unit, "ActiveState"),
            lambda: f"{unit} is not active\n{self.journal(unit)}",
        )


def docker(*arguments):
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"docker {' '.join(arguments)}\n{done.stderr}")
    return done.stdout


def user_data(site, release, **changed):
    """Run the example's user data as an instance does; return what it says."""
    sums = {name.rpartition(".")[2]: digest for name, digest in release.sums.items()}
    settings = "\n".join(
        (
            # The image was built here, so it is known by its id and never pulled.
            f"SPACELIFT_DEFAULT_RUNNER_IMAGE={site.image}",
            f"SPACELIFT_DEFAULT_ANSIBLE_RUNNER_IMAGE={site.image}",
            f"SPACELIFT_LAUNCHER_ALLOWED_IMAGES={site.image}",
            "SPACELIFT_LAUNCHER_PULL_POLICY=never",
            "SPACELIFT_LAUNCHER_GIT_PROTOCOLS=file",
            "SPACELIFT_WORKER_EXTRA_MOUNTS=/srv/gate:/gate",
        )
    )
    given = {
        "RELEASE": "file:///srv/release",
        "WHEEL_SHA256": sums["whl"],
        "SDIST_SHA256": sums["gz"],
        "POLICY": "policy.tar.gz",
        "POLICY_SHA256": release.policy,
        "SETTINGS": settings,
        "AWS_ENDPOINT_URL_SSM": "http://169.254.169.254",
        **changed,
    }
    site.machine.copy(ROOT / "examples" / "ec2" / "user-data", "/srv")
    env = [f"{name}={value}" for name, value in given.items()]
    return site.machine.tried("bash /srv/user-data", env=env)
