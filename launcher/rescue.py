"""
What a tool leaves behind that its owner will miss: a state it could not store.

Terraform and OpenTofu write ``errored.tfstate`` when the backend took the new state
no more, and then it is the only record of what they changed.  It holds secrets, so it
is sealed to the pool's key and kept on the worker's disk; the owner of the run learns
that it is there, and how to get it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re

from pathlib import Path

import structlog

from launcher import private_files
from launcher.errors import LauncherError, RescueUnusable, WorkspaceUnusable
from launcher.output.joblog import JobLog
from launcher.ports import Sandbox
from launcher.sealing import box
from launcher.sealing.keys import PoolKey, PoolPublicKey


log = structlog.get_logger()

STATE = "errored.tfstate"
LOCK = ".terraform.tfstate.lock.info"

_LARGEST = 64 << 20
_LARGEST_LOCK = 1 << 16
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LOCK_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


class Rescued:
    """States that were rescued, one for each run, in *folder*."""

    def __init__(self, folder: Path, pool: PoolPublicKey) -> None:
        self._folder = folder
        self._pool = pool

    def keep(self, run: str, content: bytes) -> Path:
        """
        Seal *content* as the state of *run*; the last one counts.

        Raises:
            OSError: the disk does not take it.
        """
        path = place(self._folder, run)
        for folder in (self._folder, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private_files.write(
            path, box.seal(content, purpose=_purpose(run), to=self._pool)
        )
        return path


def place(folder: Path, run: str) -> Path:
    """Where the state of *run* is kept below *folder*."""
    safe = run if _SAFE.fullmatch(run) else hashlib.sha256(run.encode()).hexdigest()
    return folder / safe / f"{STATE}.sealed"


def opened(folder: Path, run: str, key: PoolKey) -> bytes:
    """
    The state of *run* that was rescued into *folder*.

    Raises:
        RescueUnusable: there is none, or it cannot be read.
        SealBroken: it was sealed for another pool or run, or was changed since.
    """
    path = place(folder, run)
    try:
        sealed = path.read_bytes()
    except OSError as exc:
        raise RescueUnusable(
            f"{path} cannot be read: {os.strerror(exc.errno or 0)}"
        ) from exc
    return box.opened(sealed, purpose=_purpose(run), key=key)


def rescue(
    rescued: Rescued, run: str, directory: str, sandbox: Sandbox, job_log: JobLog
) -> None:
    """Look in *directory* for what a failed tool left, keep it and say so."""
    try:
        state = sandbox.read_file(f"{directory}/{STATE}", limit=_LARGEST)
    except WorkspaceUnusable:
        job_log.say(
            f"The tool left an {STATE}, which was not rescued: it is no regular file,"
            f" or larger than {_LARGEST} bytes."
        )
    except LauncherError as exc:
        log.warning("state.not_looked_for", error=str(exc), details=exc.details)
    else:
        if state is not None:
            _keep(rescued, run, state, job_log)
    if lock := _lock_id(directory, sandbox):
        job_log.say(
            f"The tool left a lock on the state, with the id {lock}; once nobody works"
            f" on the stack, `force-unlock {lock}` removes it."
        )


def _keep(rescued: Rescued, run: str, state: bytes, job_log: JobLog) -> None:
    left = f"The tool could not store its state and left an {STATE} of"
    try:
        path = rescued.keep(run, state)
    except OSError as exc:
        log.exception("state.not_rescued")
        job_log.say(
            f"{left} {len(state)} bytes, which could not be rescued: {exc.strerror}."
        )
        return
    log.warning("state.rescued", path=str(path), bytes=len(state))
    job_log.say(
        f"{left} {len(state)} bytes. It is kept, sealed, on the worker; its operator"
        f" opens it with `spacelift-launcher rescued open {run}`."
    )


def _lock_id(directory: str, sandbox: Sandbox) -> str:
    """The id in a lock's file, if it looks like one: the job could write anything."""
    try:
        content = sandbox.read_file(f"{directory}/{LOCK}", limit=_LARGEST_LOCK)
        found = str(json.loads(content)["ID"]) if content else ""
    except (LauncherError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return found if _LOCK_ID.fullmatch(found) else ""


def _purpose(run: str) -> str:
    return f"rescued {STATE} of run {run}"
