import time

from datetime import UTC, datetime

import pytest

from structlog.testing import capture_logs

from given import eventually
from launcher import parsing
from launcher.activity import Intake
from launcher.cancel import CancelToken
from launcher.lease import Ended, Lease
from launcher.model import Address
from launcher.spot import (
    Metadata,
    MetadataUnavailable,
    Notices,
    SpotWatcher,
    on_ec2,
)
from support.metadata import metadata_service


ENDS = datetime(2026, 11, 5, 8, 22, tzinfo=UTC)


@pytest.fixture(name="service")
def _service():
    with metadata_service() as service:
        yield service


class Launcher:
    """What a watcher acts on, with a clock of its own."""

    def __init__(self, service):
        self.intake, self.abort = Intake(), CancelToken()
        self.now = ENDS.timestamp() - 120
        self.watcher = SpotWatcher(
            Metadata(service.address), self.intake, self.abort, clock=lambda: self.now
        )

    def look(self):
        with capture_logs() as self.lines:
            return self.watcher.look()


@pytest.fixture(name="launcher")
def _launcher(service):
    return Launcher(service)


def test_nothing_is_announced(service, launcher):
    """Most of the time there is nothing, and nothing changes; one token is enough."""
    for _ in range(3):
        assert 5 == launcher.look()

    assert {} == launcher.intake.holds
    assert not launcher.abort.cancelled
    assert 1 == [method for method, _ in service.asked].count("PUT")


def test_an_interruption_stops_claiming_at_once(service, launcher):
    """From the notice on no job begins; what runs goes on until 45 s before the end."""
    service.interrupt("2026-11-05T08:22:00Z")

    assert 5 == launcher.look()
    assert ["host"] == list(launcher.intake.holds)
    assert "terminate" in launcher.intake.holds["host"]
    assert not launcher.abort.cancelled
    launcher.now = ENDS.timestamp() - 45.5
    assert 0.5 == pytest.approx(launcher.look(), abs=0.01)
    assert not launcher.abort.cancelled
    launcher.now = ENDS.timestamp() - 45
    launcher.look()

    eventually(lambda: launcher.abort.cancelled)
    assert Ended.HOST_VANISHES == launcher.abort.reason


def test_an_announced_end_comes_although_nobody_answers(service, launcher):
    """A service that falls silent after its notice does not put the end off."""
    service.interrupt("2026-11-05T08:22:00Z")
    launcher.look()
    service.documents["spot/instance-action"] = b"nonsense"
    launcher.now = ENDS.timestamp() - 40
    launcher.look()

    eventually(lambda: launcher.abort.cancelled)


def test_a_notice_can_be_withdrawn(service, launcher):
    """When an announced end is not announced any more, jobs are taken again."""
    service.interrupt("2026-11-05T08:22:00Z")
    launcher.look()
    service.documents.clear()
    launcher.look()

    assert {} == launcher.intake.holds


def test_a_recommendation_is_acted_on_once(service, launcher):
    """A rebalance recommendation holds the intake; undone by hand, it stays undone."""
    service.recommend()
    launcher.look()
    assert ["rebalance"] == list(launcher.intake.holds)
    launcher.intake.release("rebalance")
    launcher.look()

    assert {} == launcher.intake.holds


def test_an_expired_token_is_replaced(service):
    """A token that is not accepted any more costs one more request, no notice."""
    metadata = Metadata(service.address)
    assert Notices() == metadata.notices()
    service.tokens.clear()
    service.recommend()

    assert Notices(rebalance=True) == metadata.notices()


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\xff",
        {"action": "terminate"},
        {"action": "stop", "time": "soon"},
        {"action": "stop", "time": 5},
    ],
)
def test_nonsense_is_no_notice(service, launcher, document):
    """What cannot be understood is logged once, changes nothing and is asked for less."""
    service.documents["spot/instance-action"] = document
    assert 60 == launcher.look()
    assert ["spot.unknown"] == [line["event"] for line in launcher.lines]
    assert 60 == launcher.look()
    assert [] == launcher.lines
    assert {} == launcher.intake.holds


def test_nobody_answers():
    """Where there is no such service, that is found out within the time allowed."""
    metadata = Metadata(Address(host="127.0.0.1", port=9), timeout=0.5)
    begun = time.monotonic()
    with pytest.raises(MetadataUnavailable):
        metadata.notices()
    assert time.monotonic() - begun < 5


def test_looking_is_cheap(service, launcher):
    """A look every five seconds costs less than half a per cent of a core."""
    launcher.look()
    begun = time.thread_time()
    for _ in range(50):
        launcher.look()
    assert (time.thread_time() - begun) / 50 < 0.005 * 5


def test_firmware_tells(tmp_path):
    """Whether this is EC2 is read from the firmware's names."""
    assert not on_ec2(tmp_path)
    (tmp_path / "sys_vendor").write_text("QEMU\n")
    assert not on_ec2(tmp_path)
    (tmp_path / "board_vendor").write_text("Amazon EC2\n")
    assert on_ec2(tmp_path)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://169.254.169.254", Address(host="169.254.169.254", port=80)),
        ("http://[fd00:ec2::254]/", Address(host="fd00:ec2::254", port=80)),
        ("http://127.0.0.1:1338", Address(host="127.0.0.1", port=1338)),
    ],
)
def test_near_services(url, expected):
    """Addresses that only this machine or its own link can have are accepted."""
    assert expected == parsing.metadata_service(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "http://8.8.8.8",
        "http://10.0.0.1",
        "https://169.254.169.254",
        "http://u:p@169.254.169.254",
        "http://127.0.0.1:99999",
        "",
    ],
)
def test_far_services(url):
    """Anywhere else nobody is asked what becomes of this machine."""
    with pytest.raises(ValueError, match="must be http"):
        parsing.metadata_service(url)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("SIGTERM", Ended.ABORTED), (Ended.HOST_VANISHES, Ended.HOST_VANISHES)],
)
def test_a_job_learns_why_it_is_ended(given, expected):
    """A job tells an operator's wish from a machine that is taken away."""
    abort = CancelToken()
    lease = Lease(abort)
    with lease.until_aborted():
        abort.cancel(given)
    assert expected == lease.cancel.reason
