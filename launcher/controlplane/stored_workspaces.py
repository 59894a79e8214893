"""The workspace between the job that plans and the one that applies."""

from __future__ import annotations

import dataclasses
import secrets

from collections.abc import Iterator

import sqlalchemy as sa
import structlog

from launcher.controlplane.clock import now
from launcher.controlplane.errors import WorkerRefused
from launcher.controlplane.holding import current, seen, workspace_of, wrong_state
from launcher.controlplane.job_kinds import CONTENTS
from launcher.controlplane.lifecycle import TERMINAL
from launcher.controlplane.pools import key_of
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, every, one
from launcher.controlplane.workspaces import Gone, Incomplete, Storage, Upload
from launcher.wire.messages import (
    ErrorCode,
    NextStep,
    WorkspaceAck,
    WorkspacePart,
    WorkspacePlace,
    WorkspaceSource,
    WorkspaceStored,
    WorkspaceUploaded,
)


log = structlog.get_logger()


class StoredWorkspaces:
    """The use cases.  Refusals are `WorkerRefused`, with what to do as code."""

    def __init__(self, store: Store, storage: Storage) -> None:
        self._store = store
        self._storage = storage

    def append(
        self, pool: str, job_id: str, token: str, data: bytes, *, to: str, offset: int
    ) -> WorkspaceAck:
        """
        Take the next bytes of the upload *to*; those that are there are ignored.

        Raises:
            WorkerRefused: WRONG_OFFSET when bytes before *offset* are missing.
        """
        self._require_hand_over(pool, job_id, token)
        upload = self._upload(pool, job_id, token, to)
        try:
            if data:
                there = self._storage.append(upload, offset, data)
            else:
                there = self._storage.received(upload)
        except Gone:
            self._forget(upload)
            raise _wrong_offset(0) from None
        if there < offset:
            raise _wrong_offset(there)
        return WorkspaceAck(next_offset=there, presigned=self._storage.presigned)

    def place(
        self, pool: str, job_id: str, token: str, part: WorkspacePart
    ) -> WorkspacePlace:
        """
        Where the next part of an upload may go, if it is the one that is asked about.

        Raises:
            WorkerRefused: TOO_LARGE, or WRONG_STATE when there are no URLs.
        """
        self._require_hand_over(pool, job_id, token)
        if not self._storage.presigned:
            raise wrong_state("workspaces are not stored by URLs here")
        upload = self._upload(pool, job_id, token, part.upload)
        try:
            url = self._storage.place(upload, part.offset, part.size, part.sha256)
            if url is None:
                return WorkspacePlace(next_offset=self._storage.received(upload))
        except Gone:
            self._forget(upload)
            return WorkspacePlace(next_offset=0)
        return WorkspacePlace(next_offset=part.offset, url=url)

    def finish(
        self, pool: str, job_id: str, token: str, sent: WorkspaceUploaded
    ) -> WorkspaceStored:
        """
        Keep what was uploaded as what the run's next job starts from.

        Raises:
            WorkerRefused: WRONG_OFFSET when bytes are missing, WRONG_CHECKSUM when they
                are not what was sent.
        """
        stored = self._require_hand_over(pool, job_id, token)
        with self._store.read() as connection:
            upload = _upload_of(connection, job_id)
        if upload is None or upload.identity != sent.upload:
            if stored == WorkspaceStored(size=sent.size, sha256=sent.sha256):
                return stored
            raise _wrong_offset(0)
        try:
            self._storage.finish(upload, sent)
        except Gone:
            self._forget(upload)
            raise _wrong_offset(0) from None
        except Incomplete as exc:
            raise _wrong_offset(exc.received) from None
        except WorkerRefused:
            self._forget(upload)
            raise
        try:
            run = self._keep(pool, job_id, token, upload, sent)
        except WorkerRefused:
            self._storage.remove(upload.file)
            raise
        log.info("workspace.stored", run=run.id, job=job_id, bytes=sent.size)
        return WorkspaceStored(size=sent.size, sha256=sent.sha256)

    def _require_hand_over(
        self, pool: str, job_id: str, token: str
    ) -> WorkspaceStored | None:
        """Let only a job that has planned store a workspace; return what it has."""
        with self._store.read() as connection:
            job, run = seen(connection, pool, job_id, token)
            found = workspace_of(connection, run.id)
        if job.next is not NextStep.HAND_OVER:
            raise wrong_state("nothing is handed over by this job")
        if found is None or found.job != job_id:
            return None
        return WorkspaceStored(size=found.size, sha256=found.sha256)

    def _upload(self, pool: str, job_id: str, token: str, identity: str) -> Upload:
        """The upload that goes by this name, begun if need be."""
        with self._store.read() as connection:
            known = _upload_of(connection, job_id)
        if known is not None and known.identity == identity:
            return known
        file = f"{job_id}-{secrets.token_hex(8)}"
        fresh = Upload(
            job=job_id,
            identity=identity,
            file=file,
            external=self._storage.begin(file),
            begun_at=now(),
        )
        with self._store.write() as tx:
            current(tx, pool, job_id, token)
            before = _upload_of(tx.connection, job_id)
            if before is None or before.identity != identity:
                tx.change(sa.delete(t.uploads).where(t.uploads.c.job == job_id))
                tx.connection.execute(
                    sa.insert(t.uploads).values(dataclasses.asdict(fresh))
                )
                chosen, needless = fresh, before
            else:  # the same request, sent twice, has reached two of us
                chosen, needless = before, fresh
        if needless is not None:
            self._storage.abandon(needless)
        return chosen

    def _forget(self, upload: Upload) -> None:
        with self._store.write() as tx:
            tx.change(
                sa.delete(t.uploads).where(
                    t.uploads.c.job == upload.job, t.uploads.c.file == upload.file
                )
            )
        self._storage.abandon(upload)

    def _keep(
        self,
        pool: str,
        job_id: str,
        token: str,
        upload: Upload,
        sent: WorkspaceUploaded,
    ) -> t.Run:
        with self._store.write() as tx:
            _, run = current(tx, pool, job_id, token)
            generation, _ = key_of(tx.connection, pool)
            before = workspace_of(tx.connection, run.id)
            if before is not None and before.file == upload.file:
                return run  # this very call was made before, and is through
            tx.change(sa.delete(t.uploads).where(t.uploads.c.job == job_id))
            tx.change(sa.delete(t.workspaces).where(t.workspaces.c.run == run.id))
            tx.connection.execute(
                sa.insert(t.workspaces).values(
                    run=run.id,
                    job=job_id,
                    generation=generation,
                    file=upload.file,
                    sha256=sent.sha256,
                    size=sent.size,
                    stored_at=now(),
                )
            )
        if before is not None:
            self._storage.remove(before.file)
        return run

    def find(self, pool: str, job_id: str, token: str) -> t.Workspace:
        """What the holder of a job after the plan starts from."""
        with self._store.read() as connection:
            job, _ = seen(connection, pool, job_id, token)
            found = workspace_of(connection, job.run)
        if not CONTENTS[job.kind].restores or found is None:
            raise wrong_state("no workspace was stored for this job")
        if not self._storage.contains(found.file):
            raise wrong_state("the stored workspace is gone")
        return found

    def source(self, found: t.Workspace) -> WorkspaceSource | None:
        """Where it can be fetched from, where there are URLs."""
        url = self._storage.source(found.file)
        if url is None:
            return None
        return WorkspaceSource(url=url, size=found.size, sha256=found.sha256)

    def read(self, found: t.Workspace, first: int, last: int) -> Iterator[bytes]:
        """Its bytes from *first* to *last*."""
        return self._storage.read(found.file, first, last)

    def remove_needless(self) -> None:
        """Remove the workspaces of runs that are over, and what was never finished."""
        over = (
            sa.select(t.workspaces)
            .join(t.runs, t.runs.c.id == t.workspaces.c.run)
            .where(t.runs.c.state.in_(TERMINAL))
        )
        claimed = sa.select(t.jobs.c.id).where(t.jobs.c.state == t.JobState.CLAIMED)
        abandoned = sa.select(t.uploads).where(t.uploads.c.job.not_in(claimed))
        with self._store.read() as connection:
            workspaces = every(connection, t.Workspace, over)
            uploads = every(connection, Upload, abandoned)
        for workspace in workspaces:
            self._storage.remove(workspace.file)
            with self._store.write() as tx:
                tx.change(
                    sa.delete(t.workspaces).where(t.workspaces.c.run == workspace.run)
                )
        for upload in uploads:
            self._forget(upload)

    def remove_strays(self) -> None:
        """Remove files that no run knows of, and that nobody is about to finish."""
        queries = (
            sa.select(t.workspaces.c.file),
            sa.select(t.uploads.c.file),
        )
        claimed = sa.select(t.jobs.c.id).where(t.jobs.c.state == t.JobState.CLAIMED)
        names = self._storage.names()
        with self._store.read() as connection:
            known = {
                name for each in queries for name in connection.execute(each).scalars()
            }
            busy = set(connection.execute(claimed).scalars())
        for name in names - known:
            if name.partition("-")[0] not in busy:
                log.info("workspace.stray_removed", file=name)
                self._storage.remove(name)


def _upload_of(connection: sa.Connection, job: str) -> Upload | None:
    return one(connection, Upload, sa.select(t.uploads).where(t.uploads.c.job == job))


def _wrong_offset(next_offset: int) -> WorkerRefused:
    return WorkerRefused(
        ErrorCode.WRONG_OFFSET,
        "bytes of the workspace are missing",
        next_offset=next_offset,
    )
