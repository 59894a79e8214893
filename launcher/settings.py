# ruff: noqa: RUF009 (a field is declared by a call)
"""
Everything that can be configured: read once from the environment, then frozen.

A field names its variable, and the docstring under it says what it means;
`documentation` prints both, so that ``docs/configuration.md`` cannot drift.
Nothing else in the project reads the environment.

All problems are reported together, each with the name of the variable, what is
wrong with it and an example.  Values that may be secret are never repeated.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from launcher import parsing
from launcher.errors import ConfigurationError, ImageNotAllowed
from launcher.images import Pattern, Reference, permitted
from launcher.model import NOWHERE, Address, Mount
from launcher.policy import Program
from launcher.proxies import Proxies
from launcher.secret import Secret
from launcher.source_rules import SourcePattern
from launcher.variables import Environment, Variable, names, read, setting, table
from launcher.wire import jobs


class PullPolicy(enum.StrEnum):
    ALWAYS = "always"
    IF_NOT_PRESENT = "if-not-present"
    NEVER = "never"


class RegoVersion(enum.StrEnum):
    AUTO = "auto"
    """v1 where the policy is valid v1, else v0."""
    V0 = "v0"
    V1 = "v1"


class PlanValues(enum.StrEnum):
    NONE = "none"
    SANITIZED = "sanitized"
    """Texts as the last eight digits of their SHA-256."""
    PLAIN = "plain"


class GitProtocol(enum.StrEnum):
    HTTPS = "https"
    SSH = "ssh"
    HTTP = "http"
    FILE = "file"


class ObservabilityVendor(enum.StrEnum):
    DISABLED = "Disabled"
    DATADOG = "Datadog"
    AWS = "AWS"
    OPENTELEMETRY = "OpenTelemetry"


@dataclass(frozen=True, slots=True, kw_only=True)
class VcsMapping:
    """How a VCS is reached that the control plane reaches through an agent pool."""

    pool: str
    base_endpoint: str
    """Takes the place of ``private://<pool>``."""


# Fields that are more than one variable.


def _metadata(environment: Environment, _: Variable) -> Mapping[str, str]:
    tags = environment.starting("SPACELIFT_METADATA_")
    if "" in tags:
        environment.complain(
            "SPACELIFT_METADATA_", "the key is missing at the end of the name"
        )
    return MappingProxyType(tags)


def _vcs_mappings(environment: Environment, _: Variable) -> tuple[VcsMapping, ...]:
    prefix = "SPACELIFT_PRIVATEVCS_MAPPING_"
    halves = environment.starting(prefix)
    numbers = {half.rpartition("_")[2] for half in halves}
    mappings = []
    for number in sorted(numbers, key=lambda text: (len(text), text)):
        name, base = f"NAME_{number}", f"BASE_ENDPOINT_{number}"
        pool = environment.get(prefix + name)
        endpoint = environment.get(prefix + base)
        if not re.fullmatch("[0-9]{1,4}", number) or pool is None or endpoint is None:
            environment.complain(
                f"{prefix}…_{number}",
                f"set both {prefix}NAME_<n> and {prefix}BASE_ENDPOINT_<n>",
            )
        elif environment.parse(
            prefix + base, endpoint, parsing.service_url, "https://git.example.com"
        ):
            mappings.append(VcsMapping(pool=pool, base_endpoint=endpoint.rstrip("/")))
    return tuple(mappings)


def _passed_through(
    environment: Environment, variable: Variable
) -> tuple[jobs.Variable, ...]:
    listed = environment.get(variable.name)
    parse = parsing.list_of(parsing.scoped_variable_name)
    entries = listed and environment.parse(
        variable.name, listed, parse, variable.example
    )
    masked = environment.get("SPACELIFT_MASK_ENVS") or ""
    # Whoever copies a prefix from one list to the other means the same variable.
    names_of = [name.strip() for name in masked.split(",")]
    secret = {*names_of, *(name[3:] for name in names_of if name[:3] in ("ro_", "wo_"))}
    variables = []
    for scope, name in entries or ():
        if name in _OWN_SECRETS:
            environment.complain(
                variable.name, f"no run may know {name}", variable.example
            )
        elif name in environment.variables:
            variables.append(
                jobs.Variable(
                    name=name,
                    value=environment.variables[name],
                    secret=name in secret,
                    scope=scope,
                )
            )
    return tuple(variables)


def _state_dir(environment: Environment, variable: Variable) -> Path | None:
    text = environment.get(variable.name)
    if text is not None:
        path = environment.parse(
            variable.name, text, parsing.absolute_path, variable.example
        )
        return path if isinstance(path, Path) else None
    # systemd's StateDirectory= may list several; the first one is ours.
    given = environment.get("STATE_DIRECTORY")
    return Path(given.split(":")[0]) if given else None


def _policy_path(environment: Environment, variable: Variable) -> Path | None:
    text = environment.get(variable.name)
    if text is None and variable.name in environment.variables:
        # Probably a template that went wrong; "no policy" must be said by silence.
        environment.complain(
            variable.name,
            "it is empty; unset it to run without a policy",
            variable.example,
        )
    return None if text is None else Path(text)


def _listen(environment: Environment, variable: Variable) -> Address | None:
    text = environment.get(variable.name)
    if text is None:
        return NOWHERE if variable.name in environment.variables else None
    return environment.parse(variable.name, text, parsing.address, variable.example)


def _either_case(environment: Environment, variable: Variable) -> object:
    text = environment.get(variable.name) or environment.get(variable.name.lower())
    if text is None:
        return None
    return environment.parse(variable.name, text, variable.parse, variable.example)


_OWN_SECRETS = frozenset(
    {
        "SPACELIFT_TOKEN",
        "SPACELIFT_TOKEN_FILE",
        "SPACELIFT_POOL_PRIVATE_KEY",
        "SPACELIFT_POOL_PRIVATE_KEY_FILE",
        "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG",
        "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG_FILE",
        "OTEL_EXPORTER_OTLP_HEADERS",
    }
)


def without_own_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What programs may know that the launcher starts on the owner's behalf."""
    return {
        name: value for name, value in environment.items() if name not in _OWN_SECRETS
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySettings:
    """Who the launcher is, and to whom it belongs."""

    token: Secret | None = setting(
        "SPACELIFT_TOKEN",
        parsing.secret,
        example="eyJlbmRwb2ludCI6…",
        shown="required by `run`",
        file="SPACELIFT_TOKEN_FILE",
        credential="spacelift_token",
    )
    """
    The worker pool token, as it was printed when the pool was made: base64, with
    the address and the certificate of the control plane in it.  Secret.
    """

    private_key: Secret | None = setting(
        "SPACELIFT_POOL_PRIVATE_KEY",
        parsing.secret,
        example="LS0tLS1CRUdJTiBQUklW…",
        shown="required by `run`",
        file="SPACELIFT_POOL_PRIVATE_KEY_FILE",
        credential="spacelift_pool_private_key",
    )
    """
    The pool's private key: base64 of the PEM file, with or without line breaks; or
    the PEM file itself.  RSA, 3072 bits or more, without a passphrase.  Secret.
    """

    metadata: Mapping[str, str] = setting(
        "SPACELIFT_METADATA_<key>",
        parsing.text,
        unset=MappingProxyType({}),
        example="eu-west-1a",
        read=_metadata,
    )
    """
    Any number of tags that describe this worker, shown in the control plane.
    The part of the name after the prefix is the key.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """The owner's policy, which every run has to pass."""

    path: Path | None = setting(
        "SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY",
        parsing.path,
        example="/etc/spacelift-launcher/policy.rego",
        read=_policy_path,
    )
    """
    The initialization policy: a file of Rego, a directory of such files with
    `data.json` or `data.yaml`, a bundle of OPA (`.tar.gz`), or what `opa build -t
    wasm` made of it (`.wasm`).  Read again on SIGHUP and when it changes.  Unset
    means that every run is let in; set but unusable means that the launcher does
    not start.
    """

    timeout: float | None = setting(
        "SPACELIFT_LAUNCHER_POLICY_TIMEOUT",
        parsing.duration,
        example="2s",
        shown="`5s`; `20s` if the policy calls `exec`",
    )
    """How long one evaluation may take; if it takes longer, the run is denied."""

    exec_allowed: tuple[Program, ...] = setting(
        "SPACELIFT_LAUNCHER_POLICY_EXEC_ALLOWED",
        parsing.list_of(parsing.program),
        unset=(),
        example="/usr/local/bin/verify-run",
    )
    """
    Comma-separated absolute paths of the programs that the policy may start with
    `exec`, each optionally pinned as `path@sha256:…`; no other one is started.
    """

    rego_version: RegoVersion = setting(
        "SPACELIFT_LAUNCHER_POLICY_REGO_VERSION",
        parsing.one_of(RegoVersion),
        default="auto",
        example="v1",
    )
    """
    Dialect of the policy: `v0`, `v1`, or `auto`, which takes v1 if the policy is
    valid v1 and v0 otherwise.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """Which images run, and how the engine gets them."""

    default_runner_image: Reference = setting(
        "SPACELIFT_DEFAULT_RUNNER_IMAGE",
        parsing.image,
        default="public.ecr.aws/spacelift/runner-terraform:latest",
        example="registry.example.com/runner:1.4",
    )
    """Image of runs whose stack names none; Ansible has its own."""

    default_ansible_runner_image: Reference = setting(
        "SPACELIFT_DEFAULT_ANSIBLE_RUNNER_IMAGE",
        parsing.image,
        default="public.ecr.aws/spacelift/runner-ansible:latest",
        example="registry.example.com/runner-ansible:1.4",
    )
    """Image of Ansible runs whose stack names none."""

    allowed_images: tuple[Pattern, ...] = setting(
        "SPACELIFT_LAUNCHER_ALLOWED_IMAGES",
        parsing.list_of(parsing.image_pattern),
        unset=(),
        example="registry.example.com/infra/*,!docker.io/*",
    )
    """
    Comma-separated patterns `registry/repository[:tag][@digest]` of images to
    allow beside the built-in list; with `!` before it a pattern denies, and
    wins.  `!*` alone leaves nothing but what the other patterns allow.  See
    [Which images may run](#which-images-may-run).
    """

    require_digest: bool = setting(
        "SPACELIFT_LAUNCHER_REQUIRE_IMAGE_DIGEST",
        parsing.boolean,
        default="false",
        example="true",
    )
    """Refuse every image that is not pinned by a digest (`…@sha256:…`)."""

    pull_policy: PullPolicy | None = setting(
        "SPACELIFT_LAUNCHER_PULL_POLICY",
        parsing.one_of(PullPolicy),
        example="if-not-present",
        shown="`always` for tags, `if-not-present` for digests",
    )
    """When the engine pulls: `always`, `if-not-present` or `never`."""

    pull_timeout: float = setting(
        "SPACELIFT_LAUNCHER_PULL_TIMEOUT",
        parsing.duration,
        default="15m",
        example="30m",
    )
    """Longest time that pulling an image may take, its repetitions included."""

    pull_stall_timeout: float = setting(
        "SPACELIFT_LAUNCHER_PULL_STALL_TIMEOUT",
        parsing.duration,
        default="2m",
        example="5m",
    )
    """Longest time in which nothing of an image arrives, while it is pulled."""

    gc_threshold: int = setting(
        "SPACELIFT_LAUNCHER_IMAGE_GC_THRESHOLD",
        parsing.percent,
        default="85",
        example="70",
    )
    """
    Per cent of the disk in use above which images are removed that the launcher
    pulled, those first that were not used for longest; at 100 none is.  The
    engine must be on the launcher's machine.
    """

    docker_auth_config: Secret | None = setting(
        "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG",
        parsing.docker_configuration,
        example='{"auths":{"ghcr.io":{"auth":"…"}}}',
        file="SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG_FILE",
    )
    """
    Logins for registries: JSON in the form of Docker's `config.json`, with
    `auths`, `credHelpers` and `credsStore`.  Comes before the file.  Secret.
    See [images.md](images.md).
    """

    docker_config_dir: Path | None = setting(
        "SPACELIFT_DOCKER_CONFIG_DIR",
        parsing.absolute_path,
        example="/var/lib/spacelift-launcher/docker",
    )
    """
    Directory with the `config.json` that `docker login` wrote; read again when
    it has changed.
    """

    ecr_assume_role_arn: str | None = setting(
        "SPACELIFT_LAUNCHER_ECR_ASSUME_ROLE_ARN",
        parsing.role_arn,
        example="arn:aws:iam::123456789012:role/pull-images",
        shown="this machine's AWS identity",
    )
    """AWS role to take on before tokens of ECR are asked for."""

    def pull_policy_for(self, reference: Reference) -> PullPolicy:
        if self.pull_policy is not None:
            return self.pull_policy
        return PullPolicy.IF_NOT_PRESENT if reference.digest else PullPolicy.ALWAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSettings:
    """What the container of a run gets from this machine."""

    network: str | None = setting(
        "SPACELIFT_WORKER_NETWORK",
        parsing.name,
        example="runners",
        shown="a network of the launcher's own",
    )
    """
    The engine's network for run containers, by name or id.  The launcher's own
    one keeps runs from each other and from the machine; yours is yours to guard.
    """

    metadata_reachable: bool = setting(
        "SPACELIFT_RUNS_MAY_REACH_METADATA",
        parsing.boolean,
        default="false",
        example="true",
    )
    """
    Let runs reach this machine's metadata service, and so have its identity in the
    cloud.  Read by the packet filter that keeps them from it, of
    `spacelift-launcher-network.service` or of the chart; the launcher warns of it.
    """

    runtime: str | None = setting(
        "SPACELIFT_WORKER_RUNTIME",
        parsing.name,
        example="runsc",
        shown="the engine's default",
    )
    """The engine's runtime for run containers, for example gVisor's `runsc`."""

    worker_memory: int | None = setting(
        "SPACELIFT_LAUNCHER_WORKER_MEMORY",
        parsing.size,
        example="4GiB",
        shown="the machine's memory, shared among the workers",
    )
    """Memory of one run container, in bytes or with a unit."""

    worker_cpus: float | None = setting(
        "SPACELIFT_LAUNCHER_WORKER_CPUS",
        parsing.cpus,
        example="1.5",
        shown="the machine's processors, shared among the workers",
    )
    """Processors of one run container."""

    create_timeout: float = setting(
        "SPACELIFT_LAUNCHER_CREATE_TIMEOUT",
        parsing.duration,
        default="5m",
        example="10m",
    )
    """
    Longest time in which the engine makes a run's volumes and container, and takes
    the workspace in.
    """

    start_timeout: float = setting(
        "SPACELIFT_LAUNCHER_START_TIMEOUT",
        parsing.duration,
        default="2m",
        example="5m",
    )
    """Longest time in which the engine starts a run's container."""

    stop_timeout: float = setting(
        "SPACELIFT_LAUNCHER_STOP_TIMEOUT",
        parsing.duration,
        default="2m",
        example="5m",
    )
    """
    Longest time in which a container ends whose phases are over, and again in which
    it and its volumes are removed; what then is still there is left to the reaper.
    """
    worker_pids: int = setting(
        "SPACELIFT_LAUNCHER_WORKER_PIDS",
        parsing.integer(64, 1 << 22),
        default="2048",
        example="4096",
    )
    """Processes and threads that one run container may have at a time."""

    mounts: tuple[Mount, ...] = setting(
        "SPACELIFT_WORKER_EXTRA_MOUNTS",
        parsing.list_of(parsing.mount),
        unset=(),
        example="/opt/cache:/opt/cache,/etc/ssl/corp.pem:/etc/ssl/corp.pem",
    )
    """
    Comma-separated `/path/on/the/host:/path/in/the/container` of files and
    directories that every run sees.  Paths of the engine's socket and of the
    launcher's own mounts are refused.
    """

    read_mounts: tuple[Mount, ...] = setting(
        "SPACELIFT_WORKER_RO_EXTRA_MOUNTS",
        parsing.list_of(parsing.mount),
        unset=(),
        example="/opt/plan-only:/opt/secrets",
    )
    """The same, seen only by runs that read (proposed runs and plans)."""

    write_mounts: tuple[Mount, ...] = setting(
        "SPACELIFT_WORKER_WO_EXTRA_MOUNTS",
        parsing.list_of(parsing.mount),
        unset=(),
        example="/opt/apply-only:/opt/secrets",
    )
    """The same, seen only by runs that write (applies, tasks, destroys)."""

    passed_through: tuple[jobs.Variable, ...] = setting(
        "SPACELIFT_WHITELIST_ENVS",
        parsing.text,
        unset=(),
        example="HTTPS_PROXY,NO_PROXY,ro_READ_TOKEN,wo_WRITE_TOKEN",
        read=_passed_through,
    )
    """
    Comma-separated names of the launcher's own variables that runs get; `ro_`
    before a name limits it to runs that read, `wo_` to those that write.
    """

    masked: tuple[str, ...] = setting(
        "SPACELIFT_MASK_ENVS",
        parsing.list_of(parsing.variable_name),
        unset=(),
        example="READ_TOKEN,WRITE_TOKEN",
    )
    """Comma-separated names among them whose values must never show in a log."""

    def mounts_for(self, *, writing: bool) -> tuple[Mount, ...]:
        """What a container sees that serves phases of one kind only."""
        return self.mounts + (self.write_mounts if writing else self.read_mounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How many runs, for how long, and what becomes of their output."""

    workers: int = setting(
        "SPACELIFT_LAUNCHER_WORKERS",
        parsing.integer(1, 1000),
        default="1",
        example="4",
    )
    """Runs that this launcher executes at the same time."""

    run_timeout: float = setting(
        "SPACELIFT_LAUNCHER_RUN_TIMEOUT",
        parsing.duration,
        default="70m",
        example="120m",
    )
    """Longest time a job may take, as a Go duration such as `1h30m`."""

    logs_timeout: float = setting(
        "SPACELIFT_LAUNCHER_LOGS_TIMEOUT",
        parsing.duration,
        default="7m",
        example="1000s",
    )
    """Longest time a job may print nothing, as a Go duration."""

    plan_grace: float = setting(
        "SPACELIFT_LAUNCHER_PLAN_GRACE",
        parsing.duration,
        default="30s",
        example="1m",
    )
    """
    How long a tool that initialises or plans may take to end after it was
    interrupted, before it is terminated; a Go duration.
    """

    apply_grace: float = setting(
        "SPACELIFT_LAUNCHER_APPLY_GRACE",
        parsing.duration,
        default="10m",
        example="30m",
    )
    """
    The same for a tool that applies, performs or destroys: the time it has to
    finish what it is changing and to save its state.
    """

    report_timeout: float | None = setting(
        "SPACELIFT_LAUNCHER_REPORT_TIMEOUT",
        parsing.duration,
        example="1h",
        shown="unset: for ever",
    )
    """
    How long a run's outcome keeps its worker busy when the control plane does not
    answer.  Then the worker is free, and the next start of the launcher reports it.
    """

    log_limit: int = setting(
        "SPACELIFT_LAUNCHER_LOG_LIMIT",
        parsing.size,
        default="1GiB",
        example="200MiB",
    )
    """
    Most that one job may print, in bytes or with a unit, counted as its processes
    wrote them, before anything is masked; more ends the job.
    """

    logs_on_standard_output: bool = setting(
        "SPACELIFT_RUN_LOGS_ON_STANDARD_OUTPUT_ENABLED",
        parsing.boolean,
        default="false",
        example="true",
    )
    """Write the masked output of runs to the launcher's standard output, too."""

    sensitive_output_upload: bool = setting(
        "SPACELIFT_SENSITIVE_OUTPUT_UPLOAD_ENABLED",
        parsing.boolean,
        default="false",
        example="true",
    )
    """Hand sensitive outputs of runs to the control plane, for dependent stacks."""

    plan_values: PlanValues = setting(
        "SPACELIFT_LAUNCHER_PLAN_VALUES",
        parsing.one_of(PlanValues),
        default="none",
        example="sanitized",
    )
    """
    What plan policies of the control plane learn of resources' values: `none`,
    `sanitized` (each text as the last eight digits of its SHA-256) or `plain`.
    Sensitive values and secrets of the run never leave the worker.
    """

    debug: bool = setting(
        "SPACELIFT_DEBUG",
        parsing.boolean,
        default="false",
        example="true",
    )
    """
    Print the commands that are executed into the logs of runs, and a line now and
    then while a run is silent.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What is masked in the logs of runs, and how they get home."""

    mask_short_values: bool = setting(
        "SPACELIFT_LAUNCHER_MASK_SHORT_VALUES",
        parsing.boolean,
        default="false",
        example="true",
    )
    """
    Mask secret values of fewer than 4 characters, too.  Without it they stay
    visible, with a warning, because masking them makes a log unreadable.
    """

    mask_well_known: bool = setting(
        "SPACELIFT_LAUNCHER_MASK_WELL_KNOWN",
        parsing.boolean,
        default="false",
        example="true",
    )
    """
    Mask what looks like a key or token of AWS, Azure, GitHub or Slack, a JWT or a
    private key, in every run; a stack has it for its own runs with the label
    feature:enable_well_known_secret_masking.
    """

    spool_limit: int = setting(
        "SPACELIFT_LAUNCHER_LOG_SPOOL_LIMIT",
        parsing.size,
        default="1GiB",
        example="200MiB",
    )
    """
    Most masked output of one run that waits in the state directory until the
    control plane has it; what is more waits in the run's own volume.
    """

    spool_total: int = setting(
        "SPACELIFT_LAUNCHER_LOG_SPOOL_TOTAL",
        parsing.size,
        default="4GiB",
        example="1GiB",
    )
    """The same, for all runs together."""

    flush_timeout: float | None = setting(
        "SPACELIFT_LAUNCHER_LOG_FLUSH_TIMEOUT",
        parsing.duration,
        example="30m",
        shown="unset: for ever",
    )
    """
    How long a run that is over waits until the control plane has all of its log.
    Then its end is reported all the same, with the number of bytes that are missing.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """Where the code of stacks may come from."""

    git_protocols: tuple[GitProtocol, ...] = setting(
        "SPACELIFT_LAUNCHER_GIT_PROTOCOLS",
        parsing.list_of(parsing.one_of(GitProtocol)),
        default="https,ssh",
        example="https",
    )
    """
    Comma-separated: `https`, `ssh`, and, only if you name them, `http` and `file`.
    """

    allowed: tuple[SourcePattern, ...] = setting(
        "SPACELIFT_LAUNCHER_ALLOWED_SOURCES",
        parsing.list_of(parsing.source_pattern),
        unset=(),
        example="github.com,*.git.example.com:8443,10.0.0.0/8,file:///srv/git",
        shown="every host with public addresses",
    )
    """
    Comma-separated hosts, networks and folders that repositories may come from, and
    no others; `*` stands for every host with public addresses.  See
    [sources.md](sources.md).
    """

    known_hosts: Path | None = setting(
        "SPACELIFT_LAUNCHER_SSH_KNOWN_HOSTS",
        parsing.absolute_path,
        example="/etc/spacelift-launcher/known_hosts",
        shown="the stack's, and `/etc/ssh/ssh_known_hosts`",
    )
    """
    File in the form of OpenSSH's `known_hosts`.  If it is set, no stack says which
    keys of hosts to believe.
    """

    limit: int = setting(
        "SPACELIFT_LAUNCHER_SOURCE_LIMIT",
        parsing.size,
        default="2GiB",
        example="500MiB",
    )
    """The most that one repository may send, and its files may have."""

    timeout: float = setting(
        "SPACELIFT_LAUNCHER_SOURCE_TIMEOUT",
        parsing.duration,
        default="10m",
        example="30m",
    )
    """Longest time that one command of git may take."""

    mirror_limit: int = setting(
        "SPACELIFT_LAUNCHER_MIRROR_LIMIT",
        parsing.size,
        default="10GiB",
        example="50GiB",
    )
    """
    Size of all copies of repositories together that are kept in the state directory;
    those that were not used for longest go first.
    """

    vcs_mappings: tuple[VcsMapping, ...] = setting(
        "SPACELIFT_PRIVATEVCS_MAPPING_NAME_<n>, "
        "SPACELIFT_PRIVATEVCS_MAPPING_BASE_ENDPOINT_<n>",
        parsing.text,
        unset=(),
        example="git-pool / https://git.example.com",
        read=_vcs_mappings,
    )
    """
    Pairs, counted from 0: name of a VCS agent pool, and the URL by which this
    machine reaches what the control plane calls `private://<name>`.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """How the launcher itself gets out."""

    http_proxy: Secret | None = setting(
        "HTTP_PROXY",
        parsing.proxy,
        example="http://proxy.example.com:3128",
        read=_either_case,
    )
    """
    Proxy for http URLs; the lower-case name works, too.  It may hold a password:
    `http://name:password@proxy.example.com:3128`.  Runs get it only if you pass it
    on.
    """

    https_proxy: Secret | None = setting(
        "HTTPS_PROXY",
        parsing.proxy,
        example="http://proxy.example.com:3128",
        read=_either_case,
    )
    """
    Proxy for https URLs: for the control plane, stored workspaces, repositories, AWS
    and the collector of traces.  The proxy sees the names of hosts, and nothing that
    is said to them.
    """

    no_proxy: tuple[str, ...] = setting(
        "NO_PROXY",
        parsing.list_of(parsing.text),
        unset=(),
        example="169.254.169.254,.example.com",
        read=_either_case,
    )
    """
    Comma-separated hosts, domains, addresses and networks that are reached directly,
    repositories included; a name stands for all below it, and `:443` behind an entry
    narrows it to a port.  This machine itself always is.
    """

    root_certificates: tuple[str, ...] = setting(
        "ADDITIONAL_ROOT_CAS",
        parsing.root_certificates,
        unset=(),
        example="eyJjYUNlcnRpZmljYXRlcyI6…",
        file="ADDITIONAL_ROOT_CAS_FILE",
    )
    """
    Certificate authorities to trust besides the system's: base64 of the JSON
    `{"caCertificates": ["<base64 of PEM>"]}`, that JSON, or PEM.
    """

    @property
    def proxies(self) -> Proxies:
        """Which way the launcher's own connections take."""
        return Proxies(
            http=self.http_proxy,
            https=self.https_proxy,
            direct=self.no_proxy,
            roots=self.root_certificates,
        )


class Spot(enum.StrEnum):
    """Whether the cloud's notices are watched for."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """What the launcher uses of its machine."""

    state_dir: Path = setting(
        "SPACELIFT_LAUNCHER_STATE_DIR",
        parsing.absolute_path,
        unset=Path("/var/lib/spacelift-launcher"),
        example="/srv/spacelift-launcher",
        shown="`$STATE_DIRECTORY`, else `/var/lib/spacelift-launcher`",
        read=_state_dir,
    )
    """
    Directory that outlives a restart: journal, identity, compiled policies.  No
    two launchers may share one.
    """

    reaper_dry_run: bool = setting(
        "SPACELIFT_LAUNCHER_REAPER_DRY_RUN",
        parsing.boolean,
        default="false",
        example="true",
    )
    """
    Only log which containers, volumes and networks of this launcher belong to no run
    any more, and remove none of them.
    """

    disk_usage_threshold: int = setting(
        "SPACELIFT_LAUNCHER_DISK_USAGE_THRESHOLD",
        parsing.percent,
        default="100",
        example="90",
    )
    """Per cent of the disk in use at which the launcher takes no more runs."""

    spot: Spot = setting(
        "SPACELIFT_LAUNCHER_SPOT_NOTICES",
        parsing.one_of(Spot),
        default="auto",
        example="off",
    )
    """
    Watch for the notices by which EC2 announces that it takes the machine away:
    `on`, `off`, or `auto`, which is `on` where the firmware says that this is EC2.
    """

    metadata_service: Address = setting(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        parsing.metadata_service,
        default="http://169.254.169.254",
        example="http://[fd00:ec2::254]",
    )
    """
    Where EC2's instance metadata service answers: a link-local or loopback address,
    the one of IPv6, never a name.  No proxy is used.
    """

    docker_host: str | None = setting(
        "DOCKER_HOST",
        parsing.text,
        example="tcp://docker:2376",
        shown="`unix:///var/run/docker.sock`",
    )
    """Address of the container engine: Docker, or what speaks its API."""

    docker_tls_verify: bool = setting(
        "DOCKER_TLS_VERIFY",
        lambda text: text != "0",
        default="0",
        example="1",
    )
    """Check the engine's certificate; any value but `0` switches it on."""

    docker_cert_path: Path | None = setting(
        "DOCKER_CERT_PATH",
        parsing.absolute_path,
        example="/certs/client",
    )
    """Directory with `ca.pem`, `cert.pem` and `key.pem` for the engine."""

    @property
    def docker_environment(self) -> dict[str, str]:
        """The same again, for the engine's client, which takes nothing else."""
        values = {
            "DOCKER_HOST": self.docker_host,
            "DOCKER_TLS_VERIFY": "1" if self.docker_tls_verify else None,
            "DOCKER_CERT_PATH": self.docker_cert_path and str(self.docker_cert_path),
        }
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """Where the launcher reports how it is doing."""

    vendor: ObservabilityVendor = setting(
        "OBSERVABILITY_VENDOR",
        parsing.one_of(ObservabilityVendor),
        default="Disabled",
        example="OpenTelemetry",
    )
    """
    `Datadog`, `AWS`, `OpenTelemetry` or `Disabled`.  Traces go to
    `OTEL_EXPORTER_OTLP_ENDPOINT` whatever it says: the agents of all of them listen
    for OTLP, see [health.md](health.md#traces).
    """

    otlp_endpoint: str | None = setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        parsing.service_url,
        example="http://127.0.0.1:4318",
    )
    """
    Base URL of a collector that takes OTLP over HTTP.  Unset, nothing is traced, and
    runs get no `TRACEPARENT`.
    """

    otlp_headers: Secret | None = setting(
        "OTEL_EXPORTER_OTLP_HEADERS",
        parsing.otlp_headers,
        example="api-key=…",
    )
    """
    Headers for the collector: `name=value`, separated by commas, values encoded as in
    an URL.  Secret.
    """

    service: str = setting(
        "OTEL_SERVICE_NAME",
        parsing.text,
        default="spacelift-launcher",
        example="spacelift-launcher",
    )
    """What the launcher is called in traces."""

    listen: Address = setting(
        "SPACELIFT_LAUNCHER_LISTEN",
        parsing.address,
        default="127.0.0.1:1986",
        example="0.0.0.0:1986",
        read=_listen,
    )
    """
    Address and port of `/livez`, `/readyz` and `/metrics`, see
    [health.md](health.md); port 0 takes a free one and logs it.  Set to nothing,
    it is switched off.  Two launchers on one machine need one each.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it; every part has defaults that work."""

    identity: IdentitySettings = IdentitySettings()
    run: RunSettings = RunSettings()
    logs: LogSettings = LogSettings()
    policy: PolicySettings = PolicySettings()
    images: ImageSettings = ImageSettings()
    container: ContainerSettings = ContainerSettings()
    source: SourceSettings = SourceSettings()
    host: HostSettings = HostSettings()
    network: NetworkSettings = NetworkSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    warnings: tuple[str, ...] = ()
    """What may be meant but is probably not, for the operator's log."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """
        Read and check every variable.

        Raises:
            ConfigurationError: with all problems at once.
        """
        environment = Environment(environ)
        groups = {name: read(group, environment) for name, group in _groups().items()}
        _find_unknown(environment)
        _find_clashes(environment, groups["container"])
        match environment.problems:
            case []:
                settings = cls(**groups)
            case [problem]:
                raise ConfigurationError(problem)
            case problems:
                listed = "".join(f"\n- {problem}" for problem in problems)
                raise ConfigurationError(f"{len(problems)} settings are wrong:{listed}")
        return dataclasses.replace(settings, warnings=tuple(_doubts(settings, environ)))


def _groups() -> dict[str, type[Any]]:
    return {
        field.name: type(field.default)
        for field in dataclasses.fields(Settings)
        if dataclasses.is_dataclass(field.default)
    }


_OURS = "SPACELIFT_LAUNCHER_"

# Kubernetes sets these for a service of the name "spacelift-launcher".
_SERVICE_LINK = re.compile(
    r"(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_.*)?)?)"
)


def _find_unknown(environment: Environment) -> None:
    known = names(_groups().values())
    for name in sorted(environment.variables):
        if not name.startswith(_OURS) or name in known:
            continue
        if _SERVICE_LINK.fullmatch(name.removeprefix(_OURS)):
            continue
        ours = [other.removeprefix(_OURS) for other in known if other.startswith(_OURS)]
        near = difflib.get_close_matches(name.removeprefix(_OURS), sorted(ours), n=1)
        hint = f"; did you mean {_OURS}{near[0]}?" if near else ""
        environment.complain(name, f"unknown{hint}")


def _find_clashes(environment: Environment, container: ContainerSettings) -> None:
    for variable, mounts in (
        ("SPACELIFT_WORKER_RO_EXTRA_MOUNTS", container.mounts_for(writing=False)),
        ("SPACELIFT_WORKER_WO_EXTRA_MOUNTS", container.mounts_for(writing=True)),
    ):
        targets = [mount.target for mount in mounts]
        for target in sorted({path for path in targets if targets.count(path) > 1}):
            environment.complain(
                variable,
                f"two mounts, with SPACELIFT_WORKER_EXTRA_MOUNTS, are at {target}",
            )


def _doubts(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    known = names(_groups().values())
    for name in sorted(environ):
        if not name.startswith("SPACELIFT_") or name in known:
            continue
        if near := difflib.get_close_matches(name, known, n=1, cutoff=0.94):
            yield f"{name} is not used; did you mean {near[0]}?"
    yield from _doubts_about_containers(settings.container)
    yield from _doubts_about_telemetry(settings.telemetry)
    yield from _doubts_about_images(settings.images)


def _doubts_about_containers(container: ContainerSettings) -> Iterator[str]:
    passed = {variable.name for variable in container.passed_through}
    for name in container.masked:
        if name not in passed:
            yield f"SPACELIFT_MASK_ENVS names {name}, which is not passed to runs"
    if container.network is not None:
        yield (
            "SPACELIFT_WORKER_NETWORK is set: keeping runs from each other, from"
            " this machine and from its metadata service is up to that network"
        )
    if container.metadata_reachable:
        yield (
            "SPACELIFT_RUNS_MAY_REACH_METADATA is true: every run may have this"
            " machine's identity in its cloud, and all that it is allowed to do"
        )


def _doubts_about_telemetry(telemetry: TelemetrySettings) -> Iterator[str]:
    listen = telemetry.listen
    if listen != NOWHERE and not parsing.loopback(listen.host):
        yield (
            "SPACELIFT_LAUNCHER_LISTEN is not an address of this machine alone:"
            " whoever reaches it may read how the launcher is doing"
        )
    vendor = telemetry.vendor
    if vendor is not ObservabilityVendor.DISABLED and telemetry.otlp_endpoint is None:
        yield (
            f"OBSERVABILITY_VENDOR is {vendor} and OTEL_EXPORTER_OTLP_ENDPOINT is not"
            " set: nothing is traced"
        )


def _doubts_about_images(images: ImageSettings) -> Iterator[str]:
    logins = images.docker_auth_config or images.docker_config_dir
    for image in (images.default_runner_image, images.default_ansible_runner_image):
        try:
            permitted(
                image,
                images.allowed_images,
                require_digest=images.require_digest,
                # Which registries they are for is not known before they are needed.
                configured=lambda _: "credentials" if logins else None,
            )
        except ImageNotAllowed as exc:
            yield f"a default image is of no use: {exc}"


def documentation() -> str:
    """Return the tables of ``docs/configuration.md``, made from this module."""
    return "\n".join(map(table, _groups().values()))
