"""A private image from a real registry: what it takes to pull it stays with the launcher."""

import base64
import json
import subprocess

from pathlib import Path

import psutil
import pytest

from given import eventually
from support.private_engine import tiny_image
from support.registry import PASSWORD, USER, Registry

from .conftest import docker


pytestmark = pytest.mark.services

WRONG = "hunter2-of-somebody-else"


def auth(password):
    return {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}


SECRETS = (PASSWORD, WRONG, auth(PASSWORD)["auth"], auth(WRONG)["auth"])


@pytest.fixture(name="image")
def _image(tmp_path):
    """A private image, only in its registry."""
    with Registry(tmp_path) as registry:
        image = f"{registry.host}/team/runner:1"
        subprocess.run(
            ["docker", "import", "-", image],
            input=tiny_image(),
            check=True,
            capture_output=True,
        )
        (tmp_path / "config.json").write_text(
            json.dumps({"auths": {registry.host: auth(PASSWORD)}})
        )
        docker("--config", str(tmp_path), "push", image)
        made = docker("image", "inspect", "--format={{.Id}}", image)
        docker("image", "rm", "--force", made)
        yield image
        docker("image", "rm", "--force", made)


@pytest.fixture(name="marks")
def _marks(tmp_path):
    """A folder that jobs share with the test; nothing is held when it ends."""
    marks = tmp_path / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    yield marks
    (marks / "go").touch()


def test_no_credential_leaves_the_launcher(image, open_site, marks):
    """
    No part of a login is in the engine's objects, in arguments, environment or any log.
    """
    held = (
        ": >/marks/here; until [ -e /marks/go ]; do sleep 0.1; done; export -p; exit 3"
    )
    site = open_site(
        [
            {
                "slug": "private",
                "runner_image": image,
                "hooks": {"before_init": [held]},
            },
            {"slug": "refused", "runner_image": image.replace("team", "others")},
        ]
    )
    host = image.partition("/")[0]
    auths = {f"{host}/team": auth(PASSWORD), f"{host}/others": auth(WRONG)}
    launcher = site.launcher(
        SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG=json.dumps({"auths": auths}),
        SPACELIFT_LAUNCHER_PULL_POLICY="always",
        SPACELIFT_WORKER_EXTRA_MOUNTS=f"{marks}:/marks",
    )
    run = site.api.trigger("private")
    eventually((marks / "here").exists)

    instance = (site.folder / "launcher" / "instance").read_text().strip()
    ours = f"label=spacelift.launcher.instance={instance}"
    [container] = docker("container", "ls", "--quiet", "--filter", ours).split()
    processes = [launcher.pid, *_below(launcher.pid)]
    shown = [
        docker("container", "inspect", container),
        docker("container", "top", container, "-eo", "pid,args"),
        docker("image", "inspect", image.partition(":1")[0] + "@" + _digest(container)),
        *(_read(pid, name) for pid in processes for name in ("cmdline", "environ")),
    ]
    assert image.rpartition(":")[0] in shown[0]
    (marks / "go").touch()
    texts = site.follow("private", run)
    refused = site.follow("refused", site.api.trigger("refused"))

    assert f'"{USER}' not in shown[0]
    assert "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG" in "".join(refused.values())
    shown += [*texts.values(), *refused.values(), launcher.log.read_text()]
    for secret in SECRETS:
        assert secret not in "".join(shown)


def _digest(container):
    """Of the image that a container was made of."""
    return docker("container", "inspect", "--format={{.Config.Image}}", container)[-71:]


def _below(pid):
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _read(pid, name):
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except FileNotFoundError:  # a process that has ended meanwhile
        return ""
