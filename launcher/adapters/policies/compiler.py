"""
From Rego to WebAssembly, by the ``opa`` command.

Facts this is built around:

- ``opa build`` needs to be told the dialect.  A policy that is valid in both is
  v1, since there it means the same or is refused.  One that is valid in neither
  is reported in the dialect whose parser got further.
- In WebAssembly, builtins that OPA implements in Go are left to the host.  What
  a policy may not use at all is taken out of the capabilities, so that the
  compiler refuses it and names the line.
- ``deny["x"] if …`` is no set but an object.  The prelude sorts ``deny``, so the
  type checker refuses that here, and not the first run by an error.
- ``opa`` starts in 20 ms and builds in 40 ms, yet it may not be there: results
  are kept by content, and a kept one works without it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.adapters.policies.cache import PolicyCache
from launcher.errors import PolicyUnusable
from launcher.settings import RegoVersion


ENTRYPOINT = "spacelift_launcher/prelude/result"

PRELUDE = Path(__file__).with_name("prelude.rego").read_text()

_NOT_SELF_CONTAINED = "policies must be self-contained"
REFUSED = {
    "http.send": _NOT_SELF_CONTAINED,
    "opa.runtime": _NOT_SELF_CONTAINED,
    "rego.parse_module": _NOT_SELF_CONTAINED,
    "time.now_ns": "take the time from the input",
    "trace": _NOT_SELF_CONTAINED,
    "exec": "this version of the launcher does not have it yet",
}
"""Functions that no policy may use, and why not."""

_ADDED = (
    {
        "name": "sanitized",
        "decl": {
            "type": "function",
            "args": [{"type": "string"}],
            "result": {"type": "string"},
        },
    },
)

# Relative, since they end up in the compiled policy and in its errors.
_POLICY = "policy.rego"
_PRELUDE_NAME = "prelude.rego"
_CAPABILITIES = "capabilities.json"
_BUNDLE = "bundle.tar.gz"
_FILES = (f"--capabilities={_CAPABILITIES}", _PRELUDE_NAME, _POLICY)

_SECONDS = 60.0
_LARGEST_SOURCE = 16 << 20
_ERRORS_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    wasm: bytes
    source: str
    """Rego; empty when only the compiled form is known."""


def compiled(
    path: Path,
    *,
    rego_version: RegoVersion = RegoVersion.AUTO,
    cache: PolicyCache | None = None,
) -> Compiled:
    """
    Compile the policy in *path*, or take what was compiled of it before.

    ``.wasm`` and ``.tar.gz`` are taken as they are: what ``opa build -t wasm
    -e spacelift`` makes.

    Raises:
        PolicyUnusable: with a public message, which names the line if it can.
    """
    content = _content(path)
    if path.suffix == ".wasm":
        return Compiled(wasm=content, source="")
    if path.name.endswith((".tar.gz", ".tgz")):
        return _from_bundle(content, path)
    try:
        source = content.decode()
    except UnicodeDecodeError:
        raise PolicyUnusable(f"the policy {path} is not UTF-8 text") from None
    key = _digest(source, PRELUDE, *REFUSED, *map(str, _ADDED), rego_version)
    opa = _Opa.found()
    if opa is None:
        wasm = cache and cache.get(key)
        if not wasm:
            raise PolicyUnusable(
                f"the policy {path} has to be compiled, and there is no opa command:"
                " install opa 1.0 or newer, or give a policy that was compiled with"
                " `opa build -t wasm -e spacelift` (.tar.gz or .wasm)"
            )
        return Compiled(wasm=wasm, source=source)
    tool = _digest(opa.version, opa.capabilities)[:16]
    wasm = cache and cache.get(key, tool)
    if not wasm:
        wasm = _compile(opa, source, path, rego_version)
        if cache:
            cache.put(key, tool, wasm)
    return Compiled(wasm=wasm, source=source)


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise PolicyUnusable(f"there is no policy file {path}")
        with path.open("rb") as file:
            content = file.read(_LARGEST_SOURCE + 1)
    except OSError as exc:
        raise PolicyUnusable(
            f"the policy {path} cannot be read: {exc.strerror}"
        ) from exc
    if len(content) > _LARGEST_SOURCE:
        raise PolicyUnusable(f"the policy {path} is larger than 16 MiB")
    return content


def _from_bundle(content: bytes, path: Path) -> Compiled:
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as bundle:
            for member in bundle:
                file = bundle.extractfile(member)
                if file is not None and member.name.endswith((".wasm", ".rego")):
                    members[member.name.lstrip("/")] = file.read(_LARGEST_SOURCE)
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise PolicyUnusable(f"the policy {path} is not a bundle of OPA") from exc
    if "policy.wasm" not in members:
        raise PolicyUnusable(
            f"the bundle {path} holds no policy.wasm: build it with"
            " `opa build -t wasm -e spacelift`"
        )
    sources = [members[name] for name in sorted(members) if name.endswith(".rego")]
    source = b"\n".join(sources).decode(errors="replace")
    return Compiled(wasm=members["policy.wasm"], source=source)


class _Opa:
    """The ``opa`` command on PATH."""

    def __init__(self, command: str) -> None:
        self._command = command
        version = self.run("version").stdout.partition("\n")[0]
        self.version = version.removeprefix("Version:").strip()
        major = self.version.partition(".")[0]
        if not major.isdecimal() or int(major) < 1:
            raise PolicyUnusable(
                f"the opa command is of version {self.version}; install 1.0 or newer"
            )
        current = self.run("capabilities", "--current").stdout
        self.capabilities = _capabilities(json.loads(current))

    @classmethod
    def found(cls) -> _Opa | None:
        command = shutil.which("opa")
        return cls(command) if command else None

    def run(
        self, *arguments: str, directory: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._command, *arguments],
                cwd=directory,
                # Nothing of ours, least of all a token.
                env={"PATH": os.defpath},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise PolicyUnusable(
                "the opa command does not work", details=str(exc)
            ) from exc


def _capabilities(current: Mapping[str, Any]) -> str:
    """Without what is refused, and with what we add."""
    builtins = [
        builtin
        for builtin in current.get("builtins", ())
        if builtin["name"] not in REFUSED
    ]
    return json.dumps({**current, "builtins": [*builtins, *_ADDED]}, sort_keys=True)


def _compile(opa: _Opa, source: str, path: Path, version: RegoVersion) -> bytes:
    with tempfile.TemporaryDirectory(prefix="spacelift-launcher-") as name:
        work = _Workplace(opa, Path(name))
        work.write(source)
        dialect = _dialect(work, path, version)
        _check_package(work.parsed(dialect), path)
        return work.built(dialect, path)


class _Workplace:
    """A directory with the policy, the prelude and the capabilities in it."""

    def __init__(self, opa: _Opa, directory: Path) -> None:
        self._opa = opa
        self._directory = directory

    def write(self, source: str) -> None:
        for name, content in (
            (_POLICY, source),
            (_PRELUDE_NAME, PRELUDE),
            (_CAPABILITIES, self._opa.capabilities),
        ):
            (self._directory / name).write_text(content)

    def errors(self, dialect: RegoVersion) -> list[dict[str, Any]]:
        """What the compiler has against the policy."""
        result = self._run("check", dialect, "--format=json", *_FILES)
        if result.returncode == 0:
            return []
        try:
            errors: list[dict[str, Any]] = json.loads(result.stderr or result.stdout)[
                "errors"
            ]
        except (ValueError, KeyError) as exc:
            details = result.stderr[-2000:]
            raise PolicyUnusable("opa check failed", details=details) from exc
        return errors

    def parsed(self, dialect: RegoVersion) -> dict[str, Any]:
        result = self._run("parse", dialect, "--format=json", _POLICY)
        try:
            module: dict[str, Any] = json.loads(result.stdout)
        except ValueError as exc:
            details = result.stderr[-2000:]
            raise PolicyUnusable("opa parse failed", details=details) from exc
        return module

    def built(self, dialect: RegoVersion, path: Path) -> bytes:
        result = self._run(
            "build",
            dialect,
            "--target=wasm",
            f"--entrypoint={ENTRYPOINT}",
            f"--output={_BUNDLE}",
            *_FILES,
        )
        if result.returncode:
            raise PolicyUnusable(
                f"the policy {path} cannot be compiled to WebAssembly",
                details=result.stderr[-2000:],
            )
        return _from_bundle((self._directory / _BUNDLE).read_bytes(), path).wasm

    def _run(
        self, command: str, dialect: RegoVersion, *arguments: str
    ) -> subprocess.CompletedProcess[str]:
        old = ["--v0-compatible"] if dialect is RegoVersion.V0 else []
        return self._opa.run(command, *old, *arguments, directory=self._directory)


def _dialect(work: _Workplace, path: Path, version: RegoVersion) -> RegoVersion:
    candidates = [version]
    if version is RegoVersion.AUTO:
        candidates = [RegoVersion.V1, RegoVersion.V0]
    failures = []
    for candidate in candidates:
        errors = work.errors(candidate)
        if not errors:
            return candidate
        failures.append(errors)
    errors = max(failures, key=_got_as_far_as)
    raise PolicyUnusable(
        "; ".join(_described(errors, path)),
        details=json.dumps(errors),
    )


def _got_as_far_as(errors: list[dict[str, Any]]) -> tuple[bool, int]:
    parsed = all(error.get("code") != "rego_parse_error" for error in errors)
    return parsed, min(_row(error) for error in errors)


def _row(error: Mapping[str, Any]) -> int:
    return int(error.get("location", {}).get("row", 0))


def _described(errors: list[dict[str, Any]], path: Path) -> Iterator[str]:
    """One clause for each error, with file and line, without any source."""
    theirs = [e for e in errors if e.get("location", {}).get("file") == _POLICY]
    for error in theirs[:_ERRORS_SHOWN]:
        message = str(error.get("message", "unknown error")).partition("\n")[0]
        function = message.removeprefix("undefined function ")
        if function in REFUSED:
            message = f"{function} is not available: {REFUSED[function]}"
        yield f"{path}:{_row(error)}: {message}"
    if len(theirs) > _ERRORS_SHOWN:
        yield f"and {len(theirs) - _ERRORS_SHOWN} more"
    if not theirs:
        yield (
            f"{path}: deny must be a set of strings (in v1 `deny contains … if …`)"
            " and sample true or false"
        )


def _check_package(module: Mapping[str, Any], path: Path) -> None:
    package = [part["value"] for part in module["package"]["path"]]
    if package != ["data", "spacelift"]:
        raise PolicyUnusable(
            f"the policy {path} is of package {'.'.join(map(str, package[1:]))}:"
            " begin it with `package spacelift`"
        )


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
