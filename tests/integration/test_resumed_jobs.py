"""What the next life of a launcher does with jobs of an earlier one, on fakes."""

import contextlib
import threading
import time

from given import A_KEY, eventually
from support.line import AUTODEPLOY, Line

import pytest

from launcher import admission, vendors, workspace
from launcher.journal import Held, Journal, Made
from launcher.lease import Lease
from launcher.model import AdmittedJob, Origin, SandboxSpec
from launcher.pipeline import resume_job
from launcher.script import phase_script
from launcher.testing.control_plane import MemoryControlPlane
from launcher.testing.engine import ShellEngine
from launcher.wire.jobs import Phase, RunState, Tokens
from launcher.wire.messages import PlanReport, Verdict


@pytest.fixture(name="line")
def _line(tmp_path):
    folder = tmp_path / "engine"
    folder.mkdir()
    journal = Journal.opened(tmp_path / "journal.db", A_KEY)
    with contextlib.closing(journal):
        yield Line(
            journal=journal,
            plane=MemoryControlPlane(lease_seconds=1.0, renew_seconds=0.1),
            engine=ShellEngine(folder, stop_seconds=0.5),
            folder=folder,
        )


class Earlier:
    """A life that took a job, sent it *commands* as *phase*, and is gone."""

    def __init__(self, line, phase, command, **job):
        self.line, self.phase = line, phase
        job = line.job(**job)
        offer = line.plane.add(job, **AUTODEPLOY)
        entry = line.journal.claiming(0, offer, "01CLAIM")
        claim = line.plane.claim(0, offer, "01CLAIM")
        entry.claimed(Held(claim=claim, passed_through=()))
        vendor = vendors.table(job.vendor, job.phases)
        permit = admission.permit(job, vendor, line.settings, line.credentials).image
        image = line.engine.resolve(permit, None)
        entry.created(Made(image=image, receipt="0", at=time.time()))
        spec = SandboxSpec(
            admitted=AdmittedJob(job=job, image=image, receipt="0"),
            phase_class="plan",
            origin=Origin(claim="01CLAIM"),
            deadline_seconds=600,
            log_limit=1 << 30,
        )
        self._never_left = line.engine.sandbox(spec)
        sandbox = self._never_left.__enter__()
        ports, lease = line.ports(), Lease(line.abort)
        with workspace.contents(
            claim, spec.admitted, vendor, ports, lease, adopt=lambda _: None
        ) as files:
            sandbox.fill(files)
        names = list(job.phases) + [Phase.APPLY]
        for name in names[: names.index(phase) + 1]:
            state = {
                Phase.INITIALIZE: RunState.INITIALIZING,
                Phase.PLAN: RunState.PLANNING,
                Phase.APPLY: RunState.APPLYING,
            }[name]
            if name is Phase.APPLY:
                entry.planned(line.plane.planned(claim, PlanReport(has_changes=True)))
            line.plane.entered(claim, state, log_offset=0)
            entry.entered(state)
            entry.sending(name.value)
            script = phase_script(
                name.value,
                [command if name is phase else "true"],
                directory="/mnt/workspace/source",
                export={},
            )
            sandbox._send(sandbox._moved(sandbox._entry.phase(script)))
        self.record = line.plane.jobs[job.id]
        self.sandbox = sandbox

    def resumed(self):
        """See the next life through with it."""
        line = self.line
        (entry,) = line.journal.unfinished()
        resume_job(entry, line.ports(), line.settings, line.abort)
        assert frozenset() == line.journal.live()
        assert [] == list(line.folder.iterdir())
        return self.record


def test_an_adopted_apply_goes_on_to_its_end(line):
    """The apply that was sent is followed, its log is whole, and the run finishes."""
    record = Earlier(line, Phase.APPLY, "echo begun; sleep 0.5; echo ended").resumed()
    assert Verdict.FINISHED is record.settlement.verdict
    assert bytes(record.log).endswith(b"begun\nended\n")
    assert record.settlement.log_complete
    assert record.renewals


def test_a_stale_token_ends_an_adopted_plan(line):
    """Who is told at once that a plan is not his any more stops it, and is silent."""
    earlier = Earlier(line, Phase.PLAN, "echo begun; sleep 60; echo never")
    line.plane.take_away(earlier.record.job.id)
    begun = time.monotonic()

    record = earlier.resumed()

    assert record.settlement is None
    assert [] == record.late
    assert b"begun" not in record.log
    assert time.monotonic() - begun < 30


def test_a_stale_token_does_not_end_an_adopted_apply(line, tmp_path):
    """An apply that is not ours any more ends in its own time, and in silence."""
    done = tmp_path / "done"
    earlier = Earlier(line, Phase.APPLY, f"sleep 1; touch {done}")
    line.plane.take_away(earlier.record.job.id)

    record = earlier.resumed()

    assert done.exists()
    assert record.settlement is None
    assert [] == record.late


@pytest.mark.parametrize(
    ("phase", "verdict"),
    [(Phase.INITIALIZE, None), (Phase.PLAN, None), (Phase.APPLY, Verdict.FINISHED)],
)
def test_an_adopted_job_in_a_long_outage(line, phase, verdict):
    """A network cut for longer than the lease ends what reads, and no apply."""
    earlier = Earlier(line, phase, "echo begun; sleep 3; echo ended")
    over = threading.Event()
    with line.plane.outage():
        thread = threading.Thread(target=lambda: (earlier.resumed(), over.set()))
        thread.start()
        if verdict is None:
            eventually(lambda: line.journaled(earlier.record, "decided"))
            assert not over.is_set()
        else:
            eventually(lambda: line.plane.refused > 20)
    thread.join(30)

    settlement = earlier.record.settlement
    assert verdict == (settlement and settlement.verdict)
    if verdict:
        assert bytes(earlier.record.log).endswith(b"begun\nended\n")


def test_a_stop_request_reaches_an_adopted_plan(line):
    """Whoever asked for a stop while nobody was there is obeyed by the next life."""
    earlier = Earlier(line, Phase.PLAN, "echo begun; exec sleep 60")
    line.plane.request_stop(earlier.record.job.id)
    assert Verdict.STOPPED is earlier.resumed().settlement.verdict


def test_why_a_job_was_ended_is_remembered(line):
    """A job that an earlier life has ended for a reason ends for that reason."""
    earlier = Earlier(line, Phase.PLAN, "exit 130")
    (entry,) = line.journal.unfinished()
    entry.cancelled("too silent")

    settlement = earlier.resumed().settlement

    assert (Verdict.FAILED, "too_silent") == (settlement.verdict, settlement.code)


def test_time_goes_on_while_nobody_is_there(line):
    """The run timeout counts from the container's beginning, over all lives."""
    earlier = Earlier(line, Phase.PLAN, "exec sleep 60")
    line.limited(run_timeout=0.5)
    assert "too_long" == earlier.resumed().settlement.code


def test_tokens_of_an_earlier_life(line):
    """[capability 130] They are replaced at once, and what was issued stays masked."""
    tokens = Tokens(api="api-token", oidc="oidc-token", refresh_seconds=1000)
    earlier = Earlier(
        line,
        Phase.APPLY,
        "echo issued-earlier; while [ ! -e ../spacelift.oidc ]; do sleep 0.05; done;"
        " cat ../spacelift.oidc; echo",
        tokens=tokens,
    )
    (entry,) = line.journal.unfinished()
    entry.issued(Tokens(api="issued-earlier", oidc="oidc-earlier", refresh_seconds=1))

    record = earlier.resumed()

    assert Verdict.FINISHED is record.settlement.verdict
    assert record.issued
    assert bytes(record.log).endswith(b"*****\n*****\n"), record.log
