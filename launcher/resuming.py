"""
A log that an earlier life of the launcher has begun to upload.

What the control plane stores is made from what the container has printed, in one
way only: so a launcher that has forgotten everything reads from the beginning
again, masks again, and leaves out as many bytes as are stored.  Where there is
nothing to read any more, what it has to say comes behind the stored bytes.
"""

from __future__ import annotations

from launcher.model import Claim
from launcher.ports import LogSink, Output
from launcher.wire.messages import LogAck


class Tap:
    """Passes output on until it is turned off."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._open = True

    def turn_off(self) -> None:
        self._open = False

    def __call__(self, data: bytes) -> None:
        if self._open:
            self._output(data)


class ResumedLog:
    """Implements `launcher.ports.LogSink` for one job, before the real one."""

    def __init__(self, sink: LogSink, *, resumed: bool) -> None:
        self._sink = sink
        self._stored: int | None = None if resumed else 0
        self._start: int | None = 0

    @property
    def stored(self) -> int:
        """Bytes that were stored in earlier lives, as far as was asked."""
        return self._stored or 0

    def resume_at(self, start: int) -> None:
        """The first byte appended belongs at *start*; call it before that."""
        self._start = start

    def continue_behind(self) -> None:
        """The first byte appended belongs behind all others; call it before that."""
        self._start = None

    def position(self, length: int) -> int:
        """Where in the control plane's log the *length*-th byte appended is."""
        return (self.stored if self._start is None else self._start) + length

    def append(self, claim: Claim, offset: int, data: bytes) -> LogAck:
        if self._stored is None:
            self._stored = self._sink.append(claim, 0, b"").next_offset
        begin = self.position(offset)
        known = min(max(self._stored - begin, 0), len(data))
        if known == len(data):
            return LogAck(next_offset=offset + known)
        ack = self._sink.append(claim, begin + known, data[known:])
        return LogAck(next_offset=ack.next_offset - self.position(0), stop=ack.stop)
