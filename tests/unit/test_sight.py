import threading

import pytest

from given import a_job, eventually
from launcher import sight
from launcher.errors import ImageNotFound
from launcher.sight import Facts, Sight, Stage, Vital
from launcher.threads import spawn


class Notes:
    """
    An observer that remembers everything.
    """

    def __init__(self):
        self.said = []

    def claimed(self, job, at):
        self.said.append(("claimed", job.job))

    def seen(self, job, stage):
        self.said.append((stage.stage, stage.phase, stage.failure, job.job))

    def ended(self, job, ended):
        self.said.append(("ended", job.job, ended.verdict, ended.code))


FACTS = Facts.of(a_job(), 3.5)


def test_a_job_is_seen():
    """
    Every stage of a job reaches every observer, with the job that it belongs to.
    """
    one, other = Notes(), Notes()
    with Sight([one, other]).job(FACTS):
        sight.claimed(sight.now())
        with sight.stage(Stage.PHASE, phase="plan"):
            pass
        sight.ended(verdict="finished", code="", resumed=False, begun_at=0)

    assert one.said == other.said
    assert one.said == [
        ("claimed", "01JOB"),
        (Stage.CLAIM, "", "", "01JOB"),
        (Stage.PHASE, "plan", "", "01JOB"),
        ("ended", "01JOB", "finished", ""),
    ]
    assert (3.5, "testing-spacelift") == (FACTS.waited_seconds, FACTS.stack)


def test_threads_of_a_job():
    """
    A stage in a thread that was started for a job belongs to the job.
    """
    notes = Notes()

    def work():
        with sight.stage(Stage.FLUSH):
            pass

    with Sight([notes]).job(FACTS):
        spawn("helper", work).join()

    assert [(Stage.FLUSH, "", "", "01JOB")] == notes.said


def test_without_a_job():
    """
    What happens outside of any job is said to nobody, and happens all the same.
    """
    done = []
    with sight.stage(Stage.PULL), sight.vital(Vital.LOG_AGE, lambda: 1.0):
        done.append("pulled")
    sight.claimed(0)
    sight.ended(verdict="finished", code="", resumed=False, begun_at=0)

    assert ["pulled"] == done


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImageNotFound("no such image"), "image_not_found"),
        (ZeroDivisionError(), "internal_error"),
        (KeyboardInterrupt(), "internal_error"),
    ],
)
def test_a_stage_that_fails(error, code):
    """
    A stage that ends early is over, too; observers learn the code, and no words.
    """
    notes = Notes()
    with Sight([notes]).job(FACTS):
        with pytest.raises(type(error)), sight.stage(Stage.PULL):
            raise error

    assert [(Stage.PULL, "", code, "01JOB")] == notes.said


def test_an_observer_that_fails():
    """
    A bug of who looks on costs neither the job nor the other observers anything.
    """

    class Broken(Notes):
        def seen(self, job, stage):
            raise ZeroDivisionError

    notes = Notes()
    with Sight([Broken(), notes]).job(FACTS):
        with sight.stage(Stage.PULL):
            pass

    assert 1 == len(notes.said)


def test_a_stage_that_began_before():
    """
    A stage may have begun before anybody could say so.
    """
    seen = []

    class Timing(Notes):
        def seen(self, job, stage):
            seen.append(stage)

    since = sight.now() - 2_000_000_000
    with Sight([Timing()]).job(FACTS), sight.stage(Stage.CREATE, since=since):
        pass

    assert since == seen[0].begun_at
    assert seen[0].seconds >= 2
    assert seen[0].ended_at >= since + 2_000_000_000


def test_vitals():
    """
    What can be asked about jobs at work is asked of all of them, and of no other.
    """
    seen, over, ready = Sight(), threading.Event(), threading.Barrier(3)

    def work(slack):
        with seen.job(FACTS), sight.vital(Vital.LEASE_SLACK, lambda: slack):
            ready.wait(10)
            over.wait(10)

    threads = [threading.Thread(target=work, args=(slack,)) for slack in (60.0, 30.0)]
    for thread in threads:
        thread.start()
    ready.wait(10)
    assert [30.0, 60.0] == sorted(seen.vitals(Vital.LEASE_SLACK))
    assert [] == seen.vitals(Vital.LOG_AGE)
    over.set()
    for thread in threads:
        thread.join()

    eventually(lambda: not seen.vitals(Vital.LEASE_SLACK))
