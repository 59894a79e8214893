"""
How fast the control plane is, and how that changes with workers and with runs.

The server runs in a process of its own.  Workers talk to it over mutual TLS, as
launchers do, from this process: each has a connection of its own, and long-polls.
The baseline is `benchmarks.bare`: one UPDATE on the same database, without TLS.
Server, database and workers share the machine's processors.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import sqlalchemy as sa
import zstandard

from controlplane.site import (
    Backend,
    Process,
    Repository,
    configuration,
    database,
    eventually,
    stack,
)
from support.postgres import Postgres

from benchmarks.report import Row
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, open_store
from launcher.wire.jobs import RunState, RunType
from launcher.wire.messages import (
    CHECKSUM_HEADER,
    ENCODING_HEADER,
    LOG_ENCODING,
    MAX_LOG_CHUNK,
    MAX_PACKED_LOG,
    PREFIX,
    TOKEN_HEADER,
    VERSION_HEADER,
)


REPETITIONS = 5
CLAIMS = 400
CLIENTS = 16
"""Who claim, or write logs, at once."""
TRIGGERS = 250
TRIGGERS_PER_SECOND = 50
TRIGGERING = 10
"""Callers that trigger."""
WAITING = (10, 100, 1000)
IDLE_SECONDS = 25
"""How long idle workers are watched: half a poll of each, at any time of it."""
HISTORY = (100, 10_000, 100_000)
"""Runs that are over, which there are beside those that are measured."""
LOG_PARTS = 96
TARGETS = {"SQLite": 200, "PostgreSQL": 250}


def stores() -> Iterator[Row]:
    """Every row, on SQLite and on PostgreSQL."""
    for name in ("SQLite", "PostgreSQL"):
        with _server(name) as server:
            store = open_store(database(server.folder))
            try:
                yield from workers_grow(name, server, store)
                yield from runs_grow(name, server, store)
                if store.shared:
                    yield from servers_grow(name, server, store)
                yield from ingest(name, server, store)
            finally:
                store.close()


@contextmanager
def _server(name: str) -> Iterator[Process]:
    with tempfile.TemporaryDirectory(prefix="spacelift-bench-") as made:
        folder = Path(made)
        repository = Repository(folder / "source")
        repository.commit()
        with Postgres(durable=True) as postgres:
            Backend.postgres = postgres if name == "PostgreSQL" else None
            try:
                server = Process(folder, configuration([stack(repository)]))
                try:
                    yield server.started()
                finally:
                    server.end()
            finally:
                Backend.postgres = None


def workers_grow(name: str, server: Process, store: Store) -> Iterator[Row]:
    """What ever more workers cost that wait, and how soon one of them has a job."""
    process = psutil.Process(server.process.pid)
    for count in WAITING:
        most = count == WAITING[-1]
        with Crowd([server], count) as crowd:
            # A crowd that has come at once is spread by then, as their polls end.
            cpu, memory = [], []
            for _ in range(REPETITIONS):
                before, began = cpu_seconds(process), time.perf_counter()
                crowd.over.wait(IDLE_SECONDS / REPETITIONS)
                spent = cpu_seconds(process) - before
                cpu.append(100 * spent / (time.perf_counter() - began))
                memory.append(process.memory_info().rss / 1e6)
            yield Row(
                name=f"{count} idle workers, {name}: share of a core",
                unit="%",
                values=tuple(cpu),
                target="at most 5" if most else "",
            )
            yield Row(
                name=f"{count} idle workers, {name}: memory",
                unit="MB",
                values=tuple(memory),
                target="at most 250" if most else "",
            )
            yield latencies(f"{count} workers, {name}", [server], crowd)
        _end_runs(store)


def runs_grow(name: str, server: Process, store: Store) -> Iterator[Row]:
    """Claims, and how soon a triggered run is claimed, beside ever more runs."""
    process, there = psutil.Process(server.process.pid), 0
    for history in HISTORY:
        _add_runs(store, history - there, over=True)
        there = history
        beside = f"{name}, beside {history} runs"
        with bare_endpoint(server, store) as (bare, update):
            # By turns: what else the machine does hits both.
            pairs = [
                (
                    measured(bare, update),
                    measured(process, lambda: _claims([server], store)),
                )
                for _ in range(REPETITIONS)
            ]
        for number, unit, target in (
            (0, "1/s", f"at least {TARGETS[name]}"),
            (1, "ms of the server's processor time each", ""),
        ):
            update_row = f"one UPDATE per request, {beside}: {unit}"
            yield Row(
                name=update_row,
                unit=unit,
                values=tuple(updates[number] for updates, _ in pairs),
            )
            yield Row(
                name=f"claims, {beside}: {unit}",
                unit=unit,
                values=tuple(claims[number] for _, claims in pairs),
                target=target,
                baseline=update_row,
            )
        with Crowd([server], WAITING[0]) as crowd:
            yield latencies(beside, [server], crowd)
        _end_runs(store)


def servers_grow(name: str, server: Process, store: Store) -> Iterator[Row]:
    """The same with a second server process on the database, and half of all each."""
    second = Process(server.folder, server.config.read_text())
    try:
        both = [server, second.started()]
        yield Row(
            name=f"claims, {name}, two servers: 1/s",
            unit="1/s",
            values=tuple(CLAIMS / _claims(both, store) for _ in range(REPETITIONS)),
            target=f"at least {TARGETS[name]}",
        )
        with Crowd(both, WAITING[0]) as crowd:
            yield latencies(f"{name}, two servers", both, crowd)
        _end_runs(store)
    finally:
        second.end()


def measured(process: psutil.Process, work: Callable[[], float]) -> tuple[float, float]:
    """Requests per second, and milliseconds that *process* computes for each."""
    before = cpu_seconds(process)
    seconds = work()
    return CLAIMS / seconds, 1000 * (cpu_seconds(process) - before) / CLAIMS


def cpu_seconds(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


# --- claims


def _claims(servers: Sequence[Process], store: Store) -> float:
    """Seconds that so many claims take, by turns from each of *servers*."""
    jobs = _add_runs(store, CLAIMS, over=False)
    addresses = [server.workers for server in servers]
    seconds = asyncio.run(_claimed(addresses, _context(servers[0]), jobs))
    _end_runs(store)
    return seconds


async def _claimed(
    addresses: Sequence[str], context: ssl.SSLContext, jobs: list[str]
) -> float:
    """Claim *jobs* as several workers, and return the seconds that it took."""
    workers = []
    for slot in range(CLIENTS):
        connection = await Connection.to(addresses[slot % len(addresses)], context)
        workers.append(await connection.registered("i-claims", slot))

    async def claim(number: int) -> None:
        for job in jobs[number::CLIENTS]:
            await workers[number].claim(job)

    seconds = await _at_once(claim)
    for worker in workers:
        worker.close()
    return seconds


async def _at_once(work: Callable[[int], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(CLIENTS)))
    return time.perf_counter() - began


@contextmanager
def bare_endpoint(
    server: Process, store: Store
) -> Iterator[tuple[psutil.Process, Callable[[], float]]]:
    """The process of `benchmarks.bare`, and what asks it for as many updates."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["-m", "benchmarks.bare", database(server.folder), str(port)]
    process = subprocess.Popen([sys.executable, *arguments])
    jobs = _add_runs(store, CLIENTS, over=True)

    async def updated() -> float:
        address = f"http://127.0.0.1:{port}"
        callers = [await Connection.to(address, None) for _ in range(CLIENTS)]

        async def update(number: int) -> None:
            for _ in range(CLAIMS // CLIENTS):
                await callers[number].post(f"/{jobs[number]}", {}, below="")

        seconds = await _at_once(update)
        for caller in callers:
            caller.close()
        return seconds

    def answers() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    try:
        eventually(answers)
        yield psutil.Process(process.pid), lambda: asyncio.run(updated())
    finally:
        process.kill()
        process.wait()


def _add_runs(store: Store, count: int, *, over: bool) -> list[str]:
    """Runs whose job is there for the taking, or that are over; their jobs."""
    at, runs, jobs = now(), [], []
    for _ in range(count):
        run, job = new_id(), new_id()
        runs.append(
            {
                "id": run,
                "stack": "testing-spacelift",
                "type": RunType.PROPOSED,
                "state": RunState.FINISHED if over else RunState.READY,
                "version": 2,
                "created_at": at,
                "updated_at": at,
                "triggered_by": "bench",
                "requested_sha": "",
                "commit_hash": "0" * 40,
                "commit_branch": "main",
                "commit_author": "",
                "commit_message": "",
                "commit_at": 0,
                "job": job,
            }
        )
        jobs.append(
            {
                "id": job,
                "run": run,
                "kind": t.JobKind.PLAN,
                "state": t.JobState.SETTLED if over else t.JobState.OPEN,
                "created_at": at,
                "log_length": 0,
                "image_digest": "",
            }
        )
    if count > 0:
        with store.write() as tx:
            tx.connection.execute(sa.insert(t.runs), runs)
            tx.connection.execute(sa.insert(t.jobs), jobs)
    return [str(job["id"]) for job in jobs]


def _end_runs(store: Store) -> None:
    """Let everything that was measured be over."""
    active = (t.JobState.OPEN, t.JobState.CLAIMED)
    with store.write() as tx:
        mine = sa.select(t.jobs.c.run).where(t.jobs.c.state.in_(active))
        over = sa.update(t.runs).where(t.runs.c.id.in_(mine))
        tx.change(over.values(state=RunState.FINISHED))
        ended = sa.update(t.jobs).where(t.jobs.c.state.in_(active))
        tx.change(ended.values(state=t.JobState.SETTLED))


# --- from trigger to claim


def latencies(when: str, servers: Sequence[Process], crowd: Crowd) -> Row:
    """How long a run triggered at one of *servers* takes to be claimed by *crowd*."""
    triggered: dict[str, float] = {}
    apis = [server.api() for server in servers]

    def trigger(number: int) -> None:
        due = began + number / TRIGGERS_PER_SECOND
        crowd.over.wait(max(0.0, due - time.perf_counter()))
        at = time.perf_counter()
        triggered[apis[number % len(apis)].trigger(type="PROPOSED")] = at

    first = apis[0].trigger(type="PROPOSED")
    eventually(lambda: first in crowd.claimed)
    with ThreadPoolExecutor(TRIGGERING) as pool:
        began = time.perf_counter()
        list(pool.map(trigger, range(TRIGGERS)))
    eventually(lambda: triggered.keys() <= crowd.claimed.keys())
    return Row(
        name=f"trigger to claim at {TRIGGERS_PER_SECOND} triggers a second, {when}",
        unit="ms",
        values=tuple(1000 * (crowd.claimed[run] - at) for run, at in triggered.items()),
        target="p99 at most 100",
        quantile=0.99,
    )


# --- logs


def ingest(name: str, server: Process, store: Store) -> Iterator[Row]:
    """Log that several workers upload at once, stored when it is acknowledged."""
    lines = "".join(
        f"null_resource.a[{number}]: Creation complete after 0s [id={number * 7919}]\n"
        for number in range(MAX_PACKED_LOG // 40)
    ).encode()[:MAX_PACKED_LOG]
    packed = zstandard.ZstdCompressor().compress(lines)
    noise = random.Random(1).randbytes(MAX_LOG_CHUNK)
    for kind, body, content, encoding in (
        ("a tool's output, compressed", packed, lines, {ENCODING_HEADER: LOG_ENCODING}),
        ("what does not shrink", noise, noise, {}),
    ):
        headers = {**encoding, CHECKSUM_HEADER: hashlib.sha256(content).hexdigest()}
        speeds = []
        for _ in range(REPETITIONS):
            jobs = _add_runs(store, CLIENTS, over=False)
            written = _written(server, jobs, body, content, headers)
            speeds.append(LOG_PARTS * len(content) / 1e6 / asyncio.run(written))
            _end_runs(store)
        yield Row(
            name=f"log ingest, {kind}, {name}",
            unit="MB/s of log",
            values=tuple(speeds),
            target="at least 100",
        )


async def _written(
    server: Process,
    jobs: Sequence[str],
    body: bytes,
    content: bytes,
    headers: dict[str, str],
) -> float:
    """Upload the same part to each of *jobs*, several times; seconds that it took."""
    context = _context(server)
    workers = [
        await (await Connection.to(server.workers, context)).registered("i-logs", slot)
        for slot in range(CLIENTS)
    ]
    tokens = [
        (await worker.claim(job))["token"]
        for worker, job in zip(workers, jobs, strict=True)
    ]

    async def write(number: int) -> None:
        given = {**headers, TOKEN_HEADER: tokens[number]}
        for part in range(LOG_PARTS // CLIENTS):
            path = f"/jobs/{jobs[number]}/log?offset={part * len(content)}"
            await workers[number].send("PUT", path, body, given)

    seconds = await _at_once(write)
    for worker in workers:
        worker.close()
    return seconds


# --- workers


class Connection:
    """What a worker says, with nothing around it that would have to be measured."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.worker: dict[str, Any] = {}

    @classmethod
    async def to(cls, address: str, context: ssl.SSLContext | None) -> Self:
        host, _, port = address.partition("://")[2].partition(":")
        return cls(*await asyncio.open_connection(host, int(port), ssl=context))

    def close(self) -> None:
        self._writer.transport.abort()

    async def registered(self, instance: str, slot: int) -> Self:
        registration = {"instance": instance, "slot": slot, "version": "0"}
        self.worker = await self.post("/workers", registration)
        return self

    async def claim(self, job: str) -> dict[str, Any]:
        body = {"worker": self.worker["worker"], "claim": "c"}
        return await self.post(f"/jobs/{job}/claim", body)

    async def post(
        self, path: str, body: dict[str, Any], below: str = PREFIX
    ) -> dict[str, Any]:
        return await self.send("POST", path, json.dumps(body).encode(), {}, below)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        below: str = PREFIX,
    ) -> dict[str, Any]:
        given = {
            "Host": "bench",
            VERSION_HEADER: "1",
            "Content-Length": str(len(body)),
            **headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        head = f"{method} {below}{path} HTTP/1.1\r\n{lines}\r\n"
        self._writer.write(head.encode() + body)
        await self._writer.drain()
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.partition("content-length: ")[2].partition("\r\n")[0])
        content = await self._reader.readexactly(length)
        if not answer.startswith("http/1.1 200"):
            raise RuntimeError(answer + content.decode())
        found: dict[str, Any] = json.loads(content) if content else {}
        return found


def _context(server: Process) -> ssl.SSLContext:
    context: ssl.SSLContext = server.connections().connection_pool_kw["ssl_context"]
    return context


class Crowd:
    """So many workers of *servers* that long-poll, and claim what they are offered."""

    def __init__(self, servers: Sequence[Process], count: int) -> None:
        self.claimed: dict[str, float] = {}
        """When each run was claimed."""
        self.over = threading.Event()
        self._addresses = [server.workers for server in servers]
        self._context = _context(servers[0])
        self._count = count
        self._there = threading.Event()
        self._waiting = 0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()))

    def __enter__(self) -> Self:
        self._thread.start()
        self._there.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    async def _work(self) -> None:
        instance, handshakes = f"i-{new_id()}", asyncio.Semaphore(20)
        tasks = [
            asyncio.create_task(self._one(instance, slot, handshakes))
            for slot in range(self._count)
        ]
        try:
            while self._waiting < self._count:
                await asyncio.sleep(0.1)
                self._look_at(tasks)
            await asyncio.sleep(2)
            self._there.set()
            await asyncio.to_thread(self.over.wait)
            self._look_at(tasks)
        except Exception as exc:  # noqa: BLE001 (raised where it is waited for)
            self._failure = exc
        finally:
            self._there.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _look_at(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            if task.done():
                task.result()

    async def _one(
        self, instance: str, slot: int, handshakes: asyncio.Semaphore
    ) -> None:
        async with handshakes:
            address = self._addresses[slot % len(self._addresses)]
            connection = await Connection.to(address, self._context)
            await connection.registered(instance, slot)
        path = f"/workers/{connection.worker['worker']}/poll"
        longest = connection.worker["poll_seconds"]
        # They have not all come at the same moment.
        seconds = longest * (slot + 1) / self._count
        self._waiting += 1
        while True:
            polled = await connection.post(path, {"wait_seconds": seconds})
            seconds = longest
            if offer := polled["offer"]:
                # Another may have been faster: after a while an offer is made again.
                with contextlib.suppress(RuntimeError):
                    await connection.claim(offer["job"])
                    self.claimed[offer["run"]] = time.perf_counter()
