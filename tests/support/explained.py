"""What people get to see of a failure: its code in the log, and in the metrics."""

from launcher.failures import FAILURES
from launcher.wire.messages import Verdict


def assert_explained(record, metrics, code):
    """The job of *record* has failed with *code*, said so, and was counted as that."""
    failure, settlement = FAILURES[code], record.settlement
    assert (Verdict.FAILED, code) == (settlement.verdict, settlement.code)
    told = bytes(record.log).decode().splitlines()
    assert [settlement.reason, failure.line] == told[-2:]
    assert f"({failure.blame})" in failure.line

    def value(name, **labels):
        return metrics.get_sample_value(f"spacelift_launcher_{name}", labels)

    assert 1 == value("failures_total", code=code, blame=failure.blame)
    assert 1 == value("jobs_total", type="TRACKED", outcome="failed")
    assert 1 == sum(
        sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == "spacelift_launcher_failures_total"
    )
