"""
The JSON Schema of a policy's input.

Keys and types are read off inputs that the launcher's own code has made; only
what they mean is written down here, and a test finds what is missing.  It is
draft 7, the newest that ``opa check --schema`` knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.policytools import specimens
from launcher.wire.jobs import Hooks, Phase, RunState, RunType, Scope


Schema = dict[str, Any]

_NANOSECONDS = "Nanoseconds since 1970."
_PHASES = {
    "init": Phase.INITIALIZE,
    "plan": Phase.PLAN,
    "apply": Phase.APPLY,
    "perform": Phase.PERFORM,
    "destroy": Phase.DESTROY,
}
_HOOKS = {
    f"static_run_environment.{name}": (
        f"Commands {name.split('_')[0]} the phase {_PHASES[name.split('_')[1]]}, in the"
        " order in which they run; null when there are none."
    )
    for name in Hooks.__struct_fields__
    if name != "after_run"
}

MEANING = _HOOKS | {
    "": "What an initialization policy is asked about: one phase of one job.",
    "docker_image": "The image as the stack names it; empty for the default.",
    "docker_image_digest": "The digest of what will run: sha256 and 64 digits.",
    "planned_image_digest": "What the plan of a confirmed run ran; else empty.",
    "docker_image_reference": "The image in full, with the default filled in.",
    "job_id": "This hand-over of the run; a run that is applied has two.",
    "phase": "What is about to happen: the last phase of the job, or the apply that"
    " an automatic deployment adds to it.",
    "phases": "All phases of the job, in order.",
    "run": "The run that the job is a part of.",
    "run.based_on_local_workspace": "True when the code was uploaded from somebody's"
    " machine, as in a local preview.",
    "run.changes": "What a plan found, once there is one: free in form.",
    "run.command": "What a task runs; empty for every other type.",
    "run.commit": "The version of the code.",
    "run.commit.author": "Who made the commit.",
    "run.commit.branch": "The branch it is on.",
    "run.commit.created_at": _NANOSECONDS,
    "run.commit.hash": "The full hash, which the launcher checks out.",
    "run.commit.message": "The message of the commit.",
    "run.created_at": _NANOSECONDS,
    "run.id": "The run's id, a ULID.",
    "run.state": "The state in which the job was handed over.",
    "run.targets": "Addresses to which a replan is limited; empty for everything.",
    "run.triggered_by": "Who or what began the run, such as `api::` and a key's id.",
    "run.type": "What kind of run it is.",
    "run.updated_at": _NANOSECONDS,
    "run.user_provided_metadata": "What people attached: one text for each interaction,"
    " the oldest first.",
    "static_run_environment": "What the run was configured with.",
    "static_run_environment.account_name": "The account of the stack.",
    "static_run_environment.after_run": "Commands at the end of every job, whatever"
    " came of it; null when there are none.",
    "static_run_environment.auto_deploy": "True when the stack applies unasked.",
    "static_run_environment.command": "The same as `run.command`.",
    "static_run_environment.commit_branch": "The same as `run.commit.branch`.",
    "static_run_environment.commit_sha": "The same as `run.commit.hash`.",
    "static_run_environment.endpoint_logs": "Where the log is sent.",
    "static_run_environment.endpoint_registry": "Always empty: kept for policies that"
    " were written for the product.",
    "static_run_environment.environment_variables": "Name and value of every variable"
    " that the phase will export, secret ones, too.",
    "static_run_environment.extra_mounts": "Directories of the machine that the"
    " container will see, by the launcher's own settings.",
    "static_run_environment.extra_mounts[].read_only": "True when it is not writable.",
    "static_run_environment.extra_mounts[].source": "The path on the machine.",
    "static_run_environment.extra_mounts[].target": "The path in the container.",
    "static_run_environment.local_preview_enabled": "True when the stack permits local"
    " previews.",
    "static_run_environment.mounted_files": "Files that are put into the workspace.",
    "static_run_environment.mounted_files[].path": "Relative to the workspace.",
    "static_run_environment.mounted_files[].secret": "True when the content is masked.",
    "static_run_environment.mounted_files[].sha256": "SHA-256 of the content, in"
    " hexadecimal.",
    "static_run_environment.notes": "What the run's owner will read in the log.",
    "static_run_environment.project_root": "The directory of the code in the"
    " repository; empty for its top.",
    "static_run_environment.refresh_state": "True when the plan looks at the real"
    " resources first.",
    "static_run_environment.registry_logins": "What the launcher, and never the run,"
    " tells registries for this job's image.",
    "static_run_environment.registry_logins[].password": "In full; masked in samples.",
    "static_run_environment.registry_logins[].registry": "The registry, perhaps with a"
    " path.",
    "static_run_environment.registry_logins[].username": "Who logs in.",
    "static_run_environment.repository_path": "Owner and name of the repository.",
    "static_run_environment.restores_workspace": "True when it starts from the"
    " workspace that an earlier job stored, as an apply does.",
    "static_run_environment.run_type": "The same as `run.type`.",
    "static_run_environment.run_ulid": "The same as `run.id`.",
    "static_run_environment.runtime_config_sha256": "SHA-256 of the commit's"
    " `.spacelift/config.yml`, which the launcher compares after the checkout; empty"
    " when there is none; null when nothing was read from the repository.",
    "static_run_environment.skip_init": "True when the tool is not initialized.",
    "static_run_environment.source": "How the code is fetched.",
    "static_run_environment.source.checkout": "True for a git checkout, with submodules"
    " and LFS files.",
    "static_run_environment.source.known_hosts": "Keys of hosts to believe, as OpenSSH"
    " writes them.",
    "static_run_environment.source.password": "In full; masked in samples.",
    "static_run_environment.source.sparse_paths": "The only paths to fetch; empty for"
    " all.",
    "static_run_environment.source.ssh_key": "In full; masked in samples.",
    "static_run_environment.source.username": "Who logs in with the password.",
    "static_run_environment.source_url": "Where the code is fetched from.",
    "static_run_environment.space": "The space of the stack.",
    "static_run_environment.stack_branch": "The branch that the stack tracks.",
    "static_run_environment.stack_labels": "Labels of the stack; null when there are"
    " none.",
    "static_run_environment.stack_name": "The stack's name, for people.",
    "static_run_environment.stack_slug": "The stack's id.",
    "static_run_environment.terraform_version": "Version of the tool; empty for what"
    " the image brings.",
    "static_run_environment.tokens": "What the run proves with who it is; later ones"
    " take their place in a long run, without being judged.",
    "static_run_environment.tokens.api": "For the GraphQL API; masked in samples.",
    "static_run_environment.tokens.graphql_endpoint": "URL of that API.",
    "static_run_environment.tokens.oidc": "For clouds; masked in samples.",
    "static_run_environment.tokens.refresh_seconds": "How long until later ones are"
    " asked for; 0 when there are none.",
    "static_run_environment.variables": "What the run brings along.",
    "static_run_environment.variables[].name": "Name of the variable.",
    "static_run_environment.variables[].scope": "In which phases it is there: all,"
    " reading ones, or writing ones.",
    "static_run_environment.variables[].secret": "True when the value is masked.",
    "static_run_environment.variables[].value": "Its value, also of a secret one.",
    "static_run_environment.vendor_specific_config": "The tool, and its options.",
    "static_run_environment.vendor_specific_config.typed_config": "Options: which ones"
    " depends on the tool.",
    "static_run_environment.vendor_specific_config.vendor": "The tool: `terraform`,"
    " `ansible`.",
    "worker_version": "Version of the launcher.",
}

ENUMS = {
    "phase": Phase,
    "phases[]": Phase,
    "run.state": RunState,
    "run.type": RunType,
    "static_run_environment.run_type": RunType,
    "static_run_environment.variables[].scope": Scope,
}

_FREE = frozenset(
    {
        "run.changes[]",
        "static_run_environment.vendor_specific_config.typed_config",
    }
)
_MAPS = frozenset({"static_run_environment.environment_variables"})


def schema() -> Schema:
    """Return the schema, keys in order."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Input of an initialization policy",
    } | _described("", [specimens.full(), specimens.bare()])


def _described(path: str, values: Iterable[Any]) -> Schema:
    found = list(values)
    kinds = sorted({_kind(value) for value in found})
    described: Schema = {"type": kinds[0] if len(kinds) == 1 else kinds}
    if path in MEANING:
        described = {"description": MEANING[path]} | described
    if path in ENUMS:
        described["enum"] = [str(member) for member in ENUMS[path]]
    objects = [value for value in found if isinstance(value, dict)]
    if objects:
        described |= _of_objects(path, objects)
    entries = [entry for value in found if isinstance(value, list) for entry in value]
    if entries:
        described["items"] = _described(f"{path}[]", entries)
    return described


def _of_objects(path: str, objects: list[dict[str, Any]]) -> Schema:
    if path in _FREE:
        return {"additionalProperties": True}
    if path in _MAPS:
        return {"additionalProperties": {"type": "string"}}
    names = sorted({name for each in objects for name in each})
    return {
        "additionalProperties": False,
        "required": [name for name in names if all(name in each for each in objects)],
        "properties": {
            name: _described(
                f"{path}.{name}".lstrip("."),
                [each[name] for each in objects if name in each],
            )
            for name in names
        },
    }


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def paths(described: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Every key below *described*, written like ``run.commit.hash``."""
    for name, child in described.get("properties", {}).items():
        below = f"{path}.{name}".lstrip(".")
        yield below
        yield from paths(child, below)
        if isinstance(child.get("items"), dict):
            yield from paths(child["items"], f"{below}[]")
