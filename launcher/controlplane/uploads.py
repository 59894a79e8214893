"""Where people's tools put archives: ``PUT /uploads/{workspace}?token=…``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from launcher.controlplane.errors import UploadRefused
from launcher.controlplane.lanes import Lanes
from launcher.controlplane.local_workspaces import LocalWorkspaces


def endpoint(
    workspaces: LocalWorkspaces, lanes: Lanes
) -> Callable[[Request], Awaitable[Response]]:
    """The handler of uploads; who knows the address needs no sign-in."""

    async def put(request: Request) -> Response:
        workspace = request.path_params["workspace"]
        token = request.query_params.get("token", "")
        try:
            await workspaces.receive(workspace, token, request.stream(), lanes.people)
        except UploadRefused as exc:
            return PlainTextResponse(f"{exc}\n", exc.status)
        except ClientDisconnect:
            return Response(status_code=400)
        return PlainTextResponse("stored\n", 201)

    return put
