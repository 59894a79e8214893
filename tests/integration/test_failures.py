"""One cause for every code of a failure, and what people get to see of it."""

import dataclasses
import os

from dataclasses import replace

from given import eventually
from support import real_failures
from support.explained import assert_explained
from support.line import AUTODEPLOY, HAND_OVER, STUBBORN

import pytest

from prometheus_client import CollectorRegistry

from launcher import errors, failures, journal as journal_module, lease as lease_module
from launcher.failures import FAILURES, Blame
from launcher.images import Pattern
from launcher.lease import Ended
from launcher.metrics import JobMetrics
from launcher.sight import Sight
from launcher.testing.control_plane import MemoryControlPlane, Trouble
from launcher.testing.engine import ShellSandbox
from launcher.testing.policies import ScriptedPolicy
from launcher.wire.jobs import Hooks, Vendor
from launcher.wire.messages import Verdict


@pytest.fixture(name="metrics")
def _metrics(line):
    """What is counted of the line's jobs: asks for a sample by name and labels."""
    registry = CollectorRegistry()
    line.sight = Sight([JobMetrics(registry)])

    def value(name, **labels):
        return registry.get_sample_value(f"spacelift_launcher_{name}", labels)

    value.registry = registry
    return value


def files(**given):
    """A cause that lies in the repository."""
    return lambda line, _: line.run(
        line.job(given.get("files"), **given.get("job", {}))
    )


def hook(**commands):
    return files(job={"hooks": Hooks(**{name: (c,) for name, c in commands.items()})})


def interrupted(act, script=STUBBORN):
    """A cause that comes while a phase is running."""

    def cause(line, patch):
        with line.running(line.job({"plan.sh": script})) as record:
            line.prints(record, b"ready\n")
            act(line, record)
        return record

    return cause


def limited(script, **limits):
    def cause(line, patch):
        line.limited(**limits)
        return line.run(line.job({"plan.sh": script}))

    return cause


def engine_says(error, call="resolve"):
    """A cause that the engine finds; how it finds it, its contract tests show."""

    def cause(line, patch):
        def fail(*_, **__):
            raise error("the engine had a reason")

        patch.setattr(line.engine, call, fail)
        return line.run(line.job())

    return cause


def phase_ends(**facts):
    """A phase that fails, and of which the engine knows more."""

    def cause(line, patch):
        run = ShellSandbox.run

        def knowing(*given, **options):
            return dataclasses.replace(run(*given, **options), **facts)

        patch.setattr(ShellSandbox, "run", knowing)
        return line.run(line.job({"plan.sh": b"exit 1\n"}))

    return cause


def plane_says(error, call):
    def cause(line, patch):
        def fail(*_, **__):
            raise error("it had a reason")

        patch.setattr(line.plane, call, fail)
        return line.run(line.job())

    return cause


def denied(line, patch):
    line.policy = ScriptedPolicy.denying("not today")
    return line.run(line.job())


def undecided(line, patch):
    line.policy = ScriptedPolicy(lambda _: {"deny": 7})
    return line.run(line.job())


def missing_commit(line, patch):
    job = line.job()
    line.source.commits.clear()
    return line.run(job)


def damaged_workspace(line, patch):
    record = line.run(line.job(), **HAND_OVER)
    assert (Verdict.HANDED_OVER, "") == (
        record.settlement.verdict,
        record.settlement.code,
    )
    record.workspace = record.workspace[:-1] + bytes([record.workspace[-1] ^ 1])
    return line.apply_of(record)


def restarted_machine(line, patch):
    boots = iter(["this boot"])
    patch.setattr(journal_module, "boot_id", lambda: next(boots, "another boot"))
    return phase_ends(container_lost=True)(line, patch)


def full_journal(line, patch):
    write = line.journal.write

    def fail(claim, step, fact):
        if step == "sending":
            raise errors.JournalUnusable("the worker's disk is full")
        write(claim, step, fact)

    patch.setattr(line.journal, "write", fail)
    return line.run(line.job())


def unwanted_worker(line, patch):
    patch.setattr(lease_module, "REFUSED_SECONDS", 0.05)
    return plane_says(errors.CredentialsRefused, "planned")(line, patch)


def silent_plane(line, patch):
    # Whoever does not know whether the run is applying by now reports that it is not.
    line.plane = MemoryControlPlane(lease_seconds=1.0, renew_seconds=0.05)
    outage, entered = line.plane.outage(), iter(range(2))

    def cut_off():
        if next(entered) == 1:
            line.plane.after("entered", outage.__enter__)
            line.plane.trouble("entered", Trouble.ANSWER_LOST)
        else:
            line.plane.after("planned", cut_off)

    cut_off()
    with line.running(line.job(), **AUTODEPLOY) as record:
        eventually(lambda: line.journaled(record, "decided"))
        outage.__exit__(None, None, None)
    return record


def bug(line, patch):
    patch.setattr(line.engine, "resolve", lambda *_: 1 / 0)
    return line.run(line.job())


MASKS = b"i=0; while [ $i -le 1000 ]; do echo ::add-mask value-$i; i=$((i+1)); done\n"
SLEEP = b"while :; do sleep 0.05; done\n"
CUSTOM = Vendor(vendor="terraform", typed_config={"workflow_tool": "CUSTOM"})
CHATTER = b"while :; do echo 0123456789; done\n"

CAUSES = {
    # the stack
    "phase_failed": files(files={"plan.sh": b"exit 4\n"}),
    "before_hook_failed": hook(before_init="exit 5"),
    "after_hook_failed": hook(after_init="exit 6"),
    "invalid_job": files(job={"vendor": Vendor(vendor="cobol")}),
    "workflow_missing": files(job={"vendor": CUSTOM}),
    "workflow_invalid": files(
        files={".spacelift/workflow.yml": b"init: x"},
        job={"vendor": CUSTOM},
    ),
    "source_unavailable": missing_commit,
    "runtime_config_changed": files(job={"runtime_config_sha256": "c" * 64}),
    "no_plan": files(files={"plan.json": b"{"}),
    "workspace_unusable": hook(after_plan="ln -sf /etc/passwd spacelift.plan.json"),
    "unconfirmed": lambda line, patch: (
        patch.setattr(ShellSandbox, "conclude", lambda *_: False),
        line.run(line.job()),
    )[1],
    "too_long": limited(SLEEP, run_timeout=1.0),
    "too_silent": limited(SLEEP, logs_timeout=1.0),
    "too_much_output": limited(CHATTER, log_limit=1 << 16),
    "too_many_masks": files(files={"plan.sh": MASKS + SLEEP}),
    # the image: what its registry has to do with it, see support/real_failures.py
    "image_not_allowed": files(job={"docker_image": "registry.elsewhere/runner:1"}),
    # the policy
    "policy_denied": denied,
    "policy_failed": undecided,
    # the machine: what its engine does, see there
    "machine_restarted": restarted_machine,
    "host_vanishes": interrupted(
        lambda line, _: line.abort.cancel(Ended.HOST_VANISHES)
    ),
    "aborted": interrupted(lambda line, _: line.abort.cancel("a second signal")),
    "journal_failed": full_journal,
    # the control plane
    "control_plane_unavailable": engine_says(errors.ControlPlaneUnavailable),
    "control_plane_refused": plane_says(errors.ControlPlaneRefused, "planned"),
    "credentials_refused": unwanted_worker,
    "seal_broken": damaged_workspace,
    "lease_lost": silent_plane,
    # ourselves
    "internal_error": bug,
    "not_begun": phase_ends(unbegun=True),
}


@pytest.mark.parametrize("code", CAUSES)
def test_every_code_has_a_cause(line, metrics, monkeypatch, code):
    """A failure ends the run with its code, is explained in the log, and is counted."""
    record = CAUSES[code](line, monkeypatch)

    assert_explained(record, metrics.registry, code)


def test_the_causes_are_complete():
    """No code is listed without a cause, and no cause without its code; one each."""
    assert sorted(FAILURES) == sorted([*CAUSES, *real_failures.CAUSES])
    assert len(FAILURES) > 40


def test_success_is_no_failure(line, metrics):
    """A run that goes well has no code in its log, and counts as what it is."""
    record = line.run(line.job(), **AUTODEPLOY)

    assert Verdict.FINISHED == record.settlement.verdict
    assert "Code " not in bytes(record.log).decode()
    assert 1 == metrics("jobs_total", type="TRACKED", outcome="finished")
    assert 1 == metrics("phase_seconds_count", phase="apply")
    for stage in (
        *("claim", "resolve", "policy", "pull", "fetch", "create", "start"),
        *("phase", "flush", "settle"),
    ):
        assert metrics("stage_seconds_count", stage=stage) >= 1, stage


def test_a_code_that_nobody_knows(line, metrics, monkeypatch):
    """A code without an explanation, a bug of ours, is counted and explained as one."""

    class Odd(errors.LauncherError):
        code = "odd"

    record = engine_says(Odd)(line, monkeypatch)

    assert "odd" == record.settlement.code
    assert failures.of("odd") is FAILURES["internal_error"]
    assert 1 == metrics("failures_total", code="internal_error", blame=Blame.LAUNCHER)


def test_no_label_is_made_of_what_a_job_says(line, metrics):
    """However many stacks, images, hooks and codes there are, there are no more series."""

    def series():
        return {
            (sample.name, *sorted(sample.labels.items()))
            for family in metrics.registry.collect()
            for sample in family.samples
        }

    before = series()
    for number in range(3):
        name = f"{number}-{os.urandom(4).hex()}"
        job = line.job(
            {"plan.sh": f"exit {number + 1}\n".encode()},
            id=f"JOB-{name}",
            docker_image=f"registry.example/{name}:1",
            hooks=Hooks(before_init=(f"echo {name}",), after_run=(f"echo {name}",)),
        )
        line.run(job)
    other = replace(
        line.settings.images, allowed_images=(Pattern.parse("!registry.example/*"),)
    )
    line.settings = replace(line.settings, images=other)
    line.run(line.job(id="JOB-DENIED"))

    assert 4 == metrics("jobs_total", type="TRACKED", outcome="failed")
    assert before == series()
