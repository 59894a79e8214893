"""The state machine, as a table."""

import pytest

from launcher.controlplane.errors import RequestRefused
from launcher.controlplane.lifecycle import LIFECYCLE, TERMINAL, Event, after
from launcher.wire.jobs import RunState as S


def walk(*events):
    state = S.QUEUED
    for event in events:
        state = after(state, event)
    return state


PLANNED = (Event.SCHEDULE, Event.CLAIM, Event.INITIALIZE, Event.PLAN)
CLAIMED = PLANNED[:2]
REPLANNED = (*PLANNED, Event.HAND_OVER, Event.REPLAN)
CONFIRMED = (*PLANNED, Event.HAND_OVER, Event.CONFIRM)


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ((Event.CANCEL,), S.CANCELED),
        ((Event.DISCARD,), S.DISCARDED),
        ((Event.FAIL,), S.FAILED),
        ((Event.SCHEDULE, Event.CANCEL), S.CANCELED),
        ((Event.SCHEDULE, Event.CLAIM, Event.FAIL), S.FAILED),
        ((Event.SCHEDULE, Event.CLAIM, Event.STOP), S.STOPPED),
        ((*PLANNED, Event.FINISH), S.FINISHED),
        ((*PLANNED, Event.STOP), S.STOPPED),
        ((*PLANNED, Event.APPLY, Event.FINISH), S.FINISHED),
        ((*PLANNED, Event.HAND_OVER, Event.DISCARD), S.DISCARDED),
        ((*CONFIRMED, Event.CLAIM, Event.APPLY, Event.FINISH), S.FINISHED),
        ((*CONFIRMED, Event.CLAIM, Event.APPLY, Event.FAIL), S.FAILED),
        ((*PLANNED, Event.AUTO_CONFIRM, Event.CLAIM, Event.FAIL), S.FAILED),
        ((*CLAIMED, Event.PERFORM, Event.FINISH), S.FINISHED),
        ((*CLAIMED, Event.INITIALIZE, Event.PERFORM, Event.FAIL), S.FAILED),
        ((*PLANNED, Event.APPLY, Event.DESTROY, Event.FINISH), S.FINISHED),
        ((*CONFIRMED, Event.CLAIM, Event.DESTROY, Event.FINISH), S.FINISHED),
        ((*REPLANNED, Event.CLAIM, *PLANNED[2:], Event.FINISH), S.FINISHED),
        ((*REPLANNED, Event.CLAIM, *PLANNED[2:], Event.STOP), S.STOPPED),
        ((*REPLANNED, Event.DISCARD), S.DISCARDED),
        ((*PLANNED, Event.ASK_FOR_REVIEW, Event.FINISH), S.FINISHED),
        ((*PLANNED, Event.ASK_FOR_REVIEW, Event.FAIL), S.FAILED),
        ((Event.SKIP,), S.SKIPPED),
    ],
)
def test_every_way_of_a_run_ends(events, end):
    """What the product documents as transitions leads where it says."""
    assert walk(*events) is end
    assert LIFECYCLE[end].terminal


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (S.APPLYING, Event.STOP),
        (S.APPLYING, Event.CANCEL),
        (S.APPLYING, Event.DISCARD),
        (S.CONFIRMED, Event.DISCARD),
        (S.PREPARING_APPLY, Event.STOP),
        (S.UNCONFIRMED, Event.APPLY),
        (S.UNCONFIRMED, Event.FINISH),
        (S.INITIALIZING, Event.APPLY),
        (S.PREPARING, Event.PLAN),
        (S.QUEUED, Event.CLAIM),
        (S.PLANNING, Event.CONFIRM),
        (S.PERFORMING, Event.STOP),
        (S.DESTROYING, Event.STOP),
        (S.UNCONFIRMED, Event.DESTROY),
        (S.REPLAN_REQUESTED, Event.CONFIRM),
        (S.PENDING_REVIEW, Event.CONFIRM),
    ],
)
def test_what_the_table_does_not_have_is_refused(state, event):
    """An impossible event is refused with a sentence that names the state."""
    with pytest.raises(RequestRefused, match=state.value):
        after(state, event)


def test_the_end_is_the_end():
    """Nothing can happen to a run in a terminal state."""
    assert set(TERMINAL) == {
        S.FINISHED,
        S.FAILED,
        S.CANCELED,
        S.DISCARDED,
        S.STOPPED,
        S.SKIPPED,
    }
    for state in TERMINAL:
        for event in Event:
            with pytest.raises(RequestRefused):
                after(state, event)


def test_every_state_can_be_reached():
    """The table has no state that nothing leads to."""
    reached = {s for traits in LIFECYCLE.values() for s in traits.leads_to.values()}
    assert reached | {S.QUEUED} == set(LIFECYCLE)


def test_no_writing_state_can_be_left_without_the_worker():
    """Out of a state that changes things only a result leads, never a wish."""
    writing = {state for state, traits in LIFECYCLE.items() if traits.writes}
    assert writing == {S.APPLYING, S.PERFORMING, S.DESTROYING}
    for state in writing:
        further = {Event.DESTROY} if state is S.APPLYING else set()
        assert set(LIFECYCLE[state].leads_to) == {Event.FINISH, Event.FAIL} | further


def test_the_table_has_every_state_of_a_run():
    """[capability 80] Twenty states, but for one that the product has retired."""
    assert set(LIFECYCLE) == set(S)
    assert len(LIFECYCLE) == 20


def test_log_bearing_states_are_those_on_a_worker():
    """Whatever a worker does can be read."""
    for traits in LIFECYCLE.values():
        assert traits.has_logs == traits.on_worker
