"""
Keeping a claim alive while its job runs, and knowing when it is not ours.

Until the job changes something, silence of the control plane for as long as the
lease lasts means that somebody else may already have been told the run failed:
so we stop.  What became of it is reported all the same, because nobody knows what
the last call that was not answered has done over there; the token decides, whenever
somebody answers.  Once it changes something, stopping would do more harm than a late
report, so from then on only the operator and the timeouts end it.
"""

from __future__ import annotations

import enum
import math
import threading
import time

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import structlog

from launcher import sight
from launcher.cancel import CancelToken
from launcher.errors import ControlPlaneUnavailable, CredentialsRefused, LeaseLost
from launcher.heartbeat import STEP_SECONDS, beat, pausing, watching
from launcher.model import Claim
from launcher.ports import JobSource
from launcher.retry import Pauses
from launcher.sight import Vital
from launcher.threads import helper


T = TypeVar("T")

log = structlog.get_logger()

_LOOK_SECONDS = 1.0
"""How often a silence is looked at that loses no lease, as that of an apply."""

REFUSED_SECONDS = 600.0
"""
How long a job goes on telling somebody who does not accept the launcher at all.

It may be a stranger between launcher and control plane, for the moment.
"""


class Ended(enum.StrEnum):
    """Why a job is cancelled: the reasons of its cancel token."""

    STOP_REQUESTED = "stop requested"
    LEASE_LOST = "lease lost"
    ABORTED = "worker aborted"
    HOST_VANISHES = "host vanishes"
    TOO_LONG = "too long"
    TOO_SILENT = "too silent"
    TOO_MUCH_OUTPUT = "too much output"
    TOO_MANY_MASKS = "too many masks"


class Lease:
    """What the stages of a job see of its lease."""

    def __init__(self, abort: CancelToken) -> None:
        self.cancel = CancelToken()
        """Ends what is running; its reason is a member of `Ended`."""

        self.lost = CancelToken()
        """Fires when nothing may be reported any more."""

        self._hurry, self._halt = CancelToken(), CancelToken()
        self._abort = abort
        self._lock = threading.Lock()
        self._changing = False
        self._ending = False
        """Decided under the lock: at most one of the two is ever true."""

    def begin_changes(self) -> bool:
        """
        From now on neither a stop request nor a lost lease ends the job.

        False when one of them came first: then nothing may be changed.
        """
        with self._lock:
            if self._ending or self.cancel.cancelled:
                return False
            self._changing = True
            return True

    def heard(self, stop: str | None) -> None:
        """Take note of what the control plane answered to any call."""
        if stop is not None and self._end():
            self.cancel.cancel(Ended.STOP_REQUESTED)
            self._halt.cancel(Ended.STOP_REQUESTED)

    def insist(
        self,
        call: Callable[[], T],
        *,
        stoppable: bool = False,
        seconds: float = math.inf,
    ) -> T:
        """
        Make a *call* that may be repeated, until the control plane answers.

        One that is *stoppable* is not repeated any more once the job is to be stopped,
        or the control plane was silent for too long; the others are reports.

        Raises:
            LeaseLost: nothing may be reported any more.
            ControlPlaneUnavailable: it did not, and there is no more time: the
                lease is lost, *seconds* are over, or the operator wants the process
                to end.
            CredentialsRefused: it did not accept us for `REFUSED_SECONDS`, or until
                there was no more time.
        """
        halt = self._halt if stoppable else self._hurry
        begun, refused_since = time.monotonic(), math.inf
        for pause in Pauses():
            if self.lost.cancelled:
                raise LeaseLost("the job is no longer this worker's")
            try:
                return call()
            except (ControlPlaneUnavailable, CredentialsRefused) as exc:
                now = time.monotonic()
                refused = isinstance(exc, CredentialsRefused)
                refused_since = min(refused_since, now) if refused else math.inf
                over = now - begun > seconds or now - refused_since > REFUSED_SECONDS
                if over or halt.wait(pause):
                    raise
        raise AssertionError("pauses are endless")

    def lose(self) -> None:
        """The job is somebody else's: the control plane said so."""
        ending = self._end()
        self.lost.cancel(Ended.LEASE_LOST)
        for token in (self._hurry, self._halt):
            token.cancel(Ended.LEASE_LOST)
        if ending:
            self.cancel.cancel(Ended.LEASE_LOST)

    def lose_by_silence(self) -> bool:
        """The run may have been given up; False when it changes things already."""
        if not self._end():
            return False
        self.cancel.cancel(Ended.LEASE_LOST)
        self._halt.cancel(Ended.LEASE_LOST)
        return True

    @property
    def given_up(self) -> bool:
        """Whether the run goes on without us: as we were told, or must assume."""
        return self.lost.cancelled or self.cancel.reason == Ended.LEASE_LOST

    def _end(self) -> bool:
        """Whether the job may be ended: if so, it begins no changes from now on."""
        with self._lock:
            self._ending = not self._changing
            return self._ending

    @contextmanager
    def until_aborted(self) -> Iterator[None]:
        """The operator's wish to end now ends the job, changing or not."""

        def aborted() -> None:
            vanishing = self._abort.reason == Ended.HOST_VANISHES
            reason = Ended.HOST_VANISHES if vanishing else Ended.ABORTED
            for token in (self._hurry, self._halt, self.cancel):
                token.cancel(reason)

        with self._abort.calling(aborted):
            yield

    @property
    def aborted(self) -> CancelToken:
        return self._abort


class _Silence:
    """How long the control plane has been silent about a lease; two threads ask."""

    def __init__(
        self, lease: Lease, lease_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._since = clock()

    def broken(self, asked: float) -> None:
        """What was *asked* then was answered."""
        self._since = asked

    def left_seconds(self) -> float:
        """How much longer it may last before the lease is lost."""
        return self._since + self._lease_seconds - self._clock()

    def outlasts_the_lease(self) -> bool:
        """Whether it does: then a job that changes nothing yet is ended."""
        silent = self._clock() - self._since
        if silent <= self._lease_seconds or not self._lease.lose_by_silence():
            return False
        log.warning("lease.lost", silent_seconds=round(silent, 1))
        return True

    def judge(self, done: CancelToken) -> None:
        """Lose the lease in time, until *done*."""
        while not pausing(done, max(self.left_seconds(), _LOOK_SECONDS)):
            if self._lease.given_up or self.outlasts_the_lease():
                return


@contextmanager
def held(
    claim: Claim,
    source: JobSource,
    abort: CancelToken,
    *,
    resumed: bool = False,
    changing: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Lease]:
    """
    Renew *claim* beside the block, on this machine's monotonic clock.

    One that was *resumed* is renewed at once, because nobody knows how much is left
    of it; a job that may be *changing* things is not ended by what comes of that.
    A thread of its own judges the silence: however long a renewal takes, the lease
    is lost in time.
    """
    lease, done = Lease(abort), CancelToken()
    if changing:
        lease.begin_changes()
    silence = _Silence(lease, claim.lease_seconds, clock)

    def renew() -> None:
        pause = 0.0 if resumed else claim.renew_seconds
        while not done.wait(pause):
            beat()
            pause = claim.renew_seconds
            asked = clock()
            try:
                lease.heard(source.renew(claim))
            except LeaseLost:
                log.warning("lease.lost")
                lease.lose()
                return
            except ControlPlaneUnavailable as exc:
                log.warning("lease.not_renewed", details=exc.details)
            except Exception:  # a refusal or a bug is silence, too; renewing goes on
                log.exception("lease.renewal_failed")
            else:
                silence.broken(asked)
            if lease.given_up or silence.outlasts_the_lease():
                return

    job = claim.job.id

    with (
        lease.until_aborted(),
        sight.vital(Vital.LEASE_SLACK, silence.left_seconds),
        helper(
            f"lease-{job}",
            watching(f"lease-{job}", renew, claim.renew_seconds + STEP_SECONDS),
            lambda: done.cancel("job over"),
        ),
        helper(
            f"silence-{job}",
            watching(f"silence-{job}", partial(silence.judge, done)),
            lambda: done.cancel("job over"),
        ),
    ):
        yield lease
