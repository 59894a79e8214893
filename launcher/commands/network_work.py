"""What ``check-network`` does: proves from inside of a container what runs reach."""

from __future__ import annotations

import contextlib
import socket
import threading

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from launcher.adapters.engines.docker import connect
from launcher.adapters.engines.network_probe import NetworkProbe, Target
from launcher.errors import EngineError
from launcher.settings import Settings


METADATA = (
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "fd00:ec2::254",
    "fd00:ec2::23",
)
"""Where clouds tell a machine, a task or a pod who it is, and give it credentials."""
_METADATA_PORT = 80
_ANYWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What a container on the runs' network can connect to."""

    metadata: tuple[str, ...]
    """Addresses out of `METADATA`."""
    host: tuple[str, ...]
    """Addresses of this machine, at which it has a service."""
    allowed: bool
    """Whether the owner lets runs reach the metadata addresses."""

    @property
    def blocked(self) -> bool:
        """Whether runs reach nothing that they may not."""
        return not self.host and (self.allowed or not self.metadata)


def reached(environ: Mapping[str, str], image: str | None) -> Reached:
    """
    Try it, in a container of *image* or else of the default runner image.

    A service of our own is what must not be reached on this machine.  That a container
    would reach it, if nothing was in the way, is tried first, on the machine's own
    network: so an image that cannot try, and an engine on another machine, are noticed.

    Raises:
        ConfigurationError: a setting is wrong.
        EngineUnusable: no engine answers.
        EngineError: nobody can tell.
    """
    settings = Settings.from_environ(environ)
    with ExitStack() as closing:
        api = connect(settings.host, connections=2)
        closing.callback(api.close)
        probe = NetworkProbe(api, image or str(settings.images.default_runner_image))
        port = closing.enter_context(_service())
        if not probe.open_from("host", [Target("127.0.0.1", port)]):
            raise EngineError(
                "a container on this machine's own network does not reach a service"
                " of this machine, so nothing is proved: is the engine elsewhere?"
            )
        network = settings.container.network or closing.enter_context(probe.network())
        ours = dict.fromkeys((*probe.gateways(network), *_own_addresses()))
        open_ones = probe.open_from(
            network,
            [
                *(Target(address, _METADATA_PORT) for address in METADATA),
                *(Target(address, port) for address in ours),
            ],
        )
    found = {each.address for each in open_ones}
    return Reached(
        metadata=tuple(address for address in METADATA if address in found),
        host=tuple(address for address in ours if address in found),
        allowed=settings.container.metadata_reachable,
    )


@contextmanager
def _service() -> Iterator[int]:
    """Something that takes connections at every address of this machine; its port."""
    family, both = socket.AF_INET, False
    if socket.has_dualstack_ipv6():
        family, both = socket.AF_INET6, True
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as service:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    service.accept()[0].close()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield service.getsockname()[1]
        finally:
            # Closing does not wake up who accepts; shutting down does.
            with contextlib.suppress(OSError):
                service.shutdown(socket.SHUT_RDWR)
            thread.join()


def _own_addresses() -> Iterator[str]:
    """The addresses by which this machine goes out, if it does; sends nothing."""
    for family, anywhere in _ANYWHERE.items():
        with (
            contextlib.suppress(OSError),
            socket.socket(family, socket.SOCK_DGRAM) as out,
        ):
            out.connect((anywhere, 9))
            yield out.getsockname()[0]
