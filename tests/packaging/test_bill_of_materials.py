"""The bills of materials name what is in the images."""

import json
import re
import subprocess

from pathlib import Path

import pytest

from launcher import __version__


pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="bills", scope="module")
def _bills(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sbom")
    subprocess.run([ROOT / "scripts" / "setup-image"], check=True)
    subprocess.run([ROOT / "scripts" / "sbom", folder], check=True)
    return {
        name: json.loads((folder / f"{name}.cdx.json").read_text())
        for name in ("launcher", "runner")
    }


def named(bill, kind):
    """Components of one kind of package, with their versions."""
    return {
        each["name"]: each["version"]
        for each in bill["components"]
        if each.get("purl", "").startswith(f"pkg:{kind}/")
    }


def inside(image, command):
    done = subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--entrypoint=/bin/sh"]
        + [f"spacelift-launcher/{image}:local", "-c", command],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize("name", ["launcher", "runner"])
def test_they_are_cyclonedx(bills, name):
    """Each is in a format that scanners read, and says which image it is of."""
    bill = bills[name]
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == f"spacelift-launcher/{name}"


def test_all_of_the_launcher_is_named(bills):
    """Every package of Debian and every locked library is there, and so is what opa is of."""
    bill = bills["launcher"]
    packages = inside("launcher", "cd /var/lib/dpkg/status.d && ls").split()
    assert {"git", "libc6", "openssh-client", "python3.11-minimal"} <= set(packages)
    assert set(packages) <= set(named(bill, "deb"))
    libraries = named(bill, "pypi")
    assert libraries.pop("spacelift-launcher") == __version__
    locked = dict(
        re.findall(
            r"^([a-z0-9._-]+)(?:\[\S+\])?==(\S+)",
            (ROOT / "requirements" / "runtime.txt").read_text(),
            re.MULTILINE,
        )
    )
    same = lambda name: re.sub("[-_.]+", "-", name).lower()  # noqa: E731
    locked = {same(name): version for name, version in locked.items()}
    found = {same(name): version for name, version in libraries.items()}
    assert found.items() <= locked.items()
    assert {
        "boto3",
        "cryptography",
        "docker",
        "opa-py-wasm",
        "wasmtime",
    } <= found.keys()
    assert "github.com/open-policy-agent/opa" in named(bill, "golang")


def test_the_runner_is_named(bills):
    """Tools for runs are there with the versions that the distribution gave them."""
    packages = named(bills["runner"], "deb")
    listed = inside("runner", "dpkg-query -W -f '${Package} ${Version}\\n'")
    assert packages == dict(line.split() for line in listed.splitlines())
    assert {"ansible-core", "git", "jq", "openssh-client"} <= packages.keys()
