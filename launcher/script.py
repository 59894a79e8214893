"""
The shell text of one phase: hooks, the vendor's commands, hooks again.

All of it is one session, so what an earlier command exports, a later one sees.
Commands are chained with ``&&``, and each is parsed on its own by ``eval``: an
open quote, a comment or a brace too many in one cannot change the meaning of the
next.  What is exported at the end of a phase is there in the following ones of
the same container.
"""

from __future__ import annotations

import re
import shlex

from collections.abc import Iterable, Mapping

from launcher.errors import JobInvalid
from launcher.model import PhaseScript


_PRIVATE = "/run/spacelift"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def phase_script(
    name: str,
    commands: Iterable[str],
    *,
    directory: str,
    export: Mapping[str, str],
    unset: Iterable[str] = (),
    grace_seconds: float = 30.0,
) -> PhaseScript:
    """
    Chain *commands* in *directory* with the variables *export*.

    Raises:
        JobInvalid: a variable that no shell can hold.
    """
    # Whoever is signalled waits for the tool, which got the signal, too, and then
    # ends with the tool's exit code, without going on to the next command.
    lines = ["trap exit HUP INT TERM"]
    lines += [f"[ ! -e {_PRIVATE}/environment ] || . {_PRIVATE}/environment"]
    lines += [f"unset {checked(variable, '')}" for variable in unset]
    lines += [
        f"export {checked(variable, value)}={shlex.quote(value)}"
        for variable, value in export.items()
    ]
    lines += [
        f"if [ ! -d {shlex.quote(directory)} ]; then",
        f"  echo {shlex.quote(f'The folder {directory} does not exist.')}",
        "  exit 1",
        "fi",
        f"cd -- {shlex.quote(directory)} || exit",
        " && ".join(["true", *(f"eval {shlex.quote(command)}" for command in commands)])
        + " || exit",
        f"(umask 077 && export -p >{_PRIVATE}/environment) || exit",
        f": >{_PRIVATE}/reached",
    ]
    return PhaseScript(
        name=name, text="\n".join(lines) + "\n", grace_seconds=grace_seconds
    )


def checked(name: str, value: str) -> str:
    """Return *name*, fit for a shell; the value is never part of an error."""
    if not _NAME.fullmatch(name):
        raise JobInvalid(f"{name!r} cannot be the name of a variable")
    if "\0" in value:
        raise JobInvalid(f"the value of variable {name} contains a NUL byte")
    return name
