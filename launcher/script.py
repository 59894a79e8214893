"""
The shell text of one phase: hooks, the vendor's commands, hooks again.

All of it is one session, so what an earlier command exports, a later one sees.
Commands are chained with ``&&``, each in braces, and each is parsed on its own by
``eval``: an open quote, a comment or a brace too many in one cannot change the
meaning of the next.  What is exported at the end of a phase is there in the
following ones, in another container, too.

Around the commands there are special builtins only, all of them read before the
first command runs: no function, alias or option of a hook changes what they do.
"""

from __future__ import annotations

import re
import shlex

from collections.abc import Iterable, Mapping

from launcher.errors import JobInvalid
from launcher.model import WORKSPACE, PhaseScript


_PRIVATE = "/run/spacelift"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
KEPT = f"{WORKSPACE}/.spacelift-environment"
"""What phases have exported, as commands; nothing of what they were given."""

# Of one shell, one container or one moment.
_PASSING = (
    "HOSTNAME",
    "OLDPWD",
    "PWD",
    "SHLVL",
    "TF_VAR_spacelift_final_run_state",
)


def phase_script(
    name: str,
    commands: Iterable[str],
    *,
    directory: str,
    export: Mapping[str, str],
    unset: Iterable[str] = (),
    plain: Mapping[str, str] | None = None,
    grace_seconds: float = 30.0,
    first: bool = False,
    prepare: Iterable[str] = (),
    conclude: Iterable[str] = (),
) -> PhaseScript:
    """
    Chain *commands* in *directory* with the variables *plain* and *export*.

    The first phase of a run starts with these variables alone; a later one with what
    those before it have exported besides, or changed of *plain*.  What is in *export*
    and *unset* is never passed on that way, nor taken from there.  *prepare* and
    *conclude* are commands of ours, around all others.

    Raises:
        JobInvalid: a variable that no shell can hold.
    """
    # Whoever is signalled waits for the tool, which got the signal, too, and then
    # ends with the tool's exit code, without going on to the next command.
    lines = ["trap exit HUP INT TERM"]
    unset, plain = [checked(variable, "") for variable in unset], plain or {}
    given = dict.fromkeys((*_PASSING, *unset, *export))
    lines += _exports(plain)
    lines += ["umask 077", f": {'>|' if first else '>>'}{KEPT}", "umask 022"]
    lines += [f". {KEPT}"]
    lines += [f"unset {variable}" for variable in unset]
    lines += _exports(export)
    lines += [
        f"if [ ! -d {shlex.quote(directory)} ]; then",
        f"  echo {shlex.quote(f'The folder {directory} does not exist.')}",
        "  exit 1",
        "fi",
        f"cd -- {shlex.quote(directory)} || exit",
        *(f"{command} || exit" for command in prepare),
        "{",
        " && ".join(
            ["true"]
            + [
                f": >|{_PRIVATE}/at.{number} && {{ eval {shlex.quote(command)}; }}"
                for number, command in enumerate(commands, 1)
            ]
        )
        + " || exit",
        f": >|{_PRIVATE}/at.end",
        *(f"{command} || exit" for command in conclude),
        "(",
        f"unset {' '.join(given)} || exit",
        # What nobody has changed is given to the next phase, too.
        *(
            f"case ${{{variable}-}} in {shlex.quote(value)}) unset {variable} ;; esac"
            for variable, value in plain.items()
        ),
        "export -p",
        f") >|{KEPT} || exit",
        f": >|{_PRIVATE}/reached",
        "}",
    ]
    return PhaseScript(
        name=name, text="\n".join(lines) + "\n", grace_seconds=grace_seconds
    )


def _exports(variables: Mapping[str, str]) -> list[str]:
    return [
        f"export {checked(variable, value)}={shlex.quote(value)}"
        for variable, value in variables.items()
    ]


def checked(name: str, value: str) -> str:
    """Return *name*, fit for a shell; the value is never part of an error."""
    if not _NAME.fullmatch(name):
        raise JobInvalid(f"{name!r} cannot be the name of a variable")
    if "\0" in value:
        raise JobInvalid(f"the value of variable {name} contains a NUL byte")
    return name
