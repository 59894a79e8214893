"""The workspace between the job that plans and the one that applies."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
import structlog

from launcher.controlplane.clock import now
from launcher.controlplane.errors import WorkerRefused
from launcher.controlplane.holding import current, seen, workspace_of, wrong_state
from launcher.controlplane.lifecycle import TERMINAL
from launcher.controlplane.pools import key_of
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, every
from launcher.controlplane.workspaces import Upload, WorkspaceFiles
from launcher.wire.messages import ErrorCode, NextStep, WorkspaceStored


log = structlog.get_logger()


class StoredWorkspaces:
    """The use cases.  Refusals are `WorkerRefused`, with what to do as code."""

    def __init__(self, store: Store, files: WorkspaceFiles) -> None:
        self._store = store
        self._files = files

    def begin(self, pool: str, job_id: str, token: str) -> Upload:
        """Let the holder of a job that has planned store its workspace."""
        with self._store.read() as connection:
            job, _ = seen(connection, pool, job_id, token)
        if job.next is not NextStep.HAND_OVER:
            raise wrong_state("nothing is handed over by this job")
        return self._files.upload(job_id)

    def finish(
        self, pool: str, job_id: str, token: str, upload: Upload, sha256: str | None
    ) -> WorkspaceStored:
        """
        Keep what was uploaded as what the run's next job starts from.

        Raises:
            WorkerRefused: WRONG_CHECKSUM when it is not what was announced.
        """
        if sha256 is not None and sha256.lower() != upload.sha256:
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
        """The file that the holder of an applying job starts from."""
        with self._store.read() as connection:
            job, _ = seen(connection, pool, job_id, token)
            found = workspace_of(connection, job.run)
        if job.kind is not t.JobKind.APPLY or found is None:
            raise wrong_state("no workspace was stored for this job")
        path = self._files.path(found.file)
        if not path.exists():
            raise wrong_state("the stored workspace is gone")
        return path, found

    def remove_needless(self) -> None:
        """Remove the workspaces of runs that are over."""
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

    def remove_strays(self) -> None:
        """Remove files that no run knows of; only while nobody uploads."""
        query = sa.select(t.workspaces.c.file)
        with self._store.read() as connection:
            known = set(connection.execute(query).scalars())
        for name in self._files.names() - known:
            self._files.remove(name)
