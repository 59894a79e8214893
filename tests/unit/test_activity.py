import threading

from given import eventually
from launcher import activity
from launcher.activity import Board, Intake
from launcher.cancel import CancelToken


def test_a_slot_shows_its_job_and_phase():
    """While a job is at work its slot shows it, with the phase it has got to."""
    board = Board(2)
    with board.working(1, run="RUN", job="JOB"):
        before = board.now()[1]
        activity.entered("PLANNING")
        after = board.now()

    assert ("RUN", "JOB", "") == (before.run, before.job, before.phase)
    assert "PLANNING" == after[1].phase
    assert before.since <= after[1].since
    assert after[0] is None
    assert {0: None, 1: None} == board.now()


def test_a_phase_outside_of_a_slot_is_nobodys():
    """Entering a phase in a thread without a slot shows nowhere and harms nothing."""
    board = Board(1)
    with board.working(0, run="RUN", job="JOB"):
        stranger = threading.Thread(target=activity.entered, args=("PLANNING",))
        stranger.start()
        stranger.join()
        assert "" == board.now()[0].phase


def waiting(intake, stop):
    thread = threading.Thread(target=intake.wait, args=(stop,))
    thread.start()
    return thread


def test_an_open_intake_keeps_nobody():
    """Without a hold nobody waits."""
    Intake().wait(CancelToken())


def test_every_hold_must_be_released():
    """Who waits goes on when the last holder has released, in any order."""
    intake, stop = Intake(), CancelToken()
    intake.hold("a", "first")
    intake.hold("b", "second")
    thread = waiting(intake, stop)

    intake.release("a")
    assert thread.is_alive()
    assert {"b": "second"} == intake.holds
    intake.release("b")
    thread.join(10)

    assert not thread.is_alive()
    assert {} == intake.holds


def test_an_intake_can_be_held_again():
    """A hold after a release makes others wait once more, until they are stopped."""
    intake, stop = Intake(), CancelToken()
    intake.hold("a", "once")
    intake.release("a")
    intake.release("a")
    intake.hold("a", "twice")
    thread = waiting(intake, stop)

    eventually(thread.is_alive)
    stop.cancel("test")
    thread.join(10)

    assert not thread.is_alive()
