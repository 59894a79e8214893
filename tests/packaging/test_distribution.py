"""Wheel and source distribution, built and installed as a user would."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile

from pathlib import Path

import pytest
import yaml

from examples.demo.api import Api
from examples.demo.processes import start_server
from launcher import __version__


ROOT = Path(__file__).parents[2]


def run(*command, **options):
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(*paths):
    listed = run(
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        *paths,
        cwd=ROOT,
    )
    return {each for each in listed.splitlines() if (ROOT / each).exists()}


@pytest.fixture(name="built", scope="module")
def _built(tmp_path_factory):
    """The wheel is built from the source distribution, as everybody else's will be."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", f"--outdir={folder}", ROOT)
    return folder


@pytest.fixture(name="wheel", scope="module")
def _wheel(built):
    return built / f"spacelift_launcher-{__version__}-py3-none-any.whl"


@pytest.fixture(name="source", scope="module")
def _source(built):
    return built / f"spacelift_launcher-{__version__}.tar.gz"


@pytest.fixture(name="clean", scope="module")
def _clean(tmp_path_factory):
    """An environment with the locked libraries and nothing of this project."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", folder)
    for name in ("build", "runtime"):
        run(
            *(
                folder / "bin" / "pip",
                "install",
                "--require-hashes",
                "--only-binary=:all:",
                "--no-compile",
            ),
            *("--requirement", ROOT / "requirements" / f"{name}.txt"),
        )
    return folder


def test_what_changed_is_told():
    """The newest section of the changelog is this version's, and so is the upgrade page's."""
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search("^## (.*)$", changes, re.MULTILINE)[1].split()[0] == __version__
    assert f"\n| {__version__} | " in (ROOT / "docs" / "upgrade.md").read_text()


def test_an_index_would_take_them(wheel, source):
    """Names, metadata and the page that an index shows are in order."""
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)


def test_all_of_the_program_is_in_the_wheel(wheel):
    """Templates, migrations, schemas, scripts and pages come along, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {each for each in archive.namelist() if ".dist-info/" not in each}
        metadata = archive.read(f"spacelift_launcher-{__version__}.dist-info/METADATA")
    assert names == tracked("launcher")
    suffixes = {Path(each).suffix for each in names}
    assert {".css", ".graphql", ".html", ".js", ".py", ".sh"} <= suffixes
    assert "License-Expression: Apache-2.0" in metadata.decode()


def test_the_source_distribution_is_enough(source):
    """It has the program, its licence and what changed, and builds by itself."""
    root = f"spacelift_launcher-{__version__}"
    with tarfile.open(source) as archive:
        names = {each.removeprefix(f"{root}/") for each in archive.getnames()}
    assert tracked("launcher") <= names
    assert {
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "SECURITY.md",
        "pyproject.toml",
    } <= names


@pytest.mark.parametrize("what", ["wheel", "source"])
def test_it_works_where_it_is_installed(what, clean, tmp_path, request):
    """
    In a clean environment, away from the sources, the commands are there and work.

    The control plane migrates its database, answers GraphQL and shows its pages.
    """
    run(
        *(clean / "bin" / "pip", "install", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--force-reinstall", request.getfixturevalue(what)),
    )
    run(clean / "bin" / "pip", "check")
    command = [str(clean / "bin" / "spacelift-launcher")]
    # Nothing of where the tests run.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    outside = {"cwd": tmp_path, "env": environment}
    assert run(*command, "--version", **outside).strip().endswith(__version__)
    assert '"$schema"' in run(*command, "policy", "schema", **outside)
    without = subprocess.run(
        [*command, "run"], capture_output=True, text=True, **outside
    )
    assert (without.returncode, "SPACELIFT_TOKEN" in without.stderr) == (2, True)
    where = "import launcher; print(launcher.__file__)"
    assert str(clean) in run(clean / "bin" / "python", "-c", where, **outside)

    config = tmp_path / "control-plane.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "account": "acme",
                "api_keys": [{"id": "ci", "secret_env": "CI_SECRET"}],
                "worker_pools": [{"name": "default"}],
            }
        )
    )
    server, addresses = start_server(
        tmp_path, config, {"CI_SECRET": "ci-secret", "PYTHONPATH": ""}, command=command
    )
    try:
        api = Api(addresses.people, "ci", "ci-secret")
        assert api.query("{viewer{id}}", {})["viewer"]
    finally:
        server.signal(signal.SIGTERM)
        assert server.wait(60) == 0
