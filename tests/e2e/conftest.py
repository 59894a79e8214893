import contextlib
import secrets
import subprocess

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from examples.demo.api import Api
from examples.demo.demo import image_id
from examples.demo.processes import (
    COMMAND,
    Addresses,
    make_repository,
    pool_variables,
    start_launcher,
    start_server,
)


DEMO = Path(__file__).parents[2] / "examples" / "demo"
SECRET = f"s3cret-{secrets.token_hex(12)}"
ENVIRONMENT = {"CI_SECRET": "ci-secret", "STACK_SECRET": SECRET}


@dataclass
class Site:
    """A control plane with stacks of its own, and as many launchers as wanted."""

    folder: Path
    server: object
    addresses: Addresses
    api: Api
    launchers: list = field(default_factory=list)
    relay: str = ""
    """Where launchers find the control plane, if not at its own address."""

    def pool(self, name="default", make="create"):
        """Token and key of a worker pool, as variables."""
        endpoint = self.relay or self.addresses.workers
        return pool_variables(self.folder, name, endpoint, make)

    def launcher(self, name="launcher", *, command=COMMAND, **environment):
        image = image_id()
        started = start_launcher(
            self.folder,
            self.pool(),
            {
                "SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY": str(
                    DEMO / "policy.rego"
                ),
                "SPACELIFT_DEFAULT_RUNNER_IMAGE": image,
                "SPACELIFT_DEFAULT_ANSIBLE_RUNNER_IMAGE": image,
                "SPACELIFT_LAUNCHER_ALLOWED_IMAGES": image,
                "SPACELIFT_LAUNCHER_PULL_POLICY": "never",
                "SPACELIFT_LAUNCHER_GIT_PROTOCOLS": "file",
                **environment,
            },
            name=name,
            command=command,
        )
        self.launchers.append(started)
        return started

    def restart_server(self):
        """Start it again at the same address, with the same database."""
        self.server, _ = start_server(
            self.folder,
            self.folder / "control-plane.yaml",
            ENVIRONMENT,
            at=self.addresses,
        )

    def follow(self, stack, run, *, until="", seen=None):
        """States in order, and the text of each."""
        texts = {}
        for state, text in self.api.follow(stack, run, until=until, seen=seen):
            texts[state] = texts.get(state, "") + text
        return texts

    def deploy(self, stack, **options):
        run = self.api.trigger(stack, **options)
        return run, self.follow(stack, run, until="UNCONFIRMED")

    def leftovers(self, name="launcher"):
        instance = (self.folder / name / "instance").read_text().strip()
        label = f"label=spacelift.launcher.instance={instance}"
        return [
            docker(*kind, "--quiet", "--filter", label)
            for kind in (["container", "ls", "--all"], ["volume", "ls"])
        ]


def docker(*arguments):
    done = subprocess.run(
        ["docker", *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def stack(slug, folder, repository, **overrides):
    return {
        "slug": slug,
        "name": slug.replace("-", " ").title(),
        "repository": f"acme/{slug}",
        "source": {"git": f"file://{folder / 'repositories' / repository}"},
        "branch": "main",
        "vendor": "ansible",
        "vendor_config": {"playbook": "playbook.yml"},
        "worker_pool": "default",
        **overrides,
    }


@contextlib.contextmanager
def opened(folder, stacks, repository="ansible", *, server_command=COMMAND, **more):
    """A site with the given stacks; everything in it is stopped at the end."""
    for source in ("ansible", "terraform"):
        make_repository(DEMO / "stacks" / source, folder / "repositories" / source)
    config = folder / "control-plane.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "account": "acme",
                "api_keys": [{"id": "ci", "secret_env": "CI_SECRET"}],
                "worker_pools": [{"name": "default"}, {"name": "other"}],
                "stacks": [
                    stack(folder=folder, repository=repository, **given)
                    for given in stacks
                ],
            }
        )
    )
    server, addresses = start_server(
        folder, config, {**ENVIRONMENT, **more}, command=server_command
    )
    site = Site(folder, server, addresses, Api(addresses.people, "ci", "ci-secret"))
    try:
        yield site
    finally:
        codes = [launcher.stop() for launcher in site.launchers]
        codes.append(site.server.stop())
    assert [0] * len(codes) == codes


@pytest.fixture
def open_site(tmp_path):
    """Opens a site for one test."""
    with contextlib.ExitStack() as closing:
        yield lambda *given, **options: closing.enter_context(
            opened(tmp_path / "site", *given, **options)
        )
