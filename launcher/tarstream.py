"""
Tar archives as streams, made safe on the way into a job's volumes.

What comes in is written by strangers: a repository, or a workspace in which a
job has been at work.  What goes out stays below one folder, belongs to the run's
user, and contains nothing but directories, regular files and links.
"""

from __future__ import annotations

import io
import posixpath
import tarfile

from collections.abc import Callable, Iterable, Iterator
from typing import IO

from launcher.errors import WorkspaceUnusable
from launcher.model import GID, UID


_COPY = 1 << 16


class ChunkReader(io.RawIOBase):
    """Makes an iterable of bytes readable as a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, missing = [], size
        while missing > 0:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


class Archive:
    """Describes an archive piece by piece; iterating it makes the bytes."""

    def __init__(self) -> None:
        self._pieces: list[Callable[[_Writer], Iterator[bytes]]] = []

    def directory(self, path: str) -> None:
        self._pieces.append(lambda writer: writer.directory(path))

    def file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        self._pieces.append(lambda writer: writer.file(path, content, mode))

    def tree(self, chunks: Iterable[bytes], *, below: str, strip: str = "") -> None:
        """
        Everything in the tar stream *chunks*, placed below the folder *below*.

        *strip* is the folder in which the stream has it.  Iterating raises
        WorkspaceUnusable when the stream is not what it should be.
        """
        self._pieces.append(lambda writer: writer.tree(chunks, below, strip))

    def __iter__(self) -> Iterator[bytes]:
        writer = _Writer()
        for piece in self._pieces:
            yield from piece(writer)
        yield from writer.end()


class _Writer:
    """Writes headers itself: what is copied must keep its place between them."""

    def __init__(self) -> None:
        self._made: set[str] = set()
        self._links: set[str] = set()

    def end(self) -> Iterator[bytes]:
        yield bytes(2 * tarfile.BLOCKSIZE)

    def directory(self, path: str) -> Iterator[bytes]:
        yield from self._parents(posixpath.join(path, "x"))

    def file(self, path: str, content: bytes, mode: int) -> Iterator[bytes]:
        # What was there before is replaced, be it a link to somewhere else.
        self._links.discard(path)
        yield from self._parents(path)
        entry = _entry(tarfile.REGTYPE, path, mode)
        entry.size = len(content)
        yield _header(entry)
        yield from _padded(io.BytesIO(content), entry.size)

    def tree(self, chunks: Iterable[bytes], below: str, strip: str) -> Iterator[bytes]:
        try:
            with tarfile.open(
                fileobj=ChunkReader(chunks), mode="r|", bufsize=_COPY
            ) as tar:
                for member in tar:
                    yield from self._member(tar, member, below, strip)
        except tarfile.TarError as exc:
            raise WorkspaceUnusable(
                "an archive of the workspace is damaged", details=str(exc)
            ) from exc

    def _member(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, below: str, strip: str
    ) -> Iterator[bytes]:
        if not (member.isdir() or member.isfile() or member.issym() or member.islnk()):
            return  # pipes, sockets and devices mean nothing in another container
        path = self._placed(member.name, below, strip)
        # Folders that have no entry of their own would belong to root.
        yield from self._parents(path)
        entry = _entry(member.type, path, member.mode)
        entry.mtime = member.mtime
        if member.isdir():
            if path in self._made:
                return
            self._made.add(path)
            entry.mode |= 0o700
            yield _header(entry)
        elif member.isfile():
            self._links.discard(path)
            entry.type, entry.size = tarfile.REGTYPE, member.size
            yield _header(entry)
            yield from _padded(tar.extractfile(member), member.size)
        else:
            self._links.add(path)
            entry.linkname = member.linkname
            if member.islnk():
                entry.linkname = self._placed(member.linkname, below, strip)
            yield _header(entry)

    def _placed(self, name: str, below: str, strip: str) -> str:
        """Where an entry goes; refused when that may be outside of *below*."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            raise WorkspaceUnusable(f"an archive holds an unsafe path: {name!r}")
        if strip:
            if parts[:1] != [strip]:
                raise WorkspaceUnusable(f"an archive holds a stray path: {name!r}")
            parts = parts[1:]
        path = posixpath.join(below, *parts)
        for parent in _above(path):
            if parent in self._links:
                raise WorkspaceUnusable(f"an archive writes through a link: {path!r}")
        return path

    def _parents(self, path: str) -> Iterator[bytes]:
        """Make the folders above *path*, in place of links if need be."""
        for folder in reversed(list(_above(path))):
            if folder not in self._made or folder in self._links:
                self._links.discard(folder)
                self._made.add(folder)
                yield _header(_entry(tarfile.DIRTYPE, folder, 0o755))


def _above(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _entry(kind: bytes, path: str, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.type = kind
    entry.mode = mode & 0o777
    entry.uid, entry.gid = UID, GID
    return entry


def _header(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padded(content: IO[bytes] | None, size: int) -> Iterator[bytes]:
    """Exactly *size* bytes of *content* and the padding of a tar block."""
    left = size
    while content is not None and left:
        part = content.read(min(_COPY, left))
        if not part:
            raise WorkspaceUnusable("an archive of the workspace is cut short")
        left -= len(part)
        yield part
    yield bytes(-size % tarfile.BLOCKSIZE)
