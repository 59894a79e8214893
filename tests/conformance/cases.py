"""
OPA's own cases: where they come from, and what each asks.

They are part of the source of OPA, which the Go tools fetch and verify; nothing of
them is kept in this repository.
"""

from __future__ import annotations

import json
import subprocess

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.adapters.policies.builtins.texts import loaded
from launcher.adapters.policies.values import notation, parsed


OPA = "github.com/open-policy-agent/opa@v1.22.0"
FOLDER = Path("v1", "test", "cases", "testdata")
DIALECTS = ("v0", "v1")


@dataclass(frozen=True, kw_only=True)
class Case:
    dialect: str
    group: str
    note: str
    content: dict[str, Any]

    @property
    def modules(self) -> list[str]:
        return self.content.get("modules") or []

    @property
    def variables(self) -> list[str]:
        """What the query binds, as far as the case asks."""
        wanted = self.content.get("want_result") or []
        return sorted({name for bindings in wanted for name in bindings})

    @property
    def question(self) -> str:
        """A module whose ``result`` is an array of the query's bindings."""
        pairs = ", ".join(f'"{name}": {name}' for name in self.variables)
        return (
            "package conformance_question\n\n"
            f"result = [bindings__ | {self.content['query']}; bindings__ = {{{pairs}}}]\n"
        )

    @property
    def data(self) -> bytes:
        return json.dumps(self.content.get("data") or {}).encode()

    @property
    def document(self) -> bytes:
        if "input_term" in self.content:
            return notation(parsed(self.content["input_term"])).encode()
        if "input" in self.content:
            return json.dumps(self.content["input"]).encode()
        return b""


def fetched() -> Path:
    """Let Go fetch and verify the source; returns the folder of the cases."""
    answer = subprocess.run(
        ["go", "mod", "download", "-json", OPA],
        capture_output=True,
        check=True,
        text=True,
    )
    return Path(json.loads(answer.stdout)["Dir"]) / FOLDER


def cases(folder: Path) -> Iterator[Case]:
    for dialect in DIALECTS:
        for path in sorted((folder / dialect).rglob("*.yaml")):
            content = loaded(path.read_text()) or {}
            for case in content.get("cases") or []:
                yield Case(
                    dialect=dialect,
                    group=path.relative_to(folder / dialect).parts[0],
                    note=case["note"],
                    content=case,
                )
