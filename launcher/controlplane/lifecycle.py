"""
The life of a run, as one table: what can happen in a state and what comes next.

Nothing else in the control plane decides about states.  Whoever wants to move a
run names an event; an event that the table does not have for the run's state is
refused.
"""

from __future__ import annotations

import enum

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.controlplane.errors import RequestRefused
from launcher.wire.jobs import RunState as S
from launcher.wire.jobs import RunType


class Event(enum.StrEnum):
    SCHEDULE = "scheduled"
    CLAIM = "claimed"
    INITIALIZE = "initialized"
    PLAN = "planned"
    APPLY = "applied"
    PERFORM = "performed"
    DESTROY = "destroyed"
    HAND_OVER = "handed over"
    ASK_FOR_REVIEW = "put up for review"
    REPLAN = "planned again"
    CONFIRM = "confirmed"
    AUTO_CONFIRM = "confirmed automatically"
    DISCARD = "discarded"
    CANCEL = "canceled"
    STOP = "stopped"
    FINISH = "finished"
    FAIL = "failed"
    SKIP = "skipped"


E = Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a state means to everybody else."""

    leads_to: Mapping[Event, S]
    has_logs: bool = False
    on_worker: bool = False
    """A worker holds a job of the run, under a lease."""
    stoppable: bool = False
    """A stop request is passed on to the worker."""
    writes: bool = False
    """Infrastructure may be changing: nobody but the worker can end it."""
    holds_lock: bool = False
    """A run in this state keeps others waiting, if it is one that `BLOCKS`."""

    @property
    def terminal(self) -> bool:
        return not self.leads_to


_WAITING = {
    E.CANCEL: S.CANCELED,
    E.DISCARD: S.DISCARDED,
    E.FAIL: S.FAILED,
}

LIFECYCLE: Mapping[S, Traits] = {
    S.QUEUED: Traits(
        leads_to={E.SCHEDULE: S.READY, E.SKIP: S.SKIPPED, **_WAITING},
    ),
    S.READY: Traits(
        leads_to={E.CLAIM: S.PREPARING, **_WAITING},
        holds_lock=True,
    ),
    S.PREPARING: Traits(
        leads_to={
            E.INITIALIZE: S.INITIALIZING,
            E.PERFORM: S.PERFORMING,
            E.STOP: S.STOPPED,
            E.FAIL: S.FAILED,
        },
        has_logs=True,
        on_worker=True,
        stoppable=True,
        holds_lock=True,
    ),
    S.INITIALIZING: Traits(
        leads_to={
            E.PLAN: S.PLANNING,
            E.PERFORM: S.PERFORMING,
            E.STOP: S.STOPPED,
            E.FAIL: S.FAILED,
        },
        has_logs=True,
        on_worker=True,
        stoppable=True,
        holds_lock=True,
    ),
    S.PLANNING: Traits(
        leads_to={
            E.HAND_OVER: S.UNCONFIRMED,
            E.AUTO_CONFIRM: S.CONFIRMED,
            E.ASK_FOR_REVIEW: S.PENDING_REVIEW,
            E.APPLY: S.APPLYING,
            E.DESTROY: S.DESTROYING,
            E.FINISH: S.FINISHED,
            E.STOP: S.STOPPED,
            E.FAIL: S.FAILED,
        },
        has_logs=True,
        on_worker=True,
        stoppable=True,
        holds_lock=True,
    ),
    S.PENDING_REVIEW: Traits(
        leads_to={
            E.FINISH: S.FINISHED,
            E.DISCARD: S.DISCARDED,
            E.FAIL: S.FAILED,
        },
    ),
    S.UNCONFIRMED: Traits(
        leads_to={
            E.CONFIRM: S.CONFIRMED,
            E.REPLAN: S.REPLAN_REQUESTED,
            E.DISCARD: S.DISCARDED,
            E.FAIL: S.FAILED,
        },
        holds_lock=True,
    ),
    S.REPLAN_REQUESTED: Traits(
        leads_to={E.CLAIM: S.PREPARING_REPLAN, **_WAITING},
        holds_lock=True,
    ),
    S.PREPARING_REPLAN: Traits(
        leads_to={E.INITIALIZE: S.INITIALIZING, E.STOP: S.STOPPED, E.FAIL: S.FAILED},
        has_logs=True,
        on_worker=True,
        stoppable=True,
        holds_lock=True,
    ),
    S.CONFIRMED: Traits(
        leads_to={E.CLAIM: S.PREPARING_APPLY, E.FAIL: S.FAILED},
        holds_lock=True,
    ),
    S.PREPARING_APPLY: Traits(
        leads_to={
            E.APPLY: S.APPLYING,
            E.DESTROY: S.DESTROYING,
            E.FAIL: S.FAILED,
        },
        has_logs=True,
        on_worker=True,
        holds_lock=True,
    ),
    S.APPLYING: Traits(
        leads_to={E.DESTROY: S.DESTROYING, E.FINISH: S.FINISHED, E.FAIL: S.FAILED},
        has_logs=True,
        on_worker=True,
        writes=True,
        holds_lock=True,
    ),
    S.PERFORMING: Traits(
        leads_to={E.FINISH: S.FINISHED, E.FAIL: S.FAILED},
        has_logs=True,
        on_worker=True,
        writes=True,
        holds_lock=True,
    ),
    S.DESTROYING: Traits(
        leads_to={E.FINISH: S.FINISHED, E.FAIL: S.FAILED},
        has_logs=True,
        on_worker=True,
        writes=True,
        holds_lock=True,
    ),
    S.FINISHED: Traits(leads_to={}),
    S.FAILED: Traits(leads_to={}),
    S.CANCELED: Traits(leads_to={}),
    S.DISCARDED: Traits(leads_to={}),
    S.STOPPED: Traits(leads_to={}),
    S.SKIPPED: Traits(leads_to={}),
}

BLOCKS = frozenset({RunType.TRACKED, RunType.TASK, RunType.DESTROY})
"""Types of which a stack has one run at a time; the others wait for nobody."""

TERMINAL = tuple(state for state, traits in LIFECYCLE.items() if traits.terminal)

_HINTS = {
    (S.QUEUED, E.STOP): "it has not started yet: cancel or discard it",
    (S.READY, E.STOP): "it has not started yet: cancel or discard it",
    (S.REPLAN_REQUESTED, E.STOP): "it has not started yet: cancel or discard it",
    (S.PENDING_REVIEW, E.STOP): "it waits for a decision: discard it",
    (S.UNCONFIRMED, E.STOP): "it waits for a decision: discard it",
    (S.UNCONFIRMED, E.CANCEL): "it waits for a decision: discard it",
    (S.CONFIRMED, E.STOP): "a confirmed run cannot be stopped",
    (S.PREPARING_APPLY, E.STOP): "a confirmed run cannot be stopped",
    (S.APPLYING, E.STOP): "infrastructure is being changed",
    (S.PERFORMING, E.STOP): "infrastructure is being changed",
    (S.DESTROYING, E.STOP): "infrastructure is being changed",
}


def after(state: S, event: Event) -> S:
    """
    The state that *event* leads to from *state*.

    Raises:
        RequestRefused: in *state* this cannot happen.
    """
    following = LIFECYCLE[state].leads_to.get(event)
    if following is None:
        raise impossible(state, event)
    return following


def impossible(state: S, event: Event) -> RequestRefused:
    """The public sentence about an event that the table does not have."""
    hint = _HINTS.get((state, event))
    sentence = f"a run that is {state} cannot be {event}"
    return RequestRefused(f"{sentence}: {hint}" if hint else sentence)


def for_state(state: S) -> Event:
    """The event by which a worker reports that a run has entered *state*."""
    return {
        S.INITIALIZING: E.INITIALIZE,
        S.PLANNING: E.PLAN,
        S.APPLYING: E.APPLY,
        S.PERFORMING: E.PERFORM,
        S.DESTROYING: E.DESTROY,
    }[state]
