"""Every type of run, from the control plane's API to the tool in its container."""

import io
import tarfile

import pytest
import urllib3

from e2e.conftest import DEMO, SECRET, opened


pytestmark = pytest.mark.services

STACK = {
    "slug": "terraformed",
    "vendor": "terraform",
    "vendor_config": {},
    "local_preview": True,
    "environment": [{"name": "TOKEN", "secret_env": "STACK_SECRET"}],
    "hooks": {"after_run": ['echo "over: $TF_VAR_spacelift_final_run_state"']},
}


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory):
    with opened(
        tmp_path_factory.mktemp("types") / "site", [STACK], repository="terraform"
    ) as site:
        site.launcher()
        yield site


def mutate(site, field, arguments, **variables):
    """The id in the answer to a mutation; *arguments* are typed as GraphQL has it."""
    typed = ", ".join(f"${name}: {kind}" for name, kind in arguments.items())
    given = ", ".join(f"{name}: ${name}" for name in arguments)
    document = f"mutation({typed}) {{ {field}({given}) {{ id }} }}"
    return site.api.query(document, variables)[field]["id"]


TASK = {"stack": "ID!", "command": "String!", "skipInitialization": "Boolean"}


@pytest.mark.parametrize("skipped", [False, True])
def test_task(site, skipped):
    """[capability 74] A task's command runs in the project's folder, initialized or not."""
    command = 'ls .terraform.lock.hcl main.tf; echo "$TOKEN" | rev | rev'
    run = mutate(
        site,
        "taskCreate",
        TASK,
        stack="terraformed",
        command=command,
        skipInitialization=skipped,
    )
    texts = site.follow("terraformed", run)
    assert "FINISHED" in texts
    assert ("INITIALIZING" in texts) is not skipped
    assert "main.tf" in texts["PERFORMING"]
    assert SECRET not in texts["PERFORMING"]
    assert "over: FINISHED" in "".join(texts.values())


def test_testing(site):
    """[capability 75] A test plans, applies and destroys in one go."""
    run = site.api.trigger("terraformed", kind="TESTING")
    texts = site.follow("terraformed", run)
    assert "FINISHED" in texts
    assert "Apply complete! Resources: 1 added" in texts["APPLYING"]
    assert "Destroy complete! Resources: 1 destroyed" in texts["DESTROYING"]
    assert "over: FINISHED" in texts["DESTROYING"]


def test_destroy(site):
    """[capability 76] A destroy run plans the end, and begins it when it is confirmed."""
    run = site.api.trigger("terraformed", kind="DESTROY")
    planned = site.follow("terraformed", run, until="UNCONFIRMED")
    assert "Terraform used the selected providers" in planned["PLANNING"] or (
        "No changes" in planned["PLANNING"]
    )
    site.api.confirm("terraformed", run)
    texts = site.follow("terraformed", run)
    assert "FINISHED" in texts
    assert (
        "Apply complete! Resources: 0 added, 0 changed, 0 destroyed"
        in (texts["DESTROYING"])
    )


def test_replan(site):
    """[capability 87] A run is planned anew for its targets, and applies that plan."""
    run, planned = site.deploy("terraformed")
    assert "1 to add" in planned["PLANNING"]
    seen = {each["stateVersion"] for each in site.api.history("terraformed", run)}
    mutate(
        site,
        "runTargetedReplan",
        {"stack": "ID!", "run": "ID!", "targets": "[String!]!"},
        stack="terraformed",
        run=run,
        targets=["terraform_data.greeting"],
    )
    again = site.follow("terraformed", run, until="UNCONFIRMED", seen=seen)
    assert "Resource targeting is in effect" in again["PLANNING"]
    seen = {each["stateVersion"] for each in site.api.history("terraformed", run)}
    site.api.confirm("terraformed", run)
    texts = site.follow("terraformed", run, seen=seen)
    assert "Apply complete! Resources: 1 added" in texts["APPLYING"]
    assert "FINISHED" in texts


def test_local_preview(site):
    """[capability 78] What somebody has uploaded is planned, and nothing else."""
    document = (
        "mutation($stack: ID!) { uploadLocalWorkspace(stack: $stack) { id uploadUrl } }"
    )
    place = site.api.query(document, {"stack": "terraformed"})["uploadLocalWorkspace"]
    # As spacectl packs it: everything in a folder that is named like the place.
    folder = place["id"]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(DEMO / "stacks" / "terraform" / "main.tf", f"{folder}/main.tf")
        more = b'output "only_here" { value = 1 }\n'
        entry = tarfile.TarInfo(f"{folder}/more.tf")
        entry.size = len(more)
        tar.addfile(entry, io.BytesIO(more))
    with urllib3.PoolManager() as http:
        answer = http.request("PUT", place["uploadUrl"], body=archive.getvalue())
        assert answer.status in {200, 201}, answer.data
    run = mutate(
        site,
        "runProposeLocalWorkspace",
        {"stack": "ID!", "workspace": "ID!"},
        stack="terraformed",
        workspace=place["id"],
    )
    texts = site.follow("terraformed", run)
    assert "FINISHED" in texts
    assert "only_here" in texts["PLANNING"]


def test_one_off_configuration(site):
    """[capability 91] A trigger's own configuration counts for its run only."""
    document = (
        "mutation($stack: ID!, $config: RuntimeConfigInput) { runTrigger("
        "stack: $stack, runType: PROPOSED, runtimeConfig: $config) { id } }"
    )
    config = {"yaml": "before_plan: [echo just this once]\n"}
    given = {"stack": "terraformed", "config": config}
    run = site.api.query(document, given)["runTrigger"]["id"]
    assert "just this once" in site.follow("terraformed", run)["PLANNING"]
    run = site.api.trigger("terraformed", kind="PROPOSED")
    assert "just this once" not in site.follow("terraformed", run)["PLANNING"]
