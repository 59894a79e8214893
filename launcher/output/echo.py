"""A run's log on the launcher's standard output, line by line, for who collects it."""

from __future__ import annotations

import json
import threading
import time

from typing import TextIO

from launcher.telemetry import rfc3339
from launcher.wire.jobs import Job


_LONGEST = 1 << 16  # bytes of a line; what is longer becomes several

_everybody = threading.Lock()


class Echo:
    """
    Writes masked output as JSON objects, shaped like the launcher's own log.

    It never raises.  A reader of standard output that falls behind delays the log;
    the container does not wait for it.
    """

    def __init__(self, job: Job, stream: TextIO) -> None:
        self._facts = {
            "caller": "run",
            "level": "info",
            "run_ulid": job.run.id,
            "stack_id": job.stack.slug,
        }
        self._stream = stream
        self._line = b""

    def __call__(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        while len(self._line) > _LONGEST:
            lines.append(self._line[:_LONGEST])
            self._line = self._line[_LONGEST:]
        shown = "".join(self._shown(line) for line in lines)
        if shown:
            with _everybody:
                try:
                    self._stream.write(shown)
                    self._stream.flush()
                except (OSError, ValueError):
                    return  # nobody reads it, and no job fails for that

    def _shown(self, line: bytes) -> str:
        text = line.removesuffix(b"\r").decode("utf-8", "replace")
        return (
            json.dumps({**self._facts, "msg": text, "ts": rfc3339(time.time_ns())})
            + "\n"
        )
