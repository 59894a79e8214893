"""
The composition root of the control plane: what there is, and how it is connected.

Besides the services it owns what runs beside the requests: the threads that look
up commits, and the sweeper.
"""

from __future__ import annotations

import threading
import time

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import structlog

from ulid import ULID

from launcher.cancel import CancelToken
from launcher.certificates import WARN_BEFORE
from launcher.controlplane.approvals import Approvals
from launcher.controlplane.audit import AuditTrail, Refusals
from launcher.controlplane.auth import SignIn
from launcher.controlplane.authority import Authority
from launcher.controlplane.bell import Bell
from launcher.controlplane.buckets import Bucket, BucketStorage
from launcher.controlplane.claims import Claims
from launcher.controlplane.commits import Commits
from launcher.controlplane.configuration import Configuration
from launcher.controlplane.data_directory import (
    authority_folder,
    data_directory,
    is_sqlite,
    owned,
)
from launcher.controlplane.dependencies import ExternalDependencies
from launcher.controlplane.desired_state import DesiredState, Retention
from launcher.controlplane.drift import Drift
from launcher.controlplane.errors import StoreAway
from launcher.controlplane.git import Git
from launcher.controlplane.identity_provider import IdentityProvider
from launcher.controlplane.keys import load_keyring
from launcher.controlplane.lanes import attempted
from launcher.controlplane.leases import Leases, LeaseTerms
from launcher.controlplane.local_workspaces import MAX_UPLOAD, LocalWorkspaces
from launcher.controlplane.look_ups import JOIN_SECONDS, LookUps
from launcher.controlplane.plan_policies import PlanPolicies
from launcher.controlplane.policies import Policies
from launcher.controlplane.policy_engine import compiled
from launcher.controlplane.pool_counts import PoolCounts
from launcher.controlplane.pools import Pools
from launcher.controlplane.products import Products
from launcher.controlplane.queries import Queries
from launcher.controlplane.queue_view import QueueView
from launcher.controlplane.reports import MAX_LOG, Reports
from launcher.controlplane.retention import Retaining
from launcher.controlplane.run_tokens import OIDC_SECONDS, RunTokens
from launcher.controlplane.runs import Runs
from launcher.controlplane.settling import Settling
from launcher.controlplane.shared import SharedLeases, UsedSignatures
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_admin import StackAdmin
from launcher.controlplane.stack_config import StackConfig
from launcher.controlplane.store.database import Store, open_store
from launcher.controlplane.stored_workspaces import StoredWorkspaces
from launcher.controlplane.webhooks import Webhooks
from launcher.controlplane.worker_admin import WorkerAdmin
from launcher.controlplane.workspaces import MAX_WORKSPACE, DirectoryStorage
from launcher.heartbeat import beat, watching
from launcher.memory import give_back
from launcher.threads import spawn
from launcher.wire.signatures.verifier import AHEAD_SECONDS, RequestVerifier


log = structlog.get_logger()

TIDY_ROUNDS = 12
"""Every so many rounds the sweeper returns memory that nobody uses."""
ROUNDS = 60
"""Every so many rounds the sweeper also does what is rarely needed."""
SWEEPER_SECONDS = 900.0
"""Longest time that one round of the sweeper may take."""
LEADER_SECONDS = 5.0
"""For how long, at least, a process that stands still keeps others from leading."""
FORGOTTEN_SECONDS = 30.0
"""When a run whose commit nobody has looked up is somebody else's to look up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Numbers that tests make smaller."""

    lease_terms: LeaseTerms = field(default_factory=LeaseTerms)
    max_log: int = MAX_LOG
    max_workspace: int = MAX_WORKSPACE
    max_upload: int = MAX_UPLOAD
    oidc_seconds: int = OIDC_SECONDS
    """How long clouds may believe a token of a run."""
    ahead_seconds: float = AHEAD_SECONDS
    """How far the clock of a launcher that signs its requests may be ahead."""


class ControlPlane:
    """All services of one installation, on one database and one data directory."""

    def __init__(
        self,
        *,
        store: Store,
        bell: Bell,
        data: Path,
        endpoint: str,
        environ: Mapping[str, str],
        limits: Limits,
        bucket: Bucket | None,
    ) -> None:
        keyring = load_keyring(data / "key")
        self.authority = Authority(authority_folder(data))
        repositories = data / "repositories"
        repositories.mkdir(mode=0o700, exist_ok=True)
        specs = Specs(keyring)
        self.store = store
        self.bell = bell
        self.endpoint = endpoint
        self._terms = limits.lease_terms
        self._git = Git(repositories, environ)
        self._look_ups = LookUps()
        self._closing = CancelToken()
        self._leadership = store.leadership(
            "sweeping", max(6 * limits.lease_terms.sweep_seconds, LEADER_SECONDS)
        )
        self._sweeper: threading.Thread | None = None
        self._warned_on: date | None = None
        self.account = ""
        self.form_key = keyring.forms
        self._configuration = Configuration(store, keyring)
        self.pools = Pools(store, self.authority)
        self._used_signatures = UsedSignatures(store)
        self.signatures = RequestVerifier(
            ahead_seconds=limits.ahead_seconds,
            elsewhere=self._used_signatures.first if store.shared else None,
        )
        self.identity = IdentityProvider(data / "oidc-key", keyring, endpoint)
        self.tokens = RunTokens(
            store,
            specs,
            keyring,
            self.identity,
            endpoint,
            oidc_seconds=limits.oidc_seconds,
        )
        self.sign_in = SignIn(store, keyring, endpoint, self.tokens)
        self.queries = Queries(store, specs)
        commits = Commits(repositories, self._git)
        self.policies = Policies(store, keyring, compiled)
        self.approvals = Approvals(store, specs, self.policies)
        self.runs = Runs(store, specs, commits, self._look_ups.want, self.approvals)
        self.stack_admin = StackAdmin(store, specs, commits, self.runs)
        self.stack_config = StackConfig(store, specs, keyring)
        self.local_workspaces = LocalWorkspaces(
            store,
            specs,
            keyring,
            data / "uploads",
            endpoint=endpoint,
            limit=limits.max_upload,
        )
        self.queue_view = QueueView(store)
        self.pool_counts = PoolCounts(store)
        self.worker_admin = WorkerAdmin(store)
        self.webhooks = Webhooks(store, keyring)
        self.audit_trail = AuditTrail(store)
        self.refusals = Refusals(store)
        leases = self._leases = (
            SharedLeases(store, limits.lease_terms)
            if store.shared
            else Leases(limits.lease_terms)
        )
        self.products = Products(store, keyring)
        self.external_dependencies = ExternalDependencies(store)
        self.claims = Claims(
            store, specs, leases, tokens=self.tokens, products=self.products
        )
        plan_policies = PlanPolicies(store, specs, self.policies)
        self.reports = Reports(store, specs, plan_policies, max_log=limits.max_log)
        self.settling = Settling(store, specs, leases, self.approvals)
        self.drift = Drift(store, specs, self._look_ups.want)
        self.retention = Retaining(store)
        self._retention = Retention()
        self.workspaces = StoredWorkspaces(
            store,
            DirectoryStorage(data / "workspaces", limits.max_workspace)
            if bucket is None
            else BucketStorage(bucket, limits.max_workspace),
        )

    def apply(self, desired: DesiredState) -> None:
        """Make *desired* the state of things."""
        self.policies.check(desired.policies)
        self._git.use_pools(desired.vcs_agent_pools)
        self._git.trust([spec.source_url for spec in desired.stacks])
        self._retention = desired.retention
        attempted(lambda: self._configuration.apply(desired))
        self.identity.present_as(desired.federation)
        self.account = desired.account

    def start(self) -> None:
        """Take up what an earlier life has left, and begin to work."""
        self.store.listen()
        self.claims.resume()
        self._look_ups.start(self.runs.look_up)
        if not self.store.shared:
            self._look_ups.want_all(self.runs.without_commit())
            self.approvals.consider_all()
        seconds = self._terms.sweep_seconds + SWEEPER_SECONDS
        self._sweeper = spawn("sweeper", watching("sweeper", self._sweep, seconds))
        self.webhooks.start()

    def close(self) -> None:
        """End the work beside the requests; nothing is lost by it."""
        self._closing.cancel("closing")
        self._git.close()
        self._look_ups.close()
        if self._sweeper is not None:
            self._sweeper.join(JOIN_SECONDS)
        self.webhooks.close()
        self._leadership.close()

    def _sweep(self) -> None:
        rounds = 0
        while not self._closing.wait(self._terms.sweep_seconds):
            beat()
            try:
                if rounds % ROUNDS == 0:
                    # First: what cannot be renewed has to be warned of.
                    self._warn_of_expiries()
                    self.authority.renew()
                if self._leadership.held():
                    self._lead(rounds)
                else:
                    self._leases.look_away()
                if rounds % TIDY_ROUNDS == 0:
                    # Each thread keeps what it has once needed, for a log or a plan.
                    give_back()
            except StoreAway:
                pass  # is logged where it is noticed
            except Exception:  # the next round may do better
                log.exception("sweeper.crashed")
            rounds += 1

    def _lead(self, rounds: int) -> None:
        """What one process does for all of them."""
        self.claims.sweep()
        self.workspaces.remove_needless()
        self.local_workspaces.remove_needless()
        self._look_ups.want_all(filter(_is_forgotten, self.runs.without_commit()))
        if rounds % ROUNDS == 0:
            self.pools.forget_the_gone()
            self.approvals.consider_all()
            self.retention.apply(self._retention)
            self.workspaces.remove_strays()
            if self.store.shared:
                self._used_signatures.forget()
                self._leases.forget()
        self.drift.trigger_due()

    def _warn_of_expiries(self) -> None:
        """Once a day, while there is time to do something about it."""
        today = datetime.now(UTC).date()
        if today == self._warned_on:
            return
        self._warned_on = today
        for name, ends in self.authority.expiries().items():
            left = ends - datetime.now(UTC)
            if left < WARN_BEFORE:
                log.warning(
                    "certificate.expires_soon",
                    certificate=name,
                    expires=ends.isoformat(),
                    days_left=left.days,
                )


def _is_forgotten(run: tuple[str, str]) -> bool:
    """Whether a commit should have been looked up by whoever created the run."""
    return time.time() - ULID.from_str(run[0]).timestamp > FORGOTTEN_SECONDS


@contextmanager
def control_plane(
    desired: DesiredState,
    database_url: str,
    *,
    endpoint: str,
    environ: Mapping[str, str],
    limits: Limits | None = None,
) -> Iterator[ControlPlane]:
    """
    Open everything, apply *desired*, and close everything at the end.

    Raises:
        ConfigurationError: nobody said where data goes.
        StoreUnusable: database or data directory cannot be used, or another
            control plane uses them.
    """
    data = data_directory(database_url, desired.data_directory)
    bell = Bell()
    with ExitStack() as scope:
        store = scope.enter_context(_opened(data, database_url, bell))
        plane = ControlPlane(
            store=store,
            bell=bell,
            data=data,
            endpoint=desired.endpoint or endpoint,
            environ=environ,
            limits=limits or Limits(),
            bucket=desired.bucket,
        )
        plane.apply(desired)
        plane.start()
        scope.callback(plane.close)
        yield plane


@contextmanager
def _opened(data: Path, database_url: str, bell: Bell) -> Iterator[Store]:
    with owned(data, shared=not is_sqlite(database_url)):
        store = open_store(database_url, bell.ring, bell.hear)
        bell.elsewhere = store.tell
        try:
            yield store
        finally:
            store.close()
