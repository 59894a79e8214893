"""Secrets that are known by their looks, in streams that are cut anywhere."""

import itertools
import re

import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.output.mask import MASK, Index, Masker
from launcher.output.patterns import WELL_KNOWN, Run, Shape, Until
from launcher.output.stream import MaskedStream
from support.masking import cut, reference


# Over three letters everything overlaps, and nearly everything may go on.
SMALL = (
    Shape(name="word", begins=b"a", parts=(Run(b"b", 1, 3),)),
    Shape(name="pair", begins=b"ba", parts=(Run(b"ab", 0, 4), b"c", Run(b"a", 1, 2))),
    Shape(name="block", begins=b"cc", parts=(Until(b"ca", 5),)),
    Shape(name="long", begins=b"abcabcabcabc", parts=(Run(b"bc", 0, 2),)),
    Shape(name="plain", begins=b"cab", parts=(b"bab",)),
)


def regex(shape):
    """The same shape in another notation, for another engine."""
    parts = [re.escape(shape.begins)]
    for part in shape.parts:
        match part:
            case bytes():
                parts.append(re.escape(part))
            case Run():
                characters = part._all_of.pattern.removesuffix(b"*")
                parts.append(b"%s{%d,%d}" % (characters, part.least, part.most))
            case Until():
                parts.append(b"(?s:.{0,%d}?)%s" % (part.most, re.escape(part.end)))
    return re.compile(b"".join(parts))


def looks(text, shapes):
    """Every match from every place, as the other engine finds it."""
    return [
        (start, found.end())
        for expression in map(regex, shapes)
        for start in range(len(text))
        if (found := expression.match(text, start))
    ]


def masked(chunks, index):
    masker = Masker(index)
    return b"".join([masker.feed(chunk) for chunk in chunks]) + masker.close()


@settings(max_examples=200)
@given(
    st.text("abc", max_size=40).map(str.encode),
    st.lists(st.text("abc", min_size=1, max_size=9).map(str.encode), max_size=3),
    st.lists(st.sampled_from(SMALL), max_size=5, unique=True),
    st.lists(st.integers(0, 40), max_size=8),
)
def test_every_chunking_gives_what_brute_force_gives(text, secrets, shapes, places):
    """However a stream is cut, the union of all secrets and all looks is masked."""
    expected = reference(text, secrets, looks(text, shapes))
    assert expected == masked(cut(text, places), Index(secrets, shapes))


def everything(shape):
    """All that there is of one of the small shapes."""
    texts = [shape.begins]
    for part in shape.parts:
        match part:
            case bytes():
                more = [part]
            case Run():
                letters = part._all_of.pattern.strip(b"[]*").decode()
                more = words(letters, part.least, part.most)
            case Until():
                more = [word + part.end for word in words("abc", 0, part.most)]
        texts = [text + tail for text in texts for tail in more]
    whole = regex(shape)
    return {text for text in texts if whole.match(text).end() == len(text)}


def words(letters, least, most):
    return [
        "".join(word).encode()
        for length in range(least, most + 1)
        for word in itertools.product(letters, repeat=length)
    ]


BEGINNINGS = {
    shape.name: {text[:n] for text in everything(shape) for n in range(1, len(text))}
    for shape in SMALL
}


@given(
    st.text("abc", max_size=40).map(str.encode),
    st.lists(st.sampled_from(SMALL), max_size=5, unique=True),
)
def test_only_what_may_become_one_is_held_back(text, shapes):
    """The longest tail that begins a match waits, and not one byte more."""
    masker = Masker(Index((), shapes))
    masker.feed(text)
    begun = set().union(*(BEGINNINGS[shape.name] for shape in shapes))
    waiting = max((n for n in range(1, 20) if text[-n:] in begun), default=0)
    assert min(waiting, len(text)) == masker.waiting


BODY = b"".join(
    b"MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj%024d\n" % n for n in range(3)
)


def block(label):
    return b"-----BEGIN %s-----\n%s-----END %s-----" % (label, BODY, label)


EXAMPLES = {
    "AWS access key id": b"AKIA" + b"IOSFODNN7EXAMPLE",
    "Azure AD client secret": b"Q~" + b"aB3.dE6_gH9-jK2~mN5pQ8sT1vW4yZ7xC",
    "Azure account key": b"AccountKey=" + b"Ab+/" * 21 + b"Cd==",
    "Azure shared access signature": b"SharedAccessSignature=sv=2021&sig=a%2Fb%3D",
    "GitHub personal access token": b"ghp_" + b"a1B2c3" * 6,
    "GitHub fine-grained personal access token": b"github_pat_"
    + b"11ABCDEFG0" * 2
    + b"ab_"
    + b"c" * 59,
    "GitHub OAuth access token": b"gho_" + b"a1B2c3" * 6,
    "GitHub app user token": b"ghu_" + b"a1B2c3" * 6,
    "GitHub app installation token": b"ghs_" + b"a1B2c3" * 6,
    "GitHub app refresh token": b"ghr_" + b"a1B2c3d4" * 9,
    "JWT": b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_X",
    "Slack token": b"xoxb-" + b"123456789012-abcdefGHIJ",
    "PGP PRIVATE KEY BLOCK block": block(b"PGP PRIVATE KEY BLOCK"),
    "RSA PRIVATE KEY block": block(b"RSA PRIVATE KEY"),
    "PRIVATE KEY block": block(b"PRIVATE KEY"),
}


def test_there_is_an_example_of_each():
    """What is promised to be recognised has an example below."""
    assert {shape.name for shape in WELL_KNOWN} == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_well_known_secrets_are_masked(name):
    """At once as well as byte by byte, and with text around it."""
    text = b"it is '" + EXAMPLES[name] + b"', see\n"
    hidden = b"it is '*****', see\n"
    if EXAMPLES[name].endswith(b"=="):
        hidden = b"it is '*****=', see\n"  # the second one is filling
    index = Index((), WELL_KNOWN)
    assert hidden == masked([text], index)
    assert hidden == masked([text[i : i + 1] for i in range(len(text))], index)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(list(EXAMPLES.values())),
            st.sampled_from([shape.begins for shape in WELL_KNOWN]),
            st.sampled_from([b".", b"=", b"\n", b"-", b"x", b"eyJ", b"\xc3\xa9"]),
            st.integers(1, 40).map(lambda size: b"A" * size),
        ),
        max_size=8,
    ),
    st.lists(st.integers(0, 4000), max_size=8),
)
def test_looks_in_every_mixture(parts, places):
    """Halves, repetitions and beginnings of the real shapes are masked as a whole."""
    text = b"".join(parts)
    expected = reference(text, [], looks(text, WELL_KNOWN))
    assert expected == masked(cut(text, places), Index((), WELL_KNOWN))


@pytest.mark.parametrize(
    "text",
    [
        b"Enter a value: ",
        b"Do you want to perform these actions? ",
        b"AKIA is a prefix. ",
        b"-----BEGIN CERTIFICATE-----\n",
        b"ghp_short ",
        b"eyJ0 is base64\n",
    ],
)
def test_what_is_none_shows_at_once(text):
    """A prompt, a certificate and the beginnings of words are not held back."""
    assert text == Masker(Index((), WELL_KNOWN)).feed(text)


@pytest.mark.parametrize("shape", WELL_KNOWN, ids=lambda shape: shape.name)
def test_what_waits_is_bounded(shape):
    """A secret that never ends lets go of what is longer than any secret."""
    masker = Masker(Index((), WELL_KNOWN))
    masker.feed(shape.begins)
    for _ in range(40):
        masker.feed(b"A" * 1000)
        assert masker.waiting <= max(each.longest for each in WELL_KNOWN)
    assert masker.feed(b"\n!") != b""
    assert not masker.waiting or b"-----" in shape.begins


def test_texts_that_consist_of_beginnings_are_read_in_one_go():
    """What is made to be slow makes no run of characters be looked at twice."""
    looked = []

    class Counting(Run):
        def end(self, data, start):
            looked.append(start)
            return super().end(data, start)

    slow = Shape(
        name="slow", begins=b"eyJ", parts=(Counting(b"A-Za-z", 8, 9000), b".", b"!")
    )
    Index((), [slow]).search(b"eyJ" * 3000)
    assert 1 == len(looked)


def test_looks_are_masked_in_a_stream_and_in_texts():
    """A job's stream has them beside its secrets, also those that it adds itself."""
    stream = MaskedStream([b"hunter2"], shapes=WELL_KNOWN)
    clean = stream.feed(b"hunter2 and ghp_" + b"a" * 20)
    assert b"%s and " % MASK == clean
    assert MASK + b"\n" == stream.feed(b"a" * 16 + b"\n")
    stream.feed(b"::add-mask swordfish\n")
    clean = stream.feed(b"swordfish ghs_" + b"b" * 40 + b" end") + stream.close()
    assert b"%s %s end" % (MASK, MASK) == clean
    assert "a ***** b" == stream.text("a " + EXAMPLES["JWT"].decode() + " b")
