"""What is in a job's workspace before its first phase, and what is kept of it."""

from __future__ import annotations

import posixpath
import tempfile

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import structlog

from launcher import local_workspace, run_types
from launcher.errors import (
    JobInvalid,
    RuntimeConfigChanged,
    SealBroken,
    WorkspaceUnusable,
)
from launcher.lease import Lease
from launcher.model import SOURCE, WORKSPACE, AdmittedJob, Claim
from launcher.ports import Ports, Sandbox
from launcher.sealing.workspace import Label, OpenedWorkspace, SealedFile, seal
from launcher.tarstream import Archive, Fingerprint
from launcher.vendors import VendorTable, terraform
from launcher.wire.jobs import LARGEST_FILE, RUNTIME_CONFIG, Job, Phase


log = structlog.get_logger()

_MOUNT = WORKSPACE.strip("/")
_FOLDER = posixpath.basename(_MOUNT)


@contextmanager
def contents(
    claim: Claim,
    admitted: AdmittedJob,
    vendor: VendorTable,
    ports: Ports,
    lease: Lease,
    *,
    adopt: Callable[[tuple[bytes, ...]], None],
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Iterable[bytes]]:
    """
    The workspace as an archive relative to ``/``.

    It is what the run's previous job left, or else the source with our files
    and the mounted ones; mounted files win over those of the repository.  What the
    previous job masked at its own wish is given to *adopt*, and what the run's owner
    should know of the source to *say*.

    Raises:
        SealBroken: what is stored was not sealed by this pool for this job.
        WorkspaceUnusable: it cannot be had, or is not fit to be unpacked.
        SourceUnavailable: there is no source.
        RuntimeConfigChanged: the source has another ``.spacelift/config.yml`` than the
            job was made from; iterating raises it.
    """
    job = admitted.job
    if job.restores_workspace:
        with _spool(ports.scratch) as file:
            with _room_needed():
                lease.insist(
                    lambda: ports.workspaces.restore(claim, file), stoppable=True
                )
            opened = OpenedWorkspace(file, ports.key)
            as_it_is = _verified(opened, admitted, vendor)
            adopt(opened.masks())
            stored = _used_up(opened, file)
            # An earlier version of the launcher may have written it another way.
            yield stored if as_it_is else _as_unpacked(stored, strip=_MOUNT)
    else:
        archive = Archive()
        archive.directory(_MOUNT)
        with _code(claim, ports, lease, say) as (source, strip):
            config = Fingerprint((RUNTIME_CONFIG,), whole_paths=True)
            archive.tree(source, below=f"{_MOUNT}/source", plan=config, strip=strip)
            archive.check(lambda: _compare(job, config))
            for path, content in vendor.files.items():
                archive.file(f"{_MOUNT}/{path}", content)
            for given in job.mounted_files:
                if len(given.content) > LARGEST_FILE:
                    raise JobInvalid(
                        f"mounted file {given.path!r} has more than"
                        f" {LARGEST_FILE >> 20} MiB"
                    )
                mode = 0o600 if given.secret else 0o644
                archive.file(_mounted(given.path), given.content, mode=mode)
            settings = [
                given.content
                for given in job.mounted_files
                if run_types.is_terraformrc(given.path)
            ]
            if settings:
                path = f"{_MOUNT}/{terraform.TERRAFORMRC}"
                archive.file(path, b"\n".join(settings), mode=0o600)
            yield archive


@contextmanager
def _code(
    claim: Claim, ports: Ports, lease: Lease, say: Callable[[str], None]
) -> Iterator[tuple[Iterable[bytes], str]]:
    """The source as a tar stream, and the folder of it in which everything is."""
    if not claim.job.run.based_on_local_workspace:
        with ports.code.fetch(claim.job, lease.cancel, say) as source:
            yield source, ""
        return
    with _spool(ports.scratch) as file:
        with _room_needed():
            lease.insist(lambda: ports.workspaces.uploaded(claim, file), stoppable=True)
        say("The code was uploaded for this run; no repository is fetched.")
        folder, source = local_workspace.tree_of(file)
        yield source, folder


@contextmanager
def sealed(
    admitted: AdmittedJob,
    vendor: VendorTable,
    ports: Ports,
    sandbox: Sandbox,
    *,
    masks: tuple[bytes, ...] = (),
) -> Iterator[SealedFile]:
    """
    The workspace as *sandbox* leaves it, sealed for the job that applies the plan.

    *masks* are values that the job has added, for the next one to mask, too.

    Raises:
        WorkspaceUnusable: it has no plan, is too large, or finds no room here.
    """
    plan = Fingerprint(vendor.plan_files)
    with _spool(ports.scratch) as file:
        with _room_needed(), sandbox.workspace() as stream:
            archive = _as_unpacked(stream, strip=_FOLDER, plan=plan)
            made = seal(
                archive,
                file,
                label=_label(admitted, run_types.changing(admitted.job)),
                plan=plan.digest,
                key=ports.key,
                masks=masks,
            )
        if not plan.found:
            raise WorkspaceUnusable("the workspace holds no plan")
        log.info("workspace.sealed", bytes=made.size, plan=plan.digest().hex())
        yield made


def masks(claim: Claim, ports: Ports, lease: Lease) -> tuple[bytes, ...]:
    """What the jobs before have added to be masked, as their workspace says."""
    with _spool(ports.scratch) as file:
        with _room_needed():
            lease.insist(lambda: ports.workspaces.restore(claim, file))
        return OpenedWorkspace(file, ports.key).masks()


def project_directory(job: Job) -> str:
    """The folder in which the phases run."""
    return posixpath.join(SOURCE, _inside(job.stack.project_root)).rstrip("/")


def _compare(job: Job, found: Fingerprint) -> None:
    """Refuse hooks, images and variables that do not come from this very commit."""
    promised = job.runtime_config_sha256
    # What was uploaded from somebody's machine is no commit.
    if promised is None or job.run.based_on_local_workspace:
        return
    wanted = Fingerprint((RUNTIME_CONFIG,), whole_paths=True)
    if promised:
        wanted.add(RUNTIME_CONFIG, promised)
    if found.digest() != wanted.digest():
        raise RuntimeConfigChanged(
            f"{RUNTIME_CONFIG} of the commit is not what this job was made from",
            details=f"found {found.found}, promised {promised!r}",
        )


def _label(admitted: AdmittedJob, phase: Phase) -> Label:
    job = admitted.job
    return Label(
        run=job.run.id,
        stack=job.stack.slug,
        phase=phase.value,
        commit=job.run.commit.hash,
        image_digest=admitted.image.digest,
        policy_receipt=admitted.receipt,
    )


def _as_unpacked(
    stream: Iterable[bytes], *, strip: str, plan: Fingerprint | None = None
) -> Archive:
    """What the engine unpacks; of what it gives, nothing but what is harmless."""
    archive = Archive()
    archive.directory(_MOUNT)
    archive.tree(stream, below=_MOUNT, strip=strip, plan=plan)
    return archive


def _verified(
    opened: OpenedWorkspace, admitted: AdmittedJob, vendor: VendorTable
) -> bool:
    """
    Read all of a stored workspace, before anything of it is unpacked.

    Returns whether its archive can be unpacked as it is: whether we, who write
    nothing harmful, would write the very same.
    """
    found, wanted = opened.label, _label(admitted, admitted.job.phases[0])
    for what, is_it in {
        "belongs to another run": found.run == wanted.run,
        "belongs to another stack": found.stack == wanted.stack,
        "belongs to another commit": found.commit == wanted.commit,
        # A replan goes on from where the plan was that nobody wanted to confirm.
        "was made for another phase": wanted.phase in (found.phase, Phase.PLAN),
        "was made by another image": found.image_digest == wanted.image_digest,
    }.items():
        if not is_it:
            raise SealBroken(
                f"the stored workspace {what}", details=f"{found!r}, not {wanted!r}"
            )
    plan, comparison = Fingerprint(vendor.plan_files), _Comparison()
    stream = comparison.entering(opened.archive())
    for part in _as_unpacked(stream, strip=_MOUNT, plan=plan):
        comparison.leaves(part)
    comparison.end()
    if not plan.found or plan.digest() != opened.plan:
        raise SealBroken("the stored workspace holds another plan than was sealed")
    log.info(
        "workspace.verified",
        plan=opened.plan.hex(),
        policy_receipt=found.policy_receipt,
    )
    return comparison.same


class _Comparison:
    """Whether what comes out of reading an archive is what went in."""

    def __init__(self) -> None:
        self.same = True
        self._went_in, self._came_out = bytearray(), bytearray()

    def entering(self, stream: Iterable[bytes]) -> Iterator[bytes]:
        for part in stream:
            self._went_in += part
            yield part

    def leaves(self, part: bytes) -> None:
        self._came_out += part
        length = min(len(self._went_in), len(self._came_out))
        # No slices where it can be helped: each would be copied.
        if len(self._came_out) > length:
            self.same &= self._came_out.startswith(self._went_in)
        else:
            self.same &= self._went_in.startswith(self._came_out)
        del self._went_in[:length], self._came_out[:length]

    def end(self) -> None:
        # Zeros at the end of an archive mean nothing.
        self.same = self.same and not any(self._went_in) and not self._came_out


def _used_up(opened: OpenedWorkspace, file: BinaryIO) -> Iterator[bytes]:
    """The archive, after which *file* needs no room on the disk any more."""
    yield from opened.archive()
    file.truncate(0)


@contextmanager
def _spool(folder: Path) -> Iterator[BinaryIO]:
    """A file without a name; nothing of it is left, whatever happens."""
    with _room_needed():
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed below)
    with file:
        yield file


@contextmanager
def _room_needed() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise WorkspaceUnusable(
            "the worker's disk has no room for the workspace", details=str(exc)
        ) from exc


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
