"""
Requests and answers of the worker protocol; one pair for each endpoint.

Every write about a job carries the job's fencing token in `TOKEN_HEADER`.
"""

from __future__ import annotations

import enum

from typing import Any

import msgspec

from launcher.wire.jobs import Job, RunState


PROTOCOL_VERSION = 1
PREFIX = "/worker/v1"
VERSION_HEADER = "Spacelift-Worker-Protocol"
TOKEN_HEADER = "Spacelift-Fencing-Token"  # noqa: S105 (a header's name)
CHECKSUM_HEADER = "Spacelift-Content-Sha256"
"""
SHA-256 in hexadecimal digits.  On GET /jobs/{job}/workspace: what all stored bytes
hashed to when they came.  On PUT /jobs/{job}/log: of the bytes of log in the body, so
that a server which does not know a compressed one refuses it.
"""

SOURCE_TYPE = "application/vnd.spacelift-launcher.workspace-source+json"
"""Media type of a `WorkspaceSource`, for those who say that they accept it."""

MAX_LOG_CHUNK = 1 << 20
"""Bytes in the body of one upload of log, at most."""
MAX_PACKED_LOG = 2 << 20
"""Bytes of log in one upload whose body is compressed, at most."""
ENCODING_HEADER = "Spacelift-Content-Encoding"
"""On PUT /jobs/{job}/log: how the body is compressed; absent if it is not."""
LOG_ENCODING = "zstd"
"""The one that there is: a single frame that names the size of its content."""
MAX_WORKSPACE_PART = 8 << 20
"""Bytes of a workspace in one request or answer, at most."""


class ErrorCode(enum.StrEnum):
    UNAUTHORIZED = "unauthorized"
    UNKNOWN_WORKER = "unknown_worker"
    UNKNOWN_JOB = "unknown_job"
    TAKEN = "taken"
    """Another worker has claimed the job."""
    STALE_TOKEN = "stale_token"  # noqa: S105
    """The job is no longer the sender's: stay silent from now on."""
    WRONG_OFFSET = "wrong_offset"
    """Bytes are missing before this offset; see ``next_offset``."""
    WRONG_STATE = "wrong_state"
    """The run cannot go from where it is to what was reported."""
    WRONG_CHECKSUM = "wrong_checksum"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    WRONG_VERSION = "wrong_version"
    WRONG_KEY = "wrong_key"
    """A certificate is wanted for another key than the pool's."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every answer whose status is not 2xx."""

    code: str
    message: str
    next_offset: int | None = None
    seconds: int | None = None
    """About a signature: how far the sender's clock is off, or how long to wait."""


class Proof(enum.StrEnum):
    """How a worker proves that it has its pool's key."""

    CERTIFICATE = "certificate"
    """By the handshake of mutual TLS."""
    SIGNATURE = "signature"
    """By signing each request, where TLS ends at a proxy."""


class PoolToken(msgspec.Struct, frozen=True, kw_only=True):
    """What SPACELIFT_TOKEN holds, as base64 of JSON.  Worthless without the key."""

    endpoint: str
    pool: str
    authority: str
    """The certificate, in PEM, that the control plane is recognised by."""
    certificate: str
    """The pool's own, in PEM."""
    allowed_hosts: tuple[str, ...]
    """Hosts that the launcher may be sent to, the endpoint's among them."""
    proof: Proof = Proof.CERTIFICATE


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """POST /workers."""

    instance: str
    """Identity of the launcher; the same after a restart."""
    slot: int
    """Registering the same instance and slot again gives the same worker."""
    version: str
    metadata: dict[str, str] = {}


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    worker: str
    poll_seconds: float
    """How long a poll may be held."""


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """POST /workers/{worker}/poll."""

    wait_seconds: float


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is there for the taking; nobody owns it yet."""

    job: str
    run: str


class Polled(msgspec.Struct, frozen=True, kw_only=True):
    offer: Offer | None = None
    cycle: bool = False
    """The launcher is to end once it is idle; registering again ends this, too."""


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /jobs/{job}/claim; repeating it with the same claim is harmless."""

    worker: str
    claim: str


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    sealed_job: bytes
    """A `launcher.wire.jobs.Job` as JSON, in a box for the pool (`for_job`)."""
    lease_seconds: float
    renew_seconds: float
    waited_seconds: float | None = None
    """How long the job had been there for the taking; None: nobody looked."""

    def __repr__(self) -> str:
        return "Claimed(…)"


def for_job(job: str) -> str:
    """The purpose of the box that *job* travels in."""
    return f"job {job}"


def for_tokens(job: str) -> str:
    """The purpose of the box with the tokens of *job*."""
    return f"tokens {job}"


def for_plan_answer(job: str) -> str:
    """The purpose of the box with what only *job*'s apply may know."""
    return f"plan answer {job}"


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to renew, state and settle."""

    stop: str | None = None
    """Why the run should be stopped, in public words; None while it should not."""


class LogAck(msgspec.Struct, frozen=True, kw_only=True):
    """
    PUT /jobs/{job}/log?offset=N, body: masked bytes.  See `packed` for compressed ones.

    Bytes before ``next_offset`` are stored for good; an upload that repeats
    some of them is accepted and they are ignored.
    """

    next_offset: int
    stop: str | None = None
    packed: int = 0
    """
    How many bytes of log a body may hold from now on that is compressed, as its
    `ENCODING_HEADER` says; 0: such a body is not understood.
    """


class StateReport(msgspec.Struct, frozen=True, kw_only=True):
    """
    POST /jobs/{job}/state: the run has entered a state on the worker.

    Reporting the state the run is in already changes nothing.  Refused with
    WRONG_OFFSET until the log is stored up to ``log_offset``.
    """

    state: RunState
    log_offset: int
    """Where the output of this state begins in the job's log."""
    image_digest: str = ""


class ResourceChange(msgspec.Struct, frozen=True, kw_only=True):
    action: str
    """``added``, ``changed``, ``deleted``, or ``replaced``."""
    address: str
    type: str
    name: str = ""
    """The resource's own, without its module and its key."""
    provider: str = ""
    before: Any = None
    """Its values, as far as the worker's owner lets them go; None otherwise."""
    after: Any = None

    def __repr__(self) -> str:
        return f"ResourceChange(action={self.action!r}, address={self.address!r}, …)"


class PlanReport(msgspec.Struct, frozen=True, kw_only=True):
    """POST /jobs/{job}/plan: the planning phase has succeeded."""

    has_changes: bool
    changes: tuple[ResourceChange, ...] = ()
    applies_here: bool = True
    """False when the apply needs another container than the plan had."""
    custom: dict[str, Any] = {}
    """What the run left in ``<key>.custom.spacelift.json`` files, by key."""


class StackOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a stack tells others."""

    name: str
    value: str | None = None
    """As JSON; None when it is sensitive and the worker keeps such values."""
    sensitive: bool = False

    def __repr__(self) -> str:
        return f"StackOutput(name={self.name!r}, value=…, sensitive={self.sensitive})"


class OutputsReport(msgspec.Struct, frozen=True, kw_only=True):
    """POST /jobs/{job}/outputs: an apply has succeeded.  The last report counts."""

    outputs: tuple[StackOutput, ...] = ()


class NextStep(enum.StrEnum):
    APPLY = "apply"
    """Go on in this container."""
    HAND_OVER = "hand_over"
    """Store the workspace; somebody has to confirm, or a new container is needed."""
    FINISH = "finish"
    """Nothing more to do."""


class PlanAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The same report gets the same answer, however often it is sent."""

    next: NextStep
    sealed_environment: bytes = b""
    """
    What only a writing phase may know: a list of `launcher.wire.jobs.Variable` as
    JSON, in a box for the pool (`for_plan_answer`).  Empty unless ``next`` is APPLY.
    """
    denied: bool = False
    """The run will have failed once the job is finished: a policy does not want it."""


class TokensIssued(msgspec.Struct, frozen=True, kw_only=True):
    """POST /jobs/{job}/tokens: fresh ones, as long as the job is held."""

    sealed_tokens: bytes
    """A `launcher.wire.jobs.Tokens` as JSON, in a box for the pool (`for_tokens`)."""


class WorkspaceAck(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    PUT /jobs/{job}/workspace?upload=ID&offset=N, body: the next bytes, or none.

    Bytes before ``next_offset`` have arrived and need not be sent again.  Another ID
    begins another upload and discards this one.
    """

    next_offset: int
    presigned: bool = False
    """Whether the parts should go to URLs that are asked for: see `WorkspacePart`."""


class WorkspacePart(msgspec.Struct, frozen=True, kw_only=True):
    """
    POST /jobs/{job}/workspace/part: where may this part go?

    Every part but the last has at least 5 MiB.
    """

    upload: str
    offset: int
    size: int
    sha256: str


class WorkspacePlace(msgspec.Struct, frozen=True, kw_only=True):
    """
    PUT the part to ``url``, with its SHA-256 in ``x-amz-checksum-sha256`` as base64.

    The URL is good for this part only, and for 15 minutes; whoever has it can use it.
    """

    next_offset: int
    """Where the next part begins; when it is not the one that was asked for, no URL."""
    url: str = ""

    def __repr__(self) -> str:
        return f"WorkspacePlace(next_offset={self.next_offset}, url=…)"


class WorkspaceSource(msgspec.Struct, frozen=True, kw_only=True):
    """
    GET /jobs/{job}/workspace, for who accepts `SOURCE_TYPE`: where the workspace is.

    The URL is good for 15 minutes; whoever has it can use it.
    """

    url: str
    size: int
    sha256: str

    def __repr__(self) -> str:
        return f"WorkspaceSource(size={self.size}, url=…)"


class WorkspaceUploaded(msgspec.Struct, frozen=True, kw_only=True):
    """POST /jobs/{job}/workspace: everything was sent.  Repeating it is harmless."""

    upload: str
    size: int
    sha256: str


class WorkspaceStored(msgspec.Struct, frozen=True, kw_only=True):
    """What the run's next job starts from, from now on."""

    size: int
    sha256: str


class Verdict(enum.StrEnum):
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    HANDED_OVER = "handed_over"


class CertificateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /certificate: the same key, for longer."""

    csr: str
    """A certificate signing request in PEM, by the pool's key."""


class CertificateIssued(msgspec.Struct, frozen=True, kw_only=True):
    certificate: str
    """In PEM."""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """POST /jobs/{job}/settle: the job is over.  Repeating it is harmless."""

    verdict: Verdict
    log_length: int
    """Bytes of log in all; refused with WRONG_OFFSET until they are stored."""
    log_complete: bool = True
    """False when bytes the container wrote are known to be missing."""
    log_missing: int = 0
    """How many masked bytes could not be stored; 0 also when nobody knows."""
    reason: str = ""
    """One public sentence; empty when the run finished."""
    code: str = ""
    """Stable, machine-readable cause, such as ``policy_denied``."""


# What msgspec knows of a type it finds out when the type is decoded first, and two
# threads that do so at once may end the process.  So it is found out here.
for _type in (
    Job,
    Failure,
    PoolToken,
    Registration,
    Registered,
    Poll,
    Offer,
    Polled,
    ClaimRequest,
    Claimed,
    Ack,
    LogAck,
    StateReport,
    ResourceChange,
    PlanReport,
    StackOutput,
    OutputsReport,
    PlanAnswer,
    TokensIssued,
    WorkspaceAck,
    WorkspacePart,
    WorkspacePlace,
    WorkspaceSource,
    WorkspaceUploaded,
    WorkspaceStored,
    CertificateRequest,
    CertificateIssued,
    Settlement,
):
    msgspec.json.Decoder(_type)
