"""
How a phase is ended that should not go on: asked, urged, and in the end killed.

A tool that is asked may take its time to save its state, and its own exit code is
what counts then.  That time begins when the tool was told: while the engine is away,
nobody is urged who was not asked.
"""

from __future__ import annotations

import time

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from launcher.cancel import CancelToken
from launcher.errors import EngineError
from launcher.heartbeat import beat, pausing, waiting, watching
from launcher.model import PhaseScript
from launcher.threads import helper


log = structlog.get_logger()

STOP_SECONDS = 10.0
"""How long a phase may go on after a signal that leaves less of a choice."""

_BEGIN_SECONDS = 10.0
_RETRY_SECONDS = 1.0


@contextmanager
def descending(
    script: PhaseScript,
    cancel: CancelToken,
    begun: CancelToken,
    send: Callable[[str], None],
    *,
    give_up: Callable[[], None],
    stop_seconds: float = STOP_SECONDS,
) -> Iterator[None]:
    """
    Should *cancel* fire during the block, *send* signal after signal to the phase.

    The first one waits for *begun*, for a while: before the phase's own shell is
    there, a signal would be lost on nobody.  A signal that cannot be sent is tried
    again for as long as its grace and *stop_seconds* last, and none goes before it;
    *send* must see to it that the phase hears of one signal once.  When the last one
    did not help, or one could not be sent, *give_up* has to end the block's waiting.
    """
    over = CancelToken()
    steps = (
        ("SIGINT", script.grace_seconds),
        ("SIGTERM", stop_seconds),
        ("SIGKILL", stop_seconds),
    )

    def descend() -> None:
        with waiting():
            if cancel.wait_either(over):
                return
        begun.wait(_BEGIN_SECONDS)
        for signal, grace in steps:
            log.info("phase.signalled", phase=script.name, signal=signal)
            sent = _delivered(signal, send, over, patience=grace + stop_seconds)
            if over.cancelled or (sent and pausing(over, grace)):
                return
            if not sent:
                break
        log.error("phase.not_ended", phase=script.name)
        give_up()

    def stop() -> None:
        over.cancel("over")
        begun.cancel("over")

    name = f"ladder-{script.name}"
    with helper(name, watching(name, descend), stop):
        yield


def _delivered(
    signal: str, send: Callable[[str], None], over: CancelToken, *, patience: float
) -> bool:
    """Try it for *patience* seconds, unless the phase is *over* meanwhile."""
    until = time.monotonic() + patience
    while not over.cancelled:
        beat()
        try:
            send(signal)
        except EngineError as exc:
            log.warning("phase.not_signalled", signal=signal, error=exc.details)
            if time.monotonic() > until or over.wait(_RETRY_SECONDS):
                return False
        else:
            return True
    return False
