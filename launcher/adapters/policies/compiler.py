"""
From Rego to WebAssembly, by the ``opa`` command.

Facts this is built around:

- ``opa build`` needs to be told the dialect.  A policy that is valid in both is
  v1, since there it means the same or is refused.  One that is valid in neither
  is reported in the dialect whose parser got further.
- In WebAssembly, builtins that OPA implements in Go are left to the host.  What
  a policy may not use at all is taken out of the capabilities, so that the
  compiler refuses it and names the line.
- Which aliases a policy uses is what the compiler complains about when it gets
  none: a name that the policy binds itself is not unsafe, and stays its own.
- ``opa`` starts in 20 ms and builds in 40 ms, yet it may not be there: results
  are kept by content, and a kept one works without it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.adapters.policies import prelude
from launcher.adapters.policies.cache import PolicyCache
from launcher.adapters.policies.opa import ADDED, REFUSED, Opa
from launcher.adapters.policies.sources import Sources, read, unpacked
from launcher.errors import PolicyUnusable
from launcher.settings import RegoVersion


_QUESTION = "spacelift_launcher_question.rego"
_NAMES = "spacelift_launcher_names.rego"
_TYPES = "spacelift_launcher_types.rego"
_OURS = (_QUESTION, _NAMES, _TYPES)
_CAPABILITIES = "capabilities.json"
_CHECKING = "checking.json"
_BUNDLE = "bundle.tar.gz"

_ERRORS_SHOWN = 3
_UNSAFE = "rego_unsafe_var_error"

_Errors = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    wasm: bytes
    source: str
    """Rego; empty when only the compiled form is known."""
    data: str = ""
    """The policy's data, as JSON."""
    allow: bool = False
    """Whether the policy has an ``allow`` of its own, which must then be true."""
    dialect: str = ""
    """Which one it was compiled as; empty if elsewhere."""
    ambiguous: bool = False
    """Whether it would have been valid in the other dialect, too."""
    aliases: tuple[str, ...] = ()
    """Those that were added."""


def compiled(
    path: Path,
    *,
    rego_version: RegoVersion = RegoVersion.AUTO,
    cache: PolicyCache | None = None,
) -> Compiled:
    """
    Compile the policy in *path*, or take what was compiled of it before.

    ``.wasm`` and a bundle with one are taken as they are: what ``opa build -t wasm
    -e spacelift`` makes.

    Raises:
        PolicyUnusable: with a public message, which names the line if it can.
    """
    sources = read(path)
    if sources.wasm is not None:
        return _as_it_is(sources, sources.wasm)
    _check_room(sources)
    key = _key(sources, rego_version)
    opa = Opa.found()
    if opa is None:
        kept = cache and cache.get(key)
        if not kept:
            raise PolicyUnusable(
                f"the policy {path} has to be compiled, and there is no opa command:"
                " install opa 1.0 or newer, or give a policy that was compiled with"
                " `opa build -t wasm -e spacelift` (.tar.gz or .wasm)"
            )
        return _restored(kept, sources)
    tool = _digest(opa.version, opa.capabilities)[:16]
    kept = cache and cache.get(key, tool)
    if kept:
        return _restored(kept, sources)
    made = _compile(opa, sources, rego_version)
    if cache:
        cache.put(key, tool, _kept(made))
    return made


def _as_it_is(sources: Sources, wasm: bytes) -> Compiled:
    return Compiled(
        wasm=wasm,
        source=sources.body,
        data=sources.data.get("data.json", b"").decode(errors="replace"),
        # Nobody asks OPA here, yet each rule is a function with its name.
        allow=b"data.spacelift.allow" in wasm,
    )


def _check_room(sources: Sources) -> None:
    for name in (*sources.modules, *sources.data):
        if name in (*_OURS, _CAPABILITIES, _CHECKING, _BUNDLE):
            raise PolicyUnusable(f"the policy {sources.path} may hold no file {name}")


def _key(sources: Sources, version: RegoVersion) -> str:
    questions = [
        prelude.question(allow=allow) + prelude.types(allow=allow)
        for allow in (False, True)
    ]
    return _digest(
        *(f"{name}\0{text}" for name, text in sorted(sources.modules.items())),
        *(f"{name}\0{data.hex()}" for name, data in sorted(sources.data.items())),
        prelude.names((), prelude.ALIASES),
        *questions,
        *REFUSED,
        json.dumps(ADDED),
        version,
    )


def _kept(made: Compiled) -> bytes:
    facts = asdict(made)
    del facts["wasm"], facts["source"]
    return json.dumps(facts).encode() + b"\n" + made.wasm


def _restored(kept: bytes, sources: Sources) -> Compiled:
    facts, _, wasm = kept.partition(b"\n")
    known = json.loads(facts)
    known["aliases"] = tuple(known["aliases"])
    return Compiled(wasm=wasm, source=sources.body, **known)


def _compile(opa: Opa, sources: Sources, version: RegoVersion) -> Compiled:
    with tempfile.TemporaryDirectory(prefix="spacelift-launcher-") as name:
        work = _Workplace(opa, Path(name), sources)
        candidates = [version]
        if version is RegoVersion.AUTO:
            candidates = [RegoVersion.V1, RegoVersion.V0]
        failures = []
        for number, candidate in enumerate(candidates):
            plan, errors = work.planned(candidate)
            if plan is None:
                failures.append(errors)
                continue
            ambiguous = any(work.planned(c)[0] for c in candidates[number + 1 :])
            return work.built(candidate, plan, ambiguous=ambiguous)
        raise _complaint(max(failures, key=_got_as_far_as), sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is known of a policy that is fit to be compiled."""

    allow: bool
    names: str
    aliases: tuple[str, ...]


class _Workplace:
    """A directory with the policy and the capabilities in it."""

    def __init__(self, opa: Opa, directory: Path, sources: Sources) -> None:
        self._opa = opa
        self._directory = directory
        self._sources = sources
        # A place of its own, which ``opa`` takes for a bundle.
        self._bundle = directory / "policy"
        for name, text in sources.modules.items():
            self._write(name, text.encode())
        for name, data in sources.data.items():
            self._write(name, data)
        (directory / _CAPABILITIES).write_text(opa.capabilities)
        (directory / _CHECKING).write_text(opa.checking)

    def _write(self, name: str, content: bytes) -> None:
        path = self._bundle / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def planned(self, dialect: RegoVersion) -> tuple[_Plan | None, _Errors]:
        """Return how to compile the policy as *dialect*, or why that cannot be."""
        modules: dict[str, dict[str, Any]] = {}
        errors: _Errors = []
        for name in self._sources.modules:
            parsed = self._parsed(name, dialect)
            if isinstance(parsed, list):
                errors += parsed
            else:
                modules[name] = parsed
        if errors:
            return None, errors
        _check_package(modules, self._sources)
        defined = [
            definition
            for name, module in modules.items()
            for definition in prelude.definitions(name, module)
        ]
        if misfits := [each for each in defined if not each.fits]:
            return None, [_misfit(each) for each in misfits]
        allow = any(each.name == "allow" for each in defined)
        self._write(_QUESTION, prelude.question(allow=allow).encode())
        self._write(_TYPES, prelude.types(allow=allow).encode())
        errors = self._checked(prelude.names(defined, (), checking=True), dialect)
        aliases = tuple(sorted(_unsafe(errors) & set(prelude.ALIASES)))
        if aliases:
            names = prelude.names(defined, aliases, checking=True)
            errors = self._checked(names, dialect)
        if errors:
            return None, errors
        names = prelude.names(defined, aliases)
        return _Plan(allow=allow, names=names, aliases=aliases), []

    def _parsed(self, name: str, dialect: RegoVersion) -> dict[str, Any] | _Errors:
        done = self._opa.run(
            "parse",
            *_old(dialect),
            "--format=json",
            "--json-include=locations",
            name,
            directory=self._bundle,
        )
        try:
            module: dict[str, Any] = json.loads(done.stdout or done.stderr)
        except ValueError as exc:
            details = done.stderr[-2000:]
            raise PolicyUnusable("opa parse failed", details=details) from exc
        if done.returncode:
            return _listed(module)
        return module

    def _checked(self, names: str, dialect: RegoVersion) -> _Errors:
        self._write(_NAMES, names.encode())
        done = self._opa.run(
            "check",
            *_old(dialect),
            "--format=json",
            f"--capabilities=../{_CHECKING}",
            *self._sources.modules,
            *_OURS,
            directory=self._bundle,
        )
        if done.returncode == 0:
            return []
        try:
            return _listed(json.loads(done.stderr or done.stdout))
        except ValueError as exc:
            details = done.stderr[-2000:]
            raise PolicyUnusable("opa check failed", details=details) from exc

    def built(self, dialect: RegoVersion, plan: _Plan, *, ambiguous: bool) -> Compiled:
        self._write(_NAMES, plan.names.encode())
        self._write(_QUESTION, prelude.question(allow=plan.allow).encode())
        (self._bundle / _TYPES).unlink()
        done = self._opa.run(
            "build",
            *_old(dialect),
            "--target=wasm",
            f"--entrypoint={prelude.ENTRYPOINT}",
            f"--capabilities={_CAPABILITIES}",
            f"--output={_BUNDLE}",
            "--bundle",
            self._bundle.name,
            directory=self._directory,
        )
        if done.returncode:
            raise PolicyUnusable(
                f"the policy {self._sources.path} cannot be compiled to WebAssembly",
                details=(done.stderr or done.stdout)[-2000:],
            )
        path = self._directory / _BUNDLE
        members = unpacked(path.read_bytes(), path)
        return Compiled(
            wasm=members["policy.wasm"],
            source=self._sources.body,
            data=members.get("data.json", b"").decode(),
            allow=plan.allow,
            dialect=dialect,
            ambiguous=ambiguous,
            aliases=plan.aliases,
        )


def _old(dialect: RegoVersion) -> list[str]:
    return ["--v0-compatible"] if dialect is RegoVersion.V0 else []


def _listed(answer: Mapping[str, Any]) -> _Errors:
    errors: _Errors = answer.get("errors") or [{"message": str(answer)[:200]}]
    return errors


def _unsafe(errors: _Errors) -> set[str]:
    return {
        str(error["message"]).removeprefix("var ").removesuffix(" is unsafe")
        for error in errors
        if error.get("code") == _UNSAFE
    }


def _misfit(definition: prelude.Definition) -> dict[str, Any]:
    return {
        "message": prelude.EXPECTED[definition.name],
        "location": {"file": definition.module, "row": definition.row, "col": 1},
    }


def _got_as_far_as(errors: _Errors) -> tuple[bool, int]:
    parsed = all(error.get("code") != "rego_parse_error" for error in errors)
    return parsed, min(_row(error) for error in errors)


def _row(error: Mapping[str, Any]) -> int:
    return int(error.get("location", {}).get("row", 0))


def _complaint(errors: _Errors, sources: Sources) -> PolicyUnusable:
    return PolicyUnusable(
        "; ".join(_described(errors, sources)),
        details="\n".join(_pictured(errors, sources)),
    )


def _described(errors: _Errors, sources: Sources) -> Iterator[str]:
    """One clause for each error, with file and line, without any source."""
    theirs = [e for e in errors if e.get("location", {}).get("file") not in _OURS]
    for error in theirs[:_ERRORS_SHOWN]:
        yield f"{_place(error, sources)}: {_message(error)}"
    if len(theirs) > _ERRORS_SHOWN:
        yield f"and {len(theirs) - _ERRORS_SHOWN} more"
    if not theirs:
        # Types that do not fit show up where ours are compared with them.
        wrong = [
            text
            for name, text in prelude.EXPECTED.items()
            if any(f"{prelude.PACKAGE}_{name}" in str(e) for e in errors)
        ]
        yield f"{sources.path}: {'; '.join(wrong or [_message(errors[0])])}"


def _place(error: Mapping[str, Any], sources: Sources) -> str:
    file = error.get("location", {}).get("file", "")
    return f"{sources.where(file) if file else sources.path}:{_row(error)}"


def _message(error: Mapping[str, Any]) -> str:
    message = str(error.get("message", "unknown error")).partition("\n")[0]
    function = message.removeprefix("undefined function ")
    if function in REFUSED:
        return f"{function} is not available: {REFUSED[function]}"
    name = message.removeprefix("var ").removesuffix(" is unsafe")
    if name in prelude.ELSEWHERE:
        return f"{message}: {prelude.ELSEWHERE[name]}"
    return message


def _pictured(errors: Iterable[dict[str, Any]], sources: Sources) -> Iterator[str]:
    """The lines themselves, with a caret under the place; for the operator."""
    for error in errors:
        location = error.get("location", {})
        text = sources.modules.get(location.get("file", ""))
        if text is None:
            yield str(error.get("message", ""))
            continue
        column = int(location.get("col", 1))
        lines = text.splitlines()
        line = lines[_row(error) - 1] if 0 < _row(error) <= len(lines) else ""
        # OPA counts bytes; a tab stays one, so that the caret is below its place.
        before = line.encode()[: column - 1].decode(errors="ignore")
        blank = "".join("\t" if letter == "\t" else " " for letter in before)
        yield f"{_place(error, sources)}:{column}: {_message(error)}\n{line}\n{blank}^"


def _check_package(modules: Mapping[str, Mapping[str, Any]], sources: Sources) -> None:
    packages = [".".join(prelude.package(module)) for module in modules.values()]
    if "spacelift" not in packages:
        raise PolicyUnusable(
            f"the policy {sources.path} is of package"
            f" {', '.join(sorted(set(packages)))}: begin it with `package spacelift`"
        )


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
