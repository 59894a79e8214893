"""
The log of a run, told to all who watch it.

However many look at the same place, it is read and rendered once.  Those who are up to
date wait for the bell, and then look together.
"""

from __future__ import annotations

import asyncio

from collections import OrderedDict
from collections.abc import AsyncIterator

from launcher.controlplane import bell
from launcher.controlplane.bell import Bell
from launcher.controlplane.errors import RequestRefused
from launcher.controlplane.lanes import Lane
from launcher.controlplane.web.transcript import Cursor, Part, Transcript


BREATH_SECONDS = 0.2
"""Between two looks at a growing log: many lines travel together."""
LOOK_AGAIN_SECONDS = 15.0
"""How long a silent stream is silent; proxies give up after 60 s."""
_KEPT = 32
"""Parts that are kept for who comes behind, each of `run_logs.PAGE` bytes at most."""


class Feed:
    """Serves any number of streams; belongs to one event loop."""

    def __init__(self, transcript: Transcript, bell: Bell, lane: Lane) -> None:
        self._transcript = transcript
        self._bell = bell
        self._lane = lane
        self._parts: OrderedDict[tuple[str, Cursor], asyncio.Future[Part]] = (
            OrderedDict()
        )

    async def stream(
        self, run: str, cursor: Cursor, until: float
    ) -> AsyncIterator[bytes]:
        """
        Server-sent events about *run* from *cursor* on, up to the loop's time *until*.

        ``lines`` has HTML for the end of the log and a cursor as its id, ``begun`` HTML
        of a row that grows, ``status`` the version of a run that has moved, and
        ``over`` ends it all.
        """
        loop = asyncio.get_running_loop()
        version = 0
        yield b"retry: 1000\n\n"
        with self._bell.listening(bell.of_run(run)) as news:
            begun = ""
            while loop.time() < until and not self._bell.closed:
                try:
                    part = await self._part(run, cursor)
                except RequestRefused as exc:
                    yield _event("refused", str(exc))
                    return
                if part.rows:
                    yield _event("lines", *part.rows, id=str(part.following))
                if part.begun != begun:
                    begun = part.begun
                    yield _event("begun", begun)
                if part.version != version:
                    version = part.version
                    yield _event("status", str(version))
                cursor = part.following
                if part.over:
                    yield _event("over", str(version))
                    return
                if part.caught_up:
                    before = loop.time()
                    await news.wait(LOOK_AGAIN_SECONDS)
                    if loop.time() - before >= LOOK_AGAIN_SECONDS:
                        yield b":\n\n"
                    else:
                        await asyncio.sleep(BREATH_SECONDS)

    async def _part(self, run: str, cursor: Cursor) -> Part:
        key = (run, cursor)
        wanted = self._parts.get(key)
        if wanted is None:
            wanted = asyncio.ensure_future(
                self._lane.run(self._transcript.part, run, cursor)
            )
            self._parts[key] = wanted
            wanted.add_done_callback(lambda done: self._keep(key, done))
            while len(self._parts) > _KEPT:
                self._parts.popitem(last=False)
        # Who leaves must not take the answer from the others.
        return await asyncio.shield(wanted)

    def _keep(self, key: tuple[str, Cursor], done: asyncio.Future[Part]) -> None:
        """What is not all that there will ever be at this place is looked at again."""
        useless = done.cancelled() or done.exception() or done.result().caught_up
        if useless and self._parts.get(key) is done:
            del self._parts[key]


def _event(name: str, *lines: str, id: str = "") -> bytes:  # noqa: A002 (its name)
    head = f"event: {name}\n" + (f"id: {id}\n" if id else "")
    return (head + "".join(f"data: {line}\n" for line in lines) + "\n").encode()
