"""The main job on real parts: server, launcher, policy, engine, git, Ansible."""

import json
import signal

import pytest

from examples.demo.demo import terraform_in_image

from .conftest import SECRET, opened


pytestmark = pytest.mark.services

PLAN_STATES = ["QUEUED", "READY", "PREPARING", "INITIALIZING", "PLANNING"]
NOTHING_TO_DO = "[{hosts: localhost, gather_facts: false, tasks: []}]"
APPLY_STATES = ["CONFIRMED", "PREPARING_APPLY", "APPLYING", "FINISHED"]


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory):
    secret = [{"name": "TOKEN", "secret_env": "STACK_SECRET"}]
    show = "echo token=$TOKEN && echo marker-init"
    stacks = [
        {
            "slug": "testing-spacelift",
            "environment": secret,
            "hooks": {
                "before_init": [show],
                "after_run": ["echo over: $TF_VAR_spacelift_final_run_state"],
            },
        },
        {"slug": "autodeployed", "autodeploy": True},
        {
            "slug": "unchanging",
            "hooks": {"before_plan": [f"echo '{NOTHING_TO_DO}' > playbook.yml"]},
        },
        {"slug": "slow", "hooks": {"before_plan": ["echo waiting", "sleep 300"]}},
        {
            "slug": "with-write-only",
            "autodeploy": True,
            "environment": [
                {"name": "wo_WRITE_KEY", "value": "only-for-writing"},
                {"name": "ro_READ_KEY", "value": "only-for-reading"},
            ],
            "hooks": {
                "before_plan": ["echo plan: $WRITE_KEY/$READ_KEY"],
                "before_apply": ["echo apply: $WRITE_KEY/$READ_KEY"],
            },
        },
    ]
    with opened(tmp_path_factory.mktemp("site"), stacks) as site:
        site.launcher()
        yield site


@pytest.fixture(scope="module", name="finished")
def _finished(site):
    run, planned = site.deploy("testing-spacelift", metadata="deploy-metadata")
    site.api.confirm("testing-spacelift", run, metadata="confirm-metadata")
    return run, planned, site.follow("testing-spacelift", run)


def samples(site, run):
    return [
        event
        for event in site.launchers[0].events()
        if "sample" in event and event["sample"]["input"]["run"]["id"] == run
    ]


def test_states_in_order(site, finished):
    """A tracked run goes through the documented states, the apply after confirmation."""
    run, _, _ = finished

    states = [
        transition["state"] for transition in site.api.history("testing-spacelift", run)
    ]

    assert [*PLAN_STATES, "UNCONFIRMED", *APPLY_STATES] == states


def test_log_belongs_to_its_state(finished):
    """What a phase prints is found under the state of that phase."""
    _, planned, applied = finished

    assert "marker-init" in planned["INITIALIZING"]
    assert "PLAY RECAP" in planned["PLANNING"]
    assert "marker-init" not in planned["PLANNING"]
    assert "PLAY RECAP" in applied["APPLYING"]


def test_workspace_is_handed_over(finished):
    """The apply starts from what the plan left, in a new container."""
    _, _, applied = finished

    assert "changed=1" in applied["APPLYING"]


def test_after_run_learns_the_end(finished):
    """The after_run hooks run once, at the end of the run, and know how it ended."""
    _, planned, applied = finished

    assert "over: FINISHED" in applied["APPLYING"]
    assert not any("over:" in text for text in planned.values())


def test_secret_is_masked_everywhere(site, finished):
    """A secret variable is in no log of the run, and in no log of the launcher."""
    _, planned, applied = finished

    assert "token=*****" in planned["INITIALIZING"]
    for text in [
        *planned.values(),
        *applied.values(),
        site.launchers[0].log.read_text(),
    ]:
        assert SECRET not in text


def test_samples_show_the_metadata(site, finished):
    """Each evaluation is sampled, with one string for each interaction so far."""
    run, _, _ = finished

    seen = [
        s["sample"]["input"]["run"]["user_provided_metadata"]
        for s in samples(site, run)
    ]

    assert [["deploy-metadata"], ["deploy-metadata", "confirm-metadata"]] == seen


def test_sample_line_is_a_contract(site, finished):
    """A sample is one JSON object with exactly the documented keys."""
    run, _, _ = finished

    for event in samples(site, run):
        assert {"caller", "level", "msg", "sample", "ts"} == event.keys()
        assert {"body", "input", "outcome", "results", "error"} == event[
            "sample"
        ].keys()
        assert {"deny": [], "sample": True} == event["sample"]["results"]
        assert "package spacelift\nsample { true }\n" == event["sample"]["body"]
        number, kind, _, outcome = event["msg"].removeprefix("Sample ").split("/")
        assert ("0", "INITIALIZATION", "allow") == (number, kind, outcome)


def test_sample_names_the_digest_that_ran(site, finished):
    """The policy judges an image by the digest that is executed."""
    run, _, _ = finished

    for event in samples(site, run):
        assert event["sample"]["input"]["docker_image_digest"].startswith("sha256:")


def test_nothing_is_left(site, finished):
    """After a run the engine has no container and no volume of it."""
    assert ["", ""] == site.leftovers()


def test_proposed_run_finishes_after_the_plan(site):
    """A proposed run plans and never applies."""
    run = site.api.trigger("testing-spacelift", kind="PROPOSED")
    site.follow("testing-spacelift", run)

    states = [t["state"] for t in site.api.history("testing-spacelift", run)]

    assert [*PLAN_STATES, "FINISHED"] == states


def test_discard(site):
    """A discarded plan is never applied."""
    run, _ = site.deploy("testing-spacelift")
    site.api.discard("testing-spacelift", run)

    assert ["DISCARDED"] == list(site.follow("testing-spacelift", run))[-1:]


def test_autodeploy_applies_in_the_same_container(site):
    """With autodeploy, a plan with changes is applied without a second hand-over."""
    run, texts = site.deploy("autodeployed")

    states = [t["state"] for t in site.api.history("autodeployed", run)]

    assert [*PLAN_STATES, "APPLYING", "FINISHED"] == states
    assert 2 == len(samples(site, run))


def test_write_variables_enter_with_the_apply(site):
    """Variables for writing appear with the apply, those for reading go with it."""
    _, texts = site.deploy("with-write-only")

    assert "plan: /only-for-reading" in texts["PLANNING"]
    assert "apply: only-for-writing/" in texts["APPLYING"]


def test_no_changes_finishes(site):
    """A plan without changes finishes the run at once."""
    run, _ = site.deploy("unchanging")

    states = [t["state"] for t in site.api.history("unchanging", run)]

    assert [*PLAN_STATES, "FINISHED"] == states


def test_stop_reaches_a_busy_worker(site):
    """A stop request ends a plan within seconds, and leaves nothing behind."""
    run = site.api.trigger("slow")
    for state, text in site.api.follow("slow", run):
        if state == "PLANNING" and "waiting" in text:
            site.api.stop("slow", run)
    states = [t["state"] for t in site.api.history("slow", run)]

    assert "STOPPED" == states[-1]
    assert ["", ""] == site.leftovers()


def test_confirm_needs_a_plan(site, finished):
    """A run that has ended can be neither confirmed nor discarded."""
    from examples.demo.api import ApiError

    run, _, _ = finished
    for refused in (site.api.confirm, site.api.discard):
        with pytest.raises(ApiError):
            refused("testing-spacelift", run)


def test_daemon_logs_are_json_lines(site, finished):
    """Every line the daemon prints is a JSON object with the four keys."""
    for line in site.launchers[0].log.read_text().splitlines():
        assert {"caller", "level", "msg", "ts"} <= json.loads(line).keys()


def test_write_only_mounts_need_a_new_container(open_site, tmp_path):
    """With write-only mounts, autodeploy applies in a container that has them."""
    (tmp_path / "key").write_text("from the host\n")
    tmp_path.chmod(0o755)
    look = "cat /opt/keys/key || echo no key"
    site = open_site(
        [
            {
                "slug": "mounted",
                "autodeploy": True,
                "hooks": {"before_plan": [look], "before_apply": [look]},
            }
        ]
    )
    site.launcher(SPACELIFT_WORKER_WO_EXTRA_MOUNTS=f"{tmp_path}:/opt/keys")
    run = site.api.trigger("mounted")
    texts = site.follow("mounted", run)

    assert "no key" in texts["PLANNING"]
    assert "from the host" in texts["APPLYING"]
    assert [*PLAN_STATES, "CONFIRMED", "PREPARING_APPLY", "APPLYING", "FINISHED"] == [
        t["state"] for t in site.api.history("mounted", run)
    ]


def test_two_slots_work_at_the_same_time(open_site):
    """A launcher with two slots runs two stacks at once."""
    meet = "while [ $(ls /opt/meeting | wc -l) -lt 2 ]; do sleep 0.1; done"
    hook = ["touch /opt/meeting/$TF_VAR_spacelift_stack_id", meet, "echo met"]
    site = open_site(
        [{"slug": name, "hooks": {"before_init": hook}} for name in ("one", "two")]
    )
    meeting = site.folder / "meeting"
    meeting.mkdir()
    meeting.chmod(0o777)
    site.launcher(
        SPACELIFT_LAUNCHER_WORKERS="2",
        SPACELIFT_WORKER_EXTRA_MOUNTS=f"{meeting}:/opt/meeting",
    )
    runs = {name: site.api.trigger(name, kind="PROPOSED") for name in ("one", "two")}

    for name, run in runs.items():
        assert "met" in site.follow(name, run)["INITIALIZING"]


def test_sigterm_lets_the_running_job_finish(open_site):
    """The first SIGTERM takes no new job, and the one that runs is seen through."""
    site = open_site(
        [{"slug": "draining", "hooks": {"before_plan": ["echo waiting", "sleep 3"]}}]
    )
    launcher = site.launcher()
    run = site.api.trigger("draining")
    states = {}
    for state, text in site.api.follow("draining", run, until="UNCONFIRMED"):
        states[state] = states.get(state, "") + text
        if state == "PLANNING" and text.startswith("waiting"):
            launcher.signal(signal.SIGTERM)
            waiting = site.api.trigger("draining", kind="PROPOSED")

    assert "UNCONFIRMED" == list(states)[-1]
    assert 0 == launcher.wait(30)
    assert "READY" == site.api.history("draining", waiting)[-1]["state"]


def test_second_signal_ends_the_job_and_reports_it(open_site):
    """A second signal ends the job gently, reports it, and the launcher leaves."""
    catch = 'trap "echo saving my state; exit 4" INT; echo ready; sleep 300'
    site = open_site([{"slug": "aborted", "hooks": {"before_plan": [catch]}}])
    launcher = site.launcher()
    run = site.api.trigger("aborted")
    log = ""
    for state, text in site.api.follow("aborted", run):
        log += text
        if state == "PLANNING" and text.startswith("ready"):
            launcher.signal(signal.SIGTERM)
            launcher.signal(signal.SIGINT)

    assert "saving my state" in log
    assert "plan: the worker was told to end at once" in log
    assert 0 == launcher.wait(30)
    assert ["", ""] == site.leftovers()


def test_denied_by_policy(open_site):
    """A denied run starts nothing, and its owner reads the policy's own words."""
    site = open_site([{"slug": "denied"}])
    policy = site.folder / "deny.rego"
    policy.write_text(
        'package spacelift\ndeny["not on Fridays"] { true }\nsample { true }\n'
    )
    launcher = site.launcher(SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY=str(policy))
    run = site.api.trigger("denied")
    texts = site.follow("denied", run)

    assert ["QUEUED", "READY", "PREPARING", "FAILED"] == list(texts)
    assert 1 == texts["PREPARING"].count(
        "denied by the worker's initialization policy: not on Fridays"
    )
    outcomes = [e["sample"]["outcome"] for e in launcher.events() if "sample" in e]
    assert ["deny"] == outcomes
    assert not [e for e in launcher.events() if e["msg"] == "container.started"]


def test_terraform_for_real(open_site):
    """A real Terraform or OpenTofu plans, hands over, and applies."""
    tool = terraform_in_image()
    assert tool, "install tofu or terraform: the runner image takes the machine's own"
    site = open_site(
        [
            {
                "slug": "terraformed",
                "vendor": "opentofu" if tool == "tofu" else "terraform",
                "vendor_config": {},
            }
        ],
        repository="terraform",
    )
    site.launcher()
    run, planned = site.deploy("terraformed")
    site.api.confirm("terraformed", run)
    applied = site.follow("terraformed", run)

    assert "1 to add, 0 to change, 0 to destroy" in planned["PLANNING"]
    assert "Apply complete! Resources: 1 added" in applied["APPLYING"]
    assert f"Hello from run {run}" in applied["APPLYING"]
