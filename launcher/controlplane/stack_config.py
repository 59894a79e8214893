"""
Variables and files that people add to a stack through the API.

They are kept beside what the configuration file says, which the API cannot change:
a name that the file has is the file's.  Runs see both as the stack's own.
"""

from __future__ import annotations

import base64
import binascii

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa
import structlog

from launcher.controlplane import audit
from launcher.controlplane.actors import Actor
from launcher.controlplane.clock import now
from launcher.controlplane.desired_state import file_path, variable_name
from launcher.controlplane.errors import NotFound, RequestRefused
from launcher.controlplane.keys import Keyring
from launcher.controlplane.revisions import store_revision
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction
from launcher.wire.jobs import LARGEST_FILE, MountedFile, Variable


log = structlog.get_logger()

MAX_ELEMENTS = 1000
MAX_VALUE = 128 * 1024
MAX_NAME = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    name: str
    """Of a variable, with its prefix; or the path of a file."""
    file: bool
    secret: bool
    content: bytes = field(repr=False)


class StackConfig:
    """The use cases."""

    def __init__(self, store: Store, specs: Specs, keyring: Keyring) -> None:
        self._store = store
        self._specs = specs
        self._keyring = keyring

    def add(self, stack: str, actor: Actor, element: Element) -> None:
        """
        Add *element* to the stack, or give it another value.

        Raises:
            NotFound: there is no such stack.
            RequestRefused: it is not a variable or file, or the file's.
        """
        _check(element)
        with self._store.write() as tx:
            row, spec = _found(tx, self._specs, stack)
            added = stored(tx.connection, self._keyring, stack)
            others = [each for each in added if _key(each) != _key(element)]
            if len(others) >= MAX_ELEMENTS:
                raise RequestRefused(f"a stack takes at most {MAX_ELEMENTS} of these")
            base = without(spec, added)
            if _key(element) in _keys(base):
                raise RequestRefused(
                    f"{element.name!r} is set in the configuration file"
                )
            _delete(tx, stack, element.name, file=element.file)
            tx.connection.execute(
                sa.insert(t.stack_config).values(
                    stack=stack,
                    name=element.name,
                    file=element.file,
                    secret=element.secret,
                    sealed=self._keyring.seal(element.content, _purpose(stack)),
                    created_at=now(),
                )
            )
            merged = with_added(base, [*others, element])
            store_revision(tx, self._keyring, row, merged)
            audit.note(tx, actor, "stack.config_add", stack, name=element.name)
        log.info("stack.config_added", stack=stack, name=element.name, by=actor.id)

    def delete(self, stack: str, actor: Actor, name: str) -> Element | None:
        """
        Take away what was added as *name*, and return it; None: nothing was.

        Raises:
            NotFound: there is no such stack.
            RequestRefused: it is the configuration file's.
        """
        with self._store.write() as tx:
            row, spec = _found(tx, self._specs, stack)
            added = stored(tx.connection, self._keyring, stack)
            base = without(spec, added)
            gone = next((each for each in added if each.name == name), None)
            if gone is None:
                if any(name == known for known, _ in _keys(base)):
                    raise RequestRefused(f"{name!r} is set in the configuration file")
                return None
            _delete(tx, stack, name, file=gone.file)
            left = [each for each in added if each is not gone]
            store_revision(tx, self._keyring, row, with_added(base, left))
            audit.note(tx, actor, "stack.config_delete", stack, name=name)
        log.info("stack.config_deleted", stack=stack, name=name, by=actor.id)
        return gone


def stored(connection: sa.Connection, keyring: Keyring, stack: str) -> list[Element]:
    """What was added to *stack*, the oldest first."""
    columns = t.stack_config.c
    query = sa.select(t.stack_config).where(columns.stack == stack)
    rows = connection.execute(query.order_by(columns.created_at)).all()
    return [
        Element(
            name=row.name,
            file=row.file,
            secret=row.secret,
            content=keyring.open(row.sealed, _purpose(stack)),
        )
        for row in rows
    ]


def with_added(spec: StackSpec, added: Sequence[Element]) -> StackSpec:
    """*spec* with what was added, except for names that it has itself."""
    taken = _keys(spec)
    fresh = [element for element in added if _key(element) not in taken]
    own = msgspec.structs.replace(
        spec.own,
        environment=(
            *spec.own.environment,
            *(_variable(each) for each in fresh if not each.file),
        ),
        mounted_files=(
            *spec.own.mounted_files,
            *(_file(each) for each in fresh if each.file),
        ),
    )
    return msgspec.structs.replace(spec, own=own)


def without(spec: StackSpec, added: Sequence[Element]) -> StackSpec:
    """*spec* as the configuration file has it."""
    variables = {_variable(each) for each in added if not each.file}
    files = {_file(each) for each in added if each.file}
    own = msgspec.structs.replace(
        spec.own,
        environment=tuple(v for v in spec.own.environment if v not in variables),
        mounted_files=tuple(f for f in spec.own.mounted_files if f not in files),
    )
    return msgspec.structs.replace(spec, own=own)


def decoded_file(value: str) -> bytes:
    """
    The content of a file as the API takes it.

    Raises:
        RequestRefused: it is not base64.
    """
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise RequestRefused("a file's value must be base64") from exc


def _check(element: Element) -> None:
    largest = LARGEST_FILE if element.file else MAX_VALUE
    if len(element.content) > largest:
        raise RequestRefused(f"a value has at most {largest} bytes here")
    if not element.file and b"\0" in element.content:
        raise RequestRefused("a value cannot hold a NUL character")
    try:
        plain = file_path(element.name) if element.file else element.name
        if not element.file:
            variable_name(element.name)
    except ValueError as exc:
        raise RequestRefused(str(exc)) from exc
    if plain != element.name or len(element.name) > MAX_NAME:
        raise RequestRefused(f"write {plain[:MAX_NAME]!r}, in {MAX_NAME} characters")


def _found(tx: Transaction, specs: Specs, stack: str) -> tuple[t.Stack, StackSpec]:
    found = specs.current(tx.connection, stack)
    if found is None:
        raise NotFound(f"stack {stack!r} was not found")
    return found


def _delete(tx: Transaction, stack: str, name: str, *, file: bool) -> None:
    columns = t.stack_config.c
    tx.change(
        sa.delete(t.stack_config).where(
            columns.stack == stack, columns.name == name, columns.file == file
        )
    )


def _key(element: Element) -> tuple[str, bool]:
    return element.name, element.file


def _keys(spec: StackSpec) -> set[tuple[str, bool]]:
    prefix = {"always": "", "read": "ro_", "write": "wo_"}
    names = {(prefix[v.scope] + v.name, False) for v in spec.own.environment}
    return names | {(file.path, True) for file in spec.own.mounted_files}


def _variable(element: Element) -> Variable:
    name, scope = variable_name(element.name)
    return Variable(
        name=name,
        value=element.content.decode(),
        secret=element.secret,
        scope=scope,
    )


def _file(element: Element) -> MountedFile:
    return MountedFile(
        path=element.name, content=element.content, secret=element.secret
    )


def _purpose(stack: str) -> str:
    return f"stack config:{stack}"
