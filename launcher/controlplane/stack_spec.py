"""
A stack as it is configured, with everything a job of it takes along.

Contexts are resolved when the configuration is applied; a spec is stored sealed,
as one document, and a run is pinned to the spec its first job was made from.
"""

from __future__ import annotations

import itertools

from collections.abc import Iterable
from typing import Any

import msgspec

from launcher.wire.jobs import (
    Hooks,
    MountedFile,
    RegistryLogin,
    Scope,
    Source,
    Variable,
)


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What contexts and stacks have in common."""

    environment: tuple[Variable, ...] = ()
    mounted_files: tuple[MountedFile, ...] = ()
    hooks: Hooks = Hooks()


class AttachedContext(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    priority: int = 0
    auto: bool = False
    """Attached by a label rather than by name; such a context has no priority."""
    bundle: Bundle


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    output: str
    """Of the other stack."""
    variable: str
    """Which runs get it as."""
    always: bool = False
    """Whether a run begins even when the output has not changed."""


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    stack: str
    references: tuple[Reference, ...] = ()


class DriftDetection(msgspec.Struct, frozen=True, kw_only=True):
    """When somebody looks whether the stack still is as it was deployed."""

    schedule: tuple[str, ...]
    """Each with the five fields of cron."""
    timezone: str = "UTC"
    reconcile: bool = False
    """Whether a stack that has drifted is deployed anew."""
    ignore_state: bool = False
    """Whether it is looked at although its last deployment has not finished."""


class StackSpec(msgspec.Struct, frozen=True, kw_only=True):
    slug: str
    name: str
    account: str
    description: str = ""
    repository: str
    source_url: str
    source: Source = Source(url="")
    """How it is fetched; `source_url` says from where."""
    branch: str
    project_root: str = ""
    vendor: str
    vendor_config: dict[str, Any] = {}
    tool_version: str = ""
    worker_pool: str
    runner_image: str = ""
    registry_logins: tuple[RegistryLogin, ...] = ()
    autodeploy: bool = False
    local_preview: bool = False
    """Whether code may be uploaded from people's machines to be planned."""
    run_promotion: bool = False
    """Whether a preview may become a deployment."""
    labels: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    """Names of those attached, by name or by label."""
    depends_on: tuple[Dependency, ...] = ()
    drift_detection: DriftDetection | None = None
    own: Bundle
    contexts: tuple[AttachedContext, ...] = ()
    """Those attached by name first, by priority; then the others, by name."""


HOOK_NAMES = Hooks.__struct_fields__
CHECKOUT = "feature:enable_git_checkout"
"""A label that asks for what `Source.checkout` does."""


def source(spec: StackSpec) -> Source:
    """Where the code of the stack comes from, and how."""
    return msgspec.structs.replace(
        spec.source,
        url=spec.source_url,
        checkout=spec.source.checkout or CHECKOUT in spec.labels,
    )


def weakest_first(spec: StackSpec) -> list[Bundle]:
    """
    The bundles in the order in which later ones win over earlier ones.

    The stack wins over contexts attached by name, those over the ones attached
    by a label.  Among equals the lower priority number, or the name that comes
    first in the alphabet, wins.
    """
    return [*(context.bundle for context in reversed(spec.contexts)), spec.own]


def environment(spec: StackSpec, *scopes: Scope) -> tuple[Variable, ...]:
    """Variables of the given scopes, later ones winning over earlier ones."""
    latest: dict[tuple[str, Scope], Variable] = {}
    for bundle in weakest_first(spec):
        for variable in bundle.environment:
            if variable.scope in scopes:
                key = (variable.name, variable.scope)
                latest.pop(key, None)
                latest[key] = variable
    return tuple(latest.values())


def only_for_writing(spec: StackSpec) -> tuple[Variable, ...]:
    """What a writing phase knows and a reading one must not."""
    strongest = {
        variable.name: variable
        for variable in environment(spec, Scope.ALWAYS, Scope.WRITE)
    }
    return tuple(
        variable for variable in strongest.values() if variable.scope is Scope.WRITE
    )


def mounted_files(spec: StackSpec) -> tuple[MountedFile, ...]:
    """Files by path, the strongest of each."""
    return tuple(
        {
            file.path: file
            for bundle in weakest_first(spec)
            for file in bundle.mounted_files
        }.values()
    )


def hooks(spec: StackSpec) -> Hooks:
    """
    All hooks in the order in which they run.

    Before a phase: contexts by ascending priority, then those attached by a
    label, last name first, then the stack.  After it: the other way round.
    """
    named = [context for context in spec.contexts if not context.auto]
    labelled = [context for context in spec.contexts if context.auto]
    before = [
        *(context.bundle.hooks for context in (*named, *reversed(labelled))),
        spec.own.hooks,
    ]
    return Hooks(
        **{
            name: _chained(
                name, before if name.startswith("before") else reversed(before)
            )
            for name in HOOK_NAMES
        }
    )


def _chained(name: str, sources: Iterable[Hooks]) -> tuple[str, ...]:
    return tuple(
        itertools.chain.from_iterable(getattr(source, name) for source in sources)
    )


def encoded(spec: StackSpec) -> bytes:
    """The same bytes for the same spec."""
    return msgspec.json.encode(spec, order="deterministic")


def decoded(data: bytes) -> StackSpec:
    return msgspec.json.decode(data, type=StackSpec)
