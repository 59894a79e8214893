"""What the repository says about its runs, resolved before anything of them runs."""

import pytest
import sqlalchemy as sa

from controlplane.site import Refused, Repository, configuration, eventually, stack
from launcher.controlplane.errors import RuntimeConfigInvalid
from launcher.controlplane.runtime_config import (
    LARGEST,
    applied,
    read,
    read_once,
    together,
)
from launcher.controlplane.stack_spec import (
    AttachedContext,
    Bundle,
    StackSpec,
    environment,
    hooks,
)
from launcher.controlplane.store import tables as t
from launcher.wire.jobs import RUNTIME_CONFIG, Hooks, Scope, Variable


SLUG = "testing-spacelift"
CONTEXT = AttachedContext(
    name="shared",
    bundle=Bundle(
        environment=(Variable(name="CONTEXT", value="context"),),
        hooks=Hooks(before_plan=("echo context",)),
    ),
)
# A stack that says nothing itself, and one that says everything.
SILENT = StackSpec(
    slug=SLUG,
    name="Testing Spacelift",
    account="acme",
    repository="acme/testing-spacelift",
    source_url="https://git.example/acme/testing-spacelift.git",
    branch="main",
    vendor="terraform",
    worker_pool="default",
    own=Bundle(),
    contexts=(CONTEXT,),
)
OUTSPOKEN = StackSpec(
    **{
        **{name: getattr(SILENT, name) for name in StackSpec.__struct_fields__},
        "runner_image": "image:stack",
        "project_root": "stack",
        "tool_version": "1.0.0",
        "own": Bundle(
            environment=(Variable(name="NAME", value="stack"),),
            hooks=Hooks(before_plan=("echo stack",), after_plan=("echo stack",)),
        ),
    }
)
DEFAULTS = """
stack_defaults:
  runner_image: image:defaults
  project_root: defaults
  terraform_version: 1.1.0
  before_plan: [echo defaults]
  environment: {NAME: defaults, CONTEXT: defaults}
"""
OWN = f"""
stacks:
  {SLUG}:
    runner_image: image:block
    project_root: block
    terraform_version: 1.2.0
    before_plan: [echo block]
    environment: {{NAME: block}}
"""


def made(spec, text, once=""):
    """What a run has, by the words the tests use: who decided about what."""
    config = read(text.encode(), SLUG)
    if once:
        config = together(read_once(once, SLUG), config)
    seen = applied(spec, config)
    variables = {v.name: v.value for v in environment(seen, *Scope)}
    return {
        "image": seen.runner_image.removeprefix("image:"),
        "root": seen.project_root,
        "version": seen.tool_version,
        "hooks": [line.removeprefix("echo ") for line in hooks(seen).before_plan],
        "NAME": variables.get("NAME"),
        "CONTEXT": variables["CONTEXT"],
    }


def everything_from(who, version, context="context"):
    return {
        "image": who,
        "root": who,
        "version": version,
        "hooks": ["context", who],
        "NAME": who,
        "CONTEXT": context,
    }


@pytest.mark.parametrize(
    ("spec", "text", "expected"),
    [
        pytest.param(OUTSPOKEN, "", everything_from("stack", "1.0.0"), id="no file"),
        pytest.param(
            OUTSPOKEN,
            f"version: 1\n{DEFAULTS}",
            # The stack does not say what CONTEXT is, a context does: weaker than that.
            everything_from("stack", "1.0.0", context="defaults"),
            id="1: the stack before the defaults",
        ),
        pytest.param(
            OUTSPOKEN,
            DEFAULTS,
            everything_from("stack", "1.0.0", context="defaults"),
            id="no version is version 1",
        ),
        pytest.param(
            SILENT,
            f"version: 1\n{DEFAULTS}",
            everything_from("defaults", "1.1.0", context="defaults"),
            id="1: the defaults where the stack says nothing",
        ),
        pytest.param(
            OUTSPOKEN,
            f'version: "2"\n{DEFAULTS}',
            everything_from("defaults", "1.1.0", context="defaults"),
            id="2: the defaults before the stack",
        ),
        pytest.param(
            OUTSPOKEN,
            f"version: 1\n{DEFAULTS}{OWN}",
            everything_from("block", "1.2.0"),
            id="1: the stack's block before everything",
        ),
        pytest.param(
            OUTSPOKEN,
            f"version: 2\n{DEFAULTS}{OWN}",
            everything_from("block", "1.2.0"),
            id="2: the stack's block before everything",
        ),
    ],
)
def test_precedence(spec, text, expected):
    """[capability 139] [capability 140] Who wins is what each version documents."""
    assert expected == made(spec, text)


def test_a_trigger_wins():
    """[capability 139] What a run was triggered with wins, key by key."""
    once = "environment: {NAME: once}\nbefore_plan: [echo once]\n"
    expected = everything_from("block", "1.2.0") | {
        "NAME": "once",
        "hooks": ["context", "once"],
    }
    assert expected == made(OUTSPOKEN, f"version: 2\n{OWN}", once)
    whole = f"stacks: {{{SLUG}: {{runner_image: image:once}}}}"
    assert "once" == made(OUTSPOKEN, f"version: 2\n{OWN}", whole)["image"]


def test_an_empty_list_takes_hooks_away():
    """[capability 176] A list takes the place of the stack's, not of a context's."""
    text = f"stacks: {{{SLUG}: {{before_plan: []}}}}"
    seen = hooks(applied(OUTSPOKEN, read(text.encode(), SLUG)))
    assert (("echo context",), ("echo stack",)) == (seen.before_plan, seen.after_plan)


def test_every_documented_key():
    """[capability 141] Each key of a block changes what it is for."""
    text = f"""
stacks:
  {SLUG}:
    before_init: [a]
    after_init: [b]
    before_plan: [c]
    after_plan: [d]
    before_apply: [e]
    after_apply: [f]
    before_perform: [g]
    after_perform: [h]
    before_destroy: [i]
    after_destroy: [j]
    after_run: [k]
    environment: {{PLAIN: text, ro_READ: 1.10, wo_WRITE: true, EMPTY: }}
    project_root: infra/prod/
    runner_image: image:1
    opentofu_version: 1.6.0
    terraform_version: 1.5.7
    terraform_workflow_tool: OPEN_TOFU
    git_sparse_checkout_paths: [infra, modules/a]
"""
    config = read(text.encode(), SLUG)
    seen = applied(SILENT, config)
    assert () == config.notes
    assert tuple("abcdefghijk") == tuple(
        getattr(seen.own.hooks, name)[0] for name in Hooks.__struct_fields__
    )
    assert (
        Variable(name="PLAIN", value="text"),
        Variable(name="READ", value="1.10", scope=Scope.READ),
        Variable(name="WRITE", value="true", scope=Scope.WRITE),
        Variable(name="EMPTY", value=""),
    ) == seen.own.environment
    assert ("infra/prod", "image:1") == (seen.project_root, seen.runner_image)
    assert ("opentofu", "1.6.0") == (seen.vendor, seen.tool_version)
    assert ("infra", "modules/a") == seen.source.sparse_paths


def test_the_workflow_tool():
    """[capability 141] A custom tool is an option; other vendors have none."""
    text = f"stacks: {{{SLUG}: {{terraform_workflow_tool: CUSTOM}}}}"
    seen = applied(OUTSPOKEN, read(text.encode(), SLUG))
    assert ("terraform", "1.0.0") == (seen.vendor, seen.tool_version)
    assert "CUSTOM" == seen.vendor_config["workflow_tool"]
    ansible = applied(
        StackSpec(
            **{
                **{name: getattr(SILENT, name) for name in StackSpec.__struct_fields__},
                "vendor": "ansible",
            }
        ),
        read(text.encode(), SLUG),
    )
    assert ("ansible", {}) == (ansible.vendor, ansible.vendor_config)


def test_anchors_and_merges():
    """[capability 140] What YAML offers for saying things once can be used."""
    text = f"""
stack_defaults: &shared
  environment: &variables {{A: one, B: two}}
  before_plan: &hooks [echo shared]
stacks:
  {SLUG}:
    <<: *shared
    after_plan: *hooks
    environment:
      <<: [*variables]
      B: three
"""
    seen = applied(SILENT, read(text.encode(), SLUG)).own
    assert {"A": "one", "B": "three"} == {v.name: v.value for v in seen.environment}
    assert ("echo shared",) == seen.hooks.before_plan == seen.hooks.after_plan


def test_unknown_keys_are_told():
    """[capability 140] What is not known is ignored, and said with its line."""
    text = f"colour: red\nstacks:\n  {SLUG}:\n    befor_plan: [x]\n  other: {{y: 1}}\n"
    assert (
        f"{RUNTIME_CONFIG}: line 1: unknown key 'colour' is ignored",
        f"{RUNTIME_CONFIG}: line 4: unknown key 'befor_plan' is ignored",
    ) == read(text.encode(), SLUG).notes


def test_modules_keys_are_no_strangers():
    """Keys that concern modules are known, though they do nothing for a stack."""
    text = "module_version: 1.0.0\ntest_defaults: {}\ntests: []\n"
    assert () == read(text.encode(), SLUG).notes


BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB.encode(), "its aliases stand for more than 20000 values"),
        (b"a: &a [*a]", "it is nested more than 20 deep"),
        (b"a: " + b"[" * 5000, "it is nested more than 20 deep"),
        (b"a: " + b"[" * 30 + b"]" * 30, "it is nested more than 20 deep"),
        (b"# " + b"x" * LARGEST, "it has more than 128 KiB"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"a: \x00", "it is not YAML"),
        (b"stacks: [", "line 1: not YAML: "),
        (b"a: 1\n---\nb: 2\n", "line 2: not YAML: "),
        (b"- a list", "line 1: it must be a mapping"),
        (b"version: 3", "line 1: version is 1 or 2"),
        (b"version: 1\nversion: 2", "line 2: key 'version' is there twice"),
        (b"? [a]\n: b", "line 1: a key of it must be a text"),
        (b"stack_defaults: [x]", "line 1: stack_defaults must be a mapping"),
        (b"stack_defaults:\n  before_plan: echo", "line 2: before_plan must be a list"),
        (
            b"stack_defaults:\n  before_plan: [[x]]",
            "line 2: an item of before_plan must be a text",
        ),
        (b'stack_defaults: {before_plan: ["\\0"]}', "must not hold a NUL character"),
        (b"stack_defaults: {environment: {1A: x}}", "'1A' is not the name of a"),
        (b"stack_defaults: {environment: {A: [x]}}", "line 1: A must be a text"),
        (b"stack_defaults: {project_root: ../x}", "line 1: project_root: '../x' must"),
        (b"stack_defaults: {runner_image: a b}", "runner_image: must not contain"),
        (
            b"stack_defaults: {terraform_workflow_tool: MAKE}",
            "terraform_workflow_tool is one of TERRAFORM_FOSS, OPEN_TOFU, CUSTOM",
        ),
    ],
)
def test_what_cannot_be_used(content, reason):
    """[capability 140] A hostile or broken file is refused with one sentence."""
    with pytest.raises(RuntimeConfigInvalid) as raised:
        read(content, SLUG)
    assert reason in str(raised.value)
    assert str(raised.value).startswith(f"{RUNTIME_CONFIG} cannot be used: ")
    assert "\n" not in str(raised.value)


# --- in a control plane


@pytest.fixture(name="origin")
def _origin(tmp_path):
    return Repository(tmp_path / "origin")


def configured(site, origin, **changes):
    pools = [{"name": site.pool}, {"name": "other"}]
    one = stack(origin, site.slug, worker_pool=site.pool, **changes)
    site.apply(configuration([one], worker_pools=pools))


def commit(origin, text):
    file = origin.path / RUNTIME_CONFIG
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return origin.commit()


def test_a_job_is_made_from_its_commit(site, api, worker, origin):
    """[capability 110] [capability 140] Image and hooks are known before admission."""
    origin.commit()
    configured(site, origin, runner_image="image:stack", hooks={"before_plan": ["x"]})
    run = api.trigger()
    plain = worker.take()
    assert ("image:stack", ["x"], "") == (
        plain.job["docker_image"],
        plain.job["hooks"]["before_plan"],
        plain.job["runtime_config_sha256"],
    )
    plain.settle("failed")
    text = (
        f"stacks: {{{site.slug}: {{runner_image: image:file, before_plan: [y],"
        " environment: {wo_KEY: k}, colour: red}}\n"
    )
    commit(origin, text)
    run = api.trigger()
    held = worker.take()
    assert "image:file" == held.job["docker_image"]
    assert ["y"] == held.job["hooks"]["before_plan"]
    assert 64 == len(held.job["runtime_config_sha256"])
    assert ["unknown key 'colour' is ignored"] == [
        note.rpartition(": ")[2] for note in held.job["notes"]
    ]
    assert "KEY" not in {v["name"] for v in held.job["environment"]}
    # What the branch says later changes nothing.
    commit(origin, f"stacks: {{{site.slug}: {{runner_image: image:later}}}}\n")
    held.handed_over()
    api.change("confirm", run)
    apply = worker.take()
    assert "image:file" == apply.job["docker_image"]
    assert "k" in [v["value"] for v in apply.job["environment"] if v["name"] == "KEY"]
    apply.applied()


@pytest.mark.parametrize("made_of", ["a bomb", "a link", "a folder", "too much"])
def test_a_run_fails_in_its_own_log(site, api, origin, made_of):
    """[capability 140] A file that cannot be used fails its run, with a sentence."""
    file = origin.path / RUNTIME_CONFIG
    file.parent.mkdir()
    match made_of:
        case "a bomb":
            file.write_text(BOMB)
        case "a link":
            file.symlink_to("../main.tf")
        case "a folder":
            file.mkdir()
            (file / "x").write_text("y")
        case "too much":
            file.write_bytes(b"#" * (LARGEST + 1))
    origin.commit()
    configured(site, origin)
    run = api.trigger()
    eventually(lambda: api.state(run) == "FAILED")
    note = api.history(run)[0]["note"]
    assert note.startswith(RUNTIME_CONFIG)
    assert f"{note}\n" == api.read_log(run, "FAILED")


def test_the_label_that_ignores_it(site, api, worker, origin):
    """[capability 140] With feature:ignore_runtime_config nobody looks at the file."""
    commit(origin, BOMB)
    configured(site, origin, labels=["feature:ignore_runtime_config"])
    api.trigger()
    assert worker.take().job["runtime_config_sha256"] is None


def test_a_trigger_with_a_configuration(site, api, worker, origin):
    """[capability 91] One run has settings of its own, and the next one has not."""
    commit(origin, f"stacks: {{{site.slug}: {{runner_image: image:file}}}}\n")
    configured(site, origin)
    document = (
        "mutation($stack:ID!$yaml:String)"
        "{runTrigger(stack: $stack, runtimeConfig: {yaml: $yaml}){id}}"
    )

    def trigger(text):
        return api(document, {"stack": site.slug, "yaml": text})

    trigger("runner_image: image:once\nfoo: 1\n")
    once = worker.take()
    assert "image:once" == once.job["docker_image"]
    assert ["runtime configuration: line 2: unknown key 'foo' is ignored"] == (
        once.job["notes"]
    )
    once.settle("failed")
    trigger("")
    later = worker.take()
    assert "image:file" == later.job["docker_image"]
    later.settle("failed")
    sentence = (
        "runtime configuration cannot be used: line 1: before_plan must be a list"
    )
    with pytest.raises(Refused, match=sentence):
        trigger("before_plan: x")


def test_what_a_run_was_made_from_is_forgotten(site, api, worker, origin):
    """Once it is over, nothing of it is kept, and before nothing of it can be read."""
    origin.commit()
    configured(site, origin)
    actor = site.plane.sign_in.actor(api.jwt)
    secret = "only-for-this-one"
    run = site.plane.runs.trigger(
        site.slug, actor, runtime_config=f"environment: {{KEY: {secret}}}"
    ).id
    held = worker.take()

    def stored():
        query = sa.select(t.runtime_configs).where(t.runtime_configs.c.run == run)
        with site.plane.store.read() as connection:
            return connection.execute(query).all()

    assert secret in [given["value"] for given in held.job["environment"]]
    (row,) = stored()
    assert secret.encode() not in row.sealed
    held.settle("failed")
    assert [] == stored()
