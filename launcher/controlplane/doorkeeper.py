"""
The workers' listener, where anybody may knock.

A handshake costs memory, a file and some seconds, before it is known who is there.  So
only so many are under way at once, and only so many from one address; whoever comes
beyond that waits in the kernel's queue, or is turned away.  The listener for people
does not notice.

asyncio's own servers begin a handshake for everybody who connects.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from collections import Counter
from collections.abc import Callable

import structlog


log = structlog.get_logger()

HANDSHAKE_SECONDS = 10.0
"""How long a stranger may take to show who it is."""
AT_ONCE = 256
PER_ADDRESS = 64
_COMPLAIN_EVERY_SECONDS = 60.0
_PAUSE_SECONDS = 0.5


class Doorkeeper:
    """
    Accepts connections at *listener* and hands those on that shook hands.

    As much of an `asyncio.Server` as uvicorn asks for, which is to be closed.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._make_protocol = make_protocol
        self._context = context
        self._room = asyncio.Semaphore(AT_ONCE)
        self._guests: Counter[str] = Counter()
        self._under_way: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._turned_away = 0
        self._quiet_until = 0.0
        listener.listen(1024)
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Let nobody in any more; who is in, stays."""
        self._accepting.cancel()
        for task in self._under_way:
            task.cancel()

    async def wait_closed(self) -> None:
        """Return when nobody is on the doorstep any more."""
        await asyncio.gather(self._accepting, *self._under_way, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            await self._room.acquire()
            try:
                connection, (address, *_) = await self._loop.sock_accept(self._listener)
            except OSError as exc:  # out of files, most likely
                self._room.release()
                self._complain(exc.strerror or type(exc).__name__)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            except BaseException:
                self._room.release()
                raise
            if self._guests[address] >= PER_ADDRESS:
                connection.close()
                self._room.release()
                self._complain(f"too many strangers at {address}")
                continue
            self._guests[address] += 1
            task = self._loop.create_task(self._shake_hands(connection, address))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _shake_hands(self, connection: socket.socket, address: str) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except (OSError, ssl.SSLError) as exc:
            self._complain(getattr(exc, "reason", None) or type(exc).__name__)
        finally:
            self._room.release()
            self._guests[address] -= 1
            if not self._guests[address]:
                del self._guests[address]

    def _complain(self, reason: str) -> None:
        """Once a minute: strangers must not be able to fill a disk."""
        self._turned_away += 1
        if self._loop.time() >= self._quiet_until:
            self._quiet_until = self._loop.time() + _COMPLAIN_EVERY_SECONDS
            log.warning(
                "server.turned_away", connections=self._turned_away, reason=reason
            )
            self._turned_away = 0
