"""
Workspaces between two jobs of a run, kept by the control plane.

They are streamed from the engine and back into it, gzipped on the way; nothing
of them touches the launcher's disk.
"""

from __future__ import annotations

import hashlib
import zlib

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import urllib3

from launcher.adapters.controlplane.client import Client, translated
from launcher.errors import ControlPlaneUnavailable, WorkspaceUnusable
from launcher.model import Claim
from launcher.wire.messages import CHECKSUM_HEADER, WorkspaceStored


_CHUNK = 1 << 18
_GZIP = 31  # zlib's window bits for a gzip header and trailer
_FAST = 1


class HttpWorkspaceStore:
    """Implements `launcher.ports.WorkspaceStore`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def save(self, claim: Claim, archive: Iterable[bytes]) -> None:
        sent = hashlib.sha256()

        def body() -> Iterator[bytes]:
            for part in _compressed(archive):
                sent.update(part)
                yield part

        path = f"/jobs/{claim.job.id}/workspace"
        stored = self._client.call(
            "PUT", path, WorkspaceStored, body=body(), token=claim.token
        )
        if stored.sha256 != sent.hexdigest():
            raise ControlPlaneUnavailable("the workspace was damaged on its way")

    @contextmanager
    def restore(self, claim: Claim) -> Iterator[Iterator[bytes]]:
        path = f"/jobs/{claim.job.id}/workspace"
        with self._client.download(path, token=claim.token) as response:
            yield _decompressed(response, path)


def _compressed(archive: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(_FAST, wbits=_GZIP)
    for part in archive:
        if packed := packer.compress(part):
            yield packed
    yield packer.flush()


def _decompressed(response: urllib3.BaseHTTPResponse, path: str) -> Iterator[bytes]:
    unpacker, seen = zlib.decompressobj(wbits=_GZIP), hashlib.sha256()
    try:
        with translated("GET", path):
            for part in response.stream(_CHUNK, decode_content=False):
                seen.update(part)
                rest = part
                while rest:
                    yield unpacker.decompress(rest, _CHUNK)
                    rest = unpacker.unconsumed_tail
    except zlib.error as exc:
        raise _damaged(str(exc)) from exc
    promised = response.headers.get(CHECKSUM_HEADER, "")
    if not unpacker.eof or seen.hexdigest() != promised:
        raise _damaged(f"eof={unpacker.eof} promised={promised}")


def _damaged(details: str) -> WorkspaceUnusable:
    return WorkspaceUnusable("the stored workspace is damaged", details=details)
