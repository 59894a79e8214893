"""
Kills launcher, control plane and engine, cuts the network, fills disks, and counts.

usage: python -m tests.chaos [--runs N] [--seed SEED] [--seconds LIMIT] [--sites N]

Everything is real: processes, SIGKILL, containers, git, full file systems.  Each life
of the launcher ends at another step of its journal, unless something else comes
before.  A phase that starts says so in a file outside of its container, and prints a
stream that is known beforehand.  Counted are phases that started twice, bytes that
were lost or doubled, runs without an outcome, and objects that were left behind.  The
exit code is 0 if all are none.  Needs root, for engines and file systems of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import shutil
import sys
import tempfile
import threading
import time

from collections import Counter
from pathlib import Path

from tests.chaos.site import MOMENTS, STACKS, Site


def torment(sites, runs):
    """Let all sites do their share of the runs, and something happen to each."""
    each = -(-runs // (len(sites) * STACKS))
    tormentors = []
    for site in sites:
        done = threading.Event()
        workers = [
            threading.Thread(target=site.trigger_all, args=(slug, each))
            for slug in site.slugs
        ]
        tormentor = threading.Thread(target=site.torment, args=(done,))
        tormentors.append((workers, tormentor, done))
        for thread in (*workers, tormentor):
            thread.start()
    for workers, tormentor, done in tormentors:
        for thread in workers:
            thread.join()
        done.set()
        tormentor.join()


def counted(sites):
    """Everything that must not be, by kind."""
    missing = [x for site in sites for x in site.outcomes_missing()]
    left = {}
    waiting = [
        threading.Thread(
            target=lambda site=site: left.update({site: site.left_behind()})
        )
        for site in sites
    ]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    return {
        "phases started twice": [x for site in sites for x in site.started_twice()],
        "bytes lost or doubled": [x for site in sites for x in site.bytes_wrong()],
        "outcomes missing": missing,
        "objects left behind": [x for found in left.values() for x in found],
    }


def main():
    asked = argparse.ArgumentParser(prog="python -m tests.chaos")
    asked.add_argument("--runs", type=int, default=100)
    asked.add_argument("--seed", type=int, default=secrets.randbits(32))
    asked.add_argument("--seconds", type=int, default=1200)
    asked.add_argument("--sites", type=int, default=2)
    asked.add_argument("--keep", action="store_true", help="keep the processes' logs")
    options = asked.parse_args()
    print(f"chaos: seed {options.seed}, {options.runs} runs", flush=True)
    begun = time.monotonic()
    with contextlib.ExitStack() as closing:
        # A socket's path must be short.
        folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        if not options.keep:
            closing.callback(_removed, folder)
        chance = random.Random(options.seed)
        sites = [
            closing.enter_context(
                Site(
                    folder / str(number),
                    random.Random(chance.random()),
                    begun + options.seconds,
                    live_restore=number % 2 == 0,
                )
            )
            for number in range(options.sites)
        ]
        torment(sites, options.runs)
        counts = counted(sites)
        ended = {run: h for site in sites for run, h in site.ended.items()}
        deeds = sum((site.deeds for site in sites), Counter())
        died_at = sum((site.died_at for site in sites), Counter())
        why = sum((site.why() for site in sites), Counter())
    print(f"chaos: {len(ended)} runs in {time.monotonic() - begun:.0f} s")
    print(f"chaos: {dict(deeds)}")
    print(
        f"chaos: {sum(died_at.values())} deaths at {len(died_at)} of {len(MOMENTS)} steps"
        " of the journal"
    )
    for note, count in why.most_common():
        print(f"chaos: {count} x {note}")
    for what, found in counts.items():
        print(f"chaos: {what}: {len(found)} {found[:5] if found else ''}")
    return 1 if any(counts.values()) or len(ended) < options.runs else 0


def _removed(folder):
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
