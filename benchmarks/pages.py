"""
What people wait for: a long run's page, and lines of a log that many watch.

The browser is the distribution's Chromium, without a cache; a person who is signed in
comes from the stack's page.  Server, browser, watchers and worker are processes of
their own, and share the machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from controlplane.pages import Browser
from controlplane.site import ENVIRON, Held, Process, Repository, configuration, stack
from playwright.sync_api import sync_playwright

from benchmarks.report import Row, cpu_seconds
from benchmarks.viewers import Told


LINES = 100_000
PAINTS = 9
VIEWERS = 200
PER_SECOND = 1000
UPLOADS_PER_SECOND = 10
SECONDS = 10
QUICK_SIZE = 1 << 20
_ALONE = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
_SEEN = """() => new Promise(resolve => {
  new PerformanceObserver(list => {
    const largest = list.getEntries().at(-1).startTime;
    const first = performance.getEntriesByName('first-contentful-paint')[0].startTime;
    const got = [...performance.getEntriesByType('navigation'),
                 ...performance.getEntriesByType('resource')];
    const bytes = got.reduce((sum, each) => sum + each.transferSize, 0);
    resolve({ first, largest, bytes });
  }).observe({ type: 'largest-contentful-paint', buffered: true });
})"""


def pages(folder: Path) -> Iterator[Row]:
    """Every row."""
    with _server(folder) as server:
        yield from paints(server)
        yield from watched(server)


@contextmanager
def _server(folder: Path) -> Iterator[Process]:
    repository = Repository(folder / "source")
    repository.commit()
    slugs = ("testing-spacelift", "quiet")
    server = Process(folder, configuration([stack(repository, slug) for slug in slugs]))
    try:
        yield server.started()
    finally:
        server.end()


# --- the page of a run


def paints(server: Process) -> Iterator[Row]:
    """How soon a run with 100,000 lines is seen, and what has travelled by then."""
    job = _begun(server)
    for first in range(1, LINES + 1, 5000):
        job.log(b"".join(b"line %d\n" % n for n in range(first, first + 5000)))
    path = f"/stack/testing-spacelift/run/{job.run}"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=_ALONE
        )
        context = chromium.new_context()
        name, _, value = _cookie(server).partition("=")
        context.add_cookies([{"name": name, "value": value, "url": server.base}])
        page = context.new_page()
        context.new_cdp_session(page).send(
            "Network.setCacheDisabled", {"cacheDisabled": True}
        )
        floor, seen = [], []
        for _ in range(PAINTS + 1):
            for found, address in ((floor, "/auth_success"), (seen, path)):
                page.goto(f"{server.base}/stack/testing-spacelift")
                page.goto(f"{server.base}{address}", wait_until="commit")
                found.append(page.evaluate(_SEEN))
        chromium.close()
    job.settle("failed")
    of, bare = f"run page, {LINES:,} lines of log", "page of one sentence: first paint"
    yield Row(name=bare, unit="ms", values=tuple(each["first"] for each in floor[1:]))
    yield Row(
        name=f"{of}: first contentful paint",
        unit="ms",
        values=tuple(each["first"] for each in seen[1:]),
        baseline=bare,
        target="at most 200",
    )
    yield Row(
        name=f"{of}: largest contentful paint",
        unit="ms",
        values=tuple(each["largest"] for each in seen[1:]),
    )
    yield Row(
        name=f"{of}: page, style and script",
        unit="kB",
        values=tuple(each["bytes"] / 1000 for each in seen[1:]),
        target="at most 150",
    )


# --- a log that many watch


@dataclass(frozen=True, kw_only=True)
class _Written:
    sent: list[int]
    """When each line was."""
    uploads: list[float]
    """Seconds of each, at the steady rate."""
    loads: list[float]
    """Of the server, in percent of a core, in each second of it."""
    speeds: list[float]
    """Of another log beside it, in MB/s."""


def watched(server: Process) -> Iterator[Row]:
    """How late lines are, and what those who watch cost those who write."""
    alone, _ = _written(server, 0)
    beside, told = _written(server, VIEWERS)
    nobody, many = "nobody watches", f"{VIEWERS} watch"
    for what, unit, target in (
        ("uploads", "s", "ratio about 1"),
        ("speeds", "MB/s", "ratio about 1"),
        ("loads", "% of a core", ""),
    ):
        name = {
            "uploads": "upload of 100 lines",
            "speeds": "another log at full speed",
            "loads": f"server's processor, {PER_SECOND:,} lines/s",
        }[what]
        yield Row(
            name=f"{name}, {nobody}", unit=unit, values=tuple(getattr(alone, what))
        )
        yield Row(
            name=f"{name}, {many}",
            unit=unit,
            values=tuple(getattr(beside, what)),
            baseline=f"{name}, {nobody}",
            target=target,
        )
    late = [delay for each in told for delay in _late(each, beside.sent)]
    yield Row(
        name=f"line written to line seen, {many} {PER_SECOND:,} lines/s",
        unit="s",
        values=tuple(late),
        quantile=0.99,
        target="at most 1",
        lost_bytes=0 if len(late) == VIEWERS * PER_SECOND * SECONDS else 1,
    )


def _written(server: Process, viewers: int) -> tuple[_Written, list[Told]]:
    """Write a log while so many watch it, and what each of them was told."""
    job, other = _begun(server), _begun(server, "quiet")
    if not viewers:
        return _steady(server, job, other), []
    url = f"{server.base}/stack/testing-spacelift/run/{job.run}/events"
    command = ["-m", "benchmarks.viewers", url, _cookie(server), str(viewers)]
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        written = _steady(server, job, other)
        return written, json.loads(process.stdout.readline())


def _steady(server: Process, job: Held, other: Held) -> _Written:
    """Write so many lines a second; halfway, another log as fast as it goes."""
    written = _Written(sent=[], uploads=[], loads=[], speeds=[])
    over = threading.Event()

    def at_full_speed() -> None:
        data = (b"x" * 99 + b"\n") * (QUICK_SIZE // 100)
        while not over.is_set():
            begun = time.perf_counter()
            other.log(data)
            speed = len(data) / 1e6 / (time.perf_counter() - begun)
            written.speeds.append(speed)

    process = psutil.Process(server.process.pid)
    beside, pause = threading.Thread(target=at_full_speed), threading.Event()
    each, rounds = PER_SECOND // UPLOADS_PER_SECOND, SECONDS * UPLOADS_PER_SECOND
    begun = time.monotonic()
    last = begun, cpu_seconds(process)
    for number in range(rounds):
        due = begun + number / UPLOADS_PER_SECOND
        pause.wait(max(0.0, due - time.monotonic()))
        if number == rounds // 2:
            beside.start()
        if 0 < number <= rounds // 2 and number % UPLOADS_PER_SECOND == 0:
            now = time.monotonic(), cpu_seconds(process)
            written.loads.append((now[1] - last[1]) / (now[0] - last[0]) * 100)
            last = now
        written.sent.extend([time.monotonic_ns()] * each)
        before = time.perf_counter()
        job.log(b"".join(b"%079d\n" % n for n in range(each)))
        if number < rounds // 2:
            written.uploads.append(time.perf_counter() - before)
    over.set()
    beside.join()
    job.settle("failed")
    other.settle("failed")
    return written


def _late(told: Told, sent: list[int]) -> Iterator[float]:
    seen = 0
    for at, row in told:
        for number in range(seen, row):
            yield (at - sent[number]) / 1e9
        seen = row


def _begun(server: Process, slug: str = "testing-spacelift") -> Held:
    """A run that has begun to print, held by a worker."""
    api, worker = server.api(), server.worker(instance=slug)
    api.trigger(slug, type="PROPOSED")
    job: Held = worker.take()
    job.enter("INITIALIZING")
    return job


def _cookie(server: Process) -> str:
    browser = Browser(server)
    browser.sign_in("ci", ENVIRON["CI_SECRET"])
    return str(browser.cookie)
