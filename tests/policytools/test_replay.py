import json

import pytest

from hypothesis import given, strategies as st

from launcher.policytools import specimens
from launcher.policytools.replay import SampleDamaged, replay
from launcher.testing.policies import ScriptedPolicy


def line(outcome="allow", deny=(), **changes):
    sample = {
        "body": "",
        "input": specimens.full(),
        "outcome": outcome,
        "results": {"deny": list(deny), "sample": True},
        "error": "",
    }
    return json.dumps({"msg": "Sample 0/…", "sample": sample | changes}).encode()


def replayed(lines, *reasons):
    return list(replay(lines, ScriptedPolicy.denying(*reasons)))


def test_the_same():
    """
    A sample that the new policy judges as the old one did has not changed.
    """
    samples = replayed([line("deny", ["b", "a"])], "a", "b")

    assert [False] == [sample.changed for sample in samples]


@pytest.mark.parametrize(
    ("before", "reasons"),
    [
        (line("allow"), ["no"]),
        (line("deny", ["no"]), []),
        (line("deny", ["no"]), ["never"]),
        (line("error", results={}), []),
        (line("error", results={}), ["no"]),
    ],
)
def test_changed(before, reasons):
    """
    Another outcome is a change, and so are other reasons.
    """
    assert [True] == [sample.changed for sample in replayed([before], *reasons)]


def test_what_is_shown():
    """
    A sample is found again by its line, and its run by id, stack and phase.
    """
    (sample,) = replayed([b"", b"{}", line()])

    assert (3, "01JD7F0C8Y0000000000000000 testing-spacelift plan") == (
        sample.line,
        sample.run,
    )


@pytest.mark.parametrize(
    "other",
    [
        b"",
        b"\n",
        b"not JSON",
        b"\xff\xfe",
        b"{}",
        b"[]",
        b"null",
        b'{"msg": "sample"}',
        b'{"msg": "a line about a \\"sample\\""}',
        line()[:-5],
        line()[: len(line()) // 2],
        b"[" * 100_000 + b'"sample"',
    ],
)
def test_other_lines(other):
    """
    What is no sample is passed over, and so is one that was cut short.
    """
    assert 2 == len(replayed([line(), other, line()]))


@pytest.mark.parametrize(
    "prefix", [b"Nov 21 03:00:01 host launcher[7]: ", b"2026-11-21T03:00:01Z stderr F "]
)
def test_collected_logs(prefix):
    """
    What a log collector put in front of a line does not matter.
    """
    assert 1 == len(replayed([prefix + line()]))


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"sample": null}',
        b'{"sample": 1}',
        b'{"sample": {}}',
        line(input=None),
        line(input=[]),
        line(outcome=None),
        line(results={"deny": "no"}),
    ],
)
def test_damaged(damaged):
    """
    A sample that cannot be judged is an error: passing it over would hide it.
    """
    with pytest.raises(SampleDamaged, match="line 2 is not a whole sample"):
        replayed([line(), damaged])


@given(st.lists(st.binary(max_size=40)))
def test_any_lines(lines):
    """
    Lines of anything are lines of a log.
    """
    assert [] == replayed(lines)
