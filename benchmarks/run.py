"""
What the launcher adds to a job, and what it costs when there is none.

Everything is real: control plane, launcher, policy, engine and image, each in the
process it has in use.  The baseline is a bare loop over the same engine.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
import time

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import psutil
import yaml

from benchmarks import document
from benchmarks.adoption import adoption
from benchmarks.health import health
from benchmarks.identity import registrations
from benchmarks.images import images
from benchmarks.logs import PARALLEL_RUNS, masking
from benchmarks.logs import logs as log_pipeline
from benchmarks.pages import pages
from benchmarks.phases import phases
from benchmarks.policy import policies
from benchmarks.report import Row, cpu_seconds, environment, published
from benchmarks.sources import sources
from benchmarks.store import stores
from benchmarks.workspaces import workspaces
from examples.demo.api import Api
from examples.demo.demo import image_id
from examples.demo.processes import (
    Process,
    make_repository,
    pool_variables,
    start_launcher,
    start_server,
)
from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.credentials import Credentials
from launcher.adapters.controlplane.jobs import HttpJobSource
from launcher.cancel import CancelToken
from launcher.identity import identified
from launcher.settings import Settings
from launcher.wire.messages import Settlement, Verdict


HERE = Path(__file__).parent
DEMO = HERE.parent / "examples" / "demo"
JOBS = 20
CLAIMS = 120
IDLE_WINDOWS = 6
IDLE_SECONDS = 10
LOG_LINES = 1_000_000
LOG_REPETITIONS = 5


def main(groups: Sequence[str] = ()) -> None:
    """Measure the *groups*, or all, and keep what was found of each."""
    if unknown := set(groups) - GROUPS.keys():
        raise SystemExit(f"no such group: {', '.join(sorted(unknown))}; {USAGE}")
    # Installed packages are compiled once, and so must these be.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    api = docker.from_env().api
    with tempfile.TemporaryDirectory(prefix="spacelift-bench-") as folder:
        for name in groups or GROUPS:
            (place := Path(folder) / name).mkdir()
            rows = list(GROUPS[name](api, place))
            published(name, rows, environment(str(api.version()["Version"])))
    document.write()
    api.close()


def of_jobs(api: docker.APIClient, folder: Path) -> Iterator[Row]:
    image = image_id()
    yield Row(
        name="bare create, start, wait, remove",
        unit="s",
        values=tuple(repeated(JOBS, lambda: bare_loop(api, image))),
    )
    with site(folder, image) as here:
        yield from idle(here)
        yield from jobs(here)
        yield from logs(here)


def of_workspaces(_: docker.APIClient, folder: Path) -> Iterator[Row]:
    with site(folder / "site", image_id(), launcher=False) as here:
        yield claims(here)
        (folder / "workspaces").mkdir()
        known = worker_credentials(here)
        yield from workspaces(folder / "workspaces", known, here.api)
        yield from registrations(known)


def of_logs(api: docker.APIClient, folder: Path) -> Iterator[Row]:
    image = image_id()
    with site(folder / "site", image, launcher=False) as here:
        (folder / "logs").mkdir()
        yield from log_pipeline(
            folder / "logs",
            worker_credentials(here),
            here.api,
            api,
            image=image,
            server=psutil.Process(here.server.pid),
        )


def of_health(folder: Path) -> Iterator[Row]:
    image = image_id()
    with site(folder, image, launcher=False) as here:
        yield from health(folder, variables(here.folder, here.workers, image))


GROUPS: dict[str, Callable[[docker.APIClient, Path], Iterator[Row]]] = {
    "jobs": of_jobs,
    "controlplane": lambda _, __: stores(),
    "workspaces": of_workspaces,
    "logs": of_logs,
    "adoption": lambda _, folder: adoption(folder, image_id()),
    "images": lambda api, folder: images(folder, api),
    "pages": lambda _, folder: pages(folder),
    "phases": lambda api, _: phases(api, image_id()),
    "sources": lambda _, folder: sources(folder),
    "masking": lambda _, __: masking(),
    "health": lambda _, folder: of_health(folder),
    "policies": lambda _, folder: policies(folder / "policies"),
}
USAGE = f"there are {', '.join(GROUPS)}"


# --- a place to measure in


@dataclass(frozen=True, kw_only=True)
class Site:
    folder: Path
    workers: str
    api: Api
    server: Process
    launcher: Process | None

    @property
    def process(self) -> psutil.Process:
        if self.launcher is None:
            raise RuntimeError("no launcher runs here")
        return psutil.Process(self.launcher.pid)


@contextmanager
def site(folder: Path, image: str, *, launcher: bool = True) -> Iterator[Site]:
    """A control plane, and a launcher with the documented two-line policy."""
    folder.mkdir(exist_ok=True)
    repository = folder / "repository"
    source = folder / "source"
    source.mkdir()
    (source / "playbook.yml").write_text(
        "- {hosts: localhost, gather_facts: false, tasks: []}\n"
    )
    make_repository(source, repository)
    config = folder / "control-plane.yaml"
    config.write_text(yaml.safe_dump(desired_state(repository)))
    server, addresses = start_server(folder, config, {"BENCH_SECRET": "bench"})
    started = None
    try:
        if launcher:
            started = start_launcher(
                folder, variables(folder, addresses.workers, image), {}
            )
        yield Site(
            folder=folder,
            workers=addresses.workers,
            api=Api(addresses.people, "bench", "bench"),
            server=server,
            launcher=started,
        )
    finally:
        if started is not None:
            started.stop()
        server.stop()


def variables(folder: Path, workers: str, image: str) -> dict[str, str]:
    """What a launcher is configured with here."""
    return {
        **pool_variables(folder, "default", workers),
        "SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY": str(DEMO / "policy.rego"),
        "SPACELIFT_DEFAULT_ANSIBLE_RUNNER_IMAGE": image,
        "SPACELIFT_LAUNCHER_ALLOWED_IMAGES": image,
        "SPACELIFT_LAUNCHER_PULL_POLICY": "never",
        "SPACELIFT_LAUNCHER_GIT_PROTOCOLS": "file",
    }


def desired_state(repository: Path) -> dict[str, object]:
    common = {
        "source": {"git": f"file://{repository}"},
        "branch": "main",
        "vendor": "ansible",
        "vendor_config": {"playbook": "playbook.yml"},
        "worker_pool": "default",
    }
    printing = f"seq -f '%0{99}.0f' {LOG_LINES}"
    hooks = {
        "quick": {"before_init": ["echo first output", "exit 3"]},
        "loud": {"before_init": [printing, "exit 3"]},
        **{f"many-{number}": {} for number in range(PARALLEL_RUNS)},
    }
    return {
        "account": "bench",
        "api_keys": [{"id": "bench", "secret_env": "BENCH_SECRET"}],
        "worker_pools": [{"name": "default"}],
        "stacks": [
            {
                "slug": slug,
                "name": slug,
                "repository": f"bench/{slug}",
                "hooks": commands,
                **common,
            }
            for slug, commands in hooks.items()
        ],
    }


def repeated(times: int, once: Callable[[], float]) -> list[float]:
    once()  # what is slow the first time only is not what is asked for
    return [once() for _ in range(times)]


def bare_loop(api: docker.APIClient, image: str) -> float:
    """The least that a container with one short script costs."""
    begun = time.perf_counter()
    made = api.create_container(image, ["sh", "-c", "echo first output; exit 3"])
    api.start(made["Id"])
    api.wait(made["Id"])
    api.remove_container(made["Id"], v=True)
    return time.perf_counter() - begun


# --- what is measured


def idle(here: Site) -> Iterator[Row]:
    process, pause = here.process, threading.Event()
    memory, load = [], []
    for _ in range(IDLE_WINDOWS):
        before = cpu_seconds(process)
        pause.wait(IDLE_SECONDS)
        load.append((cpu_seconds(process) - before) / IDLE_SECONDS * 100)
        memory.append(process.memory_info().rss / 1e6)
    yield Row(
        name="idle launcher with a policy: memory",
        unit="MB resident",
        values=tuple(memory),
        target="at most 100",
    )
    yield Row(
        name="idle launcher with a policy: processor",
        unit="% of a core",
        values=tuple(load),
        target="at most 0.5",
    )


def jobs(here: Site) -> Iterator[Row]:
    """Trigger runs one by one; the launcher's log has the times of each stage."""
    finish(here, "quick")
    skip = len(here.launcher.events()) if here.launcher else 0
    before = cpu_seconds(here.process)
    first_output = []
    for _ in range(JOBS):
        begun = time.perf_counter()
        run = here.api.trigger("quick", kind="PROPOSED")
        for _, text in here.api.follow("quick", run):
            if "first output" in text:
                first_output.append(time.perf_counter() - begun)
    spent = (cpu_seconds(here.process) - before) / JOBS
    events = here.launcher.events()[skip:] if here.launcher else []
    started = [e for e in events if e["msg"] == "container.started"]
    running = [e["seconds"] - e["fetching_seconds"] for e in started]
    yield Row(
        name="claim to running container, without the fetch",
        unit="s",
        values=tuple(running),
        baseline="bare create, start, wait, remove",
        target="ratio at most 1.4",
    )
    yield Row(
        name="fetching the commit from a local repository",
        unit="s",
        values=tuple(e["fetching_seconds"] for e in started),
    )
    yield Row(
        name="trigger to first output, seen by the API's caller",
        unit="s",
        values=tuple(first_output),
        baseline="bare create, start, wait, remove",
    )
    yield Row(
        name="the launcher's own processor time for a job",
        unit="s",
        values=(spent,) * len(started),
        target="at most 0.040; the mean over all jobs",
    )


def logs(here: Site) -> Iterator[Row]:
    """One loud job after another, each byte compared with what was printed."""
    expected = hashlib.sha256(
        b"".join(b"%099d\n" % number for number in range(1, LOG_LINES + 1))
    ).hexdigest()
    speeds, lost = [], 0
    for _ in range(LOG_REPETITIONS):
        begun = time.perf_counter()
        run = here.api.trigger("loud", kind="PROPOSED")
        text = io.StringIO()
        for state, part in here.api.follow("loud", run):
            if state == "INITIALIZING":
                text.write(part)
        speeds.append(LOG_LINES * 100 / 1e6 / (time.perf_counter() - begun))
        seen = text.getvalue().encode()[: LOG_LINES * 100]
        if hashlib.sha256(seen).hexdigest() != expected:
            lost += max(LOG_LINES * 100 - len(seen), 1)
    yield Row(
        name="100 MB of log, container to API's caller",
        unit="MB/s, the job included",
        values=tuple(speeds),
        lost_bytes=lost,
    )


def claims(here: Site) -> Row:
    """From the trigger's call to the claim's answer, with a worker that waits."""
    known = worker_credentials(here)
    client = Client(known, connections=2)
    source = HttpJobSource(client, known.key, instance="bench", metadata={})
    source.receive(0, wait=0)
    times: list[float] = []
    for _ in range(CLAIMS):
        claimed = threading.Event()
        at = [0.0]

        def work() -> None:
            while (offer := source.receive(0, wait=20)) is None:
                pass
            claim = source.claim(0, offer, "bench")
            at[0] = time.perf_counter()  # noqa: B023
            claimed.set()  # noqa: B023
            if claim is not None:
                source.settle(
                    claim, Settlement(verdict=Verdict.FAILED, log_length=0, reason="-")
                )

        worker = threading.Thread(target=work)
        worker.start()
        CancelToken().wait(0.05)  # let the poll arrive
        begun = time.perf_counter()
        here.api.trigger("quick", kind="PROPOSED")
        claimed.wait(20)
        times.append(at[0] - begun)
        worker.join()
    client.close()
    return Row(
        name="trigger to claim, idle worker",
        unit="s",
        values=tuple(times),
        quantile=0.99,
        target="at most 0.050",
    )


def worker_credentials(here: Site) -> Credentials:
    """What a launcher is let in by."""
    variables = pool_variables(here.folder, "default", here.workers)
    given = Settings.from_environ(variables).identity
    identity = identified(given.token, given.private_key)
    return Credentials(identity, here.folder / "certificate")


def finish(here: Site, stack: str) -> None:
    run = here.api.trigger(stack, kind="PROPOSED")
    for _ in here.api.follow(stack, run):
        pass
