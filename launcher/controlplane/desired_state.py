"""
The control plane's configuration file: what there should be.

The file is taken as a whole or not at all.  Everything that is wrong with it is
reported at once, each with its line.
"""

from __future__ import annotations

import re

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import msgspec

from launcher.controlplane import cron
from launcher.controlplane.buckets import Bucket
from launcher.controlplane.identity_provider import (
    SUBJECT,
    Federation,
    checked_subject,
)
from launcher.controlplane.roles import Role
from launcher.controlplane.stack_spec import (
    HOOK_NAMES,
    AttachedContext,
    Bundle,
    Dependency,
    DriftDetection,
    Reference,
    StackSpec,
)
from launcher.controlplane.strict_yaml import Fields, Problems, compose
from launcher.errors import ConfigurationError
from launcher.wire.jobs import (
    LARGEST_FILE,
    LONGEST_VALUE,
    Hooks,
    MountedFile,
    RegistryLogin,
    Scope,
    Source,
    Variable,
)


MAX_POLICY = 256 * 1024
AUTOATTACH = "autoattach:"

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,199}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9_.~-]+(/[A-Za-z0-9_.~-]+)+")
_SCP_LIKE = re.compile(r"[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:[^-].*")
_BAD_IN_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)")
_PREFIXES = {"ro_": Scope.READ, "wo_": Scope.WRITE}
_SCHEMES = ("file", "https", "ssh", "private")

_BUNDLE_KEYS = frozenset({"environment", "mounted_files", "hooks"})
_TOP_KEYS = frozenset(
    {
        "account",
        "endpoint",
        "data_directory",
        "oidc",
        "api_keys",
        "worker_pools",
        "contexts",
        "policies",
        "webhooks",
        "stacks",
        "vcs_agent_pools",
        "retention",
        "workspace_storage",
    }
)
_VCS_KEYS = frozenset({"name", "base_endpoint"})
_OIDC_KEYS = frozenset({"issuer", "jwks_uri", "subject"})
_RETENTION_KEYS = frozenset({"logs_days", "workspaces_days", "samples_days", "samples"})
_STORAGE_KEYS = frozenset(
    {"bucket", "prefix", "region", "endpoint", "presigned", "path_style"}
)
_KEY_KEYS = frozenset({"id", "role", "secret_env", "secret_file"})
_POOL_KEYS = frozenset({"name", "description", "labels", "drift_run_limit"})
_CONTEXT_KEYS = _BUNDLE_KEYS | {"name", "description", "labels"}
_WEBHOOK_KEYS = frozenset({"name", "url", "secret_env", "secret_file", "allow_local"})
_POLICY_KEYS = frozenset({"name", "description", "labels", "type", "body", "file"})
_POLICY_TYPES = ("approval", "plan")
_STACK_KEYS = _BUNDLE_KEYS | {
    "slug",
    "name",
    "description",
    "repository",
    "source",
    "branch",
    "project_root",
    "vendor",
    "vendor_config",
    "tool_version",
    "worker_pool",
    "registry_logins",
    "runner_image",
    "autodeploy",
    "local_preview",
    "run_promotion",
    "labels",
    "contexts",
    "policies",
    "depends_on",
    "drift_detection",
}
_DRIFT_KEYS = frozenset({"schedule", "timezone", "reconcile", "ignore_state"})
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEY_PREFIX = re.compile(r"([A-Za-z0-9_.=-]+/)+")
_REGION = re.compile(r"[a-z0-9-]+")
_LONGEST = 36_500
_DEPENDENCY_KEYS = frozenset({"stack", "references"})
_REFERENCE_KEYS = frozenset({"output", "variable", "trigger_always"})
_SOURCES = ("value", "secret_env", "secret_file")
_VARIABLE_KEYS = frozenset({"name", *_SOURCES})
_CONTENTS = ("content", "file", "secret_env", "secret_file")
_FILE_KEYS = frozenset({"path", "secret", *_CONTENTS})
_SOURCE_KEYS = frozenset(
    {
        "git",
        "checkout",
        "git_sparse_checkout_paths",
        "login",
        "ssh_key",
        "known_hosts",
    }
)
_GIT_LOGIN_KEYS = frozenset({"username", *_SOURCES[1:]})
_LOGIN_KEYS = frozenset({"registry", "username", *_SOURCES[1:]})


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: str
    role: Role
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    name: str
    description: str
    labels: tuple[str, ...]
    drift_limit: int | None = None
    """How many runs may look for drift at once; None: any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    name: str
    labels: tuple[str, ...]
    bundle: Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    name: str
    description: str
    labels: tuple[str, ...]
    type: str
    """As the API spells it: ``PLAN``."""
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    name: str
    url: str
    secret: str = field(repr=False)
    """What deliveries are signed with."""
    allow_local: bool
    """Whether it may be on this machine, or on a link of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long what is kept; the defaults are the product's."""

    logs_days: int = 60
    workspaces_days: int = 7
    samples_days: int = 7
    samples: int = 100
    """Of each policy, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    account: str
    endpoint: str
    """Where clients reach the server; empty: where it listens."""
    data_directory: Path | None
    api_keys: tuple[ApiKey, ...]
    worker_pools: tuple[WorkerPool, ...]
    policies: tuple[PolicyText, ...]
    webhooks: tuple[Webhook, ...]
    stacks: tuple[StackSpec, ...]
    vcs_agent_pools: Mapping[str, str]
    """Endpoints by which this server reaches ``private://<name>``."""
    federation: Federation = field(default_factory=Federation)
    retention: Retention = field(default_factory=Retention)
    bucket: Bucket | None = None
    """Where workspaces wait; None: in the data directory."""


def load(path: Path, environ: Mapping[str, str]) -> DesiredState:
    """
    Read the configuration file at *path*.

    Raises:
        ConfigurationError: it cannot be read, or something in it is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"cannot read {path}: {exc}") from exc
    try:
        return parse(text, path.parent, environ)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{path} is not applied:\n{exc}") from None


def parse(text: str, folder: Path, environ: Mapping[str, str]) -> DesiredState:
    """
    Understand *text*; paths in it are relative to *folder*.

    Raises:
        ConfigurationError: with a line for each thing that is wrong.
    """
    problems = Problems()
    root = compose(text, problems)
    state = None
    if root is not None:
        state = _Parser(folder, environ).desired_state(
            Fields(root, _TOP_KEYS, problems)
        )
    sentences = problems.sentences()
    if sentences or state is None:
        raise ConfigurationError("\n".join(sentences))
    return state


class _Parser:
    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ

    def desired_state(self, top: Fields) -> DesiredState:
        account = top.text("account", check=_matching(_SLUG, "an account name"))
        directory = top.optional_text("data_directory", check=_not_empty)
        keys = top.mappings("api_keys", _KEY_KEYS)
        pools = top.mappings("worker_pools", _POOL_KEYS)
        contexts = top.mappings("contexts", _CONTEXT_KEYS)
        policies = top.mappings("policies", _POLICY_KEYS)
        webhooks = top.mappings("webhooks", _WEBHOOK_KEYS)
        stacks = top.mappings("stacks", _STACK_KEYS)
        api_keys = tuple(self._api_key(item) for item in keys)
        worker_pools = tuple(self._pool(item) for item in pools)
        known = [self._context(item) for item in contexts]
        by_name = {context.name: context for context in known}
        pool_limits = {pool.name: pool.drift_limit for pool in worker_pools}
        texts = tuple(self._policy(item) for item in policies)
        specs = tuple(
            msgspec.structs.replace(
                self._stack(item, account, by_name, pool_limits),
                policies=_judging(item, texts),
                depends_on=_depended_on(item),
            )
            for item in stacks
        )
        vcs = top.mappings("vcs_agent_pools", _VCS_KEYS)
        vcs_names = [one.text("name", check=_matching(_SLUG, "a name")) for one in vcs]
        endpoints = [one.text("base_endpoint", check=_endpoint) for one in vcs]
        _once(vcs, "name", vcs_names)
        _once(keys, "id", [key.id for key in api_keys])
        _once(pools, "name", [pool.name for pool in worker_pools])
        _once(contexts, "name", [context.name for context in known])
        hooks = tuple(self._webhook(item) for item in webhooks)
        _once(webhooks, "name", [webhook.name for webhook in hooks])
        _check_dependencies(stacks, specs)
        _once(policies, "name", [policy.name for policy in texts])
        _once(stacks, "slug", [spec.slug for spec in specs])
        _once(stacks, "name", [spec.name for spec in specs])
        return DesiredState(
            account=account,
            endpoint=top.optional_text("endpoint", check=_endpoint),
            data_directory=self._folder / directory if directory else None,
            api_keys=api_keys,
            worker_pools=worker_pools,
            policies=texts,
            webhooks=hooks,
            stacks=specs,
            vcs_agent_pools=dict(zip(vcs_names, endpoints, strict=True)),
            federation=_federation(top),
            retention=_retention(top.mapping("retention", _RETENTION_KEYS)),
            bucket=_bucket(top.mapping("workspace_storage", _STORAGE_KEYS)),
        )

    def _api_key(self, item: Fields) -> ApiKey:
        item_id = item.text("id", check=_matching(_KEY_ID, "an API key's id"))
        # What is refused gets the least; the file is not applied anyway.
        role = item.optional_text("role", "admin", check=_role)
        return ApiKey(
            id=item_id,
            role=Role(role or Role.READER),
            secret=self._text_from(item, _SOURCES[1:]),
        )

    def _pool(self, item: Fields) -> WorkerPool:
        return WorkerPool(
            name=item.text("name", check=pool_name),
            description=item.optional_text("description"),
            labels=item.texts("labels", check=_not_empty),
            drift_limit=_limit(item, "drift_run_limit"),
        )

    def _context(self, item: Fields) -> Context:
        return Context(
            name=item.text("name", check=_title),
            labels=item.texts("labels", check=_not_empty),
            bundle=self._bundle(item),
        )

    def _webhook(self, item: Fields) -> Webhook:
        return Webhook(
            name=item.text("name", check=_matching(_SLUG, "a webhook's name")),
            url=item.text("url", check=_webhook_url),
            secret=self._text_from(item, _SOURCES[1:]),
            allow_local=item.flag("allow_local"),
        )

    def _policy(self, item: Fields) -> PolicyText:
        source = _only_one(item, ("body", "file"))
        body = item.text("body") if source == "body" else ""
        if source == "file":
            try:
                body = self._bytes_of(item, "file").decode()
            except UnicodeDecodeError:
                item.complain("file", "this file is not UTF-8 text")
        if len(body.encode()) > MAX_POLICY:
            item.complain(source, f"a policy has at most {MAX_POLICY} bytes")
        return PolicyText(
            name=item.text("name", check=_matching(_SLUG, "a policy's name")),
            description=item.optional_text("description"),
            labels=item.texts("labels", check=_not_empty),
            type=item.text("type", check=_one_of(_POLICY_TYPES)).upper(),
            body=body,
        )

    def _stack(
        self,
        item: Fields,
        account: str,
        contexts: Mapping[str, Context],
        pools: Mapping[str, int | None],
    ) -> StackSpec:
        pool = item.text("worker_pool", check=pool_name)
        if pool and pool not in pools:
            item.complain("worker_pool", f"there is no worker pool {pool!r}")
        labels = item.texts("labels", check=_not_empty)
        source = item.mapping("source", _SOURCE_KEYS)
        if source is None:
            item.complain(None, "key 'source' is missing")
        return StackSpec(
            slug=item.text("slug", check=_matching(_SLUG, "a stack's slug")),
            name=item.text("name", check=_title),
            account=account,
            description=item.optional_text("description"),
            repository=item.text(
                "repository", check=_matching(_REPOSITORY, "owner/name")
            ),
            source_url=source.text("git", check=_git_url) if source else "",
            source=self._source(source) if source else Source(url=""),
            branch=item.text("branch", check=_branch),
            project_root=item.optional_text("project_root", check=project_root),
            vendor=item.optional_text(
                "vendor", "terraform", check=_matching(_SLUG, "a vendor's name")
            ),
            vendor_config=item.free("vendor_config"),
            tool_version=item.optional_text("tool_version"),
            worker_pool=pool,
            runner_image=item.optional_text("runner_image", check=one_word),
            registry_logins=self._registry_logins(item),
            autodeploy=item.flag("autodeploy"),
            local_preview=item.flag("local_preview"),
            run_promotion=item.flag("run_promotion"),
            labels=labels,
            drift_detection=_drift_detection(item, pools.get(pool)),
            own=self._bundle(item),
            contexts=_attached(item, labels, contexts),
        )

    def _bundle(self, item: Fields) -> Bundle:
        variables = item.mappings("environment", _VARIABLE_KEYS)
        environment = tuple(self._variable(variable) for variable in variables)
        _once(variables, "name", [v.name and (v.name, v.scope) for v in environment])
        files = item.mappings("mounted_files", _FILE_KEYS)
        mounted = tuple(self._file(file) for file in files)
        _once(files, "path", [file.path for file in mounted])
        hooks = item.mapping("hooks", frozenset(HOOK_NAMES))
        return Bundle(
            environment=environment,
            mounted_files=mounted,
            hooks=Hooks(
                **{name: hooks.texts(name, check=_command) for name in HOOK_NAMES}
            )
            if hooks
            else Hooks(),
        )

    def _variable(self, item: Fields) -> Variable:
        name, stripped, scope = item.text("name"), "", Scope.ALWAYS
        try:
            stripped, scope = variable_name(name) if name else ("", Scope.ALWAYS)
        except ValueError as exc:
            item.complain("name", str(exc))
        value = self._text_from(item, _SOURCES)
        if len(name) + 2 + len(value.encode()) > LONGEST_VALUE:
            item.complain(
                None, f"a variable has at most {LONGEST_VALUE >> 10} KiB, with its name"
            )
        return Variable(
            name=stripped, value=value, secret=not item.has("value"), scope=scope
        )

    def _source(self, item: Fields) -> Source:
        login = item.mapping("login", _GIT_LOGIN_KEYS)
        key = item.mapping("ssh_key", frozenset(_SOURCES[1:]))
        return Source(
            url="",
            checkout=item.flag("checkout"),
            sparse_paths=item.texts("git_sparse_checkout_paths", check=_sparse_path),
            username=login.text("username", check=_not_empty) if login else "",
            password=self._text_from(login, _SOURCES[1:]) if login else "",
            ssh_key=self._text_from(key, _SOURCES[1:]) if key else "",
            known_hosts=item.texts("known_hosts", check=_known_host),
        )

    def _registry_logins(self, item: Fields) -> tuple[RegistryLogin, ...]:
        items = item.mappings("registry_logins", _LOGIN_KEYS)
        logins = tuple(
            RegistryLogin(
                registry=login.text("registry", check=_registry),
                username=login.text("username", check=_not_empty),
                password=self._text_from(login, _SOURCES[1:]),
            )
            for login in items
        )
        _once(items, "registry", [login.registry for login in logins])
        return logins

    def _file(self, item: Fields) -> MountedFile:
        path = item.text("path", check=file_path)
        source = _only_one(item, _CONTENTS)
        if source in ("file", "secret_file"):
            content = self._bytes_of(item, source)
        else:
            content = self._text_of(item, source).encode()
        if len(content) > LARGEST_FILE:
            item.complain(source, f"a mounted file has at most {LARGEST_FILE} bytes")
        secret = (source or "").startswith("secret")
        if secret and item.has("secret") and not item.flag("secret"):
            item.complain("secret", f"what comes from {source} is secret")
        return MountedFile(
            path=path, content=content, secret=item.flag("secret", default=secret)
        )

    def _text_from(self, item: Fields, sources: tuple[str, ...]) -> str:
        return self._text_of(item, _only_one(item, sources))

    def _text_of(self, item: Fields, source: str | None) -> str:
        if source is None:
            return ""
        if source == "secret_env":
            text = self._environ.get(item.text(source, check=_not_empty), "")
            if not text:
                item.complain(source, "this environment variable is not set")
        elif source == "secret_file":
            text = self._secret_text(item, source)
        else:
            text = item.text(source)
        if "\0" in text:
            item.complain(source, "a value cannot hold a NUL character")
        return text

    def _secret_text(self, item: Fields, key: str) -> str:
        try:
            text = self._bytes_of(item, key).decode().removesuffix("\n")
        except UnicodeDecodeError:
            item.complain(key, "this file is not UTF-8 text")
            return ""
        return text.removesuffix("\r")

    def _bytes_of(self, item: Fields, key: str) -> bytes:
        try:
            content = (self._folder / item.text(key, check=_not_empty)).read_bytes()
        except (OSError, ValueError) as exc:
            item.complain(key, f"cannot read this file: {exc}")
            return b""
        if not content and key == "secret_file":
            item.complain(key, "this file is empty")
        return content


def _federation(top: Fields) -> Federation:
    given = top.mapping("oidc", _OIDC_KEYS)
    if given is None:
        return Federation()
    return Federation(
        issuer=given.optional_text("issuer", check=_https),
        jwks_uri=given.optional_text("jwks_uri", check=_https),
        subject=given.optional_text("subject", SUBJECT, check=checked_subject),
    )


def _attached(
    item: Fields, labels: tuple[str, ...], contexts: Mapping[str, Context]
) -> tuple[AttachedContext, ...]:
    attachments = item.mappings("contexts", frozenset({"name", "priority"}))
    given = [attachment.text("name") for attachment in attachments]
    named = []
    for attachment, name in zip(attachments, given, strict=True):
        priority = attachment.number("priority")
        if name in contexts:
            named.append(
                AttachedContext(
                    name=name, priority=priority, bundle=contexts[name].bundle
                )
            )
        elif name:
            attachment.complain("name", f"there is no context {name!r}")
    _once(attachments, "name", given)
    names = {context.name for context in named}
    wanted = {AUTOATTACH + label for label in (*labels, "*")}
    labelled = [
        AttachedContext(name=context.name, auto=True, bundle=context.bundle)
        for context in contexts.values()
        if context.name not in names and not wanted.isdisjoint(context.labels)
    ]
    return (
        *sorted(named, key=lambda context: (context.priority, context.name)),
        *sorted(labelled, key=lambda context: context.name),
    )


def _drift_detection(item: Fields, limit: int | None) -> DriftDetection | None:
    given = item.mapping("drift_detection", _DRIFT_KEYS)
    if given is None:
        return None
    if limit == 0:
        given.complain(None, "its worker pool takes no runs that look for drift")
    schedule = given.texts("schedule", check=cron.schedule)
    if not schedule:
        given.complain("schedule", "a schedule is needed, as in ['0 4 * * *']")
    return DriftDetection(
        schedule=schedule,
        timezone=given.optional_text("timezone", "UTC", check=cron.timezone),
        reconcile=given.flag("reconcile"),
        ignore_state=given.flag("ignore_state"),
    )


def _judging(item: Fields, policies: Sequence[PolicyText]) -> tuple[str, ...]:
    """Names of the policies that a stack names, or its labels attach."""
    named = item.texts("policies", check=_not_empty)
    known = {policy.name for policy in policies}
    for name in named:
        if name not in known:
            item.complain("policies", f"there is no policy {name!r}")
    labels = (*item.texts("labels"), "*")
    wanted = {AUTOATTACH + label for label in labels}
    attached = [p.name for p in policies if not wanted.isdisjoint(p.labels)]
    return tuple(sorted({*named, *attached}))


def _depended_on(item: Fields) -> tuple[Dependency, ...]:
    found = item.mappings("depends_on", _DEPENDENCY_KEYS)
    return tuple(
        Dependency(
            stack=each.text("stack"),
            references=tuple(
                Reference(
                    output=reference.text("output", check=_not_empty),
                    variable=reference.text("variable", check=_plain_variable),
                    always=reference.flag("trigger_always"),
                )
                for reference in each.mappings("references", _REFERENCE_KEYS)
            ),
        )
        for each in found
    )


def _check_dependencies(items: list[Fields], specs: Sequence[StackSpec]) -> None:
    graph = {spec.slug: {d.stack for d in spec.depends_on} for spec in specs}
    for item, spec in zip(items, specs, strict=True):
        names = [dependency.stack for dependency in spec.depends_on]
        for name in names:
            if name and name not in graph:
                item.complain("depends_on", f"there is no stack {name!r}")
        if len(names) != len(set(names)):
            item.complain("depends_on", "a stack is named twice")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        circle = set(exc.args[1])
        for item, spec in zip(items, specs, strict=True):
            if spec.slug in circle:
                item.complain("depends_on", "the stack depends on itself in the end")


def _plain_variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError(f"{text[:100]!r} is not the name of a variable")
    return text


def _once(items: list[Fields], key: str, values: Sequence[object]) -> None:
    seen = set()
    for item, value in zip(items, values, strict=True):
        if value and value in seen:
            item.complain(key, f"another one has this {key} already")
        seen.add(value)


def _only_one(item: Fields, keys: tuple[str, ...]) -> str | None:
    given = [key for key in keys if item.has(key)]
    if len(given) != 1:
        item.complain(None, f"exactly one of {', '.join(keys)} is needed")
        return None
    return given[0]


def _limit(item: Fields, key: str) -> int | None:
    if not item.has(key):
        return None
    limit = item.number(key)
    if not 0 <= limit < 1 << 31:
        item.complain(key, f"{key} must be 0 or more")
    return limit


def variable_name(text: str) -> tuple[str, Scope]:
    """
    The name of a variable and when it is there, which its prefix says.

    Raises:
        ValueError: it is not the name of a variable.
    """
    scope = _PREFIXES.get(text[:3], Scope.ALWAYS)
    stripped = text if scope is Scope.ALWAYS else text[3:]
    if not _VARIABLE.fullmatch(stripped):
        raise ValueError(f"{text[:100]!r} is not the name of a variable")
    return stripped, scope


def pool_name(text: str) -> str:
    """Check the name of a worker pool."""
    return _matching(_SLUG, "a worker pool's name")(text)


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is not {what} ({pattern.pattern})")
        return text

    return check


def _one_of(known: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in known:
            raise ValueError(f"{text!r} is none of {', '.join(known)}")
        return text

    return check


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _title(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 200:
        raise ValueError("must be one line of text, at most 200 characters")
    return text


def _role(text: str) -> str:
    if text not in list(Role):
        raise ValueError(f"must be one of {', '.join(Role)}")
    return text


def _registry(text: str) -> str:
    if not text or "://" in text or text != text.lower() or " " in text:
        raise ValueError("must be a registry, perhaps with a path: ghcr.io/acme")
    return text


def one_word(text: str) -> str:
    """Check a text without white space."""
    if text != "".join(text.split()):
        raise ValueError("must not contain spaces")
    return text


def _command(text: str) -> str:
    if "\0" in text:
        raise ValueError("a command cannot hold a NUL character")
    return _not_empty(text)


def file_path(text: str) -> str:
    """
    Check the path of a file below some folder, and return it in its plain form.

    Raises:
        ValueError: it is absolute, leaves the folder, or is not printable.
    """
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{text!r} must be a relative path without '..'")
    if text.endswith("/") or not text.isprintable():
        raise ValueError(f"{text!r} is not the path of a file")
    return str(path)


def project_root(text: str) -> str:
    """Check a folder of a repository; empty is its top."""
    stripped = text.strip("/") if not text.startswith("/") else text
    return file_path(stripped) if stripped not in ("", ".") else ""


def _sparse_path(text: str) -> str:
    return file_path(text.rstrip("/"))


def _known_host(text: str) -> str:
    if not text.isprintable() or len(text.split()) not in range(3, 20):
        raise ValueError("must be a line of known_hosts: host, kind of key, key")
    return text


def _branch(text: str) -> str:
    wrong = not text or text.startswith(("-", "/", ".")) or text.endswith(("/", "."))
    if wrong or _BAD_IN_BRANCH.search(text):
        raise ValueError(f"{text!r} is not the name of a branch")
    return text


def _git_url(text: str) -> str:
    if not text.isprintable() or " " in text or text.startswith("-"):
        raise ValueError("this is not a URL")
    if "://" not in text and _SCP_LIKE.fullmatch(text):
        return text
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"the URL must begin with one of {', '.join(_SCHEMES)}")
    if parts.password is not None:
        raise ValueError("credentials do not belong into a URL")
    if (parts.scheme == "file") == bool(parts.netloc) or len(parts.path) < 2:
        raise ValueError("this is not the URL of a repository")
    if (parts.hostname or "").startswith("-") or (parts.username or "").startswith("-"):
        raise ValueError("this is not the URL of a repository")
    return text


def _webhook_url(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("this is not a URL")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise ValueError("must be an http or https URL")
    if parts.username or parts.password:
        raise ValueError("credentials do not belong into a URL")
    _ = parts.port  # raises ValueError where there is no such port
    return text


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http or https URL")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("must be a plain URL")
    return text.rstrip("/")


def _https(text: str) -> str:
    if urlsplit(_endpoint(text)).scheme != "https":
        raise ValueError("must be an https URL: clouds ask for no other")
    return text.rstrip("/")


def _retention(given: Fields | None) -> Retention:
    default = Retention()
    if given is None:
        return default
    values = {key: given.number(key, getattr(default, key)) for key in _RETENTION_KEYS}
    for key, value in values.items():
        if not 1 <= value <= _LONGEST:
            given.complain(key, f"{key} must be between 1 and {_LONGEST}")
    return Retention(**values)


def _bucket(given: Fields | None) -> Bucket | None:
    if given is None:
        return None
    return Bucket(
        name=given.text("bucket", check=_matching(_BUCKET, "a bucket's name")),
        prefix=given.optional_text("prefix", check=_matching(_KEY_PREFIX, "a prefix")),
        region=given.text("region", check=_matching(_REGION, "a region")),
        endpoint=given.optional_text("endpoint", check=_secure_endpoint),
        presigned=given.flag("presigned", default=True),
        path_style=given.flag("path_style"),
    )


def _secure_endpoint(text: str) -> str:
    if urlsplit(text).scheme != "https":
        raise ValueError("must be an https URL")
    return _endpoint(text)
