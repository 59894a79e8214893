"""An endpoint that does one UPDATE and nothing else: what a database allows at all."""

import sys

import sqlalchemy as sa
import uvicorn

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from launcher.controlplane.lanes import Lane
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import open_store


def main(url: str, port: int) -> None:
    store, lane = open_store(url), Lane(40)

    statement = (
        sa.update(t.jobs)
        .where(t.jobs.c.id == sa.bindparam("job"))
        .values(log_length=t.jobs.c.log_length + 1)
    )

    def update(job: str) -> None:
        with store.write() as tx:
            tx.change(statement, {"job": job})

    async def endpoint(request: Request) -> Response:
        await lane.run(update, request.path_params["job"])
        return Response()

    app = Starlette(routes=[Route("/{job}", endpoint, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, http="h11", log_level="error")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
