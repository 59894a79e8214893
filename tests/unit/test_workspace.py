import contextlib
import base64
import gzip
import io
import os
import tarfile
import tempfile

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from given import A_KEY, a_claim, a_job, a_run
from launcher import workspace
from launcher.cancel import CancelToken
from launcher.errors import (
    ControlPlaneUnavailable,
    JobInvalid,
    SealBroken,
    SourceUnavailable,
    WorkspaceUnusable,
)
from launcher.lease import Lease
from launcher.model import AdmittedJob, ResolvedImage
from launcher.ports import Ports
from launcher.sealing.keys import PoolKey
from launcher.sealing.workspace import Label, OpenedWorkspace, seal
from launcher.tarstream import Archive, Bounds
from launcher.vendors import table
from launcher.wire.jobs import MountedFile, Phase, Vendor


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
    """A source that is one stream; says whether it is still open."""

    def __init__(self, stream, error=None):
        self.stream, self.error, self.open = stream, error, False

    @contextlib.contextmanager
    def fetch(self, *_):
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


class Store:
    """Keeps a workspace, and gives it back in as many attempts as it has pieces."""

    def __init__(self, content=b""):
        self.content = content
        self.attempts = 0

    def save(self, _, sealed):
        self.content = sealed.read(0, sealed.size)

    def restore(self, _, into):
        self.attempts += 1
        into.seek(0, os.SEEK_END)
        into.write(self.content[into.tell() :][:2000])
        if into.tell() < len(self.content):
            raise ControlPlaneUnavailable("cut off")


class Sandbox:
    """Ends with a workspace."""

    def __init__(self, stream):
        self.stream = stream

    @contextlib.contextmanager
    def workspace(self):
        yield [self.stream[at : at + 700] for at in range(0, len(self.stream), 700)]


IMAGE = ResolvedImage(
    reference="registry.example/runner:1",
    digest="sha256:" + "a" * 64,
    runnable="…",
    local=False,
)
RECEIPT = "c" * 64


def ports(*, code=None, workspaces=None, key=A_KEY, scratch=None):
    nobody = dict.fromkeys(Ports.__dataclass_fields__)
    given = {"code": code, "workspaces": workspaces, "key": key, "scratch": scratch}
    return Ports(**nobody | given)


def admitted(job, image=IMAGE):
    return AdmittedJob(job=job, image=image, receipt=RECEIPT)


def contents(job, *, image=IMAGE, adopted=None, **given):
    adopted = [] if adopted is None else adopted
    vendor = table(job.vendor, job.phases)
    with workspace.contents(
        a_claim(job),
        admitted(job, image),
        vendor,
        ports(**given),
        Lease(CancelToken()),
        adopt=adopted.append,
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


# --- from one job to the next

PLANNED = a_job()
APPLIED = a_job(
    phases=(Phase.APPLY,), restores_workspace=True, image_digest=IMAGE.digest
)
LEFT = {
    "workspace/source/main.tf": b"tf",
    "workspace/source/spacelift.plan": b"the tool's plan",
    "workspace/source/spacelift.plan.json": b"{}",
    "workspace/tmp/ca.pem": b"as it was left",
}


def kept(job=PLANNED, files=LEFT, *, image=IMAGE, key=A_KEY, masks=()):
    """What the control plane has when *job* has left *files*."""
    store, vendor = Store(), table(job.vendor, job.phases)
    with (
        tempfile.TemporaryDirectory() as scratch,
        workspace.sealed(
            admitted(job, image),
            vendor,
            ports(key=key, scratch=Path(scratch)),
            Sandbox(files if isinstance(files, bytes) else tar_of(**files)),
            masks=masks,
        ) as made,
    ):
        store.save(None, made)
        assert [] == os.listdir(scratch)
    return store


MASKS = (b"added-at-run-time", bytes(range(256)))


def test_masks_reach_the_next_job_sealed():
    """What a plan has masked at run time is known to its apply, and to nobody between."""
    adopted = []
    store = kept(masks=MASKS)
    with tempfile.TemporaryDirectory() as scratch:
        contents(APPLIED, workspaces=store, scratch=Path(scratch), adopted=adopted)
    assert [MASKS] == adopted
    for spelt in (MASKS[0], base64.b64encode(MASKS[0]), MASKS[1][:99]):
        assert spelt not in store.content


def test_a_workspace_without_masks_is_adopted_without_any():
    """A job that masked nothing, or was run by an older launcher, hands nothing on."""
    adopted = []
    with tempfile.TemporaryDirectory() as scratch:
        contents(APPLIED, workspaces=kept(), scratch=Path(scratch), adopted=adopted)
    assert [()] == adopted


def restored(store, job=APPLIED, *, image=IMAGE, key=A_KEY):
    with tempfile.TemporaryDirectory() as scratch:
        found = contents(
            job, workspaces=store, image=image, key=key, scratch=Path(scratch)
        )
        assert [] == os.listdir(scratch)
    return {
        name.removeprefix("mnt/"): content
        for name, (member, content) in found.items()
        if member.isreg()
    }


class Gone:
    """A repository of which nothing is left."""

    def fetch(self, *_):
        raise SourceUnavailable("the branch was deleted")


def test_an_apply_asks_no_repository(tmp_path):
    """An apply starts from what its plan left, whatever has become of the repository."""
    found = contents(APPLIED, workspaces=kept(), code=Gone(), scratch=tmp_path)
    assert b"tf" == found["mnt/workspace/source/main.tf"][1]


def refused(store, sentence, job=APPLIED, **how):
    """Nothing is unpacked, and the owner of the run is told why."""
    with pytest.raises((SealBroken, WorkspaceUnusable), match=sentence):
        restored(store, job, **how)


def of_run(job, run):
    return msgspec.structs.replace(
        job, run=msgspec.structs.replace(job.run, id=run, created_at=1)
    )


def test_a_later_job_begins_where_the_earlier_one_ended():
    """A workspace comes back as it was, and nothing is fetched or mounted."""
    assert LEFT == restored(kept())


def test_a_download_is_repeated_until_it_is_whole():
    """A workspace that comes in pieces is opened when the last one is there."""
    store = kept(files=LEFT | {"workspace/big": os.urandom(5000)})
    restored(store)
    assert store.attempts > 2


def test_links_and_times_survive():
    """Modes, times to the second, hard and symbolic links are as they were."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, link in (
            ("plan", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "workspace/source/plan"),
            ("soft", tarfile.SYMTYPE, "plan"),
            ("spacelift.plan", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(f"workspace/source/{name}")
            info.type, info.linkname = kind, link
            info.mode, info.mtime = 0o751, 1_600_000_000
            tar.addfile(info, io.BytesIO())
    with tempfile.TemporaryDirectory() as scratch:
        store = kept(files=file.getvalue())
        found = contents(APPLIED, workspaces=store, scratch=Path(scratch))
    entries = {name.rpartition("/")[2]: entry for name, (entry, _) in found.items()}
    for name in ("plan", "hard", "soft"):
        assert (0o751, 1_600_000_000) == (entries[name].mode, entries[name].mtime)
    assert entries["hard"].islnk()
    assert "mnt/workspace/source/plan" == entries["hard"].linkname
    assert "plan" == entries["soft"].linkname


def test_a_workspace_of_another_run_is_refused():
    """The control plane cannot give an apply what another run has left."""
    refused(kept(of_run(PLANNED, "01OTHER")), "belongs to another run")


def test_an_older_plan_is_refused():
    """Nor what an earlier run of the very same stack and commit has planned."""
    older = kept(of_run(PLANNED, "01OLDER"), LEFT | {"workspace/source/x": b"old"})
    refused(older, "belongs to another run")


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (
            a_job(stack=msgspec.structs.replace(PLANNED.stack, slug="other")),
            "belongs to another stack",
        ),
        (
            a_job(run=a_run(commit=msgspec.structs.replace(a_run().commit, hash="0"))),
            "belongs to another commit",
        ),
    ],
)
def test_a_workspace_of_something_else_is_refused(job, sentence):
    """A workspace fits the stack and the commit it was made of, and no other."""
    refused(kept(job), sentence)


def test_a_workspace_is_for_one_phase():
    """What was made for an apply is of no use to another phase."""
    destroying = a_job(phases=(Phase.DESTROY,), restores_workspace=True)
    refused(kept(), "was made for another phase", destroying)


def test_a_replan_starts_from_what_was_planned():
    """[capability 87] What was made for an apply can be planned once more."""
    again = a_job(phases=(Phase.PLAN,), restores_workspace=True)
    assert LEFT == restored(kept(), again)


def test_an_apply_with_another_image_is_refused():
    """A control plane that names another digest than the plan's is found out."""
    other = replace(IMAGE, digest="sha256:" + "b" * 64)
    refused(kept(), "was made by another image", image=other)


def test_a_workspace_of_another_pool_is_refused():
    """A pool opens what it has sealed itself, and nothing else."""
    other = PoolKey.make()
    refused(kept(key=other), "by another worker pool")
    refused(kept(), "by another worker pool", key=other)


def test_another_plan_than_the_sealed_one_is_refused():
    """The plan's sum in the header is that of the plan in the archive."""
    refused(written_otherwise(plan=bytes(32)), "holds another plan than was sealed")


def written_otherwise(plan=None):
    """A workspace that the pool has sealed, in an archive that another tar wrote."""
    file = io.BytesIO()
    opened = OpenedWorkspace(io.BytesIO(kept().content), A_KEY)
    seal(
        [tar_of(**{f"mnt/{name}": content for name, content in LEFT.items()})],
        file,
        label=Label(**{n: getattr(opened.label, n) for n in Label.__struct_fields__}),
        plan=lambda: plan or opened.plan,
        key=A_KEY,
    )
    return Store(file.getvalue())


def test_an_archive_of_an_earlier_version_is_written_anew():
    """What another launcher of the pool wrote in another way is taken apart again."""
    assert {**restored(kept()), **LEFT} == restored(written_otherwise())


def test_a_workspace_without_a_plan_is_not_kept():
    """There is nothing to apply in it."""
    with pytest.raises(WorkspaceUnusable, match="holds no plan"):
        kept(files={"workspace/source/main.tf": b"tf"})


def test_every_file_of_the_plan_counts():
    """The sum changes with each file of the plan, and with nothing else."""

    def plan_of(**changes):
        store = kept(
            files=LEFT | {f"workspace/source/{k}": v for k, v in changes.items()}
        )
        return OpenedWorkspace(io.BytesIO(store.content), A_KEY).plan

    plans = {
        plan_of(),
        plan_of(**{"spacelift.plan": b"another"}),
        plan_of(**{"spacelift.plan.json": b"{} "}),
        plan_of(**{"spacelift.plan": "elsewhere"}),
        plan_of(**{"sub/spacelift.plan": b"one more"}),
    }
    assert 5 == len(plans)
    assert plan_of() == plan_of(**{"main.tf": b"another"})


@pytest.mark.parametrize("size", [0, 10, 100, 1000, -1])
def test_a_workspace_that_is_cut_short_is_refused(size):
    """A file that ends early is refused before anything of it is unpacked."""
    store = kept()
    refused(Store(store.content[:size]), "the stored workspace")


def test_nothing_is_unpacked_before_all_is_verified():
    """A flip in the last byte is found before the first entry comes out."""
    store = kept()
    store.content = store.content[:-1] + bytes([store.content[-1] ^ 1])
    with tempfile.TemporaryDirectory() as scratch, pytest.raises(SealBroken):
        workspace.contents(
            a_claim(APPLIED),
            admitted(APPLIED),
            table(APPLIED.vendor, APPLIED.phases),
            ports(workspaces=store, scratch=Path(scratch)),
            Lease(CancelToken()),
            adopt=print,
        ).__enter__()


def test_a_full_disk_is_said_to_be(tmp_path):
    """Where the worker has no room for a workspace, the run's owner reads so."""
    job, vendor = PLANNED, table(PLANNED.vendor, PLANNED.phases)
    gone = ports(scratch=tmp_path / "gone")
    with (
        pytest.raises(WorkspaceUnusable, match="disk has no room"),
        workspace.sealed(admitted(job), vendor, gone, Sandbox(tar_of(**LEFT))),
    ):
        pass


def test_errors_of_the_block_are_not_disguised(tmp_path):
    """What goes wrong beside the workspace is not blamed on the disk."""
    given = ports(code=Chunks(tar_of()), scratch=tmp_path)
    for job, store in ((a_job(), None), (APPLIED, kept())):
        given = replace(given, workspaces=store)
        with (
            pytest.raises(FileNotFoundError),
            workspace.contents(
                a_claim(job),
                admitted(job),
                table(job.vendor, job.phases),
                given,
                Lease(CancelToken()),
                adopt=print,
            ),
        ):
            raise FileNotFoundError


# --- code that somebody uploaded


class Uploads(Store):
    """Gives what was uploaded, piece by piece; there is no repository to ask."""

    uploaded = Store.restore


def zipped(stream):
    return gzip.compress(stream, mtime=0)


def preview(uploaded, **given):
    job = a_job(run=a_run(based_on_local_workspace=True))
    return contents(job, workspaces=Uploads(uploaded), **given)


@pytest.mark.parametrize(
    "job", [a_job(run=a_run(based_on_local_workspace=True)), APPLIED]
)
def test_a_stop_ends_the_wait_for_what_is_stored(job, tmp_path):
    """Nobody insists on code or a workspace for a job that is to be stopped."""
    lease, asked = Lease(CancelToken()), []

    def unavailable(*_):
        assert not asked
        asked.append(job)
        lease.heard("stopped by a user")
        raise ControlPlaneUnavailable("away")

    store = SimpleNamespace(uploaded=unavailable, restore=unavailable)
    with (
        pytest.raises(ControlPlaneUnavailable),
        workspace.contents(
            a_claim(job),
            admitted(job),
            table(job.vendor, job.phases),
            ports(workspaces=store, scratch=tmp_path),
            lease,
            adopt=print,
        ),
    ):
        pass


def test_uploaded_code_is_the_source():
    """[capability 233] A run of an uploaded workspace gets its code, without the folder around it."""
    found = preview(zipped(tar_of(**{"01WS/main.tf": b"tf", "01WS/link": "main.tf"})))
    assert b"tf" == found["mnt/workspace/source/main.tf"][1]
    assert "main.tf" == found["mnt/workspace/source/link"][0].linkname
    assert b"a private key\n" == found["mnt/workspace/source/key"][1]


def device(name):
    info = tarfile.TarInfo(name)
    info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3
    return info.tobuf()


@pytest.mark.parametrize(
    ("uploaded", "sentence"),
    [
        (b"no gzip", "the uploaded workspace is damaged"),
        (b"", "the uploaded workspace is cut short"),
        (zipped(tar_of(**{"w/a": b"x" * 9000}))[:-20], "cut short"),
        (zipped(b"no tar" * 200), "an archive of the workspace is damaged"),
        (zipped(tar_of()), "has no folder of its own"),
        (zipped(tar_of(a=b"1")), "has no folder of its own"),
        (zipped(tar_of(**{"../a": b"1"})), "has no folder of its own"),
        (zipped(tar_of(**{"w/../../a": b"1"})), "holds an unsafe path"),
        (zipped(tar_of(**{"w/a": b"1", "x/b": b"2"})), "holds a stray path"),
        (zipped(tar_of(**{"w/l": "/etc", "w/l/passwd": b"x"})), "through a link"),
    ],
)
def test_hostile_uploads(uploaded, sentence):
    """What is not one folder in a gzip archive never reaches the container."""
    with pytest.raises(WorkspaceUnusable, match=sentence):
        preview(uploaded)


def test_devices_of_an_upload_are_left_out():
    """Device files mean nothing in the container, and are not made there."""
    stream = tar_of(**{"w/a": b"1"})
    found = preview(zipped(stream[:1024] + device("w/null") + stream[1024:]))
    assert b"1" == found["mnt/workspace/source/a"][1]
    assert "mnt/workspace/source/null" not in found


def test_an_upload_that_unpacks_to_too_much(monkeypatch):
    """A few bytes that stand for very many are given up in time."""
    small = Bounds(size=1 << 20)
    monkeypatch.setattr(workspace, "Archive", lambda: Archive(small))
    with pytest.raises(WorkspaceUnusable, match="more than 1048576 bytes"):
        preview(zipped(tar_of(**{"w/zeros": bytes(8 << 20)})))
