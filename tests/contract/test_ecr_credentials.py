"""Tokens for Amazon's registries: asked for by boto3, answered by moto and by ours."""

import gzip
import ssl
import subprocess
import sys
import threading

from pathlib import Path

import botocore
import botocore.session
import pytest

from botocore.loaders import JSONFileLoader
from given import eventually
from launcher.adapters.credentials import aws
from launcher.adapters.credentials.chain import chain
from launcher.adapters.credentials.ecr import SHARED_SECONDS, EcrCredentials
from launcher.ecr import EcrEndpoint
from launcher.errors import ImageUnavailable
from launcher.images import Reference
from launcher.settings import ImageSettings
from moto.server import ThreadedMotoServer
from support.aws import ACCOUNT, ECR, TokenService, identity, nobody
from support.tunnel import Tunnel


pytestmark = pytest.mark.processes

IMAGE = Reference.parse(f"{ECR}/acme/runner:1")
PUBLIC = Reference.parse("public.ecr.aws/acme/runner:1")


@pytest.fixture(name="service")
def _service(monkeypatch):
    service = TokenService()
    with service.serving() as address:
        identity(monkeypatch, address)
        yield service


@pytest.fixture(name="moto", scope="module")
def _moto():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def certified(folder):
    """An authority, and what a server on loopback proves with that it knows it."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-subj", "/CN=AWS, so it says"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    return certificate.read_text(), tls


def login(ecr, image=IMAGE):
    return next(iter(ecr.found(image))).fetch()


def test_moto_and_the_stand_in_answer_alike(monkeypatch, moto, service):
    """What our stand-in says has the shape of what moto says, and serves as well."""
    import boto3

    answers = []
    for address in (moto, None):
        with monkeypatch.context() as patch:
            if address:
                patch.setenv("AWS_ENDPOINT_URL", address)
            client = boto3.client("ecr", region_name="eu-west-1")
            [answer] = client.get_authorization_token()["authorizationData"]
            answers.append(answer)
            client.close()
            given = login(EcrCredentials())
            assert ("AWS", ECR) == (given.username, given.registry)
    theirs, ours = answers
    assert {key: type(value) for key, value in theirs.items()} == {
        key: type(value) for key, value in ours.items()
    }
    assert theirs["proxyEndpoint"] == ours["proxyEndpoint"]


def test_the_region_is_in_the_name(service):
    """A token comes from the region that the image's name names, whatever is set."""
    ecr = EcrCredentials()
    for region in ("eu-west-1", "us-gov-west-1", "ap-southeast-10"):
        registry = f"{ACCOUNT}.dkr.ecr.{region}.amazonaws.com"
        assert login(ecr, Reference.parse(f"{registry}/x"))
        assert ("ecr", region) == service.asked[-1]


def test_one_token_for_jobs_that_start_together(service):
    """Jobs within five minutes share a token, whatever it says about its own end."""
    clock = Clock()
    ecr = EcrCredentials(clock=clock)
    first = login(ecr)
    service.password = "second-password"
    clock.now += SHARED_SECONDS - 1

    assert first == login(ecr)
    assert first.expires_at > 0  # shown to people, and otherwise not believed
    assert 1 == len(service.asked)
    clock.now += 1
    assert "second-password" == login(ecr).password.reveal()
    assert 2 == len(service.asked)


def test_a_crowd_asks_once(service):
    """Workers that need a token at the same time make one request."""
    ecr, found = EcrCredentials(), []
    service.hold.clear()
    threads = [
        threading.Thread(target=lambda: found.append(login(ecr))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: service.asked)
    service.hold.set()
    for thread in threads:
        thread.join()

    assert 20 == len(found)
    assert 1 == len(service.asked)


def test_a_crowd_fails_once(service):
    """Those who waited for a request that failed do not repeat it one by one."""
    ecr, failed, service.error = EcrCredentials(), [], "AccessDeniedException"
    service.hold.clear()

    def ask():
        try:
            login(ecr)
        except ImageUnavailable as exc:
            failed.append(str(exc))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: service.asked)
    service.hold.set()
    for thread in threads:
        thread.join()

    assert 8 == len(failed)
    assert len(service.asked) < 8


def test_a_refused_token_is_replaced(service):
    """A token that a registry refuses is replaced at once, for all who have it."""
    credentials = chain(ImageSettings(), {})
    refused = credentials.for_image(IMAGE)
    service.password = "second-password"

    fresh = credentials.renewed(IMAGE, refused)

    assert "second-password" == fresh.password.reveal()
    assert fresh == credentials.renewed(IMAGE, refused) == credentials.for_image(IMAGE)
    assert 2 == len(service.asked)
    assert "ECR" in fresh.source


def test_the_same_token_again_is_no_other(service):
    """Where a new request brings the same token, there is no other login to try."""
    credentials = chain(ImageSettings(), {})
    refused = credentials.for_image(IMAGE)

    assert None is credentials.renewed(IMAGE, refused)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("AccessDeniedException", "may not call ecr:GetAuthorizationToken"),
        ("UnrecognizedClientException", "AWS answers UnrecognizedClientException"),
    ],
)
def test_no_token(service, code, sentence):
    """Why AWS gives no token is told in a public sentence."""
    service.error = code

    with pytest.raises(ImageUnavailable, match=sentence) as caught:
        login(EcrCredentials())

    assert "eu-west-1" in str(caught.value)
    assert "not-a-key" not in str(caught.value) + caught.value.details


def test_no_identity(monkeypatch):
    """A private image is out of reach without an AWS identity, a public one is not."""
    nobody(monkeypatch)
    ecr = EcrCredentials()

    with pytest.raises(ImageUnavailable, match="no AWS identity"):
        login(ecr)
    assert None is login(ecr, PUBLIC)


def test_public_images(service):
    """The public registry's tokens come from us-east-1; anonymous is good enough."""
    ecr = EcrCredentials()

    given = login(ecr, PUBLIC)
    assert ("AWS", "public.ecr.aws") == (given.username, given.registry)
    assert [("ecr-public", "us-east-1")] == service.asked
    service.error = "AccessDeniedException"
    assert None is login(EcrCredentials(), PUBLIC)


@pytest.mark.parametrize(
    ("environment", "likely"),
    [
        ({}, False),
        ({"AWS_REGION": "eu-west-1"}, False),
        ({"AWS_ACCESS_KEY_ID": "a"}, True),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/f"}, True),
        ({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/c"}, True),
        ({"HOME": "here"}, True),
    ],
)
def test_no_identity_is_looked_for_in_vain(service, tmp_path, environment, likely):
    """For public images AWS is asked only where something speaks for an identity."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").touch()
    home = {"HOME": str(tmp_path if "HOME" in environment else tmp_path / "none")}
    credentials = chain(ImageSettings(), {**environment, **home})

    assert likely == (credentials.for_image(PUBLIC) is not None)
    there = chain(ImageSettings(), {**environment, **home}, on_ec2=lambda: True)
    assert there.for_image(PUBLIC)


def test_what_is_no_token(service):
    """An answer of another shape is an error of ours and no crash."""
    service.password = ""

    with pytest.raises(ImageUnavailable, match="not a token"):
        login(EcrCredentials())


def test_a_role_is_taken_on(monkeypatch, moto):
    """With a role set, the token is asked for as that role, by way of STS."""
    identity(monkeypatch, moto)
    role = f"arn:aws:iam::{ACCOUNT}:role/pull-images"
    ecr = EcrCredentials(role)

    assert "AWS" == login(ecr).username
    credentials = ecr._clients._session.get_credentials()
    assert credentials.access_key != "AKIAIOSFODNN7EXAMPLE"
    assert credentials.token


@pytest.mark.parametrize("role", [None, f"arn:aws:iam::{ACCOUNT}:role/pull-images"])
def test_clients_are_made_one_at_a_time(monkeypatch, moto, role):
    """Jobs for many regions at once never have two clients made at the same time."""
    identity(monkeypatch, moto)
    busy, made, together = threading.Lock(), [], []
    create = botocore.session.Session.create_client

    def counted(session, service, *given, **further):
        if not busy.acquire(blocking=False):
            together.append(service)
            return create(session, service, *given, **further)
        try:
            threading.Event().wait(0.02)
            made.append(service)
            return create(session, service, *given, **further)
        finally:
            busy.release()

    monkeypatch.setattr(botocore.session.Session, "create_client", counted)
    ecr, found, ready = EcrCredentials(role), [], threading.Barrier(12)
    regions = ["eu-west-1", "eu-north-1", "us-east-1", "us-east-2"] * 3

    def ask(region):
        registry = f"{ACCOUNT}.dkr.ecr.{region}.amazonaws.com"
        ready.wait()
        found.append(login(ecr, Reference.parse(f"{registry}/x")))

    threads = [threading.Thread(target=ask, args=[region]) for region in regions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 12 == len(found)
    assert [] == together
    assert ["ecr"] * 4 == [service for service in made if service == "ecr"]
    assert bool(role) == ("sts" in made)


@pytest.mark.parametrize("role", [None, f"arn:aws:iam::{ACCOUNT}:role/pull-images"])
def test_further_authorities(monkeypatch, tmp_path, moto, role):
    """What the operator trusts besides the system's authorities may certify AWS, too."""
    authority, tls = certified(tmp_path)
    with Tunnel(int(moto.rpartition(":")[2]), tls=tls) as tunnel:
        identity(monkeypatch, f"https://{tunnel.address}")
        for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        trusting = chain(
            ImageSettings(ecr_assume_role_arn=role), {}, roots=(authority,)
        )

        assert "AWS" == trusting.for_image(IMAGE).username
        with pytest.raises(ImageUnavailable, match="SSLError"):
            chain(ImageSettings(ecr_assume_role_arn=role), {}).for_image(IMAGE)


def test_authorities_that_cannot_be_read(monkeypatch, tmp_path):
    """A bundle that is named and not there is told like any reason to have no token."""
    identity(monkeypatch, "", AWS_CA_BUNDLE=str(tmp_path / "none"))
    authority, _ = certified(tmp_path)

    with pytest.raises(ImageUnavailable, match="AWS cannot be asked"):
        login(EcrCredentials(roots=(authority,)))


def test_addresses_are_read_in_part():
    """Of boto3's addresses, ours are read as boto3 does, and others not at all."""
    path = str(Path(botocore.__file__).parent / "data" / "endpoints")
    ours, theirs = aws.FrugalLoader().load_file(path), JSONFileLoader().load_file(path)

    kept = {"api.ecr", "api.ecr-public", "sts", "portal.sso", "oidc"}
    for partition in theirs["partitions"]:
        services = partition["services"]
        partition["services"] = {k: services[k] for k in kept & services.keys()}
    assert theirs == ours
    assert kept == ours["partitions"][0]["services"].keys()


def test_addresses_of_another_shape(tmp_path):
    """A list of addresses that looks otherwise is read as boto3 reads it."""
    (tmp_path / "endpoints.json").write_text('{"version": 9, "new": true}')
    with gzip.open(tmp_path / "other.json.gz", "wt") as file:
        file.write("{}")
    loader = aws.FrugalLoader()

    assert {"version": 9, "new": True} == loader.load_file(str(tmp_path / "endpoints"))
    assert {} == loader.load_file(str(tmp_path / "other"))
    assert None is loader.load_file(str(tmp_path / "none" / "endpoints"))


@pytest.mark.parametrize(
    ("registry", "endpoint"),
    [
        (ECR, "https://api.ecr.eu-west-1.amazonaws.com"),
        (
            f"{ACCOUNT}.dkr.ecr-fips.us-east-1.amazonaws.com",
            "https://ecr-fips.us-east-1.amazonaws.com",
        ),
        (f"{ACCOUNT}.dkr-ecr.eu-west-1.on.aws", "https://ecr.eu-west-1.api.aws"),
        (
            f"{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "https://api.ecr.cn-north-1.amazonaws.com.cn",
        ),
    ],
)
def test_where_tokens_are_asked_for(monkeypatch, registry, endpoint):
    """FIPS, dual-stack and China have their own addresses; clients are made once."""
    identity(monkeypatch, "")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    ecr = EcrCredentials()
    ecr.prepare([registry, registry])

    [region] = ecr._regions.values()
    client = region.client
    assert endpoint == client.meta.endpoint_url
    ecr.prepare([registry])
    assert client is region.client


@pytest.mark.parametrize(
    "registry",
    [
        "ecr.eu-west-1.amazonaws.com",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com.evil.org",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com:443",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.evil.org",
        f"{ACCOUNT}.dkr-ecr.eu-west-1.amazonaws.com",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.on.aws",
        f"{ACCOUNT}.dkr.ecr.evil.amazonaws.com",
        f"x{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com",
        "sub.public.ecr.aws",
        "public.ecr.aws.evil.org",
    ],
)
def test_what_only_looks_like_ecr(service, registry):
    """A token is never asked for, or given to, what is not a registry of Amazon's."""
    assert None is EcrEndpoint.of(registry)
    assert None is chain(ImageSettings(), {}).for_image(
        Reference.parse(f"{registry}/x")
    )
    assert [] == service.asked


def test_boto3_is_imported_when_it_is_needed():
    """Whoever has no image on ECR pays nothing for it."""
    program = (
        "import sys; from launcher.adapters.credentials.chain import chain;"
        "from launcher.images import Reference; from launcher.settings import ImageSettings;"
        "chain(ImageSettings(), {}).for_image(Reference.parse('ghcr.io/x/y'));"
        "print('boto3' in sys.modules, 'botocore' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "False False" == said.stdout.strip()
