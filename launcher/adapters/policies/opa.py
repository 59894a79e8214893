"""The ``opa`` command: which one there is, and what it may know."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.adapters.policies.prelude import CHECKS
from launcher.errors import PolicyUnusable
from launcher.heartbeat import beat


_NOT_SELF_CONTAINED = "policies must be self-contained"
REFUSED = {
    "http.send": _NOT_SELF_CONTAINED,
    "opa.runtime": _NOT_SELF_CONTAINED,
    "rego.parse_module": _NOT_SELF_CONTAINED,
    "time.now_ns": "take the time from the input",
    "trace": _NOT_SELF_CONTAINED,
}
"""Functions that no policy may use, and why not."""

_STRING = {"type": "string"}
ADDED: tuple[Mapping[str, Any], ...] = (
    {
        "name": "exec",
        "nondeterministic": True,
        "decl": {
            "type": "function",
            "args": [{"type": "array", "dynamic": _STRING}],
            "result": {
                "type": "object",
                "static": [
                    {"key": "status", "value": {"type": "number"}},
                    {"key": "stdout", "value": _STRING},
                    {"key": "stdout_cut", "value": {"type": "boolean"}},
                    {"key": "stderr", "value": _STRING},
                    {"key": "stderr_cut", "value": {"type": "boolean"}},
                ],
            },
        },
    },
    {
        "name": "sanitized",
        "nondeterministic": True,
        "decl": {"type": "function", "args": [_STRING], "result": _STRING},
    },
)
"""Functions of ours, as OPA's compiler is told of them."""

_SECONDS = 60.0


class Opa:
    """The ``opa`` command on PATH."""

    def __init__(self, command: str) -> None:
        """
        Get to know *command*.

        Raises:
            PolicyUnusable: it does not work, or is too old.
        """
        self._command = command
        version = self.run("version").stdout.partition("\n")[0]
        self.version = version.removeprefix("Version:").strip()
        major = self.version.partition(".")[0]
        if not major.isdecimal() or int(major) < 1:
            raise PolicyUnusable(
                f"the opa command is of version {self.version}; install 1.0 or newer"
            )
        current = json.loads(self.run("capabilities", "--current").stdout)
        self.capabilities = _capabilities(current, ADDED)
        self.checking = _capabilities(current, (*ADDED, *CHECKS))

    @classmethod
    def found(cls) -> Opa | None:
        command = shutil.which("opa")
        return cls(command) if command else None

    def run(
        self, *arguments: str, directory: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """
        Run it to its end.

        Raises:
            PolicyUnusable: it cannot be started, or does not come to an end.
        """
        beat()
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


def _capabilities(
    current: Mapping[str, Any], added: tuple[Mapping[str, Any], ...]
) -> str:
    """Without what is refused, and with what we add."""
    builtins = [
        builtin
        for builtin in current.get("builtins", ())
        if builtin["name"] not in REFUSED
    ]
    return json.dumps({**current, "builtins": [*builtins, *added]}, sort_keys=True)
