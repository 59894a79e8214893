"""
What happens to jobs, said once, for whoever wants to see it.

The line, its log and the engines say which stage of a job they are in; metrics and
traces listen.  Who speaks needs to know neither: a stage finds the job that it
belongs to by itself, in threads that were started for the job, too, and without one
it is said to nobody.

Observers learn ids, names of stages and codes.  Nothing that a job has printed, and
no value of its variables, gets here.
"""

from __future__ import annotations

import enum
import threading
import time

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import structlog

from launcher.errors import LauncherError
from launcher.wire.jobs import Job, RunType


log = structlog.get_logger()


class Stage(enum.StrEnum):
    """What a job goes through, in this order."""

    CLAIM = "claim"
    RESOLVE = "resolve"
    POLICY = "policy"
    PULL = "pull"
    FETCH = "fetch"
    CREATE = "create"
    START = "start"
    PHASE = "phase"
    FLUSH = "flush"
    SETTLE = "settle"


class Vital(enum.StrEnum):
    """What can be asked about a job while it is at work."""

    LEASE_SLACK = "lease slack"
    """Seconds for which the control plane may stay silent before the lease is lost."""
    LOG_BACKLOG = "log backlog"
    """Bytes that were printed and are not stored yet."""
    LOGIN_EXPIRES = "login expires"
    """When the login for the job's image ends, in seconds since 1970."""
    LOG_AGE = "log age"
    """Seconds for which the oldest of them have been waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Which job it is about."""

    run: str
    job: str
    stack: str
    kind: RunType
    created_at: int
    """When the run was triggered, in nanoseconds since 1970; as every time here."""
    waited_seconds: float | None
    """How long the job was there for the taking; None where nobody knows."""

    @classmethod
    def of(cls, job: Job, waited_seconds: float | None = None) -> Facts:
        return cls(
            run=job.run.id,
            job=job.id,
            stack=job.stack.slug,
            kind=job.run.type,
            created_at=job.run.created_at,
            waited_seconds=waited_seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A stage that is over."""

    stage: Stage
    phase: str = ""
    """Which one, where the stage is `Stage.PHASE`."""
    begun_at: int
    seconds: float
    failure: str = ""
    """Code of what ended it early."""

    @property
    def ended_at(self) -> int:
        return self.begun_at + int(self.seconds * 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What became of a job on this worker."""

    verdict: str
    """As the control plane was told, or `ABANDONED`."""
    code: str
    """Of `launcher.failures`; empty without a failure."""
    resumed: bool
    """Whether an earlier life of the launcher had begun it."""
    begun_at: int
    ended_at: int


ABANDONED = "ABANDONED"
"""The verdict on a job that became somebody else's."""


class Observer(Protocol):
    """Who wants to know.  Called in the job's threads: must not block."""

    def claimed(self, job: Facts, at: int, /) -> None:
        """*job* is ours since then, for the first time."""

    def seen(self, job: Facts, stage: Seen, /) -> None:
        """A stage of *job* is over."""

    def ended(self, job: Facts, ended: Ended, /) -> None:
        """Nothing of *job* is left to be done here."""


class Sight:
    """All observers of a launcher, and the jobs at work that can be asked."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)
        self._lock = threading.Lock()
        self._vitals: dict[object, tuple[Vital, Callable[[], float]]] = {}

    @contextmanager
    def job(self, facts: Facts) -> Iterator[None]:
        """Stages of the block, and of threads that it starts, are those of the job."""
        token = _current.set(_Watched(self, facts))
        try:
            yield
        finally:
            _current.reset(token)

    def vitals(self, vital: Vital) -> list[float]:
        """What every job at work answers now."""
        with self._lock:
            asked = [ask for kind, ask in self._vitals.values() if kind is vital]
        return [ask() for ask in asked]

    def add(self, vital: Vital, ask: Callable[[], float]) -> object:
        key = object()
        with self._lock:
            self._vitals[key] = (vital, ask)
        return key

    def remove(self, key: object) -> None:
        with self._lock:
            self._vitals.pop(key, None)

    def tell(self, say: Callable[[Observer], None]) -> None:
        """Let every observer know; what goes wrong with one costs no job."""
        for observer in self._observers:
            try:
                say(observer)
            except Exception:  # a bug of who looks on must not end what he looks at
                log.exception("sight.failed", observer=type(observer).__name__)


@dataclass(frozen=True, slots=True)
class _Watched:
    sight: Sight
    facts: Facts


_current: ContextVar[_Watched | None] = ContextVar("watched", default=None)


def now() -> int:
    """Nanoseconds since 1970."""
    return time.time_ns()


@contextmanager
def stage(stage: Stage, *, phase: str = "", since: int = 0) -> Iterator[None]:
    """The block is a stage of the job at work; it began at *since*, if given."""
    watched = _current.get()
    if watched is None:
        yield
        return
    begun_at, begun, failure = since or now(), time.monotonic(), ""
    before = max(now() - since, 0) / 1e9 if since else 0.0
    try:
        yield
    except LauncherError as exc:
        failure = exc.code
        raise
    except BaseException:
        failure = LauncherError.code
        raise
    finally:
        seen = Seen(
            stage=stage,
            phase=phase,
            begun_at=begun_at,
            seconds=before + time.monotonic() - begun,
            failure=failure,
        )
        watched.sight.tell(lambda observer: observer.seen(watched.facts, seen))


def claimed(since: int) -> None:
    """The job at work was asked for at *since*, and is ours."""
    if (watched := _current.get()) is None:
        return
    at = now()
    seen = Seen(
        stage=Stage.CLAIM, begun_at=since, seconds=max(at - since, 0) / 1e9, failure=""
    )
    watched.sight.tell(lambda observer: observer.claimed(watched.facts, at))
    watched.sight.tell(lambda observer: observer.seen(watched.facts, seen))


def ended(*, verdict: str, code: str, resumed: bool, begun_at: int) -> None:
    """The job at work is over."""
    if (watched := _current.get()) is None:
        return
    over = Ended(
        verdict=verdict,
        code=code,
        resumed=resumed,
        begun_at=begun_at,
        ended_at=now(),
    )
    watched.sight.tell(lambda observer: observer.ended(watched.facts, over))


@contextmanager
def vital(vital: Vital, ask: Callable[[], float]) -> Iterator[None]:
    """During the block, *ask* tells about the job at work; from any thread."""
    watched = _current.get()
    if watched is None:
        yield
        return
    key = watched.sight.add(vital, ask)
    try:
        yield
    finally:
        watched.sight.remove(key)
