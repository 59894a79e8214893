"""The server process: its socket, its signals, and its end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import uvicorn

from starlette.concurrency import run_in_threadpool

from launcher.controlplane import desired_state
from launcher.controlplane.app import make_app
from launcher.controlplane.services import ControlPlane, Limits, control_plane
from launcher.errors import AddressInUse, ConfigurationError, LauncherError


log = structlog.get_logger()

STOP_SECONDS = 2
"""How long requests in progress may take at the end; waits end at once."""
_MAX_HEADERS = 192 * 1024
"""Room for 64 KiB of run metadata, so that too much of it gets a clear answer."""


def serve(
    config: Path, database_url: str, listen: str, *, limits: Limits | None = None
) -> None:
    """
    Run the control plane until SIGTERM or SIGINT; SIGHUP reads *config* again.

    Raises:
        ConfigurationError: *config* or *listen* is wrong.
        StoreUnusable: the database or the data directory cannot be used.
        AddressInUse: somebody else listens there.
    """
    desired = desired_state.load(config, os.environ)
    with bound(listen) as listener:
        host, port = listener.getsockname()[:2]
        endpoint = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        with control_plane(
            desired, database_url, endpoint=endpoint, environ=os.environ, limits=limits
        ) as plane:
            asyncio.run(_run(plane, listener, config))


class Server(uvicorn.Server):
    """uvicorn without signals of its own, and with waits that end with it."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(plane),
                access_log=False,
                h11_max_incomplete_event_size=_MAX_HEADERS,
                lifespan="on",
                log_config=None,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_SECONDS,
                ws="none",
            )
        )
        self._plane = plane

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = (sockets or [])[0].getsockname()[:2]
        log.info(
            "server.listening", host=host, port=port, endpoint=self._plane.endpoint
        )

    def stop(self) -> None:
        """Begin to end; call it in the event loop's thread."""
        log.info("server.stopping")
        self.should_exit = True
        self._plane.bell.close()


async def _run(plane: ControlPlane, listener: socket.socket, config: Path) -> None:
    server = Server(plane)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    reloading: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(run_in_threadpool(_apply_again, plane, config))
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    await server.serve(sockets=[listener])
    log.info("server.stopped")


def _apply_again(plane: ControlPlane, config: Path) -> None:
    try:
        desired = desired_state.load(config, os.environ)
        if desired.endpoint and desired.endpoint != plane.endpoint:
            log.warning("endpoint.not_changed", until="the next start")
        plane.apply(desired)
    except LauncherError as exc:
        log.error("configuration.refused", error=str(exc), details=exc.details)  # noqa: TRY400
    except Exception:
        log.exception("configuration.refused")


@contextmanager
def bound(listen: str) -> Iterator[socket.socket]:
    """
    A socket at *listen*, such as ``127.0.0.1:8080``; port 0 takes a free one.

    Raises:
        ConfigurationError: it is not an address, or others could reach it.
        AddressInUse: somebody else listens there.
    """
    host, port = _address(listen)
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    # Without the protocol asyncio leaves Nagle on: 40 ms for every answer.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((str(host), port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise AddressInUse(f"somebody else listens at {listen}") from exc
            raise ConfigurationError(f"cannot listen at {listen}: {exc}") from exc
        yield listener


def _address(listen: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    host, _, port = listen.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
        number = int(port)
        if not 0 <= number <= 65535:
            raise ValueError  # noqa: TRY301
    except ValueError:
        raise ConfigurationError(
            f"{listen!r} is not an address to listen at, such as 127.0.0.1:8080"
        ) from None
    if not address.is_loopback:
        raise ConfigurationError(
            f"{listen} can be reached from outside, and there is no TLS yet: "
            "listen at 127.0.0.1 and put a proxy with TLS in front"
        )
    return address, number
