"""
Why the control plane refuses a request.

The sentence is for whoever asked: a user of spacectl or a launcher.
"""

from __future__ import annotations

from launcher.errors import LauncherError
from launcher.wire.messages import ErrorCode


class RequestRefused(LauncherError):
    """What a user asked for cannot be done; asking again will not help."""


class NotFound(RequestRefused):
    """What a user named does not exist."""


class Unauthorized(RequestRefused):
    """Nobody knows who is asking.  spacectl looks for this very word."""

    def __init__(self) -> None:
        super().__init__("unauthorized")


class UploadRefused(RequestRefused):
    """An archive is not taken; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CommitUnavailable(LauncherError):
    """The commit a run is for cannot be found; the run fails with this sentence."""


class ShuttingDown(LauncherError):
    """The server is leaving; what was interrupted is done after the next start."""


class WorkerRefused(LauncherError):
    """A launcher's request is refused; `error_code` tells it what to do."""

    def __init__(
        self, code: ErrorCode, message: str, *, next_offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.error_code = code
        self.next_offset = next_offset
