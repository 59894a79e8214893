"""The image that runs use by default, seen from inside of a run's own container."""

import contextlib
import json
import subprocess

import pytest

from support.engines import DockerSite, run


pytestmark = pytest.mark.services


@pytest.fixture(name="site", scope="module")
def _site():
    with contextlib.closing(DockerSite()) as site:
        yield site


@pytest.fixture(name="printed", scope="module")
def _printed(site):
    """What a phase learns about the image, by question."""
    questions = {
        "tools": "for tool in ansible ansible-playbook curl git jq ps python3 ssh;"
        " do command -v $tool >/dev/null || echo lacks $tool; done",
        "own": 'for file in /usr/local/bin/*; do [ -x "$file" ] && "$file" version'
        " >/dev/null && basename $file; done",
        "user": "id -un; id -u; id -g; cd ~ && pwd",
        "raised": "find / -xdev -perm /6000 -type f 2>/dev/null; true",
        "others": "find / -xdev -perm -o+w ! -type l ! -type c"
        " ! -path '/tmp*' ! -path '/var/tmp*' ! -path '/run/lock*' ! -path '/mnt*'"
        " 2>/dev/null; true",
        "locale": "python3 -c 'import locale; print(locale.getpreferredencoding())'",
        "play": "printf '[{hosts: localhost, connection: local, gather_facts: false,"
        " tasks: [{ping: {}}]}]' > p.yml && ansible-playbook p.yml 2>/dev/null",
        "shell": "readlink -f /bin/sh; set -o | grep -c pipefail; true",
        "certificates": "[ -s /etc/ssl/certs/ca-certificates.crt ] && echo there",
        "lists": "ls /var/lib/apt/lists",
    }
    commands = [f"echo '=== {name}'; ({text})" for name, text in questions.items()]
    with site.sandbox() as sandbox:
        result, printed = run(sandbox, *commands)
    assert result.ok, printed.decode()
    parts = printed.decode().split("=== ")[1:]
    return {
        name.strip(): answer.strip()
        for name, _, answer in (part.partition("\n") for part in parts)
    }


def test_the_tools_are_there(printed):
    """Ansible and what hooks expect are installed; what was copied in runs here."""
    assert printed["tools"] == ""
    assert set(printed["own"].split()) <= {"tofu", "terraform"}
    assert "ok=1" in printed["play"]
    assert printed["certificates"] == "there"


def test_it_is_for_one_user(printed):
    """1983 has a name and a home, and nothing in the image raises anybody's rights."""
    assert printed["user"].split() == ["spacelift", "1983", "1983", "/home/spacelift"]
    assert printed["raised"] == ""
    assert printed["others"] == ""


def test_its_shell_is_plain(printed):
    """`sh` is dash, which the entry script was written for, in a UTF-8 locale."""
    assert printed["shell"].splitlines()[0].endswith("/dash")
    assert printed["locale"] == "UTF-8"
    assert printed["lists"] == ""


def test_phases_end_as_their_commands_do(site):
    """In its shell, a failed command ends the phase with its code, a good one goes on."""
    with site.sandbox() as sandbox:
        good, printed = run(sandbox, "echo one", "echo two >&2")
        assert (good.code, printed) == (0, b"one\ntwo\n")
    with site.sandbox() as sandbox:
        bad, printed = run(sandbox, "echo one", "(exit 7)", "echo never")
        assert (bad.code, printed) == (7, b"one\n")


def test_it_says_what_it_is():
    """User, labels and working directory are those of an image for runs."""
    inspected = subprocess.run(
        ["docker", "image", "inspect", "spacelift-launcher/runner:local"],
        check=True,
        capture_output=True,
    )
    (image,) = json.loads(inspected.stdout)
    assert image["Config"]["User"] in ("spacelift", "1983:1983")
    assert image["Config"]["WorkingDir"] == "/home/spacelift"
    assert (
        image["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    )
