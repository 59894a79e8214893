"""The way of a job as a trace, in the words of OTLP, on the line of fakes."""

import socket
import subprocess
import sys
import threading

from dataclasses import replace

from given import a_run, eventually
from support.collector import collecting
from support.line import AUTODEPLOY, HAND_OVER

import pytest

from launcher.adapters.traces import otlp
from launcher.adapters.traces.otlp import Traces
from launcher.output.needles import needles
from launcher.sight import Ended, Facts, Seen, Sight, Stage
from launcher.trace_context import TRACEPARENT, span_id, trace_id
from launcher.wire.jobs import Hooks, MountedFile, RunType, Tokens, Variable
from launcher.wire.messages import Verdict


RUN = "01JZ8Y2Q6M3F5C8T7V9W0X1Y2Z"
TRACE = f"{trace_id(RUN):032x}"
SECRET = "hunter2-of-the-stack"


@pytest.fixture(name="collector")
def _collector():
    with collecting() as collector:
        yield collector


def traces(url, **headers):
    return Traces(
        url, headers=headers, service="launcher", instance="instance", pool="pool"
    )


def traced(line, observer):
    """The line as it is with a collector in its settings."""
    telemetry = replace(line.settings.telemetry, otlp_endpoint="http://127.0.0.1:4318")
    line.settings = replace(line.settings, telemetry=telemetry)
    line.sight = Sight([observer])


def a_traced_job(line, files=None, **changes):
    return line.job(files, run=a_run(id=RUN), **changes)


def tree(spans):
    """Names below names."""
    names = {span.id: span.name for span in spans}
    return {(names.get(span.parent, ""), span.name) for span in spans}


def test_one_trace_for_a_run(line, collector):
    """Plan and apply, two jobs of a run, are one trace from the trigger to the settlement."""
    observer = traces(collector.url)
    traced(line, observer)

    planned = line.run(a_traced_job(line), **HAND_OVER)
    applied = line.apply_of(planned)
    observer.close()

    assert Verdict.FINISHED == applied.settlement.verdict
    spans = collector.spans
    assert {TRACE} == {span.trace for span in spans}
    assert len(spans) == len({span.id for span in spans})
    assert tree(spans) == {
        ("", "run"),
        ("run", "job"),
        *(
            ("job", stage)
            for stage in (
                *("claim", "resolve", "policy", "pull", "fetch", "create", "start"),
                *("phase initialize", "phase plan", "phase apply", "flush", "settle"),
            )
        ),
    }
    (whole,) = collector.named("run")
    assert a_run().created_at == whole.begun
    assert all(whole.begun <= span.begun <= span.ended <= whole.ended for span in spans)
    assert ["HANDED_OVER", "FINISHED"] == [
        span.attributes["spacelift.outcome"].upper() for span in collector.named("job")
    ]
    assert (
        whole.resource.items()
        >= {
            "service.name": "launcher",
            "service.instance.id": "instance",
            "spacelift.worker_pool.id": "pool",
        }.items()
    )
    assert {RUN} == {span.attributes["spacelift.run.id"] for span in spans}


def test_the_container_belongs_to_the_trace(line, collector):
    """A tool in any phase finds the trace in its environment, whatever the job says."""
    observer = traces(collector.url)
    traced(line, observer)
    show = f"echo $TF_VAR_spacelift_run_state ${TRACEPARENT}"
    hooks = Hooks(
        before_init=(f"{show}; export {TRACEPARENT}=forged",),
        before_plan=(show,),
        before_apply=(show,),
    )
    mine = Variable(name=TRACEPARENT, value="mine")
    job = a_traced_job(line, hooks=hooks, environment=(mine, *line.job().environment))

    record = line.run(job, **AUTODEPLOY)
    observer.close()

    assert Verdict.FINISHED == record.settlement.verdict
    (span,) = collector.named("job")
    value = f"00-{TRACE}-{span.id}-01"
    said = bytes(record.log).decode().splitlines()
    for state in ("INITIALIZING", "PLANNING", "APPLYING"):
        assert f"{state} {value}" in said
    assert "TRACEPARENT is set by the worker: the run's own value is not used." in said
    asked = line.policy.asked
    assert {value} == {
        each["static_run_environment"]["environment_variables"][TRACEPARENT]
        for each in asked
    }


def test_a_failure_shows(line, collector):
    """A run that fails is marked where it failed, with the code and whose matter it is."""
    observer = traces(collector.url)
    traced(line, observer)
    line.engine.missing.add("registry.example/runner:1")

    line.run(a_traced_job(line))
    observer.close()

    failed = {span.name for span in collector.spans if span.failed}
    assert {"resolve", "job", "run"} == failed
    (whole,) = collector.named("run")
    assert ("image_unavailable", "registry") == (
        whole.attributes["spacelift.failure.code"],
        whole.attributes["spacelift.failure.blame"],
    )


def test_no_secret_leaves(line, collector):
    """Nothing secret of a job is in what a collector gets, in any spelling."""
    observer = traces(collector.url)
    traced(line, observer)
    values = [SECRET, "file-of-secrets", "token-for-the-api"]
    job = a_traced_job(
        line,
        {"plan.sh": f"echo {SECRET}; exit 3\n".encode()},
        hooks=Hooks(before_init=(f"echo {SECRET}",)),
        environment=(
            *line.job().environment,
            Variable(name="TOKEN", value=SECRET, secret=True),
        ),
        mounted_files=(
            MountedFile(path="key", content=values[1].encode(), secret=True),
        ),
        tokens=Tokens(api=values[2]),
    )

    record = line.run(job)
    observer.close()

    assert "phase_failed" == record.settlement.code
    received = b"".join(collector.bodies)
    assert RUN.encode() in received
    for needle in needles([value.encode() for value in (*values, record.token)]):
        assert needle not in received


def test_headers_for_the_collector(collector):
    """The collector gets the headers that the operator has set."""
    observer = traces(collector.url, **{"api-key": "of the collector"})
    observer.seen(facts(), a_stage())
    observer.close()

    assert "of the collector" == collector.headers[0]["api-key"]
    assert 0 == observer.lost


def facts(**changes):
    given = {
        "run": RUN,
        "job": "01JOB",
        "stack": "stack",
        "kind": RunType.TRACKED,
        "created_at": 1,
        "waited_seconds": 2.0,
    }
    return Facts(**{**given, **changes})


def a_stage(**changes):
    given = {"stage": Stage.PULL, "begun_at": 10**18, "seconds": 1.0}
    return Seen(**{**given, **changes})


def test_waiting_is_seen(collector):
    """How long a job was waiting for a worker is a part of its run."""
    observer = traces(collector.url)
    observer.claimed(facts(), 10**18)
    observer.close()

    (queued,) = collector.spans
    assert ("queued", 2 * 10**9) == (queued.name, queued.ended - queued.begun)
    assert f"{span_id('run', RUN):016x}" == queued.parent


@pytest.mark.parametrize("created_at", [-5, 0, 10**30])
@pytest.mark.parametrize("waited", [None, -1.0, float("nan"), 1e300])
def test_nonsense_of_a_control_plane(collector, created_at, waited):
    """Times and names that make no sense cost no span, and no job."""
    job = facts(
        created_at=created_at, waited_seconds=waited, run="\udc80" * 9000, stack="\n"
    )
    observer = traces(collector.url)
    sight = Sight([observer])
    with sight.job(job):
        sight.tell(lambda each: each.claimed(job, 10**18))
        sight.tell(lambda each: each.seen(job, a_stage()))
        sight.tell(
            lambda each: each.ended(
                job,
                Ended(
                    verdict="failed",
                    code="odd",
                    resumed=True,
                    begun_at=10**18,
                    ended_at=2 * 10**18,
                ),
            )
        )
    observer.close()

    assert {"pull", "job", "run"} == {span.name for span in collector.spans}
    assert all(span.begun <= span.ended for span in collector.spans)
    assert all(len(body) < 10_000 for body in collector.bodies)


def nobody(_):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def silent(stack):
    server = socket.create_server(("127.0.0.1", 0))
    stack.append(server)
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("where", [nobody, silent])
def test_a_collector_that_is_away(line, where):
    """A collector that is away or hangs neither slows a run nor fails it, nor the end."""
    open_sockets, ended = [], threading.Event()
    observer = traces(where(open_sockets))
    traced(line, observer)

    record = line.run(a_traced_job(line), **AUTODEPLOY)

    assert Verdict.FINISHED == record.settlement.verdict
    for number in range(5000):  # more than there is room for
        observer.seen(facts(), a_stage(begun_at=10**18 + number))
    closing = threading.Thread(target=lambda: (observer.close(), ended.set()))
    closing.start()
    closing.join(30)
    assert ended.is_set()
    for each in open_sockets:
        each.close()


@pytest.mark.parametrize("status", [302, 400, 500])
def test_a_collector_that_refuses(collector, status):
    """What a collector does not take is lost, counted, and sent nowhere else."""
    collector.status = status
    observer = traces(collector.url)
    observer.seen(facts(), a_stage())
    observer.close()

    eventually(lambda: observer.lost)
    assert 1 == observer.lost
    assert [] == collector.bodies


def test_what_the_queue_has_no_room_for(monkeypatch):
    """A collector that never answers costs spans, and each of them is counted."""
    room = 20
    monkeypatch.setattr(otlp, "_QUEUE", room)
    monkeypatch.setattr(otlp, "_BATCH", room)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        observer = traces(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for number in range(room + 100):
            observer.seen(facts(), a_stage(begun_at=10**18 + number))
        assert observer.lost >= 100
    observer.close()

    eventually(lambda: observer.lost >= room + 100)
    assert room + 100 == observer.lost


def test_nobody_pays_for_traces_that_are_off():
    """A launcher that traces nothing does not even load what traces are made of."""
    code = (
        "import sys, launcher.bootstrap; "
        "print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert "[]" == done.stdout.strip()
