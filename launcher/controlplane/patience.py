"""
How long a request may take to arrive.

Whoever sends a byte now and then would hold a connection, and what was reserved for
the request, for ever.  So a request has a while to say what it is, and a body a while
to begin with, and more for each byte that has come.
"""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol


HEADERS_SECONDS = 30.0
"""How long the headers of a request may take."""
BODY_SECONDS = 30.0
"""How long a body may take besides what its bytes earn it, or say nothing."""
SLOWEST = 4096.0
"""Bytes a second below which a body is given up."""


class PromptProtocol(H11Protocol):
    """HTTP that hangs up on who does not get to the end of a request's headers."""

    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._between_requests():
            self._stop_expecting()
        elif self._giving_up is None:
            # Something has come, and is no whole request yet.
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_headers(self) -> None:
        self._giving_up = self.loop.call_later(HEADERS_SECONDS, self._give_up)

    def _stop_expecting(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _give_up(self) -> None:
        self._giving_up = None
        if self._between_requests():
            self.transport.close()


class Patience:
    """An ASGI application that waits for bodies of one length, but not for ever."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if {b"content-length", b"transfer-encoding"} <= {
            name for name, _ in scope["headers"]
        }:
            # A proxy before us may have gone by the other one.
            await Response(status_code=400, headers={"Connection": "close"})(
                scope, receive, send
            )
            return
        body = _Body(receive)

        async def answer(message: Message) -> None:
            if body.given_up and message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "status": 408, "headers": headers}
            await send(message)

        await self._app(scope, body.receive, answer)


class _Body:
    """What of a request is still to come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._until = asyncio.get_running_loop().time() + BODY_SECONDS
        self._complete = False
        self.given_up = False

    async def receive(self) -> Message:
        """The next piece; as if the sender had hung up when it takes too long."""
        if self._complete:
            # What comes now is that the other side hangs up, whenever it does.
            return await self._receive()
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(self._until, now + BODY_SECONDS)):
                message = await self._receive()
        except TimeoutError:
            self._complete = self.given_up = True
            return {"type": "http.disconnect"}
        self._until += len(message.get("body", b"")) / SLOWEST
        self._complete = not message.get("more_body", False)
        return message
