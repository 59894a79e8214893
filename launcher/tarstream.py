"""
Tar archives as streams, made safe on the way into a job's volumes.

What comes in is written by strangers: a repository, or a workspace in which a
job has been at work.  What goes out stays below one folder, belongs to the run's
user, and contains nothing but directories, regular files and links.
"""

from __future__ import annotations

import io
import posixpath
import sys
import tarfile

from collections.abc import Callable, Iterable, Iterator
from typing import IO, Self

from launcher.errors import WorkspaceUnusable
from launcher.model import GID, UID


_COPY = 1 << 16
_LONGEST_NAME = 1 << 16  # bytes of a header's extension, which is held in memory
_LATEST = 1 << 33  # seconds since 1970 that every tar can hold
_EXTENSIONS = frozenset(
    {
        tarfile.GNUTYPE_LONGLINK,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.XHDTYPE,
    }
)
_ENTRIES = frozenset(tarfile.SUPPORTED_TYPES) - {tarfile.GNUTYPE_SPARSE}


class ChunkReader(io.RawIOBase):
    """Makes an iterable of bytes readable as a file; empty ones do not end it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = filter(None, chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, missing = [], sys.maxsize if size < 0 else size
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


class _Header(tarfile.TarInfo):
    """
    Refuses what `tarfile` overlooks or lets itself be led astray by.

    It takes a damaged header, and the lack of one, for the end of an archive, skips
    entries of any size one block after the other, and reads names of any length.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type not in _EXTENSIONS | _ENTRIES:
            raise tarfile.ReadError(f"an entry of type {header.type!r}")
        longest = _LONGEST_NAME if header.type in _EXTENSIONS else sys.maxsize
        if not 0 <= header.size <= longest:
            raise tarfile.ReadError(f"a header with size {header.size}")
        return header

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as exc:
            # Also where git describes all files first, and then there is none.
            for cause in (exc, exc.__context__):
                if isinstance(cause, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                    raise cause from None
            raise tarfile.ReadError(str(exc)) from exc


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
        self._replaced(path)
        yield from self._parents(path)
        entry = _entry(tarfile.REGTYPE, path, mode)
        entry.size = len(content)
        yield _header(entry)
        yield from _padded(io.BytesIO(content), entry.size)

    def tree(self, chunks: Iterable[bytes], below: str, strip: str) -> Iterator[bytes]:
        yield from self._parents(posixpath.join(below, "x"))
        source = ChunkReader(chunks)
        try:
            with tarfile.open(
                fileobj=source,
                mode="r|",
                bufsize=_COPY,
                tarinfo=_Header,
                encoding="utf-8",
                errors="surrogateescape",
            ) as tar:
                while member := tar.next():
                    yield from self._member(tar, member, below, strip)
                    # It would keep them all.
                    tar.members.clear()  # type: ignore[attr-defined]
        except (tarfile.TarError, ValueError, RecursionError) as exc:
            raise WorkspaceUnusable(
                "an archive of the workspace is damaged", details=str(exc)
            ) from exc
        while source.read(_COPY):
            pass  # whoever sends it may find only at its end that it is wrong

    def _member(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, below: str, strip: str
    ) -> Iterator[bytes]:
        if not (member.isdir() or member.isfile() or member.issym() or member.islnk()):
            return  # pipes, sockets and devices mean nothing in another container
        path = self._placed(member.name, below, strip)
        if path == below and member.isdir():
            return
        if path == below or member.issparse() or member.size < 0:
            raise WorkspaceUnusable(f"an archive holds an odd entry: {member.name!r}")
        # Folders that have no entry of their own would belong to root.
        yield from self._parents(path)
        entry = _entry(member.type, path, member.mode)
        if 0 <= member.mtime < _LATEST:
            entry.mtime = member.mtime
        if member.isdir():
            if path in self._made:
                return
            self._made.add(path)
            entry.mode |= 0o700
            yield _header(entry)
        elif member.isfile():
            self._replaced(path)
            entry.type, entry.size = tarfile.REGTYPE, member.size
            yield _header(entry)
            yield from _padded(tar.extractfile(member), member.size)
        else:
            self._replaced(path)
            self._links.add(path)
            entry.linkname = member.linkname
            if member.islnk():
                entry.linkname = self._placed(member.linkname, below, strip)
            yield _header(entry)

    def _replaced(self, path: str) -> None:
        """What was at *path*, be it a link to somewhere else, is not any more."""
        self._links.discard(path)
        self._made.discard(path)

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
    if padding := -size % tarfile.BLOCKSIZE:
        yield bytes(padding)
