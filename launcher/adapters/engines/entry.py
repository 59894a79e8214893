"""
The conversation with a container's first program, whatever carries it.

Phases go in by standard input, one after the other.  What they print comes back
as one stream of bytes, with marks in it that say where a phase begins and ends.
"""

from __future__ import annotations

import math
import secrets

from collections.abc import Iterable, Iterator
from importlib import resources

import structlog

from launcher.cancel import CancelToken
from launcher.model import Exit, PhaseScript, SandboxSpec
from launcher.output.markers import Mark, MarkParser
from launcher.ports import Output


log = structlog.get_logger()

PROGRAM = resources.files(__package__).joinpath("entry.sh").read_bytes()

SIGNALLER = resources.files(__package__).joinpath("signal.sh").read_bytes()
"""Run beside a phase with ``INT`` or ``TERM``; prints `SENT` when that was done."""

SENT = b"sent\n"

EXIT = b"exit\n"
"""Asks the program to end, and with it the container."""


class Entry:
    """
    One container's conversation.

    *printed* is everything the container prints, in order, cut anywhere.
    """

    def __init__(self, printed: Iterable[bytes]) -> None:
        self._nonce = secrets.token_hex(16)
        self._items = self._split(printed)

    def arguments(self, spec: SandboxSpec) -> tuple[str, ...]:
        """What the program is started with."""
        return (self._nonce, str(int(spec.deadline_seconds)), str(spec.log_limit))

    def phase(self, phase: PhaseScript) -> bytes:
        """What makes the program run *phase*."""
        grace = math.ceil(phase.grace_seconds)
        return f"phase {phase.name} {grace}\n{phase.text}{self._nonce}\n".encode()

    def listen(
        self, phase: PhaseScript, output: Output, begun: CancelToken
    ) -> Exit | None:
        """
        Pass on what is printed until *phase* ends; fire *begun* when it begins.

        None when everything ended before the phase did.
        """
        lost = False
        for item in self._items:
            if isinstance(item, bytes):
                output(item)
                continue
            match item.words:
                case ("full",):
                    # What the phase could not write any more, nobody knows.
                    lost = True
                case ("begin", phase.name):
                    begun.cancel("begun")
                case ("end", phase.name, code, *cause):
                    number = int(code) if code.isdigit() else 1
                    return Exit(
                        code=number,
                        oom_killed=bool(number) and "oom" in cause,
                        log_incomplete=lost,
                    )
                case words:
                    log.warning("container.marked", mark=words)
        return None

    def _split(self, printed: Iterable[bytes]) -> Iterator[bytes | Mark]:
        marks = MarkParser(self._nonce)
        for chunk in printed:
            yield from marks.feed(chunk)
        if rest := marks.close():
            yield rest
