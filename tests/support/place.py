"""The launcher's whole line on a real engine, which may be a test's own to break."""

import contextlib
import dataclasses
import gc
import os
import tempfile

from pathlib import Path

import docker
import msgspec

from given import A_KEY, a_job, a_run, eventually
from prometheus_client import CollectorRegistry
from support.journals import a_journal
from support.private_engine import IMAGE

from launcher.adapters.credentials.chain import chain
from launcher.adapters.engines.docker import LABEL, DockerEngine, connect
from launcher.cancel import CancelToken
from launcher.images import Pattern
from launcher.metrics import JobMetrics
from launcher.output.spool import Spools
from launcher.pipeline import run_job
from launcher.policy import NoPolicy
from launcher.ports import Ports
from launcher.settings import HostSettings, PullPolicy, Settings
from launcher.sight import Sight
from launcher.testing.control_plane import MemoryControlPlane
from launcher.testing.sources import MemorySource
from launcher.threads import spawn
from launcher.wire.jobs import Hooks, Variable, Vendor


INSTANCE = "01FAILINGENGINE"
PATH = "/mnt/workspace/source/bin:/bin"
TERRAFORM = b"""#!/bin/sh
[ "$1" != show ] || echo '{"format_version": "1.2", "resource_changes": []}'
"""


class SharedEngine:
    """The tests' own, which is nobody's to break."""

    @property
    def host(self):
        return os.environ["DOCKER_HOST"]

    def remove(self, prefix):
        """Take away the images whose names begin with *prefix*."""
        with contextlib.closing(docker.APIClient(self.host)) as api:
            for image in api.images():
                names = [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]
                if any(name.startswith(prefix) for name in names):
                    api.remove_image(image["Id"], force=True)


class Place:
    """
    One launcher, in this process, on an engine that may fail.

    Jobs run in *image*, or in the one that a private engine brings with it.
    """

    def __init__(
        self,
        engine,
        *,
        image=None,
        images=None,
        memory=None,
        silence=420.0,
        patience=300.0,
        step=20.0,
    ):
        self.private = engine
        self.plane = MemoryControlPlane()
        self.code = MemorySource({a_run().commit.hash: {"main.tf": b"nothing"}})
        images = dict(images or {})
        if image is None:
            image = engine.docker("image", "inspect", "--format", "{{.Id}}", IMAGE)
            images["pull_policy"] = PullPolicy.NEVER
        settings = Settings()
        self.settings = dataclasses.replace(
            settings,
            images=dataclasses.replace(
                settings.images, allowed_images=(Pattern.parse(image),), **images
            ),
            run=dataclasses.replace(settings.run, logs_timeout=silence),
            container=dataclasses.replace(
                settings.container,
                create_timeout=step,
                start_timeout=step,
                stop_timeout=step,
                worker_memory=memory,
            ),
        )
        self.image = image
        api = connect(
            HostSettings(docker_host=engine.host), connections=8, timeout_seconds=3
        )
        self.engine = DockerEngine(
            api,
            self.settings,
            instance=INSTANCE,
            pool="tests",
            stop_seconds=1.0,
            patience_seconds=patience,
        )
        self.metrics = CollectorRegistry()
        self._closing = contextlib.ExitStack()
        self.journal = self._closing.enter_context(a_journal())

    def run(self, *commands):
        """Run a job whose first hook is *commands*; return its record."""
        job = a_job(
            docker_image=self.image,
            stack=msgspec.structs.replace(a_job().stack, project_root=""),
            hooks=Hooks(before_init=commands),
            environment=(Variable(name="PATH", value=PATH),),
            vendor=Vendor(vendor="terraform"),
        )
        offer = self.plane.add(job)
        ports = Ports(
            source=self.plane,
            progress=self.plane,
            log=self.plane,
            workspaces=self.plane,
            code=self.code,
            credentials=chain(self.settings.images, {"PATH": "/usr/bin:/bin"}),
            policy=NoPolicy(),
            engine=self.engine,
            journal=self.journal,
            endpoint="https://spacelift.example.com",
            key=A_KEY,
            scratch=Path(tempfile.gettempdir()),
            sight=Sight([JobMetrics(self.metrics)]),
            spools=Spools(Path(tempfile.mkdtemp()), per_job=1 << 30, total=1 << 30),
        )
        run_job(0, offer, ports, self.settings, CancelToken())
        return self.plane.jobs[job.id]

    @contextlib.contextmanager
    def working(self, *commands):
        """A job at work beside the block, once it says `begun`; it has ended after it."""
        thread = spawn("job", lambda: self.run(*commands))
        eventually(lambda: self.plane.jobs and b"begun" in self.plane.jobs["01JOB"].log)
        try:
            yield self.plane.jobs["01JOB"]
        finally:
            thread.join(60)

    def close(self):
        self.engine.close()
        self._closing.close()
        gc.collect()  # what failing connections left, while that is expected

    def leftovers(self):
        label = f"label={LABEL}.instance={INSTANCE}"
        return [
            self.private.docker(*kind, "--quiet", "--filter", label)
            for kind in (("container", "ls", "--all"), ("volume", "ls"))
        ]


def freezing(private, do):
    """*do*, in front of which the engine freezes."""

    def frozen(*given, **options):
        private.freeze()
        return do(*given, **options)

    return frozen
