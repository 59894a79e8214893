"""The engines under test, fake and real, with the same handles on both."""

import contextlib
import os

from dataclasses import dataclass, field, replace

from given import a_job
from launcher.adapters.engines.docker import LABEL, DockerEngine, connect
from launcher.cancel import CancelToken
from launcher.images import Permit, Reference
from launcher.model import WORKSPACE, AdmittedJob, SandboxSpec
from launcher.script import phase_script
from launcher.settings import HostSettings, Settings
from launcher.tarstream import Archive
from launcher.testing.engine import ShellEngine
from ulid import ULID


RUNNER = "spacelift-launcher/runner:local"
STOP_SECONDS = 1.0


def permit(text):
    return Permit(reference=Reference.parse(text), rule="tests")


def files(**contents):
    """An archive with files of the workspace; ``__`` in a name stands for a dot."""
    archive = Archive()
    archive.directory(WORKSPACE.strip("/"))
    for name, content in contents.items():
        path = f"{WORKSPACE.strip('/')}/{name.replace('__', '.')}"
        mode = 0o755 if content.startswith(b"#!") else 0o644
        archive.file(path, content, mode=mode)
    return archive


@dataclass
class Printed:
    """An `Output` that keeps what it is given, and may react to it."""

    data: bytearray = field(default_factory=bytearray)
    reactions: dict = field(default_factory=dict)

    def __call__(self, data):
        self.data += data
        for text in [text for text in self.reactions if text in self.data]:
            self.reactions.pop(text)()

    @property
    def text(self):
        return bytes(self.data)


class Site:
    """What the tests need of an engine, besides the engine."""

    engine = None
    image = ""

    @contextlib.contextmanager
    def sandbox(self, archive=None, *, job=None, image=None, **spec):
        """An open sandbox, filled."""
        job = job or a_job(id=str(ULID()))
        image = self.engine.resolve(permit(image or self.image), None)
        admitted = AdmittedJob(job=job, image=image, receipt="0" * 64)
        given = {"deadline_seconds": 600, "log_limit": 1 << 30, **spec}
        given = {"phase_class": "plan", **given}
        with self.engine.sandbox(SandboxSpec(admitted=admitted, **given)) as sandbox:
            sandbox.fill(files() if archive is None else archive)
            sandbox.job = job.id
            yield sandbox


class ShellSite(Site):
    image = "registry.example/runner:1"

    def __init__(self, folder):
        self.folder = folder
        self.engine = ShellEngine(folder, stop_seconds=STOP_SECONDS)

    def kill(self, sandbox):
        self.engine.kill(sandbox.job)

    def leftovers(self):
        return list(self.folder.iterdir())

    def close(self):
        pass


class DockerSite(Site):
    """One launcher's view of the real engine, under an identity of its own."""

    def __init__(self, host=None, **container):
        self.host = host or os.environ["DOCKER_HOST"]
        self.api = connect(HostSettings(docker_host=self.host), connections=16)
        self.instance = str(ULID())
        self.image = self.api.inspect_image(RUNNER)["Id"]
        settings = Settings()
        self.engine = DockerEngine(
            self.api,
            replace(settings, container=replace(settings.container, **container)),
            instance=self.instance,
            pool="tests",
            stop_seconds=STOP_SECONDS,
            patience_seconds=STOP_SECONDS,
        )

    @property
    def ours(self):
        return {"label": [f"{LABEL}.instance={self.instance}"]}

    def container(self, sandbox):
        """Id of the sandbox's running container."""
        job = {"label": [*self.ours["label"], f"{LABEL}.job={sandbox.job}"]}
        (found,) = self.api.containers(filters=job)
        return found["Id"]

    def kill(self, sandbox):
        self.api.kill(self.container(sandbox))

    def leftovers(self):
        containers = self.api.containers(all=True, filters=self.ours)
        volumes = self.api.volumes(filters=self.ours)["Volumes"] or []
        return [
            *(container["Names"] for container in containers),
            *(volume["Name"] for volume in volumes),
        ]

    def close(self):
        remove_all(self.api, self.ours)
        self.engine.close()


def remove_all(api, filters):
    """Leave nothing of a test in the engine that others use, too."""
    for container in api.containers(all=True, filters=filters):
        api.remove_container(container["Id"], v=True, force=True)
    for volume in api.volumes(filters=filters)["Volumes"] or []:
        api.remove_volume(volume["Name"], force=True)
    for network in api.networks(filters=filters):
        api.remove_network(network["Id"])


def run(
    sandbox,
    *commands,
    name="plan",
    cancel=None,
    export=None,
    unset=(),
    grace=5.0,
    sent=False,
    **on,
):
    """Run a phase; returns its exit and what it printed."""
    printed = Printed(reactions=on.get("on", {}))
    script = phase_script(
        name,
        commands,
        directory=WORKSPACE,
        export=export or {},
        unset=unset,
        grace_seconds=grace,
    )
    result = sandbox.run(script, printed, cancel or CancelToken(), sent=sent)
    return result, printed.text
