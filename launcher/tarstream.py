"""
Tar archives as streams, made safe on the way into a job's volumes.

What comes in is written by strangers: a repository, or a workspace in which a
job has been at work.  What goes out stays below one folder, belongs to the run's
user, and contains nothing but directories, regular files and links.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import sys
import tarfile

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from launcher.errors import WorkspaceUnusable
from launcher.heartbeat import beat
from launcher.model import GID, UID


_COPY = 1 << 18
_BUFFER = 1 << 15  # what is left of it `tarfile` copies at every read
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
_NAME_COST = 100  # bytes that remembering a name takes besides its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much an archive may hold; whoever sends one may mean no good."""

    size: int = 10 << 30
    """Bytes, those of headers included."""
    entries: int = 1_000_000
    names: int = 24 << 20
    """Bytes it takes to remember the names of folders and links."""


class Fingerprint:
    """
    SHA-256 of the entries of an archive that have certain names, wherever they are;
    or, with *whole_paths*, of those at certain paths.

    It is what ``sha256sum`` of these files, in the order of the archive, would print,
    hashed again; a link shows what it points to instead.
    """

    def __init__(self, names: Iterable[str], *, whole_paths: bool = False) -> None:
        self._names = frozenset(names)
        self._whole_paths = whole_paths
        self._whole = hashlib.sha256()
        self.found = 0
        """How many entries there were."""

    def concerns(self, path: str) -> bool:
        name = path if self._whole_paths else posixpath.basename(path)
        return name in self._names

    def add(self, path: str, shown: str) -> None:
        self.found += 1
        self._whole.update(f"{shown}  {path}\n".encode("utf-8", "surrogateescape"))

    def digest(self) -> bytes:
        return self._whole.digest()


class ChunkReader(io.RawIOBase):
    """Makes an iterable of bytes readable as a file; empty ones do not end it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = filter(None, chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, missing = [], sys.maxsize if size < 0 else size
        while missing > 0:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    break
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


class Archive:
    """
    Describes an archive piece by piece; iterating it makes the bytes.

    What is in the trees stays within *bounds*, or iterating raises WorkspaceUnusable.
    """

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._pieces: list[Callable[[_Writer], Iterator[bytes]]] = []

    def directory(self, path: str) -> None:
        self._pieces.append(lambda writer: writer.directory(path))

    def file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        self._pieces.append(lambda writer: writer.file(path, content, mode))

    def check(self, check: Callable[[], None]) -> None:
        """Let iterating call *check*, and raise what it raises, once it gets here."""

        def checked(_: _Writer) -> Iterator[bytes]:
            check()
            return iter(())

        self._pieces.append(checked)

    def tree(
        self,
        chunks: Iterable[bytes],
        *,
        below: str,
        strip: str = "",
        plan: Fingerprint | None = None,
    ) -> None:
        """
        Everything in the tar stream *chunks*, placed below the folder *below*.

        *strip* is the folder in which the stream has it.  Iterating raises
        WorkspaceUnusable when the stream is not what it should be, and tells *plan*
        of its entries by their paths below the folder.
        """
        known = plan or Fingerprint(())
        self._pieces.append(lambda writer: writer.tree(chunks, below, strip, known))

    def __iter__(self) -> Iterator[bytes]:
        writer = _Writer(self._bounds)
        for piece in self._pieces:
            for part in piece(writer):
                # Much may be made of it, by whoever reads slowly.
                beat()
                yield part
        yield from writer.end()


def top_folder(chunks: Iterable[bytes]) -> str:
    """
    The folder in which a tar stream begins; what is not below it may be refused.

    Raises:
        WorkspaceUnusable: it is no archive, or holds nothing in a folder.
    """
    try:
        with _reading(ChunkReader(chunks)) as tar:
            first = tar.next()
    except (tarfile.TarError, ValueError, RecursionError) as exc:
        raise _damaged(exc) from exc
    parts = [part for part in (first.name if first else "").split("/") if part]
    if not parts or parts[0] in (".", "..") or (len(parts) == 1 and not _folder(first)):
        raise WorkspaceUnusable("an archive of the workspace has no folder of its own")
    return parts[0]


def _folder(member: tarfile.TarInfo | None) -> bool:
    return member is not None and member.isdir()


def _reading(source: ChunkReader) -> tarfile.TarFile:
    return tarfile.open(
        fileobj=source,
        mode="r|",
        bufsize=_BUFFER,
        tarinfo=_Header,
        encoding="utf-8",
        errors="surrogateescape",
    )


def _damaged(exc: Exception) -> WorkspaceUnusable:
    return WorkspaceUnusable("an archive of the workspace is damaged", details=str(exc))


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

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._size = self._entries = self._names = 0
        self._made: set[str] = set()
        self._links: set[str] = set()
        self._clear: str | None = None
        """A folder that is there, and reached without a link."""

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
        yield from filter(None, (content, _padding(entry.size)))

    def tree(
        self, chunks: Iterable[bytes], below: str, strip: str, plan: Fingerprint
    ) -> Iterator[bytes]:
        yield from self._parents(posixpath.join(below, "x"))
        source = ChunkReader(self._bounded(chunks))
        try:
            with _reading(source) as tar:
                while member := tar.next():
                    yield from self._member(tar, member, below, strip, plan)
                    # It would keep them all.
                    tar.members.clear()  # type: ignore[attr-defined]
                    tar.pax_headers.clear()  # type: ignore[attr-defined]
        except (tarfile.TarError, ValueError, RecursionError) as exc:
            raise _damaged(exc) from exc
        while source.read(_COPY):
            pass  # whoever sends it may find only at its end that it is wrong

    def _bounded(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._size += len(chunk)
            if self._size > self._bounds.size:
                raise WorkspaceUnusable(
                    f"the workspace has more than {self._bounds.size} bytes"
                )
            yield chunk

    def _member(
        self,
        tar: tarfile.TarFile,
        member: tarfile.TarInfo,
        below: str,
        strip: str,
        plan: Fingerprint,
    ) -> Iterator[bytes]:
        self._entries += 1
        if self._entries > self._bounds.entries:
            raise WorkspaceUnusable(
                f"the workspace has more than {self._bounds.entries} entries"
            )
        if not (member.isdir() or member.isfile() or member.issym() or member.islnk()):
            return  # pipes, sockets and devices mean nothing in another container
        if member.isdir() and f"{strip}/".startswith(f"{member.name.strip('/')}/"):
            return  # above what the stream is about
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
            yield from self._folder(entry)
        elif member.isfile():
            yield from self._content(entry, tar, member, below, plan)
        else:
            yield from self._link(entry, member, below, strip, plan)

    def _folder(self, entry: tarfile.TarInfo) -> Iterator[bytes]:
        if entry.name not in self._made:
            self._remember(self._made, entry.name)
            entry.mode |= 0o700
            yield _header(entry)

    def _content(
        self,
        entry: tarfile.TarInfo,
        tar: tarfile.TarFile,
        member: tarfile.TarInfo,
        below: str,
        plan: Fingerprint,
    ) -> Iterator[bytes]:
        self._replaced(entry.name)
        entry.type, entry.size = tarfile.REGTYPE, member.size
        yield _header(entry)
        content, inside = _whole(tar, member), _inside(entry.name, below)
        if plan.concerns(inside):
            content = _hashed(content, lambda digest: plan.add(inside, digest))
        yield from content
        if padding := _padding(member.size):
            yield padding

    def _link(
        self,
        entry: tarfile.TarInfo,
        member: tarfile.TarInfo,
        below: str,
        strip: str,
        plan: Fingerprint,
    ) -> Iterator[bytes]:
        self._replaced(entry.name)
        self._remember(self._links, entry.name)
        self._clear = None
        entry.linkname = target = member.linkname
        if member.islnk():
            entry.linkname = self._placed(member.linkname, below, strip)
            target = _inside(entry.linkname, below)
        if plan.concerns(inside := _inside(entry.name, below)):
            plan.add(inside, f"-> {target}")
        yield _header(entry)

    def _remember(self, known: set[str], path: str) -> None:
        self._names += len(path) + _NAME_COST
        if self._names > self._bounds.names:
            raise WorkspaceUnusable("the workspace has too many folders and links")
        known.add(path)

    def _replaced(self, path: str) -> None:
        """What was at *path*, be it a link to somewhere else, is not any more."""
        if path in self._links or path in self._made:
            self._links.discard(path)
            self._made.discard(path)
            self._clear = None

    def _placed(self, name: str, below: str, strip: str) -> str:
        """Where an entry goes; refused when that may be outside of *below*."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            raise WorkspaceUnusable(f"an archive holds an unsafe path: {name!r}")
        if strip:
            folder = strip.split("/")
            if parts[: len(folder)] != folder:
                raise WorkspaceUnusable(f"an archive holds a stray path: {name!r}")
            parts = parts[len(folder) :]
        path = "/".join((below, *parts))
        if posixpath.dirname(path) != self._clear:
            for parent in _above(path):
                if parent in self._links:
                    raise WorkspaceUnusable(
                        f"an archive writes through a link: {path!r}"
                    )
        return path

    def _parents(self, path: str) -> Iterator[bytes]:
        """Make the folders above *path*, in place of links if need be."""
        parent = posixpath.dirname(path)
        if parent == self._clear:
            return
        for folder in reversed(list(_above(path))):
            if folder not in self._made or folder in self._links:
                self._links.discard(folder)
                self._remember(self._made, folder)
                yield _header(_entry(tarfile.DIRTYPE, folder, 0o755))
        self._clear = parent


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


def _inside(path: str, below: str) -> str:
    return path[len(below) + 1 :]


def _whole(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    """What *member*, which *tar* has just come to, holds."""
    # `extractfile` makes three objects for each file, and it is the many that cost.
    source, left = tar.fileobj, member.size
    while left:
        part = source.read(min(_COPY, left)) if source is not None else b""
        if not part:
            raise WorkspaceUnusable("an archive of the workspace is cut short")
        left -= len(part)
        yield part


def _hashed(content: Iterable[bytes], tell: Callable[[str], None]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
        yield part
    tell(digest.hexdigest())


def _padding(size: int) -> bytes:
    """What fills the last block of an entry."""
    return bytes(-size % tarfile.BLOCKSIZE)
