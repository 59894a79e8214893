"""What ``image check`` finds out, without asking anybody."""

from __future__ import annotations

import json
import os

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import click

from launcher.adapters.credentials.chain import chain
from launcher.credentials import configured_rule
from launcher.errors import (
    ConfigurationError,
    ImageNotAllowed,
    ImageUnavailable,
    JobInvalid,
)
from launcher.images import Reference, permitted
from launcher.settings import Settings


ADMITTED, REFUSED, NO_REFERENCE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All of it may be shown to anybody."""

    reference: str = ""
    """In full."""
    admitted: bool = False
    rule: str = ""
    """What admits it."""
    refusal: str = ""
    """The sentence that the run's owner would read."""
    credentials: str = ""
    """Where the login is from."""
    expires: str = ""
    otherwise: tuple[str, ...] = ()
    """Where logins would be from, one after the other, if that one had none."""
    pull_policy: str = ""


def check(text: str, *, as_json: bool) -> int:
    """Print what there is to say about *text*; return the exit code."""
    try:
        settings = Settings.from_environ(os.environ)
    except ConfigurationError as exc:
        click.echo(f"spacelift-launcher: {exc}", err=True)
        return ConfigurationError.exit_code
    answer = answered(text, settings, os.environ)
    if as_json:
        click.echo(json.dumps(asdict(answer)))
    else:
        _print(answer)
    if answer.admitted:
        return ADMITTED
    return REFUSED if answer.reference else NO_REFERENCE


def answered(text: str, settings: Settings, environment: Mapping[str, str]) -> Answer:
    """Judge *text* as the launcher with *settings* would."""
    try:
        reference = Reference.parse(text)
    except JobInvalid as exc:
        return Answer(refusal=str(exc))
    credentials = chain(settings.images, environment)
    try:
        sources = list(credentials.found(reference))
        permit = permitted(
            reference,
            settings.images.allowed_images,
            require_digest=settings.images.require_digest,
            configured=configured_rule(credentials),
        )
    except (ImageNotAllowed, ImageUnavailable) as exc:
        return Answer(reference=str(reference), refusal=str(exc))
    first, *others = [*map(str, sources), "none: anonymous"]
    return Answer(
        reference=str(reference),
        admitted=True,
        rule=permit.rule,
        credentials=first,
        expires=sources[0].expires if sources else "",
        otherwise=tuple(others),
        pull_policy=settings.images.pull_policy_for(reference),
    )


def _print(answer: Answer) -> None:
    lines = {
        "image": answer.reference,
        "admitted": answer.rule and f"yes, by {answer.rule}",
        "refused": answer.refusal,
        "login": answer.credentials,
        "expires": answer.expires,
        "otherwise": "; ".join(answer.otherwise),
        "pulled": answer.pull_policy,
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name:<10} {value}")
