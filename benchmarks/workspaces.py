"""
What sealing a workspace costs, against the tools that a shell has for it.

Both sides begin with the archive that `tar` writes of the same tree, and end with a
tree that it unpacks.  Ours goes through a real control plane in between, is signed,
and is read twice on the way back: nothing is unpacked before all of it is verified.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from structlog.testing import capture_logs

from benchmarks.report import Row
from examples.demo.api import Api
from launcher import workspace
from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.credentials import Credentials
from launcher.adapters.controlplane.jobs import HttpJobSource, HttpProgress
from launcher.adapters.controlplane.workspaces import HttpWorkspaceStore
from launcher.cancel import CancelToken
from launcher.lease import Lease
from launcher.model import AdmittedJob, Claim, ResolvedImage
from launcher.ports import Ports
from launcher.sealing.keys import PoolKey
from launcher.sealing.workspace import Label, OpenedWorkspace, seal
from launcher.tarstream import Archive, Fingerprint
from launcher.vendors import table
from launcher.wire.jobs import RunState
from launcher.wire.messages import (
    PlanReport,
    ResourceChange,
    Settlement,
    Verdict,
)


REPETITIONS = 7
SMALL_FILES = 3000
STREAMED_GIGABYTES = 5
PIECE = 1 << 20
PASSWORD = "-aes-256-ctr -pbkdf2 -iter 1000 -pass pass:bench"
IMAGE = ResolvedImage(
    reference="-", digest="sha256:" + "0" * 64, runnable="-", local=True
)


def workspaces(folder: Path, known: Credentials, api: Api) -> Iterator[Row]:
    """Rows about one tree of real binaries and many small files."""
    size = make_tree(folder / "tree" / "workspace")
    client = Client(known, connections=2)
    plain, unpacked = folder / "plain.enc", folder / "unpacked"
    shell = (
        f"tar -c -C {folder}/tree workspace | zstd -q | openssl enc {PASSWORD} >{plain}"
    )
    back = f"openssl enc -d {PASSWORD} <{plain} | zstd -dq | tar -x -C {unpacked}"
    try:
        line = Line(folder, client, known.key, api)
        planned = line.planning()
        out = "tar, zstd, openssl enc"
        pairs = interleaved(
            lambda: run(shell), lambda: line.hand_over(planned, folder / "tree")
        )
        yield Row(name=out, unit=f"s for {size / 1e6:.0f} MB", values=pairs[0])
        yield Row(
            name="workspace archived, sealed and stored",
            unit="s",
            values=pairs[1],
            baseline=out,
            target="ratio at most 1.5",
        )
        applying = line.confirmed(planned)
        pairs = interleaved(
            lambda: into(unpacked, lambda: run(back)),
            lambda: into(unpacked, lambda: line.take_over(applying, unpacked)),
        )
        yield Row(name="openssl enc, zstd, tar back", unit="s", values=pairs[0])
        yield Row(
            name="workspace fetched, verified and unpacked",
            unit="s",
            values=pairs[1],
            baseline="openssl enc, zstd, tar back",
            target="ratio at most 1.5",
        )
    finally:
        client.close()
    grown = subprocess.run(
        [sys.executable, "-m", __name__, str(STREAMED_GIGABYTES * 1024)],
        check=True,
        capture_output=True,
    )
    yield Row(
        name=f"memory while {STREAMED_GIGABYTES} GB are sealed and opened",
        unit="MB more than before",
        values=tuple(json.loads(grown.stdout)),
        target="at most 64",
    )


def make_tree(root: Path) -> int:
    """Real binaries and sources, as a tool's providers and modules are."""
    source = root / "source"
    source.mkdir(parents=True)
    (source / "spacelift.plan").write_bytes(os.urandom(10_000))
    (source / "spacelift.plan.json").write_text("{}")
    packages = Path(sys.prefix) / "lib"
    for number, file in enumerate(sorted(packages.rglob("*.so*"))):
        shutil.copyfile(file, source / f"{number}-{file.name}")
    for number, file in enumerate(sorted(packages.rglob("*.py"))[:SMALL_FILES]):
        place = source / f"module-{number // 50}" / file.name
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def run(command: str) -> float:
    begun = time.perf_counter()
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)
    return time.perf_counter() - begun


def into(folder: Path, once: Callable[[], float]) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return once()


def interleaved(
    one: Callable[[], float], other: Callable[[], float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure both by turns: what else the machine does hits both."""
    with capture_logs():
        one(), other()
        pairs = [(one(), other()) for _ in range(REPETITIONS)]
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


class Tree:
    """As a sandbox that leaves a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def workspace(self) -> Iterator[Iterator[bytes]]:
        command = ["tar", "-c", "-C", str(self._folder), "workspace"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            yield iter(lambda: tar.stdout.read(PIECE), b"")


class Line:
    """A launcher's part of a run, as far as its workspace goes."""

    def __init__(self, folder: Path, client: Client, key: PoolKey, api: Api) -> None:
        self._source = HttpJobSource(client, key, instance="workspaces", metadata={})
        self._progress = HttpProgress(client, key)
        self._api = api
        nobody = dict.fromkeys(Ports.__dataclass_fields__)
        scratch = folder / "scratch"
        scratch.mkdir()
        self._ports = Ports(
            **nobody
            | {
                "workspaces": HttpWorkspaceStore(client),
                "key": key,
                "scratch": scratch,
            }
        )

    def planning(self) -> Claim:
        self._api.trigger("quick")
        claim = self._take()
        for state in (RunState.INITIALIZING, RunState.PLANNING):
            self._progress.entered(
                claim, state, log_offset=0, image_digest=IMAGE.digest
            )
        change = ResourceChange(action="added", address="a.b", type="a")
        report = PlanReport(has_changes=True, changes=(change,))
        self._progress.planned(claim, report)
        return claim

    def confirmed(self, planned: Claim) -> Claim:
        settlement = Settlement(verdict=Verdict.HANDED_OVER, log_length=0)
        self._source.settle(planned, settlement)
        self._api.confirm("quick", planned.job.run.id)
        return self._take()

    def hand_over(self, claim: Claim, tree: Path) -> float:
        begun = time.perf_counter()
        vendor = table(claim.job.vendor, claim.job.phases)
        with workspace.sealed(
            _admitted(claim), vendor, self._ports, Tree(tree)
        ) as sealed:
            self._ports.workspaces.save(claim, sealed)
        return time.perf_counter() - begun

    def take_over(self, claim: Claim, folder: Path) -> float:
        begun = time.perf_counter()
        vendor = table(claim.job.vendor, claim.job.phases)
        about = (claim, _admitted(claim), vendor, self._ports, Lease(CancelToken()))
        command = ["tar", "-x", "--no-same-owner", "-C", str(folder)]
        with (
            workspace.contents(*about) as archive,
            subprocess.Popen(command, stdin=subprocess.PIPE) as tar,
        ):
            for part in archive:
                tar.stdin.write(part)
        if tar.returncode:
            raise RuntimeError("tar did not understand the archive")
        return time.perf_counter() - begun

    def _take(self) -> Claim:
        while (offer := self._source.receive(0, wait=20)) is None:
            pass
        claim = self._source.claim(0, offer, "bench")
        if claim is None:
            raise RuntimeError("somebody else was faster")
        return claim


def _admitted(claim: Claim) -> AdmittedJob:
    return AdmittedJob(job=claim.job, image=IMAGE, receipt="0" * 64)


# --- memory, in a process of its own


def grown(megabytes: int) -> list[float]:
    """
    Seal and open an archive of that size; memory beyond the start's, five times.

    An eighth of the archive cannot be compressed.
    """
    key, before = PoolKey.make(), _highest()
    label = Label(
        run="r",
        stack="s",
        phase="apply",
        commit="c",
        image_digest="d",
        policy_receipt="p",
    )
    growth, plan = [], Fingerprint(["plan"])
    with tempfile.TemporaryFile() as file:
        archive = Archive()
        archive.tree(_generated(megabytes), below="w", strip="w", plan=plan)
        seal(archive, file, label=label, plan=plan.digest, key=key)
        archive = Archive()
        opened = OpenedWorkspace(file, key)
        archive.tree(opened.archive(), below="w", strip="w", plan=plan)
        seen = 0
        for part in archive:
            seen += len(part)
            if seen > (len(growth) + 1) * (megabytes * PIECE // 5):
                growth.append(_highest() - before)
    return growth


def _generated(megabytes: int) -> Iterator[bytes]:
    info = tarfile.TarInfo("w/provider")
    info.size = megabytes * PIECE
    yield info.tobuf()
    for _ in range(megabytes):
        yield os.urandom(PIECE // 8) + bytes(PIECE - PIECE // 8)
    plan = tarfile.TarInfo("w/plan")
    yield plan.tobuf() + bytes(2 * tarfile.BLOCKSIZE)


def _highest() -> float:
    """The most memory that was ever resident, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("this kernel does not count memory")


if __name__ == "__main__":
    print(json.dumps(grown(int(sys.argv[1]))))
