"""
The tables, and the records their rows become.

Times are nanoseconds since 1970.  Enumerations are stored by value.  What is
secret is sealed before it gets here (see `launcher.controlplane.keys`).
"""

from __future__ import annotations

import enum

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from launcher.controlplane.roles import Role
from launcher.wire.jobs import RunState, RunType
from launcher.wire.messages import NextStep, Verdict


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class JobKind(enum.StrEnum):
    PLAN = "plan"
    """Initialize and plan; also apply, when the run deploys by itself."""
    APPLY = "apply"
    """Apply what another job has planned."""
    TASK = "task"
    """Run a command, after initializing unless the task says otherwise."""
    TESTING = "testing"
    """Initialize, plan, apply, and then destroy whatever came of it."""
    DESTROY = "destroy"
    """Destroy what another job has planned to destroy."""


class JobState(enum.StrEnum):
    OPEN = "open"
    CLAIMED = "claimed"
    SETTLED = "settled"
    LOST = "lost"
    """The lease ran out: the token is stale."""
    WITHDRAWN = "withdrawn"
    """The run ended before anybody claimed the job."""


def _enum(values: type[enum.StrEnum]) -> sa.Enum:
    return sa.Enum(
        values,
        native_enum=False,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )


installation = sa.Table(
    "installation",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key_mark", sa.LargeBinary, nullable=False),
    sa.Column("account", sa.String(255), nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("secret_hash", sa.String(255), nullable=False),
    sa.Column("generation", sa.String(26), nullable=False),
    sa.Column("role", _enum(Role), nullable=False),
)

pools = sa.Table(
    "pools",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("configured", sa.Boolean, nullable=False),
    sa.Column("drift_limit", sa.Integer),
    sa.Column("generation", sa.String(26)),
    sa.Column("public_key", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column(
        "pool",
        sa.ForeignKey("pools.name", ondelete="CASCADE"),
        nullable=False,
    ),
    sa.Column("instance", sa.String(255), nullable=False),
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("version", sa.String(255), nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("registered_at", sa.BigInteger, nullable=False),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    sa.Column("drained", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("cycled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.UniqueConstraint("pool", "instance", "slot"),
)

stacks = sa.Table(
    "stacks",
    metadata,
    sa.Column("slug", sa.String(255), primary_key=True),
    sa.Column("pool", sa.String(255), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("blocker", sa.String(26)),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("removed_at", sa.BigInteger),
    sa.Column("locked_by", sa.String(255)),
    sa.Column("lock_note", sa.Text),
    sa.Column("disabled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("destroyer", sa.String(26)),
    sa.Column("pinned_commit", sa.JSON(none_as_null=True)),
    sa.Column("pinned_by", sa.String(255)),
)

drift_schedules = sa.Table(
    "drift_schedules",
    metadata,
    sa.Column("stack", sa.String(255), primary_key=True),
    sa.Column("schedule", sa.Text, nullable=False),
    sa.Column("looked_at", sa.BigInteger, nullable=False),
)
stack_config = sa.Table(
    "stack_config",
    metadata,
    sa.Column("stack", sa.ForeignKey("stacks.slug"), primary_key=True),
    sa.Column("name", sa.String(1024), primary_key=True),
    sa.Column("file", sa.Boolean, primary_key=True),
    sa.Column("secret", sa.Boolean, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

stack_outputs = sa.Table(
    "stack_outputs",
    metadata,
    sa.Column("stack", sa.ForeignKey("stacks.slug"), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("changed_by", sa.String(26), nullable=False),
    sa.Column("mark", sa.LargeBinary, nullable=False),
    sa.Column("sensitive", sa.Boolean, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
)

resources = sa.Table(
    "resources",
    metadata,
    sa.Column("stack", sa.ForeignKey("stacks.slug"), primary_key=True),
    sa.Column("address", sa.String(1024), primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("creator", sa.String(26)),
    sa.Column("updater", sa.String(26)),
)

revisions = sa.Table(
    "revisions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("stack", sa.ForeignKey("stacks.slug"), nullable=False, index=True),
    sa.Column("mark", sa.LargeBinary, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(26), nullable=False, unique=True),
    sa.Column("stack", sa.ForeignKey("stacks.slug"), nullable=False),
    sa.Column("type", _enum(RunType), nullable=False),
    sa.Column("state", _enum(RunState), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("triggered_by", sa.String(255), nullable=False),
    sa.Column("requested_sha", sa.String(255), nullable=False),
    sa.Column("commit_hash", sa.String(64)),
    sa.Column("commit_branch", sa.Text, nullable=False),
    sa.Column("commit_author", sa.Text, nullable=False),
    sa.Column("commit_message", sa.Text, nullable=False),
    sa.Column("commit_at", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.Integer),
    sa.Column("job", sa.String(26)),
    sa.Column("stop_reason", sa.Text),
    sa.Column("stop_requested_by", sa.String(255)),
    sa.Column("unreachable_since", sa.BigInteger),
    sa.Column("added", sa.Integer),
    sa.Column("changed", sa.Integer),
    sa.Column("deleted", sa.Integer),
    sa.Column("resources", sa.Integer),
    sa.Column("command", sa.Text, nullable=False, server_default=""),
    sa.Column("skip_init", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("targets", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("runtime_config", sa.LargeBinary),
    sa.Column("prioritized", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("drift", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("local_workspace", sa.String(26)),
    sa.Column("overrides", sa.LargeBinary),
    sa.Column("inputs", sa.LargeBinary),
    sa.Column("needs_approval", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("flags", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("denials", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("warnings", sa.JSON, nullable=False, server_default="[]"),
    sa.Index("ix_runs_stack_type_number", "stack", "type", "number"),
    sa.Index("ix_runs_state", "state"),
    sqlite_autoincrement=True,
)

run_metadata = sa.Table(
    "run_metadata",
    metadata,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

runtime_configs = sa.Table(
    "runtime_configs",
    metadata,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)

transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("state", _enum(RunState), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("username", sa.String(255)),
    sa.Column("note", sa.Text),
    sa.Column("job", sa.String(26)),
    sa.Column("log_start", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("run", sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("kind", _enum(JobKind), nullable=False),
    sa.Column("state", _enum(JobState), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("pool", sa.String(255)),
    sa.Column("worker", sa.String(26)),
    sa.Column("claim", sa.String(255)),
    sa.Column("token", sa.String(64)),
    sa.Column("claimed_at", sa.BigInteger),
    sa.Column("log_length", sa.BigInteger, nullable=False),
    sa.Column("image_digest", sa.String(255), nullable=False),
    sa.Column("plan", sa.LargeBinary),
    sa.Column("next", _enum(NextStep)),
    sa.Column("settled_at", sa.BigInteger),
    sa.Column("verdict", _enum(Verdict)),
    sa.Column("settlement", sa.LargeBinary),
    sa.Index("ix_jobs_state", "state"),
)

log_chunks = sa.Table(
    "log_chunks",
    metadata,
    sa.Column("job", sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("start", sa.BigInteger, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("unpacked", sa.Integer),
)
"""
Where `unpacked` is a number, `data` is one zstd frame of so many bytes of log;
where it is not, `data` is the log itself.
"""

late_reports = sa.Table(
    "late_reports",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job", sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Column("settlement", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

local_workspaces = sa.Table(
    "local_workspaces",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("stack", sa.ForeignKey("stacks.slug"), nullable=False),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("token_hash", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger),
    sa.Column("sha256", sa.String(64)),
    sa.Column("used", sa.Boolean, nullable=False, server_default=sa.false()),
)

reviews = sa.Table(
    "reviews",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("run", sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("author", sa.String(255), nullable=False),
    sa.Column("approves", sa.Boolean, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("state", _enum(RunState), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

policy_samples = sa.Table(
    "policy_samples",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("policy", sa.String(255), nullable=False, index=True),
    sa.Column("run", sa.String(26), index=True),
    sa.Column("outcome", sa.String(32), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)

run_dependencies = sa.Table(
    "run_dependencies",
    metadata,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("upstream", sa.Boolean, primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("outputs", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("always", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("status", sa.String(32)),
    sa.Column("changed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("ix_run_dependencies_name", "name"),
)

stack_dependencies = sa.Table(
    "stack_dependencies",
    metadata,
    sa.Column("stack", sa.ForeignKey("stacks.slug"), primary_key=True),
    sa.Column("upstream", sa.String(255), primary_key=True, index=True),
)

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("allow_local", sa.Boolean, nullable=False),
    sa.Column("mark", sa.LargeBinary, nullable=False),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("webhook", sa.ForeignKey("webhooks.name"), nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(26), nullable=False, unique=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("resource_type", sa.String(32), nullable=False),
    sa.Column("resource", sa.String(255)),
    sa.Column("related_type", sa.String(32)),
    sa.Column("related", sa.String(255)),
    sa.Column("body", sa.Text),
    sqlite_autoincrement=True,
)

workspaces = sa.Table(
    "workspaces",
    metadata,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("job", sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("generation", sa.String(26), nullable=False),
    sa.Column("file", sa.String(255), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("stored_at", sa.BigInteger, nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    # No reference: a renewal must not wait for who is changing the job.
    sa.Column("job", sa.String(26), primary_key=True),
    sa.Column("renewals", sa.BigInteger, nullable=False),
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("job", sa.String(26), primary_key=True),
    sa.Column("identity", sa.String(64), nullable=False),
    sa.Column("file", sa.String(255), nullable=False),
    sa.Column("external", sa.Text, nullable=False),
    sa.Column("begun_at", sa.BigInteger, nullable=False),
)

removed_logs = sa.Table(
    "removed_logs",
    metadata,
    sa.Column("job", sa.String(26), primary_key=True),
    sa.Column("removed_at", sa.BigInteger, nullable=False),
    sa.Column("kept_days", sa.Integer, nullable=False),
)

used_signatures = sa.Table(
    "used_signatures",
    metadata,
    sa.Column("mark", sa.LargeBinary(32), primary_key=True),
    sa.Column("until", sa.BigInteger, nullable=False, index=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    number: int
    id: str
    stack: str
    type: RunType
    state: RunState
    version: int
    created_at: int
    updated_at: int
    triggered_by: str
    requested_sha: str
    commit_hash: str | None
    """None until the commit was looked up."""
    commit_branch: str
    commit_author: str
    commit_message: str
    commit_at: int
    revision: int | None
    """The stack as the run sees it; pinned when its first job is claimed."""
    job: str | None
    """The newest job."""
    stop_reason: str | None
    stop_requested_by: str | None
    unreachable_since: int | None
    added: int | None
    """How many resources the plan would add; None until there is a plan."""
    changed: int | None
    deleted: int | None
    resources: int | None
    """How many resources the plan speaks of."""
    command: str
    """What a task runs."""
    skip_init: bool
    targets: list[str]
    """Addresses that the newest replan is limited to."""
    runtime_config: bytes | None = field(repr=False)
    """What the run was triggered with, sealed, for those who try it again."""
    """YAML for this run only, as its trigger gave it."""
    prioritized: bool
    drift: bool
    """Whether it only looks for what has drifted."""
    local_workspace: str | None
    """The upload it takes its code from."""
    overrides: bytes | None = field(repr=False)
    """Variables for this run only, sealed."""
    inputs: bytes | None = field(repr=False)
    """Outputs of other stacks, as they were when its first job was claimed; sealed."""
    needs_approval: bool
    """Whether an approval policy holds it back."""
    flags: list[str]
    """What policies have noted for other policies."""
    denials: list[str]
    """Why plan policies do not let the run go on."""
    warnings: list[str]
    """Why plan policies want a person to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    run: str
    version: int
    state: RunState
    at: int
    username: str | None
    note: str | None
    job: str | None
    log_start: int
    """Where the output of this state begins in the log of `job`."""
    text: str | None
    """The log of a state that no worker saw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    id: str
    run: str
    kind: JobKind
    state: JobState
    created_at: int
    pool: str | None
    worker: str | None
    claim: str | None
    token: str | None = field(repr=False)
    claimed_at: int | None
    log_length: int
    image_digest: str
    plan: bytes | None = field(repr=False)
    next: NextStep | None
    settled_at: int | None
    verdict: Verdict | None
    settlement: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    slug: str
    pool: str
    revision: int
    blocker: str | None
    created_at: int
    removed_at: int | None
    locked_by: str | None
    """Who may trigger runs meanwhile; None: everybody."""
    lock_note: str | None
    disabled: bool
    deleted: bool
    """Deleted by a person, whatever the configuration file says."""
    destroyer: str | None
    """The run after whose success it is deleted."""
    pinned_commit: dict[str, Any] | None
    """What is deployed instead of the branch's newest commit."""
    pinned_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    id: str
    pool: str
    instance: str
    slot: int
    version: str
    metadata: dict[str, Any]
    registered_at: int
    seen_at: int
    drained: bool
    """It gets no new jobs."""
    cycled: bool
    """It is to end, and come back anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalWorkspace:
    id: str
    stack: str
    owner: str
    token_hash: str
    created_at: int
    expires_at: int
    size: int | None
    """None until it was uploaded."""
    sha256: str | None
    used: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    id: str
    run: str
    author: str
    approves: bool
    note: str
    state: RunState
    version: int
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    id: str
    name: str
    description: str
    type: str
    labels: list[str]
    body: str
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    run: str
    job: str
    generation: str
    """Of the pool whose key it is sealed with."""
    file: str
    sha256: str
    size: int
    stored_at: int
