"""How long a launcher that comes back needs to have all of its containers in hand."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from collections.abc import Iterator
from pathlib import Path

from ulid import ULID

from benchmarks.report import Row
from launcher.adapters.engines.docker import DockerEngine, connect
from launcher.images import Permit, Reference
from launcher.journal import Entry, Held, Journal, Made
from launcher.model import AdmittedJob, Claim, Origin, ResolvedImage, SandboxSpec
from launcher.sealing.keys import PoolKey
from launcher.settings import HostSettings, RunSettings, Settings
from launcher.tarstream import Archive
from launcher.wire.jobs import (
    Commit,
    Job,
    Phase,
    Run,
    RunState,
    RunType,
    Source,
    Stack,
    Variable,
    Vendor,
)
from launcher.wire.messages import Offer


CONTAINERS = 50
LIVES = 5


def adoption(folder: Path, image: str) -> Iterator[Row]:
    """Fifty jobs of an earlier life: read, unsealed, and their containers adopted."""
    settings = Settings(run=RunSettings(workers=CONTAINERS))
    host = HostSettings(docker_host=os.environ["DOCKER_HOST"])
    engine = DockerEngine(
        connect(host, connections=4 * CONTAINERS),
        settings,
        instance=str(ULID()),
        pool="bench",
    )
    key = PoolKey.make()
    path = folder / "journal.db"
    permit = Permit(reference=Reference.parse(image), rule="bench")
    resolved = engine.resolve(permit, None)
    with contextlib.ExitStack() as containers:
        containers.callback(engine.close)
        with contextlib.closing(Journal.opened(path, key)) as journal:
            for slot in range(CONTAINERS):
                spec = _taken(journal, slot, resolved)
                containers.enter_context(engine.sandbox(spec)).fill(Archive())
        # Never left, and kept: leaving would remove what the next life is to adopt.
        kept: list[object] = []
        lives = tuple(_life(path, key, engine, kept) for _ in range(LIVES))
    yield Row(
        name=f"adopting {CONTAINERS} running containers",
        unit="s",
        values=lives,
        target="≤ 1",
    )


def _life(path: Path, key: PoolKey, engine: DockerEngine, kept: list[object]) -> float:
    """Seconds from the engine being reachable to the last container being followed."""
    begun = time.perf_counter()
    with contextlib.closing(Journal.opened(path, key)) as journal:
        entries = journal.unfinished()
        engine.found()
        threads = [
            threading.Thread(target=_adopt, args=(entry, engine, kept))
            for entry in entries
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return time.perf_counter() - begun


def _adopt(entry: Entry, engine: DockerEngine, kept: list[object]) -> None:
    entry.remembered()
    adopted = engine.adopt(entry.past.offer.job)
    kept.append(adopted)
    if adopted.__enter__() is None or entry.past.held is None:
        raise RuntimeError("a container was not adopted")


def _taken(journal: Journal, slot: int, image: ResolvedImage) -> SandboxSpec:
    """Write down a job as one that was taken."""
    job = _job()
    entry = journal.claiming(slot, Offer(job=job.id, run=job.run.id), str(ULID()))
    claim = Claim(job, "token", lease_seconds=90, renew_seconds=20)
    entry.claimed(Held(claim=claim, passed_through=()))
    entry.created(Made(image=image, receipt="", at=time.time()))
    entry.sending("initialize")
    return SandboxSpec(
        admitted=AdmittedJob(job=job, image=image, receipt=""),
        phase_class="plan",
        origin=Origin(slot=slot, claim=entry.past.identity),
        deadline_seconds=600,
        log_limit=1 << 20,
    )


def _job() -> Job:
    commit = Commit(hash="0" * 40, branch="main", author="", message="", created_at=0)
    run = Run(
        id=str(ULID()),
        type=RunType.TRACKED,
        state=RunState.PREPARING,
        created_at=0,
        updated_at=0,
        triggered_by="bench",
        commit=commit,
    )
    return Job(
        id=str(ULID()),
        phases=(Phase.INITIALIZE, Phase.PLAN),
        run=run,
        stack=Stack(
            slug="s", name="s", account_name="a", repository_path="a/s", branch="main"
        ),
        source=Source(url="https://git.example/a/s.git"),
        vendor=Vendor(vendor="terraform"),
        environment=tuple(
            Variable(name=f"V{number}", value="v" * 100, secret=True)
            for number in range(20)
        ),
    )
