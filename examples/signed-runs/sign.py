"""
Makes keys and signatures for runs; needs the launcher's package and nothing else.

    python sign.py keys --kid ci-2026 --private ci.pem --public run-keys.json
    python sign.py run --key ci.pem --kid ci-2026 --stack production \\
        --commit "$(git rev-parse HEAD)" --type TRACKED --phase plan

What it prints is given to the run as metadata: `spacectl stack deploy
--run-metadata`, and for an apply `spacectl stack confirm --run-metadata`.
"""

from __future__ import annotations

import json
import os
import secrets
import time

from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import click

from launcher.durations import parse_duration
from launcher.errors import LauncherError
from launcher.signing.claims import HOOKS, Claims, hooks_digest
from launcher.signing.keys import ALGORITHMS, SigningKey
from launcher.signing.tokens import sign
from launcher.wire.jobs import Phase, RunType


PHASES = [phase.value for phase in Phase]
RUN_TYPES = [run_type.value for run_type in RunType]


@click.group()
def main() -> None:
    """Make keys and signatures for runs."""


@main.command()
@click.option("--kid", required=True, help="Name of the key, for the key set.")
@click.option("--alg", default="EdDSA", type=click.Choice(ALGORITHMS))
@click.option("--private", "private", required=True, type=click.Path(path_type=Path))
@click.option("--public", "public", required=True, type=click.Path(path_type=Path))
def keys(kid: str, alg: str, private: Path, public: Path) -> None:
    """Make a key pair; add the public half to a key set."""
    key = SigningKey.generate(kid, alg)
    known = json.loads(public.read_text())["keys"] if public.exists() else []
    if any(entry.get("kid") == kid for entry in known):
        raise click.ClickException(f"{public} has a key {kid} already")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(private, flags, 0o600), "wb") as file:
        file.write(key.pem)
    public.write_text(json.dumps({"keys": [*known, key.jwk]}, indent=2) + "\n")
    public.chmod(0o644)


@main.command()
@click.option("--key", "key", required=True, type=click.Path(path_type=Path))
@click.option("--kid", default="", help="Name of the key in the key set.")
@click.option("--stack", required=True, help="The stack's slug.")
@click.option("--commit", required=True, help="The full hash.")
@click.option("--type", "run_type", required=True, type=click.Choice(RUN_TYPES))
@click.option("--phase", required=True, type=click.Choice(PHASES))
@click.option("--run", help="The run's id; an apply needs it.")
@click.option("--account")
@click.option("--image", help="Digest of the runner image, sha256:…")
@click.option("--command", help="What a task runs; a task needs it.")
@click.option("--hook", "hooks", multiple=True, metavar="LIST=COMMAND")
@click.option(
    "--hooks",
    "hooks_file",
    type=click.File(),
    help="JSON with lists of hooks, such as static_run_environment of a sample.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="POINTER=JSON",
    help='Anything else of the input, as in /static_run_environment/source_url="…"',
)
@click.option("--valid-for", default="15m", show_default=True)
@click.option("--issuer", help="Who signs, for people.")
def run(**options: Any) -> None:  # noqa: ANN401 (options of all kinds)
    """Print a signature for one phase of a run."""
    if options["phase"] == Phase.APPLY and not options["run"]:
        raise click.BadParameter("the signature for an apply must name the --run")
    if options["run_type"] == RunType.TASK and not options["command"]:
        raise click.BadParameter("the signature for a task must name the --command")
    named = ("stack", "commit", "run_type", "phase", "run", "account", "image")
    now = int(time.time())
    try:
        key = SigningKey.load(options["key"], options["kid"])
        claims = Claims(
            jti=secrets.token_urlsafe(24),
            iat=now,
            exp=now + int(parse_duration(options["valid_for"])),
            hooks=hooks_digest(_hooks(options["hooks_file"], options["hooks"])),
            command=options["command"],
            also=_pointers(options["also"]) or None,
            iss=options["issuer"],
            **{name: options[name] for name in named},
        )
    except (LauncherError, ValueError) as exc:
        raise click.ClickException(str(exc)) from exc
    print(sign(claims, key))


def _hooks(file: IO[str] | None, given: Iterable[str]) -> dict[str, list[str]]:
    sample = json.load(file) if file else {}
    lists = {name: list(sample.get(name) or ()) for name in HOOKS}
    for text in given:
        name, _, command = text.partition("=")
        if name not in lists:
            raise ValueError(f"there is no hook {name}")
        lists[name].append(command)
    return lists


def _pointers(given: Iterable[str]) -> dict[str, Any]:
    pairs = (text.partition("=") for text in given)
    return {pointer: json.loads(value) for pointer, _, value in pairs}


if __name__ == "__main__":
    main()
