"""An engine that runs full, stops answering, or is killed: on an engine of our own."""

import contextlib
import dataclasses
import gc
import os
import subprocess
import tempfile

from pathlib import Path

import msgspec
import pytest

from given import A_KEY, a_job, a_run, eventually
from launcher.adapters.engines import docker as docker_engine
from launcher.adapters.engines.docker import LABEL, DockerEngine, connect
from launcher.adapters.sources.git import GitSource
from launcher.cancel import CancelToken
from launcher.credentials import NoCredentials
from launcher.errors import SourceUnavailable
from launcher.images import Pattern
from launcher.output.spool import Spools
from launcher.pipeline import run_job
from launcher.policy import NoPolicy
from launcher.ports import Ports
from launcher.reaper import Reaper
from launcher.settings import HostSettings, PullPolicy, Settings
from launcher.testing.control_plane import MemoryControlPlane
from launcher.testing.sources import MemorySource
from launcher.threads import spawn
from launcher.wire.jobs import Commit, Hooks, Source, Variable, Vendor
from launcher.wire.messages import Verdict
from support.journals import a_journal
from support.private_engine import IMAGE, private_engine, small_disk


pytestmark = [
    pytest.mark.services,
    # docker-py leaves a socket to the garbage collector when it cannot connect.
    pytest.mark.filterwarnings("ignore:unclosed .*socket:ResourceWarning"),
]

INSTANCE = "01FAILINGENGINE"
PATH = "/mnt/workspace/source/bin:/bin"
TERRAFORM = b"""#!/bin/sh
[ "$1" != show ] || echo '{"format_version": "1.2", "resource_changes": []}'
"""


class Place:
    """One launcher, in this process, on an engine that may fail."""

    def __init__(self, engine, *, silence=420.0, patience=300.0, step=20.0):
        self.private = engine
        self.plane = MemoryControlPlane()
        self.code = MemorySource({a_run().commit.hash: {"main.tf": b"nothing"}})
        image = engine.docker("image", "inspect", "--format", "{{.Id}}", IMAGE)
        settings = Settings()
        self.settings = dataclasses.replace(
            settings,
            images=dataclasses.replace(
                settings.images,
                allowed_images=(Pattern.parse(image),),
                pull_policy=PullPolicy.NEVER,
            ),
            run=dataclasses.replace(settings.run, logs_timeout=silence),
            container=dataclasses.replace(
                settings.container,
                create_timeout=step,
                start_timeout=step,
                stop_timeout=step,
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
            credentials=NoCredentials(),
            policy=NoPolicy(),
            engine=self.engine,
            journal=self.journal,
            endpoint="https://spacelift.example.com",
            key=A_KEY,
            scratch=Path(tempfile.gettempdir()),
            spools=Spools(Path(tempfile.mkdtemp()), per_job=1 << 30, total=1 << 30),
        )
        run_job(0, offer, ports, self.settings, CancelToken())
        return self.plane.jobs[job.id]

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


def test_full_disk_of_the_engine():
    """When the engine's disk is full the owner is told so, and nothing stays behind."""
    with (
        private_engine(disk="64m") as engine,
        contextlib.closing(Place(engine)) as place,
    ):
        place.code.commits[a_run().commit.hash]["large"] = bytes(80 << 20)
        record = place.run("echo never")

        assert Verdict.FAILED is record.settlement.verdict
        assert "the worker's disk is full" in record.settlement.reason
        assert record.settlement.reason.encode() in bytes(record.log)
        assert b"Traceback" not in record.log
        assert ["", ""] == place.leftovers()


def test_job_that_fills_the_disk():
    """A job that fills the disk ends, and says that it was full; its log is marked as cut."""
    with (
        private_engine(disk="64m") as engine,
        contextlib.closing(Place(engine)) as place,
    ):
        record = place.run(
            "echo begin; cat /dev/zero > /mnt/workspace/zeros; seq 5000; exit 9"
        )

        assert Verdict.FAILED is record.settlement.verdict
        assert "workspace_full" == record.settlement.code
        assert "initialize: the workspace's disk is full" == record.settlement.reason
        assert not record.settlement.log_complete
        assert ["", ""] == place.leftovers()


def test_full_disk_of_the_launcher(tmp_path):
    """When the launcher's own disk is full the owner is told so, and it stays tidy."""
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", "-b", "main", str(repository)], check=True)
    (repository / "large").write_bytes(os.urandom(8 << 20))
    git = [
        "git",
        "-C",
        str(repository),
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@example.com",
    ]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "large"], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    run = a_run(
        commit=Commit(hash=commit, branch="main", author="A", message="m", created_at=0)
    )
    job = a_job(run=run, source=Source(url=f"file://{repository}"))
    with small_disk(tmp_path / "scratch", "1m") as scratch:
        source = GitSource(scratch, protocols=["file"], environment={})
        with (
            pytest.raises(SourceUnavailable, match="the worker's disk is full"),
            source.fetch(job, CancelToken()),
        ):
            pass

        assert [] == list(scratch.iterdir())


def test_engine_that_stops_answering():
    """An engine that freezes ends the run as a silent one, and is tidied when it is back."""
    with (
        private_engine() as engine,
        contextlib.closing(Place(engine, silence=4.0)) as place,
    ):
        begun = CancelToken()
        thread = spawn(
            "job", lambda: (place.run("echo begun; sleep 600"), begun.cancel("over"))
        )
        eventually(
            lambda: place.plane.jobs and b"begun" in place.plane.jobs["01JOB"].log
        )
        engine.freeze()
        # The signal is tried for all of the grace, and the engine waited for besides.
        assert begun.wait(200)
        thread.join()
        settlement = place.plane.jobs["01JOB"].settlement
        engine.thaw()
        # The container still runs: only its deadline, or its end, makes it ours.
        engine.docker("kill", "spacelift-01job", check=False)
        reaper = Reaper(place.engine, place.journal, age_seconds=0)
        eventually(lambda: reaper.reap() == 0)

        assert Verdict.FAILED is settlement.verdict
        # It was the engine that was silent, whatever the job has to say.
        assert "stop_timeout" == settlement.code
        assert "the container engine did not end the container" in settlement.reason
        assert ["", ""] == place.leftovers()


def freezing(private, do):
    """*do*, in front of which the engine freezes."""

    def frozen(*given, **options):
        private.freeze()
        return do(*given, **options)

    return frozen


@pytest.mark.parametrize(
    ("owner", "name", "code", "what"),
    [
        (DockerEngine, "_config", "create_timeout", "make"),
        (docker_engine, "_Stdin", "start_timeout", "start"),
        (docker_engine, "finish", "stop_timeout", "end"),
    ],
    ids=["create", "start", "stop"],
)
def test_engine_that_hangs_at_a_step(monkeypatch, owner, name, code, what):
    """A step that the engine does not get done fails the run in time, by its name."""
    with (
        private_engine() as engine,
        contextlib.closing(Place(engine, step=3.0)) as place,
    ):
        place.code.commits[a_run().commit.hash]["bin/terraform"] = TERRAFORM
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, freezing(engine, getattr(owner, name)))
            settlement = place.run().settlement
        engine.thaw()
        reaper = Reaper(place.engine, place.journal, age_seconds=0)
        # What it was asked for while it was frozen, it does now, and then it is reaped.
        eventually(lambda: reaper.reap() == 0 and place.leftovers() == ["", ""])

        assert (Verdict.FAILED, code) == (settlement.verdict, settlement.code)
        reason = f"the container engine did not {what} the container within 3 s"
        assert reason == settlement.reason


def test_engine_that_is_killed():
    """An engine that dies in mid-run fails the run with a sentence."""
    with (
        private_engine() as engine,
        contextlib.closing(Place(engine, patience=1.0)) as place,
    ):
        over = CancelToken()
        thread = spawn(
            "job", lambda: (place.run("echo begun; sleep 600"), over.cancel("over"))
        )
        eventually(
            lambda: place.plane.jobs and b"begun" in place.plane.jobs["01JOB"].log
        )
        engine.process.kill()
        assert over.wait(60)
        thread.join()

        settlement = place.plane.jobs["01JOB"].settlement
        assert Verdict.FAILED is settlement.verdict
        assert "the container engine" in settlement.reason


@contextlib.contextmanager
def working(place, *commands):
    """A job at work beside the block, from its first output on; it has ended after it."""
    thread = spawn("job", lambda: place.run(*commands))
    eventually(lambda: place.plane.jobs and b"begun" in place.plane.jobs["01JOB"].log)
    try:
        yield place.plane.jobs["01JOB"]
    finally:
        thread.join(60)


def test_engine_that_is_restarted_under_its_containers():
    """
    Where containers outlive their engine, a run outlives it too, byte for byte.
    """
    with (
        private_engine("--live-restore") as engine,
        contextlib.closing(Place(engine)) as place,
    ):
        hook = "echo begun; i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; sleep 0.1; done"
        with working(place, hook, "exit 7") as record:
            engine.kill()
            engine.start()

        lines = "".join(f"line {number}\n" for number in range(1, 41))
        assert f"begun\n{lines}".encode() in record.log
        reason = "initialize: before_init hook 2 of 2 failed with exit code 7"
        assert reason == record.settlement.reason
        assert record.settlement.log_complete
        assert ["", ""] == place.leftovers()


def test_engine_that_takes_its_containers_along():
    """Where containers die with their engine, the run fails and says so, once."""
    with private_engine() as engine, contextlib.closing(Place(engine)) as place:
        with working(place, "echo begun; sleep 600") as record:
            engine.kill()
            engine.start()

        assert Verdict.FAILED is record.settlement.verdict
        # Whichever was noticed first: the phase's end, or the container's.
        assert record.settlement.code in ("container_lost", "before_hook_failed")
        assert record.settlement.reason in bytes(record.log).decode()
        assert ["", ""] == place.leftovers()
