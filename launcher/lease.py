"""
Keeping a claim alive while its job runs, and knowing when it is not ours.

Until the job changes something, silence of the control plane for as long as the
lease lasts means that somebody else may already have been told the run failed:
so we stop.  Once it changes something, stopping would do more harm than a late
report, so from then on only the operator and the timeouts end it.
"""

from __future__ import annotations

import enum
import threading
import time

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

from launcher.cancel import CancelToken
from launcher.errors import ControlPlaneUnavailable, LeaseLost
from launcher.model import Claim
from launcher.ports import JobSource
from launcher.retry import Pauses
from launcher.threads import helper


T = TypeVar("T")

log = structlog.get_logger()


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

        self._hurry = CancelToken()
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

    def insist(self, call: Callable[[], T]) -> T:
        """
        Make a *call* that may be repeated, until the control plane answers.

        Raises:
            LeaseLost: nothing may be reported any more.
            ControlPlaneUnavailable: it did not, and there is no more time: the
                lease is lost, or the operator wants the process to end.
        """
        for pause in Pauses():
            if self.lost.cancelled:
                raise LeaseLost("the job is no longer this worker's")
            try:
                return call()
            except ControlPlaneUnavailable:
                if self._hurry.wait(pause):
                    raise
        raise AssertionError("pauses are endless")

    def lose(self) -> None:
        """The job is somebody else's: the control plane said so."""
        ending = self._end()
        self.lost.cancel(Ended.LEASE_LOST)
        self._hurry.cancel(Ended.LEASE_LOST)
        if ending:
            self.cancel.cancel(Ended.LEASE_LOST)

    def lose_by_silence(self) -> bool:
        """The job may be somebody else's; False when it changes things already."""
        if not self._end():
            return False
        self.lose()
        return True

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
            self._hurry.cancel(reason)
            self.cancel.cancel(reason)

        with self._abort.calling(aborted):
            yield

    @property
    def aborted(self) -> CancelToken:
        return self._abort


@contextmanager
def held(
    claim: Claim,
    source: JobSource,
    abort: CancelToken,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Lease]:
    """Renew *claim* beside the block, on this machine's monotonic clock."""
    lease, done = Lease(abort), CancelToken()

    def renew() -> None:
        renewed = clock()
        while not done.wait(claim.renew_seconds):
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
                renewed = asked
            silent = clock() - renewed
            if silent > claim.lease_seconds and lease.lose_by_silence():
                log.warning("lease.lost", silent_seconds=round(silent, 1))
                return

    with (
        lease.until_aborted(),
        helper(f"lease-{claim.job.id}", renew, lambda: done.cancel("job over")),
    ):
        yield lease
