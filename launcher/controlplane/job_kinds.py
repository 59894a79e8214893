"""What each kind of job consists of, and which kinds a run of each type has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.controlplane.store.tables import JobKind
from launcher.wire.jobs import Phase, RunState, RunType, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    phases: tuple[Phase, ...]
    scopes: tuple[Scope, ...]
    """Which variables travel with the job; the launcher picks some for each phase."""
    states: frozenset[RunState]
    """What the worker may report that its run has entered."""
    restores: bool = False
    """Whether it starts from what an earlier job of the run has stored."""


CONTENTS: Mapping[JobKind, Contents] = {
    JobKind.PLAN: Contents(
        phases=(Phase.INITIALIZE, Phase.PLAN),
        scopes=(Scope.ALWAYS, Scope.READ),
        # Entering APPLYING takes the control plane's answer to the plan, too.
        states=frozenset({RunState.INITIALIZING, RunState.PLANNING, RunState.APPLYING}),
    ),
    JobKind.APPLY: Contents(
        phases=(Phase.APPLY,),
        scopes=(Scope.ALWAYS, Scope.WRITE),
        states=frozenset({RunState.APPLYING}),
        restores=True,
    ),
    JobKind.TASK: Contents(
        phases=(Phase.INITIALIZE, Phase.PERFORM),
        scopes=(Scope.ALWAYS, Scope.READ, Scope.WRITE),
        states=frozenset({RunState.INITIALIZING, RunState.PERFORMING}),
    ),
    JobKind.TESTING: Contents(
        phases=(Phase.INITIALIZE, Phase.PLAN, Phase.APPLY, Phase.DESTROY),
        # Those for writing come with the answer to the plan.
        scopes=(Scope.ALWAYS, Scope.READ),
        states=frozenset(
            {
                RunState.INITIALIZING,
                RunState.PLANNING,
                RunState.APPLYING,
                RunState.DESTROYING,
            }
        ),
    ),
    JobKind.DESTROY: Contents(
        phases=(Phase.DESTROY,),
        scopes=(Scope.ALWAYS, Scope.WRITE),
        states=frozenset({RunState.DESTROYING}),
        restores=True,
    ),
}

_FIRST = {RunType.TASK: JobKind.TASK, RunType.TESTING: JobKind.TESTING}


def first(kind: RunType) -> JobKind:
    """The job that a run of this type begins with."""
    return _FIRST.get(kind, JobKind.PLAN)


def after_plan(kind: RunType) -> JobKind:
    """The job that carries out what a run of this type has planned."""
    return JobKind.DESTROY if kind is RunType.DESTROY else JobKind.APPLY


def phases(kind: JobKind, *, skip_init: bool) -> tuple[Phase, ...]:
    """The phases of a job; a task may go without initializing."""
    whole = CONTENTS[kind].phases
    return whole[1:] if skip_init and kind is JobKind.TASK else whole
