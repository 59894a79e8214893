"""
The composition root: the one place that knows which adapter serves which port.
"""

from __future__ import annotations

import os
import signal

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import structlog

from launcher import __version__, telemetry
from launcher.activity import Intake
from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.credentials import Credentials
from launcher.adapters.controlplane.jobs import (
    HttpJobSource,
    HttpLogSink,
    HttpProgress,
)
from launcher.adapters.controlplane.presigned import PresignedUrls
from launcher.adapters.controlplane.renewal import Renewal
from launcher.adapters.controlplane.workspaces import HttpWorkspaceStore
from launcher.adapters.credentials.chain import chain
from launcher.adapters.engines.docker import DockerEngine, connect
from launcher.adapters.engines.pulled_images import PulledImages
from launcher.adapters.policies.loading import follow
from launcher.adapters.policies.reloading import ReloadingPolicy
from launcher.adapters.sources.git import GitSource
from launcher.adapters.sources.mirrors import Mirrors
from launcher.admin import Command, answering
from launcher.cancel import CancelToken
from launcher.credentials import RegistryCredentials
from launcher.disk import Disks
from launcher.errors import ClockWrong, EngineError
from launcher.health import Health, MeasuredPolicy, listening
from launcher.heartbeat import Heart, pausing, tended, watched, watching
from launcher.identity import identified
from launcher.journal import Journal
from launcher.leftover_files import LeftoverFiles
from launcher.metrics import AtWork, JobMetrics
from launcher.output.spool import Spools
from launcher.parsing import headers_of
from launcher.policy import NoPolicy, PolicyEngine
from launcher.ports import Ports
from launcher.readiness import Probe
from launcher.reaper import Reaper, reaping
from launcher.sealing.keys import PoolKey
from launcher.settings import (
    HostSettings,
    Settings,
    Spot,
    without_own_secrets,
)
from launcher.sight import Observer, Sight, Vital
from launcher.source_rules import SourceRules
from launcher.spot import REBALANCE, Metadata, SpotWatcher, on_ec2
from launcher.state import StateDirectory, held
from launcher.systemd import supervisor
from launcher.threads import helper, spawn
from launcher.worker import DISMISSED, Worker, escalation


log = structlog.get_logger()

_COLLECT_SECONDS = 180.0
_CLOSING_SECONDS = 600.0
"""How long the end of what runs beside the workers may take."""
_SILENT_SECONDS = 90.0
"""Longer than a poll may be held, and than leases that go on are silent."""

_OF_GIT = ("PATH", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""What git may know of the daemon's environment."""

LEFT_AT_ONCE = 16
"""Exit code after a third signal: containers may still be running."""


def run_launcher(settings: Settings, environment: Mapping[str, str]) -> int:
    """
    Be the daemon, until it is drained; return the exit code that says by what.

    Raises:
        LauncherError: it could not start; each class has its exit code.
    """
    for warning in settings.warnings:
        log.warning("settings.doubtful", warning=warning)
    identity = identified(settings.identity.token, settings.identity.private_key)
    if identity.token.endpoint.startswith("http://"):
        log.warning("endpoint.without_tls", endpoint=identity.token.endpoint)
    with held(settings.host.state_dir) as state:
        credentials = Credentials(
            identity, state.certificate, roots=settings.network.root_certificates
        )
        # The policy comes first: without it, nothing may even be asked for.
        policy = _policy(settings, state, credentials.key)
        health = Health()
        judge = MeasuredPolicy(policy, health)
        who = {"instance": state.instance, "pool": identity.token.pool}
        with (
            _traced(settings, health, who) as traces,
            _ports(
                settings,
                credentials,
                state,
                judge,
                environment,
                sight=Sight([JobMetrics(health.registry), *traces]),
            ) as (ports, engine, client),
        ):
            disks = Disks(
                (state.root, engine.data), threshold=settings.host.disk_usage_threshold
            )
            worker, heart = Worker(ports, settings, unfit=disks.unfit), Heart()
            _handle_signals(worker)
            _reload_on_hangup(policy)
            watch(health, worker.drain, policy, credentials, worker.intake)
            watch_others(health, engine, client, worker, disks)
            health.registry.register(AtWork(ports.sight, worker.board.now))
            reapers = [
                Reaper(each, ports.journal, dry_run=settings.host.reaper_dry_run)
                for each in (engine, LeftoverFiles(ports.spools, state.scratch))
            ]
            _measure(health, reapers, disks)

            def facts() -> dict[str, object]:
                return _facts(ports, client, credentials, disks)

            # What was left by a run that goes on must have its entry before the
            # reaper looks.
            worker.adopt()
            with (
                heart.listening(),
                watched("main", _CLOSING_SECONDS),
                tended(
                    supervisor(environment),
                    heart,
                    up=worker.up,
                    drain=worker.drain,
                    say=worker.saying,
                ),
                listening(settings.telemetry.listen, health),
                answering(
                    state.root,
                    {
                        **admin_commands(worker, health, who, facts),
                        "support": lambda: _support(
                            settings,
                            ports,
                            engine,
                            disks,
                            {"reasons": health.reasons(), "facts": facts()},
                            metrics=health.metrics(),
                        ),
                    },
                ),
                _watching_spot(settings.host, worker),
                _renewing(Renewal(client, credentials)),
                reaping(*reapers),
                _collecting_images(engine, disks),
            ):
                worker.run()
            return worker.exit_code


@contextmanager
def _ports(
    settings: Settings,
    credentials: Credentials,
    state: StateDirectory,
    policy: PolicyEngine,
    environment: Mapping[str, str],
    *,
    sight: Sight,
) -> Iterator[tuple[Ports, DockerEngine, Client]]:
    with ExitStack() as closing:
        workers = settings.run.workers
        # A slot polls or works, and a job renews and logs beside its phases.
        proxies = settings.network.proxies
        client = Client(credentials, connections=3 * workers, proxies=proxies)
        closing.callback(client.close)
        key, token = credentials.key, credentials.token
        journal = Journal.opened(state.journal, key)
        closing.callback(journal.close)
        engine = DockerEngine(
            connect(settings.host, connections=4 * workers),
            settings,
            instance=state.instance,
            pool=token.pool,
            pulled=PulledImages(state.root / "pulled-images.json"),
        )
        closing.callback(engine.close)
        ports = Ports(
            source=HttpJobSource(
                client,
                key,
                instance=state.instance,
                metadata=settings.identity.metadata,
            ),
            progress=HttpProgress(client, key),
            log=HttpLogSink(client),
            workspaces=HttpWorkspaceStore(
                client, PresignedUrls(token.allowed_hosts, proxies=proxies)
            ),
            code=_git(settings, state, environment),
            credentials=_registry_credentials(settings, environment),
            policy=policy,
            engine=engine,
            endpoint=token.endpoint,
            journal=journal,
            key=key,
            scratch=state.scratch,
            sight=sight,
            rescued=state.rescued,
            spools=Spools(
                state.spools,
                per_job=settings.logs.spool_limit,
                total=settings.logs.spool_total,
            ),
        )
        yield ports, engine, client


@contextmanager
def _traced(
    settings: Settings, health: Health, who: Mapping[str, str]
) -> Iterator[tuple[Observer, ...]]:
    """Who traces runs, if anybody is to."""
    chosen = settings.telemetry
    if chosen.otlp_endpoint is None:
        yield ()
        return
    # Late: what it is made of is large, and most launchers trace nothing.
    from launcher.adapters.traces.otlp import Traces  # noqa: PLC0415

    headers = chosen.otlp_headers
    traces = Traces(
        chosen.otlp_endpoint,
        headers=headers_of(headers.reveal()) if headers else {},
        roots=settings.network.root_certificates,
        proxies=settings.network.proxies,
        service=chosen.service,
        **who,
    )
    health.gauge(
        "trace_spans_lost",
        "Parts of traces that the collector has not taken.",
        lambda: traces.lost,
    )
    try:
        yield (traces,)
    finally:
        traces.close()


def _policy(settings: Settings, state: StateDirectory, key: PoolKey) -> PolicyEngine:
    if settings.policy.path is None:
        log.warning("policy.absent", consequence="every run is allowed")
        return NoPolicy()
    secret = key.derived("compiled policies")
    return follow(settings.policy, settings.policy.path, state.root, secret=secret)


def watch(
    health: Health,
    drain: CancelToken,
    policy: PolicyEngine,
    credentials: Credentials,
    intake: Intake | None = None,
) -> None:
    """Let *health* know what makes the launcher unfit to get runs."""
    health.check("certificate", credentials.trouble)
    health.gauge(
        "certificate_expires_seconds",
        "When the worker pool's certificate expires, in seconds since 1970.",
        credentials.expires,
    )

    def draining() -> str | None:
        holds = intake.holds if intake else {}
        if drain.cancelled or OPERATOR in holds:
            return "draining"
        return next(iter(holds.values()), None)

    health.check("drain", draining)
    if isinstance(policy, ReloadingPolicy):
        health.check("policy", policy.trouble)
        health.gauge(
            "policy_healthy",
            "Whether the policy on disk is the one in use.",
            lambda: policy.trouble() is None,
        )


def watch_others(
    health: Health, engine: DockerEngine, client: Client, worker: Worker, disks: Disks
) -> None:
    """The same for what the launcher has to talk to."""
    health.check("engine", Probe("container engine", engine.ping).trouble)

    def draining() -> bool:
        return worker.drain.cancelled or bool(worker.intake.holds)

    def answers() -> str | None:
        if trouble := worker.outage.trouble():
            return trouble
        if client.heard_at is None:
            return "the control plane has not answered yet"
        # Slots that are all at work do not poll, and renew their leases instead.
        silent, busy = client.silent_seconds, any(worker.board.now().values())
        talking = busy or not (draining() or disks.trouble())
        if talking and silent > _SILENT_SECONDS:
            return f"the control plane has not answered for {silent:.0f} s"
        return None

    def clock() -> str | None:
        try:
            client.require_clock()
        except ClockWrong as exc:
            return str(exc)
        return None

    health.check("control_plane", answers)
    health.check("clock", clock)
    health.gauge(
        "control_plane_answered_seconds",
        "When the control plane answered last, in seconds since 1970; 0: not yet.",
        lambda: client.heard_at or 0.0,
    )
    health.gauge(
        "clock_skew_seconds",
        "How far this machine's clock is ahead of the control plane's.",
        lambda: client.clock_skew,
    )
    health.gauge(
        "workers_drained",
        "Slots that take no new job.",
        lambda: len(worker.board.now()) if draining() else 0,
    )


OPERATOR = "operator"
"""Who holds the intake after ``drain``."""


def _facts(
    ports: Ports, client: Client, credentials: Credentials, disks: Disks
) -> dict[str, object]:
    """What else an operator wants to know, as numbers."""
    vitals = ports.sight.vitals
    return {
        "control_plane_answered_at": client.heard_at,
        "clock_skew_seconds": round(client.clock_skew, 3),
        "certificate_expires_at": credentials.expires(),
        "log_backlog_bytes": sum(vitals(Vital.LOG_BACKLOG)),
        "log_oldest_unsent_seconds": max(vitals(Vital.LOG_AGE), default=0.0),
        "lease_slack_seconds": min(vitals(Vital.LEASE_SLACK), default=None),
        "disk_used_percent": round(disks.used(), 1),
    }


def _support(
    settings: Settings,
    ports: Ports,
    engine: DockerEngine,
    disks: Disks,
    readyz: Mapping[str, object],
    *,
    metrics: bytes,
) -> Mapping[str, str]:
    # Late: nobody needs it but who is asked for it.
    from launcher import support  # noqa: PLC0415

    try:
        described = engine.describe()
    except EngineError as exc:
        described = {"error": str(exc)}
    state, data = disks.each()
    return support.parts(
        settings,
        readyz=readyz,
        metrics=metrics.decode(),
        journal=ports.journal,
        log=telemetry.recent(),
        engine=described,
        disks={"state": state, "engine": data},
    )


def admin_commands(
    worker: Worker,
    health: Health,
    who: Mapping[str, str],
    facts: Callable[[], Mapping[str, object]],
) -> dict[str, Command]:
    """What the admin socket can be asked."""

    def status() -> dict[str, object]:
        holds, reasons = worker.intake.holds, health.reasons()
        if worker.drain.cancelled:
            holds["signal"] = worker.drain.reason
        return {
            "version": __version__,
            **who,
            "draining": bool(holds),
            "holds": holds,
            "ready": not reasons,
            "reasons": reasons,
            "checks": {name: reasons.get(name, "") for name in health.checks},
            "facts": facts(),
            "slots": [
                {
                    "slot": slot,
                    "run": doing and doing.run,
                    "job": doing and doing.job,
                    "phase": doing and doing.phase,
                    "since": doing and doing.since.isoformat(),
                }
                for slot, doing in worker.board.now().items()
            ],
        }

    def drain() -> dict[str, object]:
        worker.intake.hold(OPERATOR, "drained over the admin socket")
        return status()

    def undrain() -> dict[str, object]:
        worker.intake.release(OPERATOR)
        worker.intake.release(REBALANCE)
        return status()

    def dismiss() -> dict[str, object]:
        worker.drain.cancel(DISMISSED)
        return status()

    return {"status": status, "drain": drain, "undrain": undrain, "dismiss": dismiss}


@contextmanager
def _watching_spot(host: HostSettings, worker: Worker) -> Iterator[None]:
    if host.spot is Spot.OFF or (host.spot is Spot.AUTO and not on_ec2()):
        yield
        return
    done = CancelToken()
    watcher = SpotWatcher(Metadata(host.metadata_service), worker.intake, worker.abort)
    with helper(
        "spot",
        watching("spot", lambda: watcher.until(done)),
        lambda: done.cancel("drained"),
    ):
        yield


def _measure(health: Health, reapers: Sequence[Reaper], disks: Disks) -> None:
    health.check("disk", disks.trouble)
    for place, used in (("state", 0), ("engine", 1)):
        health.gauge(
            f"{place}_disk_used_percent",
            f"How full the disk of the {place} is; NaN where it is not here.",
            lambda used=used: disks.each()[used],  # type: ignore[misc]
        )
    health.gauge(
        "leftovers_removed",
        "Containers, volumes, networks and files that nobody else had removed.",
        lambda: sum(reaper.removed for reaper in reapers),
    )
    health.gauge(
        "leftovers_waiting",
        "The same, still there: seen by a dry run, or not to be removed.",
        lambda: sum(reaper.waiting for reaper in reapers),
    )


def _registry_credentials(
    settings: Settings, environment: Mapping[str, str]
) -> RegistryCredentials:
    known = without_own_secrets(environment)
    credentials = chain(
        settings.images,
        known,
        on_ec2=on_ec2,
        roots=settings.network.root_certificates,
    )
    credentials.prepare(settings.images)
    return credentials


def _git(
    settings: Settings, state: StateDirectory, environment: Mapping[str, str]
) -> GitSource:
    source = settings.source
    pools = {one.pool: one.base_endpoint for one in source.vcs_mappings}
    return GitSource(
        state.scratch,
        protocols=source.git_protocols,
        environment={
            name: environment[name] for name in _OF_GIT if name in environment
        },
        timeout_seconds=source.timeout,
        rules=SourceRules.of(source.allowed, endpoints=pools.values()),
        pools=pools,
        roots=settings.network.root_certificates,
        known_hosts=source.known_hosts,
        proxies=settings.network.proxies,
        mirrors=Mirrors(state.mirrors, source.mirror_limit),
        limit=source.limit,
    )


def _handle_signals(worker: Worker) -> None:
    def leave() -> None:
        log.warning("worker.left_at_once")
        os._exit(LEFT_AT_ONCE)

    on_signal = escalation(worker, leave)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: on_signal(signal.Signals(n).name))


def _reload_on_hangup(policy: PolicyEngine) -> None:
    """Without a policy, a hang-up still must not end the daemon."""

    def reload() -> None:
        if isinstance(policy, ReloadingPolicy):
            policy.reload()

    def on_hangup(*_: object) -> None:
        # Not here: the handler may interrupt a reload, which holds the lock.
        spawn("policy reload", reload)

    signal.signal(signal.SIGHUP, on_hangup)


@contextmanager
def _renewing(renewal: Renewal) -> Iterator[None]:
    done = CancelToken()
    with helper(
        "certificate",
        watching("certificate", lambda: renewal.until(done)),
        lambda: done.cancel("drained"),
    ):
        yield


@contextmanager
def _collecting_images(engine: DockerEngine, disks: Disks) -> Iterator[None]:
    """Remove old images of ours now and every few minutes, if the disk is that full."""
    done = CancelToken()

    def collect() -> None:
        while True:
            try:
                engine.collect_images(disks.used)
            except EngineError:
                log.warning("images.not_collected", exc_info=True)
            except Exception:  # the next look may do better
                log.exception("images.collector_crashed")
            if pausing(done, _COLLECT_SECONDS):
                return

    with helper("images", watching("images", collect), lambda: done.cancel("drained")):
        yield
