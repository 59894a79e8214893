"""Every type of run, phase and vendor, on the real engine, with the real tools."""

import contextlib
import json

from dataclasses import replace

from given import A_KEY, a_run
from support.built_images import built
from support.engines import DockerSite, ShellSite, run
from support.line import AUTODEPLOY, HAND_OVER, Line

import msgspec
import pytest

from launcher import vendors
from launcher.images import Pattern
from launcher.journal import Journal
from launcher.testing.control_plane import MemoryControlPlane
from launcher.vendors.workflow import PARAMETERS
from launcher.wire.jobs import (
    Hooks,
    MountedFile,
    Phase,
    RunState,
    RunType,
    Scope,
    Variable,
    Vendor,
)
from launcher.wire.messages import StackOutput, Verdict


pytestmark = pytest.mark.services

SECRET = "hunter2-of-the-stack"


@pytest.fixture(name="site", scope="module")
def _site():
    with contextlib.closing(DockerSite()) as site:
        yield site


@pytest.fixture(name="line", scope="module")
def _line(site, tmp_path_factory):
    with opened(site, tmp_path_factory.mktemp("line")) as line:
        yield line
    assert [] == site.leftovers()


@pytest.fixture(name="processes", scope="module")
def _processes(tmp_path_factory):
    """A site without containers, for what goes wrong before they would matter."""
    return ShellSite(tmp_path_factory.mktemp("processes"))


@pytest.fixture(name="quick", scope="module")
def _quick(processes, tmp_path_factory):
    with opened(processes, tmp_path_factory.mktemp("quick")) as line:
        yield line


@contextlib.contextmanager
def opened(site, root):
    """The launcher's line on the engine of *site*."""
    folder = root / "scratch"
    folder.mkdir()
    journal = Journal.opened(root / "journal.db", A_KEY)
    line = Line(
        journal=journal,
        plane=MemoryControlPlane(lease_seconds=90, renew_seconds=5),
        engine=site.engine,
        folder=folder,
    )
    images = replace(line.settings.images, allowed_images=(Pattern.parse(site.image),))
    line.settings = replace(line.settings, images=images)
    yield line
    journal.close()


def a_run_of(line, site, kind, phases, tree, **changes):
    """A job of its own run, on *tree*; nothing but what is asked for is in it."""
    number = len(line.plane.jobs)
    given = {
        "id": f"01JOB{number}",
        "run": a_run(
            id=f"01RUN{number}",
            type=kind,
            command=changes.pop("command", ""),
            targets=changes.pop("targets", ()),
        ),
        "phases": phases,
        "docker_image": site.image,
        "vendor": Vendor(vendor="terraform"),
        **changes,
    }
    job = line.job(tree=tree, **given)
    # The image's own tools, and not those of the fake repository.
    own = tuple(each for each in job.environment if each.name != "PATH")
    return msgspec.structs.replace(job, environment=own)


def text(record):
    return bytes(record.log).decode()


def part(record, state):
    return record.section(state).decode()


def ending(record):
    settled = record.settlement
    return settled.verdict, settled.code, settled.reason


FINE = (Verdict.FINISHED, "", "")
PLANNING = (Phase.INITIALIZE, Phase.PLAN)
TESTING = (*PLANNING, Phase.APPLY, Phase.DESTROY)
TERRAFORM = b"""
resource "terraform_data" "one" { input = "one" }
resource "terraform_data" "two" { input = var.spacelift_run_id }
variable "spacelift_run_id" { type = string }
variable "given" {
  type    = string
  default = "nothing"
}
output "plain" { value = { list = [1, "two"] } }
output "given" { value = var.given }
output "hidden" {
  value     = "a-sensitive-value"
  sensitive = true
}
"""
HOOKS = Hooks(
    before_init=("export OF_INIT='it is\nkept'", "echo before init"),
    after_init=("echo after init",),
    before_plan=('echo "init said: $OF_INIT"', "export OF_PLAN=1 REGION=changed"),
    after_plan=(
        "test -s spacelift.plan && test -s spacelift.plan.json",
        "test -s spacelift.state.before.json",
        'echo \'{"score": [1, {"who": "\'$TOKEN\'"}]}\' >risk.custom.spacelift.json',
        "ln -s spacelift.plan.json link.custom.spacelift.json",
        "echo '{}' >'odd name.custom.spacelift.json'",
    ),
    before_apply=('echo "kept: $OF_INIT/$OF_PLAN/$REGION/$TOKEN/$WRITE_KEY"',),
    after_apply=("echo after apply",),
    before_perform=("echo before perform",),
    after_perform=("echo after perform",),
    before_destroy=("echo before destroy",),
    after_destroy=("echo after destroy",),
    after_run=('echo "over: $TF_VAR_spacelift_final_run_state"',),
)
VARIABLES = (
    Variable(name="TOKEN", value=SECRET, secret=True),
    Variable(name="REGION", value="given"),
    Variable(name="WRITE_KEY", value="w", scope=Scope.WRITE),
    Variable(name="TF_VAR_given", value=f"with {SECRET}", secret=True),
)


@pytest.fixture(name="tracked", scope="module")
def _tracked(line, site):
    """A tracked run of real Terraform, planned in one container, applied in another."""
    settings = MountedFile(
        path="my.terraformrc", content=b"disable_checkpoint = true\n"
    )
    job = a_run_of(
        line,
        site,
        RunType.TRACKED,
        PLANNING,
        {"main.tf": TERRAFORM},
        hooks=HOOKS,
        environment=VARIABLES,
        mounted_files=(settings,),
        vendor=Vendor(vendor="terraform", typed_config={"workspace": "mine"}),
    )
    planned = line.run(job, **HAND_OVER)
    return planned, line.apply_of(planned)


def test_tracked_run(tracked):
    """[capability 109] [capability 150] [capability 154] Terraform plans, and applies it elsewhere."""
    planned, applied = tracked
    assert (Verdict.HANDED_OVER, "", "") == ending(planned), text(planned)
    assert FINE == ending(applied), text(applied)
    assert "2 added, 0 changed" in part(applied, RunState.APPLYING)
    assert [RunState.INITIALIZING, RunState.PLANNING] == [
        state for state, *_ in planned.entered
    ]
    assert [RunState.APPLYING] == [state for state, *_ in applied.entered]


def test_tracked_run_hooks(tracked):
    """[capability 168] [capability 169] Hooks run around their phases, in one session."""
    planned, applied = tracked
    init = part(planned, RunState.INITIALIZING)
    assert init.startswith("before init\n")
    assert init.endswith("after init\n")
    assert part(planned, RunState.PLANNING).startswith("init said: it is\nkept\n")
    assert "after apply\nover: FINISHED\n" in part(applied, RunState.APPLYING)


def test_tracked_run_exports(tracked):
    """[capability 177] Exports survive phases and the pause; what is given is given anew."""
    _, applied = tracked
    kept = "kept: it is\nkept/1/changed/*****/w\n"
    assert part(applied, RunState.APPLYING).startswith(kept)


def test_tracked_run_after_run(tracked):
    """[capability 173] [capability 174] after_run runs at the end, not at the pause."""
    planned, applied = tracked
    assert "over:" not in text(planned)
    assert 1 == text(applied).count("over: FINISHED")


def test_tracked_run_changes(tracked):
    """[capability 155] [capability 166] What the plan changes is counted from its file."""
    planned, _ = tracked
    assert [
        ("added", "terraform_data.one", "terraform_data"),
        ("added", "terraform_data.two", "terraform_data"),
    ] == [(each.action, each.address, each.type) for each in planned.plan.changes]


def test_tracked_run_custom_inputs(tracked):
    """[capability 155] Files for the plan's policies are collected, masked, links left out."""
    planned, _ = tracked
    assert {"risk": {"score": [1, {"who": "*****"}]}} == planned.plan.custom
    assert "A file is left out: its name has odd characters.\n" in text(planned)


def test_tracked_run_outputs(tracked):
    """[capability 155] Outputs are reported, and sensitive ones by their names only."""
    _, applied = tracked
    found = {each.name: each for each in applied.outputs.outputs}
    assert {
        "plain": StackOutput(name="plain", value='{"list":[1,"two"]}'),
        "given": StackOutput(name="given", sensitive=True),
        "hidden": StackOutput(name="hidden", sensitive=True),
    } == found
    assert SECRET not in repr(msgspec.json.encode(applied.outputs))


def test_tracked_run_workspace(tracked):
    """[capability 153] A workspace that is not there is made, and selected."""
    planned, _ = tracked
    assert 'Created and switched to workspace "mine"!' in text(planned)


def test_sensitive_outputs_are_sent_where_the_owner_wants_it(line, site):
    """[capability 143] Only a launcher that is told so hands on sensitive values."""
    before = line.settings
    line.limited(sensitive_output_upload=True)
    job = a_run_of(
        line,
        site,
        RunType.TRACKED,
        PLANNING,
        {"main.tf": TERRAFORM},
        hooks=Hooks(before_init=("cat $TF_CLI_CONFIG_FILE; echo is $?",)),
        mounted_files=(
            MountedFile(path="a.terraformrc", content=b"# first"),
            MountedFile(path="x/b.terraformrc", content=b"# second"),
        ),
        environment=(Variable(name="SPACELIFT_DISABLE_STATE_LOCK", value="true"),),
    )
    record = line.run(job, **AUTODEPLOY)
    line.settings = before

    assert FINE == ending(record), text(record)
    assert '"a-sensitive-value"' in [each.value for each in record.outputs.outputs]
    # [capability 104]: their settings are merged.
    assert "# first\n# second" in text(record)


STATE = {
    "version": 4,
    "terraform_version": "1.5.0",
    "serial": 1,
    "lineage": "9b1f2d3e-0000-0000-0000-000000000000",
    "outputs": {},
    "resources": [
        {
            "mode": "managed",
            "type": "terraform_data",
            "name": name,
            "provider": 'provider["terraform.io/builtin/terraform"]',
            "instances": [
                {
                    "schema_version": 0,
                    "attributes": {
                        "id": f"id-{name}",
                        "input": None,
                        "output": None,
                        "triggers_replace": None,
                    },
                }
            ],
        }
        for name in ("old", "older")
    ],
}


def test_destroy_run(line, site):
    """[capability 76] [capability 150] A destroy run plans, is confirmed, and destroys."""
    job = a_run_of(
        line,
        site,
        RunType.DESTROY,
        PLANNING,
        {"main.tf": b"", "terraform.tfstate": json.dumps(STATE).encode()},
        hooks=HOOKS,
    )
    planned = line.run(job, **HAND_OVER)
    destroyed = line.apply_of(planned)

    assert [
        ("deleted", "terraform_data.old"),
        ("deleted", "terraform_data.older"),
    ] == [(each.action, each.address) for each in planned.plan.changes]
    assert FINE == ending(destroyed), text(destroyed)
    printed = part(destroyed, RunState.DESTROYING)
    assert printed.startswith("before destroy\n")
    assert "2 destroyed" in printed
    assert printed.endswith("after destroy\nover: FINISHED\n")


def test_targeted_replan(line, site):
    """[capability 87] Only the targets are planned, quotes in their addresses or not."""
    job = a_run_of(
        line,
        site,
        RunType.TRACKED,
        (Phase.INITIALIZE, Phase.PLAN),
        {
            "main.tf": b'resource "terraform_data" "each" {\n'
            b'  for_each = toset(["it\'s", "$(x)", "c"])\n}\n'
        },
        targets=('terraform_data.each["it\'s"]', 'terraform_data.each["$(x)"]'),
    )
    record = line.run(job, **HAND_OVER)
    assert (Verdict.HANDED_OVER, "", "") == ending(record), text(record)
    assert {'terraform_data.each["it\'s"]', 'terraform_data.each["$(x)"]'} == {
        each.address for each in record.plan.changes
    }


BREAKS = (
    TERRAFORM
    + b"""
resource "terraform_data" "breaks" {
  depends_on = [terraform_data.one]
  provisioner "local-exec" { command = "exit 3" }
}
"""
)


@pytest.mark.parametrize("skip", ["", "SPACELIFT_SKIP_DESTROYING"])
@pytest.mark.parametrize("tree", [TERRAFORM, BREAKS], ids=["good", "broken"])
def test_test_case(line, site, tree, skip):
    """[capability 75] [capability 94] A test destroys what it made, unless it is to be kept."""
    job = a_run_of(
        line,
        site,
        RunType.TESTING,
        TESTING,
        {"main.tf": tree},
        hooks=HOOKS,
        environment=(Variable(name=skip, value="true"),) if skip else (),
    )
    record = line.run(job, **AUTODEPLOY)
    states = [state for state, *_ in record.entered]
    assert [RunState.APPLYING, RunState.DESTROYING] == states[2:]
    printed = part(record, RunState.DESTROYING)
    if skip:
        assert "skipped, because SPACELIFT_SKIP_DESTROYING is set" in printed
        assert "before destroy" not in printed
    else:
        assert "2 destroyed" in printed or "3 destroyed" in printed, text(record)
    if tree is TERRAFORM:
        assert FINE == ending(record), text(record)
        assert "over: FINISHED" in printed
    else:
        failed = Verdict.FAILED, "phase_failed", "apply: exit code 1"
        assert failed == ending(record)
        assert "over: FAILED" in printed


@pytest.mark.parametrize("initialized", [True, False])
def test_task(line, site, initialized):
    """[capability 74] [capability 164] A task is one `sh -c`, with or without what comes before."""
    job = a_run_of(
        line,
        site,
        RunType.TASK,
        (Phase.INITIALIZE, Phase.PERFORM),
        {"main.tf": b""},
        hooks=HOOKS,
        skip_init=not initialized,
        command='echo "it\'s $0 in ${PWD##*/}"; test -e .terraform || echo bare # ok',
    )
    record = line.run(job)
    assert FINE == ending(record), text(record)
    printed = part(record, RunState.PERFORMING)
    assert "before perform\nit's sh in source\n" in printed
    assert printed.endswith("after perform\nover: FINISHED\n")
    assert initialized is ("before init" in text(record))
    assert [RunState.INITIALIZING] * initialized + [RunState.PERFORMING] == [
        state for state, *_ in record.entered
    ]


def test_skipped_apply(line, site):
    """[capability 94] An apply that is to be skipped runs nothing, and the run finishes."""
    job = a_run_of(
        line,
        site,
        RunType.TRACKED,
        PLANNING,
        {"main.tf": TERRAFORM},
        hooks=HOOKS,
        environment=(
            Variable(name="SPACELIFT_SKIP_APPLYING", value="true"),
            Variable(name="SPACELIFT_SKIP_PLANNING", value="true"),
        ),
    )
    record = line.run(job, **AUTODEPLOY)
    assert FINE == ending(record), text(record)
    assert (
        "This phase is skipped, because SPACELIFT_SKIP_APPLYING is set.\nover: FINISHED\n"
        == part(record, RunState.APPLYING)
    )
    assert "SPACELIFT_SKIP_PLANNING has no effect here" in text(record)


# --- a workflow of one's own: a real program in a real container, which notes its calls

RECORDER = b"""#!/bin/sh
printf '%s|' "$@" >>/mnt/workspace/called
echo >>/mnt/workspace/called
case $1 in
select) [ -e /mnt/workspace/selected ] || exit 1 ;;
state) cat state.json ;;
show) cat plan.json ;;
outputs) echo '{"o": {"value": 1}}' ;;
esac
"""
WORKFLOW = {
    "init": "./tool init",
    "workspaceSelect": "./tool select '{{ .WorkspaceName }}'",
    "workspaceNew": './tool new "{{ .WorkspaceName }}"',
    "plan": "./tool plan lock={{ .Lock }}{{ if not .Refresh }} cold{{ else }} warm"
    "{{ end }} {{ .PlanFileName }}{{ range .Targets }} 't={{ . }}'{{ end }}",
    "showState": "./tool state",
    "showPlan": "./tool show {{ .PlanFileName }}",
    "getOutputs": "./tool outputs",
    "apply": "./tool apply {{ .PlanFileName }}",
    "destroy": "./tool destroy",
}
ONE_CHANGE = {
    "format_version": "1.2",
    "resource_changes": [
        {"address": "a.b", "type": "a", "change": {"actions": ["create"]}}
    ],
}
HELD = {
    "format_version": "1.0",
    "values": {
        "root_module": {
            "resources": [{"address": "a.b", "type": "a", "mode": "managed"}],
            "child_modules": [
                {"resources": [{"address": "m.c", "type": "c", "mode": "managed"}]},
                {"resources": [{"address": "m.d", "type": "d", "mode": "data"}]},
            ],
        }
    },
}


def custom(workflow=None, **more):
    return {
        "tool": RECORDER,
        "plan.json": json.dumps(ONE_CHANGE).encode(),
        "state.json": json.dumps(HELD).encode(),
        ".spacelift/workflow.yml": json.dumps(
            WORKFLOW if workflow is None else workflow
        ).encode(),
        **more,
    }


def a_custom_run(line, site, kind, phases, tree=None, **changes):
    options = {"workflow_tool": "CUSTOM", "workspace": changes.pop("workspace", "")}
    hooks = changes.pop("hooks", Hooks(after_run=("cat /mnt/workspace/called",)))
    return a_run_of(
        line,
        site,
        kind,
        phases,
        tree or custom(),
        vendor=Vendor(vendor="terraform", typed_config=options),
        hooks=hooks,
        **changes,
    )


def calls(record):
    return [line for line in text(record).splitlines() if line.endswith("|")]


def test_custom_workflow(line, site):
    """[capability 152] [capability 156] All nine commands are called, fields filled in."""
    job = a_custom_run(
        line,
        site,
        RunType.TESTING,
        TESTING,
        workspace="mine",
        refresh_state=False,
        targets=('a.b["c"]', "m.d"),
        environment=(Variable(name="SPACELIFT_DISABLE_STATE_LOCK", value="true"),),
    )
    record = line.run(job, **AUTODEPLOY)
    assert FINE == ending(record), text(record)
    assert [
        "init|",
        "select|mine|",
        "new|mine|",
        "state|",
        'plan|lock=false|cold|spacelift.plan|t=a.b["c"]|t=m.d|',
        "show|spacelift.plan|",
        "apply|spacelift.plan|",
        "outputs|",
        "destroy|",
    ] == calls(record)
    assert (StackOutput(name="o", value="1"),) == record.outputs.outputs
    assert [("added", "a.b")] == [
        (each.action, each.address) for each in record.plan.changes
    ]


def test_custom_destroy_run(line, site):
    """[capability 76] A custom workflow destroys what its state holds, and is shown it first."""
    job = a_custom_run(line, site, RunType.DESTROY, PLANNING)
    planned = line.run(job, **HAND_OVER)
    destroyed = line.apply_of(planned)
    assert FINE == ending(destroyed), text(destroyed)
    assert [("deleted", "a.b"), ("deleted", "m.c")] == [
        (each.action, each.address) for each in planned.plan.changes
    ]
    assert ["init|", "state|", "destroy|"] == calls(destroyed)


def test_workflow_is_read_once(line, site):
    """[capability 152] What a hook makes of the file does not change a later phase."""
    hooks = Hooks(
        before_init=("echo 'plan: echo forged' >.spacelift/workflow.yml",),
        after_run=("cat /mnt/workspace/called",),
    )
    job = a_custom_run(line, site, RunType.PROPOSED, PLANNING, hooks=hooks)
    record = line.run(job)
    assert FINE == ending(record), text(record)
    assert "plan|lock=true|warm|spacelift.plan|" in calls(record)


BOMB = b"a: &a [x]\n" + b"".join(
    b"%c: &%c [*%c, *%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 110)
)


@pytest.mark.parametrize(
    ("content", "code", "sentence"),
    [
        (None, "workflow_missing", "needs a file .spacelift/workflow.yml"),
        (b"init: x", "workflow_invalid", "lacks workspaceSelect, workspaceNew, plan"),
        (
            json.dumps({**WORKFLOW, "apply": " ", "destroy": ""}).encode(),
            "workflow_invalid",
            "lacks apply, destroy",
        ),
        (
            json.dumps({**WORKFLOW, "apply": "{{ printf .PlanFileName }}"}).encode(),
            "workflow_invalid",
            "apply in .spacelift/workflow.yml uses 'printf'",
        ),
        (b"\x00\xff", "workflow_invalid", "is not YAML in UTF-8"),
        (BOMB, "workflow_invalid", "one mapping of commands"),
        (b"x" * 100_000, "workspace_unusable", "of at most 65536 bytes"),
    ],
    ids=["missing", "keys", "empty", "function", "binary", "bomb", "large"],
)
def test_workflow_that_cannot_be_used(quick, processes, content, code, sentence):
    """[capability 152] What is wrong with the file is named, and after_run still runs."""
    tree = custom()
    del tree[".spacelift/workflow.yml"]
    if content is not None:
        tree[".spacelift/workflow.yml"] = content
    hooks = Hooks(after_run=('echo "over: $TF_VAR_spacelift_final_run_state"',))
    job = a_custom_run(quick, processes, RunType.PROPOSED, PLANNING, tree, hooks=hooks)
    record = quick.run(job)
    assert (Verdict.FAILED, code) == ending(record)[:2], text(record)
    assert sentence in record.settlement.reason
    assert "over: FAILED\n" in text(record)
    assert [] == calls(record)


def test_mounted_workflow(line, site):
    """[capability 152] [capability 105] A mounted file takes the place of the repository's."""
    mounted = MountedFile(
        path="source/.spacelift/workflow.yml",
        content=json.dumps({**WORKFLOW, "init": "./tool mounted"}).encode(),
    )
    job = a_custom_run(line, site, RunType.PROPOSED, PLANNING, mounted_files=(mounted,))
    assert calls(line.run(job))[0] == "mounted|"


def test_all_commands_are_known():
    """The workflow of these tests has every command there is."""
    assert PARAMETERS.keys() == WORKFLOW.keys()


# --- Ansible

PLAYBOOK = b"""
- hosts: localhost
  gather_facts: false
  tasks:
    - name: write
      ansible.builtin.copy: {dest: "{{ playbook_dir }}/../made", content: "{{ who | default('x') }}"}
      tags: [good]
    - name: bad
      ansible.builtin.fail: {msg: no}
      tags: [bad]
    - name: of the role
      ansible.builtin.import_role: {name: acme}
      tags: [good]
"""


def test_ansible(line, site):
    """[capability 161] [capability 162] [capability 200] Galaxy, check mode, flags, and the pause."""
    job = a_run_of(
        line,
        site,
        RunType.TRACKED,
        PLANNING,
        {
            "playbook.yml": PLAYBOOK,
            "src/acme/meta/main.yml": b"galaxy_info: {author: a, description: d, license: l,"
            b" min_ansible_version: '2.9'}\ndependencies: []\n",
            "src/acme/tasks/main.yml": b"- ansible.builtin.debug: {msg: from the role}\n",
            "roles/requirements.yml": b"- {src: '/mnt/workspace/source/acme.tar.gz',"
            b" name: acme}\n",
        },
        vendor=Vendor(vendor="ansible"),
        hooks=Hooks(
            before_init=("tar -C src -czf acme.tar.gz acme",),
            before_apply=("test ! -e ~/.ansible/roles",),
            after_apply=("cat ../made; echo",),
        ),
        environment=(
            Variable(name="SPACELIFT_ANSIBLE_CLI_ARGS", value="--tags good"),
            Variable(name="SPACELIFT_ANSIBLE_CLI_ARGS_apply", value="-e who=[a-z]*"),
        ),
    )
    planned = line.run(job, **HAND_OVER)
    applied = line.apply_of(planned)
    assert (Verdict.HANDED_OVER, "", "") == ending(planned), text(planned)
    assert FINE == ending(applied), text(applied)
    assert ["localhost: write"] == [each.address for each in planned.plan.changes]
    assert "acme was installed successfully" in text(planned)
    assert "from the role" in text(applied)
    assert "[a-z]*\n" in text(applied)


def test_ansible_that_is_not_planned(line, site):
    """[capability 94] Without planning, a playbook waits for its confirmation unseen."""
    job = a_run_of(
        line,
        site,
        RunType.TRACKED,
        PLANNING,
        {"playbook.yml": b"- {hosts: localhost, gather_facts: false, tasks: []}\n"},
        vendor=Vendor(vendor="ansible"),
        hooks=Hooks(before_plan=("echo never",)),
        environment=(Variable(name="SPACELIFT_SKIP_PLANNING", value="true"),),
    )
    planned = line.run(job, **HAND_OVER)
    assert (Verdict.HANDED_OVER, "", "") == ending(planned), text(planned)
    assert planned.plan.has_changes
    assert "never" not in text(planned)
    assert "PLAY" not in text(planned)
    assert FINE == ending(line.apply_of(planned))


def test_ansible_destroy_run(line, site):
    """[capability 76] A playbook of its own destroys, where the stack names one."""
    job = a_run_of(
        line,
        site,
        RunType.DESTROY,
        PLANNING,
        {
            "gone.yml": b"- hosts: localhost\n  gather_facts: false\n  tasks:\n"
            b"    - {name: remove, ansible.builtin.file:"
            b" {path: playbook.yml, state: absent}}\n",
            "playbook.yml": PLAYBOOK,
        },
        vendor=Vendor(vendor="ansible", typed_config={"destroy_playbook": "gone.yml"}),
        hooks=Hooks(after_destroy=("ls",)),
    )
    planned = line.run(job, **HAND_OVER)
    destroyed = line.apply_of(planned)
    assert FINE == ending(destroyed), text(destroyed)
    assert ["localhost: remove"] == [each.address for each in planned.plan.changes]
    assert "playbook.yml" not in part(destroyed, RunState.DESTROYING).splitlines()


# --- hooks that mean no good

LINES = 1_000_000


def test_hooks_that_derail_nothing(line, site):
    """[capability 170] [capability 171] [capability 172] Each failure has the reason it has."""
    hooks = Hooks(
        before_init=("sleep 300 &", "set -e", f"seq {LINES}"),
        after_init=("cd /mnt/workspace/source", "sh -c 'exit 4'", "printf never"),
        before_plan=("printf never",),
        after_run=("printf over",),
    )
    job = a_custom_run(line, site, RunType.PROPOSED, PLANNING, hooks=hooks)
    record = line.run(job)
    reason = "initialize: after_init hook 2 of 3 failed with exit code 4"
    assert (Verdict.FAILED, "after_hook_failed", reason) == ending(record)
    log = text(record)
    assert f"\n{LINES}\n" in log
    assert "never" not in log
    assert "over" in log

    worse = Hooks(
        before_init=(
            "cd / && true() { false; } && echo() { exit 9; }",
            "printf 'no open quote' # '",
            "exit 0",
            "printf never",
        ),
        after_run=("printf over",),
    )
    job = a_custom_run(line, site, RunType.PROPOSED, PLANNING, hooks=worse)
    record = line.run(job)
    reason = "initialize: before_init hook 3 of 4 failed with exit code 1"
    assert (Verdict.FAILED, "before_hook_failed", reason) == ending(record)
    assert text(record).count("over") == 1
    assert "never" not in text(record)
    assert [] == calls(record)


def test_a_failing_phase_has_no_after_hooks(line, site):
    """[capability 172] A tool that fails skips its after-hooks, and is named as what failed."""
    tree = custom({**WORKFLOW, "init": "exit 6"})
    hooks = Hooks(before_init=("true",), after_init=("echo never",))
    job = a_custom_run(line, site, RunType.PROPOSED, PLANNING, tree, hooks=hooks)
    record = line.run(job)
    failed = Verdict.FAILED, "phase_failed", "initialize: exit code 6"
    assert failed == ending(record)
    assert "never" not in text(record)


CUSTOM_INPUTS = {
    "not JSON": ("echo '{' >a.custom.spacelift.json", "a.custom.spacelift.json is not"),
    "too deep": (
        "head -c 200000 /dev/zero | tr '\\0' '[' >a.custom.spacelift.json",
        "a.custom.spacelift.json is not JSON",
    ),
    "too large": (
        "head -c 2000000 /dev/zero | tr '\\0' '1' >a.custom.spacelift.json",
        "of at most 1048576 bytes",
    ),
    "too many": (
        "for n in $(seq 30); do echo 1 >a$n.custom.spacelift.json; done",
        "more than 20 files",
    ),
}


@pytest.mark.parametrize("case", CUSTOM_INPUTS)
def test_custom_inputs_that_cannot_be_used(quick, processes, case):
    """[capability 155] What a policy would have to do without fails the plan instead."""
    hook, sentence = CUSTOM_INPUTS[case]
    hooks = Hooks(after_plan=(hook,), after_run=("echo over",))
    job = a_custom_run(quick, processes, RunType.PROPOSED, PLANNING, hooks=hooks)
    record = quick.run(job)
    assert (Verdict.FAILED, sentence in record.settlement.reason) == (
        record.settlement.verdict,
        True,
    ), ending(record)
    assert record.plan is None
    assert "over" in text(record)


# --- what is refused before anything runs


@pytest.mark.parametrize(
    ("kind", "phases", "more", "sentence"),
    [
        (RunType.PROPOSED, (Phase.APPLY,), {}, "type PROPOSED cannot apply"),
        (RunType.TASK, (Phase.PERFORM,), {}, "the task has no command"),
        (RunType.TRACKED, (Phase.DESTROY,), {}, "type TRACKED cannot destroy"),
        (RunType.TRACKED, (Phase.PLAN, Phase.INITIALIZE), {}, "in an order"),
        (RunType.TRACKED, (), {}, "no phases"),
        (
            RunType.DESTROY,
            PLANNING,
            {"vendor": Vendor(vendor="ansible")},
            "option 'destroy_playbook'",
        ),
        (
            RunType.TRACKED,
            PLANNING,
            {"vendor": Vendor(vendor="ansible"), "targets": ("a.b",)},
            "a playbook has no targets",
        ),
        (
            RunType.TRACKED,
            PLANNING,
            {
                "vendor": Vendor(
                    vendor="terraform", typed_config={"workflow_tool": "CUSTOM"}
                ),
                "targets": ("a.b';touch /tmp/x;'",),
            },
            "cannot be told to a custom workflow",
        ),
        (RunType.TRACKED, PLANNING, {"targets": ("a\nb",)}, "is not the address"),
        (RunType.TRACKED, PLANNING, {"targets": ("a",) * 1001}, "at most 1000"),
        (
            RunType.TRACKED,
            PLANNING,
            {"vendor": Vendor(vendor="terraform", typed_config={"workflow_tool": "X"})},
            "workflow tool 'X' is unknown",
        ),
    ],
)
def test_jobs_that_make_no_sense(quick, processes, kind, phases, more, sentence):
    """[capability 72] [capability 73] A job that no run of its type has is refused."""
    record = quick.run(
        a_run_of(quick, processes, kind, phases, {"main.tf": b""}, **more)
    )
    assert (Verdict.FAILED, "invalid_job") == ending(record)[:2]
    assert sentence in record.settlement.reason
    assert [] == record.entered


PLUGIN = """
FROM {image}
USER root
RUN folder=/plugins/registry.example.com/acme/thing/1.0.0/linux_$(dpkg --print-architecture) \\
 && mkdir -p $folder && printf '#!/bin/sh\\n' >$folder/terraform-provider-thing_v1.0.0 \\
 && chmod 755 $folder/*
"""
REQUIRES = """terraform {
  required_providers {
    thing = { source = "registry.example.com/acme/thing" }
  }
}"""


def test_providers_of_the_image(site):
    """[capability 121] Providers below /plugins are found without asking any registry."""
    table = vendors.table(Vendor(vendor="terraform"), (Phase.INITIALIZE,))
    commands = " && ".join(
        [f"echo '{REQUIRES}' >main.tf", *table.commands[Phase.INITIALIZE]]
    )
    with built(site, PLUGIN) as image, site.sandbox(image=image) as sandbox:
        result, printed = run(sandbox, commands)
    assert result.ok, printed
    assert b"Installed registry.example.com/acme/thing v1.0.0" in printed
