"""Signing in with a browser, as far as a browser and spacectl see it."""

import base64

from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from controlplane.site import ENVIRON, Refused, configuration, running


@pytest.fixture(scope="module")
def key():
    """What spacectl makes for each sign-in."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def told(public, title="RSA PUBLIC KEY"):
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    pem = pem.replace(b"PUBLIC KEY", title.encode())
    return base64.urlsafe_b64encode(pem).rstrip(b"=").decode()


def decoded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def address(site, key, port="1984"):
    return f"{site.base}/cli_login?{urlencode({'key': key, 'port': port})}"


def submit(site, url, **form):
    return site.http.request(
        "POST",
        url,
        body=urlencode(form),
        redirect=False,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )


def opened(key, to):
    """The session that a browser carries to where it is sent."""
    sent = {name: value for name, (value,) in parse_qs(to.query).items()}
    aes = key.decrypt(
        decoded(sent["key"]),
        OAEP(mgf=MGF1(hashes.SHA512()), algorithm=hashes.SHA512(), label=None),
    )
    token = decoded(sent["token"])
    decryptor = Cipher(algorithms.AES(aes), modes.CBC(token[:16])).decryptor()
    unpadder = padding.PKCS7(128).unpadder()
    padded = decryptor.update(token[16:]) + decryptor.finalize()
    return (unpadder.update(padded) + unpadder.finalize()).decode()


def test_a_session_is_carried_to_spacectl(shared_site, key):
    """[capability 231] Encrypted for it, and good for the API."""
    site = shared_site
    url = address(site, told(key.public_key()))
    page = site.http.request("GET", url)
    assert page.status == 200
    assert b'name="secret" type="password"' in page.data
    policy = page.headers["Content-Security-Policy"]
    assert "form-action 'self' http://localhost:1984;" in policy
    answer = submit(site, url, id="ci", secret=ENVIRON["CI_SECRET"])
    assert answer.status == 303
    assert answer.headers["Cache-Control"] == "no-store"
    to = urlsplit(answer.headers["Location"])
    assert (to.scheme, to.netloc, to.path) == ("http", "localhost:1984", "/")
    api = site.stranger()
    api.jwt = opened(key, to)
    assert api("{viewer{id}}") == {"viewer": {"id": "api::ci"}}


def test_a_session_is_worth_what_its_key_is_worth(tmp_path, key):
    """spacectl may do what the role of who has signed in allows."""
    keys = [{"id": "eve", "role": "reader", "secret_env": "CI_SECRET"}]
    with running(tmp_path, configuration([], api_keys=keys)) as site:
        url = address(site, told(key.public_key()))
        answer = submit(site, url, id="eve", secret=ENVIRON["CI_SECRET"])
        api = site.stranger()
        api.jwt = opened(key, urlsplit(answer.headers["Location"]))
        assert api("{viewer{role}}") == {"viewer": {"role": "READER"}}
        with pytest.raises(Refused, match="needs the role admin"):
            api('mutation{workerPoolCycle(id: "default")}')


@pytest.mark.parametrize(
    "form", [{"id": "ci", "secret": "wrong"}, {"id": "nobody"}, {}, {"id": "<script>"}]
)
def test_strangers_get_no_session(shared_site, key, form):
    """They are asked again, and nothing they wrote is repeated."""
    answer = submit(shared_site, address(shared_site, told(key.public_key())), **form)
    assert answer.status == 401
    assert "Location" not in answer.headers
    assert b"script" not in answer.data


@pytest.mark.parametrize(
    "port", ["", "0", "65536", "80/evil", "1984@evil.example", "-1"]
)
def test_a_browser_is_sent_to_this_machine_only(shared_site, key, port):
    """A port is a number, whatever is made of it."""
    url = address(shared_site, told(key.public_key()), port)
    assert shared_site.http.request("GET", url).status == 400
    assert submit(shared_site, url, id="ci", secret=ENVIRON["CI_SECRET"]).status == 400


def test_a_key_must_be_one(shared_site, key):
    """Nothing is encrypted for what is no RSA key, or for a weak one."""
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    curve = ec.generate_private_key(ec.SECP256R1())
    wrong = [
        "",
        "%%%",
        "x" * 5000,
        told(weak.public_key()),
        told(curve.public_key(), "PUBLIC KEY"),
    ]
    for each in wrong:
        url = address(shared_site, each)
        assert shared_site.http.request("GET", url).status == 400
    long = submit(
        shared_site, address(shared_site, told(key.public_key())), id="x" * 20000
    )
    assert long.status == 400


@pytest.mark.parametrize("page", ["auth_success", "auth_failure"])
def test_a_sign_in_ends_on_a_page(shared_site, page):
    """Which says what has become of it."""
    answer = shared_site.http.request("GET", f"{shared_site.base}/{page}")
    assert answer.status == 200
    assert b"spacectl" in answer.data
