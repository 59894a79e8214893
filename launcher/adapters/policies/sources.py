"""
What a policy consists of on disk: one file, a directory, a bundle, or WebAssembly.

- Directories are read as ``opa`` reads bundles: all ``.rego`` files, and
  ``data.json`` or ``data.yaml`` at the path of the document they hold.  Tests of the
  policy (``*_test.rego``) are no part of it.
- What begins with a dot is left out: Kubernetes mounts a directory's files as
  links into ``..data``, and would otherwise show each of them three times.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from launcher.errors import PolicyUnusable


_LARGEST = 16 << 20
_DATA = ("data.json", "data.yaml", "data.yml")

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""What changes when the policy on disk does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    path: Path
    single: bool
    """Whether *path* is the one file of Rego, so that it names all locations."""
    modules: dict[str, str] = field(default_factory=dict)
    """Rego by its place below the root."""
    data: dict[str, bytes] = field(default_factory=dict)
    """Files with data, likewise."""
    wasm: bytes | None = None
    """What was compiled elsewhere; then *modules* is for reading only."""

    @property
    def body(self) -> str:
        """All of the Rego, to be shown."""
        if self.single or len(self.modules) == 1:
            return "".join(self.modules.values())
        return "\n".join(
            f"# {name}\n{text}" for name, text in sorted(self.modules.items())
        )

    def where(self, name: str) -> str:
        """How a person finds the module *name*."""
        return str(self.path if self.single else self.path / name)


def read(path: Path) -> Sources:
    """
    Read the policy in *path*.

    Raises:
        PolicyUnusable: it is not there, not readable, or not text.
    """
    try:
        if path.is_dir():
            files = {
                each.relative_to(path).as_posix(): _content(each)
                for each in _below(path)
            }
            return _sorted_out(path, files)
        if not path.is_file():
            raise PolicyUnusable(f"there is no policy file {path}")
        content = _content(path)
    except OSError as exc:
        raise PolicyUnusable(
            f"the policy {path} cannot be read: {exc.strerror}"
        ) from exc
    if path.suffix == ".wasm":
        return Sources(path=path, single=True, wasm=content)
    if path.name.endswith((".tar.gz", ".tgz")):
        return _sorted_out(path, unpacked(content, path))
    return Sources(
        path=path, single=True, modules={"policy.rego": _text(content, str(path))}
    )


def fingerprint(path: Path) -> Fingerprint:
    """Return what tells this state of *path* from another; empty if unreadable."""
    try:
        files = _below(path) if path.is_dir() else [path]
        return tuple(
            (str(each), status.st_mtime_ns, status.st_size, status.st_ino)
            for each in files
            for status in (each.stat(),)
        )
    except OSError:
        return ()


def unpacked(content: bytes, path: Path) -> dict[str, bytes]:
    """
    Return the files of a bundle that matter.

    Raises:
        PolicyUnusable: it is no bundle, or too large.
    """
    members: dict[str, bytes] = {}
    left = 2 * _LARGEST
    try:
        # Decompressed here, so that a small file cannot become a large one.
        with gzip.open(io.BytesIO(content)) as file:
            plain = file.read(left + 1)
        if len(plain) > left:
            raise PolicyUnusable(f"the bundle {path} is larger than 32 MiB")
        with tarfile.open(fileobj=io.BytesIO(plain)) as bundle:
            for member in bundle:
                opened = bundle.extractfile(member)
                name = PurePosixPath("/", member.name).relative_to("/")
                if opened is not None and ".." not in name.parts:
                    members[str(name)] = opened.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as exc:
        raise PolicyUnusable(f"the policy {path} is not a bundle of OPA") from exc
    return {name: data for name, data in members.items() if _matters(name)}


def _matters(name: str) -> bool:
    base = PurePosixPath(name).name
    rego = base.endswith(".rego") and not base.endswith("_test.rego")
    return rego or base in _DATA or name == "policy.wasm"


def _below(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and _matters(name):
                yield Path(folder, name)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise PolicyUnusable(f"the policy {path} is larger than 16 MiB")
    return content


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise PolicyUnusable(
            f"the policy {where} is not UTF-8 text: line {line}"
        ) from None


def _sorted_out(path: Path, files: dict[str, bytes]) -> Sources:
    if sum(map(len, files.values())) > 2 * _LARGEST:
        raise PolicyUnusable(f"the policy {path} is larger than 32 MiB")
    modules = {
        name: _text(content, str(path / name))
        for name, content in files.items()
        if name.endswith(".rego")
    }
    wasm = files.get("policy.wasm") if not path.is_dir() else None
    if not modules and wasm is None:
        raise PolicyUnusable(
            f"the policy {path} holds neither .rego files nor a policy.wasm"
        )
    data = {
        name: content
        for name, content in files.items()
        if PurePosixPath(name).name in _DATA
    }
    return Sources(path=path, single=False, modules=modules, data=data, wasm=wasm)
