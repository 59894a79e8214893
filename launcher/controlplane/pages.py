"""What anybody sees: how to look at a run, and what clouds verify tokens with."""

from __future__ import annotations

import html
import re

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse


_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


async def run_page(request: Request) -> HTMLResponse:
    """Say which command shows a run; holds no data, so it needs no sign-in."""
    stack, run = request.path_params["stack"], request.path_params["run"]
    if not (_ID.fullmatch(stack) and _ID.fullmatch(run)):
        return HTMLResponse("<!doctype html><p>Not found", 404, headers=_HEADERS)
    command = html.escape(f"spacectl stack logs --id {stack} --run {run}")
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>Run {html.escape(run)}</title>"
        f"<p>To see this run, use:<pre>{command}</pre></html>",
        headers=_HEADERS,
    )


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
