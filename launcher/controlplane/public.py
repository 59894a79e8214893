"""What anybody may ask: whether the server is there, and how tokens are verified."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse


_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


async def health(_: Request) -> PlainTextResponse:
    return PlainTextResponse("ok\n", headers=_HEADERS)


def published(
    document: Callable[[], dict[str, Any]],
) -> Callable[[Request], Awaitable[JSONResponse]]:
    """An endpoint with a *document* that anybody may read."""

    async def endpoint(_: Request) -> JSONResponse:
        return JSONResponse(
            document(), headers={**_HEADERS, "Cache-Control": "public, max-age=300"}
        )

    return endpoint
