"""The server process: its two listeners, its signals, and its end."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import os
import signal
import socket
import ssl

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import structlog
import uvicorn

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from launcher.cancel import CancelToken
from launcher.controlplane import desired_state
from launcher.controlplane.app import make_app, make_worker_app
from launcher.controlplane.client_certificates import TlsProtocol
from launcher.controlplane.differences import differences
from launcher.controlplane.doorkeeper import Doorkeeper
from launcher.controlplane.lanes import Lanes
from launcher.controlplane.patience import PromptProtocol
from launcher.controlplane.policy_engine import compiled
from launcher.controlplane.services import ControlPlane, Limits, control_plane
from launcher.errors import AddressUnavailable, ConfigurationError, LauncherError
from launcher.heartbeat import Heart, beat, tended, watched
from launcher.memory import share
from launcher.systemd import supervisor


log = structlog.get_logger()

STOP_SECONDS = 2
"""How long requests in progress may take at the end; waits end at once."""
_KEEP_ALIVE_SECONDS = 75
"""Longer than a launcher is silent, which would cost it a handshake each time."""
_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_COMPLAIN_EVERY_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_ARENAS = 2
_REQUESTS_SECONDS = 180.0
"""How long workers may be kept from having a request answered."""
_MAX_HEADERS = 192 * 1024
"""Room for 64 KiB of run metadata, so that too much of it gets a clear answer."""
_NEW_OBJECTS = 20_000
"""After so many the garbage collector looks for circles among them."""


def serve(
    config: Path,
    database_url: str,
    listen: str,
    listen_workers: str,
    *,
    behind_proxy: bool = False,
    limits: Limits | None = None,
) -> None:
    """
    Run the control plane until SIGTERM or SIGINT; SIGHUP reads *config* again.

    *behind_proxy* promises that TLS ends in front of *listen*, which then may be any
    address, and that the configured endpoint is there.

    Raises:
        ConfigurationError: *config* or an address is wrong.
        StoreUnusable: the database or the data directory cannot be used.
        AddressUnavailable: somebody else listens there, or the machine has no
            such address yet.
    """
    share(_ARENAS)
    desired, heart = desired_state.load(config, os.environ), Heart()
    if behind_proxy and not (desired.endpoint or "").startswith("https://"):
        raise ConfigurationError(
            "--behind-proxy needs the https URL of that proxy as `endpoint` in the"
            " configuration"
        )
    with (
        heart.listening(),
        bound(listen, with_tls=behind_proxy) as people,
        bound(listen_workers, with_tls=True) as workers,
        control_plane(
            desired,
            database_url,
            endpoint=address_of(people, "http"),
            environ=os.environ,
            limits=limits,
        ) as plane,
        asyncio.Runner(loop_factory=Loop) as runner,
    ):
        servers = Servers(plane, people, workers)
        with tended(
            supervisor(os.environ),
            heart,
            up=servers.up,
            drain=servers.ending,
            say=servers.saying,
        ):
            _collect_seldom()
            runner.run(_run(servers, config))


def _collect_seldom() -> None:
    """Spend less on looking for garbage: what there is by now stays."""
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


def dry_run(config: Path, database_url: str) -> list[str]:
    """
    What `serve` would change in the database when it applies *config*.

    Raises: as `serve`.
    """
    desired = desired_state.load(config, os.environ)
    return differences(desired, database_url, compiled)


class Loop(asyncio.SelectorEventLoop):
    """
    An event loop for strangers.

    It has a doorkeeper where a handshake comes first, and says only now and then that
    no more connections can be taken, where asyncio fills a disk with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = 0.0

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        match context:
            case {"socket": _, "exception": OSError(errno=number) as error} if (
                number in _OUT_OF_FILES
            ):
                if self.time() >= self._quiet_until:
                    self._quiet_until = self.time() + _COMPLAIN_EVERY_SECONDS
                    log.error("server.crowded", error=error.strerror)
            case _:
                super().call_exception_handler(context)

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        *args: Any,  # noqa: ANN401
        **given: Any,  # noqa: ANN401
    ) -> asyncio.Server | Doorkeeper:
        if (context := given.get("ssl")) is not None:
            return Doorkeeper(given["sock"], protocol_factory, context)
        return await super().create_server(protocol_factory, *args, **given)


class Servers:
    """The control plane's two listeners: for people and tools, and for launchers."""

    def __init__(
        self, plane: ControlPlane, people: socket.socket, workers: socket.socket
    ) -> None:
        self.plane = plane
        self.up, self.ending = CancelToken(), CancelToken()
        lanes = self._lanes = Lanes()
        self._presented = self._certificate_files()
        self._context = plane.authority.server_context()
        self._people = _Server(make_app(plane, lanes), lifespan="on")
        self._workers = _Server(make_worker_app(plane, lanes), context=self._context)
        self._sockets = people, workers

    @property
    def started(self) -> bool:
        """Whether both listeners answer."""
        return self._people.started and self._workers.started

    def saying(self) -> str:
        """What the server is doing, in a few words."""
        if self.ending.cancelled:
            return "ending"
        return f"serving {self.plane.endpoint}" if self.up.cancelled else "starting"

    async def serve(self) -> None:
        """Answer until `stop`; log ``server.listening`` once both do."""
        people, workers = self._sockets
        async with asyncio.TaskGroup() as tasks:
            serving = [
                tasks.create_task(self._people.serve(sockets=[people])),
                tasks.create_task(self._workers.serve(sockets=[workers])),
            ]
            beside = [
                tasks.create_task(self._watch_certificate()),
                tasks.create_task(self._beat()),
            ]
            await asyncio.gather(self._people.up.wait(), self._workers.up.wait())
            host, port = people.getsockname()[:2]
            log.info(
                "server.listening",
                host=host,
                port=port,
                endpoint=self.plane.endpoint,
                workers_endpoint=address_of(workers, "https"),
            )
            self.up.cancel("listening")
            await asyncio.wait(serving)
            for task in beside:
                task.cancel()

    def stop(self) -> None:
        """Begin to end; call it in the event loop's thread."""
        log.info("server.stopping")
        self.ending.cancel("stopping")
        self._people.should_exit = self._workers.should_exit = True
        self.plane.bell.close()

    async def _beat(self) -> None:
        """Show that what a request of a worker goes through lets something through."""
        with watched("requests", _REQUESTS_SECONDS):
            while True:
                await self._lanes.workers.run(lambda: None)
                beat()
                await asyncio.sleep(_LOOK_SECONDS)

    async def _watch_certificate(self) -> None:
        """Show the newest certificate: a pool may be made for another host."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                found = self._certificate_files()
                if found != self._presented:
                    self._presented = found
                    self.plane.authority.present(self._context)
                    log.info("certificate.presented")
            except (LauncherError, OSError):
                log.exception("certificate.not_presented")

    def _certificate_files(self) -> tuple[int, int]:
        """Changes with either file: people replace one after the other."""
        authority = self.plane.authority
        return (
            authority.server_certificate.stat().st_mtime_ns,
            authority.server_key.stat().st_mtime_ns,
        )


class _Server(uvicorn.Server):
    """uvicorn without signals of its own."""

    def __init__(
        self,
        app: Starlette,
        *,
        context: ssl.SSLContext | None = None,
        lifespan: Literal["on", "off"] = "off",
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                h11_max_incomplete_event_size=_MAX_HEADERS,
                http=PromptProtocol if context is None else TlsProtocol,
                lifespan=lifespan,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                ssl_context_factory=None if context is None else lambda *_: context,
                timeout_graceful_shutdown=STOP_SECONDS,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                ws="none",
            )
        )
        self.up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


async def _run(servers: Servers, config: Path) -> None:
    loop, plane = asyncio.get_running_loop(), servers.plane
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, servers.stop)
    reloading: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(run_in_threadpool(_apply_again, plane, config))
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    await servers.serve()
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


def address_of(listener: socket.socket, scheme: str) -> str:
    """URL of what listens at *listener*."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def bound(listen: str, *, with_tls: bool = False) -> Iterator[socket.socket]:
    """
    A socket at *listen*, such as ``127.0.0.1:8080``; port 0 takes a free one.

    Without TLS, here or in front, it has to be a loopback address.

    Raises:
        ConfigurationError: it is not an address, or others could reach it and
            there is no TLS.
        AddressUnavailable: somebody else listens there, or the machine has no
            such address yet.
    """
    host, port = _address(listen)
    if not (host.is_loopback or with_tls):
        raise ConfigurationError(
            f"{listen} can be reached from outside, and there is no TLS: listen at"
            " 127.0.0.1 and put a proxy with TLS in front, or say --behind-proxy where"
            " there is one already"
        )
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    # Without the protocol asyncio leaves Nagle on: 40 ms for every answer.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((str(host), port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise AddressUnavailable(f"somebody else listens at {listen}") from exc
            if exc.errno == errno.EADDRNOTAVAIL:
                raise AddressUnavailable(
                    f"cannot listen at {listen}: this machine has no such address (yet)"
                ) from exc
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
    return address, number
