import json
import os
import subprocess

from pathlib import Path

import pytest

from launcher import vendors
from launcher.errors import JobInvalid
from launcher.vendors.table import PLAN_FILE
from launcher.wire.jobs import Phase, Vendor


# Written by Terraform 1.11; parts that are of no interest are left out.
PLANS = json.loads(
    (Path(__file__).parent.parent / "data/terraform_plans.json").read_text()
)


def table(vendor, **options):
    phases = (Phase.INITIALIZE, Phase.PLAN, Phase.APPLY)
    return vendors.table(Vendor(vendor=vendor, typed_config=options), phases)


def plan(name):
    return table("terraform").read_plan(json.dumps(PLANS[name]).encode())


@pytest.mark.parametrize("vendor", ["terraform", "opentofu", "ansible"])
def test_known_vendors_plan_and_apply(vendor):
    """Every vendor has commands for each phase of a tracked run."""
    commands = table(vendor).commands
    assert all(commands[each] for each in (Phase.INITIALIZE, Phase.PLAN, Phase.APPLY))
    assert PLAN_FILE in " ".join(commands[Phase.PLAN])


@pytest.mark.parametrize("vendor", ["", "pulumi", "Terraform", "terraform "])
def test_an_unknown_vendor_is_refused(vendor):
    """A vendor that this worker does not know is named, beside those it knows."""
    with pytest.raises(JobInvalid) as caught:
        table(vendor)
    assert repr(vendor) in str(caught.value)
    assert "ansible, opentofu, terraform" in str(caught.value)


def test_options_of_the_wrong_type_are_refused():
    """An option is not converted but refused, by name."""
    with pytest.raises(JobInvalid, match="'playbook' of vendor ansible is not a str"):
        table("ansible", playbook=["a.yml"])


def test_a_plan_lists_what_changes():
    """Each resource that is created, updated, deleted or replaced is one change."""
    assert [
        ("added", f"terraform_data.{name}") for name in ("a", "b", "c", "gone")
    ] == [(change.action, change.address) for change in plan("create").changes]
    assert [
        ("changed", "terraform_data.a", "terraform_data"),
        ("replaced", "terraform_data.b", "terraform_data"),
        ("deleted", "terraform_data.gone", "terraform_data"),
    ] == [(each.action, each.address, each.type) for each in plan("mixed").changes]
    assert plan("mixed").has_changes


def test_a_plan_without_changes_has_none():
    """A plan that would do nothing says so."""
    assert not plan("none").has_changes
    assert () == plan("none").changes


@pytest.mark.parametrize("name", ["moved", "import", "forget", "output"])
def test_what_only_changes_the_state_is_worth_an_apply(name):
    """Moves, imports, removals from the state and outputs are changes, too."""
    assert plan(name).has_changes
    assert () == plan(name).changes


@pytest.mark.parametrize("name", PLANS)
def test_terraform_agrees(name):
    """A plan has changes exactly when Terraform itself says that it can be applied."""
    assert PLANS[name]["applyable"] == plan(name).has_changes


def test_data_that_is_read_is_no_change():
    """A data source that is read during the apply changes nothing."""
    content = {
        "format_version": "1.2",
        "resource_changes": [
            {
                "address": "data.x.y",
                "type": "x",
                "change": {"actions": ["read"], "importing": None},
            }
        ],
    }
    found = table("terraform").read_plan(json.dumps(content).encode())
    assert not found.has_changes
    assert () == found.changes


@pytest.mark.parametrize("vendor", ["terraform", "opentofu", "ansible"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"not json",
        b'{"format_version": 1}',
        b'{"changed": null}',
        b'{"changed": [{"host": "h"}]}',
        b'{"format_version": "1.2", "resource_changes": [{}]}',
        b'{"format_version": "1.2", "resource_changes": [{"address": "a", "type": "t",'
        b' "change": {"actions": [["create"]]}}]}',
        b'{"format_version": "1.2", "output_changes": {"o": {}}}',
        b'{"format_version": "1.2", "resource_changes": ',
        b"\xff",
    ],
)
def test_what_is_no_plan_is_a_value_error(vendor, content):
    """A file that is not what it should be is never taken for a plan without changes."""
    with pytest.raises(ValueError):
        table(vendor).read_plan(content)


def test_a_check_lists_tasks():
    """Each task that would change a host is one change."""
    content = {
        "changed": [
            {"host": "web1", "task": "install", "module": "ansible.builtin.apt"},
            {"host": "web2", "task": "ü", "module": "copy"},
        ]
    }
    found = table("ansible").read_plan(json.dumps(content).encode())
    assert found.has_changes
    assert [
        ("changed", "web1: install", "ansible.builtin.apt"),
        ("changed", "web2: ü", "copy"),
    ] == [(each.action, each.address, each.type) for each in found.changes]
    assert not table("ansible").read_plan(b'{"changed": []}').has_changes


@pytest.mark.parametrize(
    "playbook", ["playbook.yml", "a b.yml", "$(touch pwned).yml", "it's"]
)
@pytest.mark.parametrize("plugins", [None, "/opt/plugins"])
def test_ansible_is_called_with_the_playbook_and_our_plugin(
    tmp_path, playbook, plugins
):
    """A playbook's name is never read by the shell, and plugins of the job stay."""
    tool = tmp_path / "bin/ansible-playbook"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\n"
        'printf \'%s\\n\' "$@" "$SPACELIFT_PLAN_FILE" "$ANSIBLE_CALLBACK_PLUGINS" >>called\n'
    )
    tool.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    environment = {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
    if plugins:
        environment["ANSIBLE_CALLBACK_PLUGINS"] = plugins
    [command] = table("ansible", playbook=playbook).commands[Phase.PLAN]
    subprocess.run(["sh", "-c", command], cwd=work, env=environment, check=True)
    ours = "/mnt/workspace/.spacelift/ansible"
    assert [
        "--check",
        "--diff",
        playbook,
        f"{work}/{PLAN_FILE}",
        f"{ours}:{plugins}" if plugins else ours,
    ] == (work / "called").read_text().splitlines()
    assert ["called"] == os.listdir(work)


def test_the_plugin_comes_along():
    """The callback that writes the plan of a playbook is put into the workspace."""
    files = table("ansible").files
    assert [".spacelift/ansible/spacelift_plan.py"] == list(files)
    compile(files[".spacelift/ansible/spacelift_plan.py"], "plugin", "exec")


@pytest.mark.parametrize("vendor", ["terraform", "opentofu", "ansible"])
def test_commands_are_shell(vendor):
    """All commands of all phases parse."""
    for commands in table(vendor).commands.values():
        for command in commands:
            subprocess.run(["sh", "-n", "-c", command], check=True)


@pytest.mark.parametrize("vendor", ["ansible", "opentofu", "terraform"])
def test_a_phase_without_commands_is_refused(vendor):
    """A phase for which there is nothing to run fails the job, instead of succeeding."""
    with pytest.raises(JobInvalid, match="the task has no command"):
        vendors.table(Vendor(vendor=vendor), (Phase.INITIALIZE, Phase.PERFORM))


def valued(**change):
    """What a plan with one change, of these values, tells."""
    resource = {
        "address": 'module.m.x.y["a.b"]',
        "type": "x",
        "name": "y",
        "provider_name": "registry.example/p",
        "change": {"actions": ["update"], **change},
    }
    content = {"format_version": "1.2", "resource_changes": [resource]}
    [found] = table("terraform").read_values(json.dumps(content).encode()).changes
    assert ("y", "registry.example/p") == (found.name, found.provider)
    return found.before, found.after


@pytest.mark.parametrize(
    ("value", "sensitive", "told"),
    [
        ({"a": "x", "n": 1}, {}, {"a": "x", "n": 1}),
        ({"a": "x", "n": 1}, False, {"a": "x", "n": 1}),
        ({"a": "x", "n": 1}, {"a": True}, {"a": "(sensitive)", "n": 1}),
        ({"a": "x", "n": 1}, {"n": True}, {"a": "x", "n": "(sensitive)"}),
        ({"a": {"b": ["x", "y"]}}, {"a": {"b": [False, True]}}, {"a": {"b": ["x", "(sensitive)"]}}),
        ({"a": ["x", "y"]}, {"a": [True]}, {"a": ["(sensitive)", "y"]}),
        ({"a": {"b": "x"}}, {"a": True}, {"a": "(sensitive)"}),
        ({"a": "x"}, True, "(sensitive)"),
        ({"a": "x"}, {"a": {"of": "another shape"}}, {"a": "(sensitive)"}),
        (["x"], {"a": True}, "(sensitive)"),
        (None, True, None),
    ],
)  # fmt: skip
def test_what_the_tool_calls_sensitive_is_not_read(value, sensitive, told):
    """Before and after a change, in any depth; where the shapes differ, all of it."""
    assert (told, None) == valued(before=value, before_sensitive=sensitive)
    assert (None, told) == valued(after=value, after_sensitive=sensitive)


@pytest.mark.parametrize("name", PLANS)
def test_values_change_nothing_about_the_plan(name):
    """With values or without, the same plan is understood in the same way."""
    content = json.dumps(PLANS[name]).encode()
    plain = table("terraform").read_plan(content)
    valued = table("terraform").read_values(content)
    key = lambda change: (change.action, change.address, change.type)  # noqa: E731
    assert plain.has_changes == valued.has_changes
    assert [*map(key, plain.changes)] == [*map(key, valued.changes)]
