"""What a second checkout costs, once a mirror has what the first one brought."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.report import Row
from launcher.adapters.sources.git import GitSource
from launcher.adapters.sources.mirrors import Mirrors
from launcher.cancel import CancelToken
from launcher.policytools.specimens import FULL
from launcher.wire.jobs import Job, Source


MEGABYTES = 200
FILES = 400
REPETITIONS = 5
FIRST = "first checkout"


def sources(folder: Path) -> Iterator[Row]:
    """Two commits of one repository, of which the second changes little."""
    repository = folder / "repository"
    commits = _made(repository)
    first, second = [], []
    for _ in range(REPETITIONS):
        scratch, mirrors = folder / "scratch", folder / "mirrors"
        for place in (scratch, mirrors):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        git = GitSource(
            scratch,
            protocols=("file",),
            environment={"PATH": os.environ["PATH"]},
            mirrors=Mirrors(mirrors, 10 << 30),
        )
        first.append(_fetched(git, _job(repository, commits[0])))
        second.append(_fetched(git, _job(repository, commits[1])))
    yield Row(name=FIRST, unit=f"s for {MEGABYTES} MB", values=tuple(first))
    yield Row(
        name="second checkout, of the next commit",
        unit="s",
        values=tuple(second),
        baseline=FIRST,
        target="ratio at most 0.3",
    )


def _made(repository: Path) -> tuple[str, str]:
    """Half of it is text, which can be compressed, half is not."""
    repository.mkdir(parents=True)
    _git(repository, "init", "--quiet", "-b", "main")
    size = (MEGABYTES << 20) // FILES
    for number in range(FILES):
        place = repository / f"module-{number // 20}" / f"{number}.tf"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(os.urandom(size // 2) + os.urandom(size // 4).hex().encode())
    first = _committed(repository)
    # As servers have it: what makes a pack of it is not ours to measure.
    _git(repository, "-c", "pack.window=0", "repack", "-a", "-d", "-q")
    (repository / "module-1" / "main.tf").write_text("# changed\n")
    return first, _committed(repository)


def _committed(repository: Path) -> str:
    _git(repository, "add", "--all")
    _git(repository, "commit", "--quiet", "-m", "a change")
    return _git(repository, "rev-parse", "HEAD")


def _git(repository: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    command = ["git", "-C", str(repository), *who, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _job(repository: Path, commit: str) -> Job:
    known = msgspec.structs.replace(FULL.run.commit, hash=commit, branch="main")
    return msgspec.structs.replace(
        FULL,
        run=msgspec.structs.replace(FULL.run, commit=known),
        source=Source(url=f"file://{repository}"),
    )


def _fetched(git: GitSource, job: Job) -> float:
    begun = time.perf_counter()
    with git.fetch(job, CancelToken()) as tree:
        for _ in tree:
            pass
    return time.perf_counter() - begun
