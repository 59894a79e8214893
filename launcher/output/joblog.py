"""
A job's log on its way home: masked, in order, every byte once.

    what the container printed ─▶ masked ─▶ spool on disk ─▶ uploaded by offset

Two threads: whoever writes masks and appends to the spool, and never waits for the
control plane unless the spool is full; the other one uploads until everything is
acknowledged.  Memory holds one piece on either side of the spool.

Who goes on where another process has died reads and masks from the beginning again:
the same raw bytes with the same secrets become the same masked ones.
"""

from __future__ import annotations

import contextlib
import threading
import time

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import structlog

from launcher import sight
from launcher.cancel import CancelToken
from launcher.errors import LeaseLost
from launcher.heartbeat import waiting, watched
from launcher.lease import Ended, Lease
from launcher.model import Claim
from launcher.output.patterns import WELL_KNOWN
from launcher.output.spool import Spool
from launcher.output.stream import MaskedStream
from launcher.ports import LogSink
from launcher.sight import Stage, Vital
from launcher.threads import spawn
from launcher.wire.messages import LogAck


log = structlog.get_logger()

_PIECE = 1 << 18
_UPLOAD = 3 << 19  # bytes handed over at once, of the 8 MB that a job's log may need
_UPLOADER_SECONDS = 300.0
"""Longest time between two steps of the uploader."""
_MOST_MARKS = 3600
_LINGER_SECONDS = 0.05  # small writes that come together travel together


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """How the log of a job is treated; the defaults suit a test."""

    short_values: bool = False
    """Mask values that are too short, too."""
    well_known: bool = False
    """Mask what looks like the key or token of a well-known vendor, too."""
    timestamps: bool = False
    """Begin every line with the time at which it came."""
    flush_seconds: float | None = None
    """How long the end of a job waits for what is not stored yet; None: for ever."""
    echo: Callable[[bytes], None] | None = None
    """Gets the masked bytes, too, before they are stored."""


class _GivenUp(Exception):
    """Ends an upload that is being repeated."""


class JobLog:
    """
    One job's log.  A context manager: leaving it means that all is stored.

    What cannot be stored any more, because the lease is lost, the operator wants
    the process gone or the time to flush is over, is given up; then `complete` is
    False and `missing` tells how many bytes it was.

    *secrets* are values; every form of them is masked.  The spool is removed at the
    end.  Methods may be called from several threads, but raw output from one.
    """

    def __init__(
        self,
        claim: Claim,
        sink: LogSink,
        lease: Lease,
        secrets: Iterable[bytes],
        spool: Spool,
        *,
        options: LogOptions | None = None,
    ) -> None:
        self._claim = claim
        self._sink = sink
        self._lease = lease
        self._spool = spool
        self._options = options or LogOptions()
        self._stream = MaskedStream(
            secrets,
            short=self._options.short_values,
            shapes=WELL_KNOWN if self._options.well_known else (),
        )
        self._writing = threading.RLock()
        self._length = 0
        self._open_line = False
        self._refused = 0
        self._withheld = False
        self._changed = threading.Condition()
        self._stored = 0
        self._closing = False
        self._idle = False  # whether any byte is news to the uploader
        self._flushing = 0
        self._watched = ExitStack()
        self._marks = deque[tuple[int, float]]()
        """When the bytes behind an offset came, at most one for each second."""
        self.complete = True
        self.missing = 0
        """Bytes that were masked and could not be stored, once the log is left."""
        self.given_up = CancelToken()

    def __enter__(self) -> Self:
        self._watched.enter_context(
            sight.vital(Vital.LOG_BACKLOG, lambda: float(self._spool.waiting))
        )
        self._watched.enter_context(sight.vital(Vital.LOG_AGE, self._age))
        self._uploader = spawn(f"log-{self._claim.job.id}", self._upload)
        return self

    def __exit__(self, *_: object) -> None:
        with self._watched:
            self._finish()

    def _finish(self) -> None:
        self._end_section(self._stream.close)
        if self._open_line and self._options.echo is not None:
            self._options.echo(b"\n")
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        with sight.stage(Stage.FLUSH):
            with waiting():
                self._uploader.join(self._options.flush_seconds)
            if self._uploader.is_alive():
                log.error("log.flush_timed_out", seconds=self._options.flush_seconds)
                self._give_up()
                with waiting():
                    self._uploader.join()
        if not self.complete:
            self.missing = max(self._length - self._stored, 0)
            log.warning("log.incomplete", missing=self.missing, stored=self._stored)
        self._spool.remove()

    @property
    def length(self) -> int:
        """Masked bytes that are stored or still will be."""
        return self._stored if self.given_up.cancelled else self._length

    @property
    def added(self) -> tuple[bytes, ...]:
        """The values that the job, or an earlier one of its run, has added."""
        return self._stream.added

    def write(self, data: bytes) -> None:
        """Mask and spool what the container printed; waits while the spool is full."""
        with self._writing:
            for start in range(0, len(data), _PIECE):
                piece = self._stream.feed(data[start : start + _PIECE])
                self._append(piece)
                self._decided()

    def say(self, sentence: str) -> None:
        """
        A line of the launcher's own for the run's owner, between two sections.

        What was held back before it comes out: nothing prints, so nothing can grow.
        """
        with self._writing:
            self._end_section(self._stream.close)
            self._line(sentence)

    def interject(self, sentence: str) -> None:
        """
        The same in the middle of a section, before what is held back.

        Left out when the log is being written to: never waits.
        """
        if self._writing.acquire(blocking=False):
            try:
                if not self._spool.full:
                    self._line(sentence)
            finally:
                self._writing.release()

    def finish_section(self) -> int:
        """
        Store everything so far, held-back bytes included; return the length.

        What follows belongs to the next state, so no secret can span the two.
        """
        self._end_section(self._stream.close)
        end = self._length
        with waiting(), self._changed:
            self._flushing += 1
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._stored >= end or self.given_up.cancelled
            )
            self._flushing -= 1
        return self.length if self.given_up.cancelled else end

    def hide(self, secrets: Iterable[bytes]) -> None:
        """Mask *secrets*, too, in what follows: a section begins."""
        self._end_section(lambda: self._stream.hide(secrets))

    def hide_at_once(self, secrets: Iterable[bytes]) -> None:
        """Mask *secrets*, too, from now on; they were not printed yet."""
        with self._writing:
            self._stream.hide_at_once(secrets)

    def adopt(self, added: Iterable[bytes]) -> None:
        """Mask what an earlier job of the run has added; it is in `added`, too."""
        self._end_section(lambda: self._stream.adopt(added))

    def clean(self, text: str) -> str:
        """Mask a text that leaves the process in another way.  Never waits long."""
        return self._stream.text(text)

    def lacks_bytes(self) -> None:
        """Some of what the container printed is known to be missing."""
        self.complete = False

    # --- the writing side

    def _end_section(self, end: Callable[[], bytes]) -> None:
        with self._writing:
            self._append(end())
            self._decided()

    def _line(self, sentence: str) -> None:
        start = "\n" if self._open_line else ""
        clean = self._stream.text(sentence)
        self._append(f"{start}{clean}\n".encode())
        self._decided()

    def _append(self, clean: bytes) -> None:
        if not clean:
            return
        if self._options.echo is not None:
            self._options.echo(clean)
        if self._options.timestamps:
            clean = self._stamped(clean)
        self._open_line = not clean.endswith(b"\n")
        for start in range(0, len(clean), _PIECE):
            piece = clean[start : start + _PIECE]
            self._mark()
            if not self._spool.append(piece, self.given_up):
                break
            if self._idle or self._spool.end - self._stored >= _UPLOAD:
                with self._changed:
                    self._changed.notify_all()
        self._length += len(clean)

    def _mark(self) -> None:
        now = time.monotonic()
        if not self._spool.waiting:
            self._marks.clear()
        if not self._marks or (
            now - self._marks[-1][1] >= 1 and len(self._marks) < _MOST_MARKS
        ):
            self._marks.append((self._spool.end, now))

    def _age(self) -> float:
        """Seconds for which the oldest byte has been waiting to be stored."""
        with contextlib.suppress(IndexError):  # the last one was stored meanwhile
            if self._spool.waiting:
                return time.monotonic() - self._marks[0][1]
        return 0.0

    def _stamped(self, clean: bytes) -> bytes:
        # All stamps are of one length, so that offsets do not depend on the time.
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        stamp = now.replace("+00:00", "Z ").encode()
        stamped = clean[:-1].replace(b"\n", b"\n" + stamp) + clean[-1:]
        return stamped if self._open_line else stamp + stamped

    def _decided(self) -> None:
        if self._stream.refused > self._refused:
            self._refused = self._stream.refused
            log.warning("mask.too_short", refused=self._refused)
        if self._stream.withheld and not self._withheld:
            self._withheld, self.complete = True, False
            log.warning("mask.too_many")
            self._lease.cancel.cancel(Ended.TOO_MANY_MASKS)

    # --- the uploading side

    def _upload(self) -> None:
        with (
            watched(f"log-{self._claim.job.id}", _UPLOADER_SECONDS),
            self._lease.lost.calling(self._give_up),
        ):
            try:
                while (chunk := self._next_chunk()) is not None:
                    self._deliver(chunk)
            except Exception:  # whatever it is, nobody must wait for us
                log.exception("log.given_up")
                self._give_up()

    def _next_chunk(self) -> bytes | None:
        spool = self._spool
        with self._changed:
            # Before the look: who appends after it sees that somebody waits.
            self._idle = True
            with waiting():
                self._changed.wait_for(
                    lambda: (
                        spool.end > self._stored
                        or self._closing
                        or self.given_up.cancelled
                    )
                )
            self._idle = False
            self._changed.wait_for(
                lambda: (
                    self._closing
                    or self._flushing
                    or self.given_up.cancelled
                    or spool.end - self._stored >= _UPLOAD
                ),
                _LINGER_SECONDS,
            )
        if self.given_up.cancelled or spool.end <= self._stored:
            return None
        return spool.read(self._stored, _UPLOAD)

    def _deliver(self, chunk: bytes) -> None:
        def send() -> LogAck:
            if self.given_up.cancelled:
                raise _GivenUp
            return self._sink.append(self._claim, self._stored, chunk)

        try:
            answer = self._lease.insist(send)
        except _GivenUp:
            return
        except LeaseLost:
            self._lease.lose()
        except Exception:  # refused, out of time, a bug: stop, rather than hang
            log.exception("log.given_up")
            self._give_up()
        else:
            self._lease.heard(answer.stop)
            self._advance(answer.next_offset)

    def _advance(self, stored: int) -> None:
        if not self._stored < stored <= self._spool.end:
            # Bytes that are gone here are wanted again, or none are, for ever.
            log.error("log.given_up", stored=self._stored, wanted=stored)
            self._give_up()
            return
        self._spool.forget(stored)
        while len(self._marks) > 1 and self._marks[1][0] <= stored:
            self._marks.popleft()
        with self._changed:
            self._stored = stored
            self._changed.notify_all()

    def _give_up(self) -> None:
        self.complete = False
        self.given_up.cancel("log given up")
        with self._changed:
            self._changed.notify_all()
