"""How soon a launcher is ready, and what it costs to be looked at."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.report import Row, cpu_seconds
from examples.demo.processes import COMMAND, Process


STARTS = 8
SCRAPES = 200
WINDOWS = 6
WINDOW_SECONDS = 10
PATIENCE_SECONDS = 60


def health(folder: Path, environment: Mapping[str, str]) -> Iterator[Row]:
    """Start launchers with *environment*, one after the other, in one directory."""
    with _launched(folder, environment):
        pass  # the policy is compiled now
    seconds = []
    for _ in range(STARTS):
        with _launched(folder, environment) as (_, _, took):
            seconds.append(took)
    yield Row(
        name="cold start to ready, policy compiled before",
        unit="s",
        values=tuple(seconds),
        target="at most 1",
    )
    with _launched(folder, environment) as (process, port, _):
        _get(port, "/metrics")
        yield Row(
            name="a scrape of /metrics",
            unit="s",
            values=tuple(_timed(port) for _ in range(SCRAPES)),
            target="at most 0.010",
        )
        yield from _idle(psutil.Process(process.pid), port)


def _idle(process: psutil.Process, port: int) -> Iterator[Row]:
    """An idle launcher that is asked as Prometheus and a kubelet would."""
    memory, load, pause = [], [], threading.Event()
    for _ in range(WINDOWS):
        before = cpu_seconds(process)
        _get(port, "/metrics")
        _get(port, "/readyz")
        pause.wait(WINDOW_SECONDS)
        load.append((cpu_seconds(process) - before) / WINDOW_SECONDS * 100)
        memory.append(process.memory_info().rss / 1e6)
    yield Row(
        name="idle launcher that is looked at: memory",
        unit="MB resident",
        values=tuple(memory),
        target="at most 100",
    )
    yield Row(
        name="idle launcher that is looked at: processor",
        unit="% of a core",
        values=tuple(load),
        target="at most 0.5",
    )


@contextmanager
def _launched(
    folder: Path, environment: Mapping[str, str]
) -> Iterator[tuple[Process, int, float]]:
    """A launcher that is ready, its port, and how long that took it."""
    port = _free_port()
    begun = time.perf_counter()
    process = Process(
        "health",
        ["run"],
        folder,
        {
            **environment,
            "SPACELIFT_LAUNCHER_STATE_DIR": str(folder / "health"),
            "SPACELIFT_LAUNCHER_LISTEN": f"127.0.0.1:{port}",
        },
        command=COMMAND,
    )
    try:
        while _get(port, "/readyz") != 200:
            if time.perf_counter() - begun > PATIENCE_SECONDS or process.ended:
                raise RuntimeError(process.log.read_text())
            os.sched_yield()
        yield process, port, time.perf_counter() - begun
    finally:
        process.stop()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _timed(port: int) -> float:
    begun = time.perf_counter()
    _get(port, "/metrics")
    return time.perf_counter() - begun


def _get(port: int, path: str) -> int:
    """Ask, and read all of the answer; 0 while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except OSError:
        # Whoever starts should not have to share its processor with who waits.
        threading.Event().wait(0.005)
        return 0
    finally:
        connection.close()
    return answer.status
