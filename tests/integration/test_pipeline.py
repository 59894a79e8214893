"""The way of a job, from claim to settlement, on fakes that keep the contracts."""

import itertools
import json
import os
import re

from dataclasses import replace

from given import a_run, eventually
from support.line import (
    AUTODEPLOY,
    CHANGES,
    COMMIT,
    HAND_OVER,
    NO_CHANGES,
    STUBBORN,
)

import msgspec
import pytest

from launcher.errors import SourceUnavailable
from launcher.findings import sanitized
from launcher.images import Pattern
from launcher.sealing.keys import PoolKey
from launcher.settings import PlanValues, PullPolicy
from launcher.sight import Sight, Vital
from launcher.testing.control_plane import MemoryControlPlane, Trouble
from launcher.testing.policies import ScriptedPolicy
from launcher.testing.sources import MemorySource
from launcher.wire.jobs import Hooks, MountedFile, RunState, Scope, Variable, Vendor
from launcher.wire.messages import MAX_LOG_CHUNK, NextStep, Verdict


SECRET = "hunter2-of-the-stack"


def text(record):
    return bytes(record.log).decode()


def calls(record):
    """How the tool was called."""
    return [
        line.split()[2]
        for line in text(record).splitlines()
        if line.startswith("+ terraform")
    ]


def ending(record):
    return record.settlement and (record.settlement.verdict, record.settlement.code)


def assert_public(record):
    """Why it failed is said once, in one sentence, without anything of our inside."""
    reason = record.settlement.reason
    assert reason
    assert "\n" not in reason
    assert 1 == text(record).splitlines().count(reason)
    for inside in ("Traceback", "launcher.", "Error(", 'File "'):
        assert inside not in text(record)


# --- to the end


def test_confirmed_run(line):
    """A run is planned, handed over, and applied in a new container from what was left."""
    job = line.job(
        {"plan.sh": b"echo planned >result\n", "apply.sh": b"cat result\n"},
        hooks=Hooks(
            before_init=("echo before init",),
            after_init=("echo after init",),
            before_plan=("echo before plan",),
            after_plan=("echo after plan",),
            before_apply=("echo before apply",),
            after_apply=("echo after apply",),
            after_run=('echo "over: $TF_VAR_spacelift_final_run_state"',),
        ),
    )

    planning = line.run(job, **HAND_OVER)
    applying = line.apply_of(planning)

    assert (Verdict.HANDED_OVER, "") == ending(planning)
    assert (Verdict.FINISHED, "") == ending(applying)
    assert ["init", "plan", "show"] == calls(planning)
    assert ["apply"] == calls(applying)
    assert ["plan", "apply"] == [spec.phase_class for spec in line.engine.specs]
    assert [COMMIT] == line.source.fetched
    init, planned = (
        planning.section(s) for s in (RunState.INITIALIZING, RunState.PLANNING)
    )
    assert b"before init\n+ terraform init -input=false\nafter init\n" == init
    assert planned.startswith(b"before plan\n+ terraform plan")
    assert planned.endswith(b"after plan\n")
    applied = applying.section(RunState.APPLYING)
    assert applied.startswith(b"before apply\n+ terraform apply")
    assert b"planned\nafter apply\nover: FINISHED\n" == applied[-35:]
    assert b"over:" not in planning.log


def test_everything_is_reported_in_order(line):
    """States, plan and log arrive before what depends on them, the settlement last."""
    record = line.run(line.job(), **HAND_OVER)

    calls = [call for call in line.plane.calls if call not in ("renew", "append")]
    order = [call for call, _ in itertools.groupby(calls) if call != "save"]
    assert ["claim", "entered", "planned", "saved", "settle"] == order
    assert (len(record.log), True) == (
        record.settlement.log_length,
        record.settlement.log_complete,
    )
    digest = {digest for _, _, digest in record.entered}
    assert digest == {line.policy.asked[0]["docker_image_digest"]}
    assert ["added"] == [change.action for change in record.plan.changes]


def test_autodeployed_run(line):
    """Where nobody has to confirm, the apply goes on in the same container."""
    record = line.run(line.job({"apply.sh": b"ls *.plan.json\n"}), **AUTODEPLOY)

    assert (Verdict.FINISHED, "") == ending(record)
    assert ["init", "plan", "show", "apply"] == calls(record)
    assert 1 == len(line.engine.specs)
    assert b"spacelift.plan.json\n" in record.section(RunState.APPLYING)
    assert "save" not in line.plane.calls


def test_no_changes(line):
    """A plan without changes finishes the run, and nothing is applied."""
    hooks = Hooks(after_run=("echo over: $TF_VAR_spacelift_final_run_state",))
    record = line.run(line.job({"plan.json": NO_CHANGES}, hooks=hooks), **AUTODEPLOY)

    assert (Verdict.FINISHED, "") == ending(record)
    assert ["init", "plan", "show"] == calls(record)
    assert text(record).endswith("over: FINISHED\n")


def test_image_is_announced(line):
    """The log begins with the image, the rule that let it in, and its digest."""
    record = line.run(line.job({"plan.json": NO_CHANGES}))

    first, second = text(record).splitlines()[:2]
    assert "registry.example/runner:1" in first
    assert "registry.example/*" in first
    assert line.engine.pulled[0].rpartition("@")[2] in second


def test_login_of_the_registry_is_used(line):
    """The image is resolved and pulled with the login of its registry, and it stays secret."""
    line.credentials.logins = {"registry.example": ("anna", "hunter2")}
    record = line.run(line.job({"plan.json": NO_CHANGES}))

    assert ["anna"] == [login.username for login in line.engine.logins]
    assert "hunter2" not in text(record)


def test_job_that_somebody_else_took(line):
    """A job that another worker claimed is left to it."""
    job = line.job()
    offer = line.plane.add(job)
    assert line.plane.claim(1, offer, "another")

    with line.running(None, offer=offer) as record:
        pass

    assert [] == line.engine.specs
    assert record.settlement is None


# --- a control plane that lies about the workspace


def planned(line, **changes):
    """A run whose workspace is stored and which waits for its confirmation."""
    line.job()
    record = line.run(line.job(**changes), **HAND_OVER)
    assert Verdict.HANDED_OVER is record.settlement.verdict
    return record


def assert_not_applied(record, sentence):
    """The apply failed before a container was started, and says why."""
    assert (Verdict.FAILED, "seal_broken") == ending(record)
    assert sentence in record.settlement.reason
    assert [] == record.entered
    assert_public(record)


def another(line):
    """The same commit of the same stack, planned once more by another run."""
    return planned(line, id="01JOB2", run=a_run(id="01RUN2"))


def test_it_holds_nothing_that_can_be_read(line):
    """What the control plane stores shows nothing of the workspace."""
    record = planned(line)
    assert record.workspace.startswith(b"SLW1")
    assert CHANGES not in record.workspace
    assert b"spacelift.plan.json" not in record.workspace


def test_it_serves_another_runs_workspace(line):
    """What another run has left is not applied, although the pool has sealed it."""
    record = planned(line)
    record.workspace = another(line).workspace
    assert_not_applied(line.apply_of(record), "belongs to another run")


def test_it_serves_other_bytes(line):
    """What is not sealed, or was changed since, is not applied."""
    for changed in (
        lambda stored: b"anything else",
        lambda stored: stored[:-1],
        lambda stored: stored[:100] + b"?" + stored[101:],
        lambda stored: stored[:-100] + b"?" + stored[-99:],
    ):
        number = len(line.plane.jobs)
        record = planned(line, id=f"J{number}", run=a_run(id=f"R{number}"))
        record.workspace = changed(record.workspace)
        assert_not_applied(line.apply_of(record), "the stored workspace")


def test_it_serves_another_pools_workspace(line):
    """What another pool has sealed is not applied."""
    record = planned(line)
    line.key = PoolKey.make()
    assert_not_applied(line.apply_of(record), "sealed by another worker pool")


@pytest.mark.parametrize("digest", [f"sha256:{'b' * 64}", ""])
def test_it_names_another_digest(line, digest):
    """An apply with another image than the plan's is found out."""
    record = planned(line)
    if not digest:  # then the name decides, and it points elsewhere by now
        line.engine.moved["registry.example/runner:1"] = f"sha256:{'c' * 64}"
    offer = line.plane.confirm(record.job.id, "apply")
    job = line.plane.jobs[offer.job].job
    line.plane.jobs[offer.job].job = msgspec.structs.replace(job, image_digest=digest)

    with line.running(None, offer=offer) as applying:
        pass

    assert_not_applied(applying, "was made by another image")


def test_it_names_another_run(line):
    """The workspace of one run does not apply as another, whatever the job says."""
    record = planned(line)
    offer = line.plane.confirm(record.job.id, "apply")
    applying = line.plane.jobs[offer.job]
    stored, record.workspace = record.workspace, None
    applying.job = msgspec.structs.replace(applying.job, run=another(line).job.run)
    line.plane.jobs["01JOB2"].workspace = stored

    with line.running(None, offer=offer) as applying:
        pass

    assert_not_applied(applying, "belongs to another run")


def test_a_moved_tag_does_not_matter(line):
    """The apply runs what the plan ran, wherever the image's name points to by now."""
    record = planned(line)
    line.engine.moved["registry.example/runner:1"] = f"sha256:{'c' * 64}"

    applying = line.apply_of(record)

    assert (Verdict.FINISHED, "") == ending(applying)
    assert {digest for _, _, digest in record.entered} == {
        digest for _, _, digest in applying.entered
    }


@pytest.mark.parametrize("call", ["save", "saved", "restore"])
@pytest.mark.parametrize("trouble", Trouble)
def test_a_transfer_that_is_cut_goes_on(line, call, trouble):
    """Losing a request or an answer in the middle of a workspace costs no run."""
    job = line.job({"big": os.urandom(300_000)})
    line.plane.trouble("save", *[trouble] * (2 if call == "save" else 0))
    line.plane.trouble("saved", *[trouble] * (call == "saved"))
    line.plane.trouble("restore", *[trouble] * (3 if call == "restore" else 0))

    applying = line.apply_of(line.run(job, **HAND_OVER))

    assert (Verdict.FINISHED, "") == ending(applying)


# --- what the owner's policy says


def test_denied(line):
    """A run that the policy denies starts nothing at all."""
    line.policy = ScriptedPolicy.denying("no runs on Fridays")

    record = line.run(line.job())

    assert (Verdict.FAILED, "policy_denied") == ending(record)
    assert "denied by the worker's initialization policy: no runs on Fridays" in text(
        record
    )
    assert_public(record)
    assert ([], [], []) == (line.engine.specs, line.engine.pulled, line.source.fetched)
    assert [] == record.entered


def test_policy_that_fails(line):
    """A run about which the policy cannot decide is denied, and the log quotes nothing."""

    def crash(_):
        raise ZeroDivisionError("secret rule")

    line.policy = ScriptedPolicy(crash)

    record = line.run(line.job())

    assert (Verdict.FAILED, "policy_failed") == ending(record)
    assert "secret rule" not in text(record)
    assert_public(record)
    assert [] == line.engine.specs


def test_apply_is_judged_by_itself(line):
    """An apply in the plan's container is judged with what only it knows, and may be denied."""

    def no_keys(document):
        known = document["static_run_environment"]["environment_variables"]
        return {"deny": ["no keys"] if "WRITE_KEY" in known else []}

    line.policy = ScriptedPolicy(no_keys)
    key = Variable(name="WRITE_KEY", value=SECRET, secret=True, scope=Scope.WRITE)

    record = line.run(line.job(), environment=(key,), **AUTODEPLOY)

    assert ["init", "plan", "show"] == calls(record)
    assert (Verdict.FAILED, "policy_denied") == ending(record)
    assert_public(record)
    assert RunState.APPLYING not in [state for state, _, _ in record.entered]


def test_policy_judges_what_runs(line):
    """Plan and apply are judged each, as what they are."""
    planning = line.run(line.job(), **HAND_OVER)
    line.apply_of(planning)

    assert ["plan", "apply"] == [document["phase"] for document in line.policy.asked]
    assert [False, True] == [
        document["static_run_environment"]["restores_workspace"]
        for document in line.policy.asked
    ]


# --- what fails


def unknown_vendor(line):
    return line.job(vendor=Vendor(vendor="cobol"))


def wrong_option(line):
    return line.job(vendor=Vendor(vendor="ansible", typed_config={"playbook": 7}))


def image_of_nobody(line):
    return line.job(docker_image="registry.elsewhere/runner:1")


def image_that_is_none(line):
    return line.job(docker_image="Not An Image")


def missing_image(line):
    line.engine.missing.add("registry.example/runner:1")
    return line.job()


def broken_credentials(line):
    line.credentials.broken = "secret path"
    return line.job()


def broken_engine(line):
    line.engine.broken = "secret socket"
    return line.job()


def missing_commit(line):
    job = line.job()
    line.source.commits.clear()
    return job


def missing_project_root(line):
    job = line.job()
    return msgspec.structs.replace(
        job, stack=msgspec.structs.replace(job.stack, project_root="infra/prod")
    )


def project_root_outside(line):
    job = line.job()
    return msgspec.structs.replace(
        job, stack=msgspec.structs.replace(job.stack, project_root="../../etc")
    )


def file_outside(line):
    return line.job(mounted_files=(MountedFile(path="../x", content=b""),))


def impossible_variable(line):
    return line.job(environment=(Variable(name="A B", value="x"),))


def no_plan(line):
    return line.job({"bin/terraform": b"#!/bin/sh\nexit 0\n"})


def damaged_plan(line):
    return line.job({"plan.json": b"{"})


def plan_of_another_kind(line):
    return line.job({"plan.json": b"[1]"})


def plan_that_is_a_link(line):
    return line.job(hooks=Hooks(after_plan=("ln -sf /etc/passwd spacelift.plan.json",)))


def plan_that_is_removed(line):
    return line.job(hooks=Hooks(after_plan=("rm spacelift.plan.json",)))


def failing_tool(line):
    return line.job({"plan.sh": b"exit 4\n"})


def failing_hook(line):
    return line.job(hooks=Hooks(before_init=("exit 5",)))


def shell_that_ends_early(line):
    return line.job(hooks=Hooks(before_plan=("exit 0",)))


def missing_tool(line):
    return line.job(tree={"main.tf": b""})


FAILURES = {
    unknown_vendor: "invalid_job",
    wrong_option: "invalid_job",
    image_of_nobody: "image_not_allowed",
    image_that_is_none: "invalid_job",
    missing_image: "image_unavailable",
    broken_credentials: "image_unavailable",
    broken_engine: "engine_failed",
    missing_commit: "source_unavailable",
    missing_project_root: "phase_failed",
    project_root_outside: "invalid_job",
    file_outside: "invalid_job",
    impossible_variable: "invalid_job",
    no_plan: "no_plan",
    damaged_plan: "no_plan",
    plan_of_another_kind: "no_plan",
    plan_that_is_a_link: "workspace_unusable",
    plan_that_is_removed: "no_plan",
    failing_tool: "phase_failed",
    failing_hook: "before_hook_failed",
    shell_that_ends_early: "before_hook_failed",
    missing_tool: "phase_failed",
}


@pytest.mark.parametrize(
    ("make", "code"), FAILURES.items(), ids=lambda x: getattr(x, "__name__", x)
)
def test_failure(line, make, code):
    """Every failure ends the run with a code and one public sentence, and leaves nothing."""
    record = line.run(make(line), **AUTODEPLOY)

    assert (Verdict.FAILED, code) == ending(record)
    assert_public(record)
    assert record.settlement.log_complete
    assert len(record.log) == record.settlement.log_length
    assert "apply" not in calls(record)
    assert "secret" not in text(record)


def test_bug_of_ours(line):
    """A bug of the launcher's own fails the run, and shows nothing of itself."""

    def crash(*_):
        raise ZeroDivisionError("inside")

    line.engine.resolve = crash

    record = line.run(line.job())

    assert (Verdict.FAILED, "internal_error") == ending(record)
    assert_public(record)
    assert "inside" not in text(record)


def test_exit_code_is_told(line):
    """A phase that failed is named, with its exit code."""
    record = line.run(line.job({"plan.sh": b"exit 4\n"}))

    assert "plan: exit code 4" == record.settlement.reason


def test_failing_run_has_its_last_hooks(line):
    """The after_run hooks run also after a failure, once, and know of it."""
    hooks = Hooks(after_run=("echo over: $TF_VAR_spacelift_final_run_state",))

    record = line.run(line.job({"plan.sh": b"exit 4\n"}, hooks=hooks))

    assert 1 == text(record).count("over: FAILED\n")


def test_denied_run_has_its_last_hooks(line):
    """The after_run hooks of a run that a policy denied know that it fails."""
    hooks = Hooks(after_run=("echo over: $TF_VAR_spacelift_final_run_state",))

    record = line.run(line.job(hooks=hooks), denied=True)

    assert (Verdict.FINISHED, "") == ending(record)
    assert ["init", "plan", "show"] == calls(record)
    assert 1 == text(record).count("over: FAILED\n")


def test_last_hook_that_fails(line):
    """An after_run hook that fails is mentioned, and changes nothing else."""
    hooks = Hooks(after_run=("exit 9",))

    record = line.run(line.job({"plan.json": NO_CHANGES}, hooks=hooks))

    assert (Verdict.FINISHED, "") == ending(record)
    assert "The run's end: after_run hook 1 of 1 failed with exit code 9.\n" in text(
        record
    )


def test_plan_that_the_repository_brings(line):
    """A plan that lies in the repository already is not taken for the tool's."""
    record = line.run(
        line.job(
            {"bin/terraform": b"#!/bin/sh\nexit 0\n", "spacelift.plan.json": CHANGES}
        ),
        **AUTODEPLOY,
    )

    assert (Verdict.FAILED, "no_plan") == ending(record)


def test_container_ended_by_somebody_else(line):
    """A container that was ended from outside fails the run, with its log complete."""
    with line.running(line.job({"plan.sh": STUBBORN})) as record:
        line.prints(record, b"ready\n")
        line.engine.kill(record.job.id)

    assert (Verdict.FAILED, "container_lost") == ending(record)
    assert_public(record)
    assert record.settlement.log_complete


VALUED = json.dumps(
    {
        "format_version": "1.2",
        "resource_changes": [
            {
                "address": "x.y",
                "type": "x",
                "name": "y",
                "provider_name": "p",
                "change": {
                    "actions": ["update"],
                    "before": {"size": "small", "count": 1, "password": "old"},
                    "after": {
                        "size": "large",
                        "count": 2,
                        "password": "new",
                        "header": "Bearer hunter2-token",
                        "pins": [48151623, 48151623.5, True],
                    },
                    "before_sensitive": {"password": True},
                    "after_sensitive": {"password": True},
                },
            }
        ],
    }
).encode()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (PlanValues.NONE, (None, None)),
        (
            PlanValues.PLAIN,
            (
                {"size": "small", "count": 1, "password": "(sensitive)"},
                {
                    "size": "large",
                    "count": 2,
                    "password": "(sensitive)",
                    "header": "(sensitive)",
                    "pins": ["(sensitive)", "(sensitive)", True],
                },
            ),
        ),
        (
            PlanValues.SANITIZED,
            (
                {"size": sanitized("small"), "count": 1, "password": "(sensitive)"},
                {
                    "size": sanitized("large"),
                    "count": 2,
                    "password": "(sensitive)",
                    "header": "(sensitive)",
                    "pins": ["(sensitive)", "(sensitive)", True],
                },
            ),
        ),
    ],
)
def test_values_that_may_leave_the_worker(line, values, told):
    """None unless the owner says so; and never what is sensitive, or holds a secret of the run."""
    line.settings = replace(
        line.settings, run=replace(line.settings.run, plan_values=values)
    )
    secrets = (
        Variable(name="TOKEN", value="hunter2-token", secret=True),
        Variable(name="TF_VAR_pin", value="48151623", secret=True),
    )
    record = line.run(line.job({"plan.json": VALUED}, environment=secrets))

    [change] = record.plan.changes
    assert told == (change.before, change.after)
    assert (Verdict.FINISHED, "") == ending(record)


def test_numbers_in_files_for_policies(line):
    """A number with a secret of the run in it is as masked there as a text is."""
    say = """echo '{"pins": [48151623, 2, 0.5, 148151623.5, false]}' >a.custom.spacelift.json"""
    secret = Variable(name="TF_VAR_pin", value="48151623", secret=True)
    # In pieces, for a secret in a command would be masked there.
    hooks = Hooks(after_plan=(say.replace("48151623", "4815''1623"),))
    record = line.run(line.job(hooks=hooks, environment=(secret,)))

    assert {"a": {"pins": ["*****", 2, 0.5, "1*****.5", False]}} == record.plan.custom


def test_more_values_than_can_be_told(line):
    """Fails the run where its owner wants policies to see them: nobody judges half a plan."""
    plan = json.loads(VALUED)
    plan["resource_changes"][0]["change"]["after"]["size"] = "x" * (9 << 20)
    line.settings = replace(
        line.settings, run=replace(line.settings.run, plan_values=PlanValues.PLAIN)
    )
    record = line.run(line.job({"plan.json": json.dumps(plan).encode()}))

    assert (Verdict.FAILED, "no_plan") == ending(record)
    assert "the plan's values have more than 8 MiB" in record.settlement.reason


def test_mounts_of_the_apply_need_another_container(line):
    """With mounts for applies only, no plan is applied in its own container."""
    container = replace(line.settings.container, write_mounts=("anything",))
    line.settings = replace(line.settings, container=container)

    record = line.run(line.job(), **AUTODEPLOY)

    assert (Verdict.HANDED_OVER, False) == (
        record.settlement.verdict,
        record.plan.applies_here,
    )


# --- being stopped


OVER = Hooks(after_run=("echo over: $TF_VAR_spacelift_final_run_state",))


def test_stop_during_the_plan(line):
    """A stop request interrupts the plan, lets the tool save, and is no failure."""
    with line.running(line.job({"plan.sh": STUBBORN}, hooks=OVER)) as record:
        line.prints(record, b"ready\n")
        line.plane.request_stop(record.job.id)

    assert (Verdict.STOPPED, "") == ending(record)
    assert "saving\n" in text(record)
    assert 1 == text(record).count("over: STOPPED\n")
    assert "planned" not in line.plane.calls


class Slow(MemorySource):
    """A source that takes until somebody cancels."""

    def fetch(self, job, cancel, say):
        self.fetched.append("begun")
        assert cancel.wait(10)
        raise SourceUnavailable("the fetch was ended")


def test_stop_while_fetching(line):
    """A stop request during the preparations is a stop, and no failure."""
    job = line.job()
    line.source = Slow()
    with line.running(job) as record:
        eventually(lambda: line.source.fetched)
        line.plane.request_stop(record.job.id)

    assert (Verdict.STOPPED, "") == ending(record)
    assert [] == line.engine.specs


def test_stop_before_anything(line):
    """A run that was to be stopped before it was claimed starts no phase."""
    job = line.job(hooks=OVER)
    offer = line.plane.add(job)
    line.plane.request_stop(job.id)

    with line.running(None, offer=offer) as record:
        pass

    assert (Verdict.STOPPED, "") == ending(record)
    assert [] == calls(record)


def test_stop_between_plan_and_apply(line):
    """A stop request that comes after the plan was reported keeps the apply from beginning."""

    def stop(document):
        if document["phase"] == "apply":
            line.plane.request_stop(document["job_id"])
        return {}

    line.policy = ScriptedPolicy(stop)

    record = line.run(line.job(hooks=OVER), **AUTODEPLOY)

    assert (Verdict.STOPPED, "") == ending(record)
    assert "apply" not in calls(record)
    assert "over: STOPPED\n" in text(record)


def test_stop_during_the_apply(line):
    """A stop request during an apply is too late: the apply finishes."""
    files = {
        "apply.sh": b"echo applying; while [ ! -e $GO ]; do sleep 0.02; done; echo applied\n"
    }
    go = line.folder.parent / "go"
    job = line.job(files, environment=(Variable(name="GO", value=str(go)),))
    with line.running(job, **AUTODEPLOY) as record:
        line.prints(record, b"applying\n")
        line.plane.request_stop(record.job.id)
        renewed = record.renewals
        eventually(lambda: record.renewals > renewed + 2)
        go.touch()

    assert (Verdict.FINISHED, "") == ending(record)
    assert text(record).endswith("applied\n")


# --- losing the job


def test_lost_lease_in_the_plan(line):
    """Who loses the job during a plan ends it, and says nothing more."""
    with line.running(line.job({"plan.sh": STUBBORN}, hooks=OVER)) as record:
        line.prints(record, b"ready\n")
        line.plane.take_away(record.job.id)

    assert record.settlement is None
    assert "settle" not in line.plane.calls
    assert [] == record.late
    assert text(record).endswith("ready\n")


@pytest.mark.parametrize("call", ["claim", "entered", "planned", "append", "save"])
def test_lost_lease_at_any_call(line, call):
    """Whichever call finds out, the job is ended and nothing is settled."""
    job = line.job(hooks=OVER)
    offer = line.plane.add(job, **HAND_OVER)
    line.plane.after(call, lambda: line.plane.take_away(job.id))

    with line.running(None, offer=offer) as record:
        pass

    assert record.settlement is None
    assert [] == record.late


def test_lost_lease_in_the_apply(line):
    """Who loses the job during an apply lets it finish, and says nothing more."""
    go, done = line.folder.parent / "go", line.folder.parent / "done"
    files = {
        "apply.sh": b"echo applying; while [ ! -e $GO ]; do sleep 0.02; done; touch $DONE\n"
    }
    given = (Variable(name="GO", value=str(go)), Variable(name="DONE", value=str(done)))
    with line.running(line.job(files, environment=given), **AUTODEPLOY) as record:
        line.prints(record, b"applying\n")
        line.plane.take_away(record.job.id)
        asked = len(line.plane.calls)
        eventually(lambda: len(line.plane.calls) > asked)
        go.touch()

    assert done.exists()
    assert record.settlement is None
    assert [] == record.late


# --- control planes that are away


def test_outage_in_the_middle(line):
    """After an outage of the control plane the log is complete, byte for byte."""
    lines = b"".join(b"line %07d\n" % number for number in range(450_000))
    assert len(lines) > 5 * MAX_LOG_CHUNK
    job = line.job({"lines": lines, "plan.sh": b"echo begin; cat lines; echo end\n"})
    with line.running(job, **HAND_OVER) as record:
        line.prints(record, b"begin\n")
        with line.plane.outage():
            stored = len(record.log)
            eventually(lambda: line.plane.refused > 3)
        assert stored < len(lines)

    assert (Verdict.HANDED_OVER, "") == ending(record)
    assert b"begin\n" + lines + b"end\n" in bytes(record.log)
    assert record.settlement.log_complete


@pytest.mark.parametrize("trouble", Trouble)
def test_every_call_may_be_lost(line, trouble):
    """A call that gets lost, or its answer, is made again, and nothing happens twice."""
    for call in ("claim", "entered", "planned", "append", "save", "settle", "renew"):
        line.plane.trouble(call, trouble, trouble)

    record = line.run(line.job(hooks=OVER), **HAND_OVER)

    assert (Verdict.HANDED_OVER, "") == ending(record)
    assert ["init", "plan", "show"] == calls(record)
    assert [RunState.INITIALIZING, RunState.PLANNING] == [
        state for state, _, _ in record.entered
    ]
    line.plane.trouble("restore", trouble)
    assert (Verdict.FINISHED, "") == ending(line.apply_of(record))


def test_outage_that_outlasts_the_lease(line):
    """A plan ends when nobody could be asked for as long as the lease lasts."""
    line.plane = MemoryControlPlane(lease_seconds=1.0, renew_seconds=0.05)
    with line.running(line.job({"plan.sh": STUBBORN})) as record:
        line.prints(record, b"ready\n")
        with line.plane.outage():
            eventually(lambda: line.journaled(record, "decided"))
            assert not line.ended.is_set()

    assert record.settlement is None


def test_outage_in_which_a_report_was_lost(line):
    """
    Who does not know whether the run is applying by now reports that it does not.
    """
    line.plane = MemoryControlPlane(lease_seconds=1.0, renew_seconds=0.05)
    outage = line.plane.outage()
    entered = iter(range(2))

    def cut_off():
        if next(entered) == 1:
            line.plane.after("entered", lambda: outage.__enter__())
            line.plane.trouble("entered", Trouble.ANSWER_LOST)
        else:
            line.plane.after("planned", cut_off)

    cut_off()
    with line.running(line.job(hooks=OVER), **AUTODEPLOY) as record:
        eventually(lambda: line.journaled(record, "decided"))
        outage.__exit__(None, None, None)

    assert RunState.APPLYING is record.state
    assert (Verdict.FAILED, "lease_lost") == ending(record)
    assert "apply" not in calls(record)


def test_apply_outlasts_an_outage(line):
    """An apply goes on without a control plane, and is reported when there is one."""
    line.plane = MemoryControlPlane(lease_seconds=1.0, renew_seconds=0.05)
    done = line.folder.parent / "done"
    files = {"apply.sh": b"echo applying; sleep 2; touch $DONE; echo applied\n"}
    job = line.job(files, environment=(Variable(name="DONE", value=str(done)),))
    with line.running(job, **AUTODEPLOY) as record:
        line.prints(record, b"applying\n")
        with line.plane.outage():
            eventually(done.exists)

    assert (Verdict.FINISHED, "") == ending(record)
    assert text(record).endswith("applied\n")


# --- secrets


def test_secrets_are_masked(line):
    """No secret of the run, of the machine or of a file gets into the log."""
    container = replace(
        line.settings.container,
        passed_through=(
            Variable(name="HOST_TOKEN", value="hunter2-of-the-host", secret=True),
        ),
    )
    line.settings = replace(line.settings, container=container)
    show = 'echo "$TOKEN $HOST_TOKEN $PLAIN"; cat ../key; printf %s "$TOKEN" | fold -w1 | tr -d "\\n"'
    job = line.job(
        hooks=Hooks(before_init=(show,), before_plan=(show,), after_run=(show,)),
        environment=(
            Variable(name="TOKEN", value=SECRET, secret=True),
            Variable(name="PLAIN", value="plainly"),
        ),
        mounted_files=(
            MountedFile(path="key", content=b"hunter2-in-a-file\n", secret=True),
        ),
    )

    record = line.run(job)

    assert "hunter2" not in text(record)
    assert text(record).count("***** ***** plainly\n*****\n*****") >= 3


def test_secrets_of_the_apply_are_masked(line):
    """A secret that only an apply may know is masked, too, and unknown before."""
    show = Hooks(
        before_plan=('echo "[$WRITE_KEY]"',), before_apply=('echo "[$WRITE_KEY]"',)
    )
    key = Variable(name="WRITE_KEY", value=SECRET, secret=True, scope=Scope.WRITE)

    record = line.run(line.job(hooks=show), environment=(key,), **AUTODEPLOY)

    assert b"[]\n" == record.section(RunState.PLANNING)[:3]
    assert b"[*****]\n" == record.section(RunState.APPLYING)[:8]
    assert SECRET not in text(record)


def test_variables_come_and_go_with_the_phase(line):
    """What only reading phases may know is gone in the apply, and in the last hooks."""
    show = 'echo "$READ_KEY/$WRITE_KEY"'
    given = (
        Variable(name="READ_KEY", value="reading", scope=Scope.READ),
        Variable(name="WRITE_KEY", value="writing", scope=Scope.WRITE),
    )
    hooks = Hooks(before_plan=(show,), before_apply=(show,), after_run=(show,))

    record = line.run(line.job(hooks=hooks, environment=given), **AUTODEPLOY)

    assert record.section(RunState.PLANNING).startswith(b"reading/\n")
    assert record.section(RunState.APPLYING).startswith(b"/writing\n")
    assert text(record).endswith("/writing\n")


def test_passed_through_is_weaker(line):
    """What the run brings along wins over what the machine lets through."""
    container = replace(
        line.settings.container,
        passed_through=(Variable(name="REGION", value="of the host"),),
    )
    line.settings = replace(line.settings, container=container)
    job = line.job(
        hooks=Hooks(before_init=("echo $REGION",)),
        environment=(Variable(name="REGION", value="of the run"),),
    )

    assert "of the run\n" in text(line.run(job))


def test_mounted_files(line):
    """Mounted files are where they should be, win over the repository's, and are writable."""
    job = line.job(
        {"config": b"of the repository"},
        hooks=Hooks(
            before_init=("cat config ../tmp/ca.pem", "stat -c %a ../tmp/ca.pem config")
        ),
        mounted_files=(
            MountedFile(path="tmp/ca.pem", content=b"a certificate\n"),
            MountedFile(path="source/config", content=b"mounted\n", secret=True),
        ),
    )

    assert "*****\na certificate\n644\n600\n" in text(line.run(job))


# --- the operator's wishes


def test_abort_during_the_plan(line):
    """Told to end at once, the worker interrupts the plan and reports it."""
    with line.running(line.job({"plan.sh": STUBBORN})) as record:
        line.prints(record, b"ready\n")
        line.abort.cancel("SIGTERM")

    assert (Verdict.FAILED, "aborted") == ending(record)
    assert "saving\n" in text(record)
    assert_public(record)


def test_abort_during_the_apply(line):
    """Told to end at once, the worker lets the apply save its state first."""
    with line.running(
        line.job({"apply.sh": STUBBORN}, hooks=OVER), **AUTODEPLOY
    ) as record:
        line.prints(record, b"ready\n")
        line.abort.cancel("SIGTERM")

    assert (Verdict.FAILED, "aborted") == ending(record)
    assert b"saving\n" in record.section(RunState.APPLYING)
    assert_public(record)


def test_abort_in_an_outage(line):
    """Told to end at once while nobody answers, the worker does not wait for an answer."""
    with line.running(line.job({"plan.sh": STUBBORN})) as record:
        line.prints(record, b"ready\n")
        with line.plane.outage():
            line.abort.cancel("SIGTERM")
            eventually(line.ended.is_set)

    assert record.settlement is None


def test_run_timeout(line):
    """A job that takes too long is ended, and told why."""
    line.limited(run_timeout=1.0)

    record = line.run(line.job({"plan.sh": STUBBORN}, hooks=OVER))

    assert (Verdict.FAILED, "too_long") == ending(record)
    assert "saving\n" in text(record)
    assert "over: FAILED\n" in text(record)
    assert_public(record)


def test_silence_timeout(line):
    """A job that prints nothing for too long is ended; one that prints is not."""
    line.limited(logs_timeout=1.5)
    busy = b"for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.3; done; exec sleep 60\n"

    record = line.run(line.job({"plan.sh": busy}))

    assert (Verdict.FAILED, "too_silent") == ending(record)
    assert "\n8\n" in text(record)
    assert_public(record)


def test_log_limit(line):
    """A job that prints too much is ended, and its log is cut there and marked."""
    line.limited(log_limit=100_000)

    record = line.run(line.job({"plan.sh": b"echo begin; exec yes\n"}))

    assert (Verdict.FAILED, "too_much_output") == ending(record)
    assert not record.settlement.log_complete
    assert 100_000 <= len(record.log) < 101_000
    assert b"\nplan: printed more than" in record.log
    assert_public(record)


def test_outage_is_no_silence(line):
    """A job whose output waits for the control plane is not taken for a silent one."""
    line.limited(logs_timeout=1.0)
    size = 6 * MAX_LOG_CHUNK
    job = line.job({"plan.sh": b"echo begin; head -c %d /dev/zero; echo end\n" % size})
    with line.running(job, **HAND_OVER) as record:
        line.prints(record, b"begin\n")
        with line.plane.outage():
            eventually(lambda: line.plane.refused > 80)

    assert (Verdict.HANDED_OVER, "") == ending(record)
    assert record.settlement.log_complete


def test_image_that_must_not_be_pulled(line):
    """A pinned image of the operator's list runs by its digest."""
    digest = f"sha256:{'a' * 64}"
    images = replace(
        line.settings.images,
        require_digest=True,
        pull_policy=PullPolicy.ALWAYS,
        allowed_images=(Pattern.parse(f"registry.example/runner@{digest}"),),
    )
    line.settings = replace(line.settings, images=images)
    job = line.job(
        {"plan.json": NO_CHANGES}, docker_image=f"registry.example/runner@{digest}"
    )

    assert (Verdict.FINISHED, "") == ending(line.run(job))
    assert [f"registry.example/runner@{digest}"] == line.engine.pulled
    refused = line.job(
        docker_image="registry.example/runner:1", id="02JOB", run=a_run(id="02RUN")
    )
    assert (Verdict.FAILED, "image_not_allowed") == ending(line.run(refused))


def test_next_step_is_the_control_planes(line):
    """Nothing that a job prints makes it apply."""
    job = line.job(
        {"plan.sh": b"printf '\\036x end plan 0\\037'; echo apply; echo FINISHED\n"}
    )

    record = line.run(job, next_step=NextStep.HAND_OVER)

    assert Verdict.HANDED_OVER == record.settlement.verdict
    assert "apply" not in calls(record)


# --- the log


def test_debug_shows_the_commands(line):
    """With debugging on, the run's owner reads each command before it runs, masked."""
    line.limited(debug=True)
    token = Variable(name="TOKEN", value=SECRET, secret=True)
    hooks = Hooks(before_init=(f"echo {SECRET}",))
    record = line.run(line.job(hooks=hooks, environment=(token,)))
    assert "$ echo *****\n" in text(record)
    assert text(record).index("$ terraform init") < text(record).index(
        "+ terraform init"
    )


def test_short_secrets_are_pointed_out(line):
    """A secret too short to be masked is named in the log, and its value is not."""
    given = (Variable(name="PIN", value="807", secret=True),)
    record = line.run(line.job(environment=given))
    assert "PIN is secret but has fewer than 4 characters: it is not masked.\n" in text(
        record
    )
    assert "807" not in text(record)


def test_short_secrets_are_masked_for_who_asked_for_it(line):
    """With the setting, a value of any length is masked."""
    logs = replace(line.settings.logs, mask_short_values=True)
    line.settings = replace(line.settings, logs=logs)
    given = (Variable(name="PIN", value="807", secret=True),)
    hooks = Hooks(before_init=("echo [$PIN]",))
    record = line.run(line.job(environment=given, hooks=hooks))
    assert "[*****]" in text(record)
    assert "PIN" not in text(record)


def test_masks_survive_into_the_apply(line):
    """What a plan has added is masked in its apply, in another container, from its start."""
    hooks = Hooks(
        before_plan=("echo ::add-mask tok-12345",), before_apply=("echo tok-12345",)
    )
    line.run(line.job(hooks=hooks), **HAND_OVER)
    offer = line.plane.confirm("01JOB", "01APPLY")
    with line.running(line.plane.jobs["01APPLY"].job, offer=offer) as applied:
        pass
    assert Verdict.FINISHED == applied.settlement.verdict
    assert applied.section(RunState.APPLYING).startswith(b"*****\n")


def test_too_many_masks_fail_the_run(line):
    """A job that adds more masks than are allowed fails, in a sentence that says why."""
    many = "i=0; while [ $i -le 1000 ]; do echo ::add-mask value-$i; i=$((i+1)); done"
    record = line.run(line.job(hooks=Hooks(before_init=(many, "sleep 60"))))
    assert (Verdict.FAILED, "too_many_masks") == ending(record)
    assert record.settlement.reason.endswith("added more than 1000 masks, or 64 KiB")
    assert not record.settlement.log_complete


def test_timestamps_are_a_label_away(line):
    """A stack's label makes every line of its logs begin with the time."""
    job = line.job()
    stack = msgspec.structs.replace(
        job.stack, labels=("feature:enable_log_timestamps",)
    )
    record = line.run(msgspec.structs.replace(job, stack=stack))
    lines = text(record).splitlines()
    assert len(lines) > 3
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z ", line) for line in lines)


@pytest.mark.parametrize("asked", ["nobody", "operator", "stack"])
def test_looks_of_secrets_are_opt_in(line, asked):
    """What looks like a key is masked if the operator, or the stack, asks for it."""
    key = "ghp_" + "a1B2c3" * 6
    job = line.job(hooks=Hooks(before_init=(f"echo it is ghp_; echo {key}",)))
    if asked == "operator":
        logs = replace(line.settings.logs, mask_well_known=True)
        line.settings = replace(line.settings, logs=logs)
    if asked == "stack":
        labels = ("feature:enable_well_known_secret_masking",)
        stack = msgspec.structs.replace(job.stack, labels=labels)
        job = msgspec.structs.replace(job, stack=stack)
    record = line.run(job)
    assert "\nit is ghp_\n" in text(record)
    assert (asked == "nobody") == (key in text(record))


def test_logs_on_standard_output(line, capsys):
    """Who asks for it finds the masked log on standard output, too."""
    line.limited(logs_on_standard_output=True)
    line.run(line.job())
    shown = [
        msgspec.json.decode(row)
        for row in capsys.readouterr().out.splitlines()
        if '"run_ulid"' in row
    ]
    assert "+ terraform init" in [row["msg"][:16] for row in shown]


# --- what can be seen of it


def test_a_job_at_work_can_be_asked(line, monkeypatch):
    """How long the lease may be silent, and when the image's login ends, is known meanwhile."""
    for_image = line.credentials.for_image
    line.credentials.logins["registry.example"] = ("ada", "of-the-registry")
    monkeypatch.setattr(
        line.credentials,
        "for_image",
        lambda *given: replace(for_image(*given), expires_at=1e9),
    )
    with line.running(line.job({"plan.sh": STUBBORN})) as record:
        line.prints(record, b"ready\n")
        (slack,) = line.sight.vitals(Vital.LEASE_SLACK)
        assert 0 < slack <= 90
        assert [1e9] == line.sight.vitals(Vital.LOGIN_EXPIRES)
        assert [0.0] == eventually(
            lambda: [x for x in line.sight.vitals(Vital.LOG_BACKLOG) if x == 0]
        )
        line.plane.request_stop(record.job.id)

    assert [[]] * len(Vital) == [line.sight.vitals(vital) for vital in Vital]


def test_who_loses_a_job_abandons_it(line):
    """A job that became somebody else's is over as abandoned, whatever came of it here."""
    ended = []

    class Notes:
        def claimed(self, job, at): ...

        def seen(self, job, stage): ...

        def ended(self, job, over):
            ended.append((job.job, over.verdict, over.code))

    line.sight = Sight([Notes()])
    with line.running(line.job({"plan.sh": STUBBORN})) as record:
        line.prints(record, b"ready\n")
        line.plane.take_away(record.job.id)
    line.run(line.job({"plan.json": NO_CHANGES}, id="02JOB"))

    assert [("01JOB", "ABANDONED", ""), ("02JOB", "finished", "")] == ended
