"""
A part of a log, as it arrives and as it is stored.

One that was compressed on its way stays so: a log shrinks to a tenth, and writing it
to disk, twice, is what takes longest.  It is unpacked once when it arrives, within
bounds that are known before, so that what is stored can be unpacked again.
"""

from __future__ import annotations

import hashlib

from dataclasses import dataclass

import zstandard

from launcher.controlplane.errors import WorkerRefused
from launcher.wire.messages import LOG_ENCODING, MAX_PACKED_LOG, ErrorCode


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of log, and the frame in which they came, if they came in one."""

    data: bytes
    frame: bytes | None = None

    def __len__(self) -> int:
        return len(self.data)


def arrived(body: bytes, encoding: str | None, checksum: str | None) -> Part:
    """
    What is in the *body* of an upload.

    Launchers of an earlier version may send no *checksum*, and no *encoding*.

    Raises:
        WorkerRefused: WRONG_CHECKSUM, TOO_LARGE when it is more than one upload may
            hold, MALFORMED when it cannot be unpacked.
    """
    match encoding:
        case None:
            part = Part(body)
        case str() if encoding == LOG_ENCODING:
            part = Part(_unpacked_within(body, MAX_PACKED_LOG), body)
        case _:
            raise _malformed(f"only {LOG_ENCODING} is understood here")
    if checksum and checksum != hashlib.sha256(part.data).hexdigest():
        raise WorkerRefused(
            ErrorCode.WRONG_CHECKSUM, "these are not the bytes that were sent"
        )
    return part


def unpacked(data: bytes, size: int | None) -> bytes:
    """The bytes of log in what is stored: see `tables.log_chunks`."""
    return data if size is None else _unpacked_within(data, size)


def _unpacked_within(frame: bytes, limit: int) -> bytes:
    try:
        about = zstandard.get_frame_parameters(frame)
        # What is said there is allocated before anything is unpacked.
        if about.content_size == zstandard.CONTENTSIZE_UNKNOWN:
            raise _malformed("a compressed body has to name the size of its content")
        if about.content_size > limit:
            raise WorkerRefused(
                ErrorCode.TOO_LARGE, f"an upload holds at most {limit} bytes of log"
            )
        if not about.content_size:
            return b""
        return zstandard.ZstdDecompressor(max_window_size=MAX_PACKED_LOG).decompress(
            frame, allow_extra_data=False
        )
    except zstandard.ZstdError as exc:
        raise _malformed(f"the body cannot be unpacked: {exc}") from exc


def _malformed(sentence: str) -> WorkerRefused:
    return WorkerRefused(ErrorCode.MALFORMED, sentence)
