"""
The variables a phase sees, and which of them are secret.

From weakest to strongest: what is computed from the run, what the machine's
owner lets through, what the run brings along.  Variables for reading phases
only, or for writing ones only, come and go with the phase.
"""

from __future__ import annotations

import json

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from launcher.credentials import Login
from launcher.model import WORKSPACE
from launcher.output.needles import too_short
from launcher.wire.jobs import Job, Phase, Scope, Variable


WRITING = frozenset({Phase.APPLY, Phase.PERFORM, Phase.DESTROY})


@dataclass(frozen=True, slots=True)
class PhaseEnvironment:
    export: Mapping[str, str]
    unset: tuple[str, ...]


def for_phase(
    phase: Phase, job: Job, passed_through: Iterable[Variable]
) -> PhaseEnvironment:
    """What *phase* exports, and what it must not know although others do."""
    given = [*passed_through, *job.environment]
    scope = Scope.WRITE if phase in WRITING else Scope.READ
    visible = {
        variable.name: variable.value
        for variable in given
        if variable.scope in (Scope.ALWAYS, scope)
    }
    hidden = {variable.name for variable in given} - visible.keys()
    return PhaseEnvironment(
        export={**computed(job), **visible}, unset=tuple(sorted(hidden))
    )


def plain_names(job: Job, passed_through: Iterable[Variable]) -> frozenset[str]:
    """Variables that phases may change for those after them: no secret among them."""
    given = [*passed_through, *job.environment]
    plain = {each.name for each in given}
    plain -= {each.name for each in given if each.secret or each.scope != Scope.ALWAYS}
    return frozenset(plain - computed(job).keys())


def secrets(job: Job, passed_through: Iterable[Variable]) -> tuple[bytes, ...]:
    """Every value that may not leave the process as it is."""
    values = [
        variable.value.encode()
        for variable in (*passed_through, *job.environment)
        if variable.secret
    ]
    values += [file.content for file in job.mounted_files if file.secret]
    values += [login.password.encode() for login in job.registry_logins]
    values += in_url(job.source.url)
    # What is printed from a file usually comes without its last line end.
    return tuple({value.strip(b"\r\n") for value in values} - {b""})


def too_short_to_mask(job: Job, passed_through: Iterable[Variable]) -> tuple[str, ...]:
    """What the job has that is secret and yet stays visible, by name."""
    names = [
        variable.name
        for variable in (*passed_through, *job.environment)
        if variable.secret and variable.value and too_short(variable.value.encode())
    ]
    names += [
        file.path
        for file in job.mounted_files
        if file.secret and file.content and too_short(file.content.strip(b"\r\n"))
    ]
    return tuple(dict.fromkeys(names))


def of_login(login: Login | None) -> tuple[bytes, ...]:
    """What a registry is shown, which the job itself never gets."""
    if login is None:
        return ()
    given = [login.password.reveal(), f"{login.username}:{login.password.reveal()}"]
    if login.identity_token is not None:
        given.append(login.identity_token.reveal())
    return tuple(value.encode() for value in given if value.strip(":"))


def in_url(url: str) -> tuple[bytes, ...]:
    """Credentials that are part of an URL, as written and as meant."""
    try:
        parts = urlsplit(url)
        user, password = parts.username or "", parts.password
    except ValueError:
        return ()
    if password is None:
        # Before the @ of ssh is a login's name, before that of https a token.
        given = {user} if parts.scheme in ("http", "https") else set()
    else:
        given = {password, f"{user}:{password}"}
    given |= {unquote(value) for value in given}
    return tuple(sorted(value.encode() for value in given if value))


def computed(job: Job) -> dict[str, str]:
    """The documented ``TF_VAR_spacelift_…`` values."""
    stack, run = job.stack, job.run
    values = {
        "account_name": stack.account_name,
        "commit_branch": run.commit.branch,
        "commit_sha": run.commit.hash,
        "local_preview": str(stack.local_preview_enabled).lower(),
        "project_root": stack.project_root,
        "repository": stack.repository_path,
        "run_id": run.id,
        "run_state": run.state,
        "run_trigger": run.triggered_by,
        "run_type": run.type,
        "space_id": stack.space,
        "stack_branch": stack.branch,
        "stack_id": stack.slug,
        "stack_labels": ",".join(stack.labels),
        "stack_labels_list": f"[{', '.join(map(_hcl, stack.labels))}]",
        "workspace_root": WORKSPACE,
    }
    return {f"TF_VAR_spacelift_{name}": value for name, value in values.items()}


def _hcl(text: str) -> str:
    """A string literal of HCL, in which nothing is a template."""
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted.replace("${", "$${").replace("%{", "%%{")
