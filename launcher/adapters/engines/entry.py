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

_LONGEST_STEP = 12

PROGRAM = resources.files(__package__).joinpath("entry.sh").read_bytes()

SIGNALLER = resources.files(__package__).joinpath("signal.sh").read_bytes()
"""Run beside a phase with ``INT`` or ``TERM``; prints `SENT` when that was done."""

LACKING = {"user": "a user with the number 1983"}
"""What the program says an image lacks, where that is no program."""

NO_PS = b"The image has no `ps`; nothing here needs it, but a hook or tool might.\n"

SENT = b"sent\n"

EXIT = b"exit\n"
"""Asks the program to end, and with it the container."""


def finish(phases: int) -> bytes:
    """Asks the same, with exit code 0 only if *phases* were run, all with success."""
    return f"finish {phases}\n".encode()


def _step(words: list[str]) -> int | None:
    """Which command of a phase was begun last; None where that is not known."""
    for word in words:
        if word.startswith("at:") and len(word) < _LONGEST_STEP:
            return int(word[3:]) if word[3:].isdigit() else None
    return None


class Entry:
    """
    One container's conversation.

    *printed* is everything the container prints, in order, cut anywhere.
    """

    def __init__(self, printed: Iterable[bytes], nonce: str = "") -> None:
        self.nonce = nonce or secrets.token_hex(16)
        self.lacking = ""
        """What the image would need for anything to be run in it."""
        self._items = self._split(printed)
        self._heard = 0  # phases that were listened to, by whomever they were sent
        self._next = 0  # the number of the phase that is sent next

    def arguments(self, spec: SandboxSpec) -> tuple[str, ...]:
        """What the program is started with."""
        return (self.nonce, str(int(spec.deadline_seconds)), str(spec.log_limit))

    def phase(self, phase: PhaseScript) -> bytes:
        """What makes the program run *phase*, unless it has begun one in its place."""
        grace, number = math.ceil(phase.grace_seconds), self._next
        self._next += 1
        head = f"phase {number} {phase.name} {grace}\n"
        return f"{head}{phase.text}{self.nonce}\n".encode()

    def listen(
        self, phase: PhaseScript, output: Output, begun: CancelToken
    ) -> Exit | None:
        """
        Pass on what is printed until *phase* ends; fire *begun* when it begins.

        None when everything ended before the phase did.
        """
        self._heard += 1
        self._next = max(self._next, self._heard)
        lost = False
        for item in self._items:
            if isinstance(item, bytes):
                output(item)
                continue
            match item.words:
                case ("full",):
                    # What the phase could not write any more, nobody knows.
                    lost = True
                case ("lacks", *what):
                    self.lacking = ", ".join(
                        LACKING.get(each, f"`{each[:20]}`") for each in what
                    )
                case ("misses", "ps"):
                    output(NO_PS)
                case ("begin", phase.name):
                    begun.cancel("begun")
                case ("end", phase.name, code, *more):
                    number = int(code) if code.isdigit() else 1
                    return Exit(
                        code=number,
                        oom_killed=bool(number) and "oom" in more,
                        volume_full=bool(number) and "full" in more,
                        log_incomplete=lost,
                        at=_step(more),
                    )
                case words:
                    log.warning("container.marked", mark=words)
        return None

    def begun(self, printed: Iterable[bytes]) -> tuple[str, ...]:
        """Names of the phases that begin in *printed*."""
        return tuple(
            item.words[1]
            for item in self._split(printed)
            if isinstance(item, Mark) and item.words[:1] == ("begin",)
        )

    def unfinished(self, printed: Iterable[bytes]) -> tuple[str, ...]:
        """Names of the phases that begin in *printed*, and do not end in it."""
        running: list[str] = []
        for item in self._split(printed):
            match item:
                case Mark(words=("begin", name)):
                    running.append(name)
                case Mark(words=("end", name, *_)) if name in running:
                    running.remove(name)
        return tuple(running)

    def rest(self, output: Output) -> None:
        """Pass on what is printed until the container is gone."""
        for item in self._items:
            if isinstance(item, bytes):
                output(item)
            else:
                log.warning("container.marked", mark=item.words)

    def _split(self, printed: Iterable[bytes]) -> Iterator[bytes | Mark]:
        marks = MarkParser(self.nonce)
        for chunk in printed:
            yield from marks.feed(chunk)
        if rest := marks.close():
            yield rest
