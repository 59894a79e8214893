"""
What the core needs from the outside world, in the core's own words.

Promises that all implementations share:

- Methods block.  What may block for long takes a token or a time.
- They may be called from several threads at once, one job each.
- Only `launcher.errors` escape; vendors' exceptions stay in the adapter.
- Closing, stopping and removing may be repeated.

`PolicyEngine` and `RegistryCredentials` are beside their types, in
`launcher.policy` and `launcher.credentials`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from launcher.cancel import CancelToken
from launcher.credentials import Login, RegistryCredentials
from launcher.images import Permit
from launcher.journal import Journal
from launcher.model import (
    Claim,
    Exit,
    Found,
    PhaseScript,
    PlanDecision,
    ResolvedImage,
    SandboxSpec,
)
from launcher.output.spool import Spools
from launcher.policy import PolicyEngine
from launcher.sealing.keys import PoolKey
from launcher.sealing.workspace import SealedFile
from launcher.sight import Sight
from launcher.wire.jobs import Job, RunState, Tokens
from launcher.wire.messages import (
    LogAck,
    Offer,
    OutputsReport,
    PlanReport,
    Settlement,
)


Output = Callable[[bytes], None]
"""Takes what a container printed, cut anywhere.  May block; never raises."""


class JobSource(Protocol):
    """Where jobs come from, and who owns them."""

    def receive(self, slot: int, *, wait: float) -> Offer | None:
        """
        Wait up to *wait* seconds for an offer to the worker in *slot*.

        Raises:
            ControlPlaneUnavailable: nobody answered; ask again later.
            CredentialsRefused: nobody will ever answer this token.
            Cycled: there will be no more offers until the launcher was restarted.
        """

    def claim(self, slot: int, offer: Offer, identity: str) -> Claim | None:
        """
        Take what was offered; None when another worker was faster.

        The same *identity* gets the same answer from the same slot, so a claim
        whose answer got lost is repeated with it: after a restart, too.

        Raises:
            ControlPlaneUnavailable: unknown whether it arrived; repeat the call.
        """

    def renew(self, claim: Claim) -> str | None:
        """
        Extend the lease; return why the run should be stopped, if it should.

        Raises:
            LeaseLost: the job is no longer ours.
            ControlPlaneUnavailable: nobody answered this one call.
        """

    def settle(self, claim: Claim, settlement: Settlement) -> None:
        """
        Announce the end of the job.  Repeating it is harmless.

        Raises:
            LeaseLost: the job is no longer ours.
        """


class Progress(Protocol):
    """What the control plane is told in the middle of a job."""

    def entered(
        self, claim: Claim, state: RunState, *, log_offset: int, image_digest: str = ""
    ) -> str | None:
        """
        The run is in *state* now; its output begins at *log_offset*.

        Returns why the run should be stopped, if it should.  Repeating it is
        harmless.

        Raises:
            LeaseLost: the job is no longer ours.
            ControlPlaneRefused: the run cannot get there, or is to be stopped.
            ControlPlaneUnavailable: unknown whether it arrived; repeat the call.
        """

    def planned(self, claim: Claim, report: PlanReport) -> PlanDecision:
        """
        The plan is made; learn what comes next, the same however often we ask.

        Raises: as above.
        """

    def tokens(self, claim: Claim) -> Tokens:
        """
        Fresh tokens for the job, those before them being about to expire.

        Raises:
            LeaseLost: the job is no longer ours.
            ControlPlaneRefused: there are none for this job.
            ControlPlaneUnavailable: nobody answered this one call.
        """

    def told(self, claim: Claim, report: OutputsReport) -> None:
        """
        The apply is done; these are the stack's outputs.  The last report counts.

        Raises: as above.
        """


class LogSink(Protocol):
    """Where masked output goes, as one stream of bytes for each job."""

    def append(self, claim: Claim, offset: int, data: bytes) -> LogAck:
        """
        Store *data*, which begins at *offset*; return the next offset wanted.

        Repeating what is stored already changes nothing.

        Raises:
            ControlPlaneUnavailable: unknown whether stored; repeat the call.
            LeaseLost: the job is no longer ours.
        """


class WorkspaceStore(Protocol):
    """
    Where a workspace waits between two jobs of a run: bytes that it cannot read.

    Both calls are repeated until they return, and go on where the last one ended.
    """

    def save(self, claim: Claim, sealed: SealedFile) -> None:
        """
        Store *sealed* as what the run's next job starts from.

        The last one that a job saves counts, as a whole or not at all.

        Raises:
            WorkspaceUnusable: it is larger than the store takes.
            ControlPlaneRefused: this job has nothing to store.
            ControlPlaneUnavailable: unknown how much of it arrived; repeat the call.
            LeaseLost: the job is no longer ours.
        """

    def restore(self, claim: Claim, into: BinaryIO) -> None:
        """
        Write what the run's previous job saved to *into*, a file that begins empty.

        Raises:
            WorkspaceUnusable: it is not, byte for byte, what was saved.
            ControlPlaneRefused: nothing was saved for this job.
            ControlPlaneUnavailable: not all of it came; repeat the call.
            LeaseLost: the job is no longer ours.
        """

    def uploaded(self, claim: Claim, into: BinaryIO) -> None:
        """
        Write the code that was uploaded for the run to *into*, as ``restore`` does.

        Raises: as `restore`.
        """


class SourceFetcher(Protocol):
    """Where the code of a stack comes from."""

    def fetch(
        self,
        job: Job,
        cancel: CancelToken,
        say: Callable[[str], None] = lambda _: None,
    ) -> AbstractContextManager[Iterator[bytes]]:
        """
        Yield the tree of the job's commit as a tar stream.

        The stream is untrusted: names and types in it are the repository's.  *say*
        is told what the run's owner should know of it.

        Raises:
            SourceUnavailable: with a public sentence that names the cause.
        """


class Sandbox(Protocol):
    """
    The place in which the phases of one job run, one after the other.

    Order of calls: ``fill`` once, then ``run`` for each phase; ``read_file``
    between phases; ``conclude`` and ``workspace`` after the last one.  One that was
    adopted has been filled already.
    """

    def fill(self, archive: Iterable[bytes]) -> None:
        """
        Unpack a tar stream, relative to ``/``, into the empty volumes.

        What iterating *archive* raises comes out as it is.
        """

    def run(
        self,
        script: PhaseScript,
        output: Output,
        cancel: CancelToken,
        *,
        sent: bool = False,
    ) -> Exit:
        """
        Run *script* in one shell process and feed what it prints to *output*.

        *output* has seen every byte when this returns.  If *cancel* fires, the
        ladder of signals begins, and the real exit is returned; if it fired
        before, nothing is started.  However long the phase is silent, the calling
        thread beats (`launcher.heartbeat`).

        With *sent*, the script was handed over by an earlier life of the launcher,
        whole or in part.  It is not handed over again: its end is awaited, from the
        first byte that nobody has read in this life.  If it never began, the
        container is ended, so that it never will.
        """

    def begun(self) -> tuple[str, ...]:
        """Names of the phases that have begun by now, as the output says."""

    def conclude(self, phases: int, output: Output) -> bool:
        """
        End the container; whether it says itself that *phases* of them succeeded.

        A mark in the output is what the job could have written; the container's
        own exit code is not.  What is printed until then goes to *output*.  May
        be repeated.
        """

    def read_file(self, path: str, *, limit: int) -> bytes | None:
        """
        Content of a regular file; None where there is none.

        Raises:
            WorkspaceUnusable: it is something else, or larger than *limit*.
        """

    def write_file(self, name: str, content: bytes) -> None:
        """
        Put a file that only the job's user can read into the workspace's folder.

        *name* has no folder in it.  What was there, be it a link, is replaced.  May
        be called by another thread, while a phase is running.

        Raises:
            EngineError: it is not there now; the container may be gone.
        """

    def workspace(self) -> AbstractContextManager[Iterator[bytes]]:
        """
        End the container and yield the workspace as a tar stream.

        Everything in it is below one folder, named like the last part of
        `WORKSPACE`.  May be repeated.
        """


class ContainerEngine(Protocol):
    """What runs containers."""

    def resolve(self, image: Permit, login: Login | None) -> ResolvedImage:
        """
        Find out, without pulling, what *image* stands for now.

        Unless the owner has said that nothing is ever pulled, the registry is asked
        whether *login* may have it, present or not.

        Raises:
            ImageAccessDenied: the registry says no; another login might help.
            ImageUnavailable: there is no such image, or nobody can tell.
        """

    def pull(
        self,
        image: ResolvedImage,
        *,
        say: Callable[[str], None] = lambda _: None,
        cancel: CancelToken | None = None,
    ) -> None:
        """
        Make the very digest of *image* present in the engine.

        Whoever pulls the same at the same time shares it.  Now and then *say* is
        told how it goes on.  Once *cancel* fires it is given up.

        Raises:
            ImageAccessDenied: as above.
            ImageUnavailable: the message tells why, and what would help.
        """

    def sandbox(self, spec: SandboxSpec) -> AbstractContextManager[Sandbox]:
        """
        Create what a job needs, started with the first phase.

        Nothing of it is left at the end, whatever happened inside.
        """

    def adopt(self, job: str) -> AbstractContextManager[Sandbox | None]:
        """
        Go on with what an earlier life of this launcher made for *job*.

        None when there is no container in which phases can have begun.  Nothing
        of it is left at the end, as with ``sandbox``.
        """

    def found(self) -> tuple[Found, ...]:
        """Every container of this launcher in which phases may have begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The whole outside world, as the composition root hands it over."""

    source: JobSource
    progress: Progress
    log: LogSink
    workspaces: WorkspaceStore
    code: SourceFetcher
    credentials: RegistryCredentials
    policy: PolicyEngine
    engine: ContainerEngine
    endpoint: str
    """URL of the control plane, for the policy to know."""
    journal: Journal
    """What a later life of this launcher will know about its jobs."""
    key: PoolKey
    """What this launcher's pool seals and signs with."""
    scratch: Path
    """A folder for files that nobody else sees."""
    spools: Spools
    """Where the output of jobs waits until the control plane has it."""
    sight: Sight = field(default_factory=Sight)
    """Who is told what happens to jobs."""
    rescued: Path | None = None
    """A folder for what is kept of failed runs, sealed; None keeps nothing."""
