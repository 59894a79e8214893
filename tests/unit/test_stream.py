import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.output.needles import needles
from launcher.output.stream import (
    COMMAND,
    MOST_ADDED,
    MOST_ADDED_BYTES,
    TOO_MANY,
    TOO_SHORT,
    MaskedStream,
)
from support.masking import cut, reference


def through(chunks, **given):
    stream = MaskedStream(**given)
    return b"".join([stream.feed(chunk) for chunk in chunks]) + stream.close()


def oracle(raw, secrets):
    """Line by line and by brute force, what a stream should become."""
    values, clean, plain = list(secrets), b"", b""
    for line in raw.splitlines(keepends=True) if raw else []:
        word, rest = line[: len(COMMAND)], line[len(COMMAND) :]
        if word != COMMAND or (rest and not rest[:1].isspace()):
            plain += line
            continue
        clean, plain = clean + reference(plain, list(needles(values))), b""
        given = rest.split()
        values += [value for value in given if len(value) >= 4]
        end = b"\n" if line.endswith(b"\n") else b""
        clean += b" ".join([COMMAND] + [b"*****"] * len(given)) + end
        if any(len(value) < 4 for value in given):
            clean += (b"" if end else b"\n") + TOO_SHORT
    return clean + reference(plain, list(needles(values)))


pieces = st.sampled_from(
    [
        b"\n",
        b"::add-mask",
        b"::add-mask ",
        b"::add-mask aaaa",
        b"::add-mask abab aaab\n",
        b"::add-mask abc\n",
        b"::add",
        b":",
        b" ",
        b"aaaa",
        b"abab",
        b"aaab\n",
        b"a",
        b"b",
        b"secret",
        b"sec",
        b"ret",
    ]
)
streams = st.lists(pieces, max_size=14).map(b"".join)
cuts = st.lists(st.integers(0, 150), max_size=8)
SECRETS = (b"secret", b"ababa", b"bbbb\naaa")


@settings(max_examples=500)
@given(streams, cuts)
def test_every_chunking_gives_the_same(raw, places):
    """What comes out depends on the bytes and never on how they were cut."""
    assert oracle(raw, SECRETS) == through(cut(raw, places), secrets=SECRETS)


@given(st.binary(max_size=200), cuts)
def test_bytes_without_a_secret_pass_unchanged(raw, places):
    """Any bytes come out as they went in, without a line end at the end, too."""
    assert raw == through(cut(raw, places), secrets=[b"not in there"])


def test_a_mask_takes_effect_from_the_next_byte():
    """A value is masked after its command, in all its forms, and in the command itself."""
    raw = b"token-1 \n::add-mask token-1\ttoken-2\r\ntoken-1 dG9rZW4tMg== ::add-mask x"
    assert b"token-1 \n::add-mask ***** *****\r\n***** *****== ::add-mask x" == through(
        [raw], secrets=[]
    )
    assert through([raw]) == through([raw[i : i + 1] for i in range(len(raw))])


def test_a_command_without_a_line_end_counts_when_the_section_ends():
    """The last line of a phase may be a command, and the next phase knows of it."""
    stream = MaskedStream()
    assert b"" == stream.feed(b"::add-mask my-token")
    assert b"::add-mask *****" == stream.close()
    assert b"it is *****" == stream.feed(b"it is my-token") + stream.close()
    assert (b"my-token",) == stream.added


def test_what_is_no_command_shows_at_once():
    """A prompt is held back no longer than it may be the beginning of a command."""
    stream = MaskedStream()
    assert b"" == stream.feed(b"::")
    assert b":: Name? " == stream.feed(b" Name? ")
    assert b"::add-mas" == stream.feed(b"::add-mas")
    assert b"\n" == stream.feed(b"\n::add-mas")
    assert b"::add-masking" == stream.feed(b"king")


def test_short_values_are_refused_with_a_sentence():
    """A short value is told about without showing it, and the others are masked."""
    stream = MaskedStream()
    shown = stream.feed(b"::add-mask abc long-value\nabc long-value")
    assert b"::add-mask ***** *****\n" + TOO_SHORT + b"abc *****" == shown
    assert 1 == stream.refused
    assert (b"long-value",) == stream.added


def test_short_values_are_masked_for_who_asked_for_it():
    """With the setting, every value is masked, however short."""
    assert b"::add-mask *****\n***** y" == through([b"::add-mask x\nx y"], short=True)


@pytest.mark.parametrize(
    "commands",
    [
        [b"::add-mask value-%d\n" % number for number in range(MOST_ADDED + 1)],
        [b"::add-mask " + b"x" * 4000 + b"%d\n" % number for number in range(17)],
        [b"::add-mask " + b"x" * (MOST_ADDED_BYTES + 1) + b"\n"],
        [b"::add-mask " + b"x" * (4 * MOST_ADDED_BYTES)],
    ],
)
def test_too_many_masks_end_the_output(commands):
    """Past the limits nothing is shown any more, since it could not be masked."""
    stream = MaskedStream()
    shown = b"".join(stream.feed(command) for command in commands)
    assert stream.withheld
    assert shown.endswith(TOO_MANY)
    assert b"" == stream.feed(b"anything\n") + stream.close()
    assert b"xxxx" not in shown


def test_values_that_are_repeated_count_once():
    """A job that adds the same mask for ever never reaches the limit."""
    stream = MaskedStream()
    for _ in range(MOST_ADDED + 1):
        stream.feed(b"::add-mask the-same\n")
    assert not stream.withheld


def test_masks_of_an_earlier_job_are_adopted():
    """What a plan has added is masked in its apply, and is handed on with the rest."""
    stream = MaskedStream()
    stream.adopt([b"from-plan"])
    assert b"*****\n" == stream.feed(b"from-plan\n")
    stream.feed(b"::add-mask of-apply\n")
    assert (b"from-plan", b"of-apply") == stream.added


def test_secrets_that_come_later_are_masked():
    """A section may begin with more secrets than the one before it had."""
    stream = MaskedStream([b"early"])
    stream.feed(b"late ")
    assert b"" == stream.hide([b"late"])
    assert b"***** ***** " == stream.feed(b"early late ")
    assert "a *****" == stream.text("a late")


def test_secrets_that_come_in_between_are_masked_at_once():
    """In the middle of a section, too, and what is held back by then stays masked."""
    for cut in range(1, 10):
        stream = MaskedStream([b"early-secret"])
        clean = stream.feed(b"x early-secret"[: cut + 2])
        stream.hide_at_once([b"late-secret"])
        clean += stream.feed(b"x early-secret"[cut + 2 :] + b" late-") + stream.feed(
            b"secret"
        )
        assert b"x ***** *****" == clean + stream.close()
