"""
Names of traces and spans, made from what a run and its jobs are called anyway.

So every job of a run, on whichever worker, and every life of a launcher belong to the
same trace without having to tell each other: a run's ULID has the 128 bits that a
trace's id takes.
"""

from __future__ import annotations

import hashlib

from ulid import ULID

from launcher.wire.jobs import Job, Variable


TRACEPARENT = "TRACEPARENT"
"""The variable by which a program learns to which trace it belongs."""

_SAMPLED = 1


def trace_id(run: str) -> int:
    """Return the id of the trace of *run*: its ULID, or a hash of what is none."""
    try:
        number = int(ULID.from_str(run))
    except ValueError:
        number = 0
    return number or _hashed(16, "run", run)


def span_id(*names: str) -> int:
    """Return the id of the span that *names* name; the first says what it is."""
    return _hashed(8, *names)


def variables(job: Job) -> tuple[Variable, ...]:
    """What the phases of *job* are told, in the form of W3C's Trace Context."""
    trace, span = trace_id(job.run.id), span_id("job", job.id)
    value = f"00-{trace:032x}-{span:016x}-{_SAMPLED:02x}"
    return (Variable(name=TRACEPARENT, value=value),)


def _hashed(size: int, *names: str) -> int:
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:size]) or 1  # nothing is no id
