"""One installation under torment: an engine, a control plane and a launcher of its own."""

import contextlib
import os
import re
import signal
import sqlite3
import sys
import threading
import time

from collections import Counter, deque

import urllib3
import yaml

from support.private_engine import IMAGE, PrivateEngine, small_disk
from support.relay import Relay

from examples.demo.api import Api, ApiError
from examples.demo.processes import Process, make_repository, pool_variables


LEASE_SECONDS = 12.0
STACKS = 4
STATES = {"INITIALIZING": "initialize", "PLANNING": "plan", "APPLYING": "apply"}
TERMINAL = {"FINISHED", "FAILED", "STOPPED", "CANCELED", "DISCARDED"}
SECRETS = {"CI_SECRET": "ci-secret"}
PATH = "/mnt/workspace/source/bin:/usr/local/bin:/usr/bin:/bin"
PHASES = ("initialize", "plan", "apply")
STEPS = [
    *("claiming", "claimed", "created", "planned", "decided", "exited", "over"),
    *(f"entered {state}" for state in STATES),
    *(f"sending {phase}" for phase in PHASES),
    *(f"ended {phase} 0" for phase in PHASES),
]
MOMENTS = [f"{when} {step}" for step in STEPS for when in ("before", "after")]
"""Every step of a launcher's journal, and both sides of it."""

TOOL = """#!/bin/sh
[ "$1" = show ] || echo "+ terraform $1"
[ "$1" != show ] || echo '{"format_version": "1.2", "resource_changes": [{"address": \
"a.b", "type": "a", "change": {"actions": ["create"]}}]}'
"""
CALM_SECONDS = 120
REAPED_WITHIN_SECONDS = 330
"""The reaper leaves alone what is younger than two minutes, and looks every three."""


def stream(chance, name):
    """What a phase prints: known beforehand, and every line different."""
    lines = []
    for number in range(chance.randrange(2000, 4000)):
        noise = chance.choices("abcdef0123456789 é→\t\r\x1b", k=chance.randrange(60))
        lines.append(f"#{name}:{number}:{''.join(noise)}\n")
    return "".join(lines)


def hooks(slug, name):
    """Mark the start where nobody can take it back, and print in two parts."""
    return [
        f'echo "$TF_VAR_spacelift_run_id {name}" >>/marks/{slug}',
        f"cat streams/{name}-1",
        "sleep 0.3",
        f"cat streams/{name}-2",
    ]


class Site:
    """
    Everything below *folder*; what is done to it follows from *chance*.

    A context manager.  Its processes are started again when they die, as an init
    system would.
    """

    def __init__(self, folder, chance, until, *, live_restore):
        self.folder, self.chance, self.until = folder, chance, until
        self.slugs = [f"chaos-{number}" for number in range(STACKS)]
        self.streams = {
            f"{name}-{part}": stream(chance, name) for name in PHASES for part in (1, 2)
        }
        self.marks = folder / "marks"
        self.deeds: Counter[str] = Counter()
        self.died_at = Counter()
        self.outcomes = {}
        self._engine_options = ["--live-restore"] if live_restore else []
        self._moments = deque(chance.sample(MOMENTS, len(MOMENTS)))
        self._closing = contextlib.ExitStack()
        self._lock = threading.RLock()
        self._held_up = threading.Event()
        self._over = threading.Event()
        self._killed = False
        self._plainly = False
        self.launcher = self.server = None

    # --- coming and going

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            self._open(undo)
            self._closing = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._closing.close()

    def _open(self, undo):
        self.marks.mkdir(parents=True)
        self.marks.chmod(0o777)
        self._make_repository()
        engine = self.folder / "engine"
        undo.enter_context(small_disk(engine, "512m"))
        self.engine = PrivateEngine(engine, *self._engine_options)
        undo.callback(self.engine.close)
        self.image = self.engine.docker(
            "image", "inspect", "--format", "{{.Id}}", IMAGE
        )
        self.engine.docker("volume", "create", "of-somebody-else")
        self.data = undo.enter_context(small_disk(self.folder / "server", "192m"))
        self.state = undo.enter_context(small_disk(self.folder / "launcher", "32m"))
        self._configure()
        self.addresses = ("127.0.0.1:0", "127.0.0.1:0")
        self._start_server()
        undo.callback(self._stop)
        listening = self.server.wait_for("server.listening")
        people = listening["endpoint"]
        workers = listening["workers_endpoint"].removeprefix("https://")
        self.addresses = (people.removeprefix("http://"), workers)
        self.api = Api(people, "ci", "ci-secret")
        self.relay = undo.enter_context(Relay(f"tcp://{workers}"))
        self.pool = pool_variables(
            self.data, "default", self.relay.host.replace("tcp:", "https:")
        )
        self._start_launcher()
        keeper = threading.Thread(target=self._keep_alive)
        keeper.start()
        undo.callback(keeper.join)
        undo.callback(self._over.set)

    def _make_repository(self):
        source = self.folder / "source"
        (source / "bin").mkdir(parents=True)
        (source / "streams").mkdir()
        tool = source / "bin" / "terraform"
        tool.write_text(TOOL)
        tool.chmod(0o755)
        for name, text in self.streams.items():
            (source / "streams" / name).write_bytes(text.encode())
        make_repository(source, self.folder / "repository")

    def _configure(self):
        stacks = [
            {
                "slug": slug,
                "name": slug,
                "repository": f"acme/{slug}",
                "source": {"git": f"file://{self.folder / 'repository'}"},
                "branch": "main",
                "vendor": "terraform",
                "worker_pool": "default",
                "autodeploy": True,
                "hooks": {
                    "before_init": hooks(slug, "initialize"),
                    "before_plan": hooks(slug, "plan"),
                    "before_apply": hooks(slug, "apply"),
                },
                "environment": [{"name": "PATH", "value": PATH}],
            }
            for slug in self.slugs
        ]
        config = {
            "account": "acme",
            "api_keys": [{"id": "ci", "secret_env": "CI_SECRET"}],
            "worker_pools": [{"name": "default"}],
            "stacks": stacks,
        }
        (self.folder / "control-plane.yaml").write_text(yaml.safe_dump(config))

    def _start_server(self):
        people, workers = self.addresses
        self.server = Process(
            "server",
            [
                *("server", "--config", str(self.folder / "control-plane.yaml")),
                *("--database", f"sqlite:///{self.data / 'control-plane.db'}"),
                *("--listen", people, "--listen-workers", workers),
            ],
            self.folder,
            {**SECRETS, "LEASE_SECONDS": str(LEASE_SECONDS)},
            command=[sys.executable, "-m", "tests.support.short_leases"],
        )

    def _start_launcher(self):
        """The next life, which dies at the next step of the journal."""
        with self._lock:
            self._moment = "never" if self._plainly else self._moments[0]
            self._killed = False
            self.launcher = Process(
                "launcher",
                ["run"],
                self.folder,
                {
                    **self.pool,
                    "DOCKER_HOST": self.engine.host,
                    "MORTAL_AT": self._moment,
                    "SPACELIFT_LAUNCHER_STATE_DIR": str(self.state),
                    "SPACELIFT_LAUNCHER_LISTEN": "127.0.0.1:0",
                    "SPACELIFT_LAUNCHER_WORKERS": "3",
                    "SPACELIFT_DEFAULT_RUNNER_IMAGE": self.image,
                    "SPACELIFT_LAUNCHER_ALLOWED_IMAGES": self.image,
                    "SPACELIFT_LAUNCHER_PULL_POLICY": "never",
                    "SPACELIFT_LAUNCHER_GIT_PROTOCOLS": "file",
                    "SPACELIFT_WORKER_EXTRA_MOUNTS": f"{self.marks}:/marks",
                },
                command=[sys.executable, "-m", "tests.support.mortal"],
            )

    def _keep_alive(self):
        while not self._over.wait(0.1):
            if self._held_up.is_set():
                continue
            with self._lock:
                if self.server.ended:
                    self._start_server()
                if self.launcher.ended:
                    if not self._killed and self.launcher.wait(0) == -signal.SIGKILL:
                        self.died_at[self._moment] += 1
                        self._moments.rotate(-1)
                    self._start_launcher()

    def _stop(self):
        self._over.set()
        with self._lock:
            for process in (self.launcher, self.server):
                if process is not None:
                    process.stop()

    # --- what is done to it

    def torment(self, done):
        """Do one thing after the other until *done*, and mend everything."""
        deeds = [
            *(self.kill_launcher, self.kill_control_plane, self.kill_both),
            *(self.kill_engine, self.cut_network),
            *(self.fill_launchers_disk, self.fill_servers_disk),
        ]
        while not done.wait(self.chance.uniform(3.0, 12.0)):
            deed = self.chance.choice(deeds)
            self.deeds[deed.__name__] += 1
            deed(done)
        self._plainly = True
        self.kill_launcher(done)

    def kill_launcher(self, done):
        self._kill(self.launcher, done)

    def kill_control_plane(self, done):
        self._kill(self.server, done)

    def kill_both(self, done):
        self._kill(self.launcher, done)
        self._kill(self.server, done)

    def _kill(self, process, done):
        """It stays away for a moment, or now and then for longer than a lease."""
        self._held_up.set()
        with self._lock:
            process.signal(signal.SIGKILL)
            process.wait(10)
            self._killed |= process is self.launcher
        done.wait(self.chance.choice([0, 0, 0, 0, 0.5, 1.0, LEASE_SECONDS + 2]))
        self._held_up.clear()

    def kill_engine(self, done):
        self.engine.kill()
        done.wait(self.chance.choice([0, 1.0]))
        self.engine.start()

    def cut_network(self, done):
        with self.relay.outage():
            done.wait(self.chance.choice([0.5, 1.0, 1.0, LEASE_SECONDS * 1.5]))

    def fill_launchers_disk(self, done):
        self._fill(self.state, done)

    def fill_servers_disk(self, done):
        self._fill(self.data, done)

    def _fill(self, folder, done):
        filler = folder / "filler"
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(1 << 18)):
                    pass
            done.wait(self.chance.uniform(0.5, 3.0))
        finally:
            filler.unlink(missing_ok=True)

    # --- runs

    def patiently(self, ask):
        """Ask a control plane that may be away just now."""
        while True:
            try:
                return ask()
            except (urllib3.exceptions.HTTPError, ApiError, ValueError, KeyError):
                if time.monotonic() > self.until:
                    raise TimeoutError("the control plane stays away") from None
                threading.Event().wait(0.3)

    def trigger_all(self, slug, count):
        """One run after the other on a stack, each to its end."""
        for _ in range(count):
            if time.monotonic() > self.until:
                return
            run = self.patiently(lambda: self.api.trigger(slug))
            self.outcomes[run] = (slug, None)
            self._followed(run)

    def _followed(self, run):
        slug, _ = self.outcomes[run]
        while time.monotonic() < self.until:
            history = self.patiently(lambda: self.api.history(slug, run))
            if history[-1]["state"] in TERMINAL:
                self.outcomes[run] = (slug, history)
                break
            threading.Event().wait(0.3)

    # --- what is counted

    @property
    def ended(self):
        return {run: history for run, (_, history) in self.outcomes.items() if history}

    def started_twice(self):
        twice = []
        for file in self.marks.iterdir():
            starts = file.read_text().splitlines()
            twice += [each for each, count in Counter(starts).items() if count > 1]
        return twice

    def bytes_wrong(self):
        return [what for run in self.ended for what in self._bytes_wrong(run)]

    def _bytes_wrong(self, run):
        """States of a run whose log is not what its phases have printed."""
        slug, history = self.outcomes[run]
        for transition in history:
            state = transition["state"]
            if state not in STATES or not transition["hasLogs"]:
                continue
            name = STATES[state]
            text = "".join(self.patiently(lambda: self._log(slug, run, transition)))  # noqa: B023
            whole = self.streams[f"{name}-1"] + self.streams[f"{name}-2"]
            cut = len(os.path.commonprefix([text, whole]))
            finished = history[-1]["state"] == "FINISHED"
            # Behind the stream come words of the tool, or why it ends here; they are few.
            if (cut < len(whole) and finished) or f"#{name}:" in text[cut:]:
                yield (
                    f"{run} {state}: byte {cut} of {len(whole)} is"
                    f" {text[max(cut - 20, 0) : cut + 60]!r}, {len(text)} in all;"
                    f" {history[-1].get('note')}"
                )

    def _log(self, slug, run, transition):
        return list(
            self.api.log(slug, run, transition["state"], transition["stateVersion"])
        )

    def outcomes_missing(self):
        """Runs that do not even end now that nothing is done to anybody any more."""
        self.until = time.monotonic() + CALM_SECONDS
        for run in [run for run in self.outcomes if run not in self.ended]:
            self._followed(run)
        return [run for run in self.outcomes if run not in self.ended]

    def left_behind(self):
        """What is still there when even the reaper has had its turn."""
        end = time.monotonic() + REAPED_WITHIN_SECONDS
        while (found := self._left_behind()) and time.monotonic() < end:
            threading.Event().wait(1)
        return found

    def _left_behind(self):
        instance = (self.state / "instance").read_text().strip()
        label = f"label=spacelift.launcher.instance={instance}"
        objects = []
        for kind in (("container", "ls", "--all"), ("volume", "ls")):
            objects += self.engine.docker(
                *kind, "--quiet", "--filter", label
            ).splitlines()
        volumes = self.engine.docker("volume", "ls", "--quiet").splitlines()
        if "of-somebody-else" not in volumes:
            objects.append("a volume of somebody else is gone")
        with contextlib.closing(sqlite3.connect(self.state / "journal.db")) as journal:
            jobs = [job for (job,) in journal.execute("SELECT job FROM jobs")]
        files = [
            str(path)
            for folder in ("spools", "scratch")
            if (self.state / folder).exists()
            for path in (self.state / folder).iterdir()
        ]
        return [*objects, *jobs, *files]

    def why(self):
        """How the runs ended, and how often in which words."""
        notes = Counter()
        for history in self.ended.values():
            note = re.sub(r"[0-9a-f]{8,}|\d+", "N", history[-1].get("note") or "")
            notes[f"{history[-1]['state']} {note}"] += 1
        return notes
