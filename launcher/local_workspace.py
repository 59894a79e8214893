"""Code that came from somebody's machine instead of a repository: a gzip archive."""

from __future__ import annotations

import zlib

from collections.abc import Iterator
from typing import BinaryIO

from launcher.errors import WorkspaceUnusable
from launcher.tarstream import top_folder


_CHUNK = 1 << 18


def tree_of(file: BinaryIO) -> tuple[str, Iterator[bytes]]:
    """
    The one folder that everything in *file* is in, and the tar stream.

    Raises:
        WorkspaceUnusable: here or while the stream is read: it is no such archive.
    """
    return top_folder(_unzipped(file)), _unzipped(file)


def _unzipped(file: BinaryIO) -> Iterator[bytes]:
    """In pieces of a bounded size, however much a few bytes stand for."""
    file.seek(0)
    unzip = zlib.decompressobj(wbits=31)
    try:
        while not unzip.eof:
            data = unzip.unconsumed_tail or file.read(_CHUNK)
            if not data:
                raise WorkspaceUnusable("the uploaded workspace is cut short")
            yield unzip.decompress(data, _CHUNK)
    except zlib.error as exc:
        raise WorkspaceUnusable(
            "the uploaded workspace is damaged", details=str(exc)
        ) from exc
