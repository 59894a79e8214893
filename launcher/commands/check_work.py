"""
What ``check`` looks at, in the order in which a launcher would find out.

Nothing is changed: no worker registers, no network is made, no lock is taken.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import shutil

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from launcher import telemetry
from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.credentials import Credentials
from launcher.adapters.engines.docker import connect
from launcher.adapters.policies.loading import load
from launcher.certificates import WARN_BEFORE
from launcher.commands.image_work import answered
from launcher.disk import Disks
from launcher.errors import (
    ClockWrong,
    ControlPlaneUnavailable,
    CredentialsRefused,
    LauncherError,
)
from launcher.identity import Identity, identified
from launcher.settings import Settings


_PROGRAMS = {"git": "repositories are fetched with it"}


class Outcome(enum.StrEnum):
    OK = "ok"
    DOUBTFUL = "doubtful"
    """A launcher works, and perhaps not as it is meant to."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """It could not be looked at, because of something that failed before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    name: str
    outcome: Outcome
    said: str
    hint: str = ""
    """What to do about it."""


@dataclass(slots=True)
class _Found:
    """What a check leaves for those after it."""

    environment: Mapping[str, str]
    settings: Settings | None = None
    identity: Identity | None = None
    client: Client | None = None
    engine_data: Path | None = None


Check = Callable[[_Found], Iterator[Result]]


def run(*, as_json: bool) -> int:
    """Print what was found; return the exit code."""
    # What is the matter is printed; that it is logged, too, helps nobody here.
    telemetry.configure("critical")
    results = results_of(os.environ)
    good = all(result.outcome is not Outcome.FAILED for result in results)
    if as_json:
        checks = [asdict(result) for result in results]
        click.echo(json.dumps({"ok": good, "checks": checks}))
        return int(not good)
    width = max(len(result.name) for result in results)
    for result in results:
        click.echo(f"{result.name:<{width}}  {result.outcome:<8}  {result.said}")
        if result.hint:
            click.echo(f"{'':<{width}}  {'':<8}  → {result.hint}")
    return int(not good)


def results_of(environment: Mapping[str, str]) -> list[Result]:
    """Look at everything; whatever goes wrong is a result."""
    found = _Found(environment)
    results: list[Result] = []
    for name, check in _CHECKS.items():
        try:
            results += check(found)
        except LauncherError as exc:
            hint = exc.details.partition("\n")[0]
            results.append(_failed(name, str(exc), hint))
        except _Skipped as exc:
            results.append(Result(name=name, outcome=Outcome.SKIPPED, said=str(exc)))
    if found.client is not None:
        found.client.close()
    return results


class _Skipped(Exception):
    """Something that is needed for a look was not found."""


def _settings_of(found: _Found) -> Settings:
    if found.settings is None:
        raise _Skipped("the settings are wrong")
    return found.settings


def _ok(name: str, said: str) -> Result:
    return Result(name=name, outcome=Outcome.OK, said=said)


def _failed(name: str, said: str, hint: str) -> Result:
    return Result(name=name, outcome=Outcome.FAILED, said=said, hint=hint)


def _doubtful(name: str, said: str, hint: str = "") -> Result:
    return Result(name=name, outcome=Outcome.DOUBTFUL, said=said, hint=hint)


# --- one after the other


def _settings(found: _Found) -> Iterator[Result]:
    found.settings = Settings.from_environ(found.environment)
    warnings = found.settings.warnings
    yield from (_doubtful("settings", warning) for warning in warnings)
    if not warnings:
        yield _ok("settings", "each can be used")


def _identity(found: _Found) -> Iterator[Result]:
    identity = _settings_of(found).identity
    found.identity = identified(identity.token, identity.private_key)
    token = found.identity.token
    yield _ok("token and key", f"for the pool {token.pool} of {token.endpoint}")


def _state(found: _Found) -> Iterator[Result]:
    root = _settings_of(found).host.state_dir
    near = _nearest(root)
    hint = "give it to the launcher's user, or set SPACELIFT_LAUNCHER_STATE_DIR"
    if not near.is_dir():
        yield _failed("state directory", f"{near} is not a directory", hint)
    elif not os.access(near, os.W_OK | os.X_OK):
        yield _failed("state directory", f"{near} cannot be written", hint)
    else:
        yield _ok("state directory", str(root))


def _nearest(path: Path) -> Path:
    """The part of *path* that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _programs(_: _Found) -> Iterator[Result]:
    for program, why in _PROGRAMS.items():
        if shutil.which(program):
            yield _ok(program, "is installed")
        else:
            yield _failed(program, f"is not installed; {why}", f"install {program}")


def _policy(found: _Found) -> Iterator[Result]:
    policy = _settings_of(found).policy
    if policy.path is None:
        hint = "set SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY to have a say"
        yield _doubtful("policy", "there is none: every run is allowed", hint)
        return
    load(policy)
    yield _ok("policy", f"{policy.path} can be used")


def _engine(found: _Found) -> Iterator[Result]:
    api = connect(_settings_of(found).host, connections=1)
    with contextlib.closing(api):
        found.engine_data = Path(api.info()["DockerRootDir"])
        version = api.version()["Version"]
    yield _ok("container engine", f"version {version}")


def _disk(found: _Found) -> Iterator[Result]:
    host = _settings_of(found).host
    paths = [_nearest(host.state_dir)]
    if found.engine_data is not None:
        paths.append(found.engine_data)
    disks = Disks(paths, threshold=host.disk_usage_threshold)
    if trouble := disks.trouble():
        hint = "make room, or raise SPACELIFT_LAUNCHER_DISK_USAGE_THRESHOLD"
        yield _failed("disk", trouble, hint)
    else:
        yield _ok("disk", f"{disks.used():.0f} % in use at most")


def _images(found: _Found) -> Iterator[Result]:
    settings = _settings_of(found)
    images = settings.images
    for image in dict.fromkeys(
        (images.default_runner_image, images.default_ansible_runner_image)
    ):
        answer = answered(str(image), settings, found.environment)
        if answer.admitted:
            yield _ok("image", f"{image}: {answer.rule}; login: {answer.credentials}")
        else:
            hint = "allow it in SPACELIFT_LAUNCHER_ALLOWED_IMAGES, or choose another"
            yield _doubtful("image", f"{answer.refusal}", hint)


def _control_plane(found: _Found) -> Iterator[Result]:
    settings = _settings_of(found)
    if found.identity is None:
        raise _Skipped("who the launcher is, is not known")
    kept = settings.host.state_dir / "pool-certificate.pem"
    try:
        credentials = Credentials(
            found.identity, kept, roots=settings.network.root_certificates
        )
    except CredentialsRefused as exc:
        yield _failed("certificate", str(exc), "")
        raise _Skipped("there is no certificate to show it") from exc
    ends = credentials.certificate.not_valid_after_utc
    left = ends - datetime.now(UTC)
    said = f"valid for {left.days} days"
    if left < WARN_BEFORE:
        hint = "a launcher that runs renews it; else make a new token with pool create"
        yield _doubtful("certificate", said, hint)
    else:
        yield _ok("certificate", said)
    endpoint = found.identity.token.endpoint
    proxies = settings.network.proxies
    found.client = client = Client(credentials, connections=1, proxies=proxies)
    try:
        client.greet()
    except ControlPlaneUnavailable as exc:
        hint = f"is {endpoint} right, and may this machine connect to it? {exc.details}"
        yield _failed("control plane", str(exc), hint.strip())
        return
    except CredentialsRefused as exc:
        hint = "use the newest token of the pool; docs/exit-codes.md has more"
        yield _failed("control plane", str(exc), hint)
        return
    yield _ok("control plane", f"{endpoint} lets us in")


def _clock(found: _Found) -> Iterator[Result]:
    client = found.client
    if client is None or not client.answered:
        raise _Skipped("the control plane has not said what time it is")
    try:
        client.require_clock()
    except ClockWrong as exc:
        yield _failed("clock", str(exc), "synchronise it, for example with chrony")
    else:
        yield _ok("clock", f"{abs(client.clock_skew):.0f} s off the control plane's")


_CHECKS: dict[str, Check] = {
    "settings": _settings,
    "token and key": _identity,
    "state directory": _state,
    "programs": _programs,
    "policy": _policy,
    "container engine": _engine,
    "disk": _disk,
    "image": _images,
    "control plane": _control_plane,
    "clock": _clock,
}
