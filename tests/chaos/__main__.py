"""
Kills launcher and control plane at random moments, over many runs, and counts.

usage: python -m tests.chaos [--runs N] [--seed SEED] [--seconds LIMIT]

Everything is real: processes, SIGKILL, containers, git.  A phase that starts says so
in a file outside of its container, and prints a stream that is known beforehand.
Counted are phases that started twice, bytes that were lost or doubled, runs without
an outcome, and objects that were left behind.  The exit code is 0 if all are none.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import signal
import sqlite3
import sys
import tempfile
import threading
import time

from collections import Counter
from pathlib import Path

import urllib3

from tests.e2e.conftest import opened
from tests.e2e.test_crashes import PATH, TOOL

from examples.demo.api import ApiError


STACKS = 6
STATES = {"INITIALIZING": "initialize", "PLANNING": "plan", "APPLYING": "apply"}
TERMINAL = {"FINISHED", "FAILED", "STOPPED", "CANCELED", "DISCARDED"}
LINES = 3000


def phase(slug, name):
    """Marks its start where nobody can take it back, then prints."""
    return [
        *([TOOL] if name == "initialize" else []),
        f'echo "$TF_VAR_spacelift_run_id {name}" >>/marks/{slug}',
        f"seq {LINES} | sed s/^/{slug}-{name}-/",
        "sleep 0.2",
        f"seq {LINES} | sed s/^/{slug}-{name}-again-/",
    ]


def printed(slug, name):
    """What a phase that ran to its end has printed, up to what the tool says."""
    once = "".join(f"{slug}-{name}-{line}\n" for line in range(1, LINES + 1))
    return once + once.replace(f"{name}-", f"{name}-again-")


def stack(slug):
    hooks = {
        "before_init": phase(slug, "initialize"),
        "before_plan": phase(slug, "plan"),
        "before_apply": phase(slug, "apply"),
    }
    return {
        "slug": slug,
        "vendor": "terraform",
        "autodeploy": True,
        "hooks": hooks,
        "environment": [{"name": "PATH", "value": PATH}],
    }


class Chaos:
    def __init__(self, site, marks, chance, until):
        self.site, self.marks, self.chance, self.until = site, marks, chance, until
        self.pause = threading.Event()
        self.kills = Counter()
        self.over = threading.Event()
        self.outcomes = {}
        self.launch()

    def launch(self):
        self.site.launchers.clear()
        self.site.launcher(
            SPACELIFT_LAUNCHER_WORKERS="4",
            SPACELIFT_WORKER_EXTRA_MOUNTS=f"{self.marks}:/marks",
        )

    def patiently(self, ask):
        """Ask a control plane that may be away just now."""
        while True:
            try:
                return ask()
            except (urllib3.exceptions.HTTPError, ApiError, ValueError, KeyError):
                if time.monotonic() > self.until:
                    raise TimeoutError("the control plane stays away") from None
                self.pause.wait(0.3)

    def trigger_all(self, slug, count):
        """One run after the other on a stack, each to its end."""
        for _ in range(count):
            run = self.patiently(lambda: self.site.api.trigger(slug))
            self.outcomes[run] = (slug, None)
            while time.monotonic() < self.until:
                history = self.patiently(lambda: self.site.api.history(slug, run))  # noqa: B023
                if history[-1]["state"] in TERMINAL:
                    self.outcomes[run] = (slug, history)
                    break
                self.pause.wait(0.3)

    def kill_at_random(self):
        while not self.over.wait(self.chance.uniform(0.3, 4.0)):
            victim = self.chance.choice(
                ["launcher", "launcher", "control plane", "both"]
            )
            self.kills[victim] += 1
            killed = []
            if victim != "control plane":
                killed.append(self.site.launchers[0])
            if victim != "launcher":
                killed.append(self.site.server)
            for process in killed:
                process.signal(signal.SIGKILL)
                process.wait(10)
            self.over.wait(self.chance.choice([0, 0, 1.0]))
            if victim != "launcher":
                self.site.restart_server()
            if victim != "control plane":
                self.launch()

    def text(self, slug, run, transition):
        state, version = transition["state"], transition["stateVersion"]
        return "".join(
            self.patiently(lambda: list(self.site.api.log(slug, run, state, version)))
        )

    def bytes_wrong(self, run):
        """States of a run whose log is not what its phases have printed."""
        slug, history = self.outcomes[run]
        marked = "output was lost" in (history[-1].get("note") or "")
        wrong = []
        for transition in history:
            if transition["state"] not in STATES or not transition["hasLogs"]:
                continue
            text = self.text(slug, run, transition)
            whole = printed(slug, STATES[transition["state"]])
            whole_here = text.startswith(whole) and text.count(slug) == 2 * LINES
            ended = history[-1]["state"] == "FINISHED"
            cut = os.path.commonprefix([text, whole])
            only_why = slug not in text[len(cut) :]
            if not (whole_here or (not ended and (only_why or marked))):
                where = len(cut)
                wrong.append(
                    f"{run} {transition['state']}: byte {where} of {len(whole)} is"
                    f" {text[where - 20 : where + 40]!r}, {len(text)} bytes in all"
                )
        return wrong

    def started_twice(self):
        twice = []
        for file in self.marks.iterdir():
            starts = file.read_text().splitlines()
            twice += [each for each, count in Counter(starts).items() if count > 1]
        return twice

    def left_behind(self):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.closing(
                sqlite3.connect(self.site.folder / "launcher" / "journal.db")
            ) as journal:
                entries = journal.execute("SELECT job FROM jobs").fetchall()
            found = [*filter(None, self.site.leftovers()), *entries]
            if not found:
                break
            self.pause.wait(0.5)
        return found


def main():
    asked = argparse.ArgumentParser(prog="python -m tests.chaos")
    asked.add_argument("--runs", type=int, default=100)
    asked.add_argument("--seed", type=int, default=secrets.randbits(32))
    asked.add_argument("--seconds", type=int, default=1500)
    options = asked.parse_args()
    print(f"chaos: seed {options.seed}, {options.runs} runs", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        marks = Path(folder) / "marks"
        marks.mkdir()
        marks.chmod(0o777)
        slugs = [f"chaos-{number}" for number in range(STACKS)]
        with opened(Path(folder) / "site", [stack(slug) for slug in slugs]) as site:
            chaos = Chaos(
                site, marks, random.Random(options.seed), begun + options.seconds
            )
            each = -(-options.runs // STACKS)
            workers = [
                threading.Thread(target=chaos.trigger_all, args=(slug, each))
                for slug in slugs
            ]
            killer = threading.Thread(target=chaos.kill_at_random)
            for thread in (*workers, killer):
                thread.start()
            for thread in workers:
                thread.join()
            chaos.over.set()
            killer.join()
            ended = {r: h for r, (_, h) in chaos.outcomes.items() if h}
            counted = {
                "phases started twice": chaos.started_twice(),
                "bytes lost or doubled": [
                    w for r in ended for w in chaos.bytes_wrong(r)
                ],
                "outcomes missing": [r for r in chaos.outcomes if r not in ended],
                "objects left behind": chaos.left_behind(),
            }
            states = Counter(history[-1]["state"] for history in ended.values())
    print(
        f"chaos: {len(ended)} runs in {time.monotonic() - begun:.0f} s: {dict(states)}"
    )
    print(f"chaos: killed {dict(chaos.kills)}")
    for what, found in counted.items():
        print(f"chaos: {what}: {len(found)} {found[:5] if found else ''}")
    return 1 if any(counted.values()) or len(ended) < options.runs else 0


if __name__ == "__main__":
    sys.exit(main())
