"""
Code that people upload from their machines, to be planned without a commit.

An upload has an address of its own, which is good for one archive and a quarter of an
hour.  The archive is opaque here: only the worker, in the run, unpacks it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
import sqlalchemy as sa
import structlog

from launcher.controlplane import audit
from launcher.controlplane.actors import Actor
from launcher.controlplane.clock import new_id, now
from launcher.controlplane.data_directory import with_room
from launcher.controlplane.desired_state import variable_name
from launcher.controlplane.errors import NotFound, RequestRefused, UploadRefused
from launcher.controlplane.holding import seen, wrong_state
from launcher.controlplane.keys import Keyring, hash_token
from launcher.controlplane.lanes import Lane
from launcher.controlplane.lifecycle import TERMINAL
from launcher.controlplane.specs import OVERRIDES, Specs
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, every, one
from launcher.wire.jobs import Variable


log = structlog.get_logger()

MAX_UPLOAD = 512 * 1024**2
"""Bytes of one archive, at most."""
MAX_WAITING = 20
"""Uploads that one person may have that no run has used."""
OPEN_SECONDS = 15 * 60
"""How long an address is good."""
KEPT_SECONDS = 24 * 3600
"""How long an archive is kept for runs to be retried."""
MAX_OVERRIDES = 200
_SECOND = 1_000_000_000
_GZIP = b"\x1f\x8b"
_UNFINISHED = ".part"


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one upload."""

    id: str
    url: str = field(repr=False)


class LocalWorkspaces:
    """The use cases."""

    def __init__(
        self,
        store: Store,
        specs: Specs,
        keyring: Keyring,
        folder: Path,
        *,
        endpoint: str,
        limit: int = MAX_UPLOAD,
    ) -> None:
        self._store = store
        self._specs = specs
        self._keyring = keyring
        self._folder = folder
        self._endpoint = endpoint
        self._limit = limit
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob("*" + _UNFINISHED):
            left.unlink(missing_ok=True)

    def open(self, stack: str, actor: Actor) -> Slot:
        """
        Make a place for an upload.

        Raises:
            NotFound: there is no such stack.
            RequestRefused: it takes no code from people's machines.
        """
        token, workspace, at = secrets.token_urlsafe(32), new_id(), now()
        with self._store.write() as tx:
            self._require_enabled(tx.connection, stack)
            columns = t.local_workspaces.c
            waiting = tx.connection.execute(
                sa.select(sa.func.count())
                .select_from(t.local_workspaces)
                .where(columns.owner == actor.id, sa.not_(columns.used))
            ).scalar_one()
            if waiting >= MAX_WAITING:
                raise RequestRefused(
                    f"you have {waiting} uploads already that no run has used"
                )
            tx.connection.execute(
                sa.insert(t.local_workspaces).values(
                    id=workspace,
                    stack=stack,
                    owner=actor.id,
                    token_hash=hash_token(token),
                    created_at=at,
                    expires_at=at + OPEN_SECONDS * _SECOND,
                )
            )
            audit.note(tx, actor, "stack.upload_workspace", stack)
        url = f"{self._endpoint}/uploads/{workspace}?token={token}"
        return Slot(workspace, url)

    async def receive(
        self, workspace: str, token: str, body: AsyncIterator[bytes], lane: Lane
    ) -> None:
        """
        Take the archive that *body* is.

        Raises:
            UploadRefused: the address is not good (any more), or the archive is not.
            DiskFull: there is no room for it now.
        """
        await lane.run(self._require_open, workspace, token)
        path = self._folder / f"{workspace}-{secrets.token_hex(8)}{_UNFINISHED}"
        digest, size, start = hashlib.sha256(), 0, b""
        with with_room(), _made(path) as file:
            async for part in body:
                size += len(part)
                if size > self._limit:
                    raise UploadRefused(
                        413, f"an archive has at most {self._limit} bytes"
                    )
                start = (start + part)[:2] if len(start) < len(_GZIP) else start
                await lane.run(_written, file, digest, part)
            if start != _GZIP:
                raise UploadRefused(400, "this is not a gzip archive")
            await lane.run(os.fsync, file.fileno())
            await lane.run(self._keep, workspace, token, path, size, digest.hexdigest())

    def use(
        self, stack: str, workspace: str, actor: Actor, overrides: Mapping[str, str]
    ) -> bytes | None:
        """
        Let a run use an upload; return the variables for it, sealed.

        Raises:
            NotFound: there is no such upload of this person for this stack.
            RequestRefused: nothing was uploaded, or it was used already.
        """
        sealed = self._sealed(overrides)
        with self._store.write() as tx:
            self._require_enabled(tx.connection, stack)
            found = self._found(tx.connection, workspace)
            if found is None or (found.stack, found.owner) != (stack, actor.id):
                raise NotFound(f"workspace {workspace!r} was not found")
            if found.size is None:
                raise RequestRefused("nothing was uploaded yet")
            used = tx.change(
                sa.update(t.local_workspaces)
                .where(
                    t.local_workspaces.c.id == workspace,
                    sa.not_(t.local_workspaces.c.used),
                )
                .values(used=True)
            )
            if not used:
                raise RequestRefused("this upload was used already")
        return sealed

    def find(self, pool: str, job_id: str, token: str) -> tuple[Path, str]:
        """
        The archive that the holder of a job takes its code from, and its SHA-256.

        Raises:
            WorkerRefused: WRONG_STATE when there is none.
        """
        with self._store.read() as connection:
            _, run = seen(connection, pool, job_id, token)
            workspace = run.local_workspace
            found = self._found(connection, workspace) if workspace else None
        path = self._folder / found.id if found else self._folder
        if found is None or found.sha256 is None or not path.is_file():
            raise wrong_state("no code was uploaded for this run, or it is gone")
        return path, found.sha256

    def remove_needless(self) -> None:
        """Remove what nobody will use any more."""
        columns, at = t.local_workspaces.c, now()
        needed = sa.select(t.runs.c.local_workspace).where(
            t.runs.c.local_workspace.is_not(None), t.runs.c.state.not_in(TERMINAL)
        )
        unused = sa.not_(columns.used) & (columns.expires_at < at - OPEN_SECONDS)
        old = columns.created_at < at - KEPT_SECONDS * _SECOND
        query = sa.select(t.local_workspaces).where(
            unused | old, columns.id.not_in(needed)
        )
        with self._store.read() as connection:
            needless = every(connection, t.LocalWorkspace, query)
        for workspace in needless:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / workspace.id).unlink()
            with self._store.write() as tx:
                tx.change(
                    sa.delete(t.local_workspaces).where(columns.id == workspace.id)
                )

    def _require_enabled(self, connection: sa.Connection, stack: str) -> None:
        found = self._specs.current(connection, stack)
        if found is None:
            raise NotFound(f"stack {stack!r} was not found")
        if not found[1].local_preview:
            raise RequestRefused(f"stack {stack!r} does not allow local previews")

    def _require_open(self, workspace: str, token: str) -> None:
        with self._store.read() as connection:
            found = self._found(connection, workspace)
        known = found.token_hash if found else ""
        good = hmac.compare_digest(known, hash_token(token))
        if found is None or not good or found.expires_at < now():
            raise UploadRefused(403, "this address is not good, or not any more")
        if found.size is not None:
            raise UploadRefused(409, "something was uploaded here already")

    def _keep(
        self, workspace: str, token: str, path: Path, size: int, sha256: str
    ) -> None:
        self._require_open(workspace, token)
        with self._store.write() as tx:
            kept = tx.change(
                sa.update(t.local_workspaces)
                .where(
                    t.local_workspaces.c.id == workspace,
                    t.local_workspaces.c.size.is_(None),
                )
                .values(size=size, sha256=sha256)
            )
            if not kept:
                raise UploadRefused(409, "something was uploaded here already")
            path.rename(self._folder / workspace)
        log.info("workspace.uploaded", workspace=workspace, bytes=size)

    def _found(
        self, connection: sa.Connection, workspace: str
    ) -> t.LocalWorkspace | None:
        query = sa.select(t.local_workspaces).where(
            t.local_workspaces.c.id == workspace
        )
        return one(connection, t.LocalWorkspace, query)

    def _sealed(self, overrides: Mapping[str, str]) -> bytes | None:
        if not overrides:
            return None
        if len(overrides) > MAX_OVERRIDES:
            raise RequestRefused(f"at most {MAX_OVERRIDES} variables can be overridden")
        variables = []
        for name, value in overrides.items():
            try:
                stripped, scope = variable_name(name)
            except ValueError as exc:
                raise RequestRefused(str(exc)) from exc
            if "\0" in value:
                raise RequestRefused("a value cannot hold a NUL character")
            variables.append(Variable(name=stripped, value=value, scope=scope))
        return self._keyring.seal(msgspec.json.encode(variables), OVERRIDES)


@contextmanager
def _made(path: Path) -> Iterator[IO[bytes]]:
    """A new file, of which nothing is left unless it was given another name."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def _written(file: IO[bytes], digest: hashlib._Hash, part: bytes) -> None:
    left = memoryview(part)
    while left:
        left = left[file.write(left) :]
    digest.update(part)
