"""The worker protocol, request by request, over HTTP."""

import hashlib
import ssl
import threading
import time

from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3
import zstandard

from controlplane.site import configuration, eventually, running, stack
from launcher.controlplane import workspaces
from launcher.controlplane.services import Limits
from launcher.wire.messages import (
    CHECKSUM_HEADER,
    CHECKSUM_HEADER,
    ENCODING_HEADER,
    LOG_ENCODING,
    MAX_LOG_CHUNK,
    MAX_PACKED_LOG,
    MAX_WORKSPACE_PART,
    VERSION_HEADER,
)


@pytest.fixture
def held(api, worker):
    """A claimed planning job."""
    api.trigger()
    return worker.take()


# --- who may speak


def test_a_connection_without_a_certificate_is_refused(site, worker):
    """Without the pool's certificate and its key not even a connection comes about."""
    context = ssl.create_default_context(cadata=site.plane.authority.pem)
    worker.http = site.connections_with(context)
    with pytest.raises(urllib3.exceptions.HTTPError):
        worker.raw("POST", "/workers", {})


def test_the_peoples_listener_takes_no_unproven_worker(site, worker):
    """Who proves nothing learns nothing, whatever else is in the request."""
    worker.base = site.base
    worker.http = site.http
    unsigned = (401, "signature_missing")
    assert worker.refused("POST", "/workers", {}) == unsigned
    path = f"/workers/{worker.id}/poll"
    assert worker.refused("POST", path, {"wait_seconds": 0}) == unsigned
    assert worker.refused("POST", path, {}, Authorization="Bearer x") == unsigned


@pytest.mark.parametrize(
    ("version", "status"), [("1", 200), ("2", 200), ("3", 400), ("0", 400), ("x", 400)]
)
def test_neighbouring_versions_are_understood(worker, version, status):
    """A launcher one version away is served; any other is told so."""
    path = f"/workers/{worker.id}/poll"
    response = worker.raw(
        "POST", path, {"wait_seconds": 0}, **{VERSION_HEADER: version}
    )
    assert response.status == status
    assert response.headers[VERSION_HEADER] == "1"
    if status == 400:
        assert response.json()["code"] == "wrong_version"


def test_a_slot_is_one_worker(site, worker):
    """Registering the same slot again gives the same worker; another, another."""
    first = worker.id
    assert site.worker().id == first
    assert site.worker(slot=1).id != first
    assert site.worker(instance="i-1").id != first


def test_an_unknown_worker_is_told_to_register(worker):
    """A control plane that lost its workers gets them back."""
    body = {"wait_seconds": 0}
    refusal = worker.refused("POST", "/workers/nobody/poll", body)
    assert refusal == (404, "unknown_worker")
    refusal = worker.refused("POST", "/jobs/x/claim", {"worker": "no", "claim": "c"})
    assert refusal == (404, "unknown_worker")


def test_another_pool_sees_nothing(site, api, worker):
    """Neither offers nor claims nor tokens cross the border between pools."""
    stranger = site.worker("other")
    api.trigger()
    offer = worker.poll()
    claim = {"worker": stranger.id, "claim": "c"}
    path = f"/jobs/{offer['job']}"
    assert stranger.poll(0.1) is None
    assert stranger.refused("POST", f"{path}/claim", claim) == (404, "unknown_job")
    token = worker.claim(offer["job"])["token"]
    assert stranger.refused("POST", f"{path}/claim", claim) == (404, "unknown_job")
    for what, body in [
        ("renew", b""),
        ("state", {"state": "INITIALIZING", "log_offset": 0}),
        ("plan", {"has_changes": False}),
        ("settle", {"verdict": "failed", "log_length": 0}),
    ]:
        refusal = stranger.refused("POST", f"{path}/{what}", body, token=token)
        assert refusal == (404, "unknown_job")
    refusal = stranger.refused("PUT", f"{path}/log?offset=0", b"x", token=token)
    assert refusal == (404, "unknown_job")


@pytest.mark.parametrize(
    ("method", "what", "body"),
    [
        ("POST", "renew", b""),
        ("POST", "state", {"state": "INITIALIZING", "log_offset": 0}),
        ("POST", "plan", {"has_changes": False}),
        ("POST", "settle", {"verdict": "failed", "log_length": 0}),
        ("PUT", "log?offset=0", b"x"),
        ("PUT", "workspace?upload=u&offset=0", b"x"),
        ("POST", "workspace", {"upload": "u", "size": 1, "sha256": ""}),
        ("GET", "workspace", b""),
    ],
)
def test_every_write_needs_the_token(api, held, method, what, body):
    """A wrong token is stale, a missing one malformed; neither changes anything."""
    path, refused = f"{held.path}/{what}", held.worker.refused
    assert refused(method, path, body, token="wrong") == (409, "stale_token")
    assert refused(method, path, body) == (400, "malformed")
    assert api.state(held.run) == "PREPARING"


# --- taking a job


def test_a_poll_ends_as_soon_as_there_is_a_job(api, worker, monkeypatch):
    """A waiting worker is woken, and does not find the job by looking again."""
    monkeypatch.setattr("launcher.controlplane.worker_api.LOOK_AGAIN_SECONDS", 60)
    api.trigger()
    first = worker.take()
    first.planned(changes=False)
    first.settle("finished")
    offers = []
    waiting = threading.Thread(target=lambda: offers.append(worker.poll(15)))
    waiting.start()
    began = time.monotonic()
    run = api.trigger()
    waiting.join()
    assert offers[0]["run"] == run
    assert time.monotonic() - began < 10


def test_an_empty_poll_ends_in_time(worker):
    """Nothing to do is an answer, too."""
    began = time.monotonic()
    assert worker.poll(0.3) is None
    assert 0.2 < time.monotonic() - began < 10


def test_one_job_is_offered_to_one_worker(site, api, worker):
    """Others are not sent into a race that they would lose."""
    second = site.worker(slot=1)
    api.trigger()
    offer = worker.poll()
    assert second.poll(0.1) is None
    assert worker.claim(offer["job"])["job"]["id"] == offer["job"]
    assert second.poll(0.1) is None


def test_an_offer_nobody_takes_is_made_again(site, api, worker, monkeypatch):
    """A worker that dies between offer and claim does not keep the job."""
    monkeypatch.setattr("launcher.controlplane.claims.OFFERED_SECONDS", 0.2)
    monkeypatch.setattr("launcher.controlplane.worker_api.LOOK_AGAIN_SECONDS", 0.1)
    api.trigger()
    offer = worker.poll()
    second = site.worker(slot=1)
    assert second.poll(10) == offer


def test_a_new_poll_ends_an_older_one(site, api, worker):
    """A launcher that was restarted gets the job, not its dead connection."""
    first = []
    old = threading.Thread(target=lambda: first.append(worker.poll(15)))
    old.start()
    polls = site.plane.bell._listeners  # how the test knows that it waits
    eventually(lambda: polls)
    offers = []
    new = threading.Thread(target=lambda: offers.append(worker.poll(15)))
    new.start()
    old.join()
    assert first == [None]
    run = api.trigger()
    new.join()
    assert offers[0]["run"] == run


def test_who_hangs_up_gets_no_offer(site, api, worker):
    """A job is not offered to a connection that is closed."""
    body = b'{"wait_seconds": 15}'
    with site.connected() as gone:
        gone.sendall(
            f"POST /worker/v1/workers/{worker.id}/poll HTTP/1.1\r\nHost: x\r\n"
            f"{VERSION_HEADER}: 1\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        listeners = site.plane.bell._listeners
        eventually(lambda: listeners)
    eventually(lambda: not listeners)
    second = site.worker(slot=1)
    run = api.trigger()
    assert second.poll(3)["run"] == run


def test_a_claim_may_be_repeated(api, worker):
    """An answer that got lost is given again, to the same claim only."""
    api.trigger()
    job = worker.poll()["job"]
    first = worker.claim(job, "c-1")
    assert worker.claim(job, "c-1") == first
    body = {"worker": worker.id, "claim": "c-2"}
    assert worker.refused("POST", f"/jobs/{job}/claim", body) == (409, "taken")
    body = {"worker": worker.id, "claim": "c"}
    assert worker.refused("POST", "/jobs/none/claim", body) == (404, "unknown_job")


def test_a_claim_says_how_long_the_job_has_waited(api, worker):
    """Whoever takes a job learns how long it was there, also when asking again."""
    api.trigger()
    job = worker.poll()["job"]
    threading.Event().wait(0.3)
    waited = worker.claim(job, "c-1")["waited_seconds"]
    assert waited >= 0.3
    threading.Event().wait(0.1)
    assert waited == worker.claim(job, "c-1")["waited_seconds"]


def test_a_canceled_job_is_not_there_for_the_taking(api, worker):
    """Between offer and claim the run may end."""
    run = api.trigger()
    job = worker.poll()["job"]
    api.change("cancel", run)
    body = {"worker": worker.id, "claim": "c"}
    assert worker.refused("POST", f"/jobs/{job}/claim", body) == (409, "taken")
    assert worker.poll(0.1) is None


def test_a_job_says_everything(tmp_path, repository):
    """What the configuration says about a stack reaches the worker."""
    one = stack(
        repository,
        project_root="infra",
        vendor="ansible",
        vendor_config={"playbook": "site.yml"},
        tool_version="2.16",
        runner_image="registry/image:1",
        labels=["a", "b"],
        environment=[
            {"name": "TOKEN", "secret_env": "STACK_SECRET"},
            {"name": "ro_READ", "value": "r"},
            {"name": "wo_WRITE", "value": "w"},
        ],
        mounted_files=[{"path": "tmp/x", "content": "y"}],
        hooks={"before_plan": ["echo"]},
    )
    with running(tmp_path, configuration([one])) as site:
        worker, api = site.worker(), site.api()
        api.trigger(sha=repository.git("rev-parse", "HEAD"))
        job = worker.take().job
    assert job["stack"] == {
        "slug": "testing-spacelift",
        "name": "Testing Spacelift",
        "account_name": "acme",
        "repository_path": "acme/testing-spacelift",
        "branch": "main",
        "space": "root",
        "project_root": "infra",
        "labels": ["a", "b"],
        "auto_deploy": False,
        "local_preview_enabled": False,
    }
    assert job["source"]["url"] == repository.url
    assert job["vendor"] == {
        "vendor": "ansible",
        "typed_config": {"playbook": "site.yml"},
        "tool_version": "2.16",
    }
    assert job["docker_image"] == "registry/image:1"
    assert job["hooks"]["before_plan"] == ["echo"]
    names = [(v["name"], v["secret"], v["scope"]) for v in job["environment"]]
    assert names == [("TOKEN", True, "always"), ("READ", False, "read")]
    assert job["mounted_files"] == [
        {"path": "tmp/x", "content": "eQ==", "secret": False}
    ]
    commit = job["run"]["commit"]
    assert commit["hash"] == repository.git("rev-parse", "HEAD")
    assert (commit["branch"], commit["author"]) == ("main", "Ann Author")
    assert job["run"]["triggered_by"] == "api::ci"
    assert job["run"]["type"] == "TRACKED"


# --- the log


def test_the_log_is_stored_once(api, held):
    """Repeated and overlapping uploads change nothing; a gap is refused."""
    put = lambda offset, data: held.worker.raw(  # noqa: E731
        "PUT", f"{held.path}/log?offset={offset}", data, token=held.token
    )
    first = {"next_offset": 6, "stop": None, "packed": MAX_PACKED_LOG}
    assert put(0, b"hello ").json() == first
    assert put(0, b"hello ").json()["next_offset"] == 6
    assert put(3, b"lo world").json()["next_offset"] == 11
    assert put(0, b"hello").json()["next_offset"] == 11
    assert put(11, b"").json()["next_offset"] == 11
    gap = put(12, b"!")
    assert (gap.status, gap.json()["code"]) == (409, "wrong_offset")
    assert gap.json()["next_offset"] == 11
    entry = api.history(held.run)[0]
    page = api.log_page(held.run, entry)
    assert page["messages"] == [{"message": "hello world"}]


@pytest.mark.parametrize("offset", ["", "-1", "x", "1e3", "9" * 30])
def test_an_offset_is_a_number(held, offset):
    """What is not an offset is malformed."""
    path = f"{held.path}/log?offset={offset}"
    assert held.worker.refused("PUT", path, b"x", token=held.token) == (
        400,
        "malformed",
    )


def test_a_log_is_bounded(tmp_path, repository):
    """One upload and one log have a size; what exceeds it is refused."""
    with running(
        tmp_path, configuration([stack(repository)]), Limits(max_log=100)
    ) as site:
        site.api().trigger()
        held = site.worker().take()
        held.log(b"x" * 100)
        held.log(b"")
        path = f"{held.path}/log?offset=100"
        refused = held.worker.refused("PUT", path, b"x", token=held.token)
        assert refused == (413, "too_large")
        body = b"x" * (MAX_LOG_CHUNK + 1)
        refused = held.worker.refused("PUT", path, body, token=held.token)
        assert refused == (413, "too_large")


PACKED = {ENCODING_HEADER: LOG_ENCODING}


def test_compressed_parts_are_stored_once(api, held):
    """What comes compressed is as good as what does not, also where the two overlap."""
    text = b"".join(b"line %d\n" % number for number in range(90_000))
    checksum = hashlib.sha256(text).hexdigest()

    def put(offset, data, body, **headers):
        path = f"{held.path}/log?offset={offset}"
        answer = held.worker.raw("PUT", path, body, token=held.token, **headers)
        assert answer.json()["next_offset"] == offset + len(data)

    part, rest = text[:50_000], text[300_000:]
    put(0, part, zstandard.compress(part), **PACKED)
    put(0, part, part)
    put(
        20_000, text[20_000:300_000], zstandard.compress(text[20_000:300_000]), **PACKED
    )
    put(300_000, rest, zstandard.compress(rest), **PACKED)
    held.offset = len(text)
    held.enter("INITIALIZING")
    shown = api.read_log(held.run, "PREPARING")
    assert hashlib.sha256(shown.encode()).hexdigest() == checksum


@pytest.mark.parametrize(
    ("body", "headers", "refusal"),
    [
        (b"no frame", PACKED, (400, "malformed")),
        (b"", PACKED, (400, "malformed")),
        (zstandard.compress(b"x" * 99)[:-3], PACKED, (400, "malformed")),
        (zstandard.compress(b"x" * 99) + b"more", PACKED, (400, "malformed")),
        (
            zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 99),
            PACKED,
            (400, "malformed"),
        ),
        (
            zstandard.compress(bytes(MAX_PACKED_LOG + 1)),
            PACKED,
            (413, "too_large"),
        ),
        (
            zstandard.compress(b"x"),
            {**PACKED, CHECKSUM_HEADER: hashlib.sha256(b"y").hexdigest()},
            (422, "wrong_checksum"),
        ),
        (b"x", {ENCODING_HEADER: "gzip"}, (400, "malformed")),
    ],
)
def test_what_cannot_be_unpacked_is_refused(held, body, headers, refusal):
    """A body that lies about itself, or would fill the memory, changes nothing."""
    path = f"{held.path}/log?offset=0"
    answer = held.worker.refused("PUT", path, body, token=held.token, **headers)
    assert answer == refusal
    empty = held.worker.raw("PUT", path, b"", token=held.token)
    assert empty.json()["next_offset"] == 0


# --- states


def test_states_are_reported_in_order(api, held):
    """A state comes after the bytes before it, once, and never backwards."""
    assert held.refused("state", {"state": "PLANNING", "log_offset": 0}) == (
        409,
        "wrong_state",
    )
    assert held.refused("state", {"state": "INITIALIZING", "log_offset": 1}) == (
        409,
        "wrong_offset",
    )
    held.log(b"abc")
    held.enter("INITIALIZING")
    held.enter("INITIALIZING")
    held.enter("PLANNING")
    assert held.refused("state", {"state": "INITIALIZING", "log_offset": 3}) == (
        409,
        "wrong_state",
    )
    for state in ("APPLYING", "CONFIRMED", "FINISHED", "UNCONFIRMED", "QUEUED"):
        report = {"state": state, "log_offset": 3}
        assert held.refused("state", report) == (409, "wrong_state")
    assert api.states(held.run)[-3:] == ["PREPARING", "INITIALIZING", "PLANNING"]


@pytest.mark.parametrize("offset", [-1, 2])
def test_a_later_state_begins_later(held, offset):
    """The parts of a log do not overlap."""
    held.log(b"abcdef")
    held.post("state", {"state": "INITIALIZING", "log_offset": 4})
    refused = held.refused("state", {"state": "PLANNING", "log_offset": offset})
    assert refused == (400, "malformed")


# --- plans


@pytest.mark.parametrize(
    ("changes", "run_type", "autodeploy", "here", "following"),
    [
        (False, "TRACKED", True, True, "finish"),
        (False, "TRACKED", False, True, "finish"),
        (True, "TRACKED", False, True, "hand_over"),
        (True, "TRACKED", True, True, "apply"),
        (True, "TRACKED", True, False, "hand_over"),
        (True, "PROPOSED", True, True, "finish"),
    ],
)
def test_what_comes_after_the_plan(
    tmp_path, repository, changes, run_type, autodeploy, here, following
):
    """The control plane decides; the same report gets the same answer."""
    one = stack(
        repository,
        autodeploy=autodeploy,
        environment=[{"name": "wo_W", "value": "w"}, {"name": "A", "value": "a"}],
    )
    with running(tmp_path, configuration([one])) as site:
        api = site.api()
        run = api.trigger(type=run_type)
        held = site.worker().take()
        answer = held.planned(changes=changes, applies_here=here)
        assert answer["next"] == following
        names = [variable["name"] for variable in answer["environment"]]
        assert names == (["W"] if following == "apply" else [])
        assert held.plan(changes=changes, applies_here=here) == answer
        other = {"has_changes": not changes}
        assert held.refused("plan", other) == (409, "wrong_state")
        if following == "apply":
            held.enter("APPLYING")
            held.settle("finished")
        elif following == "finish":
            assert held.refused("state", {"state": "APPLYING", "log_offset": 0})
            held.settle("finished")
        else:
            refused = held.refused("state", {"state": "APPLYING", "log_offset": 99})
            assert refused[0] == 409
            held.store()
            held.settle("handed_over")
        assert (
            api.state(run)
            == {
                "apply": "FINISHED",
                "finish": "FINISHED",
                "hand_over": "CONFIRMED" if autodeploy else "UNCONFIRMED",
            }[following]
        )


def test_nothing_is_planned_outside_planning(held):
    """A plan report before the planning phase is refused."""
    assert held.refused("plan", {"has_changes": True}) == (409, "wrong_state")
    held.enter("INITIALIZING")
    assert held.refused("plan", {"has_changes": True}) == (409, "wrong_state")


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_autodeploy_switched_in_between(tmp_path, repository, before, after):
    """Off counts at once; on would surprise a policy that was told otherwise."""
    given = configuration([stack(repository, autodeploy=before)])
    with running(tmp_path, given) as site:
        api = site.api()
        run = api.trigger()
        held = site.worker().take()
        site.apply(configuration([stack(repository, autodeploy=after)]))
        assert held.planned()["next"] == "hand_over"
        held.store()
        held.settle("handed_over")
        assert api.state(run) == "UNCONFIRMED"


def test_a_run_is_applied_as_it_was_planned(tmp_path, repository):
    """What changes in the configuration meanwhile counts for the next run."""
    before = stack(repository, environment=[{"name": "A", "value": "1"}])
    after = stack(repository, environment=[{"name": "A", "value": "2"}])
    with running(tmp_path, configuration([before])) as site:
        api, worker = site.api(), site.worker()
        run = api.trigger()
        worker.take().handed_over()
        site.apply(configuration([after]))
        api.change("confirm", run)
        assert worker.take().job["environment"][0]["value"] == "1"


# --- workspaces


def test_a_workspace_goes_from_plan_to_apply(site, api, worker):
    """The applying job gets the very bytes that the planning one has stored."""
    data = bytes(range(256)) * 10_000
    digest = hashlib.sha256(data).hexdigest()
    run = api.trigger()
    held = worker.take()
    held.planned()
    assert held.store(b"an earlier attempt")["size"] == 18
    assert held.store(data) == {"size": len(data), "sha256": digest}
    held.settle("handed_over")
    folder = site.folder / "control-plane.db.data" / "workspaces"
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    api.change("confirm", run)
    applying = worker.take()
    path = f"{applying.path}/workspace"
    response = worker.raw("GET", path, token=applying.token)
    assert response.data == data
    assert response.headers[CHECKSUM_HEADER] == digest
    old = worker.refused("GET", f"{held.path}/workspace", token=held.token)
    assert old == (409, "stale_token")
    applying.applied()
    site.plane.workspaces.remove_needless()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("slot", [-1, 1 << 31, 1 << 63, 1 << 80])
def test_a_slot_is_a_small_number(worker, slot):
    """What no database could note is refused, not a failure of the server."""
    given = {"instance": "i", "slot": slot, "version": "1", "metadata": {}}
    assert worker.refused("POST", "/workers", given) == (400, "malformed")


def part(held, data, *, upload="u-1", offset=0, to=""):
    """What a part that is refused is answered."""
    path = to or f"{held.path}/workspace?upload={upload}&offset={offset}"
    answer = held.worker.raw("PUT", path, data, token=held.token).json()
    return answer["code"], answer["next_offset"]


def finishing(held, data, *, upload="u-1"):
    """The call that ends an upload of *data*, and its answer or refusal."""
    sha256 = hashlib.sha256(data).hexdigest()
    body = {"upload": upload, "size": len(data), "sha256": sha256}
    path = f"{held.path}/workspace"
    return held.worker.raw("POST", path, body, token=held.token).json()


def test_a_workspace_is_stored_only_to_be_handed_over(held):
    """Before the plan, or without a hand-over, there is nothing to store."""
    assert part(held, b"x") == ("wrong_state", None)
    held.planned(changes=False)
    assert part(held, b"x") == ("wrong_state", None)
    assert finishing(held, b"x")["code"] == "wrong_state"
    get = held.worker.refused("GET", f"{held.path}/workspace", token=held.token)
    assert get == (409, "wrong_state")


def test_a_workspace_comes_in_parts(held):
    """What is there already is ignored, a gap is refused, and the answer says so."""
    held.planned()
    assert held.part(b"") == {"next_offset": 0}
    assert held.part(b"abc") == {"next_offset": 3}
    assert held.part(b"") == {"next_offset": 3}
    assert held.part(b"abcd") == {"next_offset": 4}
    assert held.part(b"X", offset=2) == {"next_offset": 4}
    assert part(held, b"f", offset=5) == ("wrong_offset", 4)
    missing = finishing(held, b"abcde")
    assert (missing["code"], missing["next_offset"]) == ("wrong_offset", 4)
    held.part(b"e", offset=4)
    assert finishing(held, b"abcde")["size"] == 5


def files_of(site, held):
    """What is on the disk for a job, finished or not."""
    folder = site.folder / "control-plane.db.data" / "workspaces"
    return [path for path in folder.iterdir() if path.name.startswith(held.job["id"])]


def test_a_new_upload_discards_the_earlier_one(site, held):
    """A sender that begins again is not mixed up with what it sent before."""
    held.planned()
    held.part(b"abc", upload="u-1")
    assert held.part(b"", upload="u-2") == {"next_offset": 0}
    assert finishing(held, b"abc", upload="u-1")["code"] == "wrong_offset"
    assert len(files_of(site, held)) == 1
    assert held.store(b"second", upload="u-2")["size"] == 6


def test_the_end_of_an_upload_is_repeated(held):
    """Whoever did not hear that the workspace is stored may ask again."""
    held.planned()
    stored = held.store(b"workspace")
    assert finishing(held, b"workspace") == stored
    other = finishing(held, b"another")
    assert (other["code"], other["next_offset"]) == ("wrong_offset", 0)


def test_the_end_of_an_upload_is_repeated_meanwhile(held, monkeypatch):
    """Whoever gave up waiting for a slow disk, and asks again, gets the same answer."""
    begun, may_end = threading.Event(), threading.Event()
    require_same = workspaces._require_same

    def slow(*given):
        begun.set()
        assert may_end.wait(15)
        require_same(*given)

    held.planned()
    held.part(b"workspace")
    monkeypatch.setattr(workspaces, "_require_same", slow)
    with ThreadPoolExecutor(2) as beside:
        first = beside.submit(finishing, held, b"workspace")
        assert begun.wait(15)
        second = beside.submit(finishing, held, b"workspace")
        with pytest.raises(TimeoutError):
            second.result(0.3)
        may_end.set()
        assert first.result()["size"] == 9
        assert second.result() == first.result()


def test_an_upload_that_nobody_ends_is_removed(site, held):
    """With its job goes what the job has not finished sending."""
    held.planned()
    held.part(b"abc")
    site.plane.workspaces.remove_needless()
    assert len(files_of(site, held)) == 1
    held.settle("failed")
    site.plane.workspaces.remove_needless()
    assert files_of(site, held) == []


@pytest.mark.parametrize(
    "query", ["", "?upload=u", "?offset=0", "?upload=&offset=0", "?upload=u&offset=-1"]
)
def test_a_part_says_where_it_belongs(held, query):
    """A part without the name of its upload or its place in it is malformed."""
    held.planned()
    where = f"{held.path}/workspace{query}"
    assert part(held, b"x", to=where) == ("malformed", None)
    assert part(held, b"x", upload="u" * 65) == ("malformed", None)


def test_an_empty_workspace_is_none(held):
    """There is no workspace without a byte."""
    held.planned()
    held.part(b"")
    assert finishing(held, b"")["code"] == "malformed"


def test_a_stored_workspace_is_given_in_parts(api, worker):
    """Whoever was cut off asks for the rest; every part tells the sum of the whole."""
    data = bytes(range(256)) * 100
    run = api.trigger()
    held = worker.take()
    held.planned()
    held.store(data)
    held.settle("handed_over")
    api.change("confirm", run)
    applying = worker.take()
    path, token = f"{applying.path}/workspace", applying.token
    for first, last in ((0, 9), (100, 25_599), (25_599, 25_599), (25_590, 99_999)):
        given = worker.raw("GET", path, token=token, Range=f"bytes={first}-{last}")
        last = min(last, 25_599)
        assert given.status == 206
        assert given.data == data[first : last + 1]
        assert given.headers["Content-Range"] == f"bytes {first}-{last}/25600"
        assert given.headers[CHECKSUM_HEADER] == hashlib.sha256(data).hexdigest()


def test_a_damaged_workspace_is_refused(held):
    """What arrived has to be what was sent; otherwise it is sent again."""
    held.planned()
    held.part(b"abx")
    assert finishing(held, b"abc")["code"] == "wrong_checksum"
    assert held.part(b"") == {"next_offset": 0}
    assert held.store(b"abc")["size"] == 3


def test_a_workspace_is_bounded_and_whole(tmp_path, repository):
    """Too large, or never finished, it is not stored."""
    limits = Limits(max_workspace=1000)
    with running(tmp_path, configuration([stack(repository)]), limits) as site:
        site.api().trigger()
        held = site.worker().take()
        held.planned()
        assert part(held, b"x" * 1001)[0] == "too_large"
        held.part(b"x" * 1000)
        assert part(held, b"x", offset=1000)[0] == "too_large"
        assert part(held, b"x" * (MAX_WORKSPACE_PART + 1))[0] == "too_large"
        assert held.refused("settle", {"verdict": "handed_over", "log_length": 0}) == (
            409,
            "wrong_state",
        )


# --- the end


def test_settling_may_be_repeated(api, held):
    """The same settlement again is fine, a different one is not."""
    held.planned(changes=False)
    assert held.settle("finished") == held.settle("finished") == {"stop": None}
    body = {"verdict": "failed", "log_length": held.offset}
    assert held.refused("settle", body) == (409, "wrong_state")
    assert held.worker.refused("POST", f"{held.path}/renew", token=held.token) == (
        409,
        "stale_token",
    )
    assert api.state(held.run) == "FINISHED"


def test_the_log_comes_before_the_end(held):
    """A settlement waits for the bytes it speaks of."""
    held.log(b"abc")
    body = {"verdict": "failed", "log_length": 4}
    response = held.worker.raw("POST", f"{held.path}/settle", body, token=held.token)
    assert response.status == 409
    failure = response.json()
    assert (failure["code"], failure["next_offset"]) == ("wrong_offset", 3)


def test_a_worker_cannot_skip_the_apply(api, held):
    """FINISHED after a plan with changes is the control plane's word to say."""
    settle = lambda verdict: held.refused(  # noqa: E731
        "settle", {"verdict": verdict, "log_length": 0}
    )
    assert settle("finished") == (409, "wrong_state")
    assert settle("handed_over") == (409, "wrong_state")
    held.planned()
    assert settle("finished") == (409, "wrong_state")
    assert settle("handed_over") == (409, "wrong_state"), "no workspace yet"
    assert api.state(held.run) == "PLANNING"


@pytest.mark.parametrize(
    ("verdict", "reached", "state"),
    [
        ("failed", "PREPARING", "FAILED"),
        ("failed", "PLANNING", "FAILED"),
        ("stopped", "PREPARING", "STOPPED"),
        ("stopped", "PLANNING", "STOPPED"),
    ],
)
def test_a_verdict_ends_the_run(api, held, verdict, reached, state):
    """The reason is shown as a note."""
    if reached == "PLANNING":
        held.planned()
    held.settle(verdict, reason="exit code 1", code="phase_failed")
    newest = api.history(held.run)[0]
    assert (newest["state"], newest["note"]) == (state, "exit code 1")


@pytest.mark.parametrize(
    ("verdict", "state"), [("failed", "FAILED"), ("stopped", "FAILED")]
)
def test_an_interrupted_apply_has_failed(api, worker, verdict, state):
    """STOPPED would say that nothing was changed."""
    run = api.trigger()
    worker.take().handed_over()
    api.change("confirm", run)
    applying = worker.take()
    applying.enter("APPLYING")
    applying.settle(verdict, reason="interrupted")
    assert api.state(run) == state


def test_lost_output_is_said(api, held):
    """A log that is known to be incomplete is marked as such."""
    held.planned(changes=False)
    held.settle("finished", log_complete=False)
    assert api.history(held.run)[0]["note"] == "some output was lost"


def test_missing_bytes_are_counted(api, held):
    """When the worker knows how much of the log could not be stored, it is said."""
    held.planned(changes=False)
    held.settle("finished", log_complete=False, log_missing=123)
    assert api.history(held.run)[0]["note"] == "some output was lost: 123 bytes"


def test_damaged_output_is_not_stored(api, held):
    """Output whose checksum is another one is refused, and stored when it is right."""
    path, data = f"{held.path}/log?offset=0", b"as it was sent"
    right = hashlib.sha256(data).hexdigest()
    wrong = hashlib.sha256(b"other").hexdigest()

    def put(checksum):
        headers = {"Spacelift-Content-Sha256": checksum}
        return held.worker.raw("PUT", path, data, token=held.token, **headers)

    assert (422, "wrong_checksum") == (put(wrong).status, put(wrong).json()["code"])
    assert len(data) == put(right).json()["next_offset"]


# --- stopping


def test_a_stop_request_reaches_the_worker(api, held):
    """With every answer about the job, until the job is over."""
    held.enter("INITIALIZING")
    document = (
        "mutation($note:String!$run:ID!$stack:ID!)"
        "{runStop(stack: $stack, run: $run, note: $note){id}}"
    )
    note = "Stopped by spacectl"
    stack_run = {"run": held.run, "stack": api.slug}
    api(document, {**stack_run, "note": note})
    assert held.post("renew", b"")["stop"] == note
    assert held.log(b"x")["stop"] == note
    assert held.enter("PLANNING")["stop"] == note
    held.settle("stopped", reason="stopped on request")
    newest = api.history(held.run)[0]
    assert (newest["state"], newest["note"]) == ("STOPPED", note)
    assert newest["username"] == "api::ci"


def test_a_stop_after_the_plan_keeps_the_apply_from_starting(tmp_path, repository):
    """Whoever asks before APPLYING is served, even if the plan said: apply."""
    given = configuration([stack(repository, autodeploy=True)])
    with running(tmp_path, given) as site:
        api = site.api()
        run = api.trigger()
        held = site.worker().take()
        assert held.planned()["next"] == "apply"
        api.change("stop", run)
        report = {"state": "APPLYING", "log_offset": held.offset}
        assert held.refused("state", report) == (409, "wrong_state")
        held.settle("failed", reason="not let into APPLYING")
        assert api.state(run) == "STOPPED"


def test_a_stopped_plan_is_not_handed_over(api, held):
    """A stop request that met a finished plan still stops the run."""
    held.log(b"x")
    held.enter("INITIALIZING")
    held.enter("PLANNING")
    api.change("stop", held.run)
    assert held.plan()["next"] == "hand_over"
    held.settle("handed_over")
    assert api.state(held.run) == "STOPPED"


# --- bad input


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"worker": 1, "claim": "c"}', b"\xff", b"[" * 50_000],
)
def test_malformed_bodies_are_refused(worker, body):
    """Nothing that can be sent ends in a crash."""
    assert worker.refused("POST", "/jobs/x/claim", body) == (400, "malformed")


def test_bodies_are_bounded(worker):
    """A body larger than any request needs is refused, announced or not."""
    body = b'{"worker": "' + b"x" * 100_000 + b'", "claim": "c"}'
    assert worker.refused("POST", "/jobs/x/claim", body) == (413, "too_large")
    parts = (body[i : i + 1000] for i in range(0, len(body), 1000))
    response = worker.http.request(
        "POST",
        f"{worker.base}/worker/v1/jobs/x/claim",
        body=parts,
        headers={VERSION_HEADER: "1"},
    )
    assert response.status == 413
