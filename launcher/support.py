"""
What goes into a support bundle, without a secret in it.

Two walls: nothing is put in that is known to be secret, or that comes from a job; and
what is put in is masked with every value that the launcher itself keeps secret, like
the log of a job.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import enum
import importlib.metadata
import json
import platform
import re
import sys

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.environment import in_url
from launcher.images import Pattern, Reference
from launcher.journal import Journal
from launcher.model import Address, Mount
from launcher.output.mask import Index
from launcher.output.needles import needles
from launcher.parsing import headers_of
from launcher.policy import Program
from launcher.secret import Secret
from launcher.settings import Settings
from launcher.source_rules import SourcePattern
from launcher.variables import variables_of
from launcher.wire.jobs import Variable


Part = Mapping[str, str]
"""Texts of files, by name."""

_PLAIN = (
    *(bool, int, float, enum.Enum, Path, Reference, Pattern, Address, Mount, Program),
    SourcePattern,
)
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
_SHORTEST = 6
"""Characters of a part of a secret that is one by itself."""
_SPOKEN = frozenset({"entered", "sending", "ended", "cancelled"})
"""Steps of the journal whose fact is a word of ours."""


def parts(
    settings: Settings,
    *,
    readyz: Mapping[str, Any],
    metrics: str,
    journal: Journal | None,
    log: Iterable[str],
    engine: Mapping[str, Any],
    disks: Mapping[str, float],
) -> Part:
    """Everything there is to know, as files; masked."""
    made = {
        "versions.json": _json(versions()),
        "settings.json": _json(redacted(settings)),
        "readyz.json": _json(readyz),
        "metrics.txt": metrics,
        "journal.json": _json(steps(journal) if journal else []),
        "log.jsonl": "".join(log),
        "engine.json": _json(engine),
        "disks.json": _json(disks),
    }
    hide = Index(needles(secrets(settings))).text
    return {name: hide(text) for name, text in made.items()}


def versions() -> dict[str, str]:
    """Return the versions of what runs, and of what it is made of."""
    libraries = {
        each.metadata["Name"]: each.version
        for each in importlib.metadata.distributions()
    }
    return {
        "spacelift-launcher": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        **{f"library {name}": version for name, version in sorted(libraries.items())},
    }


def redacted(settings: Settings) -> dict[str, Any]:
    """Return every variable with its value, where that can be no secret."""
    return {name: _shown(value) for name, value in _values(settings)}


def _values(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Names of variables, and what was made of them."""
    for group in dataclasses.fields(settings):
        values = getattr(settings, group.name)
        if dataclasses.is_dataclass(values) and not isinstance(values, type):
            for field, variable in variables_of(type(values)):
                yield variable.name, getattr(values, field)


def _shown(value: object) -> Any:  # noqa: ANN401 (a JSON value)
    shown: Any = f"a {type(value).__name__}, left out"
    match value:
        case None:
            shown = None
        case Secret():
            shown = "set, and secret"
        case str():
            hidden = "-----BEGIN" in value
            shown = "a certificate" if hidden else _USERINFO.sub("", value)
        case Variable():
            shown = f"{value.name} (its value is left out)"
        case Mapping():
            shown = {str(key): "left out" for key in value}
        case tuple() | list() | frozenset():
            shown = [_shown(each) for each in value]
        case _ if isinstance(value, _PLAIN):
            shown = value if isinstance(value, int | float) else str(value)
        case _:
            pass
    return shown


def secrets(settings: Settings) -> frozenset[bytes]:
    """Return what the launcher itself keeps secret, as far as its settings know."""
    return frozenset(_secrets(settings))


def _secrets(settings: Settings) -> Iterator[bytes]:
    for _, value in _values(settings):
        match value:
            case Secret():
                for text in _inside(value.reveal()):
                    yield text.encode("utf-8", "surrogateescape")
                    yield from in_url(text)
            case str():
                yield from in_url(value)
            case tuple():
                yield from (
                    each.value.encode("utf-8", "surrogateescape")
                    for each in value
                    if isinstance(each, Variable) and each.secret
                )
            case _:
                pass


def _inside(text: str, depth: int = 4) -> Iterator[str]:
    """A secret, and what it is made of: JSON, base64, pairs, headers."""
    yield text
    if depth == 0 or len(text) < _SHORTEST:
        return
    parts: list[str] = []
    with contextlib.suppress(ValueError, RecursionError):
        parts += _leaves(json.loads(text))
    with contextlib.suppress(ValueError):
        parts.append(base64.b64decode(text, validate=True).decode())
    with contextlib.suppress(ValueError):
        parts += headers_of(text).values()
    if text.count(":") == 1:
        parts.append(text.partition(":")[2])
    for part in parts:
        if part != text and len(part) >= _SHORTEST:
            yield from _inside(part, depth - 1)


def _leaves(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for entry in value.values():
                yield from _leaves(entry)
        case list():
            for entry in value:
                yield from _leaves(entry)
        case _:
            pass


def steps(journal: Journal) -> list[dict[str, Any]]:
    """Return the jobs that are not over, and how far each of them has got."""
    return [
        {
            "job": entry.past.offer.job,
            "run": entry.past.offer.run,
            "slot": entry.past.slot,
            "steps": [
                f"{step} {fact.decode('utf-8', 'replace')}" if step in _SPOKEN else step
                for step, fact in journal.steps(entry.past.identity)
            ],
        }
        for entry in journal.unfinished()
    ]


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"
