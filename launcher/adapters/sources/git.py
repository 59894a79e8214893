"""
The tree of one commit, by way of git.

What this module is built around:

- The repository and its URL are untrusted.  Nothing is checked out: `git archive`
  reads the tree from the object store, so no hook, filter, submodule or link of
  the repository acts on the launcher's host.
- ``ext::``, ``fd::`` and friends run commands; GIT_ALLOW_PROTOCOL shuts them out,
  and so does the list of protocols the operator allows.
- Servers that speak protocol version 2 hand out any commit by its hash; others
  hand out branches only, so the branch is the second attempt.
- `git archive` obeys ``export-ignore`` and ``export-subst`` of the repository,
  unless ``info/attributes`` says otherwise, which is stronger.
- git passes URLs on to its helpers as arguments, which everybody can read: so a
  password in one travels by the environment, through a credential helper.
- What git starts outlives it: so it is ended as a group.  What server and
  repository make it complain of has no bound, and it waits until that is read.
- What a local repository is read with knows no configuration but that in files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.threads import spawn
from launcher.wire.jobs import Job


_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SCP_LIKE = re.compile(r"[\w.-]+@[\w.-]+:(?!//)")
_CHUNK = 1 << 16
_SAID = 2000  # bytes of complaints that are kept
_CONFIGURATION = """\
[safe]
\tdirectory = *
[gc]
\tauto = 0
"""
_ATTRIBUTES = "* -export-ignore -export-subst\n"
# A connection that is kept for later would keep us waiting for its end.
_SSH = "ssh -oBatchMode=yes -oControlMaster=no -oControlPath=none"
_HELPER = (
    "!printf 'username=%s\\npassword=%s\\n'"
    ' "$SPACELIFT_GIT_USERNAME" "$SPACELIFT_GIT_PASSWORD"; :'
)


class GitSource:
    """Implements `launcher.ports.SourceFetcher`."""

    def __init__(
        self,
        scratch: Path,
        *,
        protocols: Sequence[str],
        environment: Mapping[str, str],
        timeout_seconds: float = 300,
    ) -> None:
        self._scratch = scratch
        self._inherited = dict(environment)
        self._protocols = tuple(protocols)
        self._timeout = timeout_seconds

    @contextmanager
    def fetch(self, job: Job, cancel: CancelToken) -> Iterator[Iterator[bytes]]:
        commit = job.run.commit.hash
        if not _HASH.fullmatch(commit):
            raise SourceUnavailable(f"{commit!r} is not the hash of a commit")
        self._check_protocol(job)
        with _folder(self._scratch) as folder:
            url, credentials = _without_password(job.source.url)
            repository = _Repository(
                folder,
                self._environment(folder) | credentials,
                timeout_seconds=self._timeout,
            )
            self._fetch_commit(repository, url, job, cancel)
            with repository.archive(commit, cancel) as tree:
                yield tree

    def _check_protocol(self, job: Job) -> None:
        url = job.source.url
        try:
            protocol = "ssh" if _SCP_LIKE.match(url) else urlsplit(url).scheme
        except ValueError:
            protocol = url = ""
        if not url or url.startswith("-"):
            raise SourceUnavailable(
                f"stack {job.stack.slug!r} names no repository to fetch"
            )
        if protocol not in self._protocols:
            raise SourceUnavailable(
                f"repositories are not fetched by {protocol or 'a local path'!r} on"
                " this worker",
                details=f"SPACELIFT_LAUNCHER_GIT_PROTOCOLS is {self._protocols}",
            )

    def _fetch_commit(
        self, repository: _Repository, url: str, job: Job, cancel: CancelToken
    ) -> None:
        commit, branch = job.run.commit.hash, job.run.commit.branch
        fetch = ("fetch", "--quiet", "--no-tags")
        try:
            repository.make(commit, cancel)
            repository.git([*fetch, "--depth=1", "--", url, commit], cancel)
        except _GitFailed as by_hash:
            try:
                repository.git([*fetch, "--", url, f"refs/heads/{branch}"], cancel)
                repository.git(["cat-file", "-e", f"{commit}^{{tree}}"], cancel)
            except _GitFailed as by_branch:
                if _is_full(by_hash, by_branch):
                    raise SourceUnavailable(
                        "the worker's disk is full", details=str(by_hash)
                    ) from by_branch
                raise SourceUnavailable(
                    f"commit {commit[:12]} of branch {branch!r} cannot be fetched from"
                    f" {job.stack.repository_path}",
                    details=f"{by_hash}; {by_branch}",
                ) from by_branch

    def _environment(self, folder: Path) -> dict[str, str]:
        """Nothing of the host's git configuration, and nobody to ask."""
        return self._inherited | {
            "GIT_ALLOW_PROTOCOL": ":".join(self._protocols),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(folder / "configuration"),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": _SSH,
            "HOME": str(self._scratch),
            "LC_ALL": "C",
        }


class _Repository:
    """A bare repository in *folder*, for as long as one fetch takes."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, timeout_seconds: float
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._timeout = timeout_seconds

    def make(self, commit: str, cancel: CancelToken) -> None:
        kind = "sha1" if len(commit) == 40 else "sha256"
        self._write("configuration", _CONFIGURATION)
        self.git(["init", "--quiet", "--bare", f"--object-format={kind}"], cancel)
        self._write("repository/info/attributes", _ATTRIBUTES)

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "ascii")
        except OSError as exc:
            raise _GitFailed(str(exc)) from exc

    def git(self, arguments: Sequence[str], cancel: CancelToken) -> None:
        """Run git to its end, or to that of our patience."""
        with self._running(arguments, cancel) as running:
            running.finish(self._timeout)

    @contextmanager
    def archive(self, commit: str, cancel: CancelToken) -> Iterator[Iterator[bytes]]:
        arguments = ["archive", "--format=tar", commit]
        with self._running(arguments, cancel, stdout=subprocess.PIPE) as running:
            yield running.chunks(self._timeout)

    @contextmanager
    def _running(
        self,
        arguments: Sequence[str],
        cancel: CancelToken,
        stdout: int = subprocess.DEVNULL,
    ) -> Iterator[_Running]:
        command = ["git", "--git-dir", str(self._folder / "repository"), *arguments]
        try:
            process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as exc:
            raise _GitFailed(f"git cannot be started: {exc}") from exc
        with process:
            running = _Running(process)
            try:
                with cancel.calling(running.kill):
                    yield running
            finally:
                running.kill()


class _Running:
    """A git process with all its children."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._said = b""
        self._listener = spawn("git-complaints", self._listen)

    def kill(self) -> None:
        # Its number is nobody else's as long as nobody has asked for its end.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def finish(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired as exc:
            self.kill()
            raise _GitFailed(f"no end after {seconds} s") from exc
        finally:
            self._listener.join()
        if self._process.returncode != 0:
            raise _GitFailed(self._said.decode("utf-8", "replace").strip())

    def chunks(self, seconds: float) -> Iterator[bytes]:
        stream = self._process.stdout
        while stream is not None and (part := stream.read(_CHUNK)):
            yield part
        try:
            self.finish(seconds)
        except _GitFailed as exc:
            raise SourceUnavailable(
                "the commit cannot be read from the repository", details=str(exc)
            ) from exc

    def _listen(self) -> None:
        stream = self._process.stderr
        while stream is not None and (part := stream.read(_CHUNK)):
            self._said = (self._said + part)[-_SAID:]


class _GitFailed(Exception):
    """What git said; for the operator."""


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
        shutil.rmtree(folder, ignore_errors=True)


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """Part the URL from the credentials in it, which become variables for git."""
    parts = urlsplit(url)
    who, at, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not at:
        return url, {}
    name, _, password = who.partition(":")
    return urlunsplit(parts._replace(netloc=host)), {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"credential.{parts.scheme}://{host}.helper",
        "GIT_CONFIG_VALUE_0": _HELPER,
        "SPACELIFT_GIT_USERNAME": unquote(name),
        "SPACELIFT_GIT_PASSWORD": unquote(password),
    }


def _is_full(*failures: _GitFailed) -> bool:
    return any("no space left on device" in str(failed).lower() for failed in failures)
