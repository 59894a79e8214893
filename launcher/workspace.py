"""What is in a job's workspace before its first phase."""

from __future__ import annotations

import posixpath

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from launcher.errors import JobInvalid
from launcher.lease import Lease
from launcher.model import SOURCE, WORKSPACE, Claim
from launcher.ports import Ports
from launcher.tarstream import Archive
from launcher.vendors import VendorTable
from launcher.wire.jobs import Job


_MOUNT = WORKSPACE.strip("/")


@contextmanager
def contents(
    claim: Claim, vendor: VendorTable, ports: Ports, lease: Lease
) -> Iterator[Archive]:
    """
    The workspace as an archive relative to ``/``.

    It is what the run's previous job left, or else the source with our files
    and the mounted ones; mounted files win over those of the repository.
    """
    archive = Archive()
    archive.directory(_MOUNT)
    if claim.job.restores_workspace:
        with ExitStack() as opened:
            stored = lease.insist(
                lambda: opened.enter_context(ports.workspaces.restore(claim))
            )
            archive.tree(stored, below=_MOUNT, strip=posixpath.basename(_MOUNT))
            yield archive
    else:
        with ports.code.fetch(claim.job, lease.cancel) as source:
            archive.tree(source, below=f"{_MOUNT}/source")
            for path, content in vendor.files.items():
                archive.file(f"{_MOUNT}/{path}", content)
            for file in claim.job.mounted_files:
                mode = 0o600 if file.secret else 0o644
                archive.file(_mounted(file.path), file.content, mode=mode)
            yield archive


def project_directory(job: Job) -> str:
    """The folder in which the phases run."""
    return posixpath.join(SOURCE, _inside(job.stack.project_root)).rstrip("/")


def _mounted(path: str) -> str:
    inside = _inside(path)
    if not inside or path.endswith("/"):
        raise JobInvalid(f"path {path!r} of a mounted file is not that of a file")
    return f"{_MOUNT}/{inside}"


def _inside(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise JobInvalid(f"path {path!r} leaves the workspace")
    return "/".join(parts)
