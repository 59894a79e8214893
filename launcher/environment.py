"""
The variables a phase sees, and which of them are secret.

From weakest to strongest: what is computed from the run, what the machine's
owner lets through, what the run brings along.  Variables for reading phases
only, or for writing ones only, come and go with the phase.  What the run brings
along may refer to all of these as ``${NAME}``, and to nothing else: the launcher's
own variables are none of its business.
"""

from __future__ import annotations

import json
import re

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from launcher.credentials import Login
from launcher.errors import JobInvalid
from launcher.model import WORKSPACE
from launcher.output.needles import too_short
from launcher.trace_context import TRACEPARENT
from launcher.wire.jobs import LONGEST_VALUE, Job, Phase, RunState, Scope, Variable


STATES: Mapping[str, RunState] = {
    Phase.INITIALIZE: RunState.INITIALIZING,
    Phase.PLAN: RunState.PLANNING,
    Phase.APPLY: RunState.APPLYING,
    Phase.PERFORM: RunState.PERFORMING,
    Phase.DESTROY: RunState.DESTROYING,
}
"""The state of the run in each of its phases."""

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_DEEPEST = 32

WRITING = frozenset({Phase.APPLY, Phase.PERFORM, Phase.DESTROY})


@dataclass(frozen=True, slots=True)
class PhaseEnvironment:
    export: Mapping[str, str]
    unset: tuple[str, ...]


def for_phase(
    phase: Phase, job: Job, passed_through: Iterable[Variable]
) -> PhaseEnvironment:
    """
    What *phase* exports, and what it must not know although others do.

    Raises:
        JobInvalid: variables refer to each other in a circle, or a value is longer
            than any program can be given.
    """
    passed = tuple(passed_through)
    values = _Values(phase, job, passed)
    export = values.all()
    hidden = {given.name for given in (*passed, *job.environment)} - export.keys()
    return PhaseEnvironment(export=export, unset=tuple(sorted(hidden)))


def unknown_references(
    job: Job, passed_through: Iterable[Variable]
) -> tuple[tuple[str, str], ...]:
    """
    Variables whose value mentions another one that the run does not have.

    Raises:
        JobInvalid: as `for_phase`.
    """
    passed = tuple(passed_through)
    found: dict[tuple[str, str], None] = {}
    for phase in job.phases:
        values = _Values(phase, job, passed)
        values.all()
        found |= values.unknown
    return tuple(found)


class _Values:
    """The values of one phase, with what they refer to put in."""

    def __init__(self, phase: Phase, job: Job, passed: tuple[Variable, ...]) -> None:
        scopes = (Scope.ALWAYS, Scope.WRITE if phase in WRITING else Scope.READ)
        theirs = {given.name: given for given in passed if given.scope in scopes}
        self._mine = {
            variable.name: variable
            for variable in job.environment
            if variable.scope in scopes and variable.name not in _ours(passed)
        }
        self._fixed = computed(job, phase) | {
            name: given.value for name, given in theirs.items()
        }
        self._secret = {name for name, given in theirs.items() if given.secret}
        self._secret |= set(_tokens(job))
        self._known: dict[str, tuple[str, bool]] = {}
        self.unknown: dict[tuple[str, str], None] = {}
        """Pairs of a variable, and a name in its value that nothing has."""

    def all(self) -> dict[str, str]:
        return {name: self._value(name, ())[0] for name in (*self._fixed, *self._mine)}

    def secret(self) -> tuple[str, ...]:
        """Every value that is secret, or has a secret one put in."""
        given = (self._value(name, ()) for name in self._mine)
        return tuple(value for value, secret in given if secret)

    def _value(self, name: str, trail: tuple[str, ...]) -> tuple[str, bool]:
        """What *name* stands for, and whether it is secret."""
        if name not in self._known:
            self._known[name] = self._made(name, trail)
        return self._known[name]

    def _made(self, name: str, trail: tuple[str, ...]) -> tuple[str, bool]:
        variable = self._mine.get(name)
        if variable is None:
            return _bounded(name, self._fixed[name]), name in self._secret
        if name in trail:
            circle = " → ".join((*trail[trail.index(name) :], name))
            raise JobInvalid(f"variables refer to each other in a circle: {circle}")
        if len(trail) > _DEEPEST:
            raise JobInvalid(f"variable {name} is referred to through too many others")
        secret, parts, size, place = variable.secret, [], len(name) + 2, 0
        for found in _REFERENCE.finditer(variable.value):
            part = found.group()
            if found[1] in self._mine or found[1] in self._fixed:
                part, tainted = self._value(found[1], (*trail, name))
                secret |= tainted
            else:
                self.unknown[name, found[1]] = None
            parts += [variable.value[place : found.start()], part]
            place = found.end()
            size += len(parts[-1]) + len(parts[-2])
            if size > LONGEST_VALUE:
                break
        return _bounded(name, "".join((*parts, variable.value[place:]))), secret


def _bounded(name: str, value: str) -> str:
    if len(name) + 2 + len(value.encode()) > LONGEST_VALUE:
        raise JobInvalid(
            f"variable {name} has more than {LONGEST_VALUE >> 10} KiB: no program"
            " can be given as much"
        )
    return value


def plain_names(job: Job, passed_through: Iterable[Variable]) -> frozenset[str]:
    """Variables that phases may change for those after them: no secret among them."""
    given = [*passed_through, *job.environment]
    plain = {each.name for each in given}
    plain -= {each.name for each in given if each.secret or each.scope != Scope.ALWAYS}
    return frozenset(plain - computed(job, Phase.PLAN).keys() - {TRACEPARENT})


def overruled(job: Job, passed_through: Iterable[Variable]) -> tuple[str, ...]:
    """What the run brings along and does not get, because it is the launcher's."""
    given = {variable.name for variable in job.environment}
    return tuple(sorted(given & _ours(passed_through)))


def _ours(passed_through: Iterable[Variable]) -> frozenset[str]:
    return frozenset({TRACEPARENT} & {given.name for given in passed_through})


def secrets(job: Job, passed_through: Iterable[Variable]) -> tuple[bytes, ...]:
    """Every value that may not leave the process as it is."""
    passed = tuple(passed_through)
    values = [
        variable.value.encode()
        for variable in (*passed, *job.environment)
        if variable.secret
    ]
    for phase in (Phase.PLAN, Phase.APPLY):
        try:
            made = _Values(phase, job, passed).secret()
        except JobInvalid:  # no phase will be given any of them
            continue
        values += [value.encode() for value in made]
    values += [value.encode() for value in _tokens(job).values()]
    values += [file.content for file in job.mounted_files if file.secret]
    values += [login.password.encode() for login in job.registry_logins]
    values += [job.source.password.encode(), job.source.ssh_key.encode()]
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


def computed(job: Job, phase: Phase) -> dict[str, str]:
    """The documented ``TF_VAR_spacelift_…`` values, and the run's tokens."""
    stack, run = job.stack, job.run
    values = {
        "account_name": stack.account_name,
        "commit_branch": run.commit.branch,
        "commit_sha": run.commit.hash,
        "local_preview": str(stack.local_preview_enabled).lower(),
        "project_root": stack.project_root,
        "repository": stack.repository_path,
        "run_id": run.id,
        "run_state": STATES[phase],
        "run_trigger": run.triggered_by,
        "run_type": run.type,
        "space_id": stack.space,
        "stack_branch": stack.branch,
        "stack_id": stack.slug,
        "stack_labels": ",".join(stack.labels),
        "stack_labels_list": f"[{', '.join(map(_hcl, stack.labels))}]",
        "workspace_root": WORKSPACE,
    }
    if job.tokens.graphql_endpoint:
        values["graphql_endpoint"] = job.tokens.graphql_endpoint
    named = {f"TF_VAR_spacelift_{name}": value for name, value in values.items()}
    return named | _tokens(job)


def _tokens(job: Job) -> dict[str, str]:
    given = {
        "SPACELIFT_API_TOKEN": job.tokens.api,
        "SPACELIFT_OIDC_TOKEN": job.tokens.oidc,
    }
    return {name: value for name, value in given.items() if value}


def _hcl(text: str) -> str:
    """A string literal of HCL, in which nothing is a template."""
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted.replace("${", "$${").replace("%{", "%%{")
