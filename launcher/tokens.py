"""
What a run proves with who it is, kept fresh while the run goes on.

A token of OpenID Connect is good for an hour, and an apply may take longer.  So a
new one is asked for beside the phases, and put where the run looks for it: into a
file, because the variables of a process that is running cannot be changed.
"""

from __future__ import annotations

import contextlib

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import structlog

from launcher.cancel import CancelToken
from launcher.errors import LauncherError, LeaseLost
from launcher.heartbeat import pausing, waiting, watching
from launcher.journal import Entry
from launcher.model import Claim
from launcher.output.joblog import JobLog
from launcher.ports import Progress, Sandbox
from launcher.threads import helper
from launcher.wire.jobs import Job, Tokens


log = structlog.get_logger()

FILE = "spacelift.oidc"
"""In the workspace's folder; the product's own name."""

_SOONEST, _LATEST = 1, 24 * 3600
"""Seconds between two requests, whatever the control plane says."""
_AGAIN = 30


class FreshTokens:
    """
    The newest tokens of one job, whose log is told to hide them first.

    Those of an earlier life of the launcher, which *entry* knows, are hidden at once.
    """

    def __init__(
        self, claim: Claim, entry: Entry, progress: Progress, job_log: JobLog
    ) -> None:
        self._claim = claim
        self._entry = entry
        self._progress = progress
        self._log = job_log
        self._resumed = entry.past.resumed
        earlier = entry.past.tokens
        for tokens in earlier:
            self._log.hide_at_once(_values(tokens))
        self._tokens = earlier[-1] if earlier else claim.job.tokens

    def added_to(self, job: Job) -> Job:
        """*job* with the tokens that its next phase should have."""
        return msgspec.structs.replace(job, tokens=self._tokens)

    @contextmanager
    def kept(self, sandbox: Sandbox) -> Iterator[None]:
        """
        Keep the file in *sandbox* fresh beside the block.

        Raises:
            EngineError: it could not even be written a first time.
        """
        with contextlib.ExitStack() as beside:
            if self._tokens.oidc and not self._entry.past.sent:
                sandbox.write_file(FILE, self._tokens.oidc.encode())
            if self._tokens.refresh_seconds:
                over = CancelToken()
                beside.enter_context(
                    helper(
                        f"tokens-{self._claim.job.id}",
                        watching(
                            f"tokens-{self._claim.job.id}",
                            lambda: self._keep(sandbox, over),
                        ),
                        lambda: over.cancel("job over"),
                    )
                )
            yield

    def _keep(self, sandbox: Sandbox, over: CancelToken) -> None:
        # How old those of an earlier life are, nobody knows.
        pause = 0 if self._resumed else self._pause
        while not pausing(over, pause):
            try:
                self._refresh(sandbox)
                pause = self._pause
            except LeaseLost:
                return
            except LauncherError as exc:
                log.warning("tokens.not_refreshed", error=str(exc), details=exc.details)
                pause = min(self._pause, _AGAIN)
            except Exception:  # the run goes on with what it has
                log.exception("tokens.refresh_crashed")
                pause = _AGAIN

    @property
    def _pause(self) -> int:
        return min(max(self._tokens.refresh_seconds, _SOONEST), _LATEST)

    def _refresh(self, sandbox: Sandbox) -> None:
        fresh = self._progress.tokens(self._claim)
        # First of all nobody may see them: in this life's log, and in the next one's.
        with waiting():  # for who writes to the log, and may have to wait for room
            self._log.hide_at_once(_values(fresh))
        self._entry.issued(fresh)
        self._tokens = fresh
        if fresh.oidc:
            sandbox.write_file(FILE, fresh.oidc.encode())
        log.info("tokens.refreshed")


def _values(tokens: Tokens) -> tuple[bytes, ...]:
    return tuple(value.encode() for value in (tokens.api, tokens.oidc) if value)
