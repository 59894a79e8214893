"""
Everything the project raises on purpose.

Each error has two audiences.  ``str(error)`` is one public sentence: it may be
shown to the owner of a run and never holds a secret, an address of the inner
network or a traceback.  ``details`` is for the operator and goes to the
daemon's own log only.

A phase that exits non-zero has *not* raised: that is an ordinary result (see
`launcher.model.Exit`).  Exceptions are for the cases in which the launcher
could not do its own work.
"""

from __future__ import annotations


class LauncherError(Exception):
    """Base of the tree; caught at the job, slot and command boundaries only."""

    code = "internal_error"
    """Stable and machine-readable, for runs that end with this error; one of those in
    `launcher.failures`."""

    exit_code = 1
    """Exit code of a command that ends with this error; unique for each class
    that can end a command, listed in ``docs/exit-codes.md``."""

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class ConfigurationError(LauncherError):
    """A setting is missing, malformed, unknown, or contradicts another one."""

    exit_code = 2


class PolicyUnusable(LauncherError):
    """The initialization policy cannot be loaded, so nothing may run."""

    exit_code = 3


class EngineUnusable(LauncherError):
    """The container engine cannot be reached or is too old, found at start."""

    exit_code = 4


class StateDirectoryUnusable(LauncherError):
    """The state directory cannot be used, or another launcher is using it."""

    exit_code = 5


class CredentialsRefused(LauncherError):
    """Control plane and launcher do not accept each other; retrying cannot help."""

    code = "credentials_refused"
    exit_code = 6


class TokenUnusable(LauncherError):
    """SPACELIFT_TOKEN is not a worker pool token, or not a whole one."""

    exit_code = 9


class PoolKeyUnusable(LauncherError):
    """A pool's key is missing, malformed, too short, or of the wrong kind."""

    exit_code = 10


class PoolKeyMismatch(LauncherError):
    """The pool's private key is not the one that the token was made for."""

    exit_code = 11


class CertificateExpired(CredentialsRefused):
    """The pool's certificate is not valid any more."""

    exit_code = 12


class ClockWrong(CredentialsRefused):
    """This machine and the control plane do not agree about the time."""

    exit_code = 13


class ServerNotTrusted(CredentialsRefused):
    """Whoever answers is not the control plane that the token was made by."""

    exit_code = 14


class VersionRefused(CredentialsRefused):
    """The control plane does not speak this launcher's version of the protocol."""

    exit_code = 15


class AddressUnavailable(LauncherError):
    """Somebody else listens where we were told to, or the address is not there yet."""

    exit_code = 7


class NoLauncherAnswers(LauncherError):
    """A command found no launcher to talk to on this machine, or was refused."""


class StoreUnusable(LauncherError):
    """The control plane's database cannot be opened or migrated."""

    exit_code = 8


class KeysUnusable(ConfigurationError):
    """The keys that runs are signed with or verified by cannot be used."""


class ReplayCacheUnusable(LauncherError):
    """Nobody can tell whether a signature was used before, so it does not count."""


class JobRejected(LauncherError):
    """Admission said no; the classes below say why.  Shown to the run's owner."""


class ImageNotAllowed(JobRejected):
    """The machine's owner does not allow that image."""

    code = "image_not_allowed"


class PolicyDenied(JobRejected):
    """The machine owner's policy says no."""

    code = "policy_denied"


class PolicyUndecided(JobRejected):
    """The machine owner's policy gave no usable answer, which is a no."""

    code = "policy_failed"


class JobInvalid(LauncherError):
    """The job asks for something that cannot be done, such as an unknown vendor."""

    code = "invalid_job"


class SourceUnavailable(LauncherError):
    """The repository or the commit of a job cannot be fetched."""

    code = "source_unavailable"


class ImageUnavailable(LauncherError):
    """The runner image cannot be found or pulled."""

    code = "image_unavailable"


class ImageAccessDenied(ImageUnavailable):
    """The registry does not let us have the image; another login might help."""

    code = "image_access_denied"


class ImageNotFound(ImageUnavailable):
    """The registry has no such image."""

    code = "image_not_found"


class RegistryRateLimited(ImageUnavailable):
    """The registry has had enough of us for a while."""

    code = "registry_rate_limited"


class RegistryUnreachable(ImageUnavailable):
    """The registry does not answer, or fails."""

    code = "registry_unreachable"


class RegistryNotTrusted(ImageUnavailable):
    """The engine does not believe that the registry is who it should be."""

    code = "registry_not_trusted"


class ImageWrongPlatform(ImageUnavailable):
    """The image is for another operating system or processor."""

    code = "image_wrong_platform"


class ImagePullTimeout(ImageUnavailable):
    """The image did not arrive in time."""

    code = "image_pull_timeout"


class DiskFull(ImageUnavailable):
    """The engine has no room for the image."""

    code = "disk_full"


class RescueUnusable(LauncherError):
    """No state was rescued from that run, or it cannot be read."""


class JournalUnusable(LauncherError):
    """What must not be forgotten cannot be written down, so it is not done."""

    code = "journal_failed"


class WorkspaceUnusable(LauncherError):
    """A workspace cannot be stored, or the stored one cannot be trusted."""

    code = "workspace_unusable"


class RuntimeConfigChanged(LauncherError):
    """The repository configures its runs in another way than the job says."""

    code = "runtime_config_changed"


class SealBroken(LauncherError):
    """What was sealed to the pool or signed by it is not what it claims to be."""

    code = "seal_broken"


class EngineError(LauncherError):
    """The container engine failed in the middle of a job."""

    code = "engine_failed"


class EngineTimeout(EngineError):
    """The container engine does not answer, or has too much to do."""

    code = "engine_timeout"


class CreateTimeout(EngineTimeout):
    """Volumes and container were not made and filled in time."""

    code = "create_timeout"


class StartTimeout(EngineTimeout):
    """The container was not started in time."""

    code = "start_timeout"


class StopTimeout(EngineTimeout):
    """The container was not ended in time; it may still run."""

    code = "stop_timeout"


class PolicyError(LauncherError):
    """An evaluation failed or timed out; whoever sees it must deny."""


class ControlPlaneUnavailable(LauncherError):
    """The control plane did not answer; the call may be repeated."""

    code = "control_plane_unavailable"


class ControlPlaneRefused(LauncherError):
    """The control plane answered and will answer the same again."""

    code = "control_plane_refused"


class Cycled(LauncherError):
    """The control plane wants this launcher to end once idle, and to come back anew."""


class LeaseLost(LauncherError):
    """The fencing token is stale: stop, and stay silent from now on."""
