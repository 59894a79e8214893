"""Token and key of a worker pool, as a launcher is given them."""

import base64
import subprocess
import textwrap

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from support.pool_keys import KEY, OTHER_KEY

from launcher.controlplane.authority import Authority
from launcher.controlplane.clock import new_id
from launcher.errors import (
    CertificateExpired,
    ClockWrong,
    ConfigurationError,
    PoolKeyMismatch,
    PoolKeyUnusable,
    TokenUnusable,
)
from launcher.identity import identified, require_valid
from launcher.secret import Secret
from launcher.wire.messages import PoolToken


ENDPOINT = "https://spacelift.example.com:8443"


@pytest.fixture(name="authority", scope="module")
def _authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(name="token")
def _token(authority):
    """Makes tokens as they are printed."""

    def make(endpoint=ENDPOINT, certificate=None, key=KEY, issuer=None):
        return encoded(
            PoolToken(
                endpoint=endpoint,
                pool="default",
                authority=authority.pem if issuer is None else issuer,
                certificate=certificate
                or authority.pool_certificate("default", new_id(), key.public),
                allowed_hosts=("spacelift.example.com",),
            )
        )

    return make


def encoded(token):
    document = token if isinstance(token, bytes) else msgspec.json.encode(token)
    return base64.b64encode(document).decode()


def given(token, key):
    return identified(token and Secret(token), key and Secret(key))


PEM = KEY.pem().decode()
BASE64 = base64.b64encode(KEY.pem()).decode()


@pytest.mark.parametrize(
    "key",
    [BASE64, PEM, "\n".join(textwrap.wrap(BASE64, 76)), f"  {BASE64}\n"],
    ids=["one line", "the file", "wrapped by base64", "with spaces around"],
)
def test_a_token_and_its_key_are_an_identity(token, key):
    """However the two were copied, line breaks and all, they are understood."""
    wrapped = "\n".join(textwrap.wrap(token(), 76))
    identity = given(wrapped, key)
    assert (identity.token.pool, identity.token.endpoint) == ("default", ENDPOINT)
    assert identity.key.public.fingerprint == KEY.public.fingerprint


@pytest.mark.parametrize("without", ["SPACELIFT_TOKEN", "SPACELIFT_POOL_PRIVATE_KEY"])
def test_both_are_required(token, without):
    """A launcher without one of the two says which, and where it comes from."""
    key, text = BASE64, token()
    with pytest.raises(ConfigurationError, match=f"^{without}: required"):
        given(
            None if without == "SPACELIFT_TOKEN" else text,
            None if without == "SPACELIFT_POOL_PRIVATE_KEY" else key,
        )


def test_the_key_of_another_pool_is_noticed(token):
    """A key that the token was not made for cannot be of any use."""
    with pytest.raises(PoolKeyMismatch, match="is not the key that SPACELIFT_TOKEN"):
        given(token(key=OTHER_KEY), BASE64)


@pytest.mark.parametrize(
    "damage",
    [
        lambda token: token[:-9],
        lambda token: token[: len(token) // 2],
        lambda token: token[20:],
        lambda token: f"{token}!",
        lambda _: "hunter2",
        lambda _: encoded(b"hunter2"),
        lambda _: encoded(b'{"hunter2": 1}'),
        lambda _: encoded(b"[1]"),
        lambda _: encoded(b"\xff\xfe"),
        lambda _: encoded(b'{"endpoint": "hunter2", "pool": 1}'),
    ],
)
def test_tokens_that_are_not_whole_are_refused(token, damage):
    """A damaged token is refused without a word of what is in it."""
    damaged = damage(token())
    with pytest.raises(
        TokenUnusable, match="^SPACELIFT_TOKEN: it is not a whole"
    ) as no:
        given(damaged, BASE64)
    assert damaged not in str(no.value) + no.value.details
    assert "hunter2" not in str(no.value) + no.value.details


def test_a_token_with_a_damaged_certificate_is_refused(token):
    """What cannot show who we are is no token."""
    with pytest.raises(TokenUnusable, match="certificate in it is damaged"):
        given(token(certificate="hunter2"), BASE64)


@pytest.mark.parametrize("issuer", ["", "hunter2", "-----BEGIN CERTIFICATE-----\n"])
def test_a_token_with_a_damaged_authority_is_refused(token, issuer):
    """What cannot recognise the control plane is none either."""
    with pytest.raises(TokenUnusable, match="certificate in it is damaged"):
        given(token(issuer=issuer), BASE64)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://spacelift.example.com",
        "https://spacelift.example.com:8443/prefix",
        "http://localhost:8080",
        "http://127.0.0.1:8080",
        "http://127.1.2.3",
        "http://[::1]:8080",
    ],
)
def test_endpoints(token, endpoint):
    """The control plane is reached by https, or on this very machine."""
    assert endpoint == given(token(endpoint), BASE64).token.endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://spacelift.example.com",
        "http://10.0.0.1",
        "http://localhost.evil.org",
        "http://127.0.0.1.evil.org",
        "http://0.0.0.0:8080",
        "http://localhost@evil.org",
        "ftp://spacelift.example.com",
        "file:///etc/passwd",
        "spacelift.example.com",
        "https://",
        "https://user:pass@spacelift.example.com",
        "https://spacelift.example.com?x=1",
        "https://spacelift.example.com#x",
        "https://spacelift.example.com:port",
        "https://spacelift.example.com\\@evil.org",
        "https://[::1",
        "https://a b",
        "",
    ],
)
def test_endpoints_that_are_refused(token, endpoint):
    """A token that would send secrets in the clear, or elsewhere, is refused."""
    with pytest.raises(TokenUnusable, match="^SPACELIFT_TOKEN: the "):
        given(token(endpoint), BASE64)


def openssl(*arguments, **more):
    return subprocess.run(
        ["openssl", *arguments], capture_output=True, check=True, **more
    ).stdout


@pytest.mark.processes
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (("genrsa", "1024"), "has 1024 bits; at least 3072"),
        (("genpkey", "-algorithm", "ed25519"), "not an RSA key"),
    ],
)
def test_keys_that_will_not_do_are_refused(token, make, sentence):
    """The sentence names the variable, and what is wrong with the key."""
    with pytest.raises(
        PoolKeyUnusable, match=f"^SPACELIFT_POOL_PRIVATE_KEY: .*{sentence}"
    ):
        given(token(), base64.b64encode(openssl(*make)).decode())


@pytest.mark.processes
@pytest.mark.parametrize("as_file", [True, False])
def test_a_key_in_der_is_recognised(token, as_file):
    """DER, as base64 or as the content of a file, is called by its name."""
    der = openssl("pkey", "-outform", "DER", input=KEY.pem())
    text = (
        der.decode("utf-8", "surrogateescape")
        if as_file
        else base64.b64encode(der).decode()
    )
    with pytest.raises(PoolKeyUnusable, match="is in DER; PEM is wanted"):
        given(token(), text)


@pytest.mark.parametrize("value", ["hunter2!", base64.b64encode(b"hunter2").decode()])
def test_what_is_no_key_is_refused(token, value):
    """Nothing of what was taken for a key is shown."""
    with pytest.raises(PoolKeyUnusable, match="not a PEM file") as caught:
        given(token(), value)
    assert "hunter2" not in str(caught.value) + caught.value.details


def test_an_expired_certificate_is_said_to_be(token):
    """Both dates are named, because it may be the clock that is wrong."""
    certificate = given(token(), BASE64).certificate
    late = certificate.not_valid_after_utc + timedelta(days=1)
    with pytest.raises(CertificateExpired) as caught:
        require_valid(certificate, late)
    assert f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}" in str(caught.value)
    assert f"clock says {late:%Y-%m-%d}" in str(caught.value)


def test_a_clock_that_is_behind_is_said_to_be(token):
    """An hour behind, a fresh certificate is not valid yet: that is the clock."""
    certificate = given(token(), BASE64).certificate
    with pytest.raises(ClockWrong, match="this machine's clock says"):
        require_valid(certificate, datetime.now(UTC) - timedelta(hours=1))
    require_valid(certificate, datetime.now(UTC) - timedelta(minutes=5))


def test_an_identity_shows_no_key(token):
    """What ends up in a log by accident holds no secret."""
    identity = given(token(), BASE64)
    assert PEM.splitlines()[1] not in repr(identity)
