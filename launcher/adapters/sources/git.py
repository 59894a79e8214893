"""
The tree of one commit, by way of git.

What this package is built around:

- The repository and its URL are untrusted.  Nothing is checked out: `git archive`
  reads the tree from the object store, so no hook, filter, submodule or link of
  the repository acts on the launcher's host.
- ``ext::``, ``fd::`` and friends run commands: see `addresses`, and GIT_ALLOW_PROTOCOL.
- A name is looked up once and judged; git and ssh are then told the addresses.
- Most servers hand out any commit by its hash; others hand out branches only.
- `git archive` obeys ``export-ignore`` and ``export-subst`` of the repository,
  unless ``info/attributes`` says otherwise, which is stronger.
- A mirror is as private as its repository: whoever wants to read from it asks the
  server first, with the credentials of the job.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import posixpath
import re
import shutil
import tarfile
import tempfile

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.adapters.sources.mirrors import Mirror, Mirrors
from launcher.adapters.sources.processes import (
    Git,
    GitFailed,
    OutOfTime,
    TooLarge,
)
from launcher.adapters.sources.trees import Entry, Submodule, Trees, too_large
from launcher.adapters.sources.troubles import trouble
from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.fetching.access import (
    Login,
    Machine,
    Memory,
    access,
    offline,
)
from launcher.fetching.addresses import (
    PRIVATE,
    Remote,
    addresses_of,
    proxy_of,
)
from launcher.proxies import Proxies
from launcher.removal import remove_tree
from launcher.source_rules import Address, SourceRules
from launcher.wire.jobs import Job


_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_ATTRIBUTES = "* -export-ignore -export-subst\n"
_MOST_SUBMODULES = 100
_DEEPEST_SUBMODULE = 5
_DEPTHS = ("1", "50", "1000", "2147483647")
"""How much of a branch is looked at for a commit; the last one is all of it."""
_DEFAULT_LIMIT = 2 << 30
_PART = 1 << 20


def _nobody(_: str) -> None:
    pass


class GitSource:
    """Implements `launcher.ports.SourceFetcher`."""

    def __init__(
        self,
        scratch: Path,
        *,
        protocols: Sequence[str],
        environment: Mapping[str, str],
        timeout_seconds: float = 300,
        rules: SourceRules | None = None,
        pools: Mapping[str, str] | None = None,
        roots: tuple[str, ...] = (),
        known_hosts: Path | None = None,
        proxies: Proxies | None = None,
        mirrors: Mirrors | None = None,
        limit: int = _DEFAULT_LIMIT,
    ) -> None:
        """
        *pools* are the endpoints of VCS agent pools, by name, and *limit* the bytes of
        one repository.  Without *mirrors*, nothing is kept from fetch to fetch.
        """
        self._scratch = scratch
        self._protocols = tuple(protocols)
        self.timeout = timeout_seconds
        self._rules = rules or SourceRules()
        self._pools = dict(pools or {})
        self._proxies = proxies or Proxies()
        self.machine = Machine(
            environment=dict(environment),
            home=scratch,
            roots=roots,
            known_hosts=known_hosts,
            proxies=self._proxies,
        )
        self.mirrors = mirrors
        self.limit = limit
        name = hashlib.sha256(str(scratch.absolute()).encode()).hexdigest()[:16]
        self.memory = Memory.of(name, scratch)

    @contextmanager
    def fetch(
        self, job: Job, cancel: CancelToken, say: Callable[[str], None] = _nobody
    ) -> Iterator[Iterator[bytes]]:
        commit = job.run.commit.hash
        if not _HASH.fullmatch(commit):
            raise SourceUnavailable(f"{commit!r} is not the hash of a commit")
        remote = self._remote(job)
        with ExitStack() as closing:
            folder = closing.enter_context(_folder(self._scratch))
            fetch = _Fetch(self, job, remote, folder, cancel, say, closing)
            try:
                made = fetch.whole()
            except GitFailed as exc:
                raise fetch.failed(exc) from exc
            with fetch.git.archive(made) as tree:
                yield fetch.whole_or_damaged(tree)

    def _remote(self, job: Job) -> Remote:
        if not job.source.url or job.source.url.startswith("-"):
            raise SourceUnavailable(
                f"stack {job.stack.slug!r} names no repository to fetch"
            )
        return self.checked(job.source.url, job.stack.repository_path)

    def checked(self, url: str, what: str, beside: Remote | None = None) -> Remote:
        """
        What *url*, in a submodule of *beside* if that is given, stands for.

        Raises:
            SourceUnavailable: nothing that is fetched here.
        """
        try:
            remote = beside.joined(url) if beside else Remote.parse(url)
            if remote.protocol == PRIVATE:
                # What the operator maps it to is the operator's choice.
                return self._reached(remote)
        except ValueError as exc:
            raise SourceUnavailable(
                f"{what} is not fetched: its address {exc}"
            ) from exc
        self._check_protocol(remote)
        return remote

    def _reached(self, remote: Remote) -> Remote:
        base = self._pools.get(remote.host)
        if base is None:
            raise ValueError(
                f"is that of the VCS agent pool {remote.host!r}, which is not mapped on"
                " this worker"
            )
        return remote.below(base)

    def _check_protocol(self, remote: Remote) -> None:
        protocol = remote.protocol
        if protocol == "file" and self._rules.judges_files():
            if self._rules.refused_folder(remote.path):
                raise SourceUnavailable(
                    "local repositories of this folder are not fetched on this worker",
                    details=f"SPACELIFT_LAUNCHER_ALLOWED_SOURCES lacks {remote.path}",
                )
        elif protocol not in self._protocols:
            raise SourceUnavailable(
                f"repositories are not fetched by {protocol!r} on this worker",
                details=f"SPACELIFT_LAUNCHER_GIT_PROTOCOLS is {self._protocols}",
            )
        elif protocol == "file" and self._rules.patterns:
            raise SourceUnavailable(
                "local repositories are not fetched on this worker",
                details="SPACELIFT_LAUNCHER_ALLOWED_SOURCES lists no folder",
            )

    def addresses(self, remote: Remote, what: str) -> tuple[Address, ...]:
        """
        Where *remote* is, once both its name and its addresses are allowed.

        Raises:
            SourceUnavailable: they are not, or there are none.
        """
        if remote.protocol == "file":
            return ()
        through = proxy_of(remote, self._proxies)
        try:
            found = () if through else addresses_of(remote)
        except (OSError, UnicodeError, ValueError) as exc:
            raise SourceUnavailable(
                f"{what} cannot be fetched: there is no address for the name of its"
                " server",
                details=f"{remote.host}: {exc}",
            ) from exc
        if refusal := self._rules.refusal(remote.host, remote.port, found):
            raise SourceUnavailable(
                f"{what} is not fetched: its server {refusal}",
                details=f"{remote.host}:{remote.port} is at {[*map(str, found)]}",
            )
        return found


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A commit, and how it is had."""

    remote: Remote
    environment: Mapping[str, str]
    commit: str
    branch: str
    what: str
    """What people call the repository."""


@dataclass
class _Fetch:
    """One fetch, from the URL to the object store that its tree is read from."""

    source: GitSource
    job: Job
    remote: Remote
    folder: Path
    cancel: CancelToken
    say: Callable[[str], None]
    closing: ExitStack
    git: Git = field(init=False)
    environment: dict[str, str] = field(init=False)
    mirrors: list[Mirror] = field(default_factory=list)
    modules: int = 0
    left: int = 0
    """Bytes that the files may yet have, all submodules together."""

    def __post_init__(self) -> None:
        self.left = self.source.limit
        self.what = self.job.stack.repository_path

    @property
    def login(self) -> Login:
        given = self.job.source
        return Login(
            username=given.username or self.remote.username,
            password=given.password or self.remote.password,
            ssh_key=given.ssh_key,
            known_hosts=given.known_hosts,
            agent=True,
        )

    def failed(self, exc: GitFailed) -> SourceUnavailable:
        """The error for a git that did not understand what was fetched."""
        self._distrust()
        return trouble(str(exc), self.what) or SourceUnavailable(
            f"the commit of {self.what} cannot be read", details=str(exc)
        )

    def whole_or_damaged(self, tree: Iterator[bytes]) -> Iterator[bytes]:
        """
        *tree*, with a repository before it if one is wanted.

        What cannot be read is fetched anew the next time.
        """
        try:
            if self.job.source.checkout:
                yield from self._dot_git()
            yield from tree
        except GitFailed as exc:
            raise self.failed(exc) from exc
        except SourceUnavailable:
            self._distrust()
            raise

    def _distrust(self) -> None:
        """Let mirrors be made anew, unless it was us who ended the reading."""
        if not self.cancel.cancelled:
            for mirror in self.mirrors:
                mirror.damaged()

    def whole(self) -> str:
        """Fetch everything; return the commit, of our own making perhaps, to read."""
        commit = self.job.run.commit
        self._make_store(len(commit.hash))
        tree = self._assembled(
            self.remote, self.login, commit.hash, commit.branch, self.what, depth=0
        )
        trees = Trees(self.git)
        if tree == trees.of(commit.hash):
            return commit.hash
        return trees.committed(tree, commit.hash)

    def _make_store(self, length: int) -> None:
        self.environment = self.closing.enter_context(
            access(
                Remote(protocol="none", path=""),
                Login(),
                (),
                self.source.machine,
                self.source.memory,
            )
        )
        self.git = self._in(self.folder / "store", offline(self.environment))
        self._init(self.git, length)

    def _in(
        self, directory: Path, environment: Mapping[str, str], lock: Iterable[int] = ()
    ) -> Git:
        return Git(
            directory,
            environment,
            self.cancel,
            timeout_seconds=self.source.timeout,
            inherited=tuple(lock),
        )

    def _init(self, git: Git, length: int) -> None:
        kind = "sha1" if length == 40 else "sha256"
        git.run("init", "--quiet", "--bare", "--template=", f"--object-format={kind}")
        attributes = git.directory / "info/attributes"
        try:
            attributes.parent.mkdir(exist_ok=True)
            attributes.write_text(_ATTRIBUTES, "ascii")
        except OSError as exc:
            raise GitFailed(str(exc)) from exc

    def _assembled(
        self,
        remote: Remote,
        login: Login,
        commit: str,
        branch: str,
        what: str,
        *,
        depth: int,
    ) -> str:
        """The tree of *commit* with everything that belongs into it."""
        addresses = self.source.addresses(remote, what)
        machine, memory = self.source.machine, self.source.memory
        with access(remote, login, addresses, machine, memory) as environment:
            wanted = _Wanted(remote, environment, commit, branch, what)
            self._fetched(wanted)
            trees = Trees(self.git)
            tree = trees.of(commit)
            if self.job.source.sparse_paths and depth == 0:
                tree = trees.narrowed(tree, self.job.source.sparse_paths)
            size, special = trees.measured(tree, self.left, what)
            self.left -= size
            if not self.job.source.checkout:
                return tree
            attributes = [each for each in special if each.kind == "blob"]
            pointers = trees.pointers(tree, attributes)
            blobs = self._large_files(trees, tree, pointers, wanted)
        links = [each for each in special if each.kind == "commit"]
        modules = list(self._known(trees, tree, links))
        self.modules += len(modules)
        if self.modules > _MOST_SUBMODULES or (modules and depth >= _DEEPEST_SUBMODULE):
            raise SourceUnavailable(
                f"{self.what} has more than {_MOST_SUBMODULES} submodules, or some that"
                f" are more than {_DEEPEST_SUBMODULE} levels deep"
            )
        inner = {
            module.path: self._submodule(module, remote, login, depth)
            for module in modules
        }
        return trees.grafted(tree, inner, blobs) if inner or blobs else tree

    # --- the commit

    def _fetched(self, wanted: _Wanted) -> None:
        """Bring *commit* into a mirror, and let our store borrow from that."""
        for last in (False, True):
            with ExitStack() as using:
                mirror = using.enter_context(self._mirror(wanted))
                known = mirror.made
                try:
                    self._bring(mirror, wanted)
                except _NotThere:
                    if last or not known or self._sound(mirror, wanted.environment):
                        raise
                    mirror.damaged()
                    continue
                self.mirrors.append(mirror)
                Trees(self.git).borrow(mirror.directory)
                self.closing.push(using.pop_all())
                return

    def _mirror(self, wanted: _Wanted) -> AbstractContextManager[Mirror]:
        if self.source.mirrors is None:
            directory = self.folder / f"mirror-{len(self.mirrors)}"
            return contextlib.nullcontext(Mirror(directory, None))
        kind = f"{len(wanted.commit)} {wanted.remote.url}"
        return self.source.mirrors.using(kind, self.cancel, self.source.timeout)

    def _bring(self, mirror: Mirror, wanted: _Wanted) -> None:
        commit = wanted.commit
        reading = self._in(mirror.directory, wanted.environment)
        if mirror.made and _has(reading, commit):
            self._ask(reading, wanted)
            return
        with mirror.writing(self.cancel, self.source.timeout) as lock:
            git = self._in(mirror.directory, wanted.environment, lock)
            if not mirror.made:
                self._init(git, len(commit))
            if _has(git, commit):  # somebody else brought it while we waited
                self._ask(git, wanted)
            else:
                self._fetch(git, wanted)

    def _ask(self, git: Git, wanted: _Wanted) -> None:
        """Find out whether the server lets us read what we have already."""
        try:
            git.run("ls-remote", "--quiet", "--", wanted.remote.url, "HEAD")
        except GitFailed as exc:
            raise self._refused(exc, wanted.what) or SourceUnavailable(
                f"{wanted.what} cannot be fetched", details=str(exc)
            ) from exc

    def _fetch(self, git: Git, wanted: _Wanted) -> None:
        commit, branch, what = wanted.commit, wanted.branch, wanted.what
        said = []
        for specifications, options in _attempts(commit, branch):
            try:
                git.run(
                    *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head"),
                    *(*options, "--", wanted.remote.url, *specifications),
                    limit=self.source.limit,
                )
            except GitFailed as exc:
                if known := self._refused(exc, what):
                    raise known from exc
                said.append(str(exc))
                continue
            with contextlib.suppress(GitFailed):
                git.run("cat-file", "-e", f"{commit}^{{tree}}")
                git.run("update-ref", f"refs/commits/{commit}", commit)
                return
        details = "; ".join(dict.fromkeys(said))
        if branch and "couldn't find remote ref refs/heads/" in details.lower():
            raise _NotThere(
                f"commit {commit[:12]} cannot be fetched from {what}, which has no"
                f" branch {branch!r}; was it deleted?",
                details=details,
            )
        of_branch = f" of branch {branch!r}" if branch else ""
        raise _NotThere(
            f"commit {commit[:12]}{of_branch} cannot be fetched from {what}",
            details=details,
        )

    def _refused(self, exc: GitFailed, what: str) -> SourceUnavailable | None:
        """The error for *exc*, if there is no use in trying another way."""
        match exc:
            case _ if self.cancel.cancelled:
                return SourceUnavailable(f"fetching {what} was stopped")
            case TooLarge():
                return too_large(what, self.source.limit)
            case OutOfTime():
                return SourceUnavailable(
                    f"{what} cannot be fetched: its server takes too long",
                    details=str(exc),
                )
            case _:
                return trouble(str(exc), what)

    def _sound(self, mirror: Mirror, environment: Mapping[str, str]) -> bool:
        git = self._in(mirror.directory, offline(environment))
        try:
            git.run("fsck", "--connectivity-only", "--no-dangling", "--no-progress")
        except GitFailed:
            return False
        return True

    # --- what a checkout has besides

    def _large_files(
        self,
        trees: Trees,
        tree: str,
        pointers: Mapping[bytes, tuple[Entry, str, int]],
        wanted: _Wanted,
    ) -> list[Entry]:
        """What LFS keeps for the pointers in *tree*, in their place."""
        if not pointers:
            return []
        if shutil.which("git-lfs", path=wanted.environment.get("PATH")) is None:
            self.say(
                f"{len(pointers)} files are kept in LFS: this worker has no git-lfs, so"
                " that they are left as pointers."
            )
            return []
        total = sum(size for _, _, size in pointers.values())
        if total > self.left:
            raise too_large(wanted.what, self.source.limit)
        self.left -= total
        git = self._in(self.git.directory, wanted.environment)
        options = [
            part
            for setting in (
                f"remote.origin.url={wanted.remote.url}",
                # Stronger than what the repository says of it in .lfsconfig.
                f"lfs.url={_lfs_url(wanted.remote)}",
                "lfs.fetchrecentalways=false",
                "lfs.locksverify=false",
                "lfs.transfer.maxretries=2",
            )
            for part in ("-c", setting)
        ]
        pointing = trees.committed(tree, wanted.commit)
        what = wanted.what
        try:
            git.run(
                *options, "lfs", "fetch", "origin", pointing, limit=self.source.limit
            )
        except GitFailed as exc:
            known = self._refused(exc, f"what {what} keeps in LFS")
            raise known or SourceUnavailable(
                f"what {what} keeps in LFS cannot be fetched", details=str(exc)
            ) from exc
        store = self.git.directory / "lfs/objects"
        files = {
            path: store / oid[:2] / oid[2:4] / oid
            for path, (_, oid, _) in pointers.items()
        }
        for path, file in files.items():
            if not file.is_file():
                shown = path.decode("utf-8", "replace")
                raise SourceUnavailable(f"LFS has no file for {shown!r} of {what}")
        return [
            replace(pointers[path][0], hash=made)
            for path, made in trees.stored(files).items()
        ]

    def _known(
        self, trees: Trees, tree: str, links: Sequence[Entry]
    ) -> Iterator[Submodule]:
        for module in trees.submodules(tree, links) if links else ():
            if isinstance(module, Submodule):
                yield module
            else:
                shown = module.path.decode("utf-8", "replace")
                self.say(f"Submodule {shown!r} is not in .gitmodules: it stays empty.")

    def _submodule(
        self, module: Submodule, remote: Remote, login: Login, depth: int
    ) -> str:
        what = f"submodule {module.shown} of {self.what}"
        inner = self.source.checked(module.url, what, beside=remote)
        same = inner.server == remote.server
        own = login if same else Login(known_hosts=login.known_hosts)
        return self._assembled(inner, own, module.commit, "", what, depth=depth + 1)

    def _dot_git(self) -> Iterator[bytes]:
        """A repository of this one commit, as a tar stream without an end."""
        commit, branch = self.job.run.commit.hash, self.job.run.commit.branch
        environment = self.environment | {"GIT_ALLOW_PROTOCOL": "file"}
        git = self._in(self.folder / "dot-git", environment)
        self._init(git, len(commit))
        (git.directory / "info/attributes").unlink()
        mirror = f"file://{self.mirrors[0].directory}"
        git.run("fetch", "--quiet", "--depth=1", "--no-tags", "--", mirror, commit)
        try:
            git.run("check-ref-format", f"refs/heads/{branch}")
            git.run("symbolic-ref", "HEAD", f"refs/heads/{branch}")
            git.run("update-ref", f"refs/heads/{branch}", commit)
        except GitFailed:
            git.run("update-ref", "--no-deref", "HEAD", commit)
        trees = Trees(git)
        git.run(*trees.nowhere, "read-tree", commit)
        if self.job.source.sparse_paths:
            whole = trees.of(commit)
            narrow = trees.narrowed(whole, self.job.source.sparse_paths)
            gone = trees.left_out(whole, narrow)
            if gone:
                skip = ("update-index", "--skip-worktree", "-z", "--stdin")
                git.ask(*trees.nowhere, *skip, given=gone, limit=0)
        git.run("config", "core.bare", "false")
        git.run("config", "remote.origin.url", self.remote.url)
        git.run("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
        (git.directory / "FETCH_HEAD").unlink(missing_ok=True)
        (git.directory / "empty").rmdir()
        yield from _packed(git.directory, ".git")


class _NotThere(SourceUnavailable):
    """The server has no such commit, or does not give it to us."""


def _attempts(
    commit: str, branch: str
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What is asked for, one after the other, until the commit is there."""
    yield (f"+{commit}:refs/commits/{commit}",), ("--depth=1",)
    kept = hashlib.sha256(branch.encode("utf-8", "replace")).hexdigest()[:16]
    for depth in _DEPTHS if branch else ():
        yield (f"+refs/heads/{branch}:refs/branches/{kept}",), (f"--depth={depth}",)
    everything = (
        "+refs/heads/*:refs/fetched/heads/*",
        "+refs/tags/*:refs/fetched/tags/*",
    )
    yield everything, (f"--depth={_DEPTHS[-1]}", "--prune")
    # Servers that are nothing but files know no depth.
    yield everything, ("--prune",)


def _has(git: Git, commit: str) -> bool:
    try:
        git.run("cat-file", "-e", f"refs/commits/{commit}^{{tree}}")
    except GitFailed:
        return False
    return True


def _lfs_url(remote: Remote) -> str:
    if remote.protocol in ("http", "https"):
        path = remote.path.rstrip("/").removesuffix(".git")
        return f"{remote.site}{path}.git/info/lfs"
    return remote.url


def _packed(folder: Path, name: str) -> Iterator[bytes]:
    """Everything in *folder* as entries of a tar stream, below *name*."""
    for path in sorted(folder.rglob("*")):
        inside = posixpath.join(name, path.relative_to(folder).as_posix())
        entry = tarfile.TarInfo(inside)
        if path.is_dir():
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            yield entry.tobuf()
            continue
        entry.mode = 0o644
        with path.open("rb") as file:
            entry.size = file.seek(0, io.SEEK_END)
            file.seek(0)
            yield entry.tobuf()
            while part := file.read(_PART):
                yield part
        yield bytes(-entry.size % tarfile.BLOCKSIZE)


@contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    try:
        folder = tempfile.mkdtemp(prefix="source-", dir=scratch)
    except OSError as exc:
        raise SourceUnavailable(
            "the worker has no room for the source code", details=str(exc)
        ) from exc
    try:
        yield Path(folder)
    finally:
        # What cannot be removed now is removed with the rest at the next start.
        remove_tree(Path(folder))
