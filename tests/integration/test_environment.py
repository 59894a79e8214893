"""What a run finds in its container: variables, files, mounts, limits, and tokens."""

import base64
import contextlib
import gzip
import hashlib
import json

from dataclasses import replace

from given import A_KEY, a_run
from support.engines import DockerSite, ShellSite
from support.line import COMMIT, HAND_OVER, Line

import pytest

from launcher.images import Pattern
from launcher.journal import Journal
from launcher.model import Mount
from launcher.tarstream import Archive
from launcher.testing.control_plane import MemoryControlPlane, Trouble, anew
from launcher.wire.jobs import (
    LARGEST_FILE,
    LONGEST_VALUE,
    RUNTIME_CONFIG,
    Hooks,
    MountedFile,
    RunState,
    Scope,
    Tokens,
    Variable,
)
from launcher.wire.messages import Verdict


# Prints what it finds; of what would be masked, a hash.
DUMP = b"""
import base64, hashlib, json, os, sys

def hashed(content):
    return hashlib.sha256(content).hexdigest()

files = {}
for name in sys.argv[2:]:
    with open(name, "rb") as file:
        status = os.fstat(file.fileno())
        files[name] = [oct(status.st_mode & 0o777), status.st_uid, status.st_gid,
                       hashed(file.read())]
variables = {
    name: hashed(value.encode())
    if "TOKEN" in name or name in ("SECRET", "PASSWORD", "URL") else value
    for name, value in os.environ.items()
}
mounts = [line.split()[1] for line in open("/proc/self/mounts")]
found = {"variables": variables, "files": files, "cwd": os.getcwd(), "mounts": mounts}
print("SEEN", sys.argv[1], base64.b64encode(json.dumps(found).encode()).decode())
"""
OIDC = "/mnt/workspace/spacelift.oidc"
FILES = (
    OIDC,
    "/mnt/workspace/nested/deep/plain",
    "/mnt/workspace/secret",
    "/mnt/workspace/source/README",
)
TOKENS = Tokens(
    api="token-for-the-api",
    oidc="token-for-clouds",
    graphql_endpoint="https://spacelift.example.com/graphql",
    refresh_seconds=1,
)
ODD = {
    "NEWLINES": "one\ntwo\n\n",
    "QUOTES": 'it\'s "quoted" `x` $(y) \\ \\n !',
    "DOLLARS": "$HOME $$ $1 ${} ${1} $NEWLINES",
    "EMPTY": "",
    "UNICODE": "grüße 🚀",
    "HUGE": "x" * (LONGEST_VALUE - len("HUGE") - 2),
}
VARIABLES = (
    *(Variable(name=name, value=value) for name, value in ODD.items()),
    Variable(name="PASSWORD", value="p4ssw0rd-of-the-run", secret=True),
    Variable(
        name="URL", value="db://me:${PASSWORD}@${HOST}/${TF_VAR_spacelift_run_id}"
    ),
    Variable(name="HOST", value="${NAME}.${DOMAIN}"),
    Variable(name="NAME", value="db"),
    Variable(name="DOMAIN", value="${PASSED}.example"),
    Variable(name="LEFT", value="${HOME}-${LAUNCHERS_OWN}"),
    Variable(name="TF_VAR_spacelift_space_id", value="shadowed"),
    Variable(name="ROLE", value="reader", scope=Scope.READ),
    Variable(name="ROLE", value="writer", scope=Scope.WRITE),
    Variable(name="ONLY_READ", value="r", scope=Scope.READ),
    Variable(name="ONLY_WRITE", value="w", scope=Scope.WRITE),
    Variable(name="TF_PLUGIN_CACHE_DIR", value="/plugin-cache"),
)
PASSED = (
    Variable(name="PASSED", value="let-through"),
    Variable(name="SECRET", value="s3cret-of-the-machine", secret=True),
    Variable(name="PASSED_READ", value="pr", scope=Scope.READ),
    Variable(name="PASSED_WRITE", value="pw", scope=Scope.WRITE),
    Variable(name="NAME", value="weaker than the run's"),
)


def dump(label):
    return f"python3 /mnt/workspace/dump.py {label} {' '.join(FILES)}"


def seen(record):
    """What was found in each place, by its label."""
    lines = bytes(record.log).decode().splitlines()
    words = [line.split() for line in lines if line.startswith("SEEN ")]
    return {label: json.loads(base64.b64decode(found)) for _, label, found in words}


def hashed(text):
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def on(engine, folder, *, allowed="registry.example/*"):
    folder.mkdir(exist_ok=True)
    journal = Journal.opened(folder.with_suffix(".journal"), A_KEY)
    line = Line(
        journal=journal,
        plane=MemoryControlPlane(lease_seconds=90, renew_seconds=5),
        engine=engine,
        folder=folder,
    )
    images = replace(line.settings.images, allowed_images=(Pattern.parse(allowed),))
    line.settings = replace(line.settings, images=images)
    with contextlib.closing(journal):
        yield line


@pytest.fixture(name="observed", scope="module")
def _observed(tmp_path_factory):
    """What a plan and its apply find, each in a real container of its own."""
    folder = tmp_path_factory.mktemp("machine")
    for name in ("cache", "read", "write"):
        (folder / name).mkdir(mode=0o777)
        (folder / name).chmod(0o777)
        (folder / name / "here").write_text(name)
    (folder / "ca.pem").write_text("the machine's authorities\n")
    folder.chmod(0o755)
    with (
        contextlib.closing(DockerSite(worker_pids=300)) as site,
        on(
            site.engine, tmp_path_factory.mktemp("engine") / "files", allowed=site.image
        ) as line,
    ):
        container = replace(
            line.settings.container,
            passed_through=PASSED,
            mounts=(
                Mount(source=str(folder / "cache"), target="/plugin-cache"),
                Mount(
                    source=str(folder / "ca.pem"),
                    target="/etc/ssl/certs/ca-certificates.crt",
                ),
            ),
            read_mounts=(Mount(source=str(folder / "read"), target="/only-read"),),
            write_mounts=(Mount(source=str(folder / "write"), target="/only-write"),),
        )
        line.settings = replace(line.settings, container=container)
        files = (
            MountedFile(path="dump.py", content=DUMP),
            MountedFile(path="nested/deep/plain", content=b"plain \0\xff"),
            MountedFile(path="secret", content=b"secret file\n", secret=True),
            MountedFile(path="source/README", content=b"mounted"),
            MountedFile(path="big", content=bytes(LARGEST_FILE)),
        )
        changed = f'[ "$(cat {OIDC})" = "$before" ]'
        job = line.job(
            {"README": b"of the repository"},
            environment=VARIABLES,
            docker_image=site.image,
            mounted_files=files,
            tokens=TOKENS,
            hooks=Hooks(
                before_init=(dump("init"), "cat /plugin-cache/here"),
                before_plan=(dump("plan"), "echo planned >/plugin-cache/lock"),
                after_plan=(
                    "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max"
                    " 2>/dev/null; true",
                ),
                before_apply=(
                    dump("apply"),
                    "cat /plugin-cache/lock /etc/ssl/certs/ca-certificates.crt",
                    f"before=$(cat {OIDC})",
                    f"while {changed}; do sleep 0.1; done",
                    f"sha256sum {OIDC}",
                    f"cat {OIDC}",
                    'printf "%s" "$URL" | base64 -w0',
                ),
                after_run=(dump("after_run"),),
            ),
        )
        planning = line.run(job, **HAND_OVER)
        applying = line.apply_of(planning)
    assert Verdict.HANDED_OVER is planning.settlement.verdict, planning.log.decode()
    assert Verdict.FINISHED is applying.settlement.verdict, applying.log.decode()
    found = {**seen(planning), **seen(applying)}
    assert {"init", "plan", "apply", "after_run"} == found.keys()
    return found, planning, applying


STATES = {
    "init": "INITIALIZING",
    "plan": "PLANNING",
    "apply": "APPLYING",
    "after_run": "APPLYING",
}
REPORTED = {
    "account_name": "acme",
    "commit_branch": "main",
    "commit_sha": "7d629c6c3f3b6da07e28a87727f0586e577d98c1",
    "graphql_endpoint": "https://spacelift.example.com/graphql",
    "local_preview": "false",
    "project_root": "",
    "repository": "acme/testing-spacelift",
    "run_id": "01RUN",
    "run_trigger": "api::01KEY",
    "run_type": "TRACKED",
    "stack_branch": "main",
    "stack_id": "testing-spacelift",
    "stack_labels": "team:a,needs-proxy",
    "stack_labels_list": '["team:a", "needs-proxy"]',
    "workspace_root": "/mnt/workspace",
}


@pytest.mark.services
@pytest.mark.parametrize("phase", STATES)
def test_computed_variables(observed, phase):
    """[capability 128] Every documented value is there in every phase, with its state."""
    found = observed[0][phase]["variables"]
    prefix = "TF_VAR_spacelift_"
    computed = {
        name.removeprefix(prefix): value
        for name, value in found.items()
        if name.startswith(prefix)
    }
    final = {"final_run_state": "FINISHED"} if phase == "after_run" else {}
    assert (
        REPORTED | {"run_state": STATES[phase], "space_id": "shadowed"} | final
        == computed
    )


@pytest.mark.services
def test_shadowed_values(observed):
    """[capability 135] A variable of the run takes the place of a computed one."""
    for found in observed[0].values():
        assert "shadowed" == found["variables"]["TF_VAR_spacelift_space_id"]


@pytest.mark.services
@pytest.mark.parametrize("name", ODD)
def test_odd_values(observed, name):
    """[capability 132] Whatever a value holds, programs are given exactly that."""
    for phase in ("init", "plan", "apply"):
        assert ODD[name] == observed[0][phase]["variables"][name]


@pytest.mark.services
def test_scopes(observed):
    """[capability 133] ``ro_`` is for all phases but writing ones, ``wo_`` for these."""
    for phase, role in {"init": "reader", "plan": "reader", "apply": "writer"}.items():
        found = observed[0][phase]["variables"]
        reads = role == "reader"
        assert role == found["ROLE"]
        assert (reads, not reads) == ("ONLY_READ" in found, "ONLY_WRITE" in found)


@pytest.mark.services
def test_let_through(observed):
    """[capability 20] [capability 148] The machine's variables are there, by their prefixes, and weaker."""
    for phase in ("plan", "apply"):
        found = observed[0][phase]["variables"]
        assert ("let-through", "db") == (found["PASSED"], found["NAME"])
        assert (phase == "plan") == ("PASSED_READ" in found)
        assert (phase == "apply") == ("PASSED_WRITE" in found)
        assert hashed("s3cret-of-the-machine") == found["SECRET"]


@pytest.mark.services
def test_references(observed):
    """[capability 134] ``${NAME}`` stands for any variable of the run, and nothing else."""
    found, planning, _ = observed
    for phase in ("plan", "apply"):
        variables = found[phase]["variables"]
        assert "db.let-through.example" == variables["HOST"]
        expected = "db://me:p4ssw0rd-of-the-run@db.let-through.example/01RUN"
        assert hashed(expected) == variables["URL"]
        assert "${HOME}-${LAUNCHERS_OWN}" == variables["LEFT"]
    said = (
        "LEFT mentions ${LAUNCHERS_OWN}, which is no variable of this run:"
        " it is left as it is."
    )
    assert said in planning.log.decode()


@pytest.mark.services
def test_secret_values_are_masked(observed):
    """[capability 12] [capability 181] Also what has a secret put in, in any encoding."""
    _, planning, applying = observed
    for record in (planning, applying):
        for secret in (
            b"p4ssw0rd",
            b"s3cret-of",
            b"token-for",
            # The password in it would be hidden anyway, but not what is around it.
            base64.b64encode(b"db://me:")[:8],
        ):
            assert secret not in record.log


@pytest.mark.services
@pytest.mark.parametrize("phase", ["init", "plan", "apply"])
def test_tokens(observed, phase):
    """[capability 129] [capability 130] Both tokens are there, and one of them in a file."""
    found = observed[0][phase]
    variables, (mode, user, group, content) = found["variables"], found["files"][OIDC]
    clouds, api = (
        [hashed(token), *(hashed(anew(token, n)) for n in range(1, 100))]
        for token in (TOKENS.oidc, TOKENS.api)
    )
    assert ("0o600", 1983, 1983) == (mode, user, group)
    assert content in clouds
    assert variables["SPACELIFT_OIDC_TOKEN"] in clouds
    assert variables["SPACELIFT_API_TOKEN"] in api


@pytest.mark.services
def test_a_long_apply_finds_fresh_tokens(observed):
    """[capability 130] The file changes while a phase is running, masked from the start."""
    _, _, applying = observed
    (line,) = [
        line.split()[0]
        for line in applying.log.decode().splitlines()
        if line.endswith(OIDC) and "sha256" not in line
    ]
    later = [anew(TOKENS.oidc, n) for n in range(1, applying.issued + 1)]
    assert line in [hashed(token) for token in later]
    for token in later:
        assert token.encode() not in applying.log


@pytest.mark.services
@pytest.mark.parametrize(
    ("path", "mode", "content"),
    [
        ("nested/deep/plain", "0o644", b"plain \0\xff"),
        ("secret", "0o600", b"secret file\n"),
        ("source/README", "0o644", b"mounted"),
    ],
)
def test_mounted_files(observed, path, mode, content):
    """[capability 105] [capability 136] Files win over the repository's, and stay private."""
    expected = [mode, 1983, 1983, hashlib.sha256(content).hexdigest()]
    for phase in ("init", "plan", "apply"):
        assert expected == observed[0][phase]["files"][f"/mnt/workspace/{path}"]


@pytest.mark.services
def test_where_a_run_is(observed):
    """[capability 119] [capability 149] The workspace is where the product has it."""
    for found in observed[0].values():
        assert "/mnt/workspace/source" == found["cwd"]
        assert "/mnt/workspace" in found["mounts"]


@pytest.mark.services
def test_mounts(observed):
    """[capability 124] A tracked plan reads, its apply writes, and mounts are for either."""
    assert {"/plugin-cache", "/only-read"} <= set(observed[0]["plan"]["mounts"])
    assert {"/plugin-cache", "/only-write"} <= set(observed[0]["apply"]["mounts"])
    assert "/only-write" not in observed[0]["plan"]["mounts"]
    assert "/only-read" not in observed[0]["apply"]["mounts"]


@pytest.mark.services
def test_a_cache_for_providers(observed):
    """[capability 127] What a plan leaves in a mounted cache, the apply finds there."""
    _, planning, applying = observed
    assert b"\ncache" in planning.section(RunState.INITIALIZING)
    assert b"\nplanned\n" in applying.section(RunState.APPLYING)
    for found in observed[0].values():
        assert "/plugin-cache" == found["variables"]["TF_PLUGIN_CACHE_DIR"]


@pytest.mark.services
def test_certificate_authorities(observed):
    """[capability 126] The machine's bundle takes the place of the image's."""
    assert b"the machine's authorities\n" in observed[2].section(RunState.APPLYING)


@pytest.mark.services
def test_processes_are_limited(observed):
    """A container has as many processes as the setting says."""
    assert b"\n300\n" in observed[1].section(RunState.PLANNING)


# --- what is refused, and what goes wrong; plain processes will do


@pytest.fixture(name="line")
def _line(tmp_path):
    with on(ShellSite(tmp_path / "engine").engine, tmp_path / "engine") as line:
        yield line


def reason(record):
    return record.settlement.verdict, record.settlement.reason


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            [("A", "${B}"), ("B", "x${C}"), ("C", "${A}")],
            "variables refer to each other in a circle: A → B → C → A",
        ),
        (
            [("PATH", "/opt/bin:${PATH}")],
            "variables refer to each other in a circle: PATH → PATH",
        ),
        (
            [("A", "${B}" * 4), ("B", "x" * (40 << 10))],
            "variable A has more than 128 KiB: no program can be given as much",
        ),
        (
            [("A", "x" * LONGEST_VALUE)],
            "variable A has more than 128 KiB: no program can be given as much",
        ),
        (
            [(f"B{n}", f"${{B{n + 1}}}${{B{n + 1}}}") for n in range(30)]
            + [("B30", "x" * 100)],
            "variable B19 has more than 128 KiB: no program can be given as much",
        ),
        (
            [(f"D{n}", f"${{D{n + 1}}}") for n in range(200)] + [("D200", "x")],
            "variable D33 is referred to through too many others",
        ),
        ([("A", "x\0y")], "the value of variable A contains a NUL byte"),
        ([("A B", "x")], "'A B' cannot be the name of a variable"),
    ],
)
def test_variables_that_cannot_be_made(line, variables, sentence):
    """[capability 134] What has no meaning, or does not end, fails the run with a sentence."""
    given = tuple(Variable(name=name, value=value) for name, value in variables)
    record = line.run(line.job(environment=given))
    assert (Verdict.FAILED, sentence) == reason(record)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (
            MountedFile(path="x", content=bytes(LARGEST_FILE + 1)),
            "mounted file 'x' has more than 2 MiB",
        ),
        (
            MountedFile(path="../x", content=b""),
            "path '../x' leaves the workspace",
        ),
        (
            MountedFile(path="/etc/x", content=b""),
            "path '/etc/x' leaves the workspace",
        ),
        (
            MountedFile(path="a/../../x", content=b""),
            "path 'a/../../x' leaves the workspace",
        ),
        (
            MountedFile(path="x/", content=b""),
            "path 'x/' of a mounted file is not that of a file",
        ),
    ],
)
def test_files_that_are_refused(line, file, sentence):
    """[capability 136] Files are small, and stay in the workspace, whoever sent them."""
    record = line.run(line.job(mounted_files=(file,)))
    assert (Verdict.FAILED, sentence) == reason(record)


CONFIG = b"version: 2\n"
THERE = hashlib.sha256(CONFIG).hexdigest()
OTHER = f"{RUNTIME_CONFIG} of the commit is not what this job was made from"


@pytest.mark.parametrize(
    ("files", "promised", "sentence"),
    [
        pytest.param({RUNTIME_CONFIG: CONFIG}, THERE, "", id="as promised"),
        pytest.param({}, "", "", id="absent as promised"),
        pytest.param({f"infra/{RUNTIME_CONFIG}": CONFIG}, "", "", id="elsewhere"),
        pytest.param({RUNTIME_CONFIG: CONFIG}, None, "", id="nothing promised"),
        pytest.param({}, None, "", id="nothing promised, and nothing there"),
        pytest.param({RUNTIME_CONFIG: b"version: 1\n"}, THERE, OTHER, id="changed"),
        pytest.param({RUNTIME_CONFIG: CONFIG}, "", OTHER, id="concealed"),
        pytest.param({}, THERE, OTHER, id="made up"),
        pytest.param({f"infra/{RUNTIME_CONFIG}": CONFIG}, THERE, OTHER, id="moved"),
    ],
)
def test_the_repositorys_own_configuration(line, files, promised, sentence):
    """[capability 140] A job that was not made from its commit does not begin."""
    record = line.run(line.job(files, runtime_config_sha256=promised))
    if sentence:
        assert (Verdict.FAILED, sentence) == reason(record)
        assert "runtime_config_changed" == record.settlement.code
        assert [] == record.entered
    else:
        assert Verdict.FINISHED is record.settlement.verdict


def test_uploaded_code_may_have_another_configuration(line):
    """[capability 78] What somebody has changed on his machine is what he wants to try."""
    run = a_run(based_on_local_workspace=True)
    job = line.job({RUNTIME_CONFIG: CONFIG}, run=run, runtime_config_sha256="")
    # Somebody's folder, while no repository has anything to fetch.
    folder = Archive()
    for path, content in line.source.commits.pop(COMMIT).items():
        mode = 0o755 if content.startswith(b"#!") else 0o644
        folder.file(f"workspace/{path}", content, mode=mode)
    line.plane.uploads[run.id] = gzip.compress(b"".join(folder))
    record = line.run(job)
    assert Verdict.FINISHED is record.settlement.verdict


def test_notes_are_told(line):
    """What the control plane found odd is in the log, one line each, and bounded."""
    notes = (
        f"{RUNTIME_CONFIG}: line 1: unknown\nkey",
        *("x" * 10_000 for _ in range(99)),
    )
    record = line.run(line.job(notes=notes))
    said = bytes(record.log).decode().splitlines()
    assert f"{RUNTIME_CONFIG}: line 1: unknown key" in said
    assert 49 == said.count("x" * 500)


def test_without_tokens(line):
    """[capability 130] A control plane that issues none is asked for none."""
    record = line.run(
        line.job(hooks=Hooks(before_plan=("! ls ../spacelift.oidc 2>/dev/null",)))
    )
    assert Verdict.FINISHED is record.settlement.verdict
    assert 0 == record.issued


def test_an_outage_does_not_end_the_tokens(line):
    """[capability 130] A request for tokens that got lost is made again."""
    line.plane.trouble("tokens", Trouble.REQUEST_LOST, Trouble.ANSWER_LOST)
    waits = 'a=$(cat ../spacelift.oidc); while [ "$a" = "$(cat ../spacelift.oidc)" ]; do sleep 0.05; done'
    record = line.run(line.job(tokens=TOKENS, hooks=Hooks(before_plan=(waits,))))
    assert Verdict.FINISHED is record.settlement.verdict
    assert 2 <= record.issued


@pytest.mark.parametrize("seconds", [-1, -(1 << 40), 1 << 62])
def test_odd_times_to_refresh(line, seconds):
    """[capability 130] A control plane that names a senseless time does no harm by it."""
    tokens = Tokens(api="token-for-the-api", oidc="o-i-d-c", refresh_seconds=seconds)
    record = line.run(line.job(tokens=tokens, hooks=Hooks(before_plan=("sleep 0.3",))))
    assert Verdict.FINISHED is record.settlement.verdict
    assert record.issued < 2
