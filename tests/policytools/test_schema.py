import json

from pathlib import Path

import msgspec
import pytest

from hypothesis import given, settings, strategies as st

from launcher.policytools import schema, specimens
from launcher.policytools.schema import ENUMS, MEANING, paths
from launcher.wire.jobs import Job


PUBLISHED = Path(__file__).parents[2] / "docs" / "policy-input.schema.json"


def complaints(described, value, path="input"):
    """What in *value* is not as *described*: draft 7, as far as the schema uses it."""
    kinds = described.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and schema._kind(value) not in kinds:
        return [f"{path} is {schema._kind(value)}"]
    found = []
    if "enum" in described and value not in described["enum"]:
        found.append(f"{path} is {value!r}")
    if isinstance(value, dict):
        known = described.get("properties", {})
        more = described["additionalProperties"]
        found += [
            f"{path}.{name} is missing"
            for name in described.get("required", ())
            if name not in value
        ]
        for name, child in value.items():
            if name in known:
                found += complaints(known[name], child, f"{path}.{name}")
            elif more is False:
                found.append(f"{path}.{name} is unknown")
            elif isinstance(more, dict):
                found += complaints(more, child, f"{path}.{name}")
    if isinstance(value, list) and "items" in described:
        for entry in value:
            found += complaints(described["items"], entry, f"{path}[]")
    return found


def test_published():
    """
    The file in the documentation is what the code says: `policy schema` prints it.
    """
    assert schema.schema() == json.loads(PUBLISHED.read_text())


def test_every_key_is_described():
    """
    Each key says what it means, and no description is of a key that is gone.
    """
    assert set(paths(schema.schema())) | {""} == set(MEANING)
    assert all(len(text) > 10 for text in MEANING.values())
    assert set(ENUMS) <= {*MEANING, "phases[]"}


@pytest.mark.parametrize(
    "specimen", [specimens.full(), specimens.bare()], ids=["full", "bare"]
)
def test_specimens(specimen):
    """
    What it was made from fits.
    """
    assert [] == complaints(schema.schema(), specimen)


def test_what_does_not_fit():
    """
    The check that the other tests rely on finds what is wrong.
    """
    document = specimens.full()
    del document["phase"]
    document["run"]["type"] = "SURPRISE"
    document["run"]["extra"] = 1
    document["static_run_environment"]["before_init"] = [1]
    document["static_run_environment"]["environment_variables"]["A"] = 1

    assert {
        "input.phase is missing",
        "input.run.type is 'SURPRISE'",
        "input.run.extra is unknown",
        "input.static_run_environment.before_init[] is integer",
        "input.static_run_environment.environment_variables.A is integer",
    } == set(complaints(schema.schema(), document))


def jobs():
    """Any job that the wire's own types permit."""
    return st.builds(
        lambda changes: msgspec.structs.replace(specimens.FULL, **changes),
        st.fixed_dictionaries(
            {},
            optional={
                name: st.from_type(type(getattr(specimens.FULL, name)))
                if not isinstance(
                    getattr(specimens.FULL, name), (tuple, msgspec.Struct)
                )
                else st.sampled_from(
                    [getattr(specimens.FULL, name), getattr(specimens.BARE, name)]
                )
                for name in Job.__struct_fields__
                if name not in ("phases", "docker_image")
            },
        ),
    )


@settings(deadline=None, max_examples=50)
@given(jobs())
def test_any_job(job):
    """
    Whatever a job is made of, the input made of it fits the schema.
    """
    assert [] == complaints(schema.schema(), specimens.document_of(job))
