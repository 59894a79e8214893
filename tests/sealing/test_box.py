"""Boxes that only one pool can open, and the keys they are made for."""

import base64
import math
import subprocess

import pytest

from cryptography.hazmat.primitives import serialization

from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import PoolKeyUnusable, SealBroken
from launcher.sealing.box import opened, seal
from launcher.sealing.keys import PoolKey


KEY, OTHER = PoolKey.make(), PoolKey.make()


def test_a_box_gives_back_what_was_put_in():
    """The pool reads what was sealed to it, be it empty or large."""
    for plain in (b"", b"hunter2", bytes(1 << 20)):
        box = seal(plain, purpose="job:1", to=KEY.public)
        assert plain == opened(box, purpose="job:1", key=KEY)


def test_a_box_shows_nothing():
    """Neither the content nor that two boxes hold the same is visible."""
    boxes = [seal(b"hunter2", purpose="job:1", to=KEY.public) for _ in range(2)]
    assert boxes[0] != boxes[1]
    assert not any(b"hunter2" in box for box in boxes)


def test_another_pool_opens_nothing():
    """A box is of no use to a pool it was not made for."""
    box = seal(b"hunter2", purpose="job:1", to=KEY.public)
    with pytest.raises(SealBroken):
        opened(box, purpose="job:1", key=OTHER)


def test_a_box_serves_one_purpose():
    """What was sealed for one job cannot be passed off as another one's."""
    box = seal(b"hunter2", purpose="job:1", to=KEY.public)
    with pytest.raises(SealBroken):
        opened(box, purpose="job:2", key=KEY)


@given(st.data())
def test_a_changed_box_does_not_open(data):
    """A bit that is flipped anywhere, or a byte that is missing, is noticed."""
    box = bytearray(seal(b"hunter2", purpose="job:1", to=KEY.public))
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(box) * 8 - 1))
        box[place // 8] ^= 1 << place % 8
    else:
        del box[data.draw(st.integers(0, len(box) - 1)) :]
    with pytest.raises(SealBroken):
        opened(bytes(box), purpose="job:1", key=KEY)


@given(st.binary(max_size=2000))
def test_garbage_is_no_box(garbage):
    """Whatever arrives instead of a box is refused, and nothing else happens."""
    with pytest.raises(SealBroken):
        opened(garbage, purpose="job:1", key=KEY)
    with pytest.raises(SealBroken):
        opened(b"SLB1" + garbage, purpose="job:1", key=KEY)


# --- keys


def openssl(*arguments):
    done = subprocess.run(["openssl", *arguments], capture_output=True, check=True)
    return done.stdout


@pytest.mark.processes
@pytest.mark.parametrize(
    "form", [("genrsa", "3072"), ("genrsa", "-traditional", "4096")]
)
def test_keys_of_openssl_are_read(form):
    """Both ways in which openssl writes RSA keys are understood."""
    assert PoolKey.read(openssl(*form)).rsa.key_size in (3072, 4096)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (("genrsa", "1024"), "the pool's key has 1024 bits; at least 3072"),
        (("genrsa", "2048"), "the pool's key has 2048 bits; at least 3072"),
        (("genrsa", "-aes256", "-passout", "pass:x", "3072"), "is encrypted"),
        (("ecparam", "-genkey", "-name", "prime256v1", "-noout"), "not an RSA key"),
        (("genpkey", "-algorithm", "ed25519"), "not an RSA key"),
    ],
)
def test_other_keys_are_refused_by_name(make, sentence):
    """A key that will not do is refused with what is wrong about it."""
    with pytest.raises(PoolKeyUnusable, match=sentence):
        PoolKey.read(openssl(*make))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (b"", "not a PEM file"),
        (b"hunter2", "not a PEM file"),
        (base64.b64encode(KEY.pem()), "not a PEM file"),
        (KEY.pem()[:500], "damaged"),
        (KEY.pem().replace(b"PRIVATE", b"PUBLIC"), "damaged"),
    ],
)
def test_what_is_no_key_is_refused(given, sentence):
    """The sentence says what it is not, and quotes nothing of it."""
    with pytest.raises(PoolKeyUnusable, match=sentence) as caught:
        PoolKey.read(given)
    assert "hunter2" not in str(caught.value) + caught.value.details


@pytest.mark.processes
@pytest.mark.parametrize("number", ["p", "q", "d", "dmp1", "dmq1", "iqmp", "n", "e"])
def test_a_key_that_does_not_fit_together_is_refused(number):
    """One wrong number in a key is found out, without a word of what is in it."""
    numbers = KEY.rsa.private_numbers()
    owner = numbers.public_numbers if number in ("n", "e") else numbers
    value = getattr(owner, number)
    written = value.to_bytes((value.bit_length() + 7) // 8)
    der = KEY.rsa.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    assert written in der
    damaged = der.replace(written, written[:-1] + bytes([written[-1] ^ 2]), 1)
    lines = base64.encodebytes(damaged)
    begin, end = (f"-----{word} RSA PRIVATE KEY-----\n" for word in ("BEGIN", "END"))
    pem = begin.encode() + lines + end.encode()
    with pytest.raises(PoolKeyUnusable, match="is damaged") as caught:
        PoolKey.read(pem)
    assert not caught.value.details


def crafted(p, q, e):
    """A key in PEM whose numbers fit together as far as that goes."""
    d = pow(e, -1, (p - 1) * (q - 1))
    numbers = (0, p * q, e, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p))
    der = _der(0x30, b"".join(_der(2, _signed(number)) for number in numbers))
    begin, end = (f"-----{word} RSA PRIVATE KEY-----\n" for word in ("BEGIN", "END"))
    return begin.encode() + base64.encodebytes(der) + end.encode()


def _signed(number):
    return number.to_bytes(number.bit_length() // 8 + 1)


def _der(kind, content):
    length = len(content)
    if length < 128:
        return bytes([kind, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([kind, 0x80 | size]) + length.to_bytes(size) + content


def test_keys_that_hide_nothing_are_refused():
    """Numbers may fit together, and anybody could still do what the owner does."""
    numbers = KEY.rsa.private_numbers()
    p, q, e = numbers.p, numbers.q, numbers.public_numbers.e
    assert PoolKey.read(crafted(p, q, e)).public.fingerprint == KEY.public.fingerprint
    even = 1 << p.bit_length()
    fitting = next(
        e for e in range(3, 1000, 2) if math.gcd(e, (even - 1) * (q - 1)) == 1
    )
    for made in (
        crafted(p, q, 1),
        crafted(even, q, fitting),
        crafted(q, even, fitting),
    ):
        with pytest.raises(PoolKeyUnusable, match="is damaged"):
            PoolKey.read(made)


def test_a_trial_that_cannot_be_made_is_a_damaged_key(monkeypatch):
    """What OpenSSL cannot even sign with is no whole key, and no error of its own."""

    def fail(*_):
        raise ValueError("of OpenSSL")

    monkeypatch.setattr(PoolKey, "sign", fail)
    with pytest.raises(PoolKeyUnusable, match="is damaged"):
        PoolKey.read(KEY.pem())


def test_a_key_in_der_is_recognised(tmp_path):
    """Whoever gives DER is told how to make PEM of it."""
    (tmp_path / "key.pem").write_bytes(KEY.pem())
    der = openssl("pkey", "-in", tmp_path / "key.pem", "-outform", "DER")
    with pytest.raises(PoolKeyUnusable, match="in DER; PEM is wanted"):
        PoolKey.read(der)


def test_a_key_shows_nothing_of_itself():
    """The text of a key tells which one it is, and no more."""
    numbers = KEY.rsa.private_numbers()
    assert repr(KEY) == f"PoolKey({KEY.public.fingerprint[:16]}…)"
    assert str(numbers.d) not in repr(KEY)


def test_signatures_are_the_keys_own():
    """What a pool has signed counts for these bytes and this pool only."""
    signature = KEY.sign(b"this")
    assert KEY.public.has_signed(signature, b"this")
    assert not KEY.public.has_signed(signature, b"that")
    assert not OTHER.public.has_signed(signature, b"this")
    assert not KEY.public.has_signed(b"", b"this")
