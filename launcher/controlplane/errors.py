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


class Forbidden(RequestRefused):
    """Who asks is known, and has a role that does not allow it."""

    def __init__(self, name: str, role: str, needed: str) -> None:
        # Without spacectl's word for strangers: signing in again would not help.
        super().__init__(
            f"this needs the role {needed}, and the API key {name!r} is a {role}"
        )


class StoreAway(RequestRefused):
    """The database cannot be reached; asking again later will help."""

    def __init__(self, what: str = "the database") -> None:
        super().__init__(f"{what} cannot be reached now: try again in a moment")


class StoreCollided(StoreAway):
    """Two changes were in each other's way; this one has not happened."""


class StorageAway(StoreAway):
    """Stored workspaces cannot be reached; asking again later will help."""

    def __init__(self) -> None:
        super().__init__("the place of stored workspaces")


class DiskFull(StoreAway):
    """The data directory takes nothing more; asking again later will help."""

    def __init__(self, details: str) -> None:
        RequestRefused.__init__(
            self,
            "the control plane's disk is full: try again later",
            details=details,
        )


class UploadRefused(RequestRefused):
    """An archive is not taken; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CommitUnavailable(LauncherError):
    """The commit a run is for cannot be found; the run fails with this sentence."""


class RuntimeConfigInvalid(CommitUnavailable):
    """What a run is made from cannot be understood; it fails with this sentence."""


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
