"""The image of launcher and control plane, as it is built and as it runs."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

from pathlib import Path

import pytest

from e2e.conftest import opened
from launcher import __version__
from support.chart import objects


pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
IMAGE = "spacelift-launcher/launcher:local"
RUNNER = "spacelift-launcher/runner:local"
LOCKED_DOWN = [
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp",
]


@pytest.fixture(name="image", scope="module", autouse=True)
def _image():
    """Built from the Dockerfile as it is now."""
    subprocess.run([ROOT / "scripts" / "setup-image"], check=True)
    (image,) = json.loads(docker("image", "inspect", IMAGE))
    return image


def docker(*arguments, given=None):
    done = subprocess.run(
        ["docker", *arguments], input=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def inside(program, *arguments, options=(), given=None):
    """What a program of the image prints, in a container that may do nothing."""
    start = [*("run", "--rm", "--interactive", "--network=none"), *LOCKED_DOWN]
    start += [*options, f"--entrypoint={program}", IMAGE]
    return docker(*start, *arguments, given=given)


def test_what_is_written_on_it(image):
    """It is small, belongs to nobody privileged, and says what it is."""
    config = image["Config"]
    assert image["Size"] <= 200_000_000
    assert config["User"] == "1983:1983"
    assert (config["Entrypoint"], config["Cmd"]) == (["spacelift-launcher"], ["run"])
    assert config["Healthcheck"]["Test"] == ["CMD", "healthy"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.title"] == "spacelift-launcher"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not config.get("Volumes")


def test_its_programs_run():
    """With a read-only root and no capabilities, all that a launcher calls is there."""
    lines = inside(
        "sh",
        "-c",
        "spacelift-launcher --version; git --version; ssh -V 2>&1; id -u; id -g;"
        " python3 -c 'import zoneinfo; print(zoneinfo.ZoneInfo(\"Europe/Vienna\"))';"
        " opa version",
    ).splitlines()
    assert lines[0] == f"spacelift-launcher, version {__version__}"
    assert lines[1].startswith("git version 2.")
    assert lines[2].startswith("OpenSSH_")
    assert lines[3:6] == ["1983", "1983", "Europe/Vienna"]
    assert lines[6].startswith("Version: 1.")


LOOK_AROUND = r"""
import glob, importlib, os, pathlib, pkgutil, subprocess
import launcher
for module in pkgutil.walk_packages(launcher.__path__, "launcher."):
    # It is one of Ansible's own, which brings along what it imports.
    if not module.name.endswith(("__main__", "ansible_plan_callback", "versions.env")) \
            and ".migrations." not in module.name and ".testing" not in module.name:
        importlib.import_module(module.name)
for name in ("boto3", "psycopg_binary", "alembic.command", "wasmtime", "re2"):
    importlib.import_module(name)
import boto3
for service in ("ecr", "s3", "sts"):
    boto3.client(service, region_name="eu-west-1")
LINKER = [*glob.glob("/lib64/ld-linux-*"), *glob.glob("/lib/ld-linux-*")][0]
missing, raised, writable = [], [], []
for folder, folders, files in os.walk("/"):
    if folder == "/":
        folders[:] = [each for each in folders if each not in ("proc", "sys", "dev")]
    for each in files:
        path = pathlib.Path(folder, each)
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        if mode & 0o6000:
            raised.append(str(path))
        if mode & 0o022 or path.stat().st_uid != 0:
            writable.append(str(path))
        if ".so" in each or mode & 0o111:
            with path.open("rb") as file:
                if file.read(4) != b"\x7fELF":
                    continue
            found = subprocess.run([LINKER, "--list", path],
                                   capture_output=True, text=True)
            if "not found" in found.stdout + found.stderr:
                missing.append(f"{path}: {found.stdout}")
print(missing, raised, writable)
"""


def test_nothing_is_missing_and_nothing_too_much():
    """
    Every module and library finds what it needs; no file is the user's, or raises rights.
    """
    assert inside("python3", "-", given=LOOK_AROUND) == "[] [] []\n"


def test_a_policy_is_compiled_and_asked(tmp_path):
    """The image's own `opa` and WebAssembly engine judge a run."""
    (tmp_path / "policy.rego").write_text('package spacelift\ndeny["no"] { true }\n')
    (tmp_path / "input.json").write_text("{}")
    tmp_path.chmod(0o755)
    command = "policy eval --policy /given/policy.rego --input /given/input.json; true"
    answer = inside(
        "sh",
        "-c",
        f"spacelift-launcher {command}",
        options=[f"--volume={tmp_path}:/given:ro"],
    )
    assert json.loads(answer)["outcome"] == "deny"


@contextlib.contextmanager
def running(*arguments, options):
    container = docker("run", "--detach", *LOCKED_DOWN, *options, IMAGE, *arguments)
    try:
        yield container.strip()
    finally:
        docker("rm", "--force", "--volumes", container.strip())


def test_it_is_a_control_plane(tmp_path):
    """
    As the chart starts it, read-only and behind a proxy, it becomes healthy.

    It serves people at all addresses, and makes tokens where the notes say how.
    """
    container, config = of_the_chart("control-plane", "control-plane.yaml")
    folder = handed_over(tmp_path / "configuration", {"control-plane.yaml": config})
    secrets_ = handed_over(tmp_path / "secrets", {"ci": "ci-secret"})
    with running(
        *container["args"],
        options=[
            f"--volume={folder}:/etc/spacelift-control-plane/configuration:ro",
            f"--volume={secrets_}:/etc/spacelift-control-plane/secrets:ro",
            "--volume=/var/lib/spacelift-control-plane",
            "--health-interval=1s",
        ],
    ) as name:

        def state():
            (found,) = json.loads(docker("inspect", name))
            assert found["State"]["Running"], docker("logs", name)
            return found

        # Asked every second until then; it leaves this state by itself.
        while (health := state()["State"]["Health"])["Status"] == "starting":
            threading.Event().wait(0.5)
        assert health["Status"] == "healthy", (health, docker("logs", name))
        address = state()["NetworkSettings"]["IPAddress"]
        with urllib.request.urlopen(f"http://{address}:8080/healthz") as answer:
            assert answer.status == 200
        # Nobody has signed in; the page with the form is one of the image's templates.
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{address}:8080/")
        with caught.value as answer:
            assert (answer.code, b"<form" in answer.read()) == (401, True)
        made = docker(
            *("exec", name, "spacelift-launcher", "pool", "create", "default"),
            *("--data-directory", "/var/lib/spacelift-control-plane/data"),
            *("--endpoint", "https://release-workers.spacelift.svc:8443"),
            *(each for each in container["args"] if each.startswith("--database")),
        )
        assert made.startswith("SPACELIFT_TOKEN=")
        docker("stop", "--time=20", name)
        (stopped,) = json.loads(docker("inspect", name))
        assert stopped["State"]["ExitCode"] == 0


def test_it_is_a_launcher(tmp_path):
    """
    As the chart starts it, it takes a run from the trigger to FINISHED.

    It has the engine's socket, a volume that belongs to its group, and secrets in files;
    it is not root, its own root is read-only, and SIGTERM drains it.
    """
    marker = secrets.token_hex(8)
    hooks = {"before_init": [f"echo marker: {marker}"]}
    volume = docker("volume", "create").strip()
    own = ["sh", "-c", "chown 0:1983 /state && chmod 2775 /state"]
    try:
        docker(*("run", "--rm", "--user=0", f"--volume={volume}:/state", RUNNER), *own)
        with opened(tmp_path / "site", [{"slug": "imaged", "hooks": hooks}]) as site:
            site.launcher(command=contained(site, tmp_path, volume))
            run, planned = site.deploy("imaged")
            assert f"marker: {marker}" in planned["INITIALIZING"]
            site.api.confirm("imaged", run)
            assert "FINISHED" in site.follow("imaged", run)
    finally:
        docker("volume", "rm", volume)


def of_the_chart(name, values):
    """A container as the chart describes it, and the control plane's configuration."""
    found = objects(ROOT / "tests" / "helm" / "values" / values)
    (container,) = [
        each
        for workload in found
        if workload["kind"] == "StatefulSet"
        for each in workload["spec"]["template"]["spec"]["containers"]
        if each["name"] == name
    ]
    texts = [
        each["data"]["control-plane.yaml"]
        for each in found
        if "control-plane.yaml" in each.get("data", {})
    ]
    return container, next(iter(texts), "")


def handed_over(folder, files):
    """A folder as Kubernetes mounts secrets for group 1983."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o440)
        os.chown(folder / name, 0, 1983)
    return folder


def contained(site, folder, volume):
    """The command that starts a launcher in a container, with the chart's variables."""
    container, _ = of_the_chart("launcher", "complete.yaml")
    chosen = {
        "SPACELIFT_TOKEN_FILE",
        "SPACELIFT_POOL_PRIVATE_KEY_FILE",
        "SPACELIFT_LAUNCHER_RUN_TIMEOUT",
        "SPACELIFT_LAUNCHER_APPLY_GRACE",
        "SPACELIFT_LAUNCHER_STATE_DIR",
        "SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY",
        "DOCKER_HOST",
    }
    chart = [
        f"--env={each['name']}={each['value']}"
        for each in container["env"]
        if each["name"] in chosen
    ]
    assert len(chart) == len(chosen)
    of_this_site = [
        "SPACELIFT_LAUNCHER_LISTEN",
        "SPACELIFT_DEFAULT_RUNNER_IMAGE",
        "SPACELIFT_DEFAULT_ANSIBLE_RUNNER_IMAGE",
        "SPACELIFT_LAUNCHER_ALLOWED_IMAGES",
        "SPACELIFT_LAUNCHER_PULL_POLICY",
        "SPACELIFT_LAUNCHER_GIT_PROTOCOLS",
    ]
    pool = site.pool()
    credentials = {
        "token": pool["SPACELIFT_TOKEN"],
        "private-key": pool["SPACELIFT_POOL_PRIVATE_KEY"],
    }
    policy = (ROOT / "examples" / "demo" / "policy.rego").read_text()
    mounted = {
        "credentials": handed_over(folder / "credentials", credentials),
        "policy": handed_over(folder / "policy", {"policy.rego": policy}),
    }
    repositories = site.folder / "repositories"
    # git believes only repositories of whoever reads them.
    copies = folder / "copies"
    shutil.copytree(repositories, copies)
    for config in copies.glob("*/.git/config"):
        # Where the demo's files are, which are not in the container.
        unset = ["git", "config", "--file", config, "--unset", "core.worktree"]
        subprocess.run(unset, check=True)
    subprocess.run(["chown", "--recursive", "1983:1983", copies], check=True)
    socket = Path(os.environ["DOCKER_HOST"].removeprefix("unix://"))
    return [
        *("docker", "run", "--rm", "--network=host", *LOCKED_DOWN, *chart),
        *(f"--env={name}" for name in of_this_site),
        f"--group-add={socket.stat().st_gid}",
        f"--volume={socket}:/run/engine/docker.sock",
        f"--volume={volume}:/var/lib/spacelift-launcher",
        f"--volume={copies}:{repositories}:ro",
        *(
            f"--volume={path}:/etc/spacelift-launcher/{name}:ro"
            for name, path in mounted.items()
        ),
        IMAGE,
    ]
