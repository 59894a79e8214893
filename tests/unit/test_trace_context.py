import msgspec
import pytest

from given import a_job, a_run
from launcher import environment
from launcher.trace_context import TRACEPARENT, span_id, trace_id, variables
from launcher.wire.jobs import Phase, Scope, Variable


RUN = "01JZ8Y2Q6M3F5C8T7V9W0X1Y2Z"


def test_the_trace_is_the_run():
    """
    A run's id and its trace's id are the same 128 bits.
    """
    text = f"{trace_id(RUN):032x}"

    assert 32 == len(text)
    assert trace_id(RUN) == trace_id(RUN)
    assert trace_id(RUN) != trace_id(RUN[:-1] + "X")


@pytest.mark.parametrize(
    "run", ["", "0" * 26, "not a ulid", "ü" * 26, "Z" * 26, "\udc80"]
)
def test_ids_that_are_none(run):
    """
    Whatever the control plane calls a run, there is a trace with a valid id.
    """
    assert 0 < trace_id(run) < 1 << 128
    assert 0 < span_id("run", run) < 1 << 64


def test_spans_are_told_apart():
    """
    What a span is called is not cut in another place by what it is about.
    """
    assert span_id("a", "bc") != span_id("ab", "c")


def of(job, phase=Phase.PLAN, passed=()):
    return environment.for_phase(phase, job, passed).export


def test_the_variable():
    """
    Every phase of a job learns the trace of the run and the span of the job.
    """
    job = a_job(run=a_run(id=RUN))
    given = variables(job)
    value = of(job, passed=given)[TRACEPARENT]

    version, trace, span, flags = value.split("-")
    assert ("00", f"{trace_id(RUN):032x}", "01") == (version, trace, flags)
    assert f"{span_id('job', job.id):016x}" == span
    assert value == of(job, Phase.APPLY, given)[TRACEPARENT]
    assert not given[0].secret


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("secret", [True, False])
def test_nobody_else_sets_it(scope, secret):
    """
    While runs are traced, a run's own value is not used, nor changed for later phases.
    """
    mine = Variable(name=TRACEPARENT, value="mine", secret=secret, scope=scope)
    job = a_job(environment=(mine,))
    given = variables(job)

    for phase in (Phase.PLAN, Phase.APPLY):
        assert given[0].value == of(job, phase, given)[TRACEPARENT]
    assert TRACEPARENT not in environment.plain_names(job, given)
    assert (TRACEPARENT,) == environment.overruled(job, given)


def test_untraced():
    """
    While runs are not traced, the variable is like any other.
    """
    mine = Variable(name=TRACEPARENT, value="mine")
    job = a_job(environment=(mine,))

    assert "mine" == of(job)[TRACEPARENT]
    assert () == environment.overruled(job, ())
    without = msgspec.structs.replace(job, environment=())
    assert TRACEPARENT not in of(without)


def test_a_reference_to_it():
    """
    A variable of the run's may mention it, and gets what the phase gets.
    """
    job = a_job(environment=(Variable(name="HEADER", value="p=${TRACEPARENT}"),))
    given = variables(job)

    assert f"p={given[0].value}" == of(job, passed=given)["HEADER"]
