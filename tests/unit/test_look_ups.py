"""Which runs are looked up together, and what becomes of the others when one fails."""

import threading
import time

import pytest

from controlplane.site import eventually
from launcher.controlplane.look_ups import TOGETHER, LookUps


class Looking:
    """Looks runs up when it is let, and remembers which ones it was given."""

    def __init__(self, bad=()):
        self.given = []
        self.bad = set(bad)
        self.let = threading.Event()
        self.begun = threading.Event()

    def __call__(self, *runs, since):
        self.given.append((runs, since))
        self.begun.set()
        assert self.let.wait(30)
        if self.bad.intersection(runs):
            raise RuntimeError("one of them upsets the others")

    def runs(self):
        return [runs for runs, _ in self.given]


@pytest.fixture
def look_ups():
    made = LookUps()
    yield made
    made.close()


def held(look_ups, looking):
    """A look-up that does not end yet, of a run of the stack "s"."""
    look_ups.start(looking)
    look_ups.want("first", "s")
    assert looking.begun.wait(30)


def test_who_comes_meanwhile_is_looked_up_together(look_ups):
    """In the order in which they came, so many at a time, and each once."""
    looking = Looking()
    held(look_ups, looking)
    crowd = [f"run-{number:02}" for number in range(TOGETHER + 3)]
    look_ups.want_all((run, "s") for run in [*crowd, "first", crowd[0]])
    looking.let.set()
    eventually(lambda: len(looking.given) == 3)
    assert looking.runs() == [
        ("first",),
        tuple(crowd[:TOGETHER]),
        tuple(crowd[TOGETHER:]),
    ]
    look_ups.want("first", "s")
    eventually(lambda: looking.runs()[3:] == [("first",)])


def test_the_answer_is_newer_than_the_newest_wish(look_ups):
    """A commit that was pushed before a run was triggered is not missed by it."""
    looking = Looking()
    held(look_ups, looking)
    look_ups.want("older", "s")
    before = time.monotonic()
    look_ups.want("newer", "s")
    looking.let.set()
    eventually(lambda: len(looking.given) == 2)
    assert looking.runs()[1] == ("older", "newer")
    assert looking.given[1][1] >= before


def test_stacks_do_not_wait_for_each_other(look_ups):
    """One whose repository does not answer keeps one thread."""
    looking = Looking()
    held(look_ups, looking)
    look_ups.want("second", "s")
    look_ups.want("other", "t")
    eventually(lambda: looking.runs() == [("first",), ("other",)])
    looking.let.set()
    eventually(lambda: looking.runs()[2:] == [("second",)])


def test_one_that_fails_costs_the_others_nothing(look_ups):
    """They are tried by themselves."""
    looking = Looking(bad={"bad"})
    held(look_ups, looking)
    look_ups.want_all((run, "s") for run in ("good", "bad", "also good"))
    looking.let.set()
    eventually(lambda: len(looking.given) == 5)
    assert looking.runs()[1:] == [
        ("good", "bad", "also good"),
        ("good",),
        ("bad",),
        ("also good",),
    ]
