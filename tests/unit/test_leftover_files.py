"""Files that a launcher which was killed has left, and who removes them."""

import os

import pytest

from launcher.cancel import CancelToken
from launcher.leftover_files import LeftoverFiles
from launcher.output.spool import Spools
from launcher.reaper import AGE_SECONDS, Reaper
from launcher.wire.messages import Offer
from support.journals import a_journal


@pytest.fixture(name="journal")
def _journal():
    with a_journal() as journal:
        yield journal


@pytest.fixture(name="spools")
def _spools(tmp_path):
    return Spools(tmp_path / "spools", per_job=1 << 20, total=1 << 20)


@pytest.fixture(name="files")
def _files(tmp_path, spools):
    for name in ("scratch", "tmp"):
        (tmp_path / name).mkdir()
    return LeftoverFiles(spools, tmp_path / "scratch", temporary=tmp_path / "tmp")


def aged(path, seconds):
    at = path.stat().st_mtime - seconds
    os.utime(path, (at, at))


def spooled(spools, tmp_path, job, age):
    spools.new(job).append(b"masked", CancelToken())
    aged(tmp_path / "spools" / job, age)


def test_spools_of_forgotten_jobs_go(tmp_path, spools, files, journal):
    """Only what is old enough, and of a job that is in no journal any more."""
    spooled(spools, tmp_path, "over", AGE_SECONDS + 60)
    spooled(spools, tmp_path, "young", 0)
    spooled(spools, tmp_path, "live", AGE_SECONDS + 60)
    journal.claiming(0, Offer(job="live", run="01RUN"), "01CLAIM")
    reaper = Reaper(files, journal)
    assert 1 == reaper.reap()
    assert ["live", "young"] == spools.remaining()
    assert (1, 0) == (reaper.removed, reaper.waiting)


def test_a_dry_run_only_counts(tmp_path, spools, files, journal):
    """With a dry run the files stay, and show in the metric."""
    spooled(spools, tmp_path, "over", AGE_SECONDS + 60)
    reaper = Reaper(files, journal, dry_run=True)
    assert 0 == reaper.reap()
    assert ["over"] == spools.remaining()
    assert 1 == reaper.waiting


def test_folders_of_a_moment_go_after_a_day(tmp_path, files, journal):
    """Ours only: other people's folders, files and links are not touched."""
    day = 86_400 + 60
    names = {
        "scratch/source-old": day,
        "scratch/source-new": 0,
        "tmp/spacelift-launcher-old": day,
        "tmp/spacelift-exec-old": day,
        "tmp/spacelift-exec-new": 0,
        "tmp/somebody-else": day,
    }
    for name, age in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        aged(tmp_path / name, age)
    (tmp_path / "tmp" / "spacelift-launcher-link").symlink_to(tmp_path / "tmp")
    assert 3 == Reaper(files, journal).reap()
    left = {
        str(path.relative_to(tmp_path))
        for folder in ("scratch", "tmp")
        for path in (tmp_path / folder).iterdir()
    }
    assert left == {
        "scratch/source-new",
        "tmp/spacelift-exec-new",
        "tmp/somebody-else",
        "tmp/spacelift-launcher-link",
    }


def test_nothing_is_there(tmp_path, spools, journal):
    """A launcher that has never worked has nothing to remove."""
    files = LeftoverFiles(spools, tmp_path / "nowhere", temporary=tmp_path / "neither")
    assert 0 == Reaper(files, journal).reap()
