"""
How a field of the settings is declared, read from variables, and documented.

One field, one `Variable`: its name, its parser, its default, an example.  The
docstring under the field says what it means; `table` prints all of it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload


Value = TypeVar("Value")
Unset = TypeVar("Unset")
Group = TypeVar("Group")


class Environment:
    """The variables, and what turned out to be wrong with them."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.problems: list[str] = []

    def get(self, name: str) -> str | None:
        """The value without white space around it; None when nothing is left."""
        return self.variables.get(name, "").strip() or None

    def starting(self, prefix: str) -> dict[str, str]:
        """What follows *prefix* in names, and the values."""
        return {
            name.removeprefix(prefix): value
            for name, value in sorted(self.variables.items())
            if name.startswith(prefix)
        }

    def parse(
        self, name: str, text: str, parse: Callable[[str], Value], example: str
    ) -> Value | None:
        """Return what *parse* makes of *text*, or note its complaint."""
        try:
            return parse(text)
        except ValueError as exc:
            self.complain(name, str(exc), example)
            return None

    def complain(self, name: str, problem: str, example: str = "") -> None:
        hint = f" (example: {name}={example})" if example else ""
        self.problems.append(f"{name}: {problem}{hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """What a field's metadata knows about it."""

    name: str
    parse: Callable[[str], object]
    example: str
    default: str
    """As documented."""
    file: str = ""
    """Another variable, which may name a file with the value instead."""
    credential: str = ""
    """Name of a file in $CREDENTIALS_DIRECTORY, for want of the other two."""
    read: Callable[[Environment, Variable], object] | None = None
    """Reads a field that is more than one variable; None: keep the default."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, self.file) if self.file else (self.name,)


Read = Callable[[Environment, Variable], object]


@overload
def setting(
    name: str,
    parse: Callable[[str], Value],
    *,
    example: str,
    default: str,
    read: Read | None = None,
) -> Value: ...


@overload
def setting(
    name: str,
    parse: Callable[[str], object],
    *,
    example: str,
    unset: Unset,
    shown: str = "",
    file: str = "",
    credential: str = "",
    read: Read | None = None,
) -> Unset: ...


@overload
def setting(
    name: str,
    parse: Callable[[str], Value],
    *,
    example: str,
    shown: str = "",
    file: str = "",
    credential: str = "",
    read: Read | None = None,
) -> Value | None: ...


def setting(
    name: str,
    parse: Callable[[str], object],
    *,
    example: str,
    default: str | None = None,
    unset: object = None,
    shown: str = "",
    file: str = "",
    credential: str = "",
    read: Read | None = None,
) -> object:
    """Declare a field; *default* is text like a value, *unset* a ready value."""
    variable = Variable(
        name=name,
        parse=parse,
        example=example,
        default=shown or (f"`{default}`" if default is not None else "unset"),
        file=file,
        credential=credential,
        read=read,
    )
    value = unset if default is None else parse(default)
    metadata = {"variable": variable}
    return dataclasses.field(default_factory=lambda: value, metadata=metadata)


def variables_of(group: type[Any]) -> Iterator[tuple[str, Variable]]:
    """Names of the fields of *group*, and how they are read."""
    for field in dataclasses.fields(group):
        yield field.name, field.metadata["variable"]


def names(groups: Iterable[type[Any]]) -> frozenset[str]:
    """Every variable that is read."""
    return frozenset(
        name
        for group in groups
        for _, variable in variables_of(group)
        for name in variable.names
    )


def read(group: type[Group], environment: Environment) -> Group:
    """Fill *group*; fields without a usable value keep their default."""
    values: dict[str, Any] = {}
    for field, variable in variables_of(group):
        value = (variable.read or read_one)(environment, variable)
        if value is not None:
            values[field] = value
    return group(**values)


def read_one(environment: Environment, variable: Variable) -> object:
    """Read the variable, or the file that its other variable names."""
    name, text = variable.name, environment.get(variable.name)
    file = environment.get(variable.file) if variable.file else None
    if text is not None and file is not None:
        environment.complain(name, f"set either this or {variable.file}")
        return None
    if text is None and file is None:
        name, file = _CREDENTIALS, _credential(environment, variable)
    elif file is not None:
        name = variable.file
    if file is not None:
        try:
            # What is not text is for the parser to complain about.
            text = Path(file).read_bytes().decode("utf-8", "surrogateescape").strip()
        except (OSError, ValueError):
            environment.complain(name, "the file it names cannot be read")
            return None
    if text is None:
        return None
    return environment.parse(name, text, variable.parse, variable.example)


_CREDENTIALS = "CREDENTIALS_DIRECTORY"


def _credential(environment: Environment, variable: Variable) -> str | None:
    """The file in which systemd hands over a secret (LoadCredential=)."""
    folder = environment.get(_CREDENTIALS)
    if not folder or not variable.credential:
        return None
    path = Path(folder) / variable.credential
    try:
        path.stat()
    except FileNotFoundError:
        return None
    except OSError:
        pass  # not for us to overlook: reading it tells what is wrong
    return str(path)


def table(group: type[Any]) -> str:
    """Return *group* as a section of a page in Markdown."""
    title = inspect.cleandoc(group.__doc__ or "").splitlines()[0].rstrip(".")
    lines = [f"### {title}\n", "| variable | default | meaning |", "|---|---|---|"]
    meanings = _docstrings(group)
    for field, variable in variables_of(group):
        spelt = "<br>".join(f"`{name}`" for name in variable.name.split(", "))
        meaning = meanings[field]
        if variable.file:
            meaning += f" Or name a file that holds it in `{variable.file}`."
        if variable.credential:
            meaning += (
                f" Or hand it over as systemd's credential `{variable.credential}`."
            )
        meaning += f" Example: `{variable.example}`"
        lines.append(f"| {spelt} | {variable.default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _docstrings(group: type[Any]) -> dict[str, str]:
    """Texts under the fields of *group*; only its source still has them."""
    statements = ast.parse(textwrap.dedent(inspect.getsource(group))).body[0]
    texts = {}
    body = statements.body if isinstance(statements, ast.ClassDef) else []
    for statement, below in itertools.pairwise(body):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=field)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[field] = " ".join(text.split())
            case _:
                pass
    return texts
