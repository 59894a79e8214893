"""A launcher that is killed, and finds less than it left: what may not happen is not tried."""

import pytest

from .conftest import docker
from .crashes import MORTAL, PHASES, STATES, Crash, ends_well, no_strangers, site, whole


pytestmark = pytest.mark.services


@pytest.mark.parametrize("name", PHASES)
def test_killed_while_sending(site, name):
    """A phase that may have been sent and did not begin never begins; the run says so."""
    crash = Crash(site, f"sending-{name}", "deployed")
    crash.killed_at(f"after sending {name}")

    crash.launch(command=MORTAL, MORTAL_AT="never", MORTAL_BEGIN_SECONDS="1")
    texts = crash.finished()

    assert PHASES[: PHASES.index(name)] == crash.starts
    if name == "after_run":
        assert "The after_run hooks were not run" in texts["APPLYING"]
    else:
        last = list(texts)[-2]
        assert f"{name}: the worker was restarted while handing it over" in texts[last]
    assert "FAILED" in texts
    crash.close()


@pytest.mark.parametrize("moment", ["before planned", "after planned", "before exited"])
def test_killed_while_handing_over(site, moment):
    """A run that waits for its confirmation has its workspace, whenever its worker died."""
    crash = Crash(site, f"handing-over-{moment.replace(' ', '-')}", "confirmed")
    crash.killed_at(moment)

    crash.launch()
    planned = crash.finished(until="UNCONFIRMED")
    assert PHASES[:2] == crash.starts
    site.api.confirm(crash.stack, crash.run)
    applied = crash.finished()

    assert "plan-20000\n" in planned["PLANNING"]
    assert "apply-20000\n" in applied["APPLYING"]
    assert "FINISHED" in applied
    assert PHASES == crash.starts
    crash.close()


def lose(path):
    path.unlink()


def damage(path):
    path.write_bytes(b"no journal at all\n" * 1000)


@pytest.mark.parametrize("harm", [lose, damage])
@pytest.mark.parametrize("name", ["initialize", "plan"])
def test_journal_lost(site, whole, name, harm):
    """Without its journal a launcher adopts by labels, and begins nothing any more."""
    crash = Crash(site, f"lost-{harm.__name__}-{name}", "deployed")
    crash.killed_at(f"before ended {name} 0")
    harm(crash.journal_path)
    for beside in ("-wal", "-shm"):
        crash.journal_path.with_name(f"journal.db{beside}").unlink(missing_ok=True)

    crash.launch()
    texts = crash.finished()

    begun = PHASES[: PHASES.index(name) + 1]
    assert begun == crash.starts
    for state in STATES[: len(begun)]:
        assert texts[state].startswith(whole[state])
    assert "it never began" in texts[STATES[len(begun)]]
    assert "FAILED" in texts
    crash.close()


def test_journal_lost_while_applying(site, whole):
    """An apply is followed to its end without a journal, masked, and ends its run well."""
    crash = Crash(site, "lost-applying", "deployed")
    crash.killed_at("before ended apply 0")
    crash.journal_path.unlink()

    crash.launch()
    texts = crash.finished()

    assert PHASES[:3] == crash.starts
    assert "apply-20000\ntoken=*****\napply is over\n" in texts["APPLYING"]
    assert "The after_run hooks were not run" in texts["APPLYING"]
    assert "FINISHED" in texts
    crash.close()


@pytest.mark.parametrize(
    ("name", "known"),
    [("plan", ""), ("apply", "the state may still be locked")],
)
def test_container_lost(site, name, known):
    """A container that is gone is reported, with what is known of what it did."""
    crash = Crash(site, f"container-lost-{name}", "deployed")
    crash.killed_at(f"before ended {name} 0")
    docker("container", "rm", "--force", crash.container)

    crash.launch()
    texts = crash.finished()

    last = texts[list(texts)[-2]]
    assert f"{name}: its container was gone when the worker came back" in last
    assert known in last
    assert "FAILED" in texts
    assert PHASES[: PHASES.index(name) + 1] == crash.starts
    crash.close()


def test_machine_restarted_while_applying(site):
    """A restart of the machine in the middle of an apply is reported as what it is."""
    crash = Crash(site, "machine-restarted", "deployed")
    crash.killed_in("apply")
    docker("container", "kill", crash.container)
    crash.journal("UPDATE jobs SET boot = 'an earlier one'")

    crash.launch()
    texts = crash.finished()

    reason = "apply: the worker's machine was restarted meanwhile; how much it has"
    assert reason in texts["APPLYING"]
    assert "the state may still be locked" in texts["APPLYING"]
    assert "FAILED" in texts
    assert PHASES[:3] == crash.starts
    crash.close()


def test_broken_order_turns_red(site):
    """These tests can fail: with a journal that forgets steps, phases start twice."""
    crash = Crash(site, "broken", "deployed")
    forgotten = "created,sending initialize,sending plan"
    crash.killed_at("before ended plan 0", MORTAL_FORGETS=forgotten)

    crash.launch()
    crash.finished()

    assert ["initialize", "plan", "initialize", "plan"] == crash.starts[:4]
    crash.close()


def test_container_begins_no_phase_twice(site, whole):
    """Where the journal forgets only that a phase was sent, the container knows."""
    crash = Crash(site, "forgetful", "deployed")
    crash.killed_at("before ended plan 0", MORTAL_FORGETS="sending plan")

    crash.launch()
    ends_well(crash, whole)
