import msgspec
import pytest

from given import a_job, a_run
from launcher import environment
from launcher.wire.jobs import MountedFile, Phase, Scope, Variable, Source


ALWAYS = Variable(name="BOTH", value="both")
READ = Variable(name="READ", value="read", scope=Scope.READ)
WRITE = Variable(name="WRITE", value="write", scope=Scope.WRITE)


def given_for(phase, *mine, passed=()):
    return environment.for_phase(phase, a_job(environment=mine), passed)


@pytest.mark.parametrize("phase", [Phase.INITIALIZE, Phase.PLAN])
def test_reading_phases_do_not_know_what_is_for_writing(phase):
    """While a run reads, variables for writing are unset and those for reading there."""
    variables = given_for(phase, ALWAYS, READ, WRITE)
    assert ("WRITE",) == variables.unset
    assert "both" == variables.export["BOTH"]
    assert "read" == variables.export["READ"]
    assert "WRITE" not in variables.export


@pytest.mark.parametrize("phase", [Phase.APPLY, Phase.PERFORM, Phase.DESTROY])
def test_writing_phases_do_not_know_what_is_for_reading(phase):
    """While a run writes, variables for reading are unset and those for writing there."""
    variables = given_for(phase, ALWAYS, READ, WRITE)
    assert ("READ",) == variables.unset
    assert "write" == variables.export["WRITE"]
    assert "READ" not in variables.export


def test_one_name_may_have_a_value_for_each_kind():
    """A variable with a value for reading and one for writing is never unset."""
    read = Variable(name="TOKEN", value="r", scope=Scope.READ)
    write = Variable(name="TOKEN", value="w", scope=Scope.WRITE)
    for mine in ((read, write), (write, read)):
        assert "r" == given_for(Phase.PLAN, *mine).export["TOKEN"]
        assert "w" == given_for(Phase.APPLY, *mine).export["TOKEN"]
        assert () == given_for(Phase.PLAN, *mine).unset


def test_the_run_wins_over_the_worker_and_both_over_what_is_computed():
    """Of variables with one name, the most deliberate one counts."""
    name = "TF_VAR_spacelift_stack_id"
    computed = given_for(Phase.PLAN).export[name]
    passed = (Variable(name=name, value="worker"), Variable(name="A", value="worker"))
    mine = (Variable(name="A", value="early"), Variable(name="A", value="late"))
    variables = given_for(Phase.PLAN, *mine, passed=passed)
    assert "testing-spacelift" == computed
    assert "worker" == variables.export[name]
    assert "late" == variables.export["A"]


def test_computed_values_describe_the_run():
    """Every documented value is there."""
    computed = environment.computed(a_job(), Phase.PLAN)
    assert {
        "TF_VAR_spacelift_account_name": "acme",
        "TF_VAR_spacelift_commit_branch": "main",
        "TF_VAR_spacelift_commit_sha": "7d629c6c3f3b6da07e28a87727f0586e577d98c1",
        "TF_VAR_spacelift_local_preview": "false",
        "TF_VAR_spacelift_project_root": "infra",
        "TF_VAR_spacelift_repository": "acme/testing-spacelift",
        "TF_VAR_spacelift_run_id": "01RUN",
        "TF_VAR_spacelift_run_state": "PLANNING",
        "TF_VAR_spacelift_run_trigger": "api::01KEY",
        "TF_VAR_spacelift_run_type": "TRACKED",
        "TF_VAR_spacelift_space_id": "production",
        "TF_VAR_spacelift_stack_branch": "main",
        "TF_VAR_spacelift_stack_id": "testing-spacelift",
        "TF_VAR_spacelift_stack_labels": "team:a,needs-proxy",
        "TF_VAR_spacelift_stack_labels_list": '["team:a", "needs-proxy"]',
        "TF_VAR_spacelift_workspace_root": "/mnt/workspace",
    } == computed


def test_labels_cannot_break_out_of_their_list():
    """A label with quotes or a template in it is an ordinary string of HCL."""
    labels = ('a"b', "back\\slash", "${path}", "%{if}", "ü")
    job = a_job(stack=msgspec.structs.replace(a_job().stack, labels=labels))
    assert (
        r'["a\"b", "back\\slash", "$${path}", "%%{if}", "ü"]'
        == environment.computed(job, Phase.PLAN)["TF_VAR_spacelift_stack_labels_list"]
    )


def test_every_secret_is_known():
    """Secret variables of both sources and secret files are masked, other ones are not."""
    job = a_job(
        source=Source(url="https://h/x", password="secret-h", ssh_key="secret\nkey\n"),
        run=a_run(),
        environment=(
            Variable(name="A", value="secret-a", secret=True),
            Variable(name="B", value="plain-b"),
            Variable(name="C", value="secret-c", secret=True, scope=Scope.WRITE),
            Variable(name="D", value="", secret=True),
            Variable(name="E", value="\n", secret=True),
        ),
        mounted_files=(
            MountedFile(path="x", content=b"-----BEGIN\nkey\n", secret=True),
            MountedFile(path="y", content=b"plain file"),
        ),
    )
    passed = (
        Variable(name="F", value="secret-f", secret=True),
        Variable(name="G", value="plain-g"),
    )
    expected = {b"secret-a", b"secret-c", b"-----BEGIN\nkey", b"secret-f"}
    expected |= {b"secret-h", b"secret\nkey"}
    assert expected == set(environment.secrets(job, passed))


def test_plain_variables_are_those_that_a_hook_may_change():
    """[capability 177] Secrets, computed values and variables of some phases are not."""
    given = (
        Variable(name="PLAIN", value="1"),
        Variable(name="SECRET", value="1", secret=True),
        Variable(name="WRITE", value="1", scope=Scope.WRITE),
        Variable(name="BOTH", value="1"),
        Variable(name="BOTH", value="2", secret=True),
        Variable(name="TF_VAR_spacelift_run_id", value="forged"),
    )
    passed = (Variable(name="OF_MACHINE", value="1"),)
    job = a_job(environment=given)
    assert {"PLAIN", "OF_MACHINE"} == environment.plain_names(job, passed)
