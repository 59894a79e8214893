"""Source code from a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from launcher.cancel import CancelToken
from launcher.errors import SourceUnavailable
from launcher.tarstream import Archive
from launcher.wire.jobs import Job


Files = Mapping[str, bytes]

_EXECUTABLE, _PLAIN = 0o755, 0o644


class MemorySource:
    """
    Implements `launcher.ports.SourceFetcher`: knows the tree of each commit.

    What begins with ``#!`` is executable.
    """

    def __init__(self, commits: Mapping[str, Files] | None = None) -> None:
        self.commits = dict(commits or {})
        self.fetched: list[str] = []

    @contextmanager
    def fetch(
        self,
        job: Job,
        cancel: CancelToken,
        say: Callable[[str], None] = lambda _: None,
    ) -> Iterator[Iterator[bytes]]:
        commit = job.run.commit
        tree = self.commits.get(commit.hash)
        if tree is None or cancel.cancelled:
            raise SourceUnavailable(
                f"commit {commit.hash[:12]} of branch {commit.branch!r} cannot be"
                f" fetched from {job.stack.repository_path}"
            )
        self.fetched.append(commit.hash)
        archive = Archive()
        for path, content in sorted(tree.items()):
            mode = _EXECUTABLE if content.startswith(b"#!") else _PLAIN
            archive.file(path, content, mode=mode)
        yield iter(archive)
