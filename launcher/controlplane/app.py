"""The control plane as an ASGI application: routes, and nothing that decides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from launcher.controlplane import metrics, uploads
from launcher.controlplane.cli_login import CliLogin
from launcher.controlplane.errors import StoreAway
from launcher.controlplane.graphql import GraphQL
from launcher.controlplane.identity_provider import CONFIGURATION_PATH, JWKS_PATH
from launcher.controlplane.lanes import Lanes
from launcher.controlplane.patience import Patience
from launcher.controlplane.proofs import BySignature, by_handshake
from launcher.controlplane.public import health, published
from launcher.controlplane.services import ControlPlane
from launcher.controlplane.web.site import Site
from launcher.controlplane.worker_api import WorkerApi


def make_app(plane: ControlPlane, lanes: Lanes) -> Starlette:
    """
    What people and their tools talk to, and launchers that sign their requests.

    *plane* is its maker's to open and close.
    """
    signed = BySignature(
        plane.signatures, plane.pools, plane.authority.fingerprint, lanes.workers
    )
    graphql = GraphQL(plane, lanes)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        plane.bell.hang_up()
        yield
        plane.bell.close()

    return Starlette(
        routes=[
            *WorkerApi(plane, plane.bell, lanes.workers, signed).routes(),
            Route("/graphql", graphql.post, methods=["POST"]),
            *CliLogin(plane.sign_in, lanes).routes(),
            Route("/healthz", health, methods=["GET"]),
            Route(
                CONFIGURATION_PATH,
                published(plane.identity.configuration),
                methods=["GET"],
            ),
            Route(JWKS_PATH, published(plane.identity.keys), methods=["GET"]),
            Route(
                "/metrics",
                metrics.endpoint(plane.authority, plane.pool_counts, lanes.people),
                methods=["GET"],
            ),
            Route(
                "/uploads/{workspace}",
                uploads.endpoint(plane.local_workspaces, lanes),
                methods=["PUT"],
            ),
            *Site(plane, lanes).routes(),
        ],
        exception_handlers={StoreAway: _away, ClientDisconnect: _left},
        lifespan=lifespan,
        middleware=[Middleware(Patience)],
    )


async def _left(_: Request, __: Exception) -> Response:
    """To whoever hung up, or was too slow: there is nothing to answer."""
    return Response(status_code=400)


async def _away(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(
        {"data": None, "errors": [{"message": str(error)}]},
        status_code=503,
        headers={"Cache-Control": "no-store"},
    )


def make_worker_app(plane: ControlPlane, lanes: Lanes) -> Starlette:
    """What launchers talk to that have shown a certificate in the handshake."""
    return Starlette(
        routes=WorkerApi(plane, plane.bell, lanes.workers, by_handshake).routes(),
        middleware=[Middleware(Patience)],
    )
