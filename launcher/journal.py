"""
What a later life of this launcher will know about its jobs.

Every step is on the disk before what it announces is done, so after a crash the
journal may say more than happened and never less: a phase that may have begun is
in it.  It only grows while a job lasts, and forgets the job at its end.

What is secret in it is sealed to the pool's key, like everything that the pool's
launchers leave somewhere.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from launcher.errors import JournalUnusable, SealBroken, StateDirectoryUnusable
from launcher.model import Claim, Found, Outcome, PlanDecision, ResolvedImage
from launcher.sealing import box
from launcher.sealing.keys import PoolKey
from launcher.wire.jobs import RunState, Tokens, Variable
from launcher.wire.messages import Offer, Settlement


T = TypeVar("T")

log = structlog.get_logger()

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    claim TEXT PRIMARY KEY, job TEXT NOT NULL, run TEXT NOT NULL,
    slot INTEGER NOT NULL, boot TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS steps (
    number INTEGER PRIMARY KEY, claim TEXT NOT NULL REFERENCES jobs (claim),
    step TEXT NOT NULL, fact BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS steps_of_a_job ON steps (claim);
"""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What came with a claim, and what else the job's log must not show."""

    claim: Claim
    passed_through: tuple[Variable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The container that phases are sent to, and when (seconds since 1970)."""

    image: ResolvedImage
    receipt: str
    at: float
    log_start: int = 0
    """Where in the job's log that of the container begins."""
    masks: tuple[bytes, ...] = ()
    """What the image's login must not show as."""
    adopted: tuple[bytes, ...] = ()
    """What earlier jobs of the run have added to be masked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What is known about a job from before this moment."""

    slot: int
    offer: Offer
    identity: str
    boot: str
    resumed: bool = False
    """Whether all this was found at the start, rather than done in this life."""
    from_labels: bool = False
    """The journal is lost: what was sent is unknown, and only marks tell."""
    held: Held | None = None
    made: Made | None = None
    attempts: int = 0
    entered: frozenset[RunState] = frozenset()
    sent: tuple[str, ...] = ()
    """Names of phases that may have begun."""
    decision: PlanDecision | None = None
    tokens: tuple[Tokens, ...] = ()
    """What was issued after the claim, the newest last; a log may show all of it."""
    cancelled: str = ""
    """Why the job was being ended."""
    outcome: Outcome | None = None
    settlement: Settlement | None = None

    @property
    def rebooted(self) -> bool:
        """Whether the machine was started since the job was taken."""
        return self.boot != boot_id()


# Made here, because two threads that decode a type for the first time at once may
# end the process: msgspec builds what it knows of a type then, without a lock.
_HELD = msgspec.json.Decoder(Held)
_MADE = msgspec.json.Decoder(Made)
_DECISION = msgspec.json.Decoder(PlanDecision)
_TOKENS = msgspec.json.Decoder(Tokens)
_OUTCOME = msgspec.json.Decoder(Outcome)
_SETTLEMENT = msgspec.json.Decoder(Settlement)


class Journal:
    """All jobs of one launcher.  Safe to use from several threads."""

    def __init__(self, connection: sqlite3.Connection, key: PoolKey) -> None:
        self._connection = connection
        self._key = key
        self._lock = threading.Lock()

    @classmethod
    def opened(cls, path: Path, key: PoolKey) -> Journal:
        """
        Open the journal at *path*, or begin one.

        One that is damaged is moved aside, for the operator to look at: what the
        containers' labels say is enough to go on.

        Raises:
            StateDirectoryUnusable: there can be no journal.
        """
        try:
            try:
                return cls(_connected(path), key)
            except sqlite3.DatabaseError as exc:
                if isinstance(exc, sqlite3.OperationalError):
                    raise
                log.error("journal.damaged", path=str(path), error=str(exc))  # noqa: TRY400
                for suffix in ("-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                path.replace(path.with_name(path.name + ".damaged"))
                return cls(_connected(path), key)
        except (OSError, sqlite3.Error) as exc:
            raise StateDirectoryUnusable(
                f"the journal {path} cannot be used: {exc}"
            ) from exc

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def claiming(self, slot: int, offer: Offer, identity: str) -> Entry:
        """
        Begin the entry of a job that is about to be claimed.

        Raises:
            JournalUnusable: it cannot be written, so nothing may be claimed.
        """
        past = Past(slot=slot, offer=offer, identity=identity, boot=boot_id())
        return self._begun(past)

    def from_labels(self, found: Found) -> Entry:
        """Begin the entry of a job that only its container is known of."""
        origin = found.origin
        made = Made(
            image=found.image,
            receipt=found.receipt,
            at=time.time(),
            log_start=origin.log_start,
        )
        past = Past(
            slot=found.origin.slot,
            offer=Offer(job=found.job, run=found.run),
            identity=found.origin.claim,
            boot=boot_id(),
            resumed=True,
        )
        entry = self._begun(past)
        entry.found(made)
        return entry

    def unfinished(self) -> list[Entry]:
        """Entries of earlier lives, the oldest first."""
        with self._lock:
            jobs = self._connection.execute(
                "SELECT job, run, slot, claim, boot FROM jobs ORDER BY rowid"
            ).fetchall()
        return [
            Entry(
                self,
                Past(
                    slot=slot,
                    offer=Offer(job=job, run=run),
                    identity=claim,
                    boot=boot,
                    resumed=True,
                ),
            )
            for job, run, slot, claim, boot in jobs
        ]

    def live(self) -> frozenset[str]:
        """Jobs that are not over."""
        with self._lock:
            rows = self._connection.execute("SELECT job FROM jobs").fetchall()
        return frozenset(job for (job,) in rows)

    def sealed(self, fact: object, purpose: str) -> bytes:
        return box.seal(msgspec.json.encode(fact), purpose=purpose, to=self._key.public)

    def unsealed(
        self, fact: bytes, purpose: str, decoder: msgspec.json.Decoder[T]
    ) -> T:
        return decoder.decode(box.opened(fact, purpose=purpose, key=self._key))

    def steps(self, claim: str) -> list[tuple[str, bytes]]:
        with self._lock:
            return self._connection.execute(
                "SELECT step, fact FROM steps WHERE claim = ? ORDER BY number", (claim,)
            ).fetchall()

    def write(self, claim: str, step: str, fact: bytes) -> None:
        """Put one step on the disk."""
        with self._lock, _written(), self._connection:
            self._connection.execute(
                "INSERT INTO steps (claim, step, fact) VALUES (?, ?, ?)",
                (claim, step, fact),
            )

    def forget(self, claim: str) -> None:
        with self._lock, _written(), self._connection:
            self._connection.execute("DELETE FROM steps WHERE claim = ?", (claim,))
            self._connection.execute("DELETE FROM jobs WHERE claim = ?", (claim,))

    def _begun(self, past: Past) -> Entry:
        with self._lock, _written(), self._connection:
            self._connection.execute(
                "INSERT INTO jobs (job, run, slot, claim, boot) VALUES (?, ?, ?, ?, ?)",
                (past.offer.job, past.offer.run, past.slot, past.identity, past.boot),
            )
        return Entry(self, past)


class Entry:
    """
    One job's part of the journal; `past` is what it says so far.

    Each method writes one step, and raises JournalUnusable when it is not on the
    disk: then what it announces must not be done.
    """

    def __init__(self, journal: Journal, past: Past) -> None:
        self._journal = journal
        self._job = past.offer.job
        self._claim = past.identity
        self.past = past
        self._learning = threading.Lock()  # threads beside the job write, too

    def remembered(self) -> None:
        """
        Read what earlier lives have written.

        What cannot be read is left out, as if it had not been written.
        """
        for step, fact in self._journal.steps(self._claim):
            try:
                self._remember(step, fact)
            except (SealBroken, msgspec.MsgspecError, ValueError) as exc:
                log.error("journal.unreadable", step=step, error=str(exc))  # noqa: TRY400

    def claimed(self, held: Held) -> None:
        fact = self._journal.sealed(held, self._purpose("claimed"))
        self._write("claimed", fact, held=held)

    def created(self, made: Made) -> None:
        """The container is about to be made."""
        attempts = self.past.attempts + 1
        self._write(
            "created",
            self._journal.sealed(made, self._purpose("created")),
            made=made,
            attempts=attempts,
            from_labels=False,
        )

    def found(self, made: Made) -> None:
        """Only the container is known, and not what was sent to it."""
        fact = self._journal.sealed(made, self._purpose("found"))
        self._write("found", fact, made=made, from_labels=True)

    def entered(self, state: RunState) -> None:
        """The control plane knows that the run is in *state*."""
        states = self.past.entered | {state}
        self._write("entered", state.value.encode(), entered=states)

    def sending(self, phase: str) -> None:
        """*phase* is about to be sent: from now on it may have begun."""
        self._write("sending", phase.encode(), sent=(*self.past.sent, phase))

    def ended(self, phase: str, code: int) -> None:
        """For whoever reads the journal; what counts is in the container's log."""
        self._write("ended", f"{phase} {code}".encode())

    def planned(self, decision: PlanDecision) -> None:
        fact = self._journal.sealed(decision, self._purpose("planned"))
        self._write("planned", fact, decision=decision)

    def issued(self, tokens: Tokens) -> None:
        """The job is about to be given fresh tokens, which its log must not show."""
        fact = self._journal.sealed(tokens, self._purpose("issued"))
        self._write("issued", fact, tokens=(*self.past.tokens, tokens))

    def cancelled(self, reason: str) -> None:
        """The job is about to be ended, for *reason*."""
        self._write("cancelled", reason.encode(), cancelled=reason)

    def decided(self, outcome: Outcome) -> None:
        """What became of the job; its log does not say so yet."""
        fact = {
            "verdict": outcome.verdict,
            "reason": outcome.reason,
            "code": outcome.code,
        }
        self._write("decided", msgspec.json.encode(fact), outcome=outcome)

    def exited(self, settlement: Settlement) -> None:
        """All of the log is stored, and this is what will be announced."""
        self._write("exited", msgspec.json.encode(settlement), settlement=settlement)

    def over(self) -> None:
        """Nothing of the job needs to be remembered any more."""
        self._journal.forget(self._claim)

    def _purpose(self, step: str) -> str:
        return f"journal {step} {self._job}"

    def _write(self, step: str, fact: bytes, **known: object) -> None:
        self._journal.write(self._claim, step, fact)
        self._knows(known)

    def _knows(self, known: Mapping[str, Any]) -> None:
        with self._learning:
            self.past = replace(self.past, **known)

    def _remember(self, step: str, fact: bytes) -> None:
        past = self.past
        known: Mapping[str, Any] = {}
        match step:
            case "claimed":
                purpose = self._purpose(step)
                known = {"held": self._journal.unsealed(fact, purpose, _HELD)}
            case "created" | "found":
                made = self._journal.unsealed(fact, self._purpose(step), _MADE)
                known = {
                    "made": made,
                    "attempts": past.attempts + 1,
                    "from_labels": step == "found",
                }
            case "entered":
                known = {"entered": past.entered | {RunState(fact.decode())}}
            case "sending":
                known = {"sent": (*past.sent, fact.decode())}
            case "planned":
                purpose = self._purpose(step)
                decision = self._journal.unsealed(fact, purpose, _DECISION)
                known = {"decision": decision}
            case "issued":
                tokens = self._journal.unsealed(fact, self._purpose(step), _TOKENS)
                known = {"tokens": (*past.tokens, tokens)}
            case "cancelled":
                known = {"cancelled": past.cancelled or fact.decode()}
            case "decided":
                known = {"outcome": _OUTCOME.decode(fact)}
            case "exited":
                known = {"settlement": _SETTLEMENT.decode(fact)}
            case _:
                pass
        self._knows(known)


def boot_id() -> str:
    """Differs after each start of the machine; empty where nobody knows."""
    with contextlib.suppress(OSError):
        return _BOOT.read_text("ascii").strip()
    return ""


def _connected(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    path.chmod(0o600)
    connection = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        # The files beside it get the mode of the database.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(_SCHEMA)
        _require_whole(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _require_whole(connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


@contextlib.contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        full = "full" in str(exc) or "disk I/O" in str(exc)
        raise JournalUnusable(
            "the worker's disk is full"
            if full
            else "the worker cannot write its journal",
            details=f"{type(exc).__name__}: {exc}",
        ) from exc
