"""
A policy that follows its file.

Looking at the file costs microseconds, so it is looked at before every evaluation
instead of by a thread: whoever has been told that the new version is there is judged
by it.  A new version that cannot be used changes nothing but `trouble`.
"""

from __future__ import annotations

import threading

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import structlog

from launcher.adapters.policies.sources import fingerprint
from launcher.errors import PolicyUnusable
from launcher.policy import Evaluation, PolicyEngine


log = structlog.get_logger()


class Loaded(PolicyEngine, Protocol):
    """A policy that can be described, and given up."""

    @property
    def facts(self) -> Mapping[str, object]: ...

    def close(self) -> None: ...


class ReloadingPolicy:
    """The policy in *path* as it is now, or as it last was when it could be used."""

    def __init__(self, path: Path, load: Callable[[], Loaded]) -> None:
        """
        Load the policy by *load*.

        Raises:
            PolicyUnusable: there is no last good version to fall back on.
        """
        self._path = path
        self._load = load
        self._lock = threading.Lock()
        self._seen = fingerprint(path)
        self._current = load()
        self._trouble: str | None = None
        log.info("policy.loaded", path=str(path), **self._current.facts)

    def evaluate(self, document: Mapping[str, Any], /) -> Evaluation:
        self._keep_up()
        return self._current.evaluate(document)

    def trouble(self) -> str | None:
        """Why the version on disk is not the one in use; None when it is."""
        self._keep_up()
        return self._trouble

    def _keep_up(self) -> None:
        if fingerprint(self._path) != self._seen:
            self.reload(only_if_changed=True)

    def reload(self, *, only_if_changed: bool = False) -> None:
        """Load the policy anew, and keep the old one if that fails."""
        with self._lock:
            seen = fingerprint(self._path)
            if only_if_changed and seen == self._seen:
                return  # somebody else was faster
            try:
                current = self._load()
            except PolicyUnusable as exc:
                self._fail(str(exc), exc.details)
            except Exception as exc:  # a reload must not end a run
                log.exception("policy.reload_crashed")
                self._fail(type(exc).__name__, "")
            else:
                before, self._current = self._current, current
                before.close()
                self._trouble = None
                log.info("policy.reloaded", path=str(self._path), **current.facts)
            finally:
                # Last, so that whoever notices the change waits for its outcome.
                self._seen = seen

    def _fail(self, error: str, details: str) -> None:
        self._trouble = f"{error}; the last good version stays in use"
        log.error(
            "policy.reload_failed",
            path=str(self._path),
            error=error,
            details=details,
            consequence="the last good version stays in use",
        )
