import hashlib
import re
import subprocess
import sys

from types import SimpleNamespace

import pytest

from examples.demo.api import Api
from examples.demo.processes import make_repository
from support.machine import (
    LAUNCHER,
    METADATA,
    METADATA_6,
    ROOT,
    RUNNER,
    Machine,
    user_data,
)


# A stack of which tests can see and decide how far it gets: its runs stay in planning
# until there is a file, and print what they can reach.
STACK = """
  - slug: gated
    name: Gated
    repository: acme/gated
    source: {git: "file:///srv/git/hello"}
    branch: main
    vendor: ansible
    vendor_config: {playbook: playbook.yml}
    worker_pool: default
    hooks:
      before_plan:
        - echo waiting at the gate
        - while [ ! -e /gate/open ]; do sleep 0.2; done
        - /gate/look || true
"""


def commands():
    """The page's commands, in order."""
    page = (ROOT / "docs" / "install-ec2.md").read_text()
    return re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)


@pytest.fixture(scope="package")
def release(tmp_path_factory):
    """Wheel and source of the project as it is now, with their checksums."""
    folder = tmp_path_factory.mktemp("release")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    sums = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
    }
    (folder / "SHA256SUMS").write_text(
        "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    )
    policy = folder / "policy.rego"
    policy.write_text(
        'package spacelift\n\ndeny contains "no" if input.run.id == ""\n\nsample := true\n'
    )
    subprocess.run(
        [
            *("opa", "build", "--target", "wasm", "--output", folder / "policy.tar.gz"),
            *("-e", "spacelift", policy),
        ],
        check=True,
        capture_output=True,
    )
    policy_sum = hashlib.sha256((folder / "policy.tar.gz").read_bytes()).hexdigest()
    return SimpleNamespace(folder=folder, sums=sums, policy=policy_sum)


@pytest.fixture(scope="package")
def bare(release, tmp_path_factory):
    """A machine that has booted, and what it finds around it: code, images, a cloud."""
    machine = Machine()
    try:
        image = machine.booted().load(RUNNER)
        machine.copy(f"{release.folder}/.", "/srv/release")
        machine.copy(ROOT / "tests" / "systemd" / "cloud.py", "/srv")
        work, served = (tmp_path_factory.mktemp("git") / "hello" for _ in range(2))
        make_repository(ROOT / "examples/demo/stacks/ansible", work)
        subprocess.run(["git", "clone", "--quiet", "--bare", work, served], check=True)
        machine.copy(served, "/srv/git")
        machine.sh(
            f"""
            chmod -R a+rX /srv
            echo '127.0.0.1 cp.example.com' >>/etc/hosts
            for a in {" ".join(METADATA)}; do ip address add $a/32 dev lo; done
            for a in {" ".join(METADATA_6)}; do ip address add $a/128 dev lo nodad; done
            systemd-run --quiet --unit cloud python3 /srv/cloud.py \
              {" ".join(METADATA + METADATA_6)}
            curl -s --retry 20 --retry-connrefused http://169.254.169.254/ >/dev/null
            """
        )
        yield SimpleNamespace(machine=machine, image=image)
    finally:
        machine.close()


@pytest.fixture(scope="package")
def site(bare, release):
    """Control plane and launcher, installed as the page says."""
    machine = bare.machine
    script = "\n".join(commands())
    for theirs, ours in (
        ("https://downloads.example.com/spacelift-launcher", "file:///srv/release"),
        ("https://git.example.com/acme/hello.git", "file:///srv/git/hello"),
    ):
        assert theirs in script
        script = script.replace(theirs, ours)
    machine.sh(script)
    machine.put("/srv/stack.yaml", STACK)
    machine.put(
        "/srv/gate/look",
        f"""#!/bin/bash
        # The machine itself: the control plane listens at all of its addresses.
        gateway=$(python3 -c '
import socket, struct
for line in open("/proc/net/route"):
    words = line.split()
    if words[1] == "00000000":
        print(socket.inet_ntoa(struct.pack("<L", int(words[2], 16))))')
        for at in {" ".join(f"{each}/80" for each in METADATA)} $gateway/8443; do
          if timeout 5 bash -c ": >/dev/tcp/$at"; then
            echo "reached $at"
          else
            echo "kept from $at"
          fi
        done
        echo looked around
        """,
        mode="755",
    )
    secret = machine.sh(
        """
        cat /srv/stack.yaml >>/etc/spacelift/control-plane.yaml
        systemctl reload spacelift-launcher-server
        . /root/pool.env
        mkdir -p /srv/parameters
        echo "$SPACELIFT_TOKEN" >/srv/parameters/spacelift-token
        echo "$SPACELIFT_POOL_PRIVATE_KEY" >/srv/parameters/spacelift-pool-private-key
        sed -n 's/^CI_SECRET=//p' /etc/spacelift/server.env
        """
    ).strip()
    done = user_data(bare, release)
    assert 0 == done.returncode, done.stderr
    machine.active(LAUNCHER)
    # From outside, people come by a tunnel.
    machine.sh(
        "systemd-run --quiet --unit tunnel --socket-property=ListenStream=18080"
        " /lib/systemd/systemd-socket-proxyd 127.0.0.1:8080"
    )
    api = Api(f"http://{machine.address}:18080", "ci", secret)
    return SimpleNamespace(machine=machine, api=api, image=bare.image, data=done.stderr)
