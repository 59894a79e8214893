"""
The way of a run's output: masked, spooled, uploaded; how fast, and what it costs.

End to end means: printed by a process in a container of the real engine, masked with
50 secrets in every spelling, and acknowledged by the real control plane, which is a
process of its own with its database on disk.  What `docker logs -f` does with the same
output is measured in between.  For many runs at once, the containers are left out: one
machine has not enough of anything for a hundred; their output comes from memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import subprocess
import sys
import threading
import time

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import psutil
import structlog

from zstandard import get_frame_parameters

from benchmarks.report import Row
from examples.demo.api import Api
from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.credentials import Credentials
from launcher.adapters.controlplane.jobs import HttpJobSource, HttpLogSink
from launcher.adapters.engines.docker import followed as frames_of
from launcher.cancel import CancelToken
from launcher.lease import Lease
from launcher.model import Claim
from launcher.output.joblog import JobLog
from launcher.output.mask import Index, Masker
from launcher.output.needles import needles
from launcher.output.spool import Spools
from launcher.ports import LogSink
from launcher.wire.messages import (
    ENCODING_HEADER,
    MAX_PACKED_LOG,
    LogAck,
    Settlement,
    Verdict,
)


REPETITIONS = 5
MASKED_BYTES = 64 << 20
SECRETS = 50
LINE = b"module.network[%06d]: Still creating... [10s elapsed, nothing secret here]\n"
PARALLEL_RUNS = 100
PARALLEL_BYTES = 4 << 20
LONG_BYTES = 2 << 30
LINES_A_SECOND = 10_000
LATENCY_SECONDS = 10
CHUNK = 1 << 16
_ENGINES = {"dockerd", "containerd", "containerd-shim-runc-v2", "tail"}


def some_secrets(count: int = SECRETS) -> list[bytes]:
    """Half of them plain, half with characters that every tool escapes."""
    return [
        secrets.token_hex(16).encode()
        if number % 2
        else f"{secrets.token_hex(8)}/+&'\" {secrets.token_hex(6)}".encode()
        for number in range(count)
    ]


def a_log(size: int, hidden: list[bytes]) -> bytes:
    """Lines as a tool prints them, every hundredth with a secret in it."""
    block = b"".join(
        LINE % number
        if number % 100
        else b"token %s\n" % hidden[number // 100 % len(hidden)]
        for number in range(20_000)
    )
    return (block * (size // len(block) + 1))[:size]


# --- the masker alone


def masking() -> Iterator[Row]:
    hidden = some_secrets()
    count = len(needles(hidden))
    for name, data in {
        "a tool's log": a_log(MASKED_BYTES, hidden),
        "random bytes": os.urandom(MASKED_BYTES),
    }.items():
        index = Index(needles(hidden))
        yield Row(
            name=f"masking {name}, {SECRETS} secrets, {count} needles",
            unit="MB/s",
            values=tuple(masked(index, data) for _ in range(REPETITIONS)),
            target="at least 150",
        )


def masked(index: Index, data: bytes) -> float:
    masker = Masker(index)
    begun = time.perf_counter()
    for start in range(0, len(data), CHUNK):
        masker.feed(data[start : start + CHUNK])
    masker.close()
    return len(data) / 1e6 / (time.perf_counter() - begun)


# --- with a control plane


@dataclass(frozen=True, kw_only=True)
class Home:
    """A control plane, and somebody who takes its jobs."""

    folder: Path
    api: Api
    client: Client
    source: HttpJobSource

    @property
    def sink(self) -> LogSink:
        return HttpLogSink(self.client)

    def claim(self, stack: str = "quick") -> Claim:
        self.api.trigger(stack, kind="PROPOSED")
        return self.take()

    def take(self) -> Claim:
        while (offer := self.source.receive(0, wait=20)) is None:
            pass
        claim = self.source.claim(0, offer, "bench")
        if claim is None:
            raise RuntimeError("somebody else takes jobs here")
        return claim

    def end(self, claim: Claim, log: JobLog) -> None:
        self.source.settle(
            claim,
            Settlement(verdict=Verdict.FAILED, log_length=log.length, reason="-"),
        )


def logs(
    folder: Path,
    known: Credentials,
    api: Api,
    engine: docker.APIClient,
    *,
    image: str,
    server: psutil.Process,
) -> Iterator[Row]:
    client = Client(known, connections=8)
    source = HttpJobSource(client, known.key, instance="logs", metadata={})
    home = Home(folder=folder, api=api, client=client, source=source)
    yield from end_to_end(home, engine, image, server)
    yield latency(home)
    yield parallel(home)
    client.close()
    yield from long_log(folder)


def opened(home: Home, claim: Claim, hidden: list[bytes], sink: LogSink) -> JobLog:
    spools = Spools(home.folder / "spools", per_job=1 << 30, total=4 << 30)
    lease = Lease(CancelToken())
    return JobLog(claim, sink, lease, hidden, spools.new(claim.job.id))


def end_to_end(
    home: Home, engine: docker.APIClient, image: str, server: psutil.Process
) -> Iterator[Row]:
    """
    A container prints 100 MB to a file; followed as the launcher follows it.

    Both clocks start when the engine says that the container has started.
    """
    hidden = some_secrets()
    size = 100_000_000
    raw = a_log(size, hidden)
    printing = home.folder / "printed"
    printing.write_bytes(raw)
    ours, theirs, spent, serving, engines, lost = [], [], [], [], [], 0
    masker = Masker(needles(hidden))
    expected = hashlib.sha256(masker.feed(raw) + masker.close()).hexdigest()
    for _ in range(REPETITIONS):
        theirs.append(size / 1e6 / docker_logs(engine, image, printing, size))
        claim = home.claim()
        sink = Watched(home.sink)
        process = psutil.Process()
        with container(engine, image, printing) as name:
            daemon = cpu_of_engine()
            before, served = cpu(process), cpu(server)
            begun = time.perf_counter()
            with opened(home, claim, hidden, sink) as log:
                for chunk in followed(engine, name, size):
                    log.write(chunk)
            ours.append(size / 1e6 / (time.perf_counter() - begun))
            spent.append((cpu(process) - before) / (size / 1e8))
            serving.append((cpu(server) - served) / (size / 1e8))
            engines.append((cpu_of_engine() - daemon) / (size / 1e8))
        if not log.complete or sink.digest() != expected:
            lost += max(size - sink.length, 1)
        home.end(claim, log)
    yield Row(
        name="100 MB of output: docker logs -f",
        unit="MB/s",
        values=tuple(theirs),
    )
    yield Row(
        name="100 MB of output: container to control plane",
        unit="MB/s",
        values=tuple(ours),
        baseline="100 MB of output: docker logs -f",
        target="at least 60, ratio at least 3",
        lost_bytes=lost,
    )
    yield Row(
        name="launcher's processor time for 100 MB of log",
        unit="s",
        values=tuple(spent),
    )
    yield Row(
        name="control plane's processor time for 100 MB of log",
        unit="s",
        values=tuple(serving),
    )
    yield Row(
        name="engine's processor time for 100 MB of log",
        unit="s, with whatever else it does",
        values=tuple(engines),
    )


class Watched:
    """Passes on, and remembers what was acknowledged and when."""

    def __init__(self, sink: LogSink) -> None:
        self._sink = sink
        self._digest = hashlib.sha256()
        self.length = 0
        self.times: list[tuple[int, float]] = []

    def append(self, claim: Claim, offset: int, data: bytes) -> LogAck:
        answer = self._sink.append(claim, offset, data)
        self._digest.update(data[self.length - offset : answer.next_offset - offset])
        self.length = answer.next_offset
        self.times.append((self.length, time.perf_counter()))
        return answer

    def digest(self) -> str:
        return self._digest.hexdigest()


class container:  # noqa: N801 (used like a function)
    """Prints a file into another one in a volume, and stays until it is removed."""

    def __init__(self, engine: docker.APIClient, image: str, printed: Path) -> None:
        self._engine = engine
        host = engine.create_host_config(
            binds=[f"{printed}:/printed:ro"], log_config={"type": "none"}
        )
        self._name = engine.create_container(
            image,
            ["-c", "cat /printed >>/log/output; exec tail -f /dev/null"],
            entrypoint=["sh"],
            user="0",
            volumes=["/log"],
            host_config=host,
        )["Id"]

    def __enter__(self) -> str:
        self._engine.start(self._name)
        return str(self._name)

    def __exit__(self, *_: object) -> None:
        self._engine.remove_container(self._name, v=True, force=True)


def followed(engine: docker.APIClient, name: str, size: int) -> Iterator[bytes]:
    command = ["sh", "-c", ": >>/log/output; exec tail -c +1 -f /log/output"]
    reader = engine.exec_create(name, command)
    stream = engine.exec_start(reader["Id"], stream=True, demux=True)
    printed = frames_of(stream)
    try:
        while size > 0:
            chunk = next(printed).stdout
            size -= len(chunk)
            yield chunk
    finally:
        stream.close()
        stream._response.close()  # noqa: SLF001


def docker_logs(
    engine: docker.APIClient, image: str, printed: Path, size: int
) -> float:
    """Seconds until `docker logs -f` has shown all of it."""
    made = engine.create_container(
        image,
        ["-c", "cat /printed"],
        entrypoint=["sh"],
        user="0",
        host_config=engine.create_host_config(
            binds=[f"{printed}:/printed:ro"], log_config={"type": "json-file"}
        ),
    )
    engine.start(made["Id"])
    begun = time.perf_counter()
    try:
        with subprocess.Popen(
            ["docker", "logs", "-f", made["Id"]], stdout=subprocess.PIPE
        ) as process:
            while process.stdout and (part := process.stdout.read(CHUNK)):
                size -= len(part)
        if size:
            raise RuntimeError(f"docker logs lost {size} bytes")
        return time.perf_counter() - begun
    finally:
        engine.remove_container(made["Id"], v=True, force=True)


def latency(home: Home) -> Row:
    """From the moment in which a line is written to that in which it is stored."""
    claim, sink, pause = home.claim(), Watched(home.sink), threading.Event()
    written: list[tuple[int, float]] = []
    with opened(home, claim, some_secrets(), sink) as log:
        begun = time.perf_counter()
        for number in range(LINES_A_SECOND * LATENCY_SECONDS):
            if number % 100 == 0:
                ahead = begun + number / LINES_A_SECOND - time.perf_counter()
                if ahead > 0:
                    pause.wait(ahead)
            log.write(LINE % number)
            written.append((log.length, time.perf_counter()))
    home.end(claim, log)
    stored = iter(sink.times)
    length, at = next(stored)
    delays = []
    for end, since in written:
        while length < end:
            length, at = next(stored)
        delays.append(at - since)
    return Row(
        name=f"line visible, {LINES_A_SECOND} lines/s",
        unit="s from written to stored",
        values=tuple(delays),
        quantile=0.99,
        target="at most 1",
    )


def parallel(home: Home) -> Row:
    """Many runs at once, from memory, each with masks of its own; several times."""
    measured = [parallel_once(home) for _ in range(REPETITIONS)]
    return Row(
        name=f"{PARALLEL_RUNS} runs x 4 MB at once, from memory",
        unit="MB/s in all",
        values=tuple(speed for speed, _ in measured),
        lost_bytes=sum(lost for _, lost in measured),
        target="nothing lost",
    )


def parallel_once(home: Home) -> tuple[float, int]:
    """MB/s, and bytes that were lost."""
    claims = [home.claim(f"many-{number}") for number in range(PARALLEL_RUNS)]
    hidden = [some_secrets() for _ in claims]
    raws = [a_log(PARALLEL_BYTES, own) for own in hidden]
    sinks = [Watched(home.sink) for _ in claims]
    logs: list[JobLog | None] = [None] * len(claims)

    def run(number: int) -> None:
        with opened(home, claims[number], hidden[number], sinks[number]) as log:
            for start in range(0, PARALLEL_BYTES, CHUNK):
                log.write(raws[number][start : start + CHUNK])
        logs[number] = log

    threads = [
        threading.Thread(target=run, args=(number,)) for number in range(len(claims))
    ]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    lost = 0
    for number, log in enumerate(logs):
        masker = Masker(needles(hidden[number]))
        expected = masker.feed(raws[number]) + masker.close()
        if hashlib.sha256(expected).hexdigest() != sinks[number].digest():
            lost += max(len(expected) - sinks[number].length, 1)
        if log is not None:
            home.end(claims[number], log)
    return PARALLEL_RUNS * PARALLEL_BYTES / 1e6 / seconds, lost


# --- memory


def long_log(folder: Path) -> Iterator[Row]:
    """In a process of its own, whose memory is nobody else's."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.logs", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    base, *grown = map(float, result.stdout.split())
    yield Row(
        name="memory of a running job's log, 50 secrets, over 2 GB",
        unit="MB resident more than before",
        values=tuple(value - base for value in grown),
        quantile=0.99,
        target="at most 8, and flat",
    )


class _Nowhere:
    """A client whose control plane acknowledges everything, and takes it compressed."""

    def call(
        self,
        _method: str,
        path: str,
        _answer: object,
        *,
        body: bytes,
        token: str,
        headers: dict[str, str],
    ) -> LogAck:
        offset = int(path.rpartition("=")[2])
        packed = ENCODING_HEADER in headers and not token
        size = get_frame_parameters(body).content_size if packed else len(body)
        return LogAck(next_offset=offset + size, packed=MAX_PACKED_LOG)


def _memory_of_a_long_log(folder: Path) -> None:
    hidden = some_secrets()
    block = a_log(16 << 20, hidden)
    process = psutil.Process()
    Masker(needles(some_secrets(1))).feed(block[:CHUNK])
    shown = io.StringIO()
    shown.write(f"{process.memory_info().rss / 1e6}\n")
    spools = Spools(folder / "long", per_job=1 << 30, total=1 << 30)
    client: Any = _Nowhere()
    claim: Any = SimpleNamespace(job=SimpleNamespace(id="long"), token="")
    with JobLog(
        claim,
        HttpLogSink(client),
        Lease(CancelToken()),
        hidden,
        spools.new(claim.job.id),
    ) as log:
        for turn in range(LONG_BYTES // len(block)):
            for start in range(0, len(block), CHUNK):
                log.write(block[start : start + CHUNK])
            if turn % 8 == 7:
                shown.write(f"{process.memory_info().rss / 1e6}\n")
    sys.stdout.write(shown.getvalue())


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu_of_engine() -> float:
    """Of all engines on this machine, and what they have started, as far as seen."""
    spent = 0.0
    for process in psutil.process_iter(["name"]):
        if process.info["name"] in _ENGINES:
            with contextlib.suppress(psutil.Error):
                spent += cpu(process)
    return spent


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    _memory_of_a_long_log(Path(sys.argv[1]))
