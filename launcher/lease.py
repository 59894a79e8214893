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
from launcher.errors import ControlPlaneUnavailable, LauncherError, LeaseLost
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
    TOO_LONG = "too long"
    TOO_SILENT = "too silent"
    TOO_MUCH_OUTPUT = "too much output"


class Lease:
    """What the stages of a job see of its lease."""

    def __init__(self, abort: CancelToken) -> None:
        self.cancel = CancelToken()
        """Ends what is running; its reason is a member of `Ended`."""

        self.lost = CancelToken()
        """Fires when nothing may be reported any more."""

        self._hurry = CancelToken()
        self._abort = abort
        self._changing = False
        self._lock = threading.Lock()

    def begin_changes(self) -> bool:
        """
        From now on neither a stop request nor a lost lease ends the job.

        False when one of them came first: then nothing may be changed.
        """
        with self._lock:
            if self.cancel.cancelled or self.lost.cancelled:
                return False
            self._changing = True
            return True

    def heard(self, stop: str | None) -> None:
        """Take note of what the control plane answered to any call."""
        if stop is not None:
            self._cancel_unless_changing(Ended.STOP_REQUESTED)

    def insist(self, call: Callable[[], T]) -> T:
        """
        Make a *call* that may be repeated, until the control plane answers.

        Raises:
            ControlPlaneUnavailable: it did not, and there is no more time: the
                lease is lost, or the operator wants the process to end.
        """
        for pause in Pauses():
            try:
                return call()
            except ControlPlaneUnavailable:
                if self._hurry.wait(pause):
                    raise
        raise AssertionError("pauses are endless")

    def lose(self) -> None:
        """The job is somebody else's, or may be."""
        self.lost.cancel(Ended.LEASE_LOST)
        self._hurry.cancel(Ended.LEASE_LOST)
        self._cancel_unless_changing(Ended.LEASE_LOST)

    def _cancel_unless_changing(self, reason: Ended) -> None:
        with self._lock:
            if self._changing:
                return
        self.cancel.cancel(reason)

    @contextmanager
    def until_aborted(self) -> Iterator[None]:
        """The operator's wish to end now ends the job, changing or not."""

        def aborted() -> None:
            self._hurry.cancel(Ended.ABORTED)
            self.cancel.cancel(Ended.ABORTED)

        with self._abort.calling(aborted):
            yield

    @property
    def aborted(self) -> CancelToken:
        return self._abort

    @property
    def changing(self) -> bool:
        return self._changing


@contextmanager
def held(claim: Claim, source: JobSource, abort: CancelToken) -> Iterator[Lease]:
    """Renew *claim* beside the block, on this machine's monotonic clock."""
    lease, done = Lease(abort), CancelToken()

    def renew() -> None:
        renewed = time.monotonic()
        while not done.wait(claim.renew_seconds):
            asked = time.monotonic()
            try:
                lease.heard(source.renew(claim))
            except LeaseLost:
                log.warning("lease.lost")
                lease.lose()
                return
            except ControlPlaneUnavailable:
                silent = time.monotonic() - renewed
                log.warning("lease.not_renewed", silent_seconds=round(silent, 1))
                if silent > claim.lease_seconds and not lease.changing:
                    lease.lose()
                    return
            except LauncherError:
                log.exception("lease.renewal_failed")
            else:
                renewed = asked

    with (
        lease.until_aborted(),
        helper(f"lease-{claim.job.id}", renew, lambda: done.cancel("job over")),
    ):
        yield lease
