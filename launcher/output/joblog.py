"""
A job's log on its way home: masked, in order, every byte once.

The container's file is the buffer.  Here is only what is being uploaded and one
chunk more, so a slow or absent control plane makes the reader wait, never the
container, and nothing is dropped.
"""

from __future__ import annotations

import threading

from collections.abc import Iterable
from typing import Self

import structlog

from launcher.cancel import CancelToken
from launcher.errors import LeaseLost
from launcher.lease import Lease
from launcher.model import Claim
from launcher.output.mask import Masker
from launcher.ports import LogSink
from launcher.threads import spawn
from launcher.wire.messages import MAX_LOG_CHUNK


log = structlog.get_logger()

_BUFFER = 4 * MAX_LOG_CHUNK
_LINGER_SECONDS = 0.05  # small writes that come together travel together


class JobLog:
    """
    One job's log.  A context manager: leaving it means that all is stored.

    What cannot be stored any more, because the lease is lost or the operator
    wants the process gone, is given up; `complete` is False then.
    """

    def __init__(
        self, claim: Claim, sink: LogSink, lease: Lease, secrets: Iterable[bytes]
    ) -> None:
        self._claim = claim
        self._sink = sink
        self._lease = lease
        self._secrets = frozenset(secrets)
        self._masker = Masker(self._secrets)
        self._changed = threading.Condition()
        self._buffer = bytearray()
        self._stored = 0
        self._closing = False
        self._flushing = False
        self._within_a_line = False
        self.complete = True
        self.given_up = CancelToken()

    def __enter__(self) -> Self:
        self._uploader = spawn(f"log-{self._claim.job.id}", self._upload)
        return self

    def __exit__(self, *_: object) -> None:
        self._append(self._masker.close())
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._uploader.join()

    @property
    def length(self) -> int:
        """Masked bytes so far, stored or still to be."""
        with self._changed:
            return self._stored + len(self._buffer)

    def write(self, data: bytes) -> None:
        """Mask and pass on; waits while too much is waiting already."""
        self._within_a_line = not data.endswith(b"\n") if data else self._within_a_line
        self._append(self._masker.feed(data))

    def say(self, sentence: str) -> None:
        """A line of the launcher's own for the run's owner."""
        start = "\n" if self._within_a_line else ""
        self.write(f"{start}{sentence}\n".encode())

    def finish_section(self) -> int:
        """
        Store everything so far, held-back bytes included; return the length.

        What follows belongs to the next state, so no secret can span the two.
        """
        self._append(self._masker.close())
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._buffer or self.given_up.cancelled)
            self._flushing = False
            return self._stored + len(self._buffer)

    def hide(self, secrets: Iterable[bytes]) -> None:
        """Mask *secrets*, too, in what follows: a section begins."""
        self._append(self._masker.close())
        self._secrets |= frozenset(secrets)
        self._masker = Masker(self._secrets)

    def lacks_bytes(self) -> None:
        """Some of what the container printed is known to be missing."""
        self.complete = False

    def _append(self, clean: bytes) -> None:
        if not clean:
            return
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._buffer) < _BUFFER or self.given_up.cancelled
            )
            if self.given_up.cancelled:
                return
            self._buffer += clean
            self._changed.notify_all()

    def _upload(self) -> None:
        with self._lease.lost.calling(self._give_up):
            while (chunk := self._next_chunk()) is not None:
                self._deliver(chunk)

    def _next_chunk(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._buffer or self._closing or self.given_up.cancelled
            )
            if not (self._closing or self._flushing):
                self._changed.wait_for(
                    lambda: (
                        self._closing
                        or self._flushing
                        or len(self._buffer) >= MAX_LOG_CHUNK
                    ),
                    _LINGER_SECONDS,
                )
            if self.given_up.cancelled or not self._buffer:
                return None
            return bytes(self._buffer[:MAX_LOG_CHUNK])

    def _deliver(self, chunk: bytes) -> None:
        try:
            answer = self._lease.insist(
                lambda: self._sink.append(self._claim, self._stored, chunk)
            )
        except LeaseLost:
            self._lease.lose()
        except Exception:  # refused, out of time, a bug: stop, rather than hang
            log.exception("log.given_up")
            self._give_up()
        else:
            self._lease.heard(answer.stop)
            self._advance(chunk, answer.next_offset)

    def _advance(self, chunk: bytes, stored: int) -> None:
        taken = stored - self._stored
        if not 0 < taken <= len(chunk):
            # Bytes that are gone here are wanted again, or none are, for ever.
            log.error("log.given_up", stored=self._stored, wanted=stored)
            self._give_up()
            return
        with self._changed:
            del self._buffer[:taken]
            self._stored = stored
            self._changed.notify_all()

    def _give_up(self) -> None:
        self.complete = False
        self.given_up.cancel("log given up")
        with self._changed:
            # What will not be stored is no part of the log that is reported.
            self._buffer.clear()
            self._changed.notify_all()
