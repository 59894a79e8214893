"""Mirrors of repositories: what they save, whom they serve, and what they survive."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from launcher.adapters.sources.git import GitSource
from launcher.adapters.sources.mirrors import Mirrors
from launcher.adapters.sources.processes import size_of
from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.source_rules import SourcePattern, SourceRules
from support.git_servers import GitOverHttp
from support.repositories import Repository
from support.fetching import fetched, job, refused


LOOPBACK = SourceRules(patterns=(SourcePattern.parse("127.0.0.1"),))
ROOMY = 1 << 40


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repository")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mirrors"


@pytest.fixture
def make(tmp_path, folder):
    """Makes what a launcher has, with mirrors that it shares with the others."""
    made = []

    def make(*, limit=ROOMY, protocols=("file",), rules=None, size=2 << 30, **more):
        scratch = tmp_path / f"scratch-{len(made)}"
        scratch.mkdir()
        made.append(scratch)
        return GitSource(
            scratch,
            protocols=protocols,
            environment={"PATH": os.environ["PATH"]},
            rules=rules,
            mirrors=Mirrors(folder, limit),
            limit=size,
            **more,
        )

    return make


def mirrors(folder):
    return sorted(folder.glob("*.git"))


def test_what_is_there_is_not_sent_again(make, repository, tmp_path):
    """The second fetch asks the server only whether it may, a third one for what is new."""
    first = repository.commit(a="1", noise=os.urandom(300_000))
    git = make(protocols=("http",), rules=LOOPBACK)
    with GitOverHttp(tmp_path).serving() as server:
        url = server.url("repository/.git")
        assert b"1" == fetched(git, job(url, first))["a"]
        before = len(server.told)
        assert b"1" == fetched(git, job(url, first))["a"]
        again = [path for path, _ in server.told[before:]]
        sent = server.sent
        second = repository.commit(a="2")
        assert b"2" == fetched(git, job(url, second))["a"]
    # A list of references is posted for, too; a pack would be larger than that.
    assert again
    assert server.sent - sent < 100_000


def test_a_mirror_is_as_private_as_its_repository(make, repository, tmp_path):
    """Whom the server does not let in gets nothing, although it is all here."""
    commit = repository.commit(a="1")
    git = make(protocols=("http",), rules=LOOPBACK)
    with GitOverHttp(tmp_path, login="ada:right").serving() as server:
        url = server.url("repository/.git")
        good = job(url, commit, username="ada", password="right")
        assert b"1" == fetched(git, good)["a"]
        wrong = job(url, commit, username="ada", password="wrong")
        assert "does not accept the credentials" in str(refused(git, wrong))
        assert "there are none for it" in str(refused(git, job(url, commit)))
    assert "cannot be reached" in str(refused(git, good))


def test_no_secret_is_in_a_mirror(make, repository, tmp_path, folder):
    """What is kept from fetch to fetch has neither a password nor an address with one."""
    commit = repository.commit(a="1")
    git = make(protocols=("http",), rules=LOOPBACK)
    with GitOverHttp(tmp_path, login="ada:hunter2").serving() as server:
        url = server.url("repository/.git").replace("//", "//ada:hunter2@")
        fetched(git, job(url, commit))
    for path in folder.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()


def test_many_workers_share_one(make, repository, folder):
    """Threads of one launcher, and others, fetch different commits at the same time."""
    commits = [repository.commit(a=str(number)) for number in range(4)]
    sources = [make(), make()]
    found, threads = {}, []

    def fetch(number):
        git = sources[number % 2]
        wanted = job(repository.url, commits[number % 4])
        found[number] = fetched(git, wanted)["a"]

    for number in range(8):
        threads.append(threading.Thread(target=fetch, args=(number,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert {number: str(number % 4).encode() for number in range(8)} == found
    assert 1 == len(mirrors(folder))


LAUNCHER = """
import os, sys
from pathlib import Path
from launcher.adapters.sources.mirrors import Mirrors
from launcher.cancel import CancelToken

with Mirrors(Path(sys.argv[1]), 1 << 40).using(sys.argv[2], CancelToken(), 5) as mirror:
    with mirror.writing(CancelToken(), 5):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_another_process_is_waited_for(make, repository, folder):
    """While another launcher writes a mirror, nobody else does; its end ends the lock."""
    commit = repository.commit(a="1")
    git = make(timeout_seconds=0.3)
    other = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, folder, f"40 {repository.url}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert b"held\n" == other.stdout.readline()
    assert "does not come to an end" in str(refused(git, job(repository.url, commit)))
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert b"1" == fetched(make(), job(repository.url, commit))["a"]


def test_a_cancelled_job_does_not_wait(make, repository, folder):
    """A job that is stopped does not wait for somebody else's fetch."""
    commit, cancel = repository.commit(a="1"), CancelToken()
    git = make()
    with git.mirrors.using(f"40 {repository.url}", CancelToken(), 5) as mirror:
        with mirror.writing(CancelToken(), 5):
            threading.Timer(0.1, cancel.cancel, ["stopped"]).start()
            with pytest.raises(SourceUnavailable):
                with git.fetch(job(repository.url, commit), cancel):
                    pass
    assert mirrors(folder) == [] or not (mirrors(folder)[0] / "HEAD").exists()


def test_what_a_killed_git_leaves_is_swept_away(make, repository, folder):
    """Locks and half packs of a git that was killed do not stop the next one."""
    fetched(make(), job(repository.url, repository.commit(a="1")))
    [mirror] = mirrors(folder)
    for name in (
        "shallow.lock",
        "packed-refs.lock",
        "config.lock",
        "HEAD.lock",
        "refs/commits/x.lock",
        "objects/pack/tmp_pack_x",
    ):
        (mirror / name).write_bytes(b"x")
    second = repository.commit(a="2")
    assert b"2" == fetched(make(), job(repository.url, second))["a"]
    assert [] == [*mirror.rglob("*.lock"), *mirror.rglob("tmp_*")]


@pytest.mark.parametrize("harm", ["pack", "objects", "config", "head", "half made"])
def test_a_damaged_mirror_is_made_again(make, repository, folder, harm):
    """A mirror that has gone bad costs one run at most, and then is as good as new."""
    first = repository.commit(a="1", noise=os.urandom(50_000))
    git = make()
    fetched(git, job(repository.url, first))
    [mirror] = mirrors(folder)
    [pack] = mirror.glob("objects/pack/*.pack")
    match harm:
        case "pack":
            pack.chmod(0o600)
            pack.write_bytes(pack.read_bytes()[:200] + bytes(60_000))
        case "objects":
            for path in mirror.glob("objects/pack/*"):
                path.unlink()
        case "config":
            (mirror / "config").write_text("[core")
        case "head":
            (mirror / "HEAD").write_text("nonsense")
        case "half made":
            (mirror / "config").unlink()
            (mirror / "objects/pack").rename(mirror / "gone")
    second = repository.commit(a="2")
    outcomes = []
    for _ in range(2):
        try:
            outcomes.append(fetched(git, job(repository.url, second))["a"])
        except SourceUnavailable:
            outcomes.append(None)
    assert b"2" == outcomes[-1]


def test_those_not_used_go_first(make, tmp_path, folder):
    """All mirrors together stay within their limit; what was used last stays."""
    repositories = [Repository(tmp_path / f"r{number}") for number in range(3)]
    commits = [each.commit(noise=os.urandom(400_000)) for each in repositories]
    git = make(limit=1_000_000)
    for each, commit in zip(repositories, commits, strict=True):
        fetched(git, job(each.url, commit))
        for mirror in mirrors(folder):
            used = mirror / "used"
            os.utime(used, (used.stat().st_mtime - 100,) * 2)
    assert 2 == len(mirrors(folder))
    assert size_of(folder) < 1_000_000


def test_what_is_read_is_not_removed(make, tmp_path, folder):
    """A mirror that a job reads from stays, however little room there is."""
    one, other = Repository(tmp_path / "one"), Repository(tmp_path / "other")
    noise = os.urandom(300_000)
    commit, another = one.commit(noise=noise), other.commit(a="1")
    git = make(limit=1000)
    with git.fetch(job(one.url, commit), CancelToken()) as stream:
        assert b"1" == fetched(git, job(other.url, another))["a"]
        assert noise in b"".join(stream)
    assert [] == mirrors(folder)


def test_a_worn_mirror_is_made_again(make, repository, folder, monkeypatch):
    """Every fetch adds a pack; before there are too many, the mirror is made anew."""
    monkeypatch.setattr("launcher.adapters.sources.mirrors._MOST_PACKS", 2)
    git, counts = make(), []
    for number in range(5):
        commit = repository.commit(a=str(number))
        assert str(number).encode() == fetched(git, job(repository.url, commit))["a"]
        counts.append(len(list(folder.glob("*.git/objects/pack/*.pack"))))
    assert max(counts) == 3
    assert counts[-1] < 3


# --- limits


def test_a_repository_that_is_too_large(make, repository):
    """More than the operator allows is refused while it comes, in a clear sentence."""
    commit = repository.commit(noise=os.urandom(3 << 20))
    git = make(size=1 << 20)
    error = refused(git, job(repository.url, commit))
    assert (
        "acme/testing-spacelift has more than 1 MiB, which is all that this worker takes"
        == str(error)
    )


def test_a_commit_that_grows_when_it_is_unpacked(make, repository):
    """What is small on its way and large in the end is refused before it is unpacked."""
    repository.write("zeros", bytes(8 << 20))
    for number in range(8):
        (repository.path / f"copy{number}").write_bytes(bytes(8 << 20))
    git = make(size=16 << 20)
    error = refused(git, job(repository.url, repository.commit()))
    assert "has more than 16 MiB" in str(error)


def test_a_tree_without_end(make, repository, monkeypatch):
    """A few objects that stand for billions of files are refused while they are counted."""
    monkeypatch.setattr("launcher.adapters.sources.trees.MOST_ENTRIES", 5000)
    blob = repository.git("hash-object", "-w", "--stdin", stdin=b"x")
    entry = f"100644 blob {blob}\tf"
    for _ in range(6):
        lines = entry
        for number in range(10):
            kind = entry.split("\t")[0]
            lines += f"\n{kind}\td{number}"
        tree = repository.git("mktree", stdin=lines.encode())
        entry = f"040000 tree {tree}\tf"
    commit = repository.git("commit-tree", tree, "-m", "bomb")
    repository.git("update-ref", "refs/heads/main", commit)
    assert "more than 5000 files" in str(refused(make(), job(repository.url, commit)))
