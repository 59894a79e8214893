"""A launcher that is killed with SIGKILL at any moment loses nothing and repeats nothing."""

import signal

import pytest

from .crashes import Crash, ends_well, no_strangers, site, survives, whole


pytestmark = pytest.mark.services

PLANNING = [
    "before claiming",
    "after claiming",
    "before claimed",
    "after claimed",
    "before created",
    "after created",
    "before entered INITIALIZING",
    "after entered INITIALIZING",
    "before sending initialize",
    "before ended initialize 0",
    "after ended initialize 0",
    "before entered PLANNING",
    "after entered PLANNING",
    "before sending plan",
    "before ended plan 0",
    "after ended plan 0",
    "before planned",
    "after planned",
]
"""Steps of the journal until it is known what follows from the plan."""


@pytest.mark.parametrize("moment", PLANNING)
def test_killed_at_a_step(site, whole, moment):
    """Wherever the journal stands, the run ends well: each phase once, each byte once."""
    survives(site, whole, moment)


def test_control_plane_restarted(site, whole):
    """A control plane that dies with the launcher, and comes back first, changes nothing."""
    crash = Crash(site, "control-plane", "deployed")
    crash.killed_at("before planned")
    site.server.signal(signal.SIGKILL)
    site.server.wait(10)
    site.restart_server()

    crash.launch()
    ends_well(crash, whole)
