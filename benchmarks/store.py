"""
What the control plane's database costs: claims, waiting workers, and a bare update.

The server runs in a process of its own, and workers talk to it over mutual TLS as
launchers do.  The baseline is `benchmarks.bare`: one UPDATE on the same database,
without TLS.  Server, database and workers share the machine's processors.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import sqlalchemy as sa
import urllib3

from controlplane.site import (
    Backend,
    Process,
    Repository,
    Worker,
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
from launcher.wire.messages import PREFIX, VERSION_HEADER


REPETITIONS = 5
CLAIMS = 200
CLIENTS = 8
WORKERS = 10
"""Which take what is triggered."""
TRIGGERS = 200
TRIGGERS_PER_SECOND = 50
WAITING = (10, 100, 1000)
WAIT_SECONDS = 20
"""How long idle workers are watched: one whole poll of each."""
HISTORY = (100, 10_000, 100_000)
"""Runs that are over, which the claims are made beside."""
TARGETS = {"SQLite": 200, "PostgreSQL": 250}


def stores() -> Iterator[Row]:
    """Every row, on SQLite and on PostgreSQL."""
    for name in ("SQLite", "PostgreSQL"):
        with _server(name) as server:
            yield from claims(name, server)
            yield latencies(name, server)
            yield from idle(name, server)


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


# --- claims


def claims(name: str, server: Process) -> Iterator[Row]:
    """Claims per second, and how they compare to an UPDATE; beside ever more runs."""
    store = open_store(database(server.folder))
    bare = f"one UPDATE per request, {name}"
    yield Row(name=bare, unit="1/s", values=tuple(_updates(server, store)))
    there = 0
    for history in HISTORY:
        _add_runs(store, history - there, over=True)
        there = history
        measured = list(_claims(server, store))
        yield Row(
            name=f"claims, {name}, beside {history} runs",
            unit="1/s",
            values=tuple(rate for rate, _ in measured),
            target=f"at least {TARGETS[name]}",
            baseline=bare,
        )
        yield Row(
            name=f"server's processor time per claim, {name}, beside {history} runs",
            unit="ms",
            values=tuple(spent for _, spent in measured),
        )
    store.close()


def _claims(server: Process, store: Store) -> Iterator[tuple[float, float]]:
    """Claims per second, and milliseconds that the server computes for each."""
    process = psutil.Process(server.process.pid)
    workers = [server.worker(slot=slot) for slot in range(CLIENTS)]
    for _ in range(REPETITIONS):
        jobs = _add_runs(store, CLAIMS, over=False)

        def claim(number: int, jobs: list[str] = jobs) -> None:
            worker = workers[number]
            for job in jobs[number::CLIENTS]:
                worker(
                    "POST",
                    f"/jobs/{job}/claim",
                    {"worker": worker.id, "claim": "c"},
                )

        before = sum(process.cpu_times()[:2])
        rate = CLAIMS / _seconds(claim)
        yield rate, 1000 * (sum(process.cpu_times()[:2]) - before) / CLAIMS


def _updates(server: Process, store: Store) -> Iterator[float]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["-m", "benchmarks.bare", database(server.folder), str(port)]
    process = subprocess.Popen([sys.executable, *arguments])
    http = urllib3.PoolManager(maxsize=CLIENTS, retries=False)
    jobs = _add_runs(store, CLIENTS, over=True)

    def post(number: int) -> bool:
        try:
            where = f"http://127.0.0.1:{port}/{jobs[number]}"
            return http.request("POST", where).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    try:
        eventually(lambda: post(0))
        for _ in range(REPETITIONS):

            def update(number: int) -> None:
                for _ in range(CLAIMS // CLIENTS):
                    if not post(number):
                        raise RuntimeError("an update failed")

            yield CLAIMS / _seconds(update)
    finally:
        http.clear()
        process.kill()
        process.wait()


def _seconds(work: Callable[[int], None]) -> float:
    with ThreadPoolExecutor(CLIENTS) as pool:
        began = time.perf_counter()
        for done in [pool.submit(work, number) for number in range(CLIENTS)]:
            done.result()
        return time.perf_counter() - began


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


# --- from trigger to claim


def latencies(name: str, server: Process) -> Row:
    """How long a triggered run takes to be claimed, while many are triggered."""
    triggered: dict[str, float] = {}
    claimed: dict[str, float] = {}
    over = threading.Event()

    workers = [server.worker(slot=200 + slot) for slot in range(WORKERS)]

    def work(worker: Worker) -> None:
        while not over.is_set():
            offer = worker.poll(1)
            if offer is not None:
                path = f"/jobs/{offer['job']}/claim"
                body = {"worker": worker.id, "claim": "c"}
                if worker.raw("POST", path, body).status == 200:
                    claimed[offer["run"]] = time.perf_counter()

    def trigger(number: int) -> None:
        due = began + number / TRIGGERS_PER_SECOND
        over.wait(max(0.0, due - time.perf_counter()))
        at = time.perf_counter()
        triggered[api.trigger(type="PROPOSED")] = at

    with ThreadPoolExecutor(2 * WORKERS) as pool:
        working = [pool.submit(work, worker) for worker in workers]
        api = server.api()
        trigger_now = api.trigger(type="PROPOSED")
        eventually(lambda: trigger_now in claimed)
        began = time.perf_counter()
        list(pool.map(trigger, range(TRIGGERS)))
        eventually(lambda: triggered.keys() <= claimed.keys())
        over.set()
        for each in working:
            each.result()
    return Row(
        name=f"trigger to claim at {TRIGGERS_PER_SECOND} triggers a second, {name}",
        unit="ms",
        values=tuple(1000 * (claimed[run] - at) for run, at in triggered.items()),
        target="p99 at most 100",
        quantile=0.99,
    )


# --- workers that wait


def idle(name: str, server: Process) -> Iterator[Row]:
    """Memory and processor time of the server while workers wait for jobs."""
    context = server.connections().connection_pool_kw["ssl_context"]
    for count in WAITING:
        cpu, memory = _watched(server, context, count)
        yield Row(
            name=f"{count} idle workers, {name}: share of a core",
            unit="%",
            values=tuple(cpu),
            target="at most 5" if count == WAITING[-1] else "",
        )
        yield Row(
            name=f"{count} idle workers, {name}: memory",
            unit="MB",
            values=tuple(memory),
            target="at most 250" if count == WAITING[-1] else "",
        )


def _watched(
    server: Process, context: ssl.SSLContext, count: int
) -> tuple[list[float], list[float]]:
    ready, over = threading.Event(), threading.Event()
    crowd = threading.Thread(
        target=lambda: asyncio.run(_wait_for_jobs(server, context, count, ready, over))
    )
    crowd.start()
    process = psutil.Process(server.process.pid)
    cpu, memory = [], []
    try:
        ready.wait()
        for _ in range(REPETITIONS):
            before, began = sum(process.cpu_times()[:2]), time.perf_counter()
            over.wait(WAIT_SECONDS / REPETITIONS)
            spent = sum(process.cpu_times()[:2]) - before
            cpu.append(100 * spent / (time.perf_counter() - began))
            memory.append(process.memory_info().rss / 1e6)
    finally:
        over.set()
        crowd.join()
    return cpu, memory


async def _wait_for_jobs(
    server: Process,
    context: ssl.SSLContext,
    count: int,
    ready: threading.Event,
    over: threading.Event,
) -> None:
    handshakes = asyncio.Semaphore(20)
    tasks = [
        asyncio.create_task(_poll(server, context, handshakes, slot))
        for slot in range(1000, 1000 + count)
    ]
    try:
        connected = 0
        while connected < count:
            await asyncio.sleep(0.1)
            connected = sum(task.get_name() == "waiting" for task in tasks)
            for task in tasks:
                if task.done():
                    task.result()
        await asyncio.sleep(2)
        ready.set()
        await asyncio.to_thread(over.wait)
    finally:
        ready.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _poll(
    server: Process, context: ssl.SSLContext, handshakes: asyncio.Semaphore, slot: int
) -> None:
    host, _, port = server.workers.removeprefix("https://").partition(":")
    async with handshakes:
        connection = await asyncio.open_connection(host, int(port), ssl=context)
        registration = {"instance": "i-bench", "slot": slot, "version": "0"}
        answer = await _post(connection, host, "/workers", registration)
    task = asyncio.current_task()
    if task is not None:
        task.set_name("waiting")
    while True:
        path = f"/workers/{answer['worker']}/poll"
        await _post(connection, host, path, {"wait_seconds": answer["poll_seconds"]})


async def _post(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    host: str,
    path: str,
    body: dict[str, object],
) -> dict[str, str]:
    reader, writer = connection
    content = json.dumps(body).encode()
    writer.write(
        f"POST {PREFIX}{path} HTTP/1.1\r\nHost: {host}\r\n{VERSION_HEADER}: 1\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if not head.startswith("http/1.1 200"):
        raise RuntimeError(head)
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    found: dict[str, str] = json.loads(await reader.readexactly(length))
    return found
