"""
The tree of a commit as it is wanted: narrowed, with submodules, with LFS files.

All of it is made of git's own objects in a store that lasts for one fetch, so that
nothing is ever checked out on this machine, and git itself refuses paths that no
tree may have.  The store borrows the objects of the mirrors.

Names, links, modes and sizes in a tree are the repository's: all that is read of
them is bounded.
"""

from __future__ import annotations

import re

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.adapters.sources.processes import Git, GitFailed, TooLarge
from launcher.errors import SourceUnavailable


MOST_ENTRIES = 1_000_000
MOST_LFS_FILES = 50_000
_LONGEST_LISTING = 256 << 20
_LONGEST_FILE = 1 << 20  # bytes of .gitmodules and .gitattributes
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-[^\n]*\n)*"
    rb"oid sha256:([0-9a-f]{64})\nsize ([0-9]{1,18})\n?"
)
_COMMITTER = re.compile(rb"^committer .* ([0-9]{1,10}) [+-][0-9]{4}$", re.MULTILINE)
_SMALLEST_POINTER, _LARGEST_POINTER = 100, 1024
_ALWAYS = ".spacelift"
"""A folder that every tree has, because the launcher reads it."""

Narrowing = dict[bytes, "Narrowing | None"]


@dataclass(frozen=True, slots=True)
class Entry:
    mode: str
    kind: str
    hash: str
    size: int
    """-1 for what has none."""
    path: bytes

    def line(self, path: bytes | None = None) -> bytes:
        """As `git mktree` and `git update-index` read it."""
        head = f"{self.mode} {self.kind} {self.hash}\t".encode()
        return head + (self.path if path is None else path) + b"\0"


@dataclass(frozen=True, slots=True)
class Submodule:
    path: bytes
    commit: str
    url: str

    @property
    def shown(self) -> str:
        return repr(self.path.decode("utf-8", "replace"))


class Trees:
    """Trees in the object store that *git* runs in."""

    def __init__(self, git: Git) -> None:
        self._git = git
        empty = git.directory / "empty"
        empty.mkdir(exist_ok=True)
        self.nowhere = ("--work-tree", str(empty))
        """Options for commands that insist on a work tree and do nothing to it."""

    def borrow(self, mirror: Path) -> None:
        """Find objects of *mirror*, too."""
        alternates = self._git.directory / "objects/info/alternates"
        alternates.parent.mkdir(parents=True, exist_ok=True)
        with alternates.open("a", encoding="utf-8") as file:
            file.write(f"{mirror / 'objects'}\n")

    def of(self, commit: str) -> str:
        return self._hash("rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}")

    def measured(self, tree: str, limit: int, what: str) -> tuple[int, list[Entry]]:
        """
        Bytes of all files, submodules, and files that say what is special about others.

        Raises:
            SourceUnavailable: there are more than *limit* bytes, or too many files.
        """
        total, found = 0, []
        for count, entry in enumerate(self._listed(tree, deep=True)):
            total += max(entry.size, 0)
            if total > limit or count >= MOST_ENTRIES:
                raise too_large(what, limit if total > limit else None)
            if entry.kind == "commit" or entry.path.endswith(b".gitattributes"):
                found.append(entry)
        return total, found

    def left_out(self, whole: str, tree: str) -> bytes:
        """Paths of *whole* that are not in *tree*, each followed by a NUL."""
        kept = {entry.path for entry in self._listed(tree, deep=True)}
        listed = self._listed(whole, deep=True)
        return b"".join(e.path + b"\0" for e in listed if e.path not in kept)

    def narrowed(self, tree: str, paths: Iterable[str]) -> str:
        """
        *tree* with nothing but *paths*, and the files of the folders above them.

        The paths are literal; one that is not there is left out.
        """
        wanted: Narrowing = {}
        for path in (*paths, _ALWAYS):
            _want(wanted, [part for part in path.encode().split(b"/") if part])
        return self._narrowed(tree, wanted)

    def _narrowed(self, tree: str, wanted: Narrowing) -> str:
        lines = []
        for entry in self._listed(tree):
            if entry.kind == "blob":
                lines.append(entry.line())
            elif entry.path in wanted:
                inner = wanted[entry.path]
                if inner is not None and entry.kind == "tree":
                    made = self._narrowed(entry.hash, inner)
                    entry = Entry(entry.mode, "tree", made, -1, entry.path)  # noqa: PLW2901
                lines.append(entry.line())
        return self._hash("mktree", "-z", "--missing", given=b"".join(lines))

    def submodules(
        self, tree: str, links: Iterable[Entry]
    ) -> Iterator[Submodule | Entry]:
        """What each of *links* means; one that nothing is said about stays as it is."""
        places, urls = self._modules(tree)
        for link in links:
            url = urls.get(places.get(link.path, b""))
            if url is None:
                yield link
            else:
                yield Submodule(link.path, link.hash, url)

    def _modules(self, tree: str) -> tuple[dict[bytes, bytes], dict[bytes, str]]:
        """Names by path, and URLs by name."""
        places: dict[bytes, bytes] = {}
        urls: dict[bytes, str] = {}
        here = [e for e in self._listed(tree) if e.path == b".gitmodules"]
        # A link of that name may lead anywhere; git does not follow it either.
        if not here or not here[0].mode.startswith("100"):
            return places, urls
        listing = self._git.ask(
            *("config", "--blob", here[0].hash, "--no-includes", "--list", "-z"),
            limit=_LONGEST_FILE,
        )
        for setting in listing.split(b"\0"):
            key, _, value = setting.partition(b"\n")
            section, _, rest = key.partition(b".")
            name, _, what = rest.rpartition(b".")
            if section == b"submodule" and what == b"path":
                places[value.rstrip(b"/")] = name
            elif section == b"submodule" and what == b"url":
                urls[name] = value.decode("utf-8", "replace")
        return places, urls

    def pointers(
        self, tree: str, attributes: Iterable[Entry]
    ) -> dict[bytes, tuple[Entry, str, int]]:
        """By path: the entries that stand for an LFS file, its SHA-256 and size."""
        if not any(b"filter=lfs" in self._blob(each) for each in attributes):
            return {}
        small = [
            entry
            for entry in self._listed(tree, deep=True)
            if _SMALLEST_POINTER <= entry.size <= _LARGEST_POINTER
            and entry.mode.startswith("100")
        ]
        found = {}
        for entry, content in zip(small, self._blobs(small), strict=True):
            if match := _POINTER.fullmatch(content):
                found[entry.path] = (entry, match[1].decode(), int(match[2]))
            if len(found) > MOST_LFS_FILES:
                raise SourceUnavailable(
                    f"the repository keeps more than {MOST_LFS_FILES} files in LFS"
                )
        return found

    def _blob(self, entry: Entry) -> bytes:
        if not 0 <= entry.size <= _LONGEST_FILE:
            return b""
        return self._git.ask("cat-file", "blob", entry.hash, limit=_LONGEST_FILE)

    def _blobs(self, entries: list[Entry]) -> Iterator[bytes]:
        """The contents of *entries*, all of them small."""
        if not entries:
            return
        given = b"".join(f"{entry.hash}\n".encode() for entry in entries)
        stream = bytearray()
        parts = self._git.listen("cat-file", "--batch", given=given)
        for entry in entries:
            while (end := stream.find(b"\n")) < 0 or len(stream) < end + entry.size + 2:
                part = next(parts, b"")
                if not part:
                    raise GitFailed("git cat-file stopped early")
                stream += part
            yield bytes(stream[end + 1 : end + 1 + entry.size])
            del stream[: end + entry.size + 2]

    def stored(self, files: Mapping[bytes, Path]) -> dict[bytes, str]:
        """Make a blob of each file, and return its hash."""
        given = "".join(f"{path}\n" for path in files.values()).encode()
        answer = self._git.ask(
            *("hash-object", "-w", "--no-filters", "--stdin-paths"),
            given=given,
            limit=_LONGEST_FILE * 8,
        )
        return dict(zip(files, answer.decode("ascii").split(), strict=True))

    def grafted(
        self, tree: str, trees: Mapping[bytes, str], blobs: Iterable[Entry]
    ) -> str:
        """*tree* with *trees* in place of what is at their paths, and with *blobs*."""
        self._git.run(*self.nowhere, "read-tree", tree)
        changes = [f"0 {'0' * len(tree)}\t".encode() + path + b"\0" for path in trees]
        changes += [entry.line() for entry in blobs]
        if changes:
            self._git.ask(
                *(*self.nowhere, "update-index", "-z", "--index-info"),
                given=b"".join(changes),
                limit=0,
            )
        for path, made in trees.items():
            prefix = path.decode("utf-8", "surrogateescape")
            self._git.run(*self.nowhere, "read-tree", f"--prefix={prefix}/", made)
        return self._hash("write-tree")

    def committed(self, tree: str, like: str) -> str:
        """A commit of *tree* that is as old as the commit *like*."""
        said = self._git.ask("cat-file", "commit", like, limit=_LONGEST_FILE * 16)
        match = re.search(
            rb"^committer .* ([0-9]{1,10}) [+-][0-9]{4}$", said, re.MULTILINE
        )
        moment = match[1].decode() if match else "0"
        # Written down, because no commit may be made without a name.
        text = (
            f"tree {tree}\nauthor - <-> {moment} +0000\ncommitter - <-> {moment}"
            " +0000\n\n"
        )
        return self._hash(
            "hash-object", "-w", "-t", "commit", "--stdin", given=text.encode()
        )

    def _listed(self, tree: str, *, deep: bool = False) -> Iterator[Entry]:
        options = ("-r", "-l") if deep else ("-l",)
        rest, length = b"", 0
        for part in self._git.listen("ls-tree", "-z", "--full-tree", *options, tree):
            length += len(part)
            if length > _LONGEST_LISTING:
                raise TooLarge(f"the names in a tree take {_LONGEST_LISTING} bytes")
            *lines, rest = (rest + part).split(b"\0")
            for line in lines:
                head, _, path = line.partition(b"\t")
                mode, kind, name, size = head.decode("ascii").split()
                yield Entry(mode, kind, name, -1 if size == "-" else int(size), path)

    def _hash(self, *arguments: str, given: bytes = b"") -> str:
        answer = self._git.ask(*arguments, limit=200, given=given)
        return answer.decode("ascii").strip()


def too_large(what: str, limit: int | None) -> SourceUnavailable:
    if limit is None:
        return SourceUnavailable(f"{what} has more than {MOST_ENTRIES} files")
    return SourceUnavailable(
        f"{what} has more than {limit >> 20} MiB, which is all that this worker takes",
        details="SPACELIFT_LAUNCHER_SOURCE_LIMIT",
    )


def _want(wanted: Narrowing, parts: list[bytes]) -> None:
    here = wanted
    for place, part in enumerate(parts):
        if place == len(parts) - 1:
            here[part] = None
            return
        inner = here.setdefault(part, {})
        if inner is None:
            return  # all of it is wanted already
        here = inner
