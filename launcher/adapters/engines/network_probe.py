"""
What can be reached from a network of the engine: found out by trying, in a container.

The image brings the means: any of Python, bash, netcat and curl will do.  The container
has what a run's container has, and nothing of any run.
"""

from __future__ import annotations

import contextlib

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import docker
import docker.errors
import docker.types

from ulid import ULID

from launcher.adapters.engines.docker import BRIDGES, LABEL
from launcher.adapters.engines.docker_errors import VENDOR_ERRORS, translated
from launcher.errors import EngineError, ImageNotFound
from launcher.model import GID, UID


_SECONDS = 120
_LARGEST = 1 << 16
_MEMORY = 256 << 20
# For each pair of address and port, whether something takes a connection there.
_PROGRAM = r"""
open_at() {
  if command -v python3 >/dev/null; then
    python3 -c 'import socket, sys
try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
except OSError: sys.exit(1)' "$1" "$2"
  elif command -v bash >/dev/null && command -v timeout >/dev/null; then
    timeout 3 bash -c ': >"/dev/tcp/$0/$1"' "$1" "$2"
  elif command -v nc >/dev/null; then
    nc -z -w 3 "$1" "$2"
  elif command -v curl >/dev/null; then
    curl -s -o /dev/null --connect-timeout 3 --max-time 5 "telnet://$1:$2" </dev/null
  else
    exit 3
  fi
}
while [ $# -gt 1 ]; do
  if open_at "$1" "$2" 2>/dev/null; then echo open; else echo closed; fi
  shift 2
done
"""


@dataclass(frozen=True, slots=True)
class Target:
    address: str
    port: int


class NetworkProbe:
    """Containers of *image*, which try to connect."""

    def __init__(self, api: docker.APIClient, image: str) -> None:
        self._api = api
        self._image = image

    @contextmanager
    def network(self) -> Iterator[str]:
        """A network like that of a launcher's runs, for the time of the block."""
        mark = str(ULID()).lower()
        name = f"spacelift-check-{mark}"
        with translated("making a network"):
            self._api.create_network(
                name,
                driver="bridge",
                options={
                    "com.docker.network.bridge.enable_icc": "false",
                    "com.docker.network.bridge.name": f"{BRIDGES}{mark[-11:]}",
                },
                labels={f"{LABEL}.check": mark},
            )
        try:
            yield name
        finally:
            with translated("removing a network"):
                self._api.remove_network(name)

    def gateways(self, network: str) -> tuple[str, ...]:
        """The machine's own addresses on *network*."""
        with translated("looking at a network"):
            found = self._api.inspect_network(network)
        ranges = found["IPAM"]["Config"] or []
        return tuple(each["Gateway"] for each in ranges if "Gateway" in each)

    def open_from(self, network: str, targets: Sequence[Target]) -> tuple[Target, ...]:
        """
        Those of *targets* that take a connection from *network*.

        Raises:
            ImageNotFound: the engine does not have the image.
            EngineError: nobody can tell.
        """
        arguments = [
            text for each in targets for text in (each.address, str(each.port))
        ]
        with translated("looking at what a network lets through"):
            lines = self._said(network, arguments).split()
        if len(lines) != len(targets) or not set(lines) <= {"open", "closed"}:
            raise EngineError(
                f"the image {self._image} has nothing to try a network with: it takes"
                " python3, bash with timeout, nc or curl; name another image"
            )
        return tuple(
            each for each, line in zip(targets, lines, strict=True) if line == "open"
        )

    def _said(self, network: str, arguments: Sequence[str]) -> str:
        host = self._api.create_host_config(
            network_mode=network,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            pids_limit=64,
            mem_limit=_MEMORY,
            log_config=docker.types.LogConfig(type="json-file"),
        )
        try:
            made = self._api.create_container(
                self._image,
                entrypoint=["/bin/sh", "-c", _PROGRAM, "probe"],
                command=list(arguments),
                user=f"{UID}:{GID}",
                host_config=host,
                labels={f"{LABEL}.check": network},
            )
        except docker.errors.ImageNotFound as exc:
            raise ImageNotFound(
                f"the engine does not have the image {self._image}: pull it first, or"
                " name another one"
            ) from exc
        try:
            self._api.start(made["Id"])
            self._api.wait(made["Id"], timeout=_SECONDS)
            return self._api.logs(made["Id"], tail=2 * len(arguments))[
                :_LARGEST
            ].decode("utf-8", "replace")
        finally:
            with contextlib.suppress(*VENDOR_ERRORS):
                self._api.remove_container(made["Id"], v=True, force=True)
