"""Commits, looked up in real repositories."""

import os
import shutil
import time

import pytest

from controlplane.site import Repository
from launcher.controlplane.clock import seconds
from launcher.controlplane.commits import Commits, _Memory
from launcher.controlplane.errors import (
    CommitUnavailable,
    DiskFull,
    RuntimeConfigInvalid,
)
from launcher.controlplane.git import Git, GitFailed
from launcher.wire.jobs import Source
from support.git_servers import GitOverHttp


REPOSITORY = "acme/testing-spacelift"


@pytest.fixture
def repository(tmp_path):
    """A repository with two branches."""
    made = Repository(tmp_path / "origin")
    made.commit("First\n\nWith a body.")
    return made


@pytest.fixture
def git(tmp_path):
    """git as the control plane runs it."""
    folder = tmp_path / "repositories"
    folder.mkdir()
    made = Git(folder, os.environ)
    made.trust([])
    return made


@pytest.fixture
def commits(tmp_path, git):
    """The lookup, with an empty cache."""
    return Commits(tmp_path / "repositories", git)


def tip(commits, repository, branch="main"):
    return commits.of_branch(
        source=Source(url=repository.url), repository=REPOSITORY, branch=branch
    )


def named(commits, repository, sha):
    return commits.of_hash(
        source=Source(url=repository.url),
        repository=REPOSITORY,
        branch="main",
        sha=sha,
    )


def test_a_branch_is_its_newest_commit(commits, repository):
    """Hash, author, message and time are those of the branch's tip, each time."""
    first = repository.git("rev-parse", "HEAD")
    found = tip(commits, repository)
    assert (found.hash, found.branch, found.author) == (first, "main", "Ann Author")
    assert found.message == "First\n\nWith a body."
    assert found.created_at == int(repository.git("log", "-1", "--format=%ct")) * 10**9
    second = repository.commit("Second")
    assert tip(commits, repository).hash == second
    repository.git("commit", "--amend", "--quiet", "--message", "Rewritten")
    assert tip(commits, repository).message == "Rewritten"


def test_a_hash_may_be_shortened(commits, repository):
    """Any commit that a branch or tag reaches can be named, in any length git takes."""
    first = repository.git("rev-parse", "HEAD")
    repository.commit("Second")
    for sha in (first, first[:7], first[:12].upper()):
        assert named(commits, repository, sha).hash == first


def test_unknown_things_have_one_public_sentence(commits, repository, tmp_path):
    """The run's owner learns what is missing, and nothing about the machine."""
    repository.git("branch", "abcdef1")
    with pytest.raises(CommitUnavailable) as raised:
        tip(commits, repository, "nope")
    assert str(raised.value) == f'branch "nope" was not found in {REPOSITORY}'
    for sha in ("abcdef1", "0" * 40, "HEAD", "main", "--all", "a" * 100):
        with pytest.raises(CommitUnavailable) as raised:
            named(commits, repository, sha)
        assert str(raised.value) == f'commit "{sha[:64]}" was not found in {REPOSITORY}'
    shutil.rmtree(repository.path)
    with pytest.raises(CommitUnavailable) as raised:
        tip(commits, repository)
    assert str(raised.value) == f"repository {REPOSITORY} cannot be read"
    assert str(tmp_path) not in str(raised.value)
    assert str(tmp_path) in raised.value.details


def test_a_damaged_mirror_is_made_again(commits, repository, tmp_path):
    """The cache heals itself."""
    tip(commits, repository)
    (mirror,) = (tmp_path / "repositories").glob("*.git")
    shutil.rmtree(mirror / "objects")
    second = repository.commit("Second")
    assert tip(commits, repository).hash == second


def test_odd_messages_are_just_text(commits, repository):
    """Neither bytes that are no UTF-8 nor any length disturbs the lookup."""
    (repository.path / "message").write_bytes(b"odd \xff " + b"x" * 100_000)
    repository.git("commit", "--allow-empty", "--quiet", "--file", "message")
    found = tip(commits, repository)
    assert found.message.startswith("odd ")
    assert len(found.message) <= 16 * 1024


@pytest.mark.parametrize("date", ["@99999999999 +0000", "@0 +0000"])
def test_odd_times_are_bounded(commits, repository, monkeypatch, date):
    """Whoever commits chooses the time; no number may break what stores or shows it."""
    for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"):
        monkeypatch.setenv(name, date)
    repository.commit("Odd")
    at = tip(commits, repository).created_at
    assert 0 <= at < 1 << 63
    assert 0 <= seconds(at) < 1 << 31


def test_git_listens_to_nobody_else(git, tmp_path, monkeypatch):
    """Neither the user's configuration nor a transport that runs commands counts."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        '[url "file:///elsewhere"]\n\tinsteadOf = file:///\n'
    )
    quiet = Git(tmp_path / "repositories", {**os.environ, "HOME": str(home)})
    assert b"elsewhere" not in quiet("config", "--list", timeout=10)
    for url in (f"ext::sh -c 'touch {tmp_path}/pwned'", "http://127.0.0.1:1/x"):
        with pytest.raises(GitFailed, match="not allowed"):
            git("ls-remote", url, timeout=10)
    assert not (tmp_path / "pwned").exists()


def test_git_has_a_deadline(git):
    """A command that hangs is killed together with its children."""
    with pytest.raises(GitFailed, match="no answer"):
        git("-c", "alias.hang=!sleep 60", "hang", timeout=0.2)


@pytest.mark.parametrize("word", ["No space left on device", "Disk quota exceeded"])
def test_the_full_disk_of_another_is_not_ours(git, repository, tmp_path, word):
    """What a remote says about its own disk is a repository that cannot be read."""
    line = f"ERR {word}"
    remote = tmp_path / "remote"
    remote.write_text(f"#!/bin/sh\nprintf '%s' '{len(line) + 4:04x}{line}'\n")
    remote.chmod(0o755)
    with pytest.raises(GitFailed, match=f"remote error: {word}"):
        git("ls-remote", f"--upload-pack={remote}", repository.url, timeout=30)


def test_our_full_disk_is_ours(git):
    """What git itself says of the disk is about this machine."""
    say = "alias.full=!echo 'fatal: write error: No space left on device' >&2; exit 1"
    with pytest.raises(DiskFull):
        git("-c", say, "full", timeout=30)


# --- private repositories


def test_a_private_repository(repository, commits, git, tmp_path):
    """[capability 101] The server looks commits up with the login of the stack's source."""
    commit = repository.commit()
    with GitOverHttp(repository.path.parent, login="ada:hunter2").serving() as server:
        git.use_pools({"inner": server.url("")})
        url = f"private://inner/{repository.path.name}/.git"
        known = Source(url=url, username="ada", password="hunter2")

        found = commits.of_branch(source=known, repository=REPOSITORY, branch="main")
        with pytest.raises(CommitUnavailable):
            commits.of_branch(
                source=Source(url=url), repository=REPOSITORY, branch="main"
            )

    assert commit == found.hash
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"hunter2" in path.read_bytes()]


def test_an_agent_pool_that_nobody_mapped(commits):
    """[capability 102] A URL of an unknown VCS agent pool cannot be read."""
    with pytest.raises(CommitUnavailable):
        commits.of_branch(
            source=Source(url="private://inner/x"),
            repository=REPOSITORY,
            branch="main",
        )


def test_many_triggers_ask_once(repository, commits, git, monkeypatch):
    """What was asked for after a trigger answers it, too; a later push is seen."""
    asked = []
    listing = Commits._tip
    monkeypatch.setattr(
        Commits, "_tip", lambda self, *args: asked.append(1) or listing(self, *args)
    )

    def found(since, **login):
        source = Source(url=repository.url, **login)
        return commits.of_branch(
            source=source, repository=REPOSITORY, branch="main", since=since
        ).hash

    triggered = time.monotonic()
    old = repository.git("rev-parse", "HEAD")
    assert [found(triggered) for _ in range(3)] == [old] * 3
    assert len(asked) == 1
    new = repository.commit("Second")
    assert found(triggered) == old, "it was triggered before the push"
    assert found(time.monotonic()) == new
    assert len(asked) == 2
    assert found(triggered, username="ada") == new, "another login asks for itself"
    assert len(asked) == 3
    assert tip(commits, repository).hash == new
    assert len(asked) == 4


def test_a_file_is_read_once(repository, commits, monkeypatch):
    """A file of a commit never changes; that there is none does not either."""
    (repository.path / "config.yml").write_text("version: 1\n")
    sha = repository.commit()
    about = {"source": Source(url=repository.url), "repository": REPOSITORY}
    tip(commits, repository)
    read = lambda path, largest=100: commits.file(  # noqa: E731
        **about, sha=sha, path=path, largest=largest
    )
    assert read("config.yml") == b"version: 1\n"
    assert read("none.yml") is None
    with pytest.raises(RuntimeConfigInvalid):
        read("config.yml", largest=5)
    monkeypatch.setattr(Commits, "_file", lambda *_: pytest.fail("it was read again"))
    assert read("config.yml") == b"version: 1\n"
    assert read("none.yml") is None


def test_a_file_that_is_forgotten_at_once(repository, commits, monkeypatch):
    """A file is there for who asked, however many others are read meanwhile."""
    (repository.path / "config.yml").write_text("version: 1\n")
    sha = repository.commit()
    source = Source(url=repository.url)
    tip(commits, repository)
    monkeypatch.setattr(commits, "_files", _Memory(0))
    about = {"repository": REPOSITORY, "sha": sha, "path": "config.yml"}
    assert commits.file(source=source, **about, largest=100) == b"version: 1\n"
