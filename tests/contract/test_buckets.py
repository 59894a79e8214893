"""Workspaces in a bucket: the real server, the launcher's adapter, and moto as S3."""

import contextlib
import io
import ipaddress
import os

from datetime import timedelta

import pytest

from controlplane.site import Repository, configuration, running, stack
from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.presigned import PresignedUrls
from launcher.adapters.controlplane.workspaces import HttpWorkspaceStore
from launcher.controlplane.desired_state import parse
from launcher.errors import (
    ConfigurationError,
    ControlPlaneUnavailable,
    LauncherError,
    WorkspaceUnusable,
)
from launcher.sealing.workspace import SealedFile
from support.bucket import NAME, REGION, S3
from support.pool_keys import credentials


pytestmark = pytest.mark.processes

PART = 5 << 20
"""The smallest that S3 takes."""
CONTENT = os.urandom(2 * PART + 1000)
PREFIX = "acme/"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A bucket."""
    with S3(tmp_path_factory.mktemp("s3")).serving() as service:
        yield service


@pytest.fixture(autouse=True)
def _calm(s3):
    yield
    s3.before = lambda method, path: None
    s3.late = timedelta()


@contextlib.contextmanager
def site_with(s3, folder, **changes):
    """A control plane whose workspaces wait in the bucket."""
    repository = Repository(folder / "source")
    repository.commit()
    storage = {
        "bucket": NAME,
        "prefix": PREFIX,
        "region": REGION,
        "endpoint": s3.endpoint,
        "path_style": True,
        **changes,
    }
    given = configuration([stack(repository)], workspace_storage=storage)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "not-a-key",
            "AWS_CA_BUNDLE": str(s3.authority),
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }.items():
            patch.setenv(name, value)
        with running(folder, given) as site:
            yield site


@pytest.fixture(scope="module")
def bucket_site(s3, tmp_path_factory):
    """One control plane for the tests of this module."""
    with site_with(s3, tmp_path_factory.mktemp("site")) as site:
        yield site


class Claim:
    """What the adapter needs of a claimed job."""

    def __init__(self, held):
        self.job = type("Job", (), {"id": held.job["id"]})
        self.token = held.token


@pytest.fixture
def line(bucket_site, s3):
    """A planned job, and what a launcher stores its workspace with."""
    with Line(bucket_site, s3) as opened:
        yield opened


class Line:
    def __init__(self, site, s3, hosts=("127.0.0.1",)):
        self.site, self.s3 = site, s3
        self.api, self.worker = site.api(), site.worker()
        self.run = self.api.trigger()
        self.held = self.worker.take()
        self.held.planned()
        self.client = Client(
            credentials(site.plane, site.workers, "default"), connections=2
        )
        self.store = self.with_hosts(hosts)

    def with_hosts(self, hosts):
        urls = PresignedUrls(hosts, context=self.s3.context)
        return HttpWorkspaceStore(self.client, urls, part=PART)

    def __enter__(self):
        self.s3.seen.clear()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(AssertionError):  # some tests have settled it
            self.held.settle("failed")
        if self.api.state(self.run) == "UNCONFIRMED":
            self.api.change("discard", self.run)
        self.client.close()

    def save(self, content=CONTENT):
        sealed = SealedFile(io.BytesIO(content))
        self.store.save(Claim(self.held), sealed)
        return sealed

    def applying(self):
        self.held.settle("handed_over")
        self.api.change("confirm", self.run)
        self.held = self.worker.take()
        return Claim(self.held)

    def puts(self):
        return [path for method, path, _ in self.s3.seen if method == "PUT"]


def failing(s3, method, number):
    """Let the request of this number fail, as a store that is busy does."""
    count = iter(range(number + 1))

    def before(seen, path):
        if seen == method and PREFIX in path and next(count, None) == number:
            return "503 Slow Down", [("Content-Length", "0")], b""
        return None

    s3.before = before


def test_a_workspace_goes_through_the_bucket(line):
    """[capability 46] No byte of it goes through the control plane."""
    line.save()
    applying, into = line.applying(), io.BytesIO()
    line.store.restore(applying, into)
    assert into.getvalue() == CONTENT
    assert len(line.puts()) == 3
    (key,) = set(line.puts())
    assert key.startswith(f"/{NAME}/{PREFIX}")
    gets = [query for method, _, query in line.s3.seen if method == "GET"]
    assert all("X-Amz-Signature" in query or "uploadId" in query for query in gets)
    line.held.applied()
    line.site.plane.workspaces.remove_needless()
    assert line.site.plane.workspaces._storage.names() == set()


def test_every_attempt_has_a_key_of_its_own(line):
    """What a job sends again does not lie over what it has sent before."""
    line.save()
    line.save(b"another")
    assert len(set(line.puts())) == 2
    into = io.BytesIO()
    line.store.restore(line.applying(), into)
    assert into.getvalue() == b"another"


def test_an_upload_goes_on_where_it_was_cut(line):
    """Parts that are there are not sent again."""
    sealed = SealedFile(io.BytesIO(CONTENT))
    failing(line.s3, "PUT", 1)
    with pytest.raises(ControlPlaneUnavailable):
        line.store.save(Claim(line.held), sealed)
    line.store.save(Claim(line.held), sealed)
    assert len(line.puts()) == 4, "three parts, and the one that was cut"
    into = io.BytesIO()
    line.store.restore(line.applying(), into)
    assert into.getvalue() == CONTENT


def test_a_download_goes_on_where_it_was_cut(line):
    """What has arrived stays, and the rest is fetched by another URL."""
    line.save()
    applying, into = line.applying(), io.BytesIO()
    failing(line.s3, "GET", 1)
    with pytest.raises(ControlPlaneUnavailable):
        line.store.restore(applying, into)
    assert len(into.getvalue()) == PART
    line.store.restore(applying, into)
    assert into.getvalue() == CONTENT


def test_a_url_is_good_for_fifteen_minutes(line):
    """And for no longer, for its part alone, and for the bytes it was made for."""
    path, token = f"{line.held.path}/workspace", line.held.token
    line.held.part(b"")
    data, sent = b"x" * 100, SealedFile(io.BytesIO(b"x" * 100))
    body = {"upload": "u-1", "offset": 0, "size": 100, "sha256": sent.sha256}
    url = line.worker("POST", f"{path}/part", body, token=token)["url"]
    urls = PresignedUrls(["127.0.0.1"], context=line.s3.context)
    with pytest.raises(ControlPlaneUnavailable, match="as it should"):
        urls.put(url, b"y" * 100)
    with pytest.raises(ControlPlaneUnavailable):
        urls.put(url.replace("partNumber=1", "partNumber=2"), data)
    line.s3.late = timedelta(minutes=15, seconds=5)
    with pytest.raises(ControlPlaneUnavailable):
        urls.put(url, data)
    line.s3.late = timedelta(minutes=14)
    urls.put(url, data)


def test_a_host_that_the_token_does_not_name_gets_nothing(line):
    """The run fails with a sentence, and nobody was connected to."""
    line.s3.seen.clear()
    with pytest.raises(WorkspaceUnusable, match="where workspaces may not go"):
        line.with_hosts(["elsewhere.example.com"]).save(
            Claim(line.held), SealedFile(io.BytesIO(b"x"))
        )
    assert line.puts() == []


def test_no_url_is_in_a_log_or_an_error(line, capsys):
    """Whoever reads one could use it."""
    errors = []
    sealed = SealedFile(io.BytesIO(CONTENT))
    for number in range(2):
        failing(line.s3, "PUT", number)
        with pytest.raises(LauncherError) as caught:
            line.store.save(Claim(line.held), sealed)
        errors.append(caught.value)
    line.store.save(Claim(line.held), sealed)
    applying = line.applying()
    failing(line.s3, "GET", 0)
    with pytest.raises(LauncherError) as caught:
        line.store.restore(applying, io.BytesIO())
    errors.append(caught.value)
    said = capsys.readouterr()
    for text in (said.out, said.err, *(f"{e!r} {e.details}" for e in errors)):
        assert "X-Amz" not in text
        assert "Signature" not in text


def test_a_launcher_that_knows_no_urls_is_served_all_the_same(line):
    """One of the version before sends and fetches through the control plane."""
    line.held.part(CONTENT[:PART])
    line.held.part(CONTENT[PART : 2 * PART], offset=PART)
    line.held.part(CONTENT[2 * PART :], offset=2 * PART)
    assert line.held.part(b"")["next_offset"] == len(CONTENT)
    line.held.store_rest(CONTENT)
    line.applying()
    path, token = f"{line.held.path}/workspace", line.held.token
    response = line.worker.raw("GET", path, token=token, Range="bytes=10-19")
    assert (response.status, response.data) == (206, CONTENT[10:20])
    assert response.headers["Content-Range"] == f"bytes 10-19/{len(CONTENT)}"
    assert line.worker.raw("GET", path, token=token).data == CONTENT


def test_urls_may_be_switched_off(s3, tmp_path):
    """Then everything goes through the control plane, for launchers that see no bucket."""
    with site_with(s3, tmp_path, presigned=False) as site, Line(site, s3, ()) as line:
        line.save()
        into = io.BytesIO()
        line.store.restore(line.applying(), into)
        assert into.getvalue() == CONTENT


def test_small_parts_are_refused_early(line):
    """S3 would refuse the whole in the end."""
    line.held.part(b"small")
    path = f"{line.held.path}/workspace?upload=u-1&offset=5"
    refusal = line.worker.refused("PUT", path, b"more", token=line.held.token)
    assert refusal == (400, "malformed")


def test_the_end_of_an_upload_is_repeated(line):
    """Whoever did not hear that the workspace is stored may ask again."""
    sealed = line.save()
    body = {"upload": sealed.upload, "size": sealed.size, "sha256": sealed.sha256}
    assert line.held.post("workspace", body)["size"] == sealed.size
    assert line.held.refused("workspace", {**body, "size": 1, "upload": "x"}) == (
        409,
        "wrong_offset",
    )


def test_an_upload_that_nobody_ends_is_removed(line):
    """Bytes that no run will ever use are not paid for."""
    line.held.part(CONTENT[:PART])
    line.held.settle("failed")
    line.site.plane.workspaces.remove_needless()
    found = line.s3.client().list_multipart_uploads(Bucket=NAME)
    assert found.get("Uploads", []) == []


def test_a_bucket_that_is_away_is_said(line):
    """The launcher hears that it should try again, and nothing is lost."""
    line.s3.before = lambda method, path: ("503 Busy", [("Content-Length", "0")], b"")
    with pytest.raises(ControlPlaneUnavailable):
        line.save()
    line.s3.before = lambda method, path: None
    line.save()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://127.0.0.1/x", "plain https"),
        ("ftp://127.0.0.1/x", "plain https"),
        ("https://user@127.0.0.1/x", "plain https"),
        ("https://127.0.0.1/x#y", "plain https"),
        ("https://other.example.com/x", "does not name"),
        ("https://127.0.0.1.example.com/x", "does not name"),
        ("https://127.0.0.1\\@169.254.169.254/x", "plain https"),
        ("https://169.254.169.254/latest", "link-local"),
        ("https://[fe80::1]/x", "link-local"),
        ("https://[::ffff:169.254.169.254]/x", "link-local"),
        ("https://127.0.0.1:x/", "not one"),
        ("https://127.0.0.1/ x", "not one"),
        ("https://127.0.0.1/\r\nHost: x", "not one"),
        ("https://127.0.0.1/" + "x" * 9000, "not one"),
        ("", "not one"),
    ],
)
def test_a_hostile_url_is_not_used(url, complaint):
    """A control plane that was taken over sends the worker nowhere else."""
    hosts = ["127.0.0.1", "169.254.169.254", "fe80::1", "::ffff:169.254.169.254"]
    for use in (
        lambda urls: urls.put(url, b"x"),
        lambda urls: urls.get(url, 0, 1),
    ):
        with pytest.raises(WorkspaceUnusable) as caught:
            use(PresignedUrls(hosts))
        assert complaint in caught.value.details


def test_a_name_of_a_link_local_address_is_not_used(s3, monkeypatch):
    """However the name resolves in the very moment that it is used."""
    monkeypatch.setattr(
        "launcher.adapters.controlplane.presigned._FORBIDDEN",
        [ipaddress.ip_network("127.0.0.0/8")],
    )
    urls = PresignedUrls(["localhost"], context=s3.context)
    s3.seen.clear()
    with pytest.raises(WorkspaceUnusable) as caught:
        urls.put(s3.endpoint.replace("127.0.0.1", "localhost") + "/x", b"x")
    assert "link-local" in caught.value.details
    assert s3.seen == []


def test_no_redirect_is_followed(s3):
    """A store that sends the worker elsewhere has not answered."""
    elsewhere = [("Location", f"{s3.endpoint}/elsewhere"), ("Content-Length", "0")]
    s3.before = lambda method, path: ("307 Temporary Redirect", elsewhere, b"")
    s3.seen.clear()
    with pytest.raises(ControlPlaneUnavailable):
        PresignedUrls(["127.0.0.1"], context=s3.context).put(f"{s3.endpoint}/x", b"x")
    assert len(s3.seen) == 1


def test_an_answer_is_bounded(s3):
    """More bytes than were asked for are not taken."""
    body = b"x" * (1 << 20)
    headers = [("Content-Range", f"bytes 0-9/{len(body)}")]
    s3.before = lambda method, path: ("206 Partial Content", headers, body)
    urls = PresignedUrls(["127.0.0.1"], context=s3.context)
    with pytest.raises(ControlPlaneUnavailable) as caught:
        urls.get(f"{s3.endpoint}/x", 0, 10)
    assert caught.value.details == "an oversized answer"
    assert urls.get(f"{s3.endpoint}/x", 0, len(body)).content == body


def test_the_bucket_is_configured_in_the_file(tmp_path):
    """With whatever is wrong about it said, each with its line."""
    text = (
        "account: acme\nworkspace_storage:\n"
        "  bucket: Not A Bucket\n  endpoint: http://x\n  prefix: ../x\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        parse(text, tmp_path, {})
    said = str(caught.value)
    for part in ("a bucket's name", "must be an https URL", "a prefix", "'region'"):
        assert part in said
