import contextlib
import io
import tarfile

import msgspec
import pytest

from given import a_claim, a_job
from launcher import workspace
from launcher.cancel import CancelToken
from launcher.errors import JobInvalid, SourceUnavailable, WorkspaceUnusable
from launcher.lease import Lease
from launcher.ports import Ports
from launcher.vendors import table
from launcher.wire.jobs import MountedFile, Vendor


def tar_of(**files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname, content = tarfile.SYMTYPE, content, b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Chunks:
    """Yields one stream, whoever asks; says whether it is still open."""

    def __init__(self, stream, error=None):
        self.stream, self.error, self.open = stream, error, False

    @contextlib.contextmanager
    def _opened(self, *_):
        self.open = True
        try:
            yield self._parts()
        finally:
            self.open = False

    def _parts(self):
        for start in range(0, len(self.stream), 1000):
            assert self.open
            yield self.stream[start : start + 1000]
        if self.error:
            raise self.error

    fetch = restore = _opened


def ports(*, code=None, workspaces=None):
    nobody = dict.fromkeys(Ports.__dataclass_fields__)
    return Ports(**(nobody | {"code": code, "workspaces": workspaces}))


def contents(job, **given):
    vendor = table(job.vendor, job.phases)
    with workspace.contents(
        a_claim(job), vendor, ports(**given), Lease(CancelToken())
    ) as archive:
        stream = b"".join(archive)
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        return {
            member.name: (
                member,
                tar.extractfile(member).read() if member.isreg() else b"",
            )
            for member in tar
        }


def test_a_first_job_begins_with_its_source():
    """The source lies in its folder, the mounted files where they belong."""
    job = a_job(
        mounted_files=(
            MountedFile(path="tmp/ca.pem", content=b"ca"),
            MountedFile(path="./source//key", content=b"key", secret=True),
        )
    )
    found = contents(job, code=Chunks(tar_of(**{"main.tf": b"tf"})))
    assert b"tf" == found["mnt/workspace/source/main.tf"][1]
    assert (b"ca", 0o644) == (
        found["mnt/workspace/tmp/ca.pem"][1],
        found["mnt/workspace/tmp/ca.pem"][0].mode,
    )
    assert (b"key", 0o600) == (
        found["mnt/workspace/source/key"][1],
        found["mnt/workspace/source/key"][0].mode,
    )
    assert {(1983, 1983)} == {(member.uid, member.gid) for member, _ in found.values()}


def test_mounted_files_win_over_the_repository():
    """A mounted file replaces what the repository has there, links included."""
    job = a_job(
        mounted_files=(
            MountedFile(path="source/same", content=b"mounted"),
            MountedFile(path="source/link/deep", content=b"mounted"),
        )
    )
    found = contents(job, code=Chunks(tar_of(same=b"repository", link="/etc")))
    assert b"mounted" == found["mnt/workspace/source/same"][1]
    assert b"mounted" == found["mnt/workspace/source/link/deep"][1]
    assert found["mnt/workspace/source/link"][0].isdir()


def test_files_of_the_vendor_are_there():
    """What the commands of a vendor need is in the workspace."""
    found = contents(a_job(vendor=Vendor(vendor="ansible")), code=Chunks(tar_of()))
    assert (
        b"CallbackModule"
        in found["mnt/workspace/.spacelift/ansible/spacelift_plan.py"][1]
    )


def test_a_later_job_begins_where_the_earlier_one_ended():
    """A stored workspace comes back as it was, and nothing is fetched or mounted."""
    stored = Chunks(
        tar_of(
            **{
                "workspace/source/spacelift.plan": b"plan",
                "workspace/tmp/ca.pem": b"as it was left",
            }
        )
    )
    found = contents(a_job(restores_workspace=True), workspaces=stored)
    files = {
        name: content for name, (member, content) in found.items() if member.isreg()
    }
    assert {
        "mnt/workspace/source/spacelift.plan": b"plan",
        "mnt/workspace/tmp/ca.pem": b"as it was left",
    } == files


def test_a_stored_workspace_that_turns_out_wrong_is_refused():
    """What is found out only at the end of a stored workspace is heard."""
    damaged = Chunks(tar_of(), WorkspaceUnusable("the stored workspace is damaged"))
    with pytest.raises(WorkspaceUnusable):
        contents(a_job(restores_workspace=True), workspaces=damaged)


def test_a_source_that_breaks_off_is_refused():
    """A source that cannot be read to its end is not used in part."""
    broken = Chunks(tar_of(a=b"1"), SourceUnavailable("gone"))
    with pytest.raises(SourceUnavailable):
        contents(a_job(), code=broken)


def test_source_and_store_are_closed():
    """Whatever was opened for the workspace is closed with it."""
    code = Chunks(tar_of())
    contents(a_job(), code=code)
    assert not code.open


@pytest.mark.parametrize(
    "path", ["", ".", "/", "./", "a/", "..", "../x", "a/../../x", "/etc/passwd", "a\0b"]
)
def test_mounted_files_stay_inside(path):
    """A mounted file that would lie elsewhere, or be no file, makes the job invalid."""
    job = a_job(mounted_files=(MountedFile(path=path, content=b"x"),))
    with pytest.raises(JobInvalid):
        contents(job, code=Chunks(tar_of()))


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("", "/mnt/workspace/source"),
        (".", "/mnt/workspace/source"),
        ("infra", "/mnt/workspace/source/infra"),
        ("./a//b/", "/mnt/workspace/source/a/b"),
        ("with space", "/mnt/workspace/source/with space"),
    ],
)
def test_phases_run_in_the_projects_folder(root, folder):
    """The project root is relative to the source, however it is written."""
    stack = msgspec.structs.replace(a_job().stack, project_root=root)
    assert folder == workspace.project_directory(a_job(stack=stack))


@pytest.mark.parametrize("root", ["..", "a/../..", "/", "/infra", "a\0"])
def test_phases_run_nowhere_else(root):
    """A project root outside of the source makes the job invalid."""
    stack = msgspec.structs.replace(a_job().stack, project_root=root)
    with pytest.raises(JobInvalid):
        workspace.project_directory(a_job(stack=stack))
