"""``verify-run``: what an initialization policy asks about a signed run."""

from __future__ import annotations

import sys
import time

from pathlib import Path

import click

from launcher import durations


_LARGEST = 64 << 20
"""Bytes of input; the launcher's own policies take less."""


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        try:
            return durations.parse_duration(str(value))
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


@click.command("verify-run")
@click.option(
    "--keys",
    "keys",
    required=True,
    type=click.Path(path_type=Path),
    help="Public keys: PEM, or a JSON Web Key Set.  Ed25519 and P-256.",
)
@click.option(
    "--cache",
    "cache",
    default="/var/lib/spacelift-launcher/replay.db",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Remembers which run used which signature; made with mode 0600.",
)
@click.option(
    "--longest",
    "longest",
    default="24h",
    show_default=True,
    type=_Duration(),
    help="The longest time a signature may be valid for.",
)
def verify_run(keys: Path, cache: Path, longest: float) -> None:
    """
    Tell whether the run on standard input was signed by one of your keys.

    Standard input is the input of an initialization policy, as JSON, which is
    what the policy's exec() passes on.  Prints a verdict as JSON.  Ends with 0
    if the run is proven, with 1 if it is not, and with 2 if the keys or the
    cache cannot be used or the arguments are wrong.

    \b
    Example:
      spacelift-launcher verify-run --keys /etc/spacelift-launcher/run-keys.json \\
        < input.json
    """
    # Imported late: other commands can do without cryptography.
    import msgspec  # noqa: PLC0415

    from launcher.errors import LauncherError  # noqa: PLC0415
    from launcher.signing.keys import KeySet  # noqa: PLC0415
    from launcher.signing.replay import ReplayCache  # noqa: PLC0415
    from launcher.signing.verification import refused, verify  # noqa: PLC0415

    try:
        document = sys.stdin.buffer.read(_LARGEST + 1)
        if len(document) > _LARGEST:
            verdict = refused("the input is too large")
        else:
            verdict = verify(
                document,
                KeySet.load(keys),
                ReplayCache(cache),
                now=time.time(),
                longest=longest,
            )
        code = 0 if verdict.valid else 1
    except LauncherError as exc:
        click.echo(f"spacelift-launcher: {exc}", err=True)
        # The reason goes to the owner of the run, who need not know our paths.
        verdict, code = refused("nobody can verify signatures on this worker"), 2
    click.echo(msgspec.json.encode(verdict))
    sys.exit(code)
