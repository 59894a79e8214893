import hashlib
import io
import itertools
import subprocess
import tarfile
import tracemalloc

import pytest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.errors import SourceUnavailable, WorkspaceUnusable
from launcher.tarstream import Archive, Bounds, ChunkReader, Fingerprint


BELOW = "mnt/workspace"


def entry(name="file", kind=tarfile.REGTYPE, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar_of(*entries, form=tarfile.PAX_FORMAT, headers=None):
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=form, pax_headers=headers or {}
    ) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def placed(stream, *, strip="", below=BELOW):
    chunks = [stream] if isinstance(stream, bytes) else stream
    archive = Archive()
    archive.tree(chunks, below=below, strip=strip)
    return b"".join(archive)


def read(stream):
    """Everything in a tar file, by a reader that is not ours."""
    with tarfile.open(
        fileobj=io.BytesIO(stream), encoding="utf-8", errors="surrogateescape"
    ) as tar:
        return [
            (member, tar.extractfile(member).read() if member.isreg() else b"")
            for member in tar
        ]


def files(stream):
    return {member.name: content for member, content in read(stream) if member.isreg()}


def refused(stream, **how):
    with pytest.raises(WorkspaceUnusable) as caught:
        placed(stream, **how)
    return caught.value


def assert_harmless(stream):
    """Nothing in *stream* can act outside of its folder, nor as somebody else."""
    links = set()
    for member, _ in read(stream):
        path = member.name
        assert f"{path}/".startswith(("mnt/", f"{BELOW}/"))
        assert ".." not in path.split("/")
        assert member.isdir() or member.isreg() or member.issym() or member.islnk()
        assert (1983, 1983) == (member.uid, member.gid)
        assert member.mode == member.mode & 0o777
        assert not any(path.startswith(f"{link}/") for link in links)
        links.discard(path)
        if member.issym() or member.islnk():
            links.add(path)
        if member.islnk():
            assert member.linkname.startswith(f"{BELOW}/")


# --- what is copied

LONG = "/".join(["a-rather-long-folder"] * 12) + "/" + "f" * 200


@pytest.mark.parametrize(
    "form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"]
)
def test_contents_modes_and_names_survive(form):
    """Files come out byte for byte, with their executable bits and their names."""
    given_files = {
        "plain": (b"text\n", 0o644),
        "empty": (b"", 0o644),
        "tool.sh": (b"#!/bin/sh\n", 0o755),
        "secret": (b"x", 0o600),
        "block": (b"b" * 512, 0o644),
        "big": (bytes(range(256)) * 700, 0o644),
        LONG: (b"deep", 0o644),
        "mit Leerzeichen und ü": (b"umlaut", 0o644),
        "bytes-\udcff\udcfe": (b"not utf-8", 0o644),
        "line\nbreak": (b"odd", 0o644),
    }
    stream = placed(
        tar_of(
            *[
                entry(name, content=content, mode=mode, mtime=1_700_000_000)
                for name, (content, mode) in given_files.items()
            ],
            form=form,
        )
    )
    found = {
        member.name.removeprefix(f"{BELOW}/"): (content, member.mode)
        for member, content in read(stream)
        if member.isreg()
    }
    assert given_files == found
    assert {1_700_000_000} == {m.mtime for m, _ in read(stream) if m.isreg()}
    assert_harmless(stream)


def test_another_tar_reads_it(tmp_path):
    """What comes out is unpacked by the system's tar exactly as it went in."""
    source = tar_of(
        entry("dir", tarfile.DIRTYPE, mode=0o755),
        entry("dir/tool", content=b"#!/bin/sh\n" * 100, mode=0o755),
        entry(LONG, content=b"deep"),
        entry("bytes-\udcff", content=b"not utf-8"),
        entry("link", tarfile.SYMTYPE, linkname="dir/tool"),
        entry("hard", tarfile.LNKTYPE, linkname="dir/tool"),
    )
    subprocess.run(
        ["tar", "--no-same-owner", "-x", "-C", tmp_path],
        input=placed(source),
        check=True,
    )
    root = tmp_path / BELOW
    assert b"#!/bin/sh\n" * 100 == (root / "dir/tool").read_bytes()
    assert (root / "dir/tool").stat().st_mode & 0o111
    assert b"deep" == (root / LONG).read_bytes()
    assert b"not utf-8" == (root / "bytes-\udcff").read_bytes()
    assert "dir/tool" == str((root / "link").readlink())
    assert (root / "hard").samefile(root / "dir/tool")


names = st.lists(
    st.text("abü.\udcff \n", min_size=1, max_size=4).filter(
        lambda n: n not in ("..", ".")
    ),
    min_size=1,
    max_size=3,
).map("/".join)


@given(
    st.dictionaries(names, st.binary(max_size=1500), max_size=6),
    st.lists(st.integers(0, 20_000), max_size=6),
)
def test_every_chunking_gives_the_same(contents, places):
    """However a stream is cut, empty pieces included, the same archive comes out."""
    stream = tar_of(
        *[entry(name, content=content) for name, content in contents.items()]
    )
    edges = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    chunks = [stream[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    whole = placed(stream)
    assert whole == placed(chunks)
    assert_harmless(whole)


def test_empty_chunks_do_not_end_a_stream():
    """A sender that has nothing to say for once is not at its end."""
    stream = tar_of(entry(content=b"content" * 1000))
    chunks = [
        piece
        for start in range(0, len(stream), 100)
        for piece in (b"", stream[start : start + 100])
    ]
    assert placed(stream) == placed([b"", *chunks, b""])


def test_folders_belong_to_the_user_of_the_run():
    """Folders that the stream does not name are made, and belong to the run's user."""
    stream = placed(tar_of(entry("a/b/c", content=b"x")), below=f"{BELOW}/source")
    assert [
        "mnt",
        "mnt/workspace",
        "mnt/workspace/source",
        "mnt/workspace/source/a",
        "mnt/workspace/source/a/b",
    ] == [member.name for member, _ in read(stream) if member.isdir()]
    assert_harmless(stream)


def test_an_empty_tree_still_has_its_folder():
    """A repository without files gives an empty folder, not none."""
    stream = placed(tar_of(headers={"comment": "a" * 40}), below=f"{BELOW}/source")
    assert f"{BELOW}/source" in [member.name for member, _ in read(stream)]


def test_pieces_follow_each_other():
    """Folders, trees and files become one archive, in the order they were given."""
    archive = Archive()
    archive.directory(BELOW)
    archive.tree([tar_of(entry("a", content=b"1"))], below=f"{BELOW}/source")
    archive.file(f"{BELOW}/source/b", b"2", mode=0o600)
    stream = b"".join(archive)
    assert {f"{BELOW}/source/a": b"1", f"{BELOW}/source/b": b"2"} == files(stream)
    assert 0o600 == read(stream)[-1][0].mode
    assert_harmless(stream)


def test_files_of_ours_replace_links():
    """A file that is mounted does not go through a link that was there before."""
    archive = Archive()
    archive.tree(
        [
            tar_of(
                entry("link", tarfile.SYMTYPE, linkname="/etc"),
                entry("other", tarfile.SYMTYPE, linkname="/etc/passwd"),
            )
        ],
        below=BELOW,
    )
    archive.file(f"{BELOW}/link/deep/file", b"1")
    archive.file(f"{BELOW}/other", b"2")
    stream = b"".join(archive)
    kinds = {member.name: member.type for member, _ in read(stream)}
    assert tarfile.DIRTYPE == kinds[f"{BELOW}/link"]
    assert tarfile.REGTYPE == kinds[f"{BELOW}/other"]
    assert_harmless(stream)


def test_the_folder_it_came_in_is_stripped():
    """A stream that holds one folder is placed without that folder."""
    stream = tar_of(
        entry("workspace", tarfile.DIRTYPE),
        entry("workspace/a", content=b"1"),
        entry("workspace/b", tarfile.LNKTYPE, linkname="workspace/a"),
    )
    found = read(placed(stream, strip="workspace"))
    assert {f"{BELOW}/a": b"1"} == files(placed(stream, strip="workspace"))
    assert f"{BELOW}/a" == found[-1][0].linkname


def test_the_later_of_two_entries_is_the_later_one():
    """Duplicates are kept in order, so that the last one wins."""
    stream = placed(tar_of(entry("a", content=b"1"), entry("a", content=b"2")))
    assert [b"1", b"2"] == [c for m, c in read(stream) if m.isreg()]


def test_a_global_header_is_no_file():
    """The comment that git writes at the front of its archives is left out."""
    stream = placed(tar_of(entry(content=b"x"), headers={"comment": "a" * 40}))
    assert {f"{BELOW}/file": b"x"} == files(stream)


def test_special_bits_are_dropped():
    """No file comes in as setuid, and a folder stays usable."""
    stream = placed(
        tar_of(entry("a", mode=0o6755), entry("d", tarfile.DIRTYPE, mode=0o1000))
    )
    assert [0o755, 0o700] == [m.mode for m, _ in read(stream)][-2:]


@pytest.mark.parametrize(
    "mtime", ["nan", "inf", "-inf", "-5", "1e300", "99999999999999"]
)
def test_odd_times_are_dropped(mtime):
    """A time that no tar can hold does no harm."""
    stream = tar_of(entry(content=b"x", pax_headers={"mtime": mtime}))
    assert [0] == [m.mtime for m, _ in read(placed(stream)) if m.isreg()]


@pytest.mark.parametrize(
    "kind",
    [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE],
    ids=["fifo", "chr", "blk"],
)
def test_devices_and_pipes_are_left_out(kind):
    """Whatever is neither file, folder nor link does not come in."""
    stream = placed(tar_of(entry("dev", kind), entry("file", content=b"x")))
    assert {f"{BELOW}/file": b"x"} == files(stream)
    assert_harmless(stream)


# --- what is refused


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "a/..", "..", "/../x", "a/b/../../../x"]
)
def test_paths_that_climb_are_refused(name):
    """A path that leaves the folder is not normalised but refused."""
    assert "unsafe path" in str(refused(tar_of(entry(name, content=b"x"))))
    assert "unsafe path" in str(
        refused(tar_of(entry("x", pax_headers={"path": name}, content=b"x")))
    )


@pytest.mark.parametrize("name", ["/etc/passwd", "//etc//passwd", "./etc/passwd"])
def test_absolute_paths_are_placed_below_the_folder(name):
    """An absolute path means the folder's own root."""
    stream = placed(tar_of(entry(name, content=b"x")))
    assert {f"{BELOW}/etc/passwd": b"x"} == files(stream)


@pytest.mark.parametrize("name", ["elsewhere/a", "workspace2/a", "/a", ".."])
def test_paths_beside_the_folder_are_refused(name):
    """In a stream of one folder there is nothing beside it."""
    refused(tar_of(entry(name, content=b"x")), strip="workspace")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_nothing_is_written_through_a_link(kind):
    """A link followed by something below it is refused, whatever it links to."""
    link = entry("a", kind, linkname="target")
    refused(tar_of(entry("target", tarfile.DIRTYPE), link, entry("a/x", content=b"x")))
    refused(tar_of(link, entry("a/b/c", tarfile.DIRTYPE)))
    refused(tar_of(link, entry("h", tarfile.LNKTYPE, linkname="a/passwd")))


def test_a_folder_that_became_a_link_is_a_link():
    """The trick with a folder, a link in its place and a file below is refused."""
    refused(
        tar_of(
            entry("a", tarfile.DIRTYPE),
            entry("a", tarfile.SYMTYPE, linkname="/etc"),
            entry("a", tarfile.DIRTYPE),
            entry("a/x", content=b"x"),
        )
    )


@pytest.mark.parametrize("target", ["../../etc/passwd", "a/../../x", ".."])
def test_hard_links_to_the_outside_are_refused(target):
    """A hard link that climbs is refused."""
    refused(tar_of(entry("h", tarfile.LNKTYPE, linkname=target)))


def test_hard_links_to_absolute_paths_stay_inside():
    """A hard link to an absolute path means the folder's own root."""
    stream = placed(tar_of(entry("h", tarfile.LNKTYPE, linkname="/etc/passwd")))
    assert f"{BELOW}/etc/passwd" == read(stream)[-1][0].linkname


def test_hard_links_beside_the_folder_are_refused():
    """A hard link to what is beside the stripped folder is refused."""
    stream = tar_of(entry("workspace/h", tarfile.LNKTYPE, linkname="etc/passwd"))
    refused(stream, strip="workspace")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.REGTYPE])
@pytest.mark.parametrize("name", ["workspace", "./workspace/", "workspace/."])
def test_the_folder_itself_is_not_replaced(kind, name):
    """The place of the whole tree cannot become a link or a file."""
    refused(tar_of(entry(name, kind, linkname="workspace/x")), strip="workspace")


SPARSE = {
    "1.0": {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(1 << 50),
    },
    "0.1": {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 50)},
    "0.0": {"GNU.sparse.size": str(1 << 50), "GNU.sparse.numblocks": "1"},
}


@pytest.mark.parametrize("headers", SPARSE.values(), ids=SPARSE)
def test_sparse_files_are_refused(headers):
    """A few bytes cannot become a file of a petabyte."""
    content = b"1\n0\n1\n".ljust(512, b"\0") + b"x"
    refused(tar_of(entry(content=content, pax_headers=headers)))


def test_old_sparse_files_are_refused():
    """The same in the format of old GNU tars."""
    refused(tar_of(entry(kind=tarfile.GNUTYPE_SPARSE), form=tarfile.GNU_FORMAT))


def with_size(stream, size):
    """The first header of *stream*, now claiming *size* and with a right checksum."""
    header = bytearray(stream[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + stream[512:]


@pytest.mark.parametrize(
    "kind",
    [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"Z", b"x", b"g"],
)
@pytest.mark.parametrize(
    "size",
    [
        b"77777777777\0",
        b"\x80" + (1 << 62).to_bytes(11, "big"),
        b"\xff" * 12,
        b"\xff" * 10 + b"\xfe\0",
    ],
    ids=["8 GiB", "4 EiB", "-1", "-512"],
)
def test_lying_sizes_end_at_once(kind, size):
    """Neither a negative nor an enormous size is believed or waited for."""
    stream = tar_of(entry("x", kind), entry("y", content=b"y"))
    refused(with_size(stream, size))


@pytest.mark.parametrize("size", ["-1", "-512", "-1024", str(1 << 60)])
def test_lying_sizes_in_extensions_end_at_once(size):
    """The same where the size comes from an extended header."""
    refused(tar_of(entry(content=b"x" * 600, pax_headers={"size": size})))


def test_a_long_chain_of_extensions_is_refused():
    """A header that extends a header that extends … ends in an error of ours."""
    link = tar_of(entry("x", tarfile.XHDTYPE))[:512]
    refused(link * 3000 + tar_of(entry(content=b"x")))


def test_an_endless_name_is_refused():
    """A name does not fill the launcher's memory."""
    refused(tar_of(entry("n" * 70_000, content=b"x"), form=tarfile.GNU_FORMAT))
    refused(tar_of(entry("n" * 70_000, content=b"x")))


def test_a_nul_in_a_name_is_refused():
    """A name that C programs would read differently is refused."""
    refused(tar_of(entry("x", pax_headers={"path": "a\0b"}, content=b"x")))


@pytest.mark.parametrize("length", [*range(0, 3072, 512), 1, 100, 700, 1500, 2000])
def test_truncated_archives_are_refused(length):
    """An archive that ends anywhere before its end is not taken for a smaller one."""
    stream = tar_of(entry("a", content=b"a" * 600), entry("b", content=b"b" * 10))
    assert {f"{BELOW}/a", f"{BELOW}/b"} == set(files(placed(stream[: 3072 + 512])))
    refused(stream[:length])


def test_a_damaged_header_is_not_the_end():
    """A header that cannot be read is an error, not the end of the archive."""
    stream = tar_of(entry("a", content=b"a"), entry("b", content=b"b"))
    damaged = stream[:1024] + b"?" + stream[1025:]
    assert "damaged" in str(refused(damaged))


def test_garbage_is_refused():
    """What is no archive at all is refused."""
    refused(b"")
    refused(b"no tar" * 1000)
    refused([])


def test_the_whole_stream_is_read():
    """A sender that finds only at its end that it is wrong is heard."""
    stream = tar_of(entry(content=b"x"))

    def chunks():
        yield stream
        for _ in range(100):
            yield bytes(10_000)
        raise SourceUnavailable("the checksum is wrong")

    with pytest.raises(SourceUnavailable):
        placed(chunks())


def test_errors_of_the_sender_are_not_disguised():
    """An error of whoever sends the stream arrives as it is."""

    def chunks():
        yield tar_of(entry(content=b"x" * 5000))[:1000]
        raise SourceUnavailable("gone")

    with pytest.raises(SourceUnavailable):
        placed(chunks())


def a_busy_archive():
    return tar_of(
        entry("d", tarfile.DIRTYPE),
        entry("d/ü", content=b"content" * 100, mtime=1.5),
        entry("l", tarfile.SYMTYPE, linkname="d/ü"),
        entry("h", tarfile.LNKTYPE, linkname="d/ü"),
        entry("p", tarfile.FIFOTYPE),
        entry("n" * 150, content=b"x"),
        form=tarfile.PAX_FORMAT,
    )


BUSY = a_busy_archive()


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(0, len(BUSY) - 1), st.binary(min_size=1, max_size=12)),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_no_damage_makes_an_archive_harmful(damages, repaired):
    """Whatever is changed in an archive, it is refused or comes out harmless."""
    stream = bytearray(BUSY)
    for place, data in damages:
        stream[place : place + len(data)] = data
        block = place - place % 512
        if repaired:  # with a right checksum, the damage gets further
            stream[block + 148 : block + 156] = b" " * 8
            total = sum(stream[block : block + 512])
            stream[block + 148 : block + 156] = b"%06o\0 " % total
    try:
        out = placed(bytes(stream))
    except WorkspaceUnusable:
        return
    assert_harmless(out)


# --- reading


def test_chunks_are_readable_as_a_file():
    """Chunks of any size read like one file, in parts or to the end."""
    reader = ChunkReader([b"ab", b"", b"cde", b"f"])
    assert b"a" == reader.read(1)
    assert b"bcd" == reader.read(3)
    assert b"" == reader.read(0)
    assert b"ef" == reader.read()
    assert b"" == reader.read(5)


# --- how much an archive may hold


def bounded(stream, **bounds):
    archive = Archive(Bounds(**bounds))
    archive.tree(stream, below=BELOW)
    size = 0
    for part in archive:
        size += len(part)
    return size


def headers(make, count):
    """A tar stream of *count* entries without content, never in memory as a whole."""
    for number in range(count):
        yield make(number).tobuf(tarfile.GNU_FORMAT)
    yield bytes(1024)


def test_an_archive_has_so_many_bytes():
    """What would fill the disk ends where the bound is, the reader's padding included."""
    stream = tar_of(entry(content=bytes(100_000)))
    assert bounded([stream], size=len(stream)) > 100_000
    with pytest.raises(WorkspaceUnusable, match="more than 100000 bytes"):
        bounded([stream], size=100_000)


def test_an_endless_archive_ends():
    """A bomb is not waited for: it is left as soon as it is too large."""
    endless = (bytes(1 << 20) for _ in iter(int, 1))
    info, _ = entry(content=b"")
    info.size = 1 << 40
    stream = itertools.chain([info.tobuf()], endless)
    with pytest.raises(WorkspaceUnusable, match="more than 50000000 bytes"):
        bounded(stream, size=50_000_000)


def test_an_archive_has_so_many_entries():
    """One entry too many is refused, of whatever kind."""
    empty = lambda number: entry(f"f{number}")[0]  # noqa: E731
    assert bounded(headers(empty, 50), entries=50)
    with pytest.raises(WorkspaceUnusable, match="more than 50 entries"):
        bounded(headers(empty, 51), entries=50)


@pytest.mark.parametrize(
    "kind", [tarfile.DIRTYPE, tarfile.SYMTYPE], ids=["folders", "links"]
)
def test_names_that_are_remembered_are_bounded(kind):
    """Folders and links, whose names are kept in memory, are not endless either."""
    make = lambda number: entry(f"d{number}", kind, linkname="x")[0]  # noqa: E731
    assert bounded(headers(make, 50), names=50 * 200)
    with pytest.raises(WorkspaceUnusable, match="too many folders and links"):
        bounded(headers(make, 200), names=50 * 200)


def peak_of(stream):
    """The most memory that it took to read *stream*."""
    tracemalloc.start()
    try:
        bounded(stream)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_files_leave_nothing_in_memory():
    """However many files there are, nothing is remembered of those that are through."""
    make = lambda number: entry(f"some/folder/{number}" + "x" * 80)[0]  # noqa: E731
    assert peak_of(headers(make, 3000)) < peak_of(headers(make, 500)) + 50_000


def test_global_headers_do_not_add_up():
    """What describes all files to come is forgotten with the next one."""

    def stream():
        for number in range(300):
            yield tarfile.TarInfo.create_pax_global_header(
                {f"comment{number}": "x" * 20_000}
            )
            yield entry(f"f{number}")[0].tobuf()
        yield bytes(1024)

    assert peak_of(stream()) < 2 << 20


# --- the sum of the plan


def sum_of(*entries, below=BELOW, strip=""):
    known = Fingerprint(["plan", "plan.json"])
    archive = Archive()
    archive.tree([tar_of(*entries)], below=below, strip=strip, plan=known)
    for _ in archive:
        pass
    return known.found, known.digest()


def test_a_sum_is_that_of_the_plans_files():
    """It covers names and contents of the plan's files, and nothing else."""
    plan, other = entry("a/plan", content=b"1"), entry("a/x", content=b"2")
    line = f"{hashlib.sha256(b'1').hexdigest()}  a/plan\n".encode()
    assert (1, hashlib.sha256(line).digest()) == sum_of(plan, other)
    assert sum_of(plan) == sum_of(other, plan)
    assert sum_of(plan) != sum_of(entry("b/plan", content=b"1"))
    assert sum_of(plan) != sum_of(entry("a/plan", content=b"2"))
    assert sum_of(plan) != sum_of(plan, entry("a/plan.json"))
    assert (0, hashlib.sha256().digest()) == sum_of(other)


def test_a_sum_does_not_depend_on_the_folder():
    """It is the same where the workspace is packed and where it is unpacked."""
    stored = (
        entry("w/plan", content=b"1"),
        entry("w/plan.json", tarfile.LNKTYPE, linkname="w/plan"),
    )
    assert sum_of(*stored, below="w", strip="w") == sum_of(*stored, strip="w")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_plan_that_is_a_link_shows(kind):
    """What a link of the plan's name points to is part of the sum."""
    one, two = (entry("plan", kind, linkname=target) for target in ("one", "two"))
    assert 1 == sum_of(one)[0]
    assert sum_of(one) != sum_of(two)
