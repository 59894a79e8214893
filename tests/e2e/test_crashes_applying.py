"""A launcher that is killed once a change was decided on, or in the middle of a phase."""

import pytest

from launcher.cancel import CancelToken

from .crashes import PHASES, Crash, ends_well, no_strangers, site, survives, whole


pytestmark = pytest.mark.services

APPLYING = [
    "before entered APPLYING",
    "after entered APPLYING",
    "before sending apply",
    "before ended apply 0",
    "after ended apply 0",
    "before sending after_run",
    "before ended after_run 0",
    "after ended after_run 0",
    "before decided",
    "after decided",
    "before exited",
    "after exited",
    "before over",
    "after over",
]
"""Steps of the journal from the plan's answer to the job's end."""


@pytest.mark.parametrize("moment", APPLYING)
def test_killed_at_a_step(site, whole, moment):
    """The run ends well from there, too: each phase once, each byte once."""
    survives(site, whole, moment)


def test_killed_again_and_again(site, whole):
    """A launcher that dies in each of its lives still loses nothing."""
    crash = Crash(site, "again-and-again", "deployed")
    crash.killed_at("before ended initialize 0")
    for moment in ("after entered PLANNING", "before planned", "before ended apply 0"):
        crash.killed_at(moment, new=False)

    crash.launch()
    ends_well(crash, whole)


@pytest.mark.parametrize("name", PHASES)
def test_killed_in_the_middle_of_a_phase(site, whole, name):
    """A phase goes on without its launcher, and the next one follows it to its end."""
    crash = Crash(site, f"middle-{name}", "deployed")
    crash.killed_in(name)

    crash.launch().wait_for("job.resumed")
    crash.release()
    ends_well(crash, whole)


def test_phase_ends_while_nobody_is_there(site, whole):
    """A phase that ends before the next launcher is there is not run again."""
    crash = Crash(site, "nobody-there", "deployed")
    crash.killed_in("apply")
    crash.release()
    CancelToken().wait(1)

    crash.launch()
    ends_well(crash, whole)
