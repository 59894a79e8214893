import os
import subprocess
import sys

from concurrent.futures import ThreadPoolExecutor

import pytest

from launcher.errors import ReplayCacheUnusable
from launcher.signing.replay import ReplayCache


DAY = 24 * 60 * 60


def test_one_run(cache):
    """
    A nonce belongs to the run that came first, which may present it again.
    """
    answers = [
        cache.claim("nonce", run, expires=100, now=1)
        for run in ("one", "one", "two", "one")
    ]

    assert [True, True, False, True] == answers


def test_survives(tmp_path):
    """
    Who comes after a restart meets what was recorded before.
    """
    path = tmp_path / "replay.db"
    ReplayCache(path).claim("nonce", "one", expires=100, now=1)

    assert not ReplayCache(path).claim("nonce", "two", expires=100, now=1)


def test_private(tmp_path):
    """
    The file and the directory made for it are nobody else's.
    """
    path = tmp_path / "state" / "replay.db"
    ReplayCache(path).claim("nonce", "one", expires=100, now=1)

    assert (0o600, 0o700) == (
        path.stat().st_mode & 0o777,
        path.parent.stat().st_mode & 0o777,
    )


def test_pruned_when_expired(tmp_path):
    """
    What has expired makes room, a day later, in case the clock is set back.
    """
    cache = ReplayCache(tmp_path / "replay.db", most=1)
    cache.claim("first", "one", expires=100, now=1)

    with pytest.raises(ReplayCacheUnusable, match="full"):
        cache.claim("second", "two", expires=200, now=101)
    assert cache.claim("second", "two", expires=DAY * 2, now=100 + DAY)


def test_bounded(tmp_path):
    """
    A full cache forgets nothing: it takes no more.
    """
    cache = ReplayCache(tmp_path / "replay.db", most=2)
    for nonce in ("first", "second"):
        cache.claim(nonce, "one", expires=100, now=1)

    with pytest.raises(ReplayCacheUnusable, match="full"):
        cache.claim("third", "one", expires=100, now=1)
    assert not cache.claim("first", "two", expires=100, now=1)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda path: path.write_bytes(
            b"not a database, but long enough to be looked at" * 100
        ),
        lambda path: path.chmod(0o644),
        lambda path: path.chmod(0o666),
        lambda path: os.chown(path, 1234, 1234),
        lambda path: path.parent.chmod(0o777),
        lambda path: path.symlink_to(path.rename(path.with_suffix(".moved"))),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
    ],
    ids=[
        "garbage",
        "readable",
        "writable",
        "owner",
        "folder",
        "link",
        "directory",
        "pipe",
    ],
)
def test_not_trusted(tmp_path, tamper):
    """
    A cache that others may have changed, or that is none, proves nothing.
    """
    path = tmp_path / "replay.db"
    cache = ReplayCache(path)
    cache.claim("nonce", "one", expires=100, now=1)
    tamper(path)

    with pytest.raises(ReplayCacheUnusable):
        cache.claim("another", "two", expires=100, now=1)


def test_nowhere_to_write(tmp_path):
    """
    Without a place to remember, nobody can tell.
    """
    (tmp_path / "file").touch()

    with pytest.raises(ReplayCacheUnusable, match="cannot be used"):
        ReplayCache(tmp_path / "file" / "replay.db").claim(
            "n", "one", expires=100, now=1
        )


def test_threads(cache):
    """
    Of many runs that present a nonce at the same time, one gets it.
    """
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda number: cache.claim(
                    "nonce", f"run-{number}", expires=100, now=1
                ),
                range(16),
            )
        )

    assert 1 == sum(answers)


def test_processes(tmp_path):
    """
    Verifiers are processes of their own, and agree all the same.
    """
    script = (
        "import sys; from pathlib import Path;"
        "from launcher.signing.replay import ReplayCache;"
        "cache = ReplayCache(Path(sys.argv[1]));"
        "print(cache.claim('nonce', sys.argv[2], expires=100, now=1))"
    )
    path = tmp_path / "replay.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), f"run-{number}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    answers = [process.communicate()[0].strip() for process in processes]

    assert ["False"] * 5 + ["True"] == sorted(answers)
