"""
A job's output on its way from raw to masked bytes, with the commands in it obeyed.

A line that begins with ``::add-mask`` and white space names values that are secret
from the next byte on.  It ends what came before it, as far as masking goes: no
secret can reach over it, because it would be there to see.

What comes out depends on the raw bytes alone, never on how they were cut.  So who
has to begin anew, after a crash, gets the same bytes again.
"""

from __future__ import annotations

import threading

from collections.abc import Iterable

from launcher.output.mask import MASK, Index, Masker
from launcher.output.needles import SHORTEST, needles, too_short
from launcher.output.patterns import Shape


COMMAND = b"::add-mask"

MOST_ADDED = 1_000
"""Values that one job may add."""
MOST_ADDED_BYTES = 64 << 10
"""Bytes of such values together."""

_LONGEST_COMMAND = 2 * MOST_ADDED_BYTES
_LINE_END = 0x0A

TOO_MANY = (
    f"\nThe job added more than {MOST_ADDED} masks, or {MOST_ADDED_BYTES >> 10} KiB"
    " of them; what it prints from here on is withheld.\n"
).encode()
TOO_SHORT = (
    f"A value of ::add-mask has fewer than {SHORTEST} characters: it is not masked.\n"
).encode()


class MaskedStream:
    """
    Masks one job's output; bytes in, bytes out.  Not for several threads at once.

    *secrets* are values, of which every form is masked, *shapes* what is masked for
    its looks.
    """

    def __init__(
        self,
        secrets: Iterable[bytes] = (),
        *,
        short: bool = False,
        shapes: Iterable[Shape] = (),
    ) -> None:
        self._short = short
        self._shapes = tuple(shapes)
        self._added: dict[bytes, None] = {}
        self._lock = threading.Lock()
        self._needles: set[bytes] = set()
        self._index: Index | None = None
        self._look_for(secrets)
        self._line = b""  # the beginning of what may become a command
        self._begins_line = True  # whether what follows it is a line's
        self.withheld = False
        """Too many values were added: nothing comes out any more."""
        self.refused = 0
        """Values that the job wanted to add and that are too short."""
        self._masker = Masker(self._up_to_date())

    @property
    def added(self) -> tuple[bytes, ...]:
        """What the job has added, in order."""
        return tuple(self._added)

    def feed(self, chunk: bytes) -> bytes:
        """Take what comes next; return what may leave the process."""
        data, self._line = self._line + chunk, b""
        clean: list[bytes] = []
        position = 0
        while position < len(data) and not self.withheld:
            start = self._command(data, position)
            if start > position:
                clean.append(self._plain(data[position:start]))
                self._begins_line = data[start - 1] == _LINE_END
            if start == len(data):
                break
            end = data.find(b"\n", start) + 1
            if not end and len(data) - start <= _LONGEST_COMMAND:
                self._line = data[start:]
                break
            clean.append(self._masker.close())
            clean.append(self._obey(data[start : end or len(data)]))
            position = end or len(data)
            self._begins_line = True
        return b"".join(clean)

    def close(self) -> bytes:
        """End a section: nothing can grow any more, and a new one begins a line."""
        line, self._line = self._line, b""
        clean = b""
        if line.startswith(COMMAND):  # without a line end, but there is no more
            clean = self._masker.close() + self._obey(line)
        elif line and not self.withheld:
            clean = self._plain(line)
        clean += self._masker.close()
        self._begins_line = True
        return clean

    def hide(self, secrets: Iterable[bytes]) -> bytes:
        """End a section; in what follows, *secrets* are masked, too."""
        clean = self.close()
        self._look_for(secrets)
        return clean

    def hide_at_once(self, secrets: Iterable[bytes]) -> None:
        """Mask *secrets*, too, from the next byte on, in the middle of a section."""
        self._look_for(secrets)
        # What is held back stays so: whatever it may become, it still may.
        self._masker.begin(self._up_to_date())

    def adopt(self, added: Iterable[bytes]) -> bytes:
        """End a section; mask what an earlier job of the run has added."""
        clean = self.close()
        values = tuple(added)
        self._added |= dict.fromkeys(values)
        self._look_for(values)
        return clean

    def text(self, text: str) -> str:
        """Mask a text that is no part of the stream; may be called by any thread."""
        return self._up_to_date().text(text)

    def _look_for(self, values: Iterable[bytes]) -> None:
        """Mask *values*, too, from the next section on."""
        more = needles(values, short=self._short)
        with self._lock:
            if not more <= self._needles:
                self._needles |= more
                self._index = None  # made when it is needed: a job may add many

    def _up_to_date(self) -> Index:
        with self._lock:
            if self._index is None:
                self._index = Index(self._needles, self._shapes)
            return self._index

    def _plain(self, data: bytes) -> bytes:
        if not self._masker.waiting:
            self._masker.begin(self._up_to_date())
        return self._masker.feed(data)

    def _command(self, data: bytes, position: int) -> int:
        """Where a command begins, or may begin, at or after *position*."""
        size = len(COMMAND)
        start = position if self._begins_line else self._next(data, position)
        while start < len(data):
            word = data[start : start + size + 1]
            if COMMAND.startswith(word) or (
                word[:size] == COMMAND and word[size:].isspace()
            ):
                return start
            start = self._next(data, start)
        return len(data)

    def _next(self, data: bytes, position: int) -> int:
        """The next beginning of a line that may be one of a command."""
        found = data.find(b"\n" + COMMAND, position)
        if found != -1:
            return found + 1
        last = data.rfind(b"\n", max(position, len(data) - len(COMMAND) - 1))
        return last + 1 if last != -1 else len(data)

    def _obey(self, line: bytes) -> bytes:
        """Add what a command names; return what is shown in its place."""
        values = line[len(COMMAND) :].split()
        fresh = [value for value in values if self._short or not too_short(value)]
        added = self._added | dict.fromkeys(fresh)
        end = line[len(line.rstrip(b"\r\n")) :]
        shown = b" ".join([COMMAND, *(MASK for _ in values)]) + end
        if (
            len(line) > _LONGEST_COMMAND
            or len(added) > MOST_ADDED
            or sum(map(len, added)) > MOST_ADDED_BYTES
        ):
            self.withheld = True
            return b" ".join([COMMAND, MASK]) + TOO_MANY
        if len(added) > len(self._added):
            self._added = added
            self._look_for(fresh)
        if len(fresh) < len(values):
            self.refused += len(values) - len(fresh)
            shown += (b"" if end else b"\n") + TOO_SHORT
        return shown
