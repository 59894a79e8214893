"""
What applying a configuration would change: the dry run.

It reads the database and nothing else: no table, key or folder is made for it.  What
may be secret is said to differ, and never shown.
"""

from __future__ import annotations

import json

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from launcher.controlplane import stack_config
from launcher.controlplane.configuration import require_own
from launcher.controlplane.data_directory import data_directory, is_sqlite
from launcher.controlplane.desired_state import DesiredState
from launcher.controlplane.keys import Keyring, load_keyring, secret_matches
from launcher.controlplane.outbox import purpose
from launcher.controlplane.policies import Compile, require_usable
from launcher.controlplane.removal import WAITING
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import Bundle, StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import (
    Store,
    open_engine,
    revision_of,
    revisions,
    sqlite_path,
)
from launcher.errors import StoreUnusable


_LONGEST = 200


@dataclass(frozen=True, slots=True)
class _Fact:
    """Something about a thing, which may be shown or only compared."""

    value: object
    hidden: bool = False


_Facts = dict[str, _Fact]
_Things = dict[tuple[str, str], _Facts]
"""What there is, by its kind and its name."""


def differences(
    desired: DesiredState, database_url: str, compiled: Compile
) -> list[str]:
    """
    What applying *desired* would change, one line for each thing; nothing is changed.

    Raises:
        ConfigurationError: a policy cannot be used, or nobody said where data goes.
        StoreUnusable: the database cannot be read, is of another version, or was
            made with another key file.
    """
    require_usable(desired.policies, lambda body, kind: compiled(body, kind).close())
    data = data_directory(database_url, desired.data_directory)
    if is_sqlite(database_url) and not sqlite_path(sa.make_url(database_url)).exists():
        return _of_nothing(desired)
    try:
        engine = open_engine(database_url)
        try:
            return _compared(desired, engine, data)
        finally:
            engine.dispose()
    except sa.exc.SQLAlchemyError as exc:
        raise StoreUnusable(
            "the database cannot be read", details=f"{type(exc).__name__}: {exc}"
        ) from exc


def _compared(desired: DesiredState, engine: sa.Engine, data: Path) -> list[str]:
    found, newest = revision_of(engine), revisions()[-1].revision
    if found is None:
        return _of_nothing(desired)
    if found != newest:
        raise StoreUnusable(
            f"the database is of revision {found}, and this program needs {newest}:"
            " nothing can be compared before a server has brought it up to date"
        )
    store = Store(engine, lambda _: None)
    with store.read() as connection:
        mark = connection.execute(sa.select(t.installation)).one_or_none()
        if mark is None:
            # Before the first start there may be pools, and nothing to open.
            return _told(_pools(connection), _wanted(desired))
        if not (data / "key").exists():
            raise StoreUnusable(f"there is no key file in {data}")
        keyring = load_keyring(data / "key")
        require_own(keyring, mark.key_mark)
        existing = _existing(connection, keyring, mark.account)
        wanted = _wanted(desired)
        notes = _agreed(connection, keyring, desired, existing, wanted)
        return [*_told(existing, wanted), *notes]


def _of_nothing(desired: DesiredState) -> list[str]:
    return _told({}, _wanted(desired))


# --- what there is


def _existing(connection: sa.Connection, keyring: Keyring, account: str) -> _Things:
    things: _Things = {("account", ""): {"name": _Fact(account)}}
    for row in connection.execute(sa.select(t.api_keys)):
        things["API key", row.id] = _api_key(row.secret_hash, row.role)
    things |= _pools(connection)
    for row in connection.execute(sa.select(t.policies)):
        things["policy", row.name] = _policy(row)
    for row in connection.execute(sa.select(t.webhooks)):
        secret = keyring.open(row.secret, purpose(row.name)).decode()
        things["webhook", row.name] = _webhook(row.url, secret, row.allow_local)
    specs = Specs(keyring)
    for _, spec in specs.all(connection):
        things["stack", spec.slug] = _stack(spec)
    return things


def _pools(connection: sa.Connection) -> _Things:
    return {
        ("worker pool", row.name): _pool(row) | {"configured": _Fact(row.configured)}
        for row in connection.execute(sa.select(t.pools))
    }


# --- what is wanted


def _wanted(desired: DesiredState) -> _Things:
    things: _Things = {("account", ""): {"name": _Fact(desired.account)}}
    for key in desired.api_keys:
        things["API key", key.id] = _api_key(key.secret, key.role)
    for pool in desired.worker_pools:
        things["worker pool", pool.name] = _pool(pool) | {"configured": _Fact(True)}
    for policy in desired.policies:
        things["policy", policy.name] = _policy(policy)
    for hook in desired.webhooks:
        facts = _webhook(hook.url, hook.secret, hook.allow_local)
        things["webhook", hook.name] = facts
    for spec in desired.stacks:
        things["stack", spec.slug] = _stack(spec)
    return things


def _agreed(
    connection: sa.Connection,
    keyring: Keyring,
    desired: DesiredState,
    existing: _Things,
    wanted: _Things,
) -> list[str]:
    """
    Let both sides say the same thing in the same way, as applying would.

    Returns what applying would do besides.
    """
    notes = []
    for key in desired.api_keys:
        before = existing.get(("API key", key.id))
        if before and secret_matches(key.secret, str(before["secret"].value)):
            wanted["API key", key.id]["secret"] = before["secret"]
    columns = t.stacks.c
    deleted = set(
        connection.execute(sa.select(columns.slug).where(columns.deleted)).scalars()
    )
    for spec in desired.stacks:
        added = stack_config.stored(connection, keyring, spec.slug)
        wanted["stack", spec.slug] = _stack(stack_config.with_added(spec, added))
        if spec.slug in deleted:
            del wanted["stack", spec.slug]
            notes.append(f"! stack {_shown(spec.slug)} stays deleted")
    waiting = sa.select(sa.func.count()).select_from(t.runs)
    for kind, name in sorted(existing.keys() - wanted.keys()):
        if kind != "stack":
            continue
        count = connection.execute(
            waiting.where(t.runs.c.stack == name, t.runs.c.state.in_(WAITING))
        ).scalar_one()
        if count:
            notes.append(f"! stack {_shown(name)}: waiting runs are discarded: {count}")
    return notes


# --- facts


def _api_key(secret: str, role: str) -> _Facts:
    return {"secret": _Fact(secret, hidden=True), "role": _Fact(str(role))}


def _pool(pool: Any) -> _Facts:  # noqa: ANN401 (configured, or a row)
    return {
        "description": _Fact(pool.description),
        "labels": _Fact(list(pool.labels)),
        "drift_run_limit": _Fact(pool.drift_limit),
    }


def _policy(policy: Any) -> _Facts:  # noqa: ANN401 (configured, or a row)
    return {
        "type": _Fact(policy.type.lower()),
        "description": _Fact(policy.description),
        "labels": _Fact(list(policy.labels)),
        "body": _Fact(policy.body, hidden=True),
    }


def _webhook(url: str, secret: str, allow_local: bool) -> _Facts:
    return {
        "url": _Fact(url, hidden=True),  # of some receivers it is the password
        "secret": _Fact(secret, hidden=True),
        "allow_local": _Fact(allow_local),
    }


_OF_ITSELF = frozenset({"slug", "account"})
_IN_PARTS = frozenset({"own", "contexts", "source", "vendor_config", "registry_logins"})


def _stack(spec: StackSpec) -> _Facts:
    facts = {
        name: _Fact(msgspec.to_builtins(getattr(spec, name)))
        for name in spec.__struct_fields__
        if name not in _OF_ITSELF | _IN_PARTS
    }
    for name in spec.source.__struct_fields__:
        facts[f"source {name}"] = _Fact(getattr(spec.source, name), hidden=True)
    for name, value in spec.vendor_config.items():
        facts[f"vendor_config {name}"] = _Fact(value, hidden=True)
    for login in spec.registry_logins:
        facts[f"login for {login.registry}"] = _Fact(login, hidden=True)
    facts |= _bundle(spec.own, "")
    for context in spec.contexts:
        of = f"context {context.name}: "
        facts[f"{of}attached"] = _Fact(
            "by a label" if context.auto else f"with priority {context.priority}"
        )
        facts |= _bundle(context.bundle, of)
    return facts


def _bundle(bundle: Bundle, of: str) -> _Facts:
    facts: _Facts = {}
    for variable in bundle.environment:
        label = f"{of}variable {variable.name} ({variable.scope})"
        facts[label] = _Fact(variable, hidden=True)
    for file in bundle.mounted_files:
        facts[f"{of}file {file.path}"] = _Fact(file, hidden=True)
    for name in bundle.hooks.__struct_fields__:
        if commands := getattr(bundle.hooks, name):
            facts[f"{of}hooks {name}"] = _Fact(commands, hidden=True)
    return facts


# --- telling


def _told(existing: _Things, wanted: _Things) -> list[str]:
    return [
        line
        for key in sorted(existing.keys() | wanted.keys())
        for line in _of_thing(*key, existing.get(key), wanted.get(key))
    ]


def _of_thing(
    kind: str, name: str, before: _Facts | None, after: _Facts | None
) -> Iterator[str]:
    title = f"{kind} {_shown(name)}" if name else kind
    if before is None:
        account = f" {_shown(after['name'].value)}" if after and not name else ""
        yield f"+ {title}{account}"
    elif after is None:
        yield f"- {title}"
    else:
        yield from (f"~ {title}: {change}" for change in _changes(before, after))


def _changes(before: Mapping[str, _Fact], after: Mapping[str, _Fact]) -> Iterator[str]:
    for label in sorted(before.keys() | after.keys()):
        old, new = before.get(label), after.get(label)
        if old == new:
            continue
        plain = _plain(label)
        if old is None:
            yield f"{plain} is added"
        elif new is None:
            yield f"{plain} is removed"
        elif old.hidden or new.hidden:
            yield f"{plain} changes"
        else:
            yield f"{plain} changes from {_shown(old.value)} to {_shown(new.value)}"


def _plain(label: str) -> str:
    """*label* without anything that means something to a terminal."""
    return json.dumps(label)[1:-1]


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
