"""Starts a control plane and a launcher as a user would, and stops them again."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


COMMAND = [sys.executable, "-m", "launcher"]
_START_SECONDS = 60


class Process:
    """A process in the background whose standard error is JSON lines in a file."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        folder: Path,
        env: Mapping[str, str],
        *,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        # An earlier process of that name has logged there, too.
        self._skip = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *arguments],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                # Ctrl-C in the demo's terminal is for the demo.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def events(self) -> list[dict[str, Any]]:
        """Everything it has logged so far, whole lines only."""
        text = self.log.read_bytes()[self._skip :].decode()
        lines = text.split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(self, message: str, seconds: float = _START_SECONDS) -> dict[str, Any]:
        """The first event named *message*; fails when it does not come."""
        pause, deadline = threading.Event(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self.events():
                if event["msg"] == message:
                    return event
            if self._process.poll() is not None:
                break
            pause.wait(0.05)
        raise RuntimeError(
            f"{self.name} did not log {message!r} (exit code {self._process.poll()});"
            f" its log:\n{self.log.read_text()}"
        )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def stop(self) -> int:
        """Ask it to end and wait; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where a control plane listens: for people and their tools, and for launchers."""

    people: str = "http://127.0.0.1:0"
    workers: str = "https://127.0.0.1:0"


def start_server(
    folder: Path,
    config: Path,
    env: Mapping[str, str],
    *,
    at: Addresses | None = None,
    command: Sequence[str] = COMMAND,
) -> tuple[Process, Addresses]:
    """Start a control plane; return it and the addresses it listens on."""
    wanted = at or Addresses()
    server = Process(
        "server",
        [
            *("server", "--config", str(config)),
            *("--database", database(folder)),
            *("--listen", wanted.people.removeprefix("http://")),
            *("--listen-workers", wanted.workers.removeprefix("https://")),
        ],
        folder,
        env,
        command=command,
    )
    listening = server.wait_for("server.listening")
    return server, Addresses(
        people=listening["endpoint"], workers=listening["workers_endpoint"]
    )


def database(folder: Path) -> str:
    return f"sqlite:///{folder / 'control-plane.db'}"


@functools.cache
def pool_variables(
    folder: Path, pool: str, endpoint: str, make: str = "create"
) -> Mapping[str, str]:
    """Token and key of *pool*, as ``pool create`` prints them once."""
    made = subprocess.run(
        [
            *(*COMMAND, "pool", make, pool),
            *("--database", database(folder), "--endpoint", endpoint),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(line.split("=", 1) for line in made.stdout.splitlines())


def start_launcher(
    folder: Path,
    pool: Mapping[str, str],
    env: Mapping[str, str],
    *,
    name: str = "launcher",
    command: Sequence[str] = COMMAND,
) -> Process:
    """Start a launcher with a state directory of its own."""
    launcher = Process(
        name,
        ["run"],
        folder,
        {
            **pool,
            "SPACELIFT_LAUNCHER_STATE_DIR": str(folder / name),
            "SPACELIFT_LAUNCHER_LISTEN": "127.0.0.1:0",
            **env,
        },
        command=command,
    )
    launcher.wait_for("worker.started")
    return launcher


def make_repository(source: Path, repository: Path) -> str:
    """A git repository with one commit of *source* on main; return its hash."""
    identity = {
        "GIT_AUTHOR_NAME": "Demo",
        "GIT_AUTHOR_EMAIL": "demo@example.com",
        "GIT_COMMITTER_NAME": "Demo",
        "GIT_COMMITTER_EMAIL": "demo@example.com",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    repository.mkdir(parents=True)

    def git(*arguments: str) -> str:
        done = subprocess.run(
            [
                "git",
                f"--git-dir={repository / '.git'}",
                f"--work-tree={source}",
                *arguments,
            ],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **identity},
        )
        return done.stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all")
    git("commit", "--quiet", "--message", "First version")
    return git("rev-parse", "HEAD")
