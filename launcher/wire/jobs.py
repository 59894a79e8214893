"""
A job: one hand-over of a run to a worker.

These types are frozen and serve as the launcher's nouns, too.  Unknown keys are
ignored and new ones get defaults, so that neighbouring versions understand each
other.  Values that may be secret do not appear in any ``repr``.
"""

from __future__ import annotations

import enum

from typing import Any

import msgspec


RUNTIME_CONFIG = ".spacelift/config.yml"
"""Path in a repository of the file by which it configures its own runs."""
LONGEST_VALUE = 128 << 10
"""Bytes of a variable, its name included: no program can be given a longer one."""
LARGEST_FILE = 2 << 20
"""Bytes of a mounted file."""


class RunType(enum.StrEnum):
    PROPOSED = "PROPOSED"
    TRACKED = "TRACKED"
    TASK = "TASK"
    TESTING = "TESTING"
    DESTROY = "DESTROY"


class RunState(enum.StrEnum):
    """States of a run, spelt as the product spells them."""

    QUEUED = "QUEUED"
    READY = "READY"
    PREPARING = "PREPARING"
    INITIALIZING = "INITIALIZING"
    PLANNING = "PLANNING"
    PENDING_REVIEW = "PENDING_REVIEW"
    UNCONFIRMED = "UNCONFIRMED"
    REPLAN_REQUESTED = "REPLAN_REQUESTED"
    PREPARING_REPLAN = "PREPARING_REPLAN"
    CONFIRMED = "CONFIRMED"
    PREPARING_APPLY = "PREPARING_APPLY"
    APPLYING = "APPLYING"
    PERFORMING = "PERFORMING"
    DESTROYING = "DESTROYING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    DISCARDED = "DISCARDED"
    STOPPED = "STOPPED"
    SKIPPED = "SKIPPED"


class Phase(enum.StrEnum):
    INITIALIZE = "initialize"
    PLAN = "plan"
    APPLY = "apply"
    PERFORM = "perform"
    DESTROY = "destroy"


class Scope(enum.StrEnum):
    """When a variable or file is there: in reading phases, writing ones, or both."""

    ALWAYS = "always"
    READ = "read"
    WRITE = "write"


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    hash: str
    branch: str
    author: str
    message: str
    created_at: int
    """Nanoseconds since 1970, like every time in this module."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: RunType
    state: RunState
    """The state in which the job is handed over: one of the PREPARING ones."""
    created_at: int
    updated_at: int
    triggered_by: str
    commit: Commit
    based_on_local_workspace: bool = False
    changes: tuple[dict[str, Any], ...] = ()
    user_provided_metadata: tuple[str, ...] = ()
    """One string per interaction, oldest first."""
    command: str = ""
    """What a task runs; empty for every other type."""
    targets: tuple[str, ...] = ()
    """Addresses to which a replan is limited; empty means everything."""


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    slug: str
    name: str
    account_name: str
    repository_path: str
    """``owner/name`` as people know it; `Source.url` is what is fetched."""
    branch: str
    space: str = "root"
    project_root: str = ""
    labels: tuple[str, ...] = ()
    auto_deploy: bool = False
    local_preview_enabled: bool = False


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where the code comes from; `Run.commit` says which version of it."""

    url: str
    checkout: bool = False
    """With submodules, LFS files, and a ``.git`` folder of the one commit."""
    sparse_paths: tuple[str, ...] = ()
    """Files and folders to fetch, relative to the root and literal; none means all."""
    username: str = ""
    password: str = ""
    """For http and https; both are for the host of `url` only."""
    ssh_key: str = ""
    """A private key without a passphrase, in PEM or OpenSSH's own form."""
    known_hosts: tuple[str, ...] = ()
    """Lines of OpenSSH's ``known_hosts``; a host that is in none is not talked to."""

    def __repr__(self) -> str:
        return f"Source(url=…, checkout={self.checkout}, …)"


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    """The tool a stack is written for, by name, and its options."""

    vendor: str
    typed_config: dict[str, Any] = {}
    tool_version: str = ""


class Hooks(msgspec.Struct, frozen=True, kw_only=True):
    """Commands around the phases, already in the order in which they run."""

    before_init: tuple[str, ...] = ()
    after_init: tuple[str, ...] = ()
    before_plan: tuple[str, ...] = ()
    after_plan: tuple[str, ...] = ()
    before_apply: tuple[str, ...] = ()
    after_apply: tuple[str, ...] = ()
    before_perform: tuple[str, ...] = ()
    after_perform: tuple[str, ...] = ()
    before_destroy: tuple[str, ...] = ()
    after_destroy: tuple[str, ...] = ()
    after_run: tuple[str, ...] = ()


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    value: str
    secret: bool = False
    scope: Scope = Scope.ALWAYS

    def __repr__(self) -> str:
        return f"Variable(name={self.name!r}, value=…, secret={self.secret})"


class MountedFile(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    """Relative to the workspace, never leaving it."""
    content: bytes
    secret: bool = False

    def __repr__(self) -> str:
        return f"MountedFile(path={self.path!r}, content=…, secret={self.secret})"


class RegistryLogin(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher, and never the run, tells an image registry."""

    registry: str
    """Host, with its port if it has one, and perhaps a path: ``ghcr.io/acme``."""
    username: str
    password: str

    def __repr__(self) -> str:
        return f"RegistryLogin(registry={self.registry!r}, …)"


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a run proves with who it is; new ones are issued on request."""

    api: str = ""
    """For the GraphQL API: good for the job's stack, while the job is held."""
    oidc: str = ""
    """A JSON web token that clouds exchange for credentials of theirs."""
    graphql_endpoint: str = ""
    """URL of the API that the first one is for."""
    refresh_seconds: int = 0
    """When to ask for new ones; 0: there are none to be had."""

    def __repr__(self) -> str:
        return f"Tokens(…, refresh_seconds={self.refresh_seconds})"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    phases: tuple[Phase, ...]
    run: Run
    stack: Stack
    source: Source
    vendor: Vendor
    docker_image: str = ""
    """Empty means: the launcher's default for the vendor."""
    hooks: Hooks = Hooks()
    environment: tuple[Variable, ...] = ()
    """Later entries win over earlier ones of the same name."""
    mounted_files: tuple[MountedFile, ...] = ()
    registry_logins: tuple[RegistryLogin, ...] = ()
    """For the image of this job; they come before what the machine has."""
    refresh_state: bool = True
    skip_init: bool = False
    restores_workspace: bool = False
    """True when an earlier job of the run stored the workspace to start from."""
    image_digest: str = ""
    """What the run's earlier job ran; this one runs the same.  Empty in a first job."""
    tokens: Tokens = Tokens()
    runtime_config_sha256: str | None = None
    """
    Of the repository's ``.spacelift/config.yml``, from which this job was made; empty
    when there is no such file.  None when none was looked at.
    """
    notes: tuple[str, ...] = ()
    """Sentences for the run's owner, who reads them in the log."""
