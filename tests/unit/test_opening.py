"""Which values the log of a job hides, and how it is taken up again."""

from dataclasses import replace

import pytest

from given import a_claim, a_job
from launcher.cancel import CancelToken
from launcher.lease import Lease
from launcher.output.joblog import Resumption
from launcher.output.opening import hidden, opened, resumed
from launcher.output.spool import Spools
from launcher.ports import Ports
from launcher.secret import Secret
from launcher.settings import Settings
from launcher.wire.jobs import Source
from launcher.wire.messages import LogAck


class Plane:
    """Stores what it gets, unless it is away."""

    def __init__(self):
        self.stored = bytearray()

    def append(self, claim, offset, data):
        assert offset <= len(self.stored)
        self.stored[offset : offset + len(data)] = data
        return LogAck(next_offset=len(self.stored))


@pytest.fixture(name="ports")
def _ports(tmp_path):
    nobody = dict.fromkeys(Ports.__dataclass_fields__)
    spools = Spools(tmp_path / "spools", per_job=1 << 20, total=1 << 20)
    return Ports(**nobody | {"log": Plane(), "spools": spools})


def test_everything_that_lets_somebody_in_is_hidden():
    """The job's token, the pool's, and credentials in URLs are secrets like the job's own."""
    settings = Settings()
    settings = replace(
        settings,
        identity=replace(settings.identity, token=Secret("pool-token")),
        network=replace(settings.network, https_proxy=Secret("http://me:pr0xy@p:1")),
    )
    job = a_job(source=Source(url="https://x-access-token:t0ken%2F@git.example/a"))
    found = set(hidden(a_claim(job), settings))
    assert {b"fencing-token", b"pool-token", b"pr0xy", b"t0ken%2F", b"t0ken/"} <= found
    token_only = a_job(source=Source(url="https://ghp_token@git.example/a"))
    assert b"ghp_token" in hidden(a_claim(token_only), Settings())
    ssh = a_job(source=Source(url="ssh://git@git.example/a"))
    assert b"git" not in hidden(a_claim(ssh), Settings())


@pytest.mark.parametrize("lost", [False, True])
def test_a_log_is_taken_up_with_or_without_its_spool(ports, lost):
    """With the spool it goes on where it was; without, it is made again from the raw output."""
    raw = b"first hunter2-hunter2\n::add-mask tok-12345\nthen tok-12345 and hunter2"
    lease, claim = Lease(CancelToken()), a_claim()
    with opened(claim, ports, Settings(), lease) as log:
        log.say("Digest")
        begins = log.length
        log.write(raw[:48])
        log.finish_section()
        whole = bytes(ports.log.stored)
    ports.log.stored[:] = whole[: begins + 9]
    dead = ports.spools.new(claim.job.id)
    if not lost:
        dead.append(0, whole, CancelToken())
    noted = Resumption(
        position=replace(log.position, raw=48, masked=len(whole)),
        added=log.added,
        stored=begins + 9,
        begins=begins,
    )
    with resumed(claim, ports, Settings(), lease, noted, secrets=(b"and",)) as again:
        assert (0 if lost else 48) == again.position.raw
        again.write(raw[again.position.raw :])
    assert again.complete
    assert bytes(ports.log.stored).startswith(b"Digest\nfirst *****\n")
    assert b"tok" not in ports.log.stored
    assert (b"tok-12345",) == again.added
