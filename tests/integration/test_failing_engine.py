"""An engine that runs full, stops answering, or is killed: on an engine of our own."""

import contextlib
import os
import subprocess

import pytest

from given import a_job, a_run, eventually
from launcher.adapters.sources.git import GitSource
from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.reaper import Reaper
from launcher.threads import spawn
from launcher.wire.jobs import Commit, Source
from launcher.wire.messages import Verdict
from support.place import Place
from support.private_engine import private_engine, small_disk


pytestmark = [
    pytest.mark.services,
    # docker-py leaves a socket to the garbage collector when it cannot connect.
    pytest.mark.filterwarnings("ignore:unclosed .*socket:ResourceWarning"),
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


def test_engine_that_is_restarted_under_its_containers():
    """
    Where containers outlive their engine, a run outlives it too, byte for byte.
    """
    with (
        private_engine("--live-restore") as engine,
        contextlib.closing(Place(engine)) as place,
    ):
        hook = "echo begun; i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; sleep 0.1; done"
        with place.working(hook, "exit 7") as record:
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
        with place.working("echo begun; sleep 600") as record:
            engine.kill()
            engine.start()

        assert Verdict.FAILED is record.settlement.verdict
        # Whichever was noticed first: the phase's end, or the container's.
        assert record.settlement.code in ("container_lost", "before_hook_failed")
        assert record.settlement.reason in bytes(record.log).decode()
        assert ["", ""] == place.leftovers()
