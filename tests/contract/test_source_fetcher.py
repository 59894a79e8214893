"""What every source of code promises; the fake one first, then git."""

import http.server
import os
import subprocess
import tarfile
import threading

from given import a_job, a_run, eventually

import msgspec
import pytest

from launcher.adapters.sources.git import GitSource
from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.source_rules import SourcePattern, SourceRules
from launcher.tarstream import ChunkReader
from launcher.testing.sources import MemorySource
from launcher.wire.jobs import Source


TREE = {
    "main.tf": b"# nothing\n",
    "modules/deep/a b.tf": b"x\0y\n",
    "tool": b"#!/bin/sh\necho tool\n",
    "empty": b"",
    "größe": b"1\n",
}


LOOPBACK = SourceRules(trusted=(SourcePattern.parse("127.0.0.1"),))


def job_for(commit, url="file:///srv/repository", branch="main"):
    run = a_run()
    return a_job(
        run=msgspec.structs.replace(
            run, commit=msgspec.structs.replace(run.commit, hash=commit, branch=branch)
        ),
        source=Source(url=url),
    )


def unpacked(chunks):
    """Regular files with content and whether they may be executed."""
    with tarfile.open(fileobj=ChunkReader(chunks), mode="r|", encoding="utf-8") as tar:
        return {
            entry.name: (tar.extractfile(entry).read(), bool(entry.mode & 0o100))
            for entry in tar
            if entry.isreg()
        }


class Repository:
    """A git repository."""

    def __init__(self, path):
        self.path = path
        self.url = f"file://{path}"
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments, **environment):
        done = subprocess.run(
            ["git", "-c", "user.name=Ada", "-c", "user.email=a@b", *arguments],
            cwd=self.path,
            env={**os.environ, **environment},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, tree):
        for path, content in tree.items():
            file = self.path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o755 if content.startswith(b"#!") else 0o644)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message", "A change")
        return self.git("rev-parse", "HEAD")


@pytest.fixture(name="scratch")
def _scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture(name="repository")
def _repository(tmp_path):
    return Repository(tmp_path / "repository")


@pytest.fixture(name="git")
def _git(scratch):
    return GitSource(
        scratch, protocols=("https", "file"), environment=inherited(), rules=LOOPBACK
    )


def inherited():
    return {"PATH": os.environ["PATH"]}


class Fake:
    url = "file:///srv/repository"

    def __init__(self):
        self.port = MemorySource()

    def commit(self, tree):
        before = list(self.port.commits.values())
        commit = f"{len(before) + 1:040x}"
        self.port.commits[commit] = {**(before[-1] if before else {}), **tree}
        return commit


@pytest.fixture(name="source", params=["memory", "git"])
def _source(request):
    """A fetcher with a repository, and a way to commit to it."""
    if request.param == "memory":
        return Fake()
    repository = request.getfixturevalue("repository")
    repository.port = request.getfixturevalue("git")
    return repository


def fetched(source, commit, **job):
    with source.port.fetch(job_for(commit, source.url, **job), CancelToken()) as tree:
        return unpacked(tree)


def test_tree_of_the_commit(source):
    """The whole tree of a commit comes, byte for byte, and tools stay executable."""
    commit = source.commit(TREE)

    expected = {
        path: (content, content.startswith(b"#!")) for path, content in TREE.items()
    }
    assert expected == fetched(source, commit)


def test_any_commit(source):
    """Not only the newest commit can be fetched."""
    first = source.commit({"version": b"1"})
    source.commit({"version": b"2"})

    assert {"version": (b"1", False)} == fetched(source, first)


def test_missing_commit(source):
    """A commit that is not there is unavailable, by a sentence that names it."""
    source.commit(TREE)

    with pytest.raises(SourceUnavailable) as caught:
        fetched(source, "f" * 40)

    assert "ffffffffffff" in str(caught.value)
    assert "acme/testing-spacelift" in str(caught.value)


def test_cancelled_before(source):
    """With a token that has fired nothing is fetched."""
    commit, cancel = source.commit(TREE), CancelToken()
    cancel.cancel("test")

    with pytest.raises(SourceUnavailable):
        with source.port.fetch(job_for(commit, source.url), cancel) as tree:
            unpacked(tree)


def test_may_be_left_unread(source):
    """Whoever does not need the rest of a tree may leave it."""
    commit = source.commit({"large": bytes(1 << 20), **TREE})

    with source.port.fetch(job_for(commit, source.url), CancelToken()) as tree:
        next(tree)


# --- git


def test_nothing_is_left(git, repository, scratch):
    """A fetch leaves nothing on the launcher's disk, whether it succeeds or not."""
    commit = repository.commit(TREE)
    fetched(bound(git, repository), commit)
    with pytest.raises(SourceUnavailable):
        fetched(bound(git, repository), "f" * 40)

    assert [] == list(scratch.iterdir())


def bound(git, repository):
    repository.port = git
    return repository


def test_attributes_leave_nothing_out(git, repository):
    """The tree is the commit's, whatever the repository wants `git archive` to do."""
    commit = repository.commit(
        {
            ".gitattributes": b"secret export-ignore\ndocs/** export-ignore\n*.txt export-subst\n",
            "secret": b"s",
            "docs/a": b"a",
            "version.txt": b"$Format:%H$\n",
            "deep/.gitattributes": b"* export-ignore\n",
            "deep/b": b"b",
        }
    )

    tree = fetched(bound(git, repository), commit)

    assert {"secret", "docs/a", "deep/b", ".gitattributes"} < tree.keys()
    assert b"$Format:%H$\n" == tree["version.txt"][0]


def test_nothing_of_the_repository_acts(git, repository, tmp_path):
    """Hooks, filters and the repository's configuration do not run on the launcher."""
    canary = tmp_path / "canary"
    act = f"#!/bin/sh\ntouch {canary}\n".encode()
    repository.git("config", "filter.x.smudge", f"touch {canary}")
    repository.git("config", "core.fsmonitor", f"touch {canary}")
    commit = repository.commit(
        {".gitattributes": b"* filter=x\n", "a": b"a", ".git-hooks/post-checkout": act}
    )
    canary.unlink(missing_ok=True)

    fetched(bound(git, repository), commit)

    assert not canary.exists()


def test_links_travel_as_links(git, repository):
    """A link of the repository is not followed on the launcher."""
    repository.commit(TREE)
    (repository.path / "link").symlink_to("/etc/passwd")
    commit = repository.commit({})

    with git.fetch(job_for(commit, repository.url), CancelToken()) as tree:
        with tarfile.open(fileobj=ChunkReader(tree), mode="r|") as tar:
            links = {entry.name: entry.linkname for entry in tar if entry.issym()}

    assert {"link": "/etc/passwd"} == links


def test_environment_of_the_daemon_stays_outside(
    scratch, repository, monkeypatch, tmp_path
):
    """The configuration of whoever started the daemon does not reach git."""
    commit = repository.commit(TREE)
    config = tmp_path / "gitconfig"
    config.write_text(f'[url "file:///nonexistent"]\n\tinsteadOf = {repository.url}\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    git = GitSource(
        scratch, protocols=("file",), environment=inherited(), rules=LOOPBACK
    )

    assert fetched(bound(git, repository), commit)


@pytest.mark.parametrize(
    "commit", ["main", "HEAD", "", "--upload-pack=x", "F" * 40, "f" * 39]
)
def test_only_hashes(git, repository, commit):
    """What is not the full hash of a commit is refused before git sees it."""
    repository.commit(TREE)

    with pytest.raises(SourceUnavailable):
        fetched(bound(git, repository), commit)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "-x",
        "--upload-pack=touch /tmp/canary",
        "/srv/repository",
        "repository",
        "ext::sh -c true",
        "fd::7",
        "http://git.example/x",
        "git://git.example/x",
        "ssh://git.example/x",
        "git@git.example:x",
        "http://[::1",
        "https//x",
    ],
)
def test_other_protocols(git, url):
    """Protocols that the operator does not allow, and what is no URL, are refused."""
    with pytest.raises(SourceUnavailable) as caught:
        with git.fetch(job_for("f" * 40, url), CancelToken()):
            pass

    assert "not fetched" in str(caught.value) or "names no repository" in str(
        caught.value
    )


def test_branch_of_an_old_server(scratch, repository):
    """A server that hands out branches only is asked for the branch."""
    first = repository.commit({"version": b"1"})
    repository.commit({"version": b"2"})
    old = {
        **inherited(),
        "GIT_PROTOCOL": "",
        "GIT_CONFIG_PARAMETERS": "'protocol.version=0'",
    }
    git = GitSource(scratch, protocols=("file",), environment=old)

    assert {"version": (b"1", False)} == fetched(bound(git, repository), first)


def test_branch_that_does_not_have_it(scratch, repository):
    """A commit that is not on the branch is found on another, also on an old server."""
    repository.commit({"version": b"1"})
    repository.git("checkout", "--quiet", "-b", "other")
    elsewhere = repository.commit({"version": b"2"})
    repository.commit({"version": b"3"})
    old = {**inherited(), "GIT_CONFIG_PARAMETERS": "'protocol.version=0'"}
    git = GitSource(scratch, protocols=("file",), environment=old)

    tree = fetched(bound(git, repository), elsewhere, branch="main")

    assert {"version": (b"2", False)} == tree


class Hanging(http.server.BaseHTTPRequestHandler):
    """A server that takes requests and answers nothing."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.over.wait(30)

    def log_message(self, *_):
        pass


@pytest.fixture(name="hanging")
def _hanging():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        server.asked, server.over = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def address(server):
    return f"http://user:hunter2@127.0.0.1:{server.server_port}/x.git"


def test_cancel_ends_a_fetch(scratch, hanging):
    """A fetch that hangs ends with the job it is for."""
    git = GitSource(
        scratch, protocols=("http",), environment=inherited(), rules=LOOPBACK
    )
    cancel = CancelToken()

    def end():
        eventually(lambda: hanging.asked)
        cancel.cancel("test")

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(SourceUnavailable):
        with git.fetch(job_for("f" * 40, address(hanging)), cancel):
            pass
    ending.join()

    assert [] == list(scratch.iterdir())


def test_fetch_that_takes_too_long(scratch, hanging):
    """A fetch that hangs is given up after a while, and names no address or secret."""
    git = GitSource(
        scratch,
        protocols=("http",),
        environment=inherited(),
        timeout_seconds=0.3,
        rules=LOOPBACK,
    )

    with pytest.raises(SourceUnavailable) as caught:
        with git.fetch(job_for("f" * 40, address(hanging)), CancelToken()):
            pass

    assert "hunter2" not in str(caught.value) + caught.value.details
    assert "127.0.0.1" not in str(caught.value)


def test_password_in_the_address(scratch):
    """A password in a repository's address is in no message, not even the operator's."""
    git = GitSource(
        scratch, protocols=("http",), environment=inherited(), rules=LOOPBACK
    )

    with pytest.raises(SourceUnavailable) as caught:
        with git.fetch(
            job_for("f" * 40, "http://user:hunter2@127.0.0.1:1/x"), CancelToken()
        ):
            pass

    assert "hunter2" not in str(caught.value) + caught.value.details


def test_damaged_repository(git, repository):
    """A repository that is damaged is unavailable, and not half a tree."""
    commit = repository.commit({f"f{i}": os.urandom(100) for i in range(20)})
    blob = repository.git("rev-parse", f"{commit}:f7")
    loose = repository.path / ".git/objects" / blob[:2] / blob[2:]
    loose.chmod(0o644)
    loose.write_bytes(b"damaged")

    with pytest.raises(SourceUnavailable):
        fetched(bound(git, repository), commit)
