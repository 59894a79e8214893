"""What the launcher relies on in its control plane: in memory, and over HTTP."""

import base64
import contextlib
import hashlib
import io
import os
import threading
import time

from given import PATIENCE, a_job, eventually
from support.planes import WRITE_KEY, MemoryPlane, http_planes

import pytest

from launcher.controlplane import log_chunks
from launcher.controlplane.errors import WorkerRefused
from launcher.errors import (
    ControlPlaneRefused,
    ControlPlaneUnavailable,
    LeaseLost,
    LauncherError,
)
from launcher.model import Claim
from launcher.sealing.workspace import SealedFile
from launcher.testing.control_plane import Trouble
from launcher.wire.jobs import Phase, RunState
from launcher.wire.messages import (
    MAX_LOG_CHUNK,
    ErrorCode,
    MAX_WORKSPACE_PART,
    NextStep,
    Offer,
    OutputsReport,
    PlanReport,
    StackOutput,
    ResourceChange,
    Settlement,
    Verdict,
)


CHANGES = PlanReport(
    has_changes=True,
    changes=(ResourceChange(action="added", address="x.y", type="x"),),
)
NO_CHANGES = PlanReport(has_changes=False)
BOTH = [Trouble.REQUEST_LOST, Trouble.ANSWER_LOST]


@pytest.fixture(name="planes", scope="module")
def _planes(tmp_path_factory):
    """Real control planes, one for each test that asks."""
    with http_planes(tmp_path_factory.mktemp("planes"), count=100) as planes:
        yield planes


@pytest.fixture(name="plane", params=["memory", "http"])
def _plane(request):
    if request.param == "memory":
        return MemoryPlane(lease_seconds=90)
    return next(request.getfixturevalue("planes"))


@pytest.fixture(name="open_plane", params=["memory", "http"])
def _open_plane(request, tmp_path):
    """Opens a control plane whose leases are short."""
    with contextlib.ExitStack() as opened:

        def open_plane(lease_seconds):
            if request.param == "memory":
                return MemoryPlane(lease_seconds)
            planes = http_planes(tmp_path, count=1, lease_seconds=lease_seconds)
            return next(opened.enter_context(planes))

        yield open_plane


def take(plane, run=None, **options):
    """Trigger a run, unless there is one, and claim its next job."""
    run = run or plane.trigger(**options)
    offer = eventually(lambda: plane.source.receive(0, wait=2))
    assert run == offer.run
    claim = plane.source.claim(0, offer, "c")
    assert claim is not None
    return claim


def planning(plane, **options):
    """A job whose run is planning."""
    claim = take(plane, **options)
    plane.progress.entered(claim, RunState.INITIALIZING, log_offset=0)
    plane.progress.entered(claim, RunState.PLANNING, log_offset=0)
    return claim


def settlement(verdict=Verdict.FAILED, **more):
    return Settlement(verdict=verdict, log_length=0, **more)


def insist(call):
    """Repeat what may be repeated, as the launcher does."""
    for _ in range(5):
        try:
            return call()
        except ControlPlaneUnavailable:
            pass
    return call()


def sealed(content):
    """Something to store; what is in it is nobody's business here."""
    return SealedFile(io.BytesIO(content))


def restored(plane, claim):
    into = io.BytesIO()
    insist(lambda: plane.workspaces.restore(claim, into))
    return into.getvalue()


def as_stranger(claim):
    return Claim(claim.job, "forged", claim.lease_seconds, claim.renew_seconds)


def writes(plane, claim):
    """Every call that needs the token."""
    return {
        "renew": lambda: plane.source.renew(claim),
        "settle": lambda: plane.source.settle(claim, settlement()),
        "entered": lambda: plane.progress.entered(
            claim, RunState.INITIALIZING, log_offset=0
        ),
        "planned": lambda: plane.progress.planned(claim, NO_CHANGES),
        "append": lambda: plane.log.append(claim, 0, b"x"),
        "tokens": lambda: plane.progress.tokens(claim),
        "save": lambda: plane.workspaces.save(claim, sealed(b"x")),
        "restore": lambda: plane.workspaces.restore(claim, io.BytesIO()),
    }


# --- JobSource


def test_nothing_to_do(plane):
    """Without a job, a worker waits as long as it said, and gets nothing."""
    start = time.monotonic()

    assert plane.source.receive(0, wait=0.3) is None
    assert 0.25 < time.monotonic() - start < PATIENCE


def test_waiting_worker_is_woken(plane):
    """A job that appears reaches a worker that is waiting already."""
    offers = []
    waiting = threading.Thread(
        target=lambda: offers.append(plane.source.receive(0, wait=10))
    )
    waiting.start()
    run = plane.trigger()
    waiting.join()

    assert [run] == [offer.run for offer in offers]


def test_claimed_job(plane):
    """A claim brings the job itself, a token, and how long it lasts."""
    claim = take(plane)

    assert (Phase.INITIALIZE, Phase.PLAN) == claim.job.phases
    assert RunState.PREPARING == claim.job.run.state
    assert "acme/testing-spacelift" == claim.job.stack.repository_path
    assert claim.token
    assert claim.token not in repr(claim)
    assert claim.lease_seconds > claim.renew_seconds > 0


def test_job_is_taken_once(plane):
    """What one worker has claimed, no other gets."""
    plane.trigger()
    offer = eventually(lambda: plane.source.receive(0, wait=2))
    other = plane.another_launcher()

    assert plane.source.claim(0, offer, "c") is not None
    assert other.claim(0, offer, "d") is None
    assert other.receive(0, wait=0.1) is None


@pytest.mark.parametrize("trouble", BOTH)
def test_claim_is_never_lost(plane, trouble):
    """A claim whose request or answer got lost is repeated, and is the same one."""
    plane.trigger()
    offer = eventually(lambda: plane.source.receive(0, wait=2))
    plane.trouble("claim", trouble, trouble)

    claim = plane.source.claim(0, offer, "c")

    assert claim is not None
    assert plane.source.renew(claim) is None


def test_unknown_job(plane):
    """An offer of something that is gone is no job, and no error."""
    assert plane.source.claim(0, Offer(job="nonsense", run="nonsense"), "c") is None


def test_stop_request_comes_with_every_answer(plane):
    """A holder learns of a stop request from renewing, reporting and logging."""
    run = plane.trigger()
    claim = take(plane, run)
    assert plane.source.renew(claim) is None
    assert plane.log.append(claim, 0, b"one\n").stop is None

    plane.request_stop(run)

    assert plane.source.renew(claim)
    assert plane.log.append(claim, 4, b"two\n").stop
    assert plane.progress.entered(claim, RunState.INITIALIZING, log_offset=4)


def test_settled_twice(plane):
    """Repeating a settlement is harmless; changing it is refused."""
    claim = take(plane)
    plane.source.settle(claim, settlement(reason="it failed"))

    plane.source.settle(claim, settlement(reason="it failed"))

    with pytest.raises(ControlPlaneRefused):
        plane.source.settle(claim, settlement(Verdict.STOPPED))


@pytest.mark.parametrize(
    "call", ["renew", "entered", "planned", "append", "save", "restore"]
)
def test_nothing_after_the_settlement(plane, call):
    """A job that is settled is over: its token is worth nothing more."""
    claim = take(plane)
    plane.source.settle(claim, settlement())

    with pytest.raises(LeaseLost):
        writes(plane, claim)[call]()


def test_log_before_the_settlement(plane):
    """A settlement is refused until the log it speaks of is stored."""
    claim = take(plane)
    plane.log.append(claim, 0, b"12345")

    with pytest.raises(ControlPlaneRefused):
        plane.source.settle(claim, Settlement(verdict=Verdict.FAILED, log_length=6))

    plane.source.settle(claim, Settlement(verdict=Verdict.FAILED, log_length=5))


@pytest.mark.parametrize(
    "call", ["renew", "settle", "entered", "planned", "append", "save", "restore"]
)
def test_forged_token(plane, call):
    """Who does not hold the job may report nothing about it."""
    claim = take(plane)

    with pytest.raises(LeaseLost):
        writes(plane, as_stranger(claim))[call]()

    assert plane.source.renew(claim) is None


def test_silent_holder_loses_the_job(open_plane):
    """Who does not renew in time loses the job, for good and for every call."""
    plane = open_plane(lease_seconds=0.3)
    claim = take(plane)

    def lost():
        try:
            plane.log.append(claim, 0, b"")
        except LeaseLost:
            return True
        return False

    eventually(lost)
    for call in writes(plane, claim).values():
        with pytest.raises(LeaseLost):
            call()


def test_renewing_keeps_the_job(open_plane):
    """Who renews keeps the job, however long it takes."""
    plane = open_plane(lease_seconds=1.0)
    claim, end = take(plane), time.monotonic() + 2.0

    while time.monotonic() < end:
        assert plane.source.renew(claim) is None

    plane.source.settle(claim, settlement())


# --- Progress


def test_states_and_their_output(plane):
    """What is printed belongs to the state that was entered before it."""
    run = plane.trigger()
    claim = take(plane, run)
    plane.log.append(claim, 0, b"preparing\n")
    plane.progress.entered(
        claim, RunState.INITIALIZING, log_offset=10, image_digest="sha256:0"
    )
    plane.log.append(claim, 10, b"init\n")
    plane.progress.entered(claim, RunState.PLANNING, log_offset=15)
    plane.log.append(claim, 15, b"plan\n")
    plane.source.settle(claim, Settlement(verdict=Verdict.FAILED, log_length=20))

    assert [RunState.INITIALIZING, RunState.PLANNING] == plane.states(run)
    assert "init\n" == plane.printed(run, RunState.INITIALIZING)
    assert "plan\n" == plane.printed(run, RunState.PLANNING)


@pytest.mark.parametrize("trouble", BOTH)
def test_entered_is_repeated(plane, trouble):
    """Entering a state twice is entering it once."""
    run = plane.trigger()
    claim = take(plane, run)
    plane.trouble("entered", trouble)

    for _ in range(2):
        insist(
            lambda: plane.progress.entered(claim, RunState.INITIALIZING, log_offset=0)
        )

    assert [RunState.INITIALIZING] == plane.states(run)


def test_no_way_back(plane):
    """A run does not return to a state it has left."""
    claim = planning(plane)

    with pytest.raises(ControlPlaneRefused):
        plane.progress.entered(claim, RunState.INITIALIZING, log_offset=0)


def test_state_waits_for_its_log(plane):
    """A state cannot begin at bytes of the log that are not there."""
    claim = take(plane)

    with pytest.raises(ControlPlaneRefused):
        plane.progress.entered(claim, RunState.INITIALIZING, log_offset=1)


def test_plan_without_changes(plane):
    """A plan without changes finishes the run."""
    claim = planning(plane)

    assert NextStep.FINISH == plane.progress.planned(claim, NO_CHANGES).next
    plane.source.settle(claim, settlement(Verdict.FINISHED))


def test_plan_with_changes(plane):
    """A plan with changes waits for somebody to confirm."""
    claim = planning(plane)

    answer = plane.progress.planned(claim, CHANGES)

    assert (NextStep.HAND_OVER, ()) == (answer.next, answer.environment)


def test_plan_that_a_policy_denies(plane):
    """Who planned learns that the run fails, although the job has gone well."""
    claim = planning(plane, denied=True)

    answer = plane.progress.planned(claim, CHANGES)

    assert (NextStep.FINISH, True) == (answer.next, answer.denied)
    plane.source.settle(claim, settlement(Verdict.FINISHED))


def test_plan_that_is_applied_at_once(plane):
    """Where nobody has to confirm, the answer brings what only an apply may know."""
    claim = planning(plane, autodeploy=True)

    answer = plane.progress.planned(claim, CHANGES)

    assert NextStep.APPLY == answer.next
    assert {"WRITE_KEY": WRITE_KEY} == {
        each.name: each.value for each in answer.environment
    }
    assert plane.progress.entered(claim, RunState.APPLYING, log_offset=0) is None
    plane.source.settle(claim, settlement(Verdict.FINISHED))


def test_outputs(plane):
    """[capability 155] What an applying run tells is kept, and the last report counts."""
    claim = planning(plane, autodeploy=True)
    plane.progress.planned(claim, CHANGES)
    secret = StackOutput(name="key", value='"hunter2"', sensitive=True)
    with pytest.raises(ControlPlaneRefused):
        plane.progress.told(claim, OutputsReport(outputs=(secret,)))

    plane.progress.entered(claim, RunState.APPLYING, log_offset=0)
    plane.progress.told(claim, OutputsReport())
    for _ in range(2):
        plane.progress.told(claim, OutputsReport(outputs=(secret,)))
    plane.source.settle(claim, settlement(Verdict.FINISHED))

    assert [("key", True)] == plane.outputs(claim)


def test_apply_that_needs_another_container(plane):
    """A plan that cannot be applied in its container is handed over."""
    claim = planning(plane, autodeploy=True)
    report = PlanReport(has_changes=True, changes=CHANGES.changes, applies_here=False)

    assert NextStep.HAND_OVER == plane.progress.planned(claim, report).next


@pytest.mark.parametrize("trouble", BOTH)
def test_plan_is_reported_twice(plane, trouble):
    """The same report gets the same answer; another one is refused."""
    claim = planning(plane)
    plane.trouble("planned", trouble)

    answers = [insist(lambda: plane.progress.planned(claim, CHANGES)) for _ in range(2)]

    assert answers[0] == answers[1]
    with pytest.raises(ControlPlaneRefused):
        plane.progress.planned(claim, NO_CHANGES)


def test_plan_out_of_nothing(plane):
    """A run that is not planning has no plan."""
    claim = take(plane)

    with pytest.raises(ControlPlaneRefused):
        plane.progress.planned(claim, CHANGES)


def test_stop_before_the_plan_is_reported(plane):
    """A run that is to be stopped is not told to apply."""
    run = plane.trigger(autodeploy=True)
    claim = planning(plane, run=run)
    plane.request_stop(run)

    assert NextStep.HAND_OVER == plane.progress.planned(claim, CHANGES).next
    plane.source.settle(claim, settlement(Verdict.STOPPED))


def test_stop_between_plan_and_apply(plane):
    """A stop request keeps an apply from beginning, however late it comes."""
    run = plane.trigger(autodeploy=True)
    claim = planning(plane, run=run)
    assert NextStep.APPLY == plane.progress.planned(claim, CHANGES).next
    plane.request_stop(run)

    with pytest.raises(ControlPlaneRefused):
        plane.progress.entered(claim, RunState.APPLYING, log_offset=0)

    assert plane.source.renew(claim)
    plane.source.settle(claim, settlement(Verdict.STOPPED))


def test_apply_without_permission(plane):
    """A job that was not told to apply cannot report that it does."""
    claim = planning(plane)
    plane.progress.planned(claim, CHANGES)

    with pytest.raises(ControlPlaneRefused):
        plane.progress.entered(claim, RunState.APPLYING, log_offset=0)


# --- LogSink


def test_log_in_pieces(plane):
    """Bytes are stored in order, at the offsets they were sent for."""
    run = plane.trigger()
    claim = take(plane, run)
    plane.progress.entered(claim, RunState.INITIALIZING, log_offset=0)

    assert 3 == plane.log.append(claim, 0, b"abc").next_offset
    assert 6 == plane.log.append(claim, 3, b"def").next_offset
    plane.source.settle(claim, Settlement(verdict=Verdict.FAILED, log_length=6))

    assert "abcdef" == plane.printed(run, RunState.INITIALIZING)


def test_log_is_repeated(plane):
    """Bytes that are there already are ignored, be it all of them or some."""
    run = plane.trigger()
    claim = take(plane, run)
    plane.progress.entered(claim, RunState.INITIALIZING, log_offset=0)
    plane.log.append(claim, 0, b"abc")

    assert 3 == plane.log.append(claim, 0, b"abc").next_offset
    assert 3 == plane.log.append(claim, 1, b"X").next_offset
    assert 5 == plane.log.append(claim, 0, b"XXXde").next_offset
    plane.source.settle(claim, Settlement(verdict=Verdict.FAILED, log_length=5))

    assert "abcde" == plane.printed(run, RunState.INITIALIZING)


@pytest.mark.parametrize("trouble", BOTH)
def test_log_call_is_lost(plane, trouble):
    """A chunk whose call got lost is sent again, and is there once."""
    run = plane.trigger()
    claim = take(plane, run)
    plane.progress.entered(claim, RunState.INITIALIZING, log_offset=0)
    plane.trouble("append", trouble)

    with pytest.raises(ControlPlaneUnavailable):
        plane.log.append(claim, 0, b"abc")
    assert 3 == plane.log.append(claim, 0, b"abc").next_offset
    plane.source.settle(claim, Settlement(verdict=Verdict.FAILED, log_length=3))

    assert "abc" == plane.printed(run, RunState.INITIALIZING)


def test_log_with_a_gap(plane):
    """Bytes that do not follow on those stored are refused, and not stored."""
    claim = take(plane)
    plane.log.append(claim, 0, b"abc")

    with pytest.raises(ControlPlaneRefused):
        plane.log.append(claim, 4, b"e")

    assert 4 == plane.log.append(claim, 3, b"d").next_offset


def test_largest_chunk(plane):
    """A chunk of the largest size is taken as a whole."""
    claim = take(plane)

    assert MAX_LOG_CHUNK == plane.log.append(claim, 0, b"x" * MAX_LOG_CHUNK).next_offset


@pytest.mark.parametrize(
    "data",
    [
        b"line\n" * 800_000,
        base64.b64encode(os.urandom(2 << 20)),
        os.urandom(50).hex().encode(),
    ],
    ids=["text", "noise", "short"],
)
def test_long_parts(plane, data):
    """Whatever it is made of, a long part is taken, or so much of it as fits."""
    run = plane.trigger()
    claim, offset = take(plane, run), 0
    plane.progress.entered(claim, RunState.INITIALIZING, log_offset=0)
    while offset < len(data):
        following = plane.log.append(claim, offset, data[offset:]).next_offset
        assert offset < following <= len(data)
        offset = following
    plane.source.settle(claim, Settlement(verdict=Verdict.FAILED, log_length=len(data)))
    assert data.decode() == plane.printed(run, RunState.INITIALIZING)


def test_an_older_server_takes_over(planes, monkeypatch):
    """One that knows no compressed parts refuses them, and gets them as they are."""
    plane = next(planes)
    run = plane.trigger()
    claim, data = take(plane, run), b"line\n" * 200_000
    plane.progress.entered(claim, RunState.INITIALIZING, log_offset=0)
    offset = plane.log.append(claim, 0, b"first\n").next_offset

    def as_before(body, _, checksum):
        if checksum != hashlib.sha256(body).hexdigest():
            raise WorkerRefused(ErrorCode.WRONG_CHECKSUM, "other bytes")
        return log_chunks.Part(body)

    monkeypatch.setattr(log_chunks, "arrived", as_before)
    with pytest.raises(ControlPlaneUnavailable):
        plane.log.append(claim, offset, data)
    assert offset + len(data) == plane.log.append(claim, offset, data).next_offset
    monkeypatch.undo()
    length = offset + len(data)
    plane.source.settle(claim, Settlement(verdict=Verdict.FAILED, log_length=length))
    assert b"first\n" + data == plane.printed(run, RunState.INITIALIZING).encode()


# --- WorkspaceStore


def handed_over(plane, content):
    """Plan, store *content*, hand over, confirm; return the claim of the apply."""
    run = plane.trigger()
    claim = planning(plane, run=run)
    plane.progress.planned(claim, CHANGES)
    plane.workspaces.save(claim, sealed(content))
    plane.source.settle(claim, settlement(Verdict.HANDED_OVER))
    plane.confirm(run)
    return take(plane, run)


@pytest.mark.parametrize(
    "content",
    [
        b"workspace",
        os.urandom(3 << 20),
        bytes(MAX_WORKSPACE_PART),
        bytes(MAX_WORKSPACE_PART + 1),
        b"x",
    ],
    ids=["small", "random", "one part", "more than a part", "one byte"],
)
def test_workspace_round_trip(plane, content):
    """What one job of a run saves, its next one starts from, byte for byte."""
    applying = handed_over(plane, content)

    assert applying.job.restores_workspace
    assert (Phase.APPLY,) == applying.job.phases
    assert content == restored(plane, applying)
    assert content == restored(plane, applying)
    plane.progress.entered(applying, RunState.APPLYING, log_offset=0)
    plane.source.settle(applying, settlement(Verdict.FINISHED))


def test_apply_runs_the_image_of_the_plan(plane):
    """The job that applies is told the digest that the planning one has reported."""
    run = plane.trigger()
    claim = take(plane, run)
    assert "" == claim.job.image_digest
    for state in (RunState.INITIALIZING, RunState.PLANNING):
        plane.progress.entered(
            claim, state, log_offset=0, image_digest=f"sha256:{'7' * 64}"
        )
    plane.progress.planned(claim, CHANGES)
    plane.workspaces.save(claim, sealed(b"x"))
    plane.source.settle(claim, settlement(Verdict.HANDED_OVER))
    plane.confirm(run)

    assert f"sha256:{'7' * 64}" == take(plane, run).job.image_digest


@pytest.mark.parametrize("trouble", BOTH)
@pytest.mark.parametrize("call", ["save", "saved"])
def test_saving_goes_on_where_it_ended(plane, call, trouble):
    """A workspace whose transfer is cut is whole after the call was repeated."""
    run = plane.trigger()
    claim = planning(plane, run=run)
    plane.progress.planned(claim, CHANGES)
    content = os.urandom(MAX_WORKSPACE_PART + 1000)
    workspace = sealed(content)
    plane.trouble(call, trouble)

    with pytest.raises(ControlPlaneUnavailable):
        plane.workspaces.save(claim, workspace)
    insist(lambda: plane.workspaces.save(claim, workspace))
    plane.source.settle(claim, settlement(Verdict.HANDED_OVER))
    plane.confirm(run)

    assert content == restored(plane, take(plane, run))


@pytest.mark.parametrize("trouble", BOTH)
def test_what_was_sent_is_not_sent_again(planes, monkeypatch, trouble):
    """When the last call of a transfer is lost, or its answer, that call is repeated."""
    plane = next(planes)
    run = plane.trigger()
    claim = planning(plane, run=run)
    plane.progress.planned(claim, CHANGES)
    content = os.urandom(MAX_WORKSPACE_PART + 1000)
    workspace, client, parts = sealed(content), plane.workspaces._client, []
    really = client.call

    def call(method, path, answer, **given):
        if method == "PUT":
            parts.append(len(given["body"]))
            if sum(parts) == len(content):
                plane.trouble("saved", trouble)
        return really(method, path, answer, **given)

    monkeypatch.setattr(client, "call", call)
    with pytest.raises(ControlPlaneUnavailable):
        plane.workspaces.save(claim, workspace)
    plane.workspaces.save(claim, workspace)
    # A part without bytes asks how the others are to travel.
    assert [0, MAX_WORKSPACE_PART, 1000] == parts
    plane.source.settle(claim, settlement(Verdict.HANDED_OVER))
    plane.confirm(run)
    assert content == restored(plane, take(plane, run))


@pytest.mark.parametrize("trouble", BOTH)
def test_the_last_workspace_counts(plane, trouble):
    """Another workspace takes the place of one that was saved, or half saved, before."""
    run = plane.trigger()
    claim = planning(plane, run=run)
    plane.progress.planned(claim, CHANGES)
    plane.workspaces.save(claim, sealed(b"whole"))
    plane.trouble("save", trouble)
    with pytest.raises(ControlPlaneUnavailable):
        plane.workspaces.save(claim, sealed(b"half"))
    plane.workspaces.save(claim, sealed(b"last"))
    plane.source.settle(claim, settlement(Verdict.HANDED_OVER))
    plane.confirm(run)

    assert b"last" == restored(plane, take(plane, run))


@pytest.mark.parametrize("trouble", BOTH)
def test_restoring_goes_on_where_it_ended(plane, trouble):
    """A workspace that comes in two attempts is the same as one that comes at once."""
    content = os.urandom(MAX_WORKSPACE_PART + 1000)
    applying, into = handed_over(plane, content), io.BytesIO()
    plane.trouble("restore", trouble)

    with pytest.raises(ControlPlaneUnavailable):
        plane.workspaces.restore(applying, into)
    into.seek(0)
    into.write(content[:1000])
    plane.workspaces.restore(applying, into)

    assert content == into.getvalue()


def test_restoring_what_is_there(plane):
    """Repeating the call when all of it has come is harmless."""
    applying, into = handed_over(plane, b"workspace"), io.BytesIO()

    for _ in range(2):
        plane.workspaces.restore(applying, into)

    assert b"workspace" == into.getvalue()


def test_workspace_of_a_job_that_keeps_it(plane):
    """A job that is not to hand over cannot store a workspace."""
    claim = planning(plane)

    with pytest.raises(ControlPlaneRefused):
        plane.workspaces.save(claim, sealed(b"x"))


def test_no_workspace(plane):
    """Where nothing was saved there is nothing to start from."""
    claim = take(plane)

    with pytest.raises(ControlPlaneRefused):
        plane.workspaces.restore(claim, io.BytesIO())


# --- outages


@pytest.mark.parametrize(
    "call", ["renew", "settle", "entered", "planned", "append", "save", "restore"]
)
def test_outage(plane, call):
    """While nobody answers every call says so, and afterwards things go on."""
    claim = planning(plane)
    with plane.outage(), pytest.raises(ControlPlaneUnavailable):
        writes(plane, claim)[call]()

    assert plane.source.renew(claim) is None


def test_poll_in_an_outage(plane):
    """While nobody answers, asking for work says so."""
    with plane.outage(), pytest.raises(ControlPlaneUnavailable):
        plane.source.receive(0, wait=0.1)

    plane.trigger()
    assert eventually(lambda: plane.source.receive(0, wait=2))


def test_only_our_errors(plane):
    """Whatever goes wrong, callers only need to know our own errors."""
    claim = Claim(a_job(id="../../nonsense?x=%00"), "x", 90, 20)
    with plane.outage():
        for call in writes(plane, claim).values():
            with pytest.raises(LauncherError):
                call()


def test_tokens_are_issued_anew(plane):
    """Whoever holds a job gets other tokens than before, as good as those."""
    claim = planning(plane)
    before = claim.job.tokens
    made = [insist(lambda: plane.progress.tokens(claim)) for _ in range(2)]
    assert 3 == len({tokens.oidc for tokens in (before, *made)})
    assert 3 == len({tokens.api for tokens in (before, *made)})
    for tokens in made:
        assert before.refresh_seconds == tokens.refresh_seconds > 0
        assert before.graphql_endpoint == tokens.graphql_endpoint != ""
