import random
import tracemalloc

import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.output.mask import MASK, Index, Masker
from support.masking import cut, reference


def masked(chunks: list[bytes], secrets: list[bytes]) -> bytes:
    masker = Masker(secrets)
    return b"".join([masker.feed(chunk) for chunk in chunks]) + masker.close()


# Two letters make overlaps, repetitions and prefixes of each other the rule.
few_letters = st.text("ab", max_size=24).map(str.encode)
few_secrets = st.lists(st.text("ab", max_size=7).map(str.encode), max_size=5)


@given(few_letters, few_secrets, st.lists(st.integers(0, 24), max_size=6))
def test_every_chunking_gives_what_brute_force_gives(text, secrets, places):
    """However a stream is cut, exactly the union of all secrets is masked."""
    assert reference(text, secrets) == masked(cut(text, places), secrets)


@given(
    st.lists(
        st.sampled_from([b"key", b"keyhole", b"\r\n", b"\n", b"-", b"\xc3", b"\xa9"])
    ),
    st.lists(st.sampled_from([b"key\n", b"hole-", b"--\xc3\xa9", b"\r\nkey", b"e"])),
    st.lists(st.integers(0, 60), max_size=8),
)
def test_line_ends_and_cut_characters_are_ordinary_bytes(parts, secrets, places):
    """Secrets with line ends or parts of a character are masked in any chunking."""
    text = b"".join(parts)
    assert reference(text, secrets) == masked(cut(text, places), secrets)


@pytest.mark.parametrize(
    ("text", "secrets", "expected"),
    [
        (b"abcdefghi", [b"abcdef", b"defghi"], b"*****"),
        (b"aaaaaa", [b"aaaa"], b"*****"),
        (b"aaa", [b"aaaa"], b"aaa"),
        (b"xaabx", [b"aab"], b"x*****x"),
        (b"0000100", [b"0010"], b"00*****0"),
        (b"abababac", [b"ababac"], b"ab*****"),
        (b"password1 password", [b"password", b"password1"], b"***** *****"),
        (b"abab", [b"ab"], b"**********"),
        (b"1 + 1", [b"1"], b"***** + *****"),
        (b"nothing", [], b"nothing"),
        (b"nothing", [b""], b"nothing"),
    ],
)
def test_known_hard_cases(text, secrets, expected):
    """What other runners leak or garble is masked, byte by byte as well as at once."""
    assert expected == masked([text], secrets)
    assert expected == masked([text[i : i + 1] for i in range(len(text))], secrets)


@given(few_letters, few_letters, few_secrets)
def test_only_what_may_become_a_secret_is_held_back(text, more, secrets):
    """The longest tail that begins a secret waits, and not one byte more."""
    masker = Masker(secrets)
    masker.feed(text)
    beginnings = {s[:length] for s in secrets for length in range(1, len(s))}
    waiting = max((len(b) for b in beginnings if text.endswith(b)), default=0)
    assert waiting == masker.waiting


@given(few_letters, few_letters, few_secrets)
def test_closing_begins_a_new_stream(text, more, secrets):
    """What comes after the end of a section is masked as if nothing had been before."""
    masker = Masker(secrets)
    masker.feed(text)
    masker.close()
    assert reference(more, secrets) == masker.feed(more) + masker.close()


@pytest.mark.parametrize("secret", [b"aaaa", b"ab", b"a", b"ab" * 500 + b"c"])
def test_endless_repetition_is_not_held_back(secret):
    """However often a secret is repeated, less than one secret waits in memory."""
    masker = Masker([secret])
    for _ in range(200):
        masker.feed(secret[:-1] * 7 + secret)
        assert masker.waiting < len(secret)


def test_endless_overlaps_become_one_mask():
    """A secret that overlaps itself for ever is one mask, written when it begins."""
    masker = Masker([b"aa"])
    assert MASK == masker.feed(b"a" * 1000)
    assert b"" == b"".join(masker.feed(b"a" * 1000) for _ in range(50))
    assert b"b" == masker.feed(b"b") + masker.close()


def test_many_matches_take_little_memory():
    """However many secrets each byte is part of, a chunk takes a bounded memory."""
    masker = Masker([b"a" * length for length in range(1, 9)])
    flood = b"a" * (1 << 14)
    tracemalloc.start()
    try:
        masker.feed(flood)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_long_repetitive_secret_does_not_spoil_the_stream():
    """Nothing of a text is lost or masked for looking much like a long secret."""
    secret = b"a" * 9_000 + b"b" * 9_000
    text = (b"a" * 17_000 + b"x") * 3
    assert text == masked(
        [text[i : i + 4096] for i in range(0, len(text), 4096)], [secret]
    )


def test_random_bytes_pass_unchanged():
    """Bytes without a secret arrive exactly, whatever they are."""
    source = random.Random(1)
    text = source.randbytes(300_000)
    chunks = [text[i : i + 7001] for i in range(0, len(text), 7001)]
    assert text == masked(chunks, [b"not-in-there", b"neither-is-this"])


def test_text_is_masked_as_a_whole():
    """A leaf of a document is masked on its own, and nothing of it is left behind."""
    index = Index([b"geheim", "Schlüssel".encode()])
    assert "a ***** b" == index.text("a geheim b")
    assert "*****!" == index.text("Schlüssel!")
    assert "gehe" == index.text("gehe")
    assert "im" == index.text("im")


def test_text_that_is_no_unicode_is_masked_too():
    """Lone surrogates in a text neither raise nor hide a secret."""
    assert "geheim" not in Index([b"geheim"]).text("\ud800geheim\udfff")


# Alphabets in which needles begin alike, contain each other, and are longer than
# what the automaton holds of them.
alphabets = st.sampled_from(["ab", "a", "aab\n", "\x00\xff", "=\r\n", "0123"])
adversarial = alphabets.flatmap(
    lambda letters: st.tuples(
        st.text(letters, max_size=120).map(lambda text: text.encode("latin-1")),
        st.lists(
            st.text(letters, max_size=30).map(lambda text: text.encode("latin-1")),
            max_size=8,
        ),
        st.lists(st.integers(0, 120), max_size=12),
    )
)


@settings(max_examples=500)
@given(adversarial)
def test_long_needles_that_begin_alike_are_told_apart(case):
    """Beginnings longer than any index still decide exactly, in every chunking."""
    text, secrets, places = case
    assert reference(text, secrets) == masked(cut(text, places), secrets)


@settings(max_examples=300)
@given(adversarial)
def test_held_back_is_exactly_the_longest_beginning(case):
    """For needles of any length, not one byte too many waits, nor one too few."""
    text, secrets, _ = case
    masker = Masker(secrets)
    masker.feed(text)
    waiting = max(
        (
            length
            for secret in secrets
            for length in range(1, len(secret))
            if text.endswith(secret[:length])
        ),
        default=0,
    )
    assert waiting == masker.waiting
