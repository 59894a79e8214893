import hashlib
import json
import re

from dataclasses import replace

import msgspec
import pytest

from structlog.testing import capture_logs

from given import a_job
from launcher.admission import Gate, permit, resolve
from launcher.credentials import NoCredentials
from launcher.errors import ImageUnavailable, JobInvalid, JobRejected
from launcher.images import Pattern, Reference
from launcher.model import Mount, ResolvedImage, ResolvedJob
from launcher.policy import Evaluation, NoPolicy, Outcome
from launcher.settings import ImageSettings, Settings
from launcher.vendors import table
from launcher.wire.jobs import Phase, Scope, Variable, Vendor


IMAGE = ResolvedImage(
    reference="registry.example/runner:1",
    digest=f"sha256:{'a' * 64}",
    runnable="registry.example/runner@sha256:…",
    local=False,
)
JOB = a_job()


class Policy:
    """Gives one answer and remembers what it was asked."""

    def __init__(self, **answer):
        self.answer = Evaluation(
            **{"outcome": Outcome.ALLOW, "body": "package x"} | answer
        )
        self.asked = []

    def evaluate(self, document):
        self.asked.append(document)
        return self.answer


def gate(policy, *passed):
    return Gate(policy, passed_through=passed, endpoint="https://control.example")


def admit(policy, phase=Phase.PLAN, *passed, job=JOB):
    return gate(policy, *passed).admit(ResolvedJob(job=job, image=IMAGE), phase, ())


def test_what_the_policy_allows_is_admitted():
    """The very job and the very image that were judged are admitted."""
    for policy in (Policy(), NoPolicy()):
        admitted = admit(policy)
        assert (JOB, IMAGE) == (admitted.job, admitted.image)


def test_a_receipt_is_that_of_the_evaluation():
    """The same policy, question and answer have the same receipt, and no others."""
    other = msgspec.structs.replace(JOB, docker_image="registry.example/runner:2")
    receipts = [
        admit(Policy()).receipt,
        admit(Policy(body="package y")).receipt,
        admit(Policy(), Phase.APPLY).receipt,
        admit(Policy(), job=other).receipt,
        admit(NoPolicy()).receipt,
    ]
    assert admit(Policy()).receipt == receipts[0]
    assert len(receipts) == len(set(receipts))
    assert all(re.fullmatch("[0-9a-f]{64}", receipt) for receipt in receipts)


def test_a_receipt_can_be_computed_from_the_sample_line():
    """Whoever has the operator's log can tell which evaluation a receipt is of."""
    with capture_logs() as events:
        admitted = admit(Policy(sample=True))
    [line] = json.loads(json.dumps([e["sample"] for e in events if "sample" in e]))
    judged = {key: line[key] for key in ("body", "input", "outcome")}
    text = json.dumps(judged, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == admitted.receipt
    assert "hunter2-hunter2" not in text


def test_the_policy_is_asked_about_the_job_at_hand():
    """The question is that of the phase, with what the worker adds to it."""
    policy = Policy()
    passed = Variable(name="FROM_WORKER", value="w", scope=Scope.WRITE)
    gate(policy, passed).admit(
        ResolvedJob(job=JOB, image=IMAGE),
        Phase.APPLY,
        (Mount(source="/a", target="/b"),),
    )
    [asked] = policy.asked
    static = asked["static_run_environment"]
    assert "apply" == asked["phase"]
    assert IMAGE.digest == asked["docker_image_digest"]
    assert "w" == static["environment_variables"]["FROM_WORKER"]
    assert "https://control.example" == static["endpoint_logs"]
    assert [{"source": "/a", "target": "/b", "read_only": False}] == static[
        "extra_mounts"
    ]


def test_a_denial_rejects_with_its_reasons():
    """The owner of the run reads why, in the policy's words."""
    with pytest.raises(JobRejected) as caught:
        admit(Policy(outcome=Outcome.DENY, deny=("not on Fridays", "nor at night")))
    assert "not on Fridays; nor at night" in str(caught.value)


def test_an_error_rejects_without_its_text():
    """An evaluation that fails denies; only the operator reads how it failed."""
    with pytest.raises(JobRejected) as caught:
        admit(Policy(outcome=Outcome.ERROR, error="line 7: who knows"))
    assert "line 7" not in str(caught.value)
    assert "line 7: who knows" == caught.value.details


def test_a_rejection_holds_no_secret():
    """A policy that quotes the values of secret variables does not reveal them."""
    quoted = "TOKEN is hunter2-hunter2"
    with pytest.raises(JobRejected) as denied:
        admit(Policy(outcome=Outcome.DENY, deny=(quoted,)))
    with pytest.raises(JobRejected) as failed:
        admit(Policy(outcome=Outcome.ERROR, error=quoted))
    assert "TOKEN is *****" in str(denied.value)
    assert "TOKEN is *****" == failed.value.details


@pytest.mark.parametrize("outcome", [Outcome.ALLOW, Outcome.DENY])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_sample_is_logged_when_the_policy_wants_it(outcome, wanted):
    """An evaluation is logged exactly when the policy says so, whatever it answers."""
    policy = Policy(
        outcome=outcome, deny=("no",) * (outcome is Outcome.DENY), sample=wanted
    )
    with capture_logs() as lines:
        if outcome is Outcome.ALLOW:
            admit(policy)
        else:
            with pytest.raises(JobRejected):
                admit(policy)
    assert int(wanted) == len(lines)
    for line in lines:
        assert re.fullmatch(
            rf"Sample 0/INITIALIZATION/[0-9A-HJKMNP-TV-Z]{{26}}/{outcome}",
            line["event"],
        )
        assert outcome == line["sample"]["outcome"]
        assert "package x" == line["sample"]["body"]


@pytest.mark.parametrize("outcome", [Outcome.ALLOW, Outcome.DENY])
def test_a_sample_that_fails_changes_nothing(outcome):
    """What cannot be sampled is decided all the same, and the log says so."""

    class Unreadable(dict):
        def items(self):
            raise RuntimeError("hunter2")

    policy = Policy(
        outcome=outcome,
        deny=("no",) * (outcome is Outcome.DENY),
        sample=True,
        results=Unreadable(),
    )
    with capture_logs() as lines:
        if outcome is Outcome.ALLOW:
            admit(policy)
        else:
            with pytest.raises(JobRejected, match="no"):
                admit(policy)
    [line] = lines
    assert {
        "event": "sample.failed",
        "error": "RuntimeError",
        "log_level": "error",
    } == (line)


def test_an_evaluation_that_fails_is_always_logged():
    """The operator sees what a failing policy was asked, secrets masked."""
    passed = Variable(name="MASKED", value="from-the-worker", secret=True)
    with capture_logs() as lines, pytest.raises(JobRejected):
        admit(Policy(outcome=Outcome.ERROR, error="boom"), Phase.PLAN, passed)
    [line] = lines
    assert "boom" == line["sample"]["error"]
    assert "hunter2" not in str(line)
    assert "from-the-worker" not in str(line)


SETTINGS = Settings()


def test_a_job_without_an_image_gets_the_default_of_its_vendor():
    """Ansible runs in the image for Ansible, everything else in the general one."""
    images = SETTINGS.images
    for name, default in {
        "terraform": images.default_runner_image,
        "opentofu": images.default_runner_image,
        "ansible": images.default_ansible_runner_image,
    }.items():
        vendor = Vendor(vendor=name)
        job = a_job(docker_image="", vendor=vendor)
        assert (
            default
            == permit(
                job, table(vendor, job.phases), SETTINGS, NoCredentials()
            ).image.reference
        )


def permitted(image, allowed):
    patterns = tuple(map(Pattern.parse, allowed.split(",")))
    settings = Settings(images=ImageSettings(allowed_images=patterns))
    job = a_job(docker_image=image)
    return permit(
        job, table(job.vendor, job.phases), settings, NoCredentials()
    ), settings


def test_an_image_that_is_not_allowed_is_rejected():
    """The name of the image decides before any registry is asked."""
    permitted("registry.example/runner:1", "registry.example/*")
    with pytest.raises(JobRejected):
        permitted("elsewhere.example/runner:1", "registry.example/*")


@pytest.mark.parametrize(
    "image", ["UPPER/case", "a b", "x@sha256:short", "-x", "x\n", ":"]
)
def test_what_is_no_reference_is_refused(image):
    """An image that cannot be one is the job's fault, not the worker's."""
    with pytest.raises(JobInvalid):
        permitted(image, "docker.io/*")


class Engine:
    """Knows one image."""

    def resolve(self, image):
        return IMAGE


def test_a_digest_the_owner_forbids_is_rejected():
    """A tag that stands for a forbidden digest is found out before anything is pulled."""
    allowed = f"registry.example/*,!registry.example/runner@{IMAGE.digest}"
    permit_of_tag, settings = permitted("registry.example/runner:1", allowed)
    with pytest.raises(JobRejected):
        resolve(permit_of_tag, Engine(), settings)


def test_what_is_resolved_is_what_was_permitted():
    """The digest comes from the engine, the job is the same."""
    permit_of_tag, settings = permitted(
        "registry.example/runner:1", "registry.example/*"
    )
    resolved = resolve(permit_of_tag, Engine(), settings)
    assert IMAGE == resolved.image
    assert "registry.example/runner:1" == resolved.job.docker_image
    assert Reference.parse("registry.example/runner:1") == permit_of_tag.image.reference


# --- what a plan ran, its apply runs

PLANNED = f"sha256:{'b' * 64}"


class Registry:
    """Knows what names stand for; whatever is asked for by digest is there."""

    def __init__(self, **images):
        self.images = images
        self.asked = []

    def resolve(self, permit):
        reference = permit.reference
        self.asked.append(str(reference))
        digest = reference.digest or self.images.get(reference.tag)
        if digest is None:
            raise ImageUnavailable(f"no {reference}")
        return replace(IMAGE, reference=str(reference), digest=digest)


def runs(engine, job):
    settings = Settings(images=ImageSettings(allowed_images=PATTERNS))
    permitted = permit(job, table(job.vendor, job.phases), settings, NoCredentials())
    return resolve(permitted, engine, settings).image.digest


def applying(**changes):
    return a_job(**{"image_digest": PLANNED} | changes)


PATTERNS = (
    Pattern.parse("registry.example/*"),
    Pattern.parse("sha256:*"),
    Pattern.parse(f"!registry.example/*@sha256:{'e' * 64}"),
)


def test_an_apply_runs_what_the_plan_ran():
    """Where the name points to by now, or whether it does, does not matter."""
    for images in ({"1": PLANNED}, {"1": f"sha256:{'c' * 64}"}, {}):
        assert PLANNED == runs(Registry(**images), applying())


def test_what_only_the_name_leads_to_is_not_asked_for_by_digest():
    """An image that was built on this machine is found again by its name."""
    engine = Registry(**{"1": PLANNED})
    runs(engine, applying())
    assert ["registry.example/runner:1"] == engine.asked


def test_a_first_job_runs_what_the_name_stands_for():
    """Nothing is pinned that nobody has planned with."""
    assert PLANNED == runs(Registry(**{"1": PLANNED}), a_job())


def test_an_image_id_stays_what_it_is():
    """An image that is named by its id is no other one, whatever the job claims."""
    job = applying(docker_image="sha256:" + "d" * 64)
    assert "sha256:" + "d" * 64 == runs(Registry(), job)


def test_a_planned_digest_may_be_denied():
    """What the owner denies by digest is denied to an apply, too."""
    with pytest.raises(JobRejected):
        runs(Registry(), applying(image_digest=f"sha256:{'e' * 64}"))


def test_a_planned_digest_has_to_be_one():
    """What is no digest is refused, and not handed to the engine."""
    with pytest.raises(JobInvalid, match="digest that is none"):
        runs(Registry(), applying(image_digest="latest"))
