"""The workspace between the job that plans and the one that applies."""

from __future__ import annotations

import threading

from pathlib import Path

import sqlalchemy as sa
import structlog

from launcher.controlplane.clock import now
from launcher.controlplane.errors import WorkerRefused
from launcher.controlplane.holding import current, seen, workspace_of, wrong_state
from launcher.controlplane.job_kinds import CONTENTS
from launcher.controlplane.lifecycle import TERMINAL
from launcher.controlplane.pools import key_of
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, every
from launcher.controlplane.workspaces import Upload, WorkspaceFiles
from launcher.wire.messages import (
    ErrorCode,
    NextStep,
    WorkspaceAck,
    WorkspaceStored,
    WorkspaceUploaded,
)


log = structlog.get_logger()


class StoredWorkspaces:
    """The use cases.  Refusals are `WorkerRefused`, with what to do as code."""

    def __init__(self, store: Store, files: WorkspaceFiles) -> None:
        self._store = store
        self._files = files
        self._lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}
        """By job; gone after a restart, so that the sender begins again."""

    def append(
        self, pool: str, job_id: str, token: str, data: bytes, *, to: str, offset: int
    ) -> WorkspaceAck:
        """
        Take the next bytes of the upload *to*; those that are there are ignored.

        Raises:
            WorkerRefused: WRONG_OFFSET when bytes before *offset* are missing.
        """
        self._require_hand_over(pool, job_id, token)
        upload = self._upload(job_id, to)
        with upload.lock:
            if upload.closed:  # another one has begun meanwhile
                raise _wrong_offset(0)
            known = upload.size - offset
            if known < 0:
                raise _wrong_offset(upload.size)
            upload.write(data[known:])
            return WorkspaceAck(next_offset=upload.size)

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
        with self._lock:
            upload = self._uploads.get(job_id)
        if upload is None or upload.identity != sent.upload:
            if stored == WorkspaceStored(size=sent.size, sha256=sent.sha256):
                return stored
            raise _wrong_offset(0)
        with upload.lock:
            if upload.closed:  # this very call was made before, and is through
                return self.finish(pool, job_id, token, sent)
            if upload.size < sent.size:
                raise _wrong_offset(upload.size)
            try:
                return self._finish(pool, job_id, token, upload, sent)
            finally:
                # Until now, whoever repeats the call has to wait for this one.
                self._forget(job_id, upload)
                upload.close()

    def _finish(
        self,
        pool: str,
        job_id: str,
        token: str,
        upload: Upload,
        sent: WorkspaceUploaded,
    ) -> WorkspaceStored:
        if (upload.size, upload.sha256) != (sent.size, sent.sha256):
            raise WorkerRefused(
                ErrorCode.WRONG_CHECKSUM, "the workspace was damaged on its way"
            )
        upload.finish()
        try:
            run = self._keep(pool, job_id, token, upload)
        except BaseException:
            self._files.remove(upload.name)
            raise
        log.info("workspace.stored", run=run.id, job=job_id, bytes=upload.size)
        return WorkspaceStored(size=upload.size, sha256=upload.sha256)

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

    def _upload(self, job_id: str, identity: str) -> Upload:
        """The upload that goes by this name, begun if need be."""
        with self._lock:
            upload = self._uploads.get(job_id)
            if upload is not None and upload.identity == identity:
                return upload
            fresh = self._files.upload(job_id, identity)
            self._uploads[job_id] = fresh
        if upload is not None:
            with upload.lock:
                upload.close()
        return fresh

    def _forget(self, job_id: str, upload: Upload) -> None:
        with self._lock:
            if self._uploads.get(job_id) is upload:
                del self._uploads[job_id]

    def _keep(self, pool: str, job_id: str, token: str, upload: Upload) -> t.Run:
        with self._store.write() as tx:
            _, run = current(tx, pool, job_id, token)
            generation, _ = key_of(tx.connection, pool)
            before = workspace_of(tx.connection, run.id)
            tx.change(sa.delete(t.workspaces).where(t.workspaces.c.run == run.id))
            tx.connection.execute(
                sa.insert(t.workspaces).values(
                    run=run.id,
                    job=job_id,
                    generation=generation,
                    file=upload.name,
                    sha256=upload.sha256,
                    size=upload.size,
                    stored_at=now(),
                )
            )
        if before is not None:
            self._files.remove(before.file)
        return run

    def find(self, pool: str, job_id: str, token: str) -> tuple[Path, t.Workspace]:
        """The file that the holder of a job after the plan starts from."""
        with self._store.read() as connection:
            job, _ = seen(connection, pool, job_id, token)
            found = workspace_of(connection, job.run)
        if not CONTENTS[job.kind].restores or found is None:
            raise wrong_state("no workspace was stored for this job")
        path = self._files.path(found.file)
        if not path.exists():
            raise wrong_state("the stored workspace is gone")
        return path, found

    def remove_needless(self) -> None:
        """Remove the workspaces of runs that are over, and what was never finished."""
        self._remove_abandoned()
        query = (
            sa.select(t.workspaces)
            .join(t.runs, t.runs.c.id == t.workspaces.c.run)
            .where(t.runs.c.state.in_(TERMINAL))
        )
        with self._store.read() as connection:
            over = every(connection, t.Workspace, query)
        for workspace in over:
            self._files.remove(workspace.file)
            with self._store.write() as tx:
                tx.change(
                    sa.delete(t.workspaces).where(t.workspaces.c.run == workspace.run)
                )

    def close(self) -> None:
        """Leave no unfinished upload behind; whoever was sending begins again."""
        with self._lock:
            uploads = dict(self._uploads)
        self._discard(uploads)

    def _discard(self, uploads: dict[str, Upload]) -> None:
        for job_id, upload in uploads.items():
            self._forget(job_id, upload)
            with upload.lock:
                upload.close()

    def _remove_abandoned(self) -> None:
        with self._lock:
            uploads = dict(self._uploads)
        query = sa.select(t.jobs.c.id).where(
            t.jobs.c.id.in_(list(uploads)), t.jobs.c.state == t.JobState.CLAIMED
        )
        with self._store.read() as connection:
            claimed = set(connection.execute(query).scalars()) if uploads else set()
        self._discard({job: uploads[job] for job in uploads.keys() - claimed})

    def remove_strays(self) -> None:
        """Remove files that no run knows of; only while nobody uploads."""
        query = sa.select(t.workspaces.c.file)
        with self._store.read() as connection:
            known = set(connection.execute(query).scalars())
        for name in self._files.names() - known:
            self._files.remove(name)


def _wrong_offset(next_offset: int) -> WorkerRefused:
    return WorkerRefused(
        ErrorCode.WRONG_OFFSET,
        "bytes of the workspace are missing",
        next_offset=next_offset,
    )
