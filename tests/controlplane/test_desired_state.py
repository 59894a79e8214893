"""The configuration file: taken as a whole, or refused with line numbers."""

import re

import pytest
import yaml

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.site import ENVIRON, Repository, configuration, stack
from launcher.controlplane import stack_spec
from launcher.controlplane.desired_state import load, parse
from launcher.errors import ConfigurationError
from launcher.wire.jobs import (
    Hooks,
    MountedFile,
    RegistryLogin,
    Scope,
    Source,
    Variable,
)


COMPLETE = """\
account: acme
api_keys:
  - {id: ci, secret_env: CI_SECRET}
  - {id: file, secret_file: ./secret}
worker_pools:
  - {name: default, labels: [demo]}
contexts:
  - name: proxy
    labels: ["autoattach:needs-proxy"]
    environment: [{name: HTTPS_PROXY, value: "http://proxy:3128"}]
    mounted_files: [{path: tmp/ca.pem, file: ./ca.pem, secret: false}]
    hooks: {before_init: ["echo hello"]}
stacks:
  - slug: testing-spacelift
    name: Testing Spacelift
    repository: acme/testing-spacelift
    source: {git: "file:///srv/repos/testing-spacelift.git"}
    branch: main
    project_root: "infra/prod/"
    vendor: terraform
    vendor_config: {workspace: default, options: {deep: [1, true, null]}}
    worker_pool: default
    runner_image: ""
    autodeploy: false
    labels: [needs-proxy]
    contexts: []
    environment:
      - {name: TOKEN, secret_env: STACK_SECRET}
      - {name: ro_READER, value: r}
      - {name: wo_WRITER, value: w}
    hooks: {before_plan: [], after_plan: ["echo planned"]}
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with the files that the configuration names."""
    (tmp_path / "secret").write_text("from-a-file\n")
    (tmp_path / "ca.pem").write_text("certificate\n")
    return tmp_path


def complaints(text, folder, environ=ENVIRON):
    """What is wrong with *text*, one sentence each."""
    with pytest.raises(ConfigurationError) as raised:
        parse(text, folder, environ)
    return str(raised.value).splitlines()


def test_a_complete_file_is_understood(folder):
    """Everything the design shows arrives where it belongs."""
    state = parse(COMPLETE, folder, ENVIRON)
    (spec,) = state.stacks
    assert [key.secret for key in state.api_keys] == [
        ENVIRON["CI_SECRET"],
        "from-a-file",
    ]
    assert spec.project_root == "infra/prod"
    assert spec.vendor_config["options"] == {"deep": [1, True, None]}
    assert spec.own.environment == (
        Variable(name="TOKEN", value=ENVIRON["STACK_SECRET"], secret=True),
        Variable(name="READER", value="r", scope=Scope.READ),
        Variable(name="WRITER", value="w", scope=Scope.WRITE),
    )
    (context,) = spec.contexts
    assert context.auto
    assert context.bundle.mounted_files == (
        MountedFile(path="tmp/ca.pem", content=b"certificate\n"),
    )
    assert stack_spec.hooks(spec) == Hooks(
        before_init=("echo hello",), after_plan=("echo planned",)
    )


PRIVATE = COMPLETE.replace(
    'source: {git: "file:///srv/repos/testing-spacelift.git"}',
    """source:
      git: ssh://git@git.example.com/acme/infra.git
      checkout: true
      git_sparse_checkout_paths: [infra/prod/, modules]
      login: {username: ada, secret_env: STACK_SECRET}
      ssh_key: {secret_file: ./secret}
      known_hosts: ["git.example.com ssh-ed25519 AAAA"]""",
)


def test_how_a_private_repository_is_fetched(folder):
    """[capability 101] Everything that fetching needs is part of the stack's source."""
    [spec] = parse(PRIVATE, folder, ENVIRON).stacks

    assert Source(
        url="ssh://git@git.example.com/acme/infra.git",
        checkout=True,
        sparse_paths=("infra/prod", "modules"),
        username="ada",
        password=ENVIRON["STACK_SECRET"],
        ssh_key="from-a-file",
        known_hosts=("git.example.com ssh-ed25519 AAAA",),
    ) == stack_spec.source(spec)


def test_a_label_asks_for_a_checkout(folder):
    """[capability 99] ``feature:enable_git_checkout`` is the same as `checkout`."""
    text = COMPLETE.replace(
        "labels: [needs-proxy]", "labels: [feature:enable_git_checkout]"
    )
    [spec] = parse(text, folder, ENVIRON).stacks

    assert stack_spec.source(spec).checkout


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("infra/prod/", "../x", "git_sparse_checkout_paths: '../x' must be a relative"),
        ("ssh-ed25519 AAAA", "", "must be a line of known_hosts"),
        ("username: ada, ", "", "key 'username' is missing"),
        ("{secret_file: ./secret}", "{}", "exactly one of secret_env, secret_file"),
        ("checkout: true", "checkout: maybe", "checkout must be true or false"),
    ],
)
def test_mistakes_in_a_source(folder, before, after, complaint):
    """What cannot be right about a source is refused with its line."""
    assert before in PRIVATE
    [sentence] = complaints(PRIVATE.replace(before, after, 1), folder)

    assert complaint in sentence


def test_agent_pools_of_the_server(folder):
    """[capability 102] The server itself reaches VCS agent pools by endpoints of its own."""
    text = COMPLETE.replace("file:///srv/repos", "private://git-pool/acme") + (
        "vcs_agent_pools:\n  - {name: git-pool, base_endpoint: 'https://git.corp/'}\n"
    )

    desired = parse(text, folder, ENVIRON)

    assert {"git-pool": "https://git.corp"} == desired.vcs_agent_pools


def test_no_secret_is_ever_printed(folder):
    """The parsed state may end up in a log line; its secrets may not."""
    printed = repr(parse(COMPLETE, folder, ENVIRON))
    assert "hunter2" not in printed
    assert "from-a-file" not in printed


def test_the_same_file_gives_the_same_spec(folder):
    """An unchanged stack is recognised by its bytes."""
    first, again = (parse(COMPLETE, folder, ENVIRON).stacks[0] for _ in range(2))
    assert stack_spec.encoded(first) == stack_spec.encoded(again)
    assert stack_spec.decoded(stack_spec.encoded(first)) == first


def test_all_that_is_wrong_is_reported_at_once(folder):
    """One round of correction is enough, whatever the number of mistakes."""
    text = (
        "account: Acme Inc\n"
        "api_keys:\n"
        "  - {id: ci, secret_env: MISSING}\n"
        "  - {id: ci, secret_env: CI_SECRET, secret_file: x}\n"
        "worker_pools: [{name: default}, {name: default}]\n"
        "colour: blue\n"
        "stacks:\n"
        "  - slug: s\n"
        "    name: 7\n"
        "    repository: acme\n"
        "    source: {git: 'ext::sh -c evil'}\n"
        "    branch: --upload-pack=evil\n"
        "    worker_pool: gone\n"
        "    autodeploy: 'yes'\n"
        "    environment:\n"
        "      - {name: 1BAD, value: x}\n"
        "      - {name: wo_, value: x}\n"
        "      - {name: TWICE, value: x}\n"
        "      - {name: TWICE, value: y}\n"
        "    mounted_files:\n"
        "      - {path: /etc/passwd, content: x}\n"
        "      - {path: a/../../b, content: x}\n"
        "    hooks: {before_plna: []}\n"
        "    contexts: [{name: nobody}]\n"
    )
    found = complaints(text, folder)
    lines = [int(each.split()[1].rstrip(":")) for each in found]
    assert lines == sorted(lines)
    assert sorted(lines) == [
        1, 3, 4, 4, 5, 6, 9, 10, 11, 12, 13, 14, 16, 17, 19, 21, 22, 23, 24,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("account: acme", "account: acme\naccount: acme", "line 2: key 'account' is"),
        ("account: acme", "konto: acme", "line 1: unknown key 'konto'"),
        ("slug: testing-spacelift", "slog: x", "key 'slug' is missing"),
        ("autodeploy: false", "autodeploy: 0", "autodeploy must be true or false"),
        ("labels: [needs-proxy]", "labels: needs-proxy", "labels must be a list"),
        ("labels: [needs-proxy]", "labels: [1]", "put it in quotes"),
        ("vendor: terraform", "vendor: [terraform]", "vendor must be a string"),
        ("STACK_SECRET", "NOT_SET", "this environment variable is not set"),
        ("./secret", "./absent", "cannot read this file"),
        ("tmp/ca.pem", "../ca.pem", "must be a relative path"),
        ("tmp/ca.pem", "/ca.pem", "must be a relative path"),
        ("infra/prod/", "../prod", "must be a relative path"),
        ("infra/prod/", "/prod", "must be a relative path"),
        ("branch: main", "branch: a..b", "not the name of a branch"),
        ("branch: main", "branch: -x", "not the name of a branch"),
        ("file:///srv", "git://srv", "the URL must begin with"),
        ("file:///srv", "https://user:pw@srv", "credentials do not belong"),
        ("file:///srv", "file://host/srv", "not the URL of a repository"),
        ("file:///srv", "ssh://-oProxyCommand=x/srv", "not the URL of a repository"),
        ("value: r}", "value: 1}", "put it in quotes"),
        ("value: r}", "value: r, secret_env: CI_SECRET}", "exactly one of"),
        ("value: r}", "nothing: r}", "exactly one of"),
        ("file: ./ca.pem", "file: ./ca.pem, content: x", "exactly one of"),
        ("contexts: []", "contexts: [{name: proxy, priority: high}]", "whole number"),
        ("  - {id: ci, secret", "  - {secret", "key 'id' is missing"),
        ("account: acme", "account: [", "not YAML"),
        ("account: acme", "account: !!python/name:os.system x", "must be a string"),
    ],
)
def test_one_mistake_refuses_the_file(folder, before, after, complaint):
    """Each kind of mistake has a sentence with a line number."""
    assert before in COMPLETE
    found = complaints(COMPLETE.replace(before, after), folder)
    assert any(complaint in sentence for sentence in found), found
    assert all(sentence.startswith("line ") for sentence in found)


@pytest.mark.parametrize("text", ["", "[]", "x", "account: acme\nstacks: {}\n"])
def test_what_is_no_configuration_is_refused(folder, text):
    """A file of another shape is refused and not taken for an empty one."""
    assert complaints(text, folder)


def test_a_secret_file_counts_as_secret(folder):
    """What comes from a secret source is masked, and cannot be declared public."""
    mount = "{path: tmp/ca.pem, secret_file: ./secret}"
    changed = COMPLETE.replace(
        "{path: tmp/ca.pem, file: ./ca.pem, secret: false}", mount
    )
    (file,) = parse(changed, folder, ENVIRON).stacks[0].contexts[0].bundle.mounted_files
    assert file.secret
    public = changed.replace("./secret}]", "./secret, secret: false}]")
    assert "is secret" in complaints(public, folder)[0]


def test_a_mounted_file_is_bounded(folder):
    """Two mebibytes are the product's limit."""
    (folder / "ca.pem").write_bytes(b"x" * (2 * 1024 * 1024 + 1))
    assert "at most" in complaints(COMPLETE, folder)[0]


def test_a_missing_file_is_an_error_of_the_configuration(tmp_path):
    """The sentence names the file."""
    with pytest.raises(ConfigurationError, match="absent.yaml"):
        load(tmp_path / "absent.yaml", ENVIRON)


def bundle(name):
    return {
        "environment": [{"name": "WHO", "value": name}],
        "mounted_files": [{"path": "who", "content": name}],
        "hooks": {"before_init": [name], "after_run": [name]},
    }


@pytest.fixture
def documented(tmp_path):
    """The product's own example: a and b by label, c and d by name."""
    contexts = [
        {"name": "a", "labels": ["autoattach:x"], **bundle("a")},
        {"name": "b", "labels": ["autoattach:*"], **bundle("b")},
        {"name": "c", "labels": ["autoattach:x"], **bundle("c")},
        {"name": "d", **bundle("d")},
        {"name": "e", "labels": ["autoattach:y"], **bundle("e")},
    ]
    attached = [{"name": "d", "priority": 5}, {"name": "c", "priority": 0}]

    def spec(**changes):
        one = stack(Repository(tmp_path / "r"), labels=["x"], **changes)
        given = configuration([one], contexts=contexts)
        return parse(yaml.safe_dump(given), tmp_path, ENVIRON).stacks[0]

    return spec, attached


def test_hooks_run_in_the_documented_order(documented):
    """[capability 175] Contexts by priority, then by label backwards, then the stack; and back."""
    spec, attached = documented
    hooks = stack_spec.hooks(spec(contexts=attached, **bundle("stack")))
    assert hooks.before_init == ("c", "d", "b", "a", "stack")
    assert hooks.after_run == ("stack", "a", "b", "d", "c")


@pytest.mark.parametrize(
    ("changes", "winner"),
    [
        ({"contexts": True, **bundle("stack")}, "stack"),
        ({"contexts": True}, "c"),
        ({}, "a"),
    ],
)
def test_the_strongest_value_wins(documented, changes, winner):
    """[capability 137] The stack, then contexts by name, then contexts by label."""
    spec, attached = documented
    if "contexts" in changes:
        changes = {**changes, "contexts": attached}
    made = spec(**changes)
    assert stack_spec.environment(made, Scope.ALWAYS)[-1].value == winner
    (file,) = stack_spec.mounted_files(made)
    assert file.content == winner.encode()


def test_a_context_is_attached_once(documented):
    """[capability 138] Attached by name and by label counts as by name."""
    spec, attached = documented
    names = [(each.name, each.auto) for each in spec(contexts=attached).contexts]
    assert names == [("c", False), ("d", False), ("a", True), ("b", True)]


def test_a_weaker_writing_variable_does_not_beat_the_stack(tmp_path):
    """What is sent for the apply only is what the apply would see."""
    context = {
        "name": "c",
        "labels": ["autoattach:*"],
        "environment": [
            {"name": "wo_A", "value": "context"},
            {"name": "wo_B", "value": "context"},
        ],
    }
    one = stack(
        Repository(tmp_path / "r"), environment=[{"name": "A", "value": "stack"}]
    )
    given = configuration([one], contexts=[context])
    spec = parse(yaml.safe_dump(given), tmp_path, ENVIRON).stacks[0]
    assert [v.name for v in stack_spec.only_for_writing(spec)] == ["B"]


LOGINS = """\
    registry_logins:
      - {registry: ghcr.io/acme, username: anna, secret_env: STACK_SECRET}
      - {registry: "r.example.com:5000", username: ben, secret_file: ./secret}
"""


def test_logins_for_the_image(folder):
    """A stack may bring logins for its image; their passwords come from outside."""
    (spec,) = parse(COMPLETE + LOGINS, folder, ENVIRON).stacks

    assert (
        RegistryLogin(
            registry="ghcr.io/acme",
            username="anna",
            password=ENVIRON["STACK_SECRET"],
        ),
        RegistryLogin(
            registry="r.example.com:5000", username="ben", password="from-a-file"
        ),
    ) == spec.registry_logins
    assert "from-a-file" not in repr(spec)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("{registry: https://x.org, username: a, secret_env: CI_SECRET}", "a registry"),
        ("{registry: x.org, secret_env: CI_SECRET}", "'username' is missing"),
        ("{registry: x.org, username: a}", "exactly one of secret_env, secret_file"),
        ("{registry: x.org, username: a, value: b}", "value"),
    ],
)
def test_logins_that_are_wrong(folder, wrong, complaint):
    """A login that cannot be one is refused with its line; passwords are never inline."""
    text = f"{COMPLETE}    registry_logins: [{wrong}]\n"

    assert any(complaint in each for each in complaints(text, folder))


def test_roles_of_api_keys(folder):
    """A key without a role is an administrator's, as all were before there were roles."""
    text = COMPLETE.replace("{id: file,", "{id: file, role: reader,")
    keys = parse(text, folder, ENVIRON).api_keys
    assert [(key.id, key.role.value) for key in keys] == [
        ("ci", "admin"),
        ("file", "reader"),
    ]


@pytest.mark.parametrize("role", ["owner", "Reader", "''", "null", "7", "[admin]"])
def test_a_role_that_is_none(folder, role):
    """What is no role is refused with its line, and is not taken for the default."""
    text = COMPLETE.replace("{id: file,", f"{{id: file, role: {role},")
    [sentence] = complaints(text, folder)
    assert "line 4" in sentence
    assert "role" in sentence


SPARE = ["null", "7", "-1", "1e9", "true", "[]", "{}", "{a: 1}", "~", "'", "|", "*x", "&x a",
         "!!binary x", "!!set {}", "\t", "? [a]", "2001-01-01", "0x1F", '"\\0"', "<<: *x", "\u0085",
         "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]"]  # fmt: skip


@st.composite
def mistaken(draw):
    """A complete file with something in it replaced, doubled, moved or left out."""
    text = draw(st.sampled_from([COMPLETE, PRIVATE, COMPLETE + LOGINS]))
    for _ in range(draw(st.integers(1, 3))):
        lines = text.splitlines()
        place = draw(st.integers(0, len(lines) - 1))
        line = lines[place]
        match draw(
            st.sampled_from(["value", "drop", "twice", "indent", "cut", "junk"])
        ):
            case "value":
                lines[place] = (
                    f"{line.partition(':')[0]}: {draw(st.sampled_from(SPARE))}"
                )
            case "drop":
                del lines[place]
            case "twice":
                lines.insert(draw(st.integers(0, len(lines))), line)
            case "indent":
                lines[place] = " " * draw(st.integers(0, 8)) + line.lstrip()
            case "cut":
                lines[place] = line[: draw(st.integers(0, len(line)))]
            case "junk":
                at = draw(st.integers(0, len(line)))
                lines[place] = line[:at] + draw(st.text(max_size=4)) + line[at:]
        text = "\n".join(lines) + "\n"
        if len(lines) < 2:
            break
    return text


@settings(
    max_examples=400,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(mistaken())
def test_any_mistake_refuses_the_file_or_is_none(folder, text):
    """Whatever is in the file, it is understood whole, or refused with a line for each sentence."""
    try:
        parse(text, folder, ENVIRON)
    except ConfigurationError as exc:
        sentences = str(exc).splitlines()
        assert sentences
        last = text.count("\n") + 1
        for sentence in sentences:
            found = re.match("line ([0-9]+): .", sentence)
            assert found, sentence
            assert 1 <= int(found[1]) <= last
        assert "hunter2" not in str(exc)
