import math

import pytest

from hypothesis import given
from hypothesis import strategies as st

from launcher.durations import NANOSECONDS, nanoseconds, parse_duration


MS, S, M, H = 10**6, 10**9, 60 * 10**9, 3600 * 10**9

# What Go 1.26's time.ParseDuration says.
GO = {
    "0": 0,
    "-0": 0,
    "+0": 0,
    "5s": 5 * S,
    "30s": 30 * S,
    "1478s": 1478 * S,
    "-5s": -5 * S,
    "+5s": 5 * S,
    "5.0s": 5 * S,
    "5.6s": 5600 * MS,
    "5.s": 5 * S,
    ".5s": 500 * MS,
    "1.004s": 1004 * MS,
    "1.0040s": 1004 * MS,
    "100.00100s": 100001 * MS,
    "10ns": 10,
    "11us": 11_000,
    "12µs": 12_000,
    "12μs": 12_000,
    "13ms": 13 * MS,
    "14s": 14 * S,
    "15m": 15 * M,
    "16h": 16 * H,
    "3h30m": 3 * H + 30 * M,
    "10.5s4m": 4 * M + 10500 * MS,
    "-2m3.4s": -(2 * M + 3400 * MS),
    "1h2m3s4ms5us6ns": H + 2 * M + 3 * S + 4 * MS + 5006,
    "39h9m14.425s": 39 * H + 9 * M + 14425 * MS,
    "52763797000ns": 52763797000,
    "0.3333333333333333333h": 20 * M,
    "9007199254740993ns": (1 << 53) + 1,
    "9223372036854775807ns": (1 << 63) - 1,
    "9223372036854775.807us": (1 << 63) - 1,
    "9223372036s854ms775us807ns": (1 << 63) - 1,
    "-9223372036854775808ns": -(1 << 63),
    "-9223372036854775.808us": -(1 << 63),
    "-2562047h47m16.854775808s": -(1 << 63),
    "0.100000000000000000000h": 6 * M,
    "0.830103483285477580700h": 49 * M + 48 * S + 372539827,
}
REFUSED_BY_GO = [
    "",
    "3",
    "-",
    "s",
    ".",
    "-.",
    ".s",
    "+.s",
    "1d",
    "1.2.3s",
    "1 s",
    " 1s",
    "1s ",
    "1s\n",
    "1S",
    "--1s",
    "1s-1s",
    "1e3s",
    "١s",
    "\x85\x85",
    "hello world",
    "9223372036854775810ns",
    "9223372036854775808ns",
    "-9223372036854775809ns",
    "9223372036854776us",
    "3000000h",
    "9223372036854775.808us",
    "9223372036854ms775us808ns",
]


@pytest.mark.parametrize(("text", "expected"), GO.items())
def test_reads_what_go_reads(text, expected):
    """
    Every duration that Go accepts means the same here, to the nanosecond.
    """
    assert expected == nanoseconds(text)


@pytest.mark.parametrize("text", REFUSED_BY_GO)
def test_refuses_what_go_refuses(text):
    """
    What Go refuses is refused with a sentence.
    """
    with pytest.raises(ValueError, match=r"^(a duration|the units of a duration) "):
        nanoseconds(text)


def test_says_that_the_unit_is_missing():
    """
    The commonest mistake, a bare number, is called by its name.
    """
    with pytest.raises(ValueError, match="needs a unit"):
        parse_duration("420")


def test_gives_seconds():
    """
    Callers get seconds, fractions included.
    """
    assert 5400.25 == parse_duration("1h30m250ms")


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(list(NANOSECONDS))),
        min_size=1,
        max_size=3,
    )
)
def test_parts_add_up(parts):
    """
    A duration is the sum of its parts, in any order of units.
    """
    text = "".join(f"{number}{unit}" for number, unit in parts)
    total = sum(number * NANOSECONDS[unit] for number, unit in parts)
    if total < 1 << 63:
        assert total == nanoseconds(text)
        assert math.isclose(total / 1e9, parse_duration(text))


@given(st.text())
def test_any_text_is_read_or_refused(text):
    """
    No text makes it fail in another way than ValueError.
    """
    try:
        value = parse_duration(text)
    except ValueError:
        return
    assert math.isfinite(value)
