"""Repositories behind TLS, passwords and keys, by real servers and the real git."""

import os
import ssl
import subprocess
import threading

import psutil
import pytest

from launcher.adapters.sources.git import GitSource
from launcher.cancel import CancelToken
from launcher.proxies import Proxies
from launcher.secret import Secret
from launcher.source_rules import SourcePattern, SourceRules
from support.connect_proxy import proxying
from support.git_servers import Authority, GitOverHttp, Sshd, pointer
from support.fetching import fetched, job, refused
from support.repositories import Repository


def rules(*patterns):
    return SourceRules(patterns=tuple(map(SourcePattern.parse, patterns)))


LOOPBACK = rules("127.0.0.0/8", "[::1]", "localhost")


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repository")


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert [] == list(folder.iterdir())


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def git_source(scratch, **more):
    return GitSource(
        scratch,
        **{
            "protocols": ("https", "ssh"),
            "environment": {"PATH": os.environ["PATH"]},
            "rules": LOOPBACK,
        }
        | more,
    )


SECRET = "hunter2/ü@:%"
ELSEWHERE = "git.elsewhere.invalid"


class Watching:
    """Everything that other users might see of our processes, while it lasts."""

    def __enter__(self):
        self.seen, self._over = set(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._over.wait(0.01):
            for process in psutil.Process().children(recursive=True):
                try:
                    self.seen.update(process.cmdline())
                    self.seen.update(process.environ().values())
                except psutil.Error:
                    continue

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def test_https_with_a_password(scratch, repository, tmp_path, authority):
    """[capability 101] A private repository over https: TLS by our authority, basic login."""
    commit = repository.commit(a="1")
    login = {"username": "ada", "password": SECRET}
    server = GitOverHttp(tmp_path, login=f"ada:{SECRET}", authority=authority)
    git = git_source(scratch, roots=(authority.root,))
    with server.serving(), Watching() as watching:
        url = server.url("repository/.git")
        assert b"1" == fetched(git, job(url, commit, **login))["a"]
        assert b"1" == fetched(git, job(url, commit, checkout=True, **login))["a"]
    assert any("remote-https" in text for text in watching.seen)
    assert not [text for text in watching.seen if "hunter2" in text]


def test_ssh_with_a_key(scratch, repository, sshd):
    """[capability 101] A private repository over ssh: the key of the stack, a pinned host."""
    commit = repository.commit(a="1")
    how = {"ssh_key": sshd.private_key, "known_hosts": (sshd.known,)}
    with Watching() as watching:
        wanted = job(sshd.url(repository.path), commit, **how)
        assert b"1" == fetched(git_source(scratch), wanted)["a"]
    lines = [line for line in sshd.private_key.splitlines() if "---" not in line]
    assert any("UserKnownHostsFile" in text for text in watching.seen)
    assert not [text for text in watching.seen for line in lines if line in text]


def test_operators_known_hosts_win(scratch, repository, sshd, tmp_path):
    """Where the operator says which hosts to believe, a stack cannot add one."""
    commit = repository.commit(a="1")
    wanted = job(
        sshd.url(repository.path),
        commit,
        ssh_key=sshd.private_key,
        known_hosts=(sshd.known,),
    )
    file = tmp_path / "known hosts"
    git = git_source(scratch, known_hosts=file)
    file.write_text("")
    assert "not among the known hosts" in str(refused(git, wanted))
    file.write_text(sshd.known + "\n")
    assert b"1" == fetched(git, wanted)["a"]


def other_key(sshd, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"],
        check=True,
    )
    kind, key, *_ = (tmp_path / "other.pub").read_text().split()
    return (tmp_path / "other").read_text(), f"[127.0.0.1]:{sshd.port} {kind} {key}"


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("unknown host", "the ssh host key of its server is not among the known hosts"),
        ("other host", "its server shows another ssh host key than the one that is"),
        ("other key", "its server does not accept the credentials"),
        ("no key", "its server does not accept the credentials"),
        ("not a key", "its server does not accept the credentials"),
        ("no repository", "there is no such repository, or the credentials do not"),
        ("unreachable", "its server cannot be reached"),
    ],
)
def test_troubles_of_ssh(scratch, repository, sshd, tmp_path, case, sentence):
    """Whatever goes wrong over ssh is told in a sentence of its own."""
    key, line = other_key(sshd, tmp_path)
    how = {"ssh_key": sshd.private_key, "known_hosts": (sshd.known,)} | {
        "unknown host": {"known_hosts": ()},
        "other host": {"known_hosts": (line,)},
        "other key": {"ssh_key": key},
        "no key": {"ssh_key": ""},
        "not a key": {"ssh_key": "hunter2"},
    }.get(case, {})
    url = sshd.url(repository.path)
    url += "-gone" if case == "no repository" else ""
    url = url.replace(str(sshd.port), "1") if case == "unreachable" else url
    error = refused(git_source(scratch), job(url, repository.commit(a="1"), **how))
    assert f"acme/testing-spacelift cannot be fetched: {sentence}" in str(error)
    assert "127.0.0.1" not in str(error)
    assert "hunter2" not in error.details


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("wrong password", "its server does not accept the credentials"),
        ("no password", "its server asks for credentials, and there are none for it"),
        ("unknown authority", "the certificate of its server is not trusted"),
        ("other name", "the certificate of its server is not trusted"),
        ("moved", "its server sends us on to another address, which is not followed"),
        ("no repository", "there is no such repository, or the credentials do not"),
        ("unreachable", "its server cannot be reached"),
        ("no address", "there is no address for the name of its server"),
    ],
)
def test_troubles_of_https(scratch, repository, tmp_path, authority, case, sentence):
    """Whatever goes wrong over https is told in a sentence of its own."""
    password = {"wrong password": "wrong", "no password": ""}.get(case, SECRET)
    how = {"username": "ada", "password": password} if password else {}
    roots = () if case == "unknown authority" else (authority.root,)
    certified = authority
    if case == "other name":
        certified = Authority(tmp_path, "elsewhere.example")
        roots = (certified.root,)
    server = GitOverHttp(tmp_path, login=f"ada:{SECRET}", authority=certified)
    with server.serving():
        if case == "moved":
            server.moved["/repository"] = server.url("", "localhost").rstrip("/")
        url = server.url("gone" if case == "no repository" else "repository/.git")
        if case == "unreachable":
            url = "https://127.0.0.1:1/x"
        if case == "no address":
            url = "https://nowhere.invalid/x"
        allowed = rules("127.0.0.1", "localhost", "*.invalid")
        git = git_source(scratch, roots=roots, rules=allowed)
        error = refused(git, job(url, repository.commit(a="1"), **how))
        asked = [path for path, _ in server.told]
    assert f"acme/testing-spacelift cannot be fetched: {sentence}" in str(error)
    assert "127.0.0.1" not in str(error)
    assert "hunter2" not in str(error) + error.details
    if case == "moved":
        assert 1 == len(asked)


def test_a_name_means_the_addresses_that_were_judged(
    scratch, repository, tmp_path, authority, monkeypatch
):
    """git connects to the addresses that were looked at, not to what a second look says."""
    commit = repository.commit(a="1")
    loopback = [(0, 0, 0, "", ("127.0.0.1", 0))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: loopback)
    certified = Authority(tmp_path, "git.elsewhere.invalid")
    with GitOverHttp(tmp_path, authority=certified).serving() as server:
        url = server.url("repository/.git", "git.elsewhere.invalid")
        git = git_source(
            scratch, roots=(certified.root,), rules=rules("git.elsewhere.invalid")
        )
        assert b"1" == fetched(git, job(url, commit))["a"]


def test_git_takes_the_proxy(scratch, repository, tmp_path, monkeypatch):
    """By proxy, the name is judged only; git knows its password, and nobody sees that."""
    commit = repository.commit(a="1")
    monkeypatch.setattr("launcher.adapters.sources.git.addresses_of", pytest.fail)
    certified = Authority(tmp_path, ELSEWHERE)
    with (
        GitOverHttp(tmp_path, authority=certified).serving() as server,
        proxying({}, credentials=f"jane:{SECRET}") as proxy,
        Watching() as watching,
    ):
        place = f"{ELSEWHERE}:{server.server_port}"
        proxy.places[place] = server.server_port
        git = git_source(
            scratch,
            roots=(certified.root,),
            rules=rules(ELSEWHERE),
            proxies=Proxies(https=Secret(proxy.url)),
        )
        url = server.url("repository/.git", ELSEWHERE)
        assert b"1" == fetched(git, job(url, commit))["a"]

    assert {("CONNECT", place)} == set(proxy.asked)
    assert any("remote-https" in text for text in watching.seen)
    assert not [text for text in watching.seen if "hunter2" in text]


@pytest.mark.parametrize("known", [True, False])
def test_git_and_a_proxy_that_speaks_tls(scratch, tmp_path, authority, known):
    """One that our authorities certify is asked, and no other is."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority.server)
    with proxying({}, mood="refusing", tls=tls) as proxy:
        root = authority.root if known else Authority(tmp_path).root
        git = git_source(
            scratch,
            roots=(root,),
            rules=rules(ELSEWHERE),
            proxies=Proxies(https=Secret(proxy.url)),
        )
        refused(git, job(f"https://{ELSEWHERE}/x.git", "0" * 40))

    assert ({("CONNECT", f"{ELSEWHERE}:443")} if known else set()) == set(proxy.asked)


@pytest.mark.parametrize(
    "entry",
    [
        "elsewhere.invalid",
        "elsewhere.invalid.",
        "*.elsewhere.invalid",
        "other.invalid elsewhere.invalid",
        "git.elsewhere.invalid:{port}",
    ],
)
def test_git_without_the_proxy_is_judged(
    scratch, repository, tmp_path, monkeypatch, entry
):
    """Where git takes no proxy, the addresses are judged, however NO_PROXY is written."""
    commit = repository.commit(a="1")
    at = ["127.0.0.1"]
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (at[0], 0))]
    )
    certified = Authority(tmp_path, ELSEWHERE)
    with (
        GitOverHttp(tmp_path, authority=certified).serving() as server,
        proxying({}) as proxy,
    ):
        direct = entry.format(port=server.server_port)
        git = git_source(
            scratch,
            roots=(certified.root,),
            rules=rules(ELSEWHERE),
            proxies=Proxies(https=Secret(proxy.url), direct=(direct,)),
            environment={"PATH": os.environ["PATH"], "https_proxy": proxy.url},
        )
        wanted = job(server.url("repository/.git", ELSEWHERE), commit)
        assert b"1" == fetched(git, wanted)["a"]
        at[0] = "169.254.169.254"
        assert "is not fetched" in str(refused(git, wanted))
        assert [] == proxy.asked


def test_secrets_are_gone_after_a_fetch(scratch, repository, sshd):
    """Neither key nor known hosts are left anywhere once a fetch is over."""
    git = git_source(scratch)
    wanted = job(
        sshd.url(repository.path),
        repository.commit(a="1"),
        ssh_key=sshd.private_key,
        known_hosts=(sshd.known,),
    )
    with git.fetch(wanted, CancelToken()) as stream:
        b"".join(stream)
        # What the store needs is there until the end, but it has no secret.
        [place] = git.memory.folder.glob(git.memory.prefix + "*")
        assert ["configuration"] == [path.name for path in place.iterdir()]
        assert 0o700 == place.stat().st_mode & 0o777
    assert [] == list(git.memory.folder.glob(git.memory.prefix + "*"))


def test_secrets_of_a_killed_launcher_are_removed(scratch):
    """What a launcher that was killed left in memory is gone once it starts again."""
    place = git_source(scratch).memory.make()
    (place / "key").write_text("a secret")
    git_source(scratch)
    assert not place.exists()


# --- a checkout: .git, submodules, LFS


def unpacked(found, folder):
    for name, content in found.items():
        path = folder / name
        if isinstance(content, bytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        elif content.isdir():
            path.mkdir(parents=True, exist_ok=True)
    return Repository(folder, new=False)


def test_a_checkout_is_a_repository(scratch, repository, tmp_path, authority):
    """[capability 99] A checkout has a ``.git`` of one commit, clean, and without secrets."""
    repository.commit(a="0")
    commit = repository.commit(a="1", **{"deep/b": "2"})
    how = {"username": "ada", "password": SECRET, "checkout": True}
    server = GitOverHttp(tmp_path, login=f"ada:{SECRET}", authority=authority)
    git = git_source(scratch, roots=(authority.root,))
    with server.serving():
        url = server.url("repository/.git")
        found = fetched(git, job(url, commit, **how))
    clone = unpacked(found, tmp_path / "clone")
    assert commit == clone.git("rev-parse", "main")
    assert "" == clone.git("status", "--porcelain")
    assert "1" == clone.git("rev-list", "--count", "HEAD")
    assert url == clone.git("config", "remote.origin.url")
    for name, content in found.items():
        assert not isinstance(content, bytes) or b"hunter2" not in content, name


def test_without_a_checkout_there_is_the_tree_only(scratch, repository):
    """[capability 98] By default a run gets the files of the commit, and no ``.git``."""
    commit = repository.commit(a="1", **{"deep/b": "2"})
    git = git_source(scratch, protocols=("file",), rules=None)
    found = fetched(git, job(repository.url, commit))
    assert {"a", "deep/b"} <= found.keys()
    assert not [name for name in found if name.startswith(".git")]


TREE = {
    "root.tf": "r",
    ".spacelift/config.yml": "version: 1",
    "infra/main.tf": "m",
    "infra/prod/a.tf": "a",
    "infra/prod/deep/b.tf": "b",
    "infra/test/c.tf": "c",
    "other/d.tf": "d",
    "o*/e.tf": "e",
    "with\nnewline/f.tf": "f",
}


@pytest.mark.parametrize("checkout", [False, True])
@pytest.mark.parametrize(
    ("paths", "files"),
    [
        (("infra/prod",), {"infra/main.tf", "infra/prod/a.tf", "infra/prod/deep/b.tf"}),
        (
            ("infra/prod/deep/",),
            {"infra/main.tf", "infra/prod/a.tf"} | {"infra/prod/deep/b.tf"},
        ),
        (("other", "infra/test"), {"other/d.tf", "infra/main.tf", "infra/test/c.tf"}),
        (("infra", "infra/prod"), {n for n in TREE if n.startswith("infra")}),
        (("o*",), {"o*/e.tf"}),
        (("with\nnewline",), {"with\nnewline/f.tf"}),
        (("gone", "../x", "/"), set()),
    ],
)
def test_sparse_checkout(scratch, repository, tmp_path, checkout, paths, files):
    """[capability 100] Only the literal paths come, with the files of the folders above."""
    commit = repository.commit(**TREE)
    git = git_source(scratch, protocols=("file",), rules=None)
    how = {"sparse_paths": paths, "checkout": checkout}
    found = fetched(git, job(repository.url, commit, **how))
    names = {n for n, content in found.items() if isinstance(content, bytes)}
    assert files | {"root.tf", ".spacelift/config.yml"} == {
        name for name in names if not name.startswith(".git/")
    }
    if checkout:
        clone = unpacked(found, tmp_path / "clone")
        assert "" == clone.git("status", "--porcelain")


def submodule(repository, path, commit, url, *, name="x"):
    text = f'[submodule "{name}"]\n\tpath = {path}\n\turl = {url}\n'
    with (repository.path / ".gitmodules").open("a") as file:
        file.write(text)
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")


def committed(repository):
    repository.git("add", ".gitmodules")
    repository.git("commit", "--quiet", "-m", "submodules")
    return repository.git("rev-parse", "HEAD")


def test_submodules(scratch, tmp_path, authority):
    """[capability 99] Submodules come, also those of submodules, with the same login."""
    inner = Repository(tmp_path / "group/inner")
    inner_commit = inner.commit(i="inner")
    middle = Repository(tmp_path / "group/middle")
    middle.commit(m="middle")
    submodule(middle, "mods/inner", inner_commit, "../../inner/.git")
    middle_commit = committed(middle)
    outer = Repository(tmp_path / "outer")
    outer.commit(o="outer")
    submodule(outer, "vendor/mid", middle_commit, "../../group/middle/.git")
    commit = committed(outer)
    server = GitOverHttp(tmp_path, login=f"ada:{SECRET}", authority=authority)
    git = git_source(scratch, roots=(authority.root,))
    how = {"username": "ada", "password": SECRET}
    with server.serving():
        url = server.url("outer/.git")
        found = fetched(git, job(url, commit, checkout=True, **how))
        plain = fetched(git, job(url, commit, **how))
    assert b"middle" == found["vendor/mid/m"]
    assert b"inner" == found["vendor/mid/mods/inner/i"]
    assert b"outer" == found["o"]
    assert plain["vendor/mid"].isdir()
    assert "vendor/mid/m" not in plain


def test_credentials_are_for_one_host(scratch, tmp_path, authority):
    """The server of a submodule on another host is not shown the stack's password."""
    inner = Repository(tmp_path / "theirs/inner")
    inner_commit = inner.commit(i="inner")
    outer = Repository(tmp_path / "ours/outer")
    outer.commit(o="outer")
    ours = GitOverHttp(tmp_path / "ours", login="ada:hunter2", authority=authority)
    theirs = GitOverHttp(tmp_path / "theirs", authority=authority)
    git = git_source(scratch, roots=(authority.root,))
    with ours.serving(), theirs.serving():
        submodule(outer, "mod", inner_commit, theirs.url("inner/.git"))
        wanted = job(
            ours.url("outer/.git"),
            committed(outer),
            checkout=True,
            username="ada",
            password="hunter2",
        )
        assert b"inner" == fetched(git, wanted)["mod/i"]
        theirs.login = "ada:hunter2"
        assert "there are none for it" in str(refused(git, wanted))
    assert theirs.told
    assert {""} == {credentials for _, credentials in theirs.told}


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ext::sh -c touch% {pwned}", "its address is not the URL of a repository"),
        ("--upload-pack=touch {pwned}", "its address is not the URL of a repository"),
        ("-u./x", "its address is not the URL of a repository"),
        ("file:///etc", "repositories are not fetched by 'file' on this worker"),
        (
            "http://127.0.0.1:1/x",
            "repositories are not fetched by 'http' on this worker",
        ),
        ("https://169.254.169.254/x", "is at a link-local address"),
        ("https://10.1.2.3/x", "is not in SPACELIFT_LAUNCHER_ALLOWED_SOURCES"),
        ("https://140.82.112.3/x/y", "is not in SPACELIFT_LAUNCHER_ALLOWED_SOURCES"),
        ("../../../../../x", "its address leaves the server"),
        ("ssh://-oProxyCommand=x/y", "its address"),
    ],
)
def test_hostile_submodules(scratch, repository, tmp_path, authority, url, sentence):
    """A submodule is fetched from where a stack may come from, and nothing it says is run."""
    repository.commit(a="1")
    pwned = tmp_path / "pwned"
    submodule(repository, "mod", "ab" * 20, f'"{url.format(pwned=pwned)}"')
    commit = committed(repository)
    git = git_source(scratch, roots=(authority.root,))
    with GitOverHttp(tmp_path, authority=authority).serving() as server:
        wanted = job(server.url("repository/.git"), commit, checkout=True)
        error = str(refused(git, wanted))
    assert sentence in error
    assert "submodule 'mod' of acme/testing-spacelift" in error or "by '" in error
    assert not pwned.exists()


def test_a_submodule_without_an_address_stays_empty(scratch, repository):
    """What .gitmodules says nothing about is left out, and the run's log says so."""
    repository.commit(a="1")
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{'ab' * 20},lost")
    repository.git("commit", "--quiet", "-m", "lost")
    commit, said = repository.git("rev-parse", "HEAD"), []
    git = git_source(scratch, protocols=("file",), rules=None)
    found = fetched(git, job(repository.url, commit, checkout=True), said)
    assert found["lost"].isdir()
    assert ["Submodule 'lost' is not in .gitmodules: it stays empty."] == said


def test_submodules_without_end_are_refused(scratch, repository):
    """A repository that is its own submodule, or has hundreds, ends in a sentence."""
    first = repository.commit(a="1")
    for number in range(101):
        submodule(repository, f"m{number}", first, repository.url, name=f"n{number}")
    commit = committed(repository)
    git = git_source(scratch, protocols=("file",), rules=None)
    error = refused(git, job(repository.url, commit, checkout=True))
    assert "more than 100 submodules" in str(error)


def test_submodules_too_deep_are_refused(scratch, repository):
    """Submodules of submodules are followed five levels down, and no further."""
    git = git_source(scratch, protocols=("file",), rules=None)
    commit = repository.commit(a="0")
    for level in range(1, 7):
        (repository.path / ".gitmodules").unlink(missing_ok=True)
        submodule(repository, "m", commit, repository.url)
        commit = committed(repository)
        if level == 5:
            found = fetched(git, job(repository.url, commit, checkout=True))
            assert b"0" == found["m/m/m/m/m/a"]
    assert "levels deep" in str(
        refused(git, job(repository.url, commit, checkout=True))
    )


LARGE = b"large \0" * 50_000


def lfs_repository(repository, *, bad=()):
    oid, text = pointer(LARGE)
    repository.write(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")
    for name in ("one.bin", "deep/two.bin", *bad):
        repository.write(name, text)
    (repository.path / "deep/two.bin").chmod(0o755)
    repository.write("plain", "p")
    return oid, repository.commit()


@pytest.mark.parametrize("sparse", [(), ("deep",)])
def test_files_of_lfs(scratch, repository, tmp_path, authority, sparse):
    """[capability 99] A checkout has what LFS keeps, where git-lfs is on the machine."""
    oid, commit = lfs_repository(repository)
    server = GitOverHttp(tmp_path, login=f"ada:{SECRET}", authority=authority)
    server.large[oid] = LARGE
    git = git_source(scratch, roots=(authority.root,))
    how = {"username": "ada", "password": SECRET, "sparse_paths": sparse}
    with server.serving(), Watching() as watching:
        url = server.url("repository/.git")
        found = fetched(git, job(url, commit, checkout=True, **how))
        plain = fetched(git, job(url, commit, **how))
    assert LARGE == found["deep/two.bin"] == found["one.bin"]
    assert b"p" == found["plain"]
    assert pointer(LARGE)[1] == plain["one.bin"]
    assert not [text for text in watching.seen if "hunter2" in text]


def test_a_hostile_lfsconfig_does_not_count(scratch, repository, tmp_path, authority):
    """A repository cannot say from where its LFS files come, nor which program brings them."""
    trap = tmp_path / "pwned"
    repository.write(
        ".lfsconfig",
        '[lfs]\n\turl = "https://127.0.0.1:1/elsewhere"\n\tstandalonetransferagent = x\n'
        f'[lfs "customtransfer.x"]\n\tpath = touch\n\targs = {trap}\n',
    )
    oid, commit = lfs_repository(repository)
    server = GitOverHttp(tmp_path, authority=authority)
    server.large[oid] = LARGE
    git = git_source(scratch, roots=(authority.root,))
    with server.serving():
        wanted = job(server.url("repository/.git"), commit, checkout=True)
        assert LARGE == fetched(git, wanted)["one.bin"]
    assert not trap.exists()


def test_lfs_without_the_file(scratch, repository, tmp_path, authority):
    """A file that LFS does not have is no pointer in its place, but a failure."""
    _, commit = lfs_repository(repository)
    git = git_source(scratch, roots=(authority.root,))
    with GitOverHttp(tmp_path, authority=authority).serving() as server:
        wanted = job(server.url("repository/.git"), commit, checkout=True)
        error = refused(git, wanted)
    assert "what acme/testing-spacelift keeps in LFS cannot be fetched" == str(error)


def test_lfs_on_a_machine_without_it(scratch, repository, tmp_path):
    """Without git-lfs, the pointers stay, and the run's log says so."""
    _, commit = lfs_repository(repository)
    tools, said = tmp_path / "tools", []
    tools.mkdir()
    for name in ("git", "sh"):
        found = subprocess.run(["which", name], check=True, capture_output=True)
        (tools / name).symlink_to(found.stdout.decode().strip())
    git = git_source(
        scratch, protocols=("file",), rules=None, environment={"PATH": str(tools)}
    )
    found = fetched(git, job(repository.url, commit, checkout=True), said)
    assert pointer(LARGE)[1] == found["one.bin"]
    assert [
        "2 files are kept in LFS: this worker has no git-lfs, so that they are left as"
        " pointers."
    ] == said
