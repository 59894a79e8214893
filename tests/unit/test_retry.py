import itertools

from hypothesis import given
from hypothesis import strategies as st

from launcher.retry import Pauses


@given(st.floats(0.01, 10), st.floats(0.01, 100), st.integers(1, 30))
def test_pauses_grow_and_stay_bounded(first, longest, count):
    """Each pause is at least half and at most all of a bound that doubles up to the longest."""
    longest = max(first, longest)
    bound = first
    for pause in itertools.islice(Pauses(first, longest), count):
        assert bound / 2 <= pause <= bound
        bound = min(bound * 2, longest)


def test_a_crowd_does_not_come_back_at_once():
    """Two that begin to wait together do not wait equally long."""
    assert 1 < len({next(Pauses()) for _ in range(20)})


def test_pauses_never_end():
    """However long somebody is away, there is always a next attempt."""
    pauses = Pauses(0.2, 15)
    assert all(
        7.5 <= next(pauses) <= 15
        for _ in itertools.repeat(None, 10)
        if next(pauses) > 7.5
    )
    assert next(iter(pauses)) > 0
