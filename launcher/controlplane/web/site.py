"""
The routes of the pages: who may, what is shown, and what a form does.

Every answer carries headers that forbid what a page of ours never does: scripts and
styles from anywhere else, frames, and forms to other places.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib

from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from urllib.parse import parse_qs, quote, urlsplit

import jinja2
import structlog

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from launcher.controlplane.auth import VALID_SECONDS
from launcher.controlplane.errors import (
    Forbidden,
    NotFound,
    RequestRefused,
    StoreAway,
    Unauthorized,
)
from launcher.controlplane.lanes import Lanes
from launcher.controlplane.new_runs import MAX_TARGETS
from launcher.controlplane.queries import Node
from launcher.controlplane.services import ControlPlane
from launcher.controlplane.web.ansi import plain
from launcher.controlplane.web.feed import Feed
from launcher.controlplane.web.session import Sessions, Visitor
from launcher.controlplane.web.transcript import Cursor, Part, Plain, Transcript
from launcher.controlplane.web.views import NEEDS, RunView, StackView, Views, spoken


log = structlog.get_logger()

FIRST_ROWS = 200
"""Of a log, in a page that was not asked for more."""
_FIRST_SIZE = 32 * 1024
_MAX_FORM = 256 * 1024
_STYLE = resources.files(__package__).joinpath("static/style.css").read_text("utf-8")
"""Part of every page: one that is asked for would have to be there before any paint."""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'self'; style-src 'sha256-{_STYLE_HASH}';"
        " connect-src 'self'; img-src 'self'; form-action 'self';"
        " frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not "no-referrer": then browsers do not say that a form is ours, either.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_COLOURS = {
    "allow": "finished",
    "approve": "finished",
    "deny": "failed",
    "reject": "failed",
}
"""Classes of the style sheet for outcomes of policies."""
_KINDS = {"live.js": "text/javascript"}

Page = Callable[[Request, Visitor], Awaitable[Response]]


class Site:
    """The pages of one control plane."""

    def __init__(self, plane: ControlPlane, lanes: Lanes) -> None:
        self._plane = plane
        self._lanes = lanes
        self._views = Views(
            plane.store, plane.policies, plane.approvals, plane.products
        )
        self._transcript = Transcript(plane.store)
        self._feed = Feed(self._transcript, plane.bell, lanes.viewers)
        self._sessions = Sessions(plane.sign_in, plane.form_key, plane.endpoint, lanes)
        folder = resources.files(__package__).joinpath("static")
        self._assets = {name: folder.joinpath(name).read_bytes() for name in _KINDS}
        self._jinja = _environment(
            {
                name: f"/assets/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"
                for name, content in self._assets.items()
            }
        )

    def routes(self) -> list[Route]:
        run = "/stack/{stack}/run/{run}"
        return [
            Route("/", self._page(self._stacks)),
            Route("/sign-in", self._sign_in_form, methods=["GET"]),
            Route("/sign-in", self._sign_in, methods=["POST"]),
            Route("/sign-out", self._page(self._sign_out), methods=["POST"]),
            Route("/stack/{stack}", self._page(self._stack)),
            Route(run, self._page(self._run)),
            Route(f"{run}/status", self._page(self._status)),
            Route(f"{run}/events", self._page(self._events)),
            Route(f"{run}/log.txt", self._page(self._download)),
            Route(f"{run}/sample/{{sample}}", self._page(self._sample)),
            Route(f"{run}/act", self._page(self._act), methods=["POST"]),
            Route("/worker-pools", self._page(self._pools)),
            Route("/worker-pool/{pool}", self._page(self._pool)),
            Route(
                "/worker-pool/{pool}/act",
                self._page(self._act_on_worker),
                methods=["POST"],
            ),
            Route("/assets/{name}", self._asset),
        ]

    # -- who may ------------------------------------------------------------------

    def _page(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        """*page* for those who are signed in; its refusals as pages, too."""

        async def handle(request: Request) -> Response:
            visitor = await self._sessions.visitor(request)
            if visitor is None:
                return self._ask_to_sign_in(request)
            try:
                return await page(request, visitor)
            except RequestRefused as exc:
                return self._problem(request, visitor, exc, _status_of(exc))

        return handle

    def _ask_to_sign_in(self, request: Request) -> Response:
        if request.method != "GET" or _wants_no_page(request):
            return self._rendered("sign_in.html", 401, next="/", refused="")
        target = request.url.path
        if request.url.query:
            target += f"?{request.url.query}"
        return self._rendered("sign_in.html", 401, next=target, refused="")

    async def _sign_in_form(self, request: Request) -> Response:
        return self._rendered("sign_in.html", next="/", refused="")

    async def _sign_in(self, request: Request) -> Response:
        form = await _form(request)
        target = _local(form.get("next", "/"))
        try:
            self._sessions.check_origin(request)
            response = RedirectResponse(target, 303, headers=_HEADERS)
            key, secret = form.get("key", ""), form.get("secret", "")
            await self._sessions.begin(response, key, secret)
        except Unauthorized:
            sentence = "There is no such API key, or this is not its secret."
            return self._rendered("sign_in.html", 401, next=target, refused=sentence)
        except RequestRefused as exc:
            return self._problem(request, None, exc, 403)
        return response

    async def _sign_out(self, request: Request, visitor: Visitor) -> Response:
        form = await _form(request)
        self._sessions.check_form(request, visitor, form.get("word", ""))
        response = RedirectResponse("/sign-in", 303, headers=_HEADERS)
        self._sessions.end(response)
        return response

    # -- pages ----------------------------------------------------------------------

    async def _stacks(self, request: Request, visitor: Visitor) -> Response:
        stacks = await self._lanes.people.run(self._plane.queries.stacks)
        return self._rendered("stacks.html", visitor=visitor, stacks=stacks)

    async def _stack(self, request: Request, visitor: Visitor) -> Response:
        slug, before = request.path_params["stack"], request.query_params.get("before")

        def read() -> tuple[StackView, list[Node], Node]:
            view = self._views.stack(slug, before)
            return view, self._plane.products.outputs(slug), self._named(slug)

        view, outputs, stack = await self._lanes.people.run(read)
        return self._rendered(
            "stack.html", visitor=visitor, view=view, outputs=outputs, stack=stack
        )

    async def _run(self, request: Request, visitor: Visitor) -> Response:
        slug, run = request.path_params["stack"], request.path_params["run"]
        cursor = _cursor(request)

        def read() -> tuple[RunView, Part, Node]:
            view = self._views.run(slug, run, visitor.actor)
            part = self._transcript.part(run, cursor, rows=FIRST_ROWS, size=_FIRST_SIZE)
            return view, part, self._named(slug)

        view, part, stack = await self._lanes.people.run(read)
        return self._rendered(
            "run.html", visitor=visitor, view=view, part=part, stack=stack
        )

    async def _status(self, request: Request, visitor: Visitor) -> Response:
        slug, run = request.path_params["stack"], request.path_params["run"]
        # All who watch ask for it when the run moves.
        view = await self._lanes.viewers.run(self._views.run, slug, run, visitor.actor)
        return self._rendered("status.html", visitor=visitor, view=view)

    async def _events(self, request: Request, visitor: Visitor) -> Response:
        slug, run = request.path_params["stack"], request.path_params["run"]
        await self._lanes.viewers.run(self._views.run, slug, run, visitor.actor)
        # A browser that comes back tells us what it has seen; the address does not.
        seen = request.headers.get("Last-Event-ID")
        cursor = Cursor.parse(seen) if seen else _cursor(request)
        until = asyncio.get_running_loop().time() + VALID_SECONDS
        return StreamingResponse(
            self._feed.stream(run, cursor, until),
            media_type="text/event-stream",
            headers={**_HEADERS, "X-Accel-Buffering": "no"},
        )

    async def _download(self, request: Request, visitor: Visitor) -> Response:
        slug, run = request.path_params["stack"], request.path_params["run"]
        await self._lanes.people.run(self._views.run, slug, run, visitor.actor)
        return StreamingResponse(
            self._text(run),
            media_type="text/plain; charset=utf-8",
            headers={
                **_HEADERS,
                "Content-Disposition": f'attachment; filename="{run}.txt"',
            },
        )

    async def _text(self, run: str) -> AsyncIterator[str]:
        cursor = Cursor()
        while True:
            part = await self._lanes.viewers.run(
                self._transcript.part, run, cursor, Plain
            )
            yield "".join(part.rows)
            cursor = part.following
            if part.caught_up:
                yield part.begun
                return

    async def _sample(self, request: Request, visitor: Visitor) -> Response:
        slug, run = request.path_params["stack"], request.path_params["run"]
        sample = await self._lanes.people.run(
            self._views.sample, slug, run, request.path_params["sample"]
        )
        return self._rendered(
            "sample.html", visitor=visitor, sample=sample, stack=slug, run=run
        )

    async def _pools(self, request: Request, visitor: Visitor) -> Response:
        pools = await self._lanes.people.run(self._plane.queries.pools)
        return self._rendered("pools.html", visitor=visitor, pools=pools)

    async def _pool(self, request: Request, visitor: Visitor) -> Response:
        name = request.path_params["pool"]
        pool = await self._lanes.people.run(self._plane.queries.pool, name)
        if pool is None:
            raise NotFound("there is no such worker pool")
        queue = await self._lanes.people.run(self._views.queue, name)
        return self._rendered("pool.html", visitor=visitor, pool=pool, queue=queue)

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._assets:
            return Response("not found\n", 404, headers=_HEADERS)
        headers = {**_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self._assets[name], media_type=_KINDS[name], headers=headers)

    # -- what a form does -------------------------------------------------------------

    async def _act(self, request: Request, visitor: Visitor) -> Response:
        slug, run = request.path_params["stack"], request.path_params["run"]
        fields = await _fields(request, most=MAX_TARGETS + 10)
        form = _last(fields)
        self._sessions.check_form(request, visitor, form.get("word", ""))
        action = form.get("action", "")
        if action not in NEEDS:
            raise RequestRefused("nothing of that name can be done with a run")
        await self._permit(visitor, NEEDS[action])
        runs, note = self._plane.runs, form.get("note", "").strip()
        actor, lane = visitor.actor, self._lanes.people
        match action:
            case "confirm":
                await lane.run(runs.confirm, slug, run, actor, metadata=note or None)
            case "discard":
                await lane.run(runs.discard, slug, run, actor, note=note)
            case "cancel":
                await lane.run(runs.cancel, slug, run, actor, note=note)
            case "stop":
                await lane.run(runs.stop, slug, run, actor, note=note)
            case "replan":
                await lane.run(runs.replan, slug, run, actor, _targets(fields))
            case "approve" | "reject":
                await lane.run(
                    self._plane.approvals.review,
                    slug,
                    run,
                    actor,
                    approves=action == "approve",
                    note=note,
                )
            case _:
                raise NotImplementedError(action)
        return RedirectResponse(f"/stack/{slug}/run/{run}", 303, headers=_HEADERS)

    async def _permit(self, visitor: Visitor, what: str) -> None:
        if not visitor.actor.may(what):
            await self._lanes.people.run(
                self._plane.refusals.refuse, visitor.actor, what
            )

    async def _act_on_worker(self, request: Request, visitor: Visitor) -> Response:
        pool = request.path_params["pool"]
        form = await _form(request)
        self._sessions.check_form(request, visitor, form.get("word", ""))
        drained = {"drain": True, "undrain": False}.get(form.get("action", ""))
        if drained is None:
            raise RequestRefused("nothing of that name can be done with a worker")
        await self._permit(visitor, "workerDrainSet")
        await self._lanes.people.run(
            self._plane.worker_admin.drain,
            pool,
            form.get("worker", ""),
            visitor.actor,
            drained=drained,
        )
        target = f"/worker-pool/{quote(pool, safe='')}"
        return RedirectResponse(target, 303, headers=_HEADERS)

    # -- how it is shown ---------------------------------------------------------------

    def _named(self, slug: str) -> Node:
        stack = self._plane.queries.stack(slug)
        if stack is None:
            raise NotFound("there is no such stack")
        return stack

    def _problem(
        self, request: Request, visitor: Visitor | None, exc: Exception, status: int
    ) -> Response:
        path = request.url.path
        back = path.removesuffix("/act") if path.endswith("/act") else "/"
        return self._rendered(
            "problem.html", status, visitor=visitor, problem=str(exc), back=back
        )

    def _rendered(self, template: str, status: int = 200, **given: object) -> Response:
        html = self._jinja.get_template(template).render(
            {"visitor": None, "account": self._plane.account, **given}
        )
        return Response(html, status, headers=_HEADERS, media_type="text/html")


def _environment(assets: dict[str, str]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = assets.__getitem__
    environment.globals["style"] = _STYLE
    environment.filters["line"] = plain
    environment.filters["lines"] = lambda text: "\n".join(
        map(plain, str(text).split("\n"))
    )
    environment.filters["moment"] = lambda time: f"{time:%Y-%m-%d %H:%M:%S} UTC"
    environment.filters["spoken"] = spoken
    environment.filters["verdict"] = lambda outcome: _COLOURS.get(outcome, "")
    return environment


def _status_of(refusal: RequestRefused) -> int:
    match refusal:
        case NotFound():
            return 404
        case Forbidden():
            return 403
        case StoreAway():
            return 503
        case _:
            return 400


def _cursor(request: Request) -> Cursor:
    text = request.query_params.get("after")
    return Cursor.parse(text) if text else Cursor()


def _wants_no_page(request: Request) -> bool:
    return request.url.path.endswith(("/events", "/status", "/log.txt"))


def _local(target: str) -> str:
    """A path of ours, whatever somebody has made of the address."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not target.startswith("/"):
        return "/"
    # Browsers read a backslash as a slash, and two of them as another host.
    return "/" if target[1:2] in {"/", "\\"} else target


async def _form(request: Request) -> dict[str, str]:
    """
    The fields of a form; of those with one name, the last.

    Raises:
        RequestRefused: it is too large, or no form.
    """
    return _last(await _fields(request, most=20))


async def _fields(request: Request, most: int) -> dict[str, list[str]]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM:
            raise RequestRefused(f"a form has at most {_MAX_FORM} bytes")
    try:
        return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=most)
    except ValueError:
        raise RequestRefused("this is not a form") from None


def _last(fields: dict[str, list[str]]) -> dict[str, str]:
    return {name: values[-1] for name, values in fields.items()}


def _targets(fields: dict[str, list[str]]) -> list[str]:
    """Addresses that were ticked, and those that were written, one in each line."""
    written = "\n".join(fields.get("targets", ())).splitlines()
    return [*fields.get("target", ()), *filter(None, map(str.strip, written))]
