"""What engines and registries say, in the launcher's words."""

import pytest

from launcher.adapters.engines import image_troubles as troubles
from launcher.adapters.engines.image_troubles import classified, retry_after
from launcher.adapters.engines.pull_progress import PullProgress
from launcher.credentials import Login
from launcher.secret import Secret


SAID = {
    "manifest for x/y:1 not found: manifest unknown: manifest unknown": troubles.NOT_FOUND,
    "name unknown: The repository with name 'x' does not exist": troubles.NOT_FOUND,
    "pull access denied for x, repository does not exist or may require 'docker login':"
    " denied: requested access to the resource is denied": troubles.DENIED,
    "Get https://r/v2/x/manifests/1: no basic auth credentials": troubles.DENIED,
    "denied: Your authorization token has expired. Reauthenticate and try again.": (
        troubles.DENIED
    ),
    "unauthorized: authentication required": troubles.DENIED,
    "toomanyrequests: You have reached your pull rate limit.": troubles.RATE_LIMITED,
    "received unexpected HTTP status: 429 Too Many Requests": troubles.RATE_LIMITED,
    "dial tcp: lookup r.example.com: no such host": troubles.UNREACHABLE,
    "dial tcp 10.0.0.1:443: connect: connection refused": troubles.UNREACHABLE,
    "net/http: TLS handshake timeout": troubles.UNREACHABLE,
    "read tcp 10.0.0.2:1->10.0.0.1:443: read: connection reset by peer": (
        troubles.UNREACHABLE
    ),
    "unexpected EOF": troubles.UNREACHABLE,
    "x509: certificate signed by unknown authority": troubles.NOT_TRUSTED,
    "http: server gave HTTP response to HTTPS client": troubles.NOT_TRUSTED,
    "received unexpected HTTP status: 503 Service Unavailable": troubles.FAILING,
    "write /var/lib/docker/tmp/x: no space left on device": troubles.DISK_FULL,
    "no matching manifest for linux/arm64/v8 in the manifest list entries": (
        troubles.WRONG_PLATFORM
    ),
    "manifest verification failed for digest sha256:5e": troubles.OTHER_CONTENT,
    "something nobody has seen before": troubles.UNKNOWN,
}


@pytest.mark.parametrize(("text", "trouble"), SAID.items())
def test_told_apart(text, trouble):
    """Texts of engines and registries are told apart, whatever the status beside them."""
    assert trouble is classified(text, 500)
    assert trouble is classified(text.upper())


def test_by_status():
    """Where the text says nothing, the status does."""
    assert troubles.DENIED is classified("", 403)
    assert troubles.NOT_FOUND is classified("", 404)
    assert troubles.UNKNOWN is classified("", 500)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("toomanyrequests: retry-after: 1.5s, allowed: 44000/minute", 1.5),
        ("Retry-After: 30", 30.0),
        ("retry-after: 271.331µs", 0.000271331),
        ("retry-after: soon", 0.0),
        ("toomanyrequests", 0.0),
    ],
)
def test_when_to_come_again(text, seconds):
    """A registry that says when to come again is listened to."""
    assert pytest.approx(seconds) == retry_after(text)


def test_no_key_of_a_blob_is_told():
    """What a registry redirects to is opened by its query, which goes nowhere."""
    url = "https://bucket.example/x?X-Amz-Signature=hunter2&b=c"
    error = troubles.unavailable(
        "x:1", troubles.UNREACHABLE, details=f'Get "{url}": i/o timeout'
    )

    assert 'Get "https://bucket.example/x?…": i/o timeout' == error.details
    assert "hunter2" not in str(error)


def test_every_hint_can_be_told():
    """No sentence lacks what it speaks of, and each names the image."""
    login = Login(username="a", password=Secret("b"), registry="r", source="a test")
    kinds = [
        each for each in vars(troubles).values() if isinstance(each, troubles.Trouble)
    ]
    for trouble in kinds:
        error = troubles.unavailable(
            "r/x:1", trouble, login=login, platform="linux/amd64", seconds=2.0
        )
        assert "image r/x:1 cannot be pulled: " in str(error)
        assert "{" not in str(error)
    assert len(kinds) > 10


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def downloading(layer, current, total=100):
    detail = {"current": current * 1_000_000, "total": total * 1_000_000}
    return {"id": layer, "status": "Downloading", "progressDetail": detail}


def test_progress_in_a_line():
    """Hundreds of ticks are one line: layers that are there, bytes that have arrived."""
    progress = PullProgress(Clock())
    for line in (
        {"id": "sha256:5e", "status": "Pulling from x"},
        {"id": "a", "status": "Pulling fs layer"},
        {"id": "b", "status": "Already exists"},
        downloading("a", 40),
        downloading("c", 10),
        {"id": "c", "status": "Download complete"},
    ):
        progress.tick(line)

    assert "Pulling the image: 1 of 3 layers, 140.0 of 200.0 MB" == (progress.line)


def test_what_stands_still():
    """Waiting and trying again are no progress; a byte is."""
    clock = Clock()
    progress = PullProgress(clock)
    progress.tick(downloading("a", 1))
    clock.now = 10
    for status in ("Waiting", "Retrying in 5 seconds", "Retrying in 4 seconds"):
        progress.tick({"id": "a", "status": status})
    progress.tick(downloading("a", 1))
    assert 10 == progress.seconds_still
    progress.tick(downloading("a", 2))
    assert 0 == progress.seconds_still
