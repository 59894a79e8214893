"""
The log of a run, told to all who watch it.

However many look at the same place, it is read, rendered and encoded once.  Those who
are up to date wait together: at each tick they see the log up to the same end, so that
from then on they look at the same place, wherever they came from.
"""

from __future__ import annotations

import asyncio

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from launcher.controlplane import bell
from launcher.controlplane.bell import Bell, Listener
from launcher.controlplane.errors import RequestRefused, StoreAway
from launcher.controlplane.lanes import Lane
from launcher.controlplane.web.transcript import Cursor, Part, Transcript


BREATH_SECONDS = 0.25
"""Between two looks at a growing log: many lines travel together."""
LOOK_AGAIN_SECONDS = 15.0
"""How long a silent stream is silent; proxies give up after 60 s."""
_KEPT = 32
"""Parts that are kept for who comes behind, each of `run_logs.PAGE` bytes at most."""


@dataclass(frozen=True, slots=True)
class Told:
    """A part of a log, and the event that tells its rows; empty without any."""

    part: Part
    lines: bytes


Ticked = tuple[Told, int] | None
"""What was told at which tick; None: the server is leaving."""


@dataclass(slots=True, kw_only=True)
class _Crowd:
    """Those who watch one run."""

    end: ExitStack
    size: int = 0
    ticks: int = 0
    waiting: dict[Cursor, asyncio.Future[Ticked]] = field(default_factory=dict)


class Feed:
    """Serves any number of streams; belongs to one event loop."""

    def __init__(self, transcript: Transcript, bell: Bell, lane: Lane) -> None:
        self._transcript = transcript
        self._bell = bell
        self._lane = lane
        self._parts: OrderedDict[tuple[str, Cursor], asyncio.Future[Told]] = (
            OrderedDict()
        )
        self._crowds: dict[str, _Crowd] = {}

    async def stream(
        self, run: str, cursor: Cursor, until: float
    ) -> AsyncIterator[bytes]:
        """
        Server-sent events about *run* from *cursor* on, up to the loop's time *until*.

        ``lines`` has HTML for the end of the log and a cursor as its id, ``begun`` HTML
        of a row that grows, ``status`` the version of a run that has moved, and
        ``over`` ends it all.
        """
        yield b"retry: 1000\n\n"
        version, begun = 0, ""
        try:
            async for told in self._parts_behind(run, cursor, until):
                part, news = told.part, told.lines
                if news:
                    begun = ""  # new rows take the place of what was begun
                if part.begun != begun:
                    begun = part.begun
                    news += _event("begun", begun)
                if part.version != version:
                    version = part.version
                    news += _event("status", str(version))
                if part.over:
                    news += _event("over", str(version))
                yield news or b":\n\n"
        except StoreAway:
            return  # browsers come back
        except RequestRefused as exc:
            yield _event("refused", str(exc))

    async def _parts_behind(
        self, run: str, cursor: Cursor, until: float
    ) -> AsyncIterator[Told]:
        loop = asyncio.get_running_loop()
        with self._watching(run) as crowd:
            told, seen = None, 0
            while loop.time() < until and not self._bell.closed:
                if told is None or not told.part.caught_up or seen != crowd.ticks:
                    # Who is behind, or was busy at a tick, does not wait for the next.
                    seen = crowd.ticks
                    told = await self._look(run, cursor)
                elif (ticked := await self._tick_of(crowd, cursor)) is not None:
                    told, seen = ticked
                else:
                    return
                yield told
                cursor = told.part.following
                if told.part.over:
                    return

    # -- looking together -------------------------------------------------------------

    @contextmanager
    def _watching(self, run: str) -> Iterator[_Crowd]:
        crowd = self._crowds.get(run)
        if crowd is None:
            crowd = self._crowds[run] = _Crowd(end=ExitStack())
            # Listening begins before the first look.
            ears = crowd.end.enter_context(self._bell.listening(bell.of_run(run)))
            ticking = asyncio.create_task(self._tick(run, crowd, ears))
            crowd.end.callback(ticking.cancel)
        crowd.size += 1
        try:
            yield crowd
        finally:
            crowd.size -= 1
            if not crowd.size:
                crowd.end.close()
                del self._crowds[run]

    async def _tick_of(self, crowd: _Crowd, cursor: Cursor) -> Ticked:
        waiting = crowd.waiting.get(cursor)
        if waiting is None:
            waiting = asyncio.get_running_loop().create_future()
            crowd.waiting[cursor] = waiting
        # Who leaves must not take the answer from the others.
        return await asyncio.shield(waiting)

    async def _tick(self, run: str, crowd: _Crowd, ears: Listener) -> None:
        """Answer those who wait whenever there is news, and now and then without."""
        while not self._bell.closed:
            await ears.wait(LOOK_AGAIN_SECONDS)
            crowd.ticks += 1
            waiting, crowd.waiting = crowd.waiting, {}
            try:
                found = await self._lane.run(self._read_all, run, list(waiting))
            except Exception as exc:  # noqa: BLE001 (theirs who wait)
                for future in waiting.values():
                    future.set_exception(exc)
            else:
                for future, told in zip(waiting.values(), found, strict=True):
                    future.set_result((told, crowd.ticks))
            await asyncio.sleep(BREATH_SECONDS)
        for future in crowd.waiting.values():
            future.set_result(None)

    def _read_all(self, run: str, cursors: Sequence[Cursor]) -> list[Told]:
        return [_told(part) for part in self._transcript.parts(run, cursors)]

    # -- looking alone ----------------------------------------------------------------

    async def _look(self, run: str, cursor: Cursor) -> Told:
        key = (run, cursor)
        wanted = self._parts.get(key)
        if wanted is None:
            wanted = asyncio.ensure_future(self._lane.run(self._read, run, cursor))
            self._parts[key] = wanted
            wanted.add_done_callback(lambda done: self._keep(key, done))
            while len(self._parts) > _KEPT:
                self._parts.popitem(last=False)
        return await asyncio.shield(wanted)

    def _read(self, run: str, cursor: Cursor) -> Told:
        return _told(self._transcript.part(run, cursor))

    def _keep(self, key: tuple[str, Cursor], done: asyncio.Future[Told]) -> None:
        """What is not all that there will ever be at this place is looked at again."""
        useless = done.cancelled() or done.exception() or done.result().part.caught_up
        if useless and self._parts.get(key) is done:
            del self._parts[key]


def _told(part: Part) -> Told:
    lines = _event("lines", *part.rows, id=str(part.following)) if part.rows else b""
    return Told(part, lines)


def _event(name: str, *lines: str, id: str = "") -> bytes:  # noqa: A002 (its name)
    head = f"event: {name}\n" + (f"id: {id}\n" if id else "")
    return (head + "".join(f"data: {line}\n" for line in lines) + "\n").encode()
