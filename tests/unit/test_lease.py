import itertools
import threading

import launcher.lease
import pytest

from structlog.testing import capture_logs

from given import a_claim, eventually
from launcher.cancel import CancelToken
from launcher.errors import (
    ControlPlaneRefused,
    ControlPlaneUnavailable,
    CredentialsRefused,
    LeaseLost,
)
from launcher.lease import Ended, Lease, held
from support.hearts import Watching


@pytest.fixture(autouse=True)
def lines():
    with capture_logs() as lines:
        yield lines


class Source:
    """Answers renewals by a script; its last entry is repeated for ever."""

    def __init__(self, *answers, takes=0.0):
        self.answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.takes = takes
        self.now = 0.0
        self.renewed = []

    def renew(self, claim):
        self.now += self.takes
        answer = next(self.answers)
        self.renewed.append(claim)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def clock(self):
        return self.now


def holding(source, claim=None, abort=None):
    claim = claim or a_claim(lease_seconds=90, renew_seconds=0.001)
    return held(claim, source, abort or CancelToken(), clock=source.clock)


AWAY = ControlPlaneUnavailable("away")


def test_a_claim_is_renewed_as_long_as_the_block_lasts():
    """The claim is renewed again and again, and not once after the job."""
    source, claim = Source(None), a_claim(renew_seconds=0.001)
    with holding(source, claim) as lease:
        eventually(lambda: len(source.renewed) >= 3)
        assert not lease.cancel.cancelled
        assert not lease.lost.cancelled
    renewed = len(source.renewed)
    assert {claim.job.id} == {each.job.id for each in source.renewed}
    assert not [t for t in threading.enumerate() if t.name.startswith("lease-")]
    assert renewed == len(source.renewed)


def test_a_stop_request_ends_the_job():
    """What a renewal answers reaches the job as a cancel token."""
    with holding(Source(None, "stopped by a user")) as lease:
        assert lease.cancel.wait(10)
        assert Ended.STOP_REQUESTED == lease.cancel.reason
        assert not lease.lost.cancelled
        assert not lease.begin_changes()


def test_a_stop_request_does_not_end_changes():
    """Once the job changes something, a stop request is too late."""
    source = Source(None)
    with holding(source) as lease:
        assert lease.begin_changes()
        source.answers = itertools.repeat("stopped by a user")
        seen = len(source.renewed)
        eventually(lambda: len(source.renewed) > seen + 3)
        assert not lease.cancel.cancelled


def test_any_answer_can_ask_to_stop():
    """A stop request that comes with another call counts like one of a renewal."""
    lease = Lease(CancelToken())
    lease.heard(None)
    assert not lease.cancel.cancelled
    lease.heard("stopped by a user")
    assert Ended.STOP_REQUESTED == lease.cancel.reason


def test_a_stale_token_ends_job_and_renewals():
    """Who is told that the job is no longer his stops working and stays silent."""
    source = Source(None, LeaseLost("stale"))
    with holding(source) as lease:
        assert lease.lost.wait(10)
        assert lease.cancel.wait(10)
        assert Ended.LEASE_LOST == lease.cancel.reason
        assert not lease.begin_changes()
    assert 2 == len(source.renewed)


def test_a_stale_token_does_not_interrupt_changes():
    """A job that changes things goes on, and only its reports end."""
    source = Source(None)
    with holding(source) as lease:
        assert lease.begin_changes()
        source.answers = itertools.repeat(LeaseLost("stale"))
        assert lease.lost.wait(10)
    assert not lease.cancel.cancelled


def test_a_lease_is_lost_after_silence():
    """Silence for longer than the lease lasts loses it, and no shorter one does."""
    source = Source(AWAY, takes=30)
    with holding(source) as lease:
        assert lease.cancel.wait(10)
        # What became of the job is reported all the same, should somebody answer.
        assert not lease.lost.cancelled
        assert lease.given_up
    assert 4 == len(source.renewed)  # 30, 60 and 90 s are not longer than 90 s
    assert Ended.LEASE_LOST == lease.cancel.reason


def test_a_renewal_that_does_not_end_does_not_keep_a_lease():
    """The silence is judged beside the renewals: one that hangs does not delay it."""
    release = threading.Event()

    class Hanging(Source):
        def renew(self, claim):
            assert release.wait(30)

    claim = a_claim(lease_seconds=0.2, renew_seconds=0.001)
    with held(claim, Hanging(None), CancelToken()) as lease:
        assert lease.cancel.wait(10)
        assert Ended.LEASE_LOST == lease.cancel.reason
        release.set()


def test_a_renewal_that_comes_late_is_too_late():
    """An answer to what was asked before the lease ran out does not bring it back."""
    release = threading.Event()

    class Late(Source):
        def renew(self, claim):
            self.renewed.append(claim)
            assert release.wait(30)

    source = Late(None)
    claim = a_claim(lease_seconds=0.2, renew_seconds=0.001)
    with held(claim, source, CancelToken()) as lease:
        assert lease.cancel.wait(10)
        release.set()
    assert 1 == len(source.renewed)


def test_an_answer_ends_the_silence():
    """Each renewal that succeeds gives the whole lease again."""
    source = Source(AWAY, AWAY, None, AWAY, AWAY, None, AWAY, takes=30)
    with holding(source) as lease:
        assert lease.cancel.wait(10)
    # Counted from when the last good call was made, not from its answer.
    assert 9 == len(source.renewed)


@pytest.mark.parametrize(
    "error",
    [
        ControlPlaneRefused("no"),
        CredentialsRefused("no"),
        RuntimeError("a bug"),
    ],
)
def test_every_failure_to_renew_is_silence(error):
    """A refusal, or a bug of ours, neither keeps a lease nor ends the renewals."""
    source = Source(error, takes=30)
    with holding(source) as lease:
        assert lease.cancel.wait(10)
    assert 4 == len(source.renewed)


def test_silence_does_not_lose_a_job_that_changes_things():
    """An apply goes on without the control plane, and its lease is renewed later."""
    source = Source(None)
    with holding(source) as lease:
        assert lease.begin_changes()
        source.takes = 30
        source.answers = itertools.chain([AWAY] * 20, itertools.repeat(None))
        eventually(lambda: len(source.renewed) > 25)
        assert not lease.lost.cancelled
        assert not lease.cancel.cancelled


@pytest.mark.parametrize(
    "end",
    [
        lambda lease: lease.heard("stop"),
        lambda lease: lease.lose(),
        lambda lease: lease.lose_by_silence(),
    ],
)
def test_changes_and_the_end_exclude_each_other(end):
    """A job does not begin to change things while its end is being announced."""

    class Token(CancelToken):
        def cancel(self, reason):
            begun.append(lease.begin_changes())
            super().cancel(reason)

    lease, begun = Lease(CancelToken()), []
    lease.cancel, lease.lost = Token(), Token()
    end(lease)
    assert {False} == set(begun)
    assert lease.cancel.cancelled


def test_silence_never_silences_changes():
    """A lease that is presumed lost too late, after changes began, is not lost."""
    lease = Lease(CancelToken())
    assert lease.begin_changes()
    assert not lease.lose_by_silence()
    assert not lease.lost.cancelled


def test_abort_ends_changes_too():
    """Only the operator ends what changes something."""
    abort = CancelToken()
    with holding(Source(None), abort=abort) as lease:
        assert lease.begin_changes()
        abort.cancel("second signal")
        assert Ended.ABORTED == lease.cancel.reason
        assert not lease.lost.cancelled


def test_a_call_is_repeated_until_it_is_answered():
    """A call that may be repeated survives that nobody answers."""
    answers = iter([AWAY, AWAY, "at last"])

    def call():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert "at last" == Lease(CancelToken()).insist(call)


def test_a_stop_ends_the_repetitions_of_what_may_be_stopped():
    """Who repeats a step of a job that is to be stopped does not go on; a report does."""
    lease, calls = Lease(CancelToken()), []

    def call():
        calls.append(1)
        lease.heard("stopped by a user")
        raise AWAY

    with pytest.raises(ControlPlaneUnavailable):
        lease.insist(call, stoppable=True)
    assert [1] == calls

    answers = iter([AWAY, AWAY, "at last"])

    def report():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert "at last" == lease.insist(report)


def test_insisting_for_a_while():
    """Where there is a limit, the call is repeated up to it."""
    calls = []

    def call():
        calls.append(1)
        raise AWAY

    with pytest.raises(ControlPlaneUnavailable):
        Lease(CancelToken()).insist(call, seconds=0.0)
    assert [1] == calls


def test_a_stranger_between_does_not_end_a_job(monkeypatch):
    """Not being accepted is waited out for a while, because it may be a middlebox."""
    answers = iter([CredentialsRefused("who?"), AWAY, CredentialsRefused("who?"), 7])

    def call():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert 7 == Lease(CancelToken()).insist(call)

    monkeypatch.setattr(launcher.lease, "REFUSED_SECONDS", -1.0)

    def refused():
        raise CredentialsRefused("who?")

    with pytest.raises(CredentialsRefused):
        Lease(CancelToken()).insist(refused)


def test_a_refused_call_is_not_repeated():
    """A refusal is an answer."""
    calls = []

    def call():
        calls.append(1)
        raise ControlPlaneRefused("no")

    with pytest.raises(ControlPlaneRefused):
        Lease(CancelToken()).insist(call)
    assert [1] == calls


def test_insisting_ends_with_the_lease():
    """Who waits for an answer learns at once that the lease is lost."""
    lease, tried = Lease(CancelToken()), threading.Event()

    def call():
        tried.set()
        raise AWAY

    threading.Thread(target=lambda: tried.wait(10) and lease.lose()).start()
    with pytest.raises((ControlPlaneUnavailable, LeaseLost)):
        lease.insist(call)


def test_nothing_is_said_once_the_lease_is_lost():
    """Whoever lost the lease stays silent: the call is not even made."""
    lease, calls = Lease(CancelToken()), []
    lease.lose()
    with pytest.raises(LeaseLost):
        lease.insist(lambda: calls.append(1))
    assert [] == calls


def test_insisting_ends_with_the_operators_patience():
    """An abort allows one attempt more, and no waiting."""
    abort = CancelToken()
    lease = Lease(abort)
    calls = []

    def call():
        calls.append(1)
        raise AWAY

    with lease.until_aborted():
        abort.cancel("second signal")
        with pytest.raises(ControlPlaneUnavailable):
            lease.insist(call)
        assert "answered" == lease.insist(lambda: "answered")
    assert [1] == calls


def test_a_renewal_that_is_stuck_is_missed():
    """Who renews and does not come back is late within minutes."""
    stuck, go_on, heart = threading.Event(), threading.Event(), Watching()

    class Stuck(Source):
        def renew(self, claim):
            stuck.set()
            assert go_on.wait(30)

    with heart.listening(), holding(Stuck(None)):
        assert stuck.wait(10)
        # Who judges the silence has a minute and a half more.
        assert {"lease-01JOB"} == heart.misses(minutes=6)
        go_on.set()
        eventually(lambda: {} == heart.late())


def test_renewing_in_vain_is_no_reason_to_end():
    """A control plane that is away for hours is no thread that hangs."""
    heart = Watching()
    claim = a_claim(lease_seconds=90, renew_seconds=0.001)
    source = Source(AWAY)
    with (
        heart.listening(),
        held(claim, source, CancelToken(), changing=True, clock=source.clock),
    ):
        assert heart.endures("lease-01JOB")
