"""
The worker slots: each a thread, each a straight line.

A slot with a job does not poll, so there is no queue in memory and nothing to
hand back at the end.
"""

from __future__ import annotations

import math
import threading
import time

from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

import structlog

from launcher.activity import Board, Intake
from launcher.cancel import CancelToken
from launcher.errors import ControlPlaneUnavailable, CredentialsRefused, Cycled
from launcher.heartbeat import STEP_SECONDS, beat, waiting, watched, within
from launcher.journal import Entry
from launcher.pipeline import resume_job, run_job
from launcher.ports import Ports
from launcher.retry import Pauses
from launcher.settings import Settings
from launcher.threads import spawn
from launcher.wire.messages import Offer


log = structlog.get_logger()

_POLL_SECONDS = 50.0
_RETURN_SECONDS = 1.0
"""The same after an outage: whoever looks learns soon that it is over."""
_COMPLAIN_EVERY_SECONDS = 60.0
_OUTAGE_SECONDS = 10.0
"""A control plane that is away for less is no reason to send runs elsewhere."""
_PAUSE_AFTER_CRASH_SECONDS = 5.0
_PAUSE_WHILE_UNFIT_SECONDS = 5.0
_SHORTEST_POLL_SECONDS = 0.5
"""An answer without an offer that comes sooner is waited for that long."""
_REFUSED_PAUSE_SECONDS = 2.0
_MAIN_SECONDS = 60.0
_SLOT_SECONDS = 120.0
"""Longest time between two steps of a slot without a job."""
_ASK_SECONDS = 75.0
"""Longest time that one slot may take to register, which the others wait for."""
CYCLED = "cycled"
DISMISSED = "dismissed"
"""Why a launcher drains that ends for a reason of its own: see `exit_code`."""
EXIT_CODES = {CYCLED: 20, DISMISSED: 21}


class Worker:
    """All slots of a launcher, and how they end."""

    def __init__(
        self,
        ports: Ports,
        settings: Settings,
        *,
        pause_after_crash: float = _PAUSE_AFTER_CRASH_SECONDS,
        unfit: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ports = ports
        self._settings = settings
        self._pause_after_crash = pause_after_crash
        self._unfit = unfit
        self._changed = threading.Condition()
        self._busy = 0
        self._longest = _longest_step(settings)
        self._adopted: dict[int, list[Entry]] = {}
        self._refused: CredentialsRefused | None = None
        self.outage = Outage()

        self.drain = CancelToken()
        """Fires first: take no new jobs, and end when the last one has ended."""

        self.intake = Intake()
        """Held: take no new jobs, for now."""

        self.board = Board(settings.run.workers)

        self.up = CancelToken()
        """Fires when a slot was let in and polls, or sees a job of an earlier life."""

        self.abort = CancelToken()
        """Fires last: end the jobs that are running, applies included."""

    def run(self) -> None:
        """
        Block until drained; call it in the main thread.

        Raises:
            CredentialsRefused: the control plane will never answer our token.
        """
        with within(_MAIN_SECONDS):
            self._run_slots()
        if self._refused:
            raise self._refused
        log.info("worker.drained")

    @property
    def exit_code(self) -> int:
        """How the process ends, once drained; for whoever would start it again."""
        return EXIT_CODES.get(self.drain.reason, 0)

    def saying(self) -> str:
        """What the launcher is doing, in a few words."""
        doing = self.board.now()
        busy = sum(each is not None for each in doing.values())
        if self.drain.cancelled:
            return f"draining ({self.drain.reason}), {busy} at work"
        if not self.up.cancelled:
            return "waiting for the control plane"
        if holds := self.intake.holds:
            return f"taking no jobs ({next(iter(holds.values()))}), {busy} at work"
        return f"{busy} of {len(doing)} workers busy"

    def _run_slots(self) -> None:
        slots = range(self._settings.run.workers)
        adopted, self._adopted = self._adopted, {}
        for slot in slots:
            spawn(f"slot-{slot}", partial(self._slot, slot, adopted.pop(slot, [])))
        # Slots that there were, and are not any more.
        for slot, entries in adopted.items():
            spawn(f"slot-{slot}", partial(self._resume, entries))
        log.info("worker.started", slots=len(slots))
        # Slots without a job are not waited for: they sit in a long poll, and
        # an offer that nobody claims goes to another worker.
        with self._changed, self.drain.calling(self._wake):
            while not (self.drain.cancelled and self._busy == 0):
                # Bounded, so that a signal's handler gets its turn.
                self._changed.wait(1.0)
                beat()

    def adopt(self) -> None:
        """
        Find the jobs of earlier lives; ``run`` sees them through in their slots.

        Those that the journal does not know are known by their containers.

        Raises:
            EngineError: the engine cannot be asked for containers.
        """
        journal = self._ports.journal
        entries = journal.unfinished()
        known = journal.live()
        for found in self._ports.engine.found():
            if found.job not in known:
                log.warning("job.not_in_the_journal", job=found.job, run=found.run)
                entries.append(journal.from_labels(found))
        for entry in entries:
            self._adopted.setdefault(entry.past.slot, []).append(entry)
        self._busy += len(entries)
        if entries:
            self.up.cancel("adopted")
            log.info("worker.adopted", jobs=len(entries))

    def _resume(self, entries: list[Entry]) -> None:
        """See jobs through that an earlier life has begun."""
        for entry in entries:
            past = entry.past
            try:
                with (
                    watched(f"job-{past.offer.job}", self._longest),
                    self.board.working(
                        past.slot, run=past.offer.run, job=past.offer.job
                    ),
                ):
                    resume_job(entry, self._ports, self._settings, self.abort)
            except Exception:  # as below: one job's trouble is its own
                log.exception("job.not_resumed", job=entry.past.offer.job)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _slot(self, slot: int, resumed: list[Entry]) -> None:
        self._resume(resumed)
        with watched(f"slot-{slot}", _SLOT_SECONDS):
            self._poll(slot)

    def _poll(self, slot: int) -> None:
        pauses, refused = Pauses(), False
        while not self.drain.cancelled:
            with waiting():
                self.intake.wait(self.drain)
            if self.drain.cancelled:
                return
            try:
                if self._unfit():
                    self.drain.wait(_PAUSE_WHILE_UNFIT_SECONDS)
                    continue
                asked = time.monotonic()
                with within(_SLOT_SECONDS + _ASK_SECONDS * self._settings.run.workers):
                    offer = self._ports.source.receive(slot, wait=self._patience())
                self.up.cancel("polling")
                self.outage.over()
                pauses, refused = Pauses(), False
                if offer is not None:
                    self._run(slot, offer)
                else:
                    left = asked + _SHORTEST_POLL_SECONDS - time.monotonic()
                    self.drain.wait(max(left, 0.0))
            except ControlPlaneUnavailable as exc:
                self.outage.goes_on(exc)
                self.drain.wait(next(pauses))
            except Cycled as exc:
                log.warning("worker.cycled", reason=str(exc))
                self.drain.cancel(CYCLED)
            except CredentialsRefused as exc:
                log.error(  # noqa: TRY400 (expected; the sentence says it all)
                    "worker.refused", error=str(exc), details=exc.details
                )
                self.outage.refused(exc)
                if refused and self._idle():
                    self._refused = exc
                    self.drain.cancel("credentials refused")
                # Once may have been a stranger between us and the control plane,
                # and who has jobs at work has more to lose than time.
                refused = True
                self.drain.wait(_REFUSED_PAUSE_SECONDS)
            except Exception:  # the one place that survives its own bugs
                log.exception("slot.crashed", slot=slot)
                self.drain.wait(self._pause_after_crash)

    def _patience(self) -> float:
        """Seconds for which the next poll may be held."""
        if not self.up.cancelled:
            return 0.0  # to hear that we are let in, and no more
        return _RETURN_SECONDS if self.outage.goes_on_now else _POLL_SECONDS

    def _run(self, slot: int, offer: Offer) -> None:
        with self._changed:
            if self.drain.cancelled or self.intake.holds:
                return
            self._busy += 1
        try:
            with (
                within(self._longest),
                self.board.working(slot, run=offer.run, job=offer.job),
            ):
                run_job(slot, offer, self._ports, self._settings, self.abort)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _idle(self) -> bool:
        with self._changed:
            return self._busy == 0

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _longest_step(settings: Settings) -> float:
    """
    Seconds in which a job's own thread makes progress, or is hanging.

    A run that is long and silent, a pull and a fetch beat while they last.  What does
    not is an evaluation of the policy, and who waits for the thread that ends a
    container.
    """
    evaluation = settings.policy.timeout or 0.0
    return max(evaluation, settings.container.stop_timeout) + STEP_SECONDS


class Outage:
    """Reports a control plane that is away once a minute, not at every attempt."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._refusal = ""
        self._announced = False
        self._quiet_until = -math.inf

    def goes_on(self, error: ControlPlaneUnavailable) -> None:
        now = self._clock()
        with self._lock:
            if self._since is None:
                self._since = now
            if now < self._quiet_until:
                return
            self._quiet_until = now + _COMPLAIN_EVERY_SECONDS
            self._announced = True
            lasting = now - self._since
        log.warning(
            "control_plane.unreachable",
            seconds=round(lasting),
            error=str(error),
            details=error.details,
        )

    @property
    def goes_on_now(self) -> bool:
        with self._lock:
            return self._since is not None

    def refused(self, error: CredentialsRefused) -> None:
        """Somebody answered, and does not want us."""
        with self._lock:
            self._refusal = str(error)

    def trouble(self) -> str | None:
        """Why no offers come, in public words; None while there is no reason."""
        with self._lock:
            since, refusal = self._since, self._refusal
        if refusal:
            return refusal
        lasting = 0.0 if since is None else self._clock() - since
        if lasting < _OUTAGE_SECONDS:
            return None
        return f"the control plane has not answered for {lasting:.0f} s"

    def over(self) -> None:
        """Somebody answered; said only when the outage was."""
        with self._lock:
            self._refusal = ""
            since, self._since = self._since, None
            announced, self._announced = self._announced, False
        if since is not None and announced:
            log.info("control_plane.back", seconds=round(self._clock() - since))


def escalation(worker: Worker, leave: Callable[[], None]) -> Callable[[str], None]:
    """
    Return what a signal's handler calls: drain, then abort, then *leave*.

    A handler runs between two instructions of the main thread, which may hold any
    lock, that of the log included.  So it does nothing but put the signal into a
    queue, and a thread obeys.
    """
    signals: SimpleQueue[str] = SimpleQueue()

    def received(step: str) -> str:
        reason = signals.get()
        log.warning("signal.received", signal=reason, step=step)
        return reason

    def obey() -> None:
        worker.drain.cancel(received("drain"))
        # Aborting talks to the engine, and must not delay the last step.
        spawn("abort", partial(worker.abort.cancel, received("abort")))
        received("leave")
        leave()

    spawn("signals", obey)
    return signals.put
