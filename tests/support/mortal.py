"""
A launcher that is killed by SIGKILL at one step of its journal.

Run like the launcher itself, with the step in MORTAL_AT: ``before sending plan``, or
``after claimed``; ``never`` names none.  The journal's own three ways to the disk are
wrapped.  Nothing else is changed, but how long a phase may take to begin (seconds), if
MORTAL_BEGIN_SECONDS says so.
"""

import os
import signal

from launcher.adapters.engines import docker
from launcher.cli import main
from launcher.journal import Journal


FORGOTTEN = os.environ.get("MORTAL_FORGETS", "").split(",")
"""Steps that are not written at all: a journal whose order is broken."""
WHEN, _, WHERE = os.environ["MORTAL_AT"].partition(" ")
_NAMED = ("sending", "ended", "entered")


def step_of(step, fact):
    """What a step is called: for some of them the fact is part of it."""
    return f"{step} {fact.decode()}" if step in _NAMED else step


def die(when, step):
    if (when, step) == (WHEN, WHERE):
        os.kill(os.getpid(), signal.SIGKILL)


def mortal(write, name):
    def wrapped(self, *given):
        step = name(*given)
        die("before", step)
        result = None if step in FORGOTTEN else write(self, *given)
        die("after", step)
        return result

    return wrapped


if __name__ == "__main__":
    if seconds := os.environ.get("MORTAL_BEGIN_SECONDS"):
        docker._BEGIN_SECONDS = float(seconds)
    Journal.claiming = mortal(Journal.claiming, lambda *_: "claiming")
    Journal.write = mortal(Journal.write, lambda _, step, fact: step_of(step, fact))
    Journal.forget = mortal(Journal.forget, lambda _: "over")
    main()
