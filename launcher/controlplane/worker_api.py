"""
The worker protocol over HTTP: routes, authentication, sizes, and status codes.

What the requests mean is decided in the services; this module
only waits, because waiting must not occupy a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol, TypeVar

import msgspec
import structlog

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from launcher.controlplane import bell, log_chunks
from launcher.controlplane.bell import Bell, Listener
from launcher.controlplane.claims import Claims, Look
from launcher.controlplane.errors import StoreAway, WorkerRefused
from launcher.controlplane.lanes import Lane
from launcher.controlplane.local_workspaces import LocalWorkspaces
from launcher.controlplane.pools import Pools
from launcher.controlplane.products import Products
from launcher.controlplane.proofs import Prover, require_signed
from launcher.controlplane.reports import Reports
from launcher.controlplane.run_tokens import RunTokens
from launcher.controlplane.settling import Settling
from launcher.controlplane.stored_workspaces import StoredWorkspaces
from launcher.wire.messages import (
    CHECKSUM_HEADER,
    ENCODING_HEADER,
    MAX_LOG_CHUNK,
    MAX_WORKSPACE_PART,
    PREFIX,
    PROTOCOL_VERSION,
    SOURCE_TYPE,
    TOKEN_HEADER,
    VERSION_HEADER,
    CertificateIssued,
    CertificateRequest,
    Claimed,
    ClaimRequest,
    ErrorCode,
    Failure,
    LogAck,
    OutputsReport,
    PlanReport,
    Poll,
    Polled,
    Registered,
    Registration,
    Settlement,
    StateReport,
    WorkspacePart,
    WorkspaceUploaded,
)
from launcher.wire.signatures.profile import SignatureRefused


log = structlog.get_logger()
T = TypeVar("T")

POLL_SECONDS = 50.0
"""How long a poll is held, at most: proxies end what is silent for a minute."""
LOOK_AGAIN_SECONDS = 2.0
"""How often a poll looks although nobody rang: an offer may be free again."""
LOOKS_PER_SECOND = 2.0
"""How often all polls of a pool look although nobody rang, at most."""
_MOST_KNOWN = 10_000
MAX_BODY = 64 * 1024
MAX_PLAN = 16 * 1024 * 1024

STATUS = {
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.UNKNOWN_WORKER: 404,
    ErrorCode.UNKNOWN_JOB: 404,
    ErrorCode.TAKEN: 409,
    ErrorCode.STALE_TOKEN: 409,
    ErrorCode.WRONG_OFFSET: 409,
    ErrorCode.WRONG_STATE: 409,
    ErrorCode.WRONG_CHECKSUM: 422,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.MALFORMED: 400,
    ErrorCode.WRONG_VERSION: 400,
    ErrorCode.WRONG_KEY: 403,
}
Handler = Callable[[Request], Awaitable[Response]]


class _File(FileResponse):
    """In pieces that are worth a trip to another thread."""

    chunk_size = 1 << 20


class WorkerServices(Protocol):
    """What launchers are served by."""

    pools: Pools
    claims: Claims
    reports: Reports
    products: Products
    settling: Settling
    workspaces: StoredWorkspaces
    tokens: RunTokens
    local_workspaces: LocalWorkspaces


class WorkerApi:
    """The endpoints below ``/worker/v1``."""

    def __init__(
        self, services: WorkerServices, listening: Bell, lane: Lane, prover: Prover
    ) -> None:
        self._prove = prover
        self._pools = services.pools
        self._claims = services.claims
        self._reports = services.reports
        self._products = services.products
        self._settling = services.settling
        self._workspaces = services.workspaces
        self._tokens = services.tokens
        self._uploads = services.local_workspaces
        self._bell = listening
        self._lane = lane
        self._polls: dict[str, Callable[[], None]] = {}
        self._known: dict[str, bytes | None] = {}
        """Workers that have come, and with which certificate."""

    def routes(self) -> list[Route]:
        return [
            _route("POST", "/certificate", self.certify),
            _route("POST", "/workers", self.register),
            _route("POST", "/workers/{worker}/poll", self.poll),
            _route("POST", "/jobs/{job}/claim", self.claim),
            _route("POST", "/jobs/{job}/renew", self.renew),
            _route("POST", "/jobs/{job}/state", self.state),
            _route("POST", "/jobs/{job}/plan", self.plan),
            _route("POST", "/jobs/{job}/tokens", self.tokens),
            _route("POST", "/jobs/{job}/outputs", self.outputs),
            _route("POST", "/jobs/{job}/settle", self.settle),
            _route("PUT", "/jobs/{job}/log", self.append_log),
            _route("PUT", "/jobs/{job}/workspace", self.put_workspace),
            _route("POST", "/jobs/{job}/workspace", self.finish_workspace),
            _route("POST", "/jobs/{job}/workspace/part", self.place_workspace),
            _route("GET", "/jobs/{job}/workspace", self.get_workspace),
            _route("GET", "/jobs/{job}/source", self.get_source),
        ]

    async def certify(self, request: Request) -> Response:
        pool = await self._pool(request)
        wanted = await _parsed(request, CertificateRequest)
        certificate = await self._lane.run(self._pools.certify, pool, wanted.csr)
        return _json(CertificateIssued(certificate=certificate))

    async def register(self, request: Request) -> Response:
        pool = await self._pool(request)
        registration = await _parsed(request, Registration)
        if not 0 <= registration.slot < 1 << 31:
            raise _malformed("slot is not a number that a launcher has")
        worker = await self._lane.run(self._pools.register, pool, registration)
        return _json(Registered(worker=worker, poll_seconds=POLL_SECONDS))

    async def poll(self, request: Request) -> Response:
        certificate, worker = await self._prove(request), request.path_params["worker"]
        pool = await self._arrived(certificate, worker)
        poll = await _parsed(request, Poll)
        seconds = min(max(poll.wait_seconds, 0.0), POLL_SECONDS)
        with (
            self._hearing(pool, worker) as ears,
            self._claims.waiting(pool, worker),
        ):
            async with self._only_poll(request, worker, ears.rung) as superseded:
                until = time.monotonic() + seconds
                with self._telling_refused(bell.of_work(pool), worker):
                    look = await self._lane.run(self._look, certificate, worker)
                while not superseded.is_set():
                    polled = look.polled
                    chosen = look.takes_part and polled.offer is None
                    ears.rank = worker if chosen else ""
                    if look.others_should:
                        self._bell.ring([bell.of_work(pool)])
                    left = until - time.monotonic()
                    if polled != Polled() or left <= 0 or self._bell.closed:
                        return _json(polled)
                    waiting = self._bell.listening_to(bell.of_pool(pool))
                    rung = await ears.wait(min(left, look_again_seconds(waiting)))
                    if not rung and time.monotonic() >= until:
                        break  # there is nothing new, and the next poll looks again
                    with self._telling_refused(bell.of_pool(pool), worker):
                        look = await self._lane.run(self._look, certificate, worker)
                if superseded.is_set():
                    # What it has found, or was rung for, is another's.
                    if look.polled.offer is not None:
                        self._claims.take_back(look.polled.offer)
                    self._bell.ring([bell.of_work(pool)])
        return _json(Polled())

    async def _arrived(self, certificate: bytes | None, worker: str) -> str:
        """
        The pool of a *worker* that may wait for it.

        One that has come before with this certificate is believed until it looks: one
        trip to a thread is cheaper than two.  Nobody else is: whoever waits holds up
        those that rank below.
        """
        pool = self._pools.named_by(certificate)
        if self._known.get(worker) != certificate:
            # If the pool was reset, one of those that wait finds out and tells them.
            with self._telling_refused(bell.of_work(pool), worker):
                await self._lane.run(self._pools.arrive, certificate, worker)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[worker] = certificate
        return pool

    def _look(self, certificate: bytes | None, worker: str) -> Look:
        # Each time anew: a pool may be reset while its workers wait.
        pool, standing = self._pools.arrive(certificate, worker)
        return self._claims.poll(pool, worker, standing)

    @contextmanager
    def _hearing(self, pool: str, worker: str) -> Iterator[Listener]:
        """Hear what is rung for *worker*; leave no ring for one unheard."""
        work, everybody = bell.of_work(pool), bell.of_pool(pool)
        with self._bell.listening(work, everybody, rank=worker) as ears:
            try:
                yield ears
            except BaseException:
                ears.rung.set()  # what it has heard, it has not looked at
                raise
            finally:
                ears.rank = ""
                if ears.rung.is_set():
                    self._bell.ring([work])

    @contextmanager
    def _telling_refused(self, topic: str, worker: str) -> Iterator[None]:
        """Let others look, too, when *worker* is refused, and believe it no more."""
        try:
            yield
        except WorkerRefused:
            self._known.pop(worker, None)
            self._bell.ring([topic])
            raise

    async def claim(self, request: Request) -> Response:
        certificate, job = await self._prove(request), request.path_params["job"]
        # A short one, of somebody with a certificate of ours: read before it is known
        # whether that still counts, since one trip to a thread is cheaper than two.
        claim = await _parsed(request, ClaimRequest)
        if len(claim.claim) > 255:
            raise _malformed("claim is too long")

        def take() -> Claimed:
            pool = self._pools.authenticate(certificate)
            return self._claims.claim(pool, job, claim)

        return _json(await self._lane.run(take))

    async def renew(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        return _json(await self._lane.run(self._claims.renew, pool, job, token))

    async def state(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        report = await _parsed(request, StateReport)
        if report.log_offset < 0:
            raise _malformed("log_offset is negative")
        return _json(
            await self._lane.run(self._reports.state, pool, job, token, report)
        )

    async def plan(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        report = await _parsed(request, PlanReport, MAX_PLAN)
        return _json(await self._lane.run(self._reports.plan, pool, job, token, report))

    async def tokens(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        return _json(await self._lane.run(self._tokens.fresh, pool, job, token))

    async def outputs(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        report = await _parsed(request, OutputsReport, MAX_PLAN)
        return _json(
            await self._lane.run(self._products.report, pool, job, token, report)
        )

    async def settle(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        settlement = await _parsed(request, Settlement)
        return _json(
            await self._lane.run(self._settling.settle, pool, job, token, settlement)
        )

    async def append_log(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        offset = _offset(request)
        body = await _body(request, MAX_LOG_CHUNK)
        encoding = request.headers.get(ENCODING_HEADER)
        checksum = request.headers.get(CHECKSUM_HEADER)

        def append() -> LogAck:
            part = log_chunks.arrived(body, encoding, checksum)
            return self._reports.append(pool, job, token, offset, part)

        return _json(await self._lane.run(append))

    async def put_workspace(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        upload, offset = request.query_params.get("upload", ""), _offset(request)
        if not 0 < len(upload) <= 64:
            raise _malformed("upload is missing, or too long")
        data = await _body(request, MAX_WORKSPACE_PART)
        append, about = self._workspaces.append, (pool, job, token)
        return _json(
            await self._lane.run(append, *about, data, to=upload, offset=offset)
        )

    async def finish_workspace(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        uploaded = await _parsed(request, WorkspaceUploaded)
        if uploaded.size < 1:
            raise _malformed("a workspace has at least one byte")
        return _json(
            await self._lane.run(self._workspaces.finish, pool, job, token, uploaded)
        )

    async def place_workspace(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        part = await _parsed(request, WorkspacePart)
        if not (
            0 < len(part.upload) <= 64
            and part.offset >= 0
            and 0 < part.size <= MAX_WORKSPACE_PART
            and re.fullmatch("[0-9a-f]{64}", part.sha256)
        ):
            raise _malformed("this is not a part of a workspace")
        place = self._workspaces.place
        return _json(await self._lane.run(place, pool, job, token, part))

    async def get_workspace(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        found = await self._lane.run(self._workspaces.find, pool, job, token)
        if SOURCE_TYPE in request.headers.get("Accept", ""):
            source = await self._lane.run(self._workspaces.source, found)
            if source is not None:
                return _json(source, media_type=SOURCE_TYPE)
        first, last = _range(request, found.size)
        whole = "Range" not in request.headers
        place = {"Content-Range": f"bytes {first}-{last}/{found.size}"}
        return StreamingResponse(
            self._workspaces.read(found, first, last),
            status_code=200 if whole else 206,
            headers={
                **({} if whole else place),
                CHECKSUM_HEADER: found.sha256,
                "Accept-Ranges": "bytes",
                "Cache-Control": "no-store",
                "Content-Length": str(last + 1 - first),
            },
            media_type="application/octet-stream",
        )

    async def get_source(self, request: Request) -> Response:
        pool, job, token = await self._holder(request)
        path, sha256 = await self._lane.run(self._uploads.find, pool, job, token)
        return _File(
            path,
            headers={CHECKSUM_HEADER: sha256, "Cache-Control": "no-store"},
            media_type="application/gzip",
        )

    async def _pool(self, request: Request) -> str:
        """Who asks; found out before a body is read."""
        certificate = await self._prove(request)
        return await self._lane.run(self._pools.authenticate, certificate)

    async def _holder(self, request: Request) -> tuple[str, str, str]:
        """Pool, job and token of a request about a claimed job."""
        pool = await self._pool(request)
        token = request.headers.get(TOKEN_HEADER)
        if not token:
            raise _malformed(f"header {TOKEN_HEADER} is missing")
        return pool, request.path_params["job"], token

    @asynccontextmanager
    async def _only_poll(
        self, request: Request, worker: str, rung: asyncio.Event
    ) -> AsyncIterator[asyncio.Event]:
        """
        End an older poll of the same worker, and this one when its caller leaves.

        A job that is offered to nobody would be lost for some seconds.
        """
        superseded = asyncio.Event()

        def end() -> None:
            superseded.set()
            rung.set()

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            end()

        if worker in self._polls:
            self._polls[worker]()
        self._polls[worker] = end

        watcher = asyncio.create_task(watch())
        try:
            yield superseded
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            if self._polls.get(worker) is end:
                del self._polls[worker]


def look_again_seconds(waiting: int) -> float:
    """How long one of so many polls waits for a ring before it looks again."""
    return max(LOOK_AGAIN_SECONDS, waiting / LOOKS_PER_SECOND)


def _route(method: str, path: str, handler: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            _check_version(request)
            response = await handler(request)
        except WorkerRefused as exc:
            response = _failure(exc)
        except SignatureRefused as exc:
            response = _not_proven(exc)
        except StoreAway as exc:
            failure = Failure(code="unavailable", message=str(exc))
            response = _json(failure, status=503)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception:
            log.exception("request.crashed", path=request.url.path)
            failure = Failure(code="internal_error", message="internal error")
            response = _json(failure, status=500)
        response.headers[VERSION_HEADER] = str(PROTOCOL_VERSION)
        return response

    return Route(PREFIX + path, endpoint, methods=[method])


def _check_version(request: Request) -> None:
    # A neighbouring version is understood: see docs/protocol.md.
    text = request.headers.get(VERSION_HEADER, "")
    known = {str(PROTOCOL_VERSION + step) for step in (-1, 0, 1)} - {"0"}
    if text not in known:
        raise WorkerRefused(
            ErrorCode.WRONG_VERSION,
            f"this control plane speaks version {PROTOCOL_VERSION} of the protocol",
        )


def _failure(refusal: WorkerRefused) -> Response:
    failure = Failure(
        code=refusal.error_code, message=str(refusal), next_offset=refusal.next_offset
    )
    return _json(failure, status=STATUS[refusal.error_code])


def _not_proven(refusal: SignatureRefused) -> Response:
    failure = Failure(
        code=refusal.reason, message=str(refusal), seconds=refusal.seconds
    )
    return _json(failure, status=503 if refusal.passing else 401)


def _json(
    answer: msgspec.Struct, *, status: int = 200, media_type: str = "application/json"
) -> Response:
    return Response(
        msgspec.json.encode(answer),
        status_code=status,
        media_type=media_type,
        headers={"Cache-Control": "no-store"},
    )


async def _parsed(request: Request, kind: type[T], limit: int = MAX_BODY) -> T:
    try:
        return msgspec.json.decode(await _body(request, limit), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise _malformed(str(exc)) from exc


async def _body(request: Request, limit: int) -> bytes:
    announced = request.headers.get("Content-Length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise _too_large(limit)
    require_signed(request, bytes(body))
    return bytes(body)


def _offset(request: Request) -> int:
    text = request.query_params.get("offset", "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise _malformed("offset is missing, or not a number")
    return int(text)


def _range(request: Request, size: int) -> tuple[int, int]:
    """The first and the last byte that are asked for."""
    text = request.headers.get("Range", "bytes=0-")
    wanted = re.fullmatch(r"bytes=([0-9]{1,15})-([0-9]{0,15})", text)
    if wanted is None:
        raise _malformed("Range is not one range of bytes, from one to another")
    first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
    if first > last:
        raise _malformed(f"the workspace has {size} bytes; these are not there")
    return first, last


def _too_large(limit: int) -> WorkerRefused:
    return WorkerRefused(ErrorCode.TOO_LARGE, f"a body has at most {limit} bytes here")


def _malformed(sentence: str) -> WorkerRefused:
    return WorkerRefused(ErrorCode.MALFORMED, sentence)
