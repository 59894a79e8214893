"""Removing much from a disk that is slow is progress, and follows no link."""

import os
import threading

import pytest

from launcher import removal
from launcher.adapters.sources import mirrors
from launcher.adapters.sources.mirrors import Mirrors
from launcher.heartbeat import watched
from launcher.leftover_files import LeftoverFiles
from launcher.output.spool import Spools
from launcher.reaper import Leftover
from launcher.threads import spawn
from support.hearts import Watching


FILES = 5


def fill(folder):
    """Make a folder with a tree, a link that leads nowhere and a pipe in it."""
    for place in (folder, folder / "a", folder / "a/b"):
        place.mkdir(parents=True)
        for number in range(FILES):
            (place / f"{number}").write_bytes(b"x")
    (folder / "a/dangling").symlink_to("/nonexistent")
    os.mkfifo(folder / "a/pipe")
    return folder


def test_links_are_removed_and_not_followed(tmp_path):
    """What is elsewhere stays, whatever points to it."""
    elsewhere = fill(tmp_path / "elsewhere")
    folder = fill(tmp_path / "folder")
    (folder / "a/folder").symlink_to(elsewhere)
    (folder / "a/file").symlink_to(elsewhere / "0")
    removal.remove_tree(folder)
    assert [elsewhere] == list(tmp_path.iterdir())
    assert FILES + 3 == len(list((elsewhere / "a").iterdir()))


def test_a_link_in_the_folders_place(tmp_path):
    """It leads nowhere."""
    elsewhere = fill(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(elsewhere)
    removal.remove_tree(tmp_path / "link")
    assert FILES + 1 == len(list(elsewhere.iterdir()))


def test_what_cannot_be_removed_stays(tmp_path, monkeypatch):
    """One entry that stays, or was gone already, spares nothing else."""
    folder, unlink = fill(tmp_path / "folder"), os.unlink

    def stubborn(name, **given):
        if name == "3":
            raise PermissionError(name)
        unlink(name, **given)

    monkeypatch.setattr(removal.os, "unlink", stubborn)
    removal.remove_tree(folder)
    left = [path for path in folder.rglob("*") if not path.is_dir()]
    assert ["3", "3", "3"] == [path.name for path in left]
    removal.remove_tree(tmp_path / "absent")


def spool(place):
    spools = Spools(place, per_job=1, total=1)
    fill(place / "job")
    return lambda: spools.discard("job")


def folder(place):
    files = LeftoverFiles(Spools(place / "s", per_job=1, total=1), place)
    left = Leftover(kind="folder", name=str(fill(place / "f")), job="", created_at=0)
    return lambda: files.remove(left)


def mirror(place):
    kept = Mirrors(place, 0)
    fill(place / "0123456789.git")
    return kept.tidy


@pytest.mark.parametrize("begin", [spool, folder, mirror])
def test_a_slow_disk(begin, tmp_path, monkeypatch):
    """Whoever removes more than fits into his promise is not taken for stuck."""
    heart, unlink, late = Watching(), os.unlink, []
    remove, began = begin(tmp_path), heart.now

    def slow(*given, **more):
        heart.now += 200
        late.extend(heart.late())
        unlink(*given, **more)

    monkeypatch.setattr(removal.os, "unlink", slow)
    with heart.listening(), watched("somebody", 300):
        remove()

    assert heart.now - began >= 3 * FILES * 200
    assert [] == late
    assert not list(tmp_path.rglob("pipe"))


def test_who_waits_for_somebody_who_tidies(tmp_path, monkeypatch):
    """A job that finds another one removing mirrors waits for it, and is not missed."""
    monkeypatch.setattr(mirrors, "_TIDYING_SECONDS", 0.01)
    heart, kept = Watching(), Mirrors(tmp_path, 0)
    (tmp_path / "0123456789.git").mkdir()
    measured, go_on = threading.Event(), threading.Event()

    def size_of(_):
        measured.set()
        assert go_on.wait(30)
        return 1

    def tidy():
        with watched("waits", 300):
            kept.tidy()

    monkeypatch.setattr(mirrors, "size_of", size_of)
    with heart.listening():
        threads = [spawn("tidies", kept.tidy)]
        assert measured.wait(30)
        threads.append(spawn("waits", tidy))
        try:
            assert heart.endures("waits")
        finally:
            go_on.set()
            for thread in threads:
                thread.join(30)
    assert not list(tmp_path.glob("*.git"))
