"""
Workspaces between two jobs of a run, kept by the control plane.

They travel in parts that fit into memory, so that each can be signed and repeated;
which ones are missing, the receiving side knows.  They go through the control plane,
or to where it says that they wait.
"""

from __future__ import annotations

import hashlib
import os
import re

from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from launcher.adapters.controlplane.client import Client, Refusal
from launcher.adapters.controlplane.presigned import PresignedUrls
from launcher.errors import ControlPlaneUnavailable, WorkspaceUnusable
from launcher.model import Claim
from launcher.sealing.workspace import SealedFile, measured
from launcher.wire.messages import (
    CHECKSUM_HEADER,
    MAX_WORKSPACE_PART,
    SOURCE_TYPE,
    ErrorCode,
    WorkspaceAck,
    WorkspacePart,
    WorkspacePlace,
    WorkspaceSource,
    WorkspaceStored,
    WorkspaceUploaded,
)


_LARGEST = (10 << 30) + (64 << 20)
"""Bytes of a sealed workspace, at most: an archive of 10 GiB that does not shrink."""
_LARGEST_UPLOAD = 1 << 30
"""Bytes of an archive that somebody uploaded, at most."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")


class HttpWorkspaceStore:
    """Implements `launcher.ports.WorkspaceStore`."""

    def __init__(
        self,
        client: Client,
        urls: PresignedUrls,
        *,
        part: int = MAX_WORKSPACE_PART,
    ) -> None:
        self._client = client
        self._urls = urls
        self._part = part

    def save(self, claim: Claim, sealed: SealedFile) -> None:
        try:
            offset = self._known(claim, sealed)
            if offset is None:
                return
            # A part without bytes asks how the others are to travel.
            begun = self._sent(claim, sealed, offset, b"")
            send = self._sent_by_url if begun.presigned else self._sent
            offset = begun.next_offset
            while part := sealed.read(offset, self._part):
                offset = send(claim, sealed, offset, part).next_offset
            self._finish(claim, sealed)
        except Refusal as exc:
            match exc.failure.code:
                case ErrorCode.WRONG_OFFSET | ErrorCode.WRONG_CHECKSUM:
                    raise ControlPlaneUnavailable(
                        "the control plane wants the workspace again",
                        details=exc.details,
                    ) from exc
                case ErrorCode.TOO_LARGE:
                    raise WorkspaceUnusable(
                        "the workspace is larger than the control plane takes",
                        details=exc.details,
                    ) from exc
                case _:
                    raise

    def _known(self, claim: Claim, sealed: SealedFile) -> int | None:
        """Where an earlier call has ended; None when only its answer was lost."""
        try:
            self._finish(claim, sealed)
        except Refusal as exc:
            if exc.failure.code != ErrorCode.WRONG_OFFSET:
                raise
            return max(0, min(exc.failure.next_offset or 0, sealed.size))
        return None

    def _sent(
        self, claim: Claim, sealed: SealedFile, offset: int, part: bytes
    ) -> WorkspaceAck:
        """Send one part; say where the next one begins."""
        ack = self._client.call(
            "PUT",
            f"{_path(claim)}?upload={sealed.upload}&offset={offset}",
            WorkspaceAck,
            body=part,
            token=claim.token,
            headers={"Content-Type": "application/octet-stream"},
        )
        following = ack.next_offset
        if (part and following != offset + len(part)) or following < 0:
            raise _incomprehensible(f"next_offset {following} after {offset}")
        return ack

    def _sent_by_url(
        self, claim: Claim, sealed: SealedFile, offset: int, part: bytes
    ) -> WorkspaceAck:
        place = self._client.call(
            "POST",
            f"{_path(claim)}/part",
            WorkspacePlace,
            body=WorkspacePart(
                upload=sealed.upload,
                offset=offset,
                size=len(part),
                sha256=hashlib.sha256(part).hexdigest(),
            ),
            token=claim.token,
        )
        if place.next_offset != offset:
            # Something is there that we did not send now: let the next call see.
            raise _incomprehensible(f"next_offset {place.next_offset}, not {offset}")
        self._urls.put(place.url, part)
        return WorkspaceAck(next_offset=offset + len(part))

    def _finish(self, claim: Claim, sealed: SealedFile) -> None:
        stored = self._client.call(
            "POST",
            _path(claim),
            WorkspaceStored,
            body=WorkspaceUploaded(
                upload=sealed.upload, size=sealed.size, sha256=sealed.sha256
            ),
            token=claim.token,
        )
        if (stored.size, stored.sha256) != (sealed.size, sealed.sha256):
            raise _incomprehensible(f"another workspace was stored: {stored!r}")

    def restore(self, claim: Claim, into: BinaryIO) -> None:
        self._download(_path(claim), claim, into, _LARGEST, "the stored workspace")

    def uploaded(self, claim: Claim, into: BinaryIO) -> None:
        path = f"/jobs/{claim.job.id}/source"
        self._download(path, claim, into, _LARGEST_UPLOAD, "the uploaded workspace")

    def _download(
        self, path: str, claim: Claim, into: BinaryIO, largest: int, what: str
    ) -> None:
        # The last byte that is there comes again: nobody can ask for no bytes.
        offset = max(into.seek(0, os.SEEK_END) - 1, 0)
        source: WorkspaceSource | None = None
        while True:
            part = (
                self._part_at(path, claim, offset)
                if source is None
                else self._part_from(source, offset)
            )
            if isinstance(part, WorkspaceSource):
                source = part
                continue
            if part.total > largest:
                raise WorkspaceUnusable(
                    f"{what} is larger than any that is taken",
                    details=f"{part.total} bytes",
                )
            into.seek(offset)
            into.write(part.content)
            offset += len(part.content)
            if offset >= part.total:
                break
        if measured(into) != (part.total, part.sha256):
            raise WorkspaceUnusable(f"{what} was damaged on its way")

    def _part_at(self, path: str, claim: Claim, offset: int) -> _Part | WorkspaceSource:
        """The bytes at *offset*, or where they are."""
        wanted = f"bytes={offset}-{offset + self._part - 1}"
        answer = self._client.fetch(
            path,
            token=claim.token,
            headers={
                "Range": wanted,
                "Accept": f"{SOURCE_TYPE}, application/octet-stream",
            },
        )
        if answer.headers.get("Content-Type") == SOURCE_TYPE:
            try:
                return msgspec.json.decode(answer.content, type=WorkspaceSource)
            except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
                # Its text may quote what it could not read.
                raise _incomprehensible(type(exc).__name__) from None
        place = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if place is None or int(place[1]) != offset or not answer.content:
            raise _incomprehensible(f"no answer to {wanted}")
        return _Part(
            content=answer.content,
            total=int(place[2]),
            sha256=answer.headers.get(CHECKSUM_HEADER, ""),
        )

    def _part_from(self, source: WorkspaceSource, offset: int) -> _Part:
        piece = self._urls.get(source.url, offset, self._part)
        if piece.total != source.size:
            raise WorkspaceUnusable(
                "the stored workspace was damaged on its way",
                details=f"{piece.total} bytes instead of {source.size}",
            )
        return _Part(content=piece.content, total=piece.total, sha256=source.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    content: bytes
    total: int
    sha256: str
    """Of the whole."""


def _path(claim: Claim) -> str:
    return f"/jobs/{claim.job.id}/workspace"


def _incomprehensible(details: str) -> ControlPlaneUnavailable:
    return ControlPlaneUnavailable(
        "the control plane gave an answer that cannot be understood", details=details
    )
