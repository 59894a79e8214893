"""Signed requests: what is accepted, what is refused, and what is said about it."""

import base64
import contextlib
import datetime
import hashlib
import re
import subprocess
import sys
import threading
import time

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from http_message_signatures import HTTPMessageVerifier, MappingKeyResolver
from http_message_signatures.algorithms import RSA_PSS_SHA512
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import PoolKeyMismatch, PoolKeyUnusable, TokenUnusable
from launcher.sealing.keys import PoolKey
from launcher.wire.messages import CHECKSUM_HEADER, TOKEN_HEADER, VERSION_HEADER
from launcher.wire.signatures.nonces import Nonces
from launcher.wire.signatures.profile import (
    CERTIFICATE_HEADER,
    INSTALLATION_HEADER,
    Reason,
    SignatureRefused,
    from_octets,
    presented_certificate,
)
from launcher.wire.signatures.signer import RequestSigner
from launcher.wire.signatures.verifier import RequestVerifier


NOW = 1_800_000_000.0
HERE, ELSEWHERE = "aa" * 32, "bb" * 32
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA512()), salt_length=64)


def new_key():
    return PoolKey(rsa.generate_private_key(public_exponent=65537, key_size=3072))


def certificate(public_key, signer):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a pool")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365))
        .sign(signer, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )


KEY, OTHER = new_key(), new_key()
CERTIFICATE = certificate(KEY.rsa.public_key(), KEY.rsa)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


def verifier(clock=None, **options):
    """A verifier that has been there for a while."""
    clock = clock or Clock()
    now, clock.now = clock.now, clock.now - 1000
    made = RequestVerifier(clock, **options)
    clock.now = now
    return made


def signer(clock=None, key=KEY, pem=CERTIFICATE, installation=HERE):
    return RequestSigner(key, pem, installation, clock=clock or Clock())


def request(method="POST", target="/worker/v1/workers", body=b"{}", by=None, **further):
    """A signed request as it arrives: what an ASGI server hands over."""
    own = {VERSION_HEADER: "1", "Content-Type": "application/json"}
    own |= {name.replace("_", "-"): value for name, value in further.items()}
    added = (by or signer()).headers(method, target, own, body=body)
    path, _, query = target.partition("?")
    return SimpleNamespace(
        method=method,
        path=path.encode(),
        query=query.encode(),
        headers=[
            (name.lower().encode(), value.encode())
            for name, value in {**own, **added}.items()
        ],
        body=body,
    )


def verify(sent, by=None, key=KEY, installation=HERE):
    (by or verifier()).verify(
        sent.method,
        sent.path,
        sent.query,
        sent.headers,
        sent.body,
        public_key=key.public,
        installation=installation,
    )


def refused(sent, *arguments, **options):
    """The reason for which a request is refused, which it must be."""
    with pytest.raises(SignatureRefused) as caught:
        verify(sent, *arguments, **options)
    assert str(caught.value)
    return caught.value.reason


def value_of(sent, name):
    [value] = [value for known, value in sent.headers if known == name.lower().encode()]
    return value


def with_header(sent, name, value):
    """The request with another value of a header, or without it."""
    name = name.lower().encode()
    kept = [(known, old) for known, old in sent.headers if known != name]
    sent.headers = kept + ([] if value is None else [(name, value)])
    return sent


# --- what is accepted


@pytest.mark.parametrize("body", [b"", b"{}", bytes(range(256)) * 5000])
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/worker/v1/workers"),
        ("PUT", "/worker/v1/jobs/01J/log?offset=0"),
        ("GET", "/worker/v1/jobs/a%2Fb%20c/workspace"),
        ("PUT", "/x?a=1&b=%C3%A4+%2B&a=2&c"),
        ("GET", "/x?"),
        ("GET", "/?a=/?b"),
    ],
)
def test_a_signed_request_is_accepted(method, target, body):
    """Every method, body and spelling of a target gets through as it was sent."""
    sent = request(method, target, body, **{TOKEN_HEADER: "t0ken"})
    verify(sent)


@given(
    st.sampled_from(["GET", "POST", "PUT"]),
    st.text("abcXYZ019-._~/", max_size=40),
    st.text("abcXYZ019-._~/?=&+", max_size=40),
    st.binary(max_size=200),
)
def test_any_request_is_accepted_once(method, path, query, body):
    """Whatever can be asked for can be asked for in a signed request, and only once."""
    sent, by = request(method, f"/{path}?{query}", body), verifier()
    verify(sent, by)
    assert Reason.REPLAYED == refused(sent, by)


def test_the_order_of_requests_is_not_judged():
    """Two requests that overtake each other both count: offsets and tokens order them."""
    first, second, by = request(body=b"1"), request(body=b"2"), verifier()
    verify(second, by)
    verify(first, by)


def test_a_proxy_may_change_what_is_its_own():
    """Host, hop-by-hop headers and forwarding headers are no part of a signature."""
    sent = request(Host="outside.example")
    with_header(sent, "host", b"inside.example:8080")
    sent.headers += [(b"x-forwarded-for", b"10.0.0.1"), (b"connection", b"close")]
    sent.headers.reverse()
    verify(sent)


def test_the_head_is_verified_before_the_body_is_read():
    """Who asks is known from the head, and what the body has to be."""
    sent, by = request(body=b"abc"), verifier()
    head = (sent.method, sent.path, sent.query, sent.headers)
    whose = {"public_key": KEY.public, "installation": HERE}
    assert hashlib.sha256(b"abc").digest() == by.verify_head(*head, **whose)
    with pytest.raises(SignatureRefused) as caught:
        by.verify_head(*head, **whose)
    assert Reason.REPLAYED is caught.value.reason


def test_a_body_too_large_to_hold_is_signed_by_its_hash():
    """The hash of a body gives the same signature as the body."""
    sent = request(body=b"")
    own = {VERSION_HEADER: "1"}
    added = signer().headers(
        "PUT", "/x", own, sha256=hashlib.sha256(b"stream").digest()
    )
    sent = SimpleNamespace(method="PUT", path=b"/x", query=b"", body=b"stream")
    sent.headers = [(k.encode(), v.encode()) for k, v in {**own, **added}.items()]
    verify(sent)


def test_the_certificate_arrives_with_the_request():
    """The control plane learns from the request which pool it claims to be of."""
    found = presented_certificate(request().headers)
    assert x509.load_pem_x509_certificate(CERTIFICATE.encode()) == found


# --- the format


def base(sent):
    """What the RFC says is signed, put together from the documentation alone."""
    [signed_parameters] = [
        value.decode().removeprefix("spacelift=")
        for name, value in sent.headers
        if name == b"signature-input"
    ]
    ours = sorted(name for name, _ in sent.headers if name.startswith(b"spacelift-"))
    lines = [
        f'"@method": {sent.method}',
        f'"@path": {sent.path.decode()}',
        f'"@query": ?{sent.query.decode()}',
    ]
    lines += [
        f'"{name.decode()}": {value_of(sent, name.decode()).decode()}'
        for name in (b"content-digest", *ours)
    ]
    return "\n".join([*lines, f'"@signature-params": {signed_parameters}']).encode()


def signed_by_hand(sent, rsa_key=KEY.rsa, how=(PSS, hashes.SHA512())):
    """The request with a signature that owes nothing to our signer."""
    text = base64.b64encode(rsa_key.sign(base(sent), *how)).decode()
    return with_header(sent, "signature", f"spacelift=:{text}:".encode())


def test_a_signature_is_over_the_base_of_the_rfc():
    """Anybody can verify our signature who can put the documented lines together."""
    sent = request("PUT", "/a%20b?c=%2F", b"body", **{TOKEN_HEADER: "t"})
    signature = base64.b64decode(value_of(sent, "signature")[len("spacelift=:") : -1])
    KEY.rsa.public_key().verify(signature, base(sent), PSS, hashes.SHA512())


def test_a_signature_of_somebody_elses_program_is_accepted():
    """A launcher need not be ours to be understood."""
    verify(signed_by_hand(request("PUT", "/a%20b?c=%2F", b"b", **{TOKEN_HEADER: "t"})))


def test_other_verifiers_understand_our_signature():
    """A verifier that knows the RFC and not our rules accepts it, with its body."""
    sent = request("PUT", "/a?b=c", b"body", by=signer(time.time))
    keys = {KEY.public.fingerprint: KEY.rsa.public_key()}
    theirs = HTTPMessageVerifier(
        signature_algorithm=RSA_PSS_SHA512,
        key_resolver=MappingKeyResolver(public_keys=keys, private_keys={}),
    )
    message = SimpleNamespace(
        method="PUT",
        url="https://some.example/a?b=c",
        headers={name.decode(): value.decode() for name, value in sent.headers},
    )
    [result] = theirs.verify(
        message, expect_tag="spacelift-worker/1", body=b"body", max_age=None
    )
    assert b"body" == result.body


def test_each_signature_has_a_nonce_of_its_own():
    """The same request signed twice is two requests."""
    by = verifier()
    for _ in range(3):
        verify(request(), by)


# --- what was changed on the way


CHANGES = {
    "method": lambda sent: setattr(sent, "method", "PUT"),
    "path": lambda sent: setattr(sent, "path", b"/worker/v1/other"),
    "spelling": lambda sent: setattr(sent, "path", b"/worker/v1/job%73/1"),
    "query": lambda sent: setattr(sent, "query", b"offset=8"),
    "no query": lambda sent: setattr(sent, "query", b""),
    "token": lambda sent: with_header(sent, TOKEN_HEADER, b"other"),
    "no token": lambda sent: with_header(sent, TOKEN_HEADER, None),
    "version": lambda sent: with_header(sent, VERSION_HEADER, b"2"),
    "checksum": lambda sent: with_header(sent, CHECKSUM_HEADER, b"0" * 64),
    "a further header": lambda sent: with_header(sent, "Spacelift-New", b"1"),
    "digest": lambda sent: with_header(
        sent,
        "Content-Digest",
        b"sha-256=:" + base64.b64encode(hashlib.sha256(b"x").digest()) + b":",
    ),
    "certificate": lambda sent: with_header(
        sent, CERTIFICATE_HEADER, value_of(sent, CERTIFICATE_HEADER)[:-9] + b"AAAAAA==:"
    ),
    "nonce": lambda sent: with_header(
        sent,
        "Signature-Input",
        value_of(sent, "Signature-Input").replace(b'nonce="', b'nonce="0')[:-1],
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_covered_thing_is_guarded(change):
    """Whatever decides the meaning of a request cannot be changed on its way."""
    sent = request(
        "POST",
        "/worker/v1/jobs/1?offset=7",
        **{TOKEN_HEADER: "t0ken", CHECKSUM_HEADER: "1" * 64},
    )
    change(sent)
    assert refused(sent) in (Reason.INVALID, Reason.MALFORMED)


COVERED_HEADERS = (
    b"signature",
    b"signature-input",
    b"content-digest",
    TOKEN_HEADER.lower().encode(),
    VERSION_HEADER.lower().encode(),
    INSTALLATION_HEADER.lower().encode(),
    CERTIFICATE_HEADER.lower().encode(),
)


@given(st.data())
def test_no_byte_can_be_changed(data):
    """A byte that is changed, added or missing anywhere is noticed."""
    sent = request("PUT", "/a/b?c=d", b"a body", **{TOKEN_HEADER: "t0ken"})
    parts = {"method": sent.method.encode(), "path": sent.path}
    parts |= {"query": sent.query, "body": sent.body}
    parts |= {name: value_of(sent, name.decode()) for name in COVERED_HEADERS}
    place = data.draw(st.sampled_from(list(parts)))
    old = parts[place]
    at = data.draw(st.integers(0, len(old) - 1))
    with_byte = data.draw(st.binary(max_size=2))
    new = old[:at] + with_byte + old[at + 1 :]
    if new == old:
        return
    if place in ("path", "query", "body"):
        setattr(sent, place, new)
    elif place == "method":
        sent.method = new.decode("latin-1")
    else:
        with_header(sent, place.decode(), new)
    refused(sent)


@pytest.mark.parametrize("body", [b"", b"a bod", b"a body!", b"A body"])
def test_another_body_is_refused(body):
    """A body that was cut, made longer or changed is refused as such, and may come again."""
    sent, by = request(body=b"a body"), verifier()
    whole, sent.body = sent.body, body
    assert Reason.WRONG_DIGEST is refused(sent, by)
    sent.body = whole
    verify(sent, by)


# --- time


@pytest.mark.parametrize("age", [-5, 0, 30, 60])
def test_within_the_window_time_is_no_matter(age):
    """A minute on the way and a clock five seconds ahead are forgiven."""
    verify(request(by=signer(Clock(NOW - age))))


@pytest.mark.parametrize(
    ("age", "reason", "sentence"),
    [
        (61, Reason.STALE, "signed 61 s ago"),
        (3600, Reason.STALE, "signed 3600 s ago"),
        (NOW, Reason.STALE, f"signed {NOW:.0f} s ago"),
        (-6, Reason.AHEAD, "a clock that is 6 s ahead"),
        (-3600, Reason.AHEAD, "a clock that is 3600 s ahead"),
    ],
)
def test_a_wrong_clock_is_told_by_how_much(age, reason, sentence):
    """Who is refused for the time learns how far the clocks are apart, in seconds."""
    with pytest.raises(SignatureRefused, match=sentence) as caught:
        verify(request(by=signer(Clock(NOW - age))))
    assert (reason, -age) == (caught.value.reason, caught.value.seconds)
    assert not caught.value.passing


def test_nobody_is_told_the_time_for_a_forged_signature():
    """Clocks are spoken of only to who has the pool's key."""
    sent = request(by=signer(Clock(NOW - 3600)))
    sent.path = b"/changed"
    assert Reason.INVALID is refused(sent)


# --- once only


def test_a_replay_is_refused_for_as_long_as_it_might_work():
    """A request is refused as used until it is refused as old."""
    clock = Clock()
    sent, by = request(by=signer(Clock(NOW + 5))), verifier(clock)
    verify(sent, by)
    for later in range(66):
        clock.now = NOW + later
        verify(request(by=signer(clock)), by)
        assert Reason.REPLAYED is refused(sent, by)
    clock.now = NOW + 66
    assert Reason.STALE is refused(sent, by)


def test_a_forged_request_burns_no_nonce():
    """Who lacks the key cannot use up the nonce of a request that is still to come."""
    sent, by = request(), verifier()
    forged = signed_by_hand(SimpleNamespace(**vars(sent)), OTHER.rsa)
    assert Reason.INVALID is refused(forged, by)
    verify(sent, by)


@pytest.mark.parametrize("off", [0, 4])
def test_a_restart_opens_no_hole(off):
    """
    What a predecessor may have accepted is refused, even if the sender's clock was
    ahead; signed again after the time that is told, it is accepted.
    """
    clock = Clock(NOW + 0.7)
    sending = Clock(clock.now + off)
    sent = request(by=signer(sending))
    verify(sent, verifier(clock))
    clock.now += 0.1
    restarted = RequestVerifier(clock)
    for later in range(7):
        clock.now = NOW + 0.8 + later
        assert Reason.FORGOTTEN is refused(sent, restarted)
    clock.now = NOW + 0.8
    with pytest.raises(SignatureRefused, match="sign it again in . s") as caught:
        verify(sent, restarted)
    assert caught.value.passing
    clock.now += caught.value.seconds
    sending.now += caught.value.seconds
    verify(request(by=signer(sending)), restarted)


def test_a_clock_that_is_set_back_opens_no_hole():
    """What was used and has been forgotten is not accepted when its time comes again."""
    clock = Clock()
    sent, by = request(by=signer(Clock())), verifier(clock)
    verify(sent, by)
    clock.now = NOW + 3600
    verify(request(by=signer(clock)), by)
    clock.now = NOW
    assert Reason.FORGOTTEN is refused(sent, by)


def test_a_pool_fills_only_its_own_memory():
    """A pool that signs too much is refused until its requests are forgotten; others are not."""
    clock = Clock()
    theirs = signer(clock, OTHER, certificate(OTHER.rsa.public_key(), OTHER.rsa))
    by = verifier(clock, most_nonces=3)
    first = request(by=signer(clock))
    for sent in (first, request(), request()):
        verify(sent, by)
    with pytest.raises(SignatureRefused, match="3 signed requests") as caught:
        verify(request(), by)
    assert (Reason.CROWDED, True) == (caught.value.reason, caught.value.passing)
    assert Reason.REPLAYED is refused(first, by)
    verify(request(by=theirs), by, key=OTHER)
    clock.now += caught.value.seconds + 1
    verify(request(by=signer(clock)), by)


def test_nothing_is_remembered_forever():
    """Room for one window is enough, however long a control plane runs."""
    clock = Clock()
    by, own = verifier(clock, most_nonces=62), signer(clock)
    for _ in range(300):
        verify(request(by=own), by)
        clock.now += 1


def test_of_many_at_once_one_is_accepted():
    """Threads that bring the same nonces at the same moment do not all get through."""
    nonces = Nonces(since=0, window_seconds=60, most=5000)
    start = threading.Barrier(4)

    def bring(_):
        start.wait()
        accepted = 0
        for number in range(5000):
            with contextlib.suppress(SignatureRefused):
                nonces.use("key", number.to_bytes(16), int(NOW), now=NOW)
                accepted += 1
        return accepted

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert 5000 == sum(threads.map(bring, range(4)))
    finally:
        sys.setswitchinterval(interval)


# --- whose it is, and whom it is for


def test_another_pools_key_does_not_count():
    """A pool cannot sign for another, whichever key it names."""
    assert Reason.WRONG_KEY is refused(request(), key=OTHER)
    assert Reason.INVALID is refused(signed_by_hand(request(), OTHER.rsa))


def test_a_request_is_for_one_installation():
    """What was sent to one control plane is worth nothing at another."""
    sent = request(by=signer(installation=ELSEWHERE))
    assert Reason.WRONG_INSTALLATION is refused(sent)
    with_header(sent, INSTALLATION_HEADER, HERE.encode())
    assert Reason.INVALID is refused(sent)


# --- what is not of the one form


@pytest.mark.parametrize(
    "name", [name for name in COVERED_HEADERS if b"token" not in name]
)
def test_a_missing_header_is_named(name):
    """Who forgot a header learns which."""
    sent = with_header(request(), name.decode(), None)
    with pytest.raises(SignatureRefused, match=f"(?i)no header {name.decode()}") as exc:
        verify(sent)
    assert Reason.MISSING is exc.value.reason


@pytest.mark.parametrize("name", COVERED_HEADERS)
def test_a_header_that_is_there_twice_is_refused(name):
    """There is never a choice between two values, not even between equal ones."""
    sent = request(**{TOKEN_HEADER: "t"})
    sent.headers.append((name.title(), value_of(sent, name.decode())))
    assert Reason.MALFORMED is refused(sent)


def test_fewer_covered_components_are_refused():
    """A good signature over less than everything counts for nothing."""
    for left_out in ("@method", "@path", "@query", "content-digest"):
        sent = request()
        text = value_of(sent, "signature-input").replace(f'"{left_out}" '.encode(), b"")
        with_header(sent, "signature-input", text)
        full = base(sent).split(b"\n")
        kept = [line for line in full if not line.startswith(f'"{left_out}"'.encode())]
        signature = KEY.rsa.sign(b"\n".join(kept), PSS, hashes.SHA512())
        value = b"spacelift=:" + base64.b64encode(signature) + b":"
        assert Reason.MALFORMED is refused(with_header(sent, "signature", value))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"rsa-pss-sha512", b"rsa-v1_5-sha256", Reason.MALFORMED),
        (b"rsa-pss-sha512", b"none", Reason.MALFORMED),
        (b';alg="rsa-pss-sha512"', b"", Reason.MALFORMED),
        (b"spacelift-worker/1", b"spacelift-worker/2", Reason.MALFORMED),
        (b";created=", b";expires=1900000000;created=", Reason.MALFORMED),
        (b";created=", b';extra="1";created=', Reason.MALFORMED),
        (b";created=1800000000", b"", Reason.MALFORMED),
        (b";created=1800000000", b";created=-1", Reason.STALE),
        (b";created=1800000000", b";created=999999999999999", Reason.AHEAD),
        (b";created=1800000000", b";created=1800000000.0", Reason.MALFORMED),
        (b";created=1800000000", b';created="1800000000"', Reason.MALFORMED),
        (b'nonce="', b'nonce="0', Reason.MALFORMED),
        (b'keyid="', b'keyid="0', Reason.WRONG_KEY),
        (b"spacelift=", b"other=", Reason.MALFORMED),
        (b"spacelift=", b'b=();created=1;keyid="x", spacelift=', Reason.MALFORMED),
    ],
)
def test_another_form_is_refused_although_it_is_signed(old, new, reason):
    """A good signature whose parameters are not the documented ones is refused."""
    sent = request()
    text = value_of(sent, "signature-input")
    assert old in text
    with_header(sent, "signature-input", text.replace(old, new, 1))
    assert reason is refused(signed_by_hand(sent))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("signature-input", b";created", b"; created"),
        ("signature-input", b"^spacelift=", b"other="),
        ("signature-input", b"$", b","),
        ("signature", b"^spacelift=:", b"spacelift= :"),
        ("signature", b"=:", b"=::"),
        ("signature", b"$", b";x=1"),
        ("content-digest", b"^sha-256=", b"sha-256= "),
        (TOKEN_HEADER, b"^", b" "),
        (TOKEN_HEADER, b"$", b"\t"),
        (VERSION_HEADER, b"$", b" "),
    ],
)
def test_there_is_one_way_to_write_a_signature(name, old, new):
    """Another spelling of the same request is refused: nothing can be read two ways."""
    sent = request(**{TOKEN_HEADER: "t"})
    with_header(sent, name, re.sub(old, new, value_of(sent, name), count=1))
    assert Reason.MALFORMED is refused(sent)


EMPTY = base64.b64encode(hashlib.sha256(b"").digest()).decode()
LONGER = base64.b64encode(hashlib.sha512(b"").digest()).decode()


@pytest.mark.parametrize(
    "text",
    [
        f":{EMPTY}:",
        f"sha-256=:{EMPTY[:-2]}V=:",
        f"sha-256=:{EMPTY[:-4]}:",
        f"sha-256=:{EMPTY}:, sha-256=:{EMPTY}:",
        f"sha-256=:{EMPTY}:, sha-512=:{LONGER}:",
        f"sha-512=:{LONGER}:",
        f"sha-256={EMPTY}",
        "sha-256",
    ],
)
def test_a_digest_is_one_hash_written_in_one_way(text):
    """A digest in any other form is refused, although it is signed and may be right."""
    sent = with_header(request(body=b""), "Content-Digest", text.encode())
    assert Reason.MALFORMED is refused(signed_by_hand(sent))


@pytest.mark.parametrize("text", ["", ":", "::x", "AA==", ":AA:", ":AB==:", ":A A==:"])
def test_bytes_are_written_in_one_way(text):
    """Base64 without its marks, its padding or with bits to spare is not read."""
    assert b"\0" == from_octets(":AA==:")
    with pytest.raises(ValueError):
        from_octets(text)


def test_headers_of_the_protocol_have_plain_names():
    """A name that could be written in two ways is refused, although it is signed."""
    assert Reason.MALFORMED is refused(request(**{"Spacelift-A B": "1"}))


def test_both_headers_have_the_documented_label():
    """The name of a signature is the one that is documented, in both headers."""
    sent = request()
    for name in ("signature", "signature-input"):
        text = value_of(sent, name).replace(b"spacelift=", b"other=", 1)
        with_header(sent, name, text)
    assert Reason.MALFORMED is refused(sent)


@pytest.mark.parametrize(
    "how", [(padding.PKCS1v15(), hashes.SHA512()), (PSS, hashes.SHA256())]
)
def test_another_algorithm_is_no_signature(how):
    """The pool's key counts with the one algorithm only, whatever a header claims."""
    assert Reason.INVALID is refused(signed_by_hand(request(), how=how))


@pytest.mark.parametrize(
    ("path", "query"),
    [(b"/a#b", b""), (b"/a?b", b""), (b"/a", b"b#c"), (b"@x/a", b""), (b"", b"")],
)
def test_a_target_hides_nothing(path, query):
    """No part of a target escapes the signature by looking like something else."""
    sent = request("GET", "/a")
    sent.path, sent.query = path, query
    assert Reason.MALFORMED is refused(sent)


def test_sizes_are_bounded():
    """Neither a header nor their number nor a target can be large."""
    for sent in (
        with_header(request(), "signature-input", b"a" * 9000),
        with_header(request(), CERTIFICATE_HEADER, b":" + b"A" * 9000 + b":"),
        request(**{f"Spacelift-{n}": "1" for n in range(20)}),
    ):
        assert Reason.MALFORMED is refused(sent)
    sent = request("GET", "/a")
    sent.query = b"a" * 9000
    assert Reason.MALFORMED is refused(sent)


@given(st.data())
def test_garbage_is_refused_and_nothing_else(data):
    """Whatever arrives instead of a signed request is refused with a reason."""
    sent = request()
    value = st.one_of(
        st.binary(max_size=60),
        st.text(' "();=:,?\\a1@-_*.', max_size=60).map(str.encode),
        st.sampled_from([b'spacelift=();created=1;keyid="x"', b"spacelift=:AA==:"]),
    )
    for name in data.draw(st.sets(st.sampled_from(COVERED_HEADERS), min_size=1)):
        with_header(sent, name.decode(), data.draw(value))
    sent.headers += data.draw(
        st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=3)
    )
    refused(sent)
    try:
        presented_certificate(sent.headers)
    except SignatureRefused:
        return


@given(st.binary(max_size=300))
def test_garbage_is_no_certificate(garbage):
    """A certificate that cannot be read is refused as such."""
    value = b":" + base64.b64encode(garbage) + b":"
    with pytest.raises(SignatureRefused):
        presented_certificate(with_header(request(), CERTIFICATE_HEADER, value).headers)


@given(st.text(max_size=10), st.binary(max_size=40), st.binary(max_size=40))
def test_a_garbled_target_is_refused(method, path, query):
    """A request line of any bytes is refused with a reason."""
    sent = request("GET", "/a")
    sent.method, sent.path, sent.query = method, b"/" + path, b"x" + query
    refused(sent)


# --- the signer's own


def test_a_signer_needs_a_certificate_that_fits():
    """A certificate that is damaged, of another key or of another kind is told apart."""
    elliptic = ec.generate_private_key(ec.SECP256R1())
    for pem, error in (
        ("hunter2", TokenUnusable),
        (CERTIFICATE[:200], TokenUnusable),
        (certificate(OTHER.rsa.public_key(), OTHER.rsa), PoolKeyMismatch),
        (certificate(elliptic.public_key(), elliptic), PoolKeyUnusable),
    ):
        with pytest.raises(error):
            signer(pem=pem)


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "no/slash", {VERSION_HEADER: "1"}),
        ("GET", "/a#b", {VERSION_HEADER: "1"}),
        ("GET", "/a b", {VERSION_HEADER: "1"}),
        ("GET", "/ä", {VERSION_HEADER: "1"}),
        ("get", "/a", {VERSION_HEADER: "1"}),
        ("GET", "/a", {VERSION_HEADER: "1", TOKEN_HEADER: "a\r\nb"}),
        ("GET", "/a", {}),
    ],
)
def test_what_cannot_be_sent_is_not_signed(method, target, headers):
    """The signer makes no signature that the other side would not accept."""
    with pytest.raises(ValueError):
        signer().headers(method, target, headers)


@pytest.mark.processes
def test_only_who_signs_loads_the_library():
    """A launcher that proves itself by its connection does not pay for signatures."""
    program = (
        "import sys, launcher.bootstrap, launcher.adapters.controlplane.client,"
        " launcher.wire.signatures.profile;"
        "sys.exit('http_message_signatures' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
