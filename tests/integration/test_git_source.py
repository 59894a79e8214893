"""The tree of a commit, from real repositories by the real git."""

import io
import os
import tarfile
import threading

from pathlib import Path

import msgspec
import pytest

from given import a_job, a_run, eventually
from launcher.adapters.sources.git import GitSource
from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable, WorkspaceUnusable
from launcher.source_rules import SourcePattern, SourceRules
from launcher.tarstream import Archive
from launcher.wire.jobs import Source
from support.git_servers import GitOverHttp, Silent
from support.repositories import Repository


LOOPBACK = SourceRules(trusted=(SourcePattern.parse("127.0.0.1"),))


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repository")


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert [] == list(folder.iterdir())


def source(scratch, *protocols, **more):
    environment = {"PATH": os.environ["PATH"]} | more.pop("environment", {})
    return GitSource(
        scratch,
        protocols=protocols or ("file",),
        environment=environment,
        **{"rules": LOOPBACK} | more,
    )


def job(url, commit, branch="main"):
    run = a_run(
        commit=msgspec.structs.replace(a_run().commit, hash=commit, branch=branch)
    )
    return a_job(run=run, source=Source(url=url))


def fetched(git, wanted, cancel=None):
    with git.fetch(wanted, cancel or CancelToken()) as stream:
        return b"".join(stream)


def tree(stream):
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        return {
            member.name: tar.extractfile(member).read() if member.isreg() else member
            for member in tar
        }


def test_the_tree_of_the_commit_is_fetched(scratch, repository):
    """Every file is there as it was committed, whatever the branch is by now."""
    tool = repository.write("bin/tool", "#!/bin/sh\n")
    tool.chmod(0o755)
    (repository.path / "link").symlink_to("bin/tool")
    noise = os.urandom(3_000_000)
    commit = repository.commit(main__tf="v1\r\n", empty="", noise=noise)
    repository.commit(main__tf="v2")
    stream = fetched(source(scratch), job(repository.url, commit))
    found = tree(stream)
    assert b"v1\r\n" == found["main.tf"]
    assert b"" == found["empty"]
    assert noise == found["noise"]
    assert "bin/tool" == found["link"].linkname
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        assert tar.getmember("bin/tool").mode & 0o111
    assert not any(name.startswith(".git") for name in found)


def test_it_fits_into_a_workspace(scratch, repository):
    """What git writes is an archive that the workspace takes."""
    commit = repository.commit(**{"ü/a b": "x", "n" * 120: "long"})
    archive = Archive()
    with source(scratch).fetch(job(repository.url, commit), CancelToken()) as stream:
        archive.tree(stream, below="mnt/workspace/source")
        found = tree(b"".join(archive))
    assert b"x" == found["mnt/workspace/source/ü/a b"]
    assert b"long" == found[f"mnt/workspace/source/{'n' * 120}"]


def test_a_commit_without_files_is_an_empty_tree(scratch, repository):
    """A commit in which there is nothing is fetched like any other."""
    archive = Archive()
    wanted = job(repository.url, repository.commit())
    archive.tree([fetched(source(scratch), wanted)], below="mnt/source")
    assert ["mnt", "mnt/source"] == list(tree(b"".join(archive)))


def test_a_commit_of_another_branch_is_found_by_its_hash(scratch, repository):
    """A commit that is on no branch any more is fetched as long as the server has it."""
    commit = repository.commit(a="1")
    repository.git("commit", "--quiet", "--amend", "-m", "other")
    stream = fetched(source(scratch), job(repository.url, commit, "no-such-branch"))
    assert b"1" == tree(stream)["a"]


def test_repositories_with_long_hashes_are_fetched(scratch, tmp_path):
    """A repository of SHA-256 objects is fetched like one of SHA-1."""
    repository = Repository(tmp_path / "long", kind="sha256")
    commit = repository.commit(a="1")
    assert 64 == len(commit)
    assert b"1" == tree(fetched(source(scratch), job(repository.url, commit)))["a"]


def test_a_repository_of_another_user_is_fetched(scratch, repository):
    """A local repository may belong to somebody else."""
    commit = repository.commit(a="1")
    stranger = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    git = source(scratch, environment=stranger)
    assert b"1" == tree(fetched(git, job(repository.url, commit)))["a"]


def test_an_old_server_gives_the_branch(scratch, repository, tmp_path):
    """A server that hands out no single commits is asked for the branch."""
    commit = repository.commit(a="1")
    repository.commit(a="2")
    with GitOverHttp(tmp_path, protocol_2=False).serving() as server:
        url = f"http://{server.host}/repository/.git"
        git = source(scratch, "http")
        assert b"1" == tree(fetched(git, job(url, commit)))["a"]
        # Where the branch does not have it, or is gone, everything is looked through.
        assert b"1" == tree(fetched(git, job(url, commit, branch="other")))["a"]


# --- credentials


@pytest.mark.parametrize(
    ("written", "login"),
    [
        ("ada:hunter2", "ada:hunter2"),
        ("ada:h%40nter%2F2%3A%25", "ada:h@nter/2:%"),
        ("hunter2", "hunter2:"),
        ("ada:it's-$(id)-hunter2", "ada:it's-$(id)-hunter2"),
    ],
)
def test_a_password_is_told_to_the_server_only(
    scratch, repository, tmp_path, written, login
):
    """Credentials in a URL reach the server, and are no argument of any process."""
    commit = repository.commit(a="1")
    with GitOverHttp(tmp_path, login=login).serving() as server:
        url = f"http://{written}@{server.host}/repository/.git"
        assert b"1" == tree(fetched(source(scratch, "http"), job(url, commit)))["a"]
    user, _, password = login.partition(":")
    assert any("remote-http" in line for line in server.arguments)
    for form in (password or user, written):
        assert not [line for line in server.arguments if form in line]


@pytest.mark.parametrize("path", ["repository/.git", "no-such-repository"])
def test_a_wrong_password_is_not_quoted(scratch, repository, tmp_path, path):
    """Neither the owner of the run nor the operator's log sees the password."""
    commit = repository.commit(a="1")
    with GitOverHttp(tmp_path, login="ada:right").serving() as server:
        url = f"http://ada:hunter2@{server.host}/{path}"
        with pytest.raises(SourceUnavailable) as caught:
            fetched(source(scratch, "http"), job(url, commit))
    assert "hunter2" not in str(caught.value) + caught.value.details
    assert "Authentication failed" in caught.value.details


def test_nobody_is_asked_for_a_password(scratch, repository, tmp_path):
    """A repository that wants a login we do not have fails instead of waiting."""
    commit = repository.commit(a="1")
    with GitOverHttp(tmp_path, login="ada:right").serving() as server:
        url = f"http://{server.host}/repository/.git"
        with pytest.raises(SourceUnavailable):
            fetched(source(scratch, "http"), job(url, commit))


# --- what is refused


@pytest.mark.parametrize(
    "commit",
    [
        "",
        "main",
        "HEAD",
        "7d629c6",
        "-x",
        "--upload-pack=touch x",
        "A" * 40,
        "a" * 41,
        "a" * 40 + "\n",
    ],
)
def test_only_a_full_hash_is_a_commit(scratch, repository, commit):
    """Whatever is not the whole hash of a commit is never given to git."""
    with pytest.raises(SourceUnavailable, match="not the hash"):
        fetched(source(scratch), job(repository.url, commit))


@pytest.mark.parametrize(
    ("gone", "branch", "sentence"),
    [
        (
            "",
            "main",
            "commit abababababab of branch 'main' cannot be fetched from"
            " acme/testing-spacelift",
        ),
        (
            "",
            "feature",
            "commit abababababab cannot be fetched from acme/testing-spacelift, which"
            " has no branch 'feature'; was it deleted?",
        ),
        (
            "-gone",
            "main",
            "acme/testing-spacelift cannot be fetched: there is no such repository, or"
            " the credentials do not show it",
        ),
    ],
)
def test_what_is_not_there_is_unavailable(scratch, repository, gone, branch, sentence):
    """A commit that is not there is named, and git's words go to the operator."""
    repository.commit(a="1")
    with pytest.raises(SourceUnavailable) as caught:
        fetched(source(scratch), job(repository.url + gone, "ab" * 20, branch))
    assert sentence == str(caught.value)
    assert "fatal" in caught.value.details


def test_a_blob_is_no_tree(scratch, repository):
    """The hash of something that has no tree is unavailable."""
    repository.commit(a="1")
    blob = repository.git("rev-parse", "HEAD:a")
    with pytest.raises(SourceUnavailable):
        fetched(source(scratch), job(repository.url, blob))


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% pwned",
        "fd::17",
        "file::/etc",
        "ext://sh",
        "http://127.0.0.1:1/x",
        "git://127.0.0.1/x",
        "ssh://-oProxyCommand=touch%20pwned/x",
        "git@example.com:acme/x.git",
        "/srv/repository",
        "../repository",
        "repository",
        "--upload-pack=touch pwned",
        "-oProxyCommand=x",
        "",
    ],
)
def test_other_ways_to_fetch_are_shut(scratch, repository, tmp_path, monkeypatch, url):
    """A URL that runs a command, or goes by a way the operator has not opened, is refused."""
    monkeypatch.chdir(tmp_path)
    commit = repository.commit(a="1")
    with pytest.raises(SourceUnavailable):
        fetched(source(scratch, "file", "https"), job(url, commit))
    assert not (tmp_path / "pwned").exists()
    assert not (scratch / "pwned").exists()


@pytest.mark.parametrize(
    "url",
    [
        "fi\nle:///srv/x",
        " file:///srv/x",
        "file:///srv/\0x",
        "file:///srv/\udcff\ud800",
        "file://" + "x" * 200_000,
        "http://[::1/x",
    ],
)
def test_odd_urls_are_unavailable_and_nothing_worse(scratch, url):
    """A URL that cannot be one ends in an error of ours."""
    with pytest.raises(SourceUnavailable):
        fetched(source(scratch, "file", "http"), job(url, "ab" * 20))


@pytest.mark.parametrize(
    "branch", ["", "x\0y", "\ud800", "*", "a:refs/heads/b", "-x", "+x"]
)
def test_odd_branches_are_unavailable_and_nothing_worse(scratch, repository, branch):
    """A branch's name that cannot be one ends in an error of ours."""
    with pytest.raises(SourceUnavailable):
        fetched(source(scratch), job(repository.url, "ab" * 20, branch))


def test_a_machine_without_git_says_so(scratch, repository):
    """Without git on the path, the operator reads why."""
    with pytest.raises(SourceUnavailable) as caught:
        fetched(
            source(scratch, environment={"PATH": "/nowhere"}),
            job(repository.url, repository.commit()),
        )
    assert "git cannot be started" in caught.value.details


def test_no_room_is_said_so(tmp_path, repository):
    """Without a place for the repository, the source is unavailable."""
    with pytest.raises(SourceUnavailable, match="no room"):
        fetched(source(tmp_path / "gone"), job(repository.url, repository.commit()))


def test_errors_of_the_reader_stay_what_they_are(scratch, repository):
    """What goes wrong with whoever reads the tree is not blamed on the source."""
    git, wanted = source(scratch), job(repository.url, repository.commit(a="1"))
    with pytest.raises(FileNotFoundError), git.fetch(wanted, CancelToken()):
        raise FileNotFoundError("of somebody else")


# --- hostile repositories


def test_nothing_of_a_repository_is_executed(scratch, repository, tmp_path):
    """Filters, hooks and attributes of a repository do nothing on this machine."""
    trap = f"touch {tmp_path}/pwned"
    for hook in ("post-checkout", "pre-commit", "post-merge", "reference-transaction"):
        repository.write(f"hooks/{hook}", f"#!/bin/sh\n{trap}\n").chmod(0o755)
        repository.write(f".git/hooks/{hook}", f"#!/bin/sh\n{trap}\n").chmod(0o755)
    commit = repository.commit(
        __gitattributes="* filter=evil diff=evil\n",
        __gitmodules='[submodule "x"]\n\tpath = x\n\turl = ext::sh -c touch% pwned\n',
        __gitconfig=f'[filter "evil"]\n\tsmudge = {trap}\n[core]\n\tfsmonitor = {trap}\n',
    )
    repository.git("config", "filter.evil.smudge", trap)
    repository.git("config", "core.fsmonitor", trap)
    (tmp_path / "pwned").unlink(missing_ok=True)
    stream = fetched(source(scratch), job(repository.url, commit))
    assert b"* filter=evil diff=evil\n" == tree(stream)[".gitattributes"]
    assert not (tmp_path / "pwned").exists()


def test_the_hosts_own_configuration_is_not_read(scratch, repository, tmp_path):
    """What somebody configured for git on this machine does not redirect a fetch."""
    home = tmp_path / "home"
    home.mkdir()
    text = '[url "file:///nowhere"]\n\tinsteadOf = file:///\n'
    (home / ".gitconfig").write_text(text)
    git = source(
        scratch,
        environment={"HOME": str(home), "GIT_CONFIG_GLOBAL": str(home / ".gitconfig")},
    )
    wanted = job(repository.url, repository.commit(a="1"))
    assert b"1" == tree(fetched(git, wanted))["a"]


def test_paths_that_climb_do_not_reach_the_workspace(scratch, repository):
    """A tree made by hand, with a path that leaves it, is refused."""
    blob = repository.git("hash-object", "-w", "--stdin", stdin=b"pwned")
    entry = b"100644 x\0" + bytes.fromhex(blob)
    options = ("hash-object", "-w", "-t", "tree", "--literally", "--stdin")
    inner = repository.git(*options, stdin=entry)
    outer = repository.git(*options, stdin=b"40000 ..\0" + bytes.fromhex(inner))
    commit = repository.git("commit-tree", outer, "-m", "hostile")
    repository.git("update-ref", "refs/heads/main", commit)
    archive = Archive()
    with source(scratch).fetch(job(repository.url, commit), CancelToken()) as stream:
        archive.tree(stream, below="mnt/workspace/source")
        with pytest.raises((WorkspaceUnusable, SourceUnavailable)):
            b"".join(archive)


def test_endless_complaints_do_not_stop_a_fetch(scratch, repository):
    """A repository that makes git complain without end is still read."""
    attributes = "!negative text\n" * 4000
    commit = repository.commit(__gitattributes=attributes, a="1")
    assert b"1" == tree(fetched(source(scratch), job(repository.url, commit)))["a"]


# --- the end


def processes(text):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if text.encode() in line:
            found.append(line)
    return found


def test_a_cancel_ends_a_fetch_with_all_its_processes(scratch):
    """A job that is stopped does not wait for a server that is silent."""
    cancel, failures = CancelToken(), []

    def fetch():
        try:
            fetched(source(scratch, "http"), job(url, "ab" * 20), cancel)
        except SourceUnavailable as exc:
            failures.append(exc)

    with Silent() as server:
        url = f"http://127.0.0.1:{server.port}/x"
        thread = threading.Thread(target=fetch)
        thread.start()
        assert server.asked.wait(10)
        cancel.cancel("stop requested")
        thread.join(10)
        assert not thread.is_alive()
        assert 1 == len(failures)
        eventually(lambda: not processes(f"127.0.0.1:{server.port}"))


def test_a_cancel_ends_the_reading(scratch, repository):
    """A stopped job is not given the rest of a large tree."""
    commit = repository.commit(noise=os.urandom(4_000_000))
    cancel = CancelToken()
    with source(scratch).fetch(job(repository.url, commit), cancel) as stream:
        assert next(stream)
        cancel.cancel("stop requested")
        with pytest.raises(SourceUnavailable):
            for _ in stream:
                pass


def test_patience_has_an_end(scratch):
    """A server that never answers is given up."""
    with Silent() as server:
        url = f"http://127.0.0.1:{server.port}/x"
        with pytest.raises(SourceUnavailable) as caught:
            fetched(source(scratch, "http", timeout_seconds=0.2), job(url, "ab" * 20))
        assert "no end after 0.2 s" in caught.value.details
        eventually(lambda: not processes(f"127.0.0.1:{server.port}"))


def test_a_reader_may_stop_early(scratch, repository):
    """Whoever does not want the rest leaves no process and no file behind."""
    commit = repository.commit(noise=os.urandom(2_000_000))
    with source(scratch).fetch(job(repository.url, commit), CancelToken()) as stream:
        assert next(stream)
    assert not processes(str(scratch))
