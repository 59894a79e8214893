import dataclasses
import enum
import json

from pathlib import Path

import msgspec
import pytest

from given import a_job, a_run
from launcher import environment
from launcher.model import Mount, ResolvedImage, ResolvedJob
from launcher.output.mask import MASK
from launcher.policy import Evaluation, Outcome
from launcher.policy_input import policy_input, sample
from launcher.wire.jobs import Hooks, Job, Phase, RegistryLogin, Scope
from launcher.wire.jobs import Tokens, Variable, Vendor


DOCUMENTED = json.loads(
    (Path(__file__).parent.parent / "data/documented_sample.json").read_text()
)
IMAGE = ResolvedImage(
    reference="registry.example/runner:1",
    digest=f"sha256:{'a' * 64}",
    runnable="registry.example/runner@sha256:…",
    local=False,
)
MOUNT = Mount(source="/opt/on-the-machine", target="/opt/in-there", read_only=True)


def document(
    job, phase=None, *, image=IMAGE, mounts=(MOUNT,), endpoint="e", version="v"
):
    phase = phase or job.phases[-1]
    made = policy_input(
        ResolvedJob(job=job, image=image),
        phase=phase,
        environment=environment.for_phase(phase, job, ()),
        mounts=mounts,
        endpoint=endpoint,
        worker_version=version,
    )
    return json.loads(msgspec.json.encode(made))


def flips(value):
    """Every way to change *value* in one place: (where, what it becomes)."""
    match value:
        case msgspec.Struct():
            for field in value.__struct_fields__:
                for where, changed in flips(getattr(value, field)):
                    yield (
                        f".{field}{where}",
                        msgspec.structs.replace(value, **{field: changed}),
                    )
        case bool():
            yield "", not value
        case enum.Enum():
            yield from (("", other) for other in type(value) if other is not value)
        case int():
            yield "", value + 1
        case str() | bytes():
            yield "", value + value[:1]
            yield " (empty)", value[:0]
        case dict():
            yield "{+}", {**value, "one-more": 1}
            for key, entry in value.items():
                rest = {other: value[other] for other in value if other != key}
                yield f"{{{key}}} gone", rest
                yield f"{{{key}}} renamed", {**rest, f"{key}x": entry}
                for where, changed in flips(entry):
                    yield f"{{{key}}}{where}", {**value, key: changed}
        case tuple() | list():
            kind = type(value)
            yield "[+]", kind([*value, value[0]])
            yield "[-]", kind(value[:-1])
            if value[0] != value[-1]:
                yield "[order]", kind(value[::-1])
            for place, entry in enumerate(value):
                for where, changed in flips(entry):
                    yield (
                        f"[{place}]{where}",
                        kind([*value[:place], changed, *value[place + 1 :]]),
                    )
        case _:
            raise AssertionError(f"no idea how to change {value!r}")


FULL = a_job(
    image_digest="sha256:" + "b" * 64,
    registry_logins=(
        RegistryLogin(registry="registry.example", username="anna", password="one"),
        RegistryLogin(registry="ghcr.io/acme", username="ben", password="two"),
    ),
    run=a_run(
        command="terraform state list",
        user_provided_metadata=("one", "two"),
        targets=("null_resource.a", "null_resource.b"),
    ),
    environment=(
        Variable(name="PLAIN", value="plain"),
        Variable(name="TOKEN", value="secret", secret=True),
        Variable(name="READ", value="read", scope=Scope.READ),
        Variable(name="WRITE", value="write", scope=Scope.WRITE, secret=True),
        Variable(name="PLAIN", value="wins"),
    ),
    tokens=Tokens(
        api="for-the-api",
        oidc="for-clouds",
        graphql_endpoint="https://spacelift.example/graphql",
        refresh_seconds=2400,
    ),
    runtime_config_sha256="c" * 64,
    notes=("one", "two"),
)
# An option that is off, and one that is not there, are the same to a vendor.
SAME = {".vendor.typed_config{use_terragrunt} gone"}
FLIPS = {where: job for where, job in flips(FULL) if where not in SAME}


@pytest.mark.parametrize("where", FLIPS)
def test_every_field_of_a_job_shows(where):
    """Whatever is changed in a job, the policy is asked something else."""
    phases = (Phase.PLAN, Phase.APPLY)
    for phase in phases:
        assert document(FULL, phase) != document(FLIPS[where], phase)


def test_the_flips_reach_every_field():
    """The test above leaves out no field of any part of a job."""

    def fields(kind, path=""):
        for field in msgspec.structs.fields(kind):
            inner = [
                part
                for part in (field.type, *getattr(field.type, "__args__", ()))
                if isinstance(part, type) and issubclass(part, msgspec.Struct)
            ]
            here = f"{path}.{field.name}"
            if not inner:
                yield here
            for part in inner:
                yield from fields(part, here)

    flipped = {where.replace("[0]", "").replace("[1]", "") for where in FLIPS}
    missing = {
        field
        for field in fields(Job)
        if not any(where.startswith(field) for where in flipped)
    }
    assert set() == missing
    assert len(list(fields(Job))) > 45


@pytest.mark.parametrize(
    "changes",
    [
        {"image": dataclasses.replace(IMAGE, digest=f"sha256:{'b' * 64}")},
        {"image": dataclasses.replace(IMAGE, reference="registry.example/runner:2")},
        {"mounts": ()},
        {"mounts": (dataclasses.replace(MOUNT, read_only=False),)},
        {"mounts": (dataclasses.replace(MOUNT, source="/"),)},
        {"mounts": (dataclasses.replace(MOUNT, target="/"),)},
        {"endpoint": "other"},
        {"version": "other"},
        {"phase": Phase.APPLY},
    ],
)
def test_everything_else_that_decides_shows_too(changes):
    """Image, mounts and what the worker is are part of the question."""
    assert document(FULL) != document(FULL, **changes)


def same_kind(documented, ours, path=""):
    """Every documented key is there, with a value of the documented JSON type."""
    if isinstance(documented, dict):
        assert isinstance(ours, dict), path
        for key, value in documented.items():
            assert key in ours, f"{path}.{key} is missing"
            same_kind(value, ours[key], f"{path}.{key}")
    elif documented is None:  # a list without entries
        assert ours is None or isinstance(ours, list), path
    else:
        assert type(documented) is type(ours), path


@pytest.mark.parametrize(
    "job",
    [a_job(), a_job(hooks=Hooks(), vendor=Vendor(vendor="terraform"), environment=())],
)
def test_the_documented_keys_and_types_are_there(job):
    """A policy written for the documented input finds everything where it was."""
    same_kind(DOCUMENTED["sample"]["input"], document(job))


def test_empty_lists_are_null_where_the_documentation_has_null():
    """Hooks and labels that are not there are null, as documented."""
    stack = msgspec.structs.replace(a_job().stack, labels=())
    static = document(a_job(hooks=Hooks(), stack=stack))["static_run_environment"]
    assert [None] * 12 == [
        static[name] for name in (*Hooks.__struct_fields__, "stack_labels")
    ]


def test_all_hooks_are_shown():
    """All eleven lists of hooks are part of the question, in their order."""
    static = document(a_job())["static_run_environment"]
    assert 11 == len(Hooks.__struct_fields__)
    for name in Hooks.__struct_fields__:
        assert [f"echo {name}", "true"] == static[name]


def test_metadata_keeps_its_order():
    """One string for each interaction, the oldest first."""
    job = a_job(run=a_run(user_provided_metadata=("deploy", "confirm")))
    assert ["deploy", "confirm"] == document(job)["run"]["user_provided_metadata"]


def test_the_environment_is_that_of_the_phase():
    """What a phase will export is shown as that phase sees it."""
    plan, apply = (
        document(FULL, phase)["static_run_environment"]["environment_variables"]
        for phase in (Phase.PLAN, Phase.APPLY)
    )
    assert ("read", None, "wins") == (plan["READ"], plan.get("WRITE"), plan["PLAIN"])
    assert (None, "write", "wins") == (
        apply.get("READ"),
        apply["WRITE"],
        apply["PLAIN"],
    )
    assert "01RUN" == plan["TF_VAR_spacelift_run_id"]


# --- the sample


def evaluation(**changes):
    fields = {
        "outcome": Outcome.DENY,
        "deny": ("no",),
        "sample": True,
        "results": {"deny": ["no"], "sample": True},
        "error": "",
        "body": "package spacelift\nsample { true }\n",
    }
    return Evaluation(**(fields | changes))


def test_a_sample_has_the_documented_keys():
    """A sample has exactly the documented keys, with values of the documented types."""
    made = json.loads(json.dumps(sample(evaluation(), document(a_job()), ())))
    assert DOCUMENTED["sample"].keys() == made.keys()
    same_kind(DOCUMENTED["sample"], made)
    assert "deny" == made["outcome"]
    assert document(a_job()) == made["input"]


def test_a_sample_shows_the_question_as_it_was():
    """Without secrets, nothing of the question, the answer or the policy is changed."""
    asked = document(a_job(environment=(), mounted_files=()))
    made = sample(evaluation(), asked, ())
    assert asked == made["input"]
    assert {"deny": ["no"], "sample": True} == made["results"]
    assert "package spacelift\nsample { true }\n" == made["body"]


SECRETS = ("hunter2", "zwei\nZeilen", 'with "quotes"', "Schlüssel-ß", "back\\slash")


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_is_left_in_a_sample(secret):
    """Wherever a secret turns up, in whatever text around it, the sample masks it."""
    hostile = f"before {secret} after {secret}{secret}"
    job = a_job(
        run=msgspec.structs.replace(
            a_run(command=hostile, triggered_by=hostile),
            commit=msgspec.structs.replace(a_run().commit, message=hostile),
            changes=({"entity": [hostile, {"deep": (hostile,)}]},),
            user_provided_metadata=(hostile,),
        ),
        vendor=Vendor(vendor="terraform", typed_config={"option": [hostile]}),
        hooks=Hooks(before_init=(hostile,)),
        environment=(
            Variable(name="TOKEN", value=secret, secret=True),
            Variable(name="URL", value=hostile),
        ),
    )
    made = sample(
        evaluation(
            results={"deny": [hostile], "sample": True}, error=hostile, body=hostile
        ),
        document(job),
        environment.secrets(job, ()),
    )
    line = json.dumps(made, ensure_ascii=False)
    assert secret not in line
    assert json.dumps(secret)[1:-1] not in line
    assert json.dumps(secret, ensure_ascii=False)[1:-1] not in line
    assert line.count(MASK.decode()) > 20
    variables = made["input"]["static_run_environment"]["environment_variables"]
    assert "*****" == variables["TOKEN"]
    assert DOCUMENTED["sample"].keys() == made.keys()


def test_a_sample_keeps_its_keys_whatever_is_secret():
    """A secret that is also the name of a key changes no key."""
    secrets = [b"run", b"e", b"sample", b"deny"]
    made = json.loads(json.dumps(sample(evaluation(), document(a_job()), secrets)))
    same_kind(DOCUMENTED["sample"], made)
    assert "deny" == made["outcome"]


def test_values_of_all_json_types_survive():
    """Numbers, booleans, null and bytes of a question come out as JSON."""
    asked = {"n": 1, "f": 1.5, "t": True, "z": None, "b": b"\xff", "l": (1, ["x"])}
    made = json.loads(json.dumps(sample(evaluation(), asked, [b"x"])))
    assert {
        "n": 1,
        "f": 1.5,
        "t": True,
        "z": None,
        "b": "/w==",
        "l": [1, ["*****"]],
    } == made["input"]
