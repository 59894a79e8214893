"""``rescued open``: the state that a run's tool could not store."""

from __future__ import annotations

import os
import sys

from pathlib import Path

import click

from launcher.commands.admin import at_state_dir


@click.group()
def rescued() -> None:
    """Get what was rescued from runs whose tool could not store its state."""


@rescued.command("open")
@click.argument("run")
@at_state_dir
@click.option(
    "--key",
    "key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The pool's private key as PEM, if not in SPACELIFT_POOL_PRIVATE_KEY.",
)
@click.option(
    "--output",
    "output",
    required=True,
    type=click.Path(path_type=Path),
    help="Where to write the state, with mode 0600.  It holds secrets.",
)
def open_(run: str, folder: Path, key: Path | None, output: Path) -> None:
    """
    Open the errored.tfstate that was rescued from RUN.

    Ends with 0 when it was written, with 1 when there is none or it cannot be
    opened, and with 2 when the arguments are wrong; a key that is none has the
    code of docs/exit-codes.md.

    \b
    Example:
      spacelift-launcher rescued open 01JZ0000000000000000000000 \\
        --key pool.key --output errored.tfstate
      terraform state push errored.tfstate
    """
    from launcher import private_files, rescue  # noqa: PLC0415
    from launcher.errors import LauncherError  # noqa: PLC0415
    from launcher.identity import pool_key  # noqa: PLC0415
    from launcher.secret import Secret  # noqa: PLC0415

    text = key.read_text("ascii", "replace") if key else None
    text = text or os.environ.get("SPACELIFT_POOL_PRIVATE_KEY")
    if not text:
        problem = "give the pool's key: --key, or SPACELIFT_POOL_PRIVATE_KEY"
        raise click.UsageError(problem)
    try:
        state = rescue.opened(folder / "rescued", run, pool_key(Secret(text)))
        private_files.write(output, state)
    except LauncherError as exc:
        click.echo(f"spacelift-launcher: {exc}", err=True)
        sys.exit(exc.exit_code)
    except OSError as exc:
        click.echo(f"spacelift-launcher: {output}: {exc.strerror}", err=True)
        sys.exit(1)
    click.echo(f"{len(state)} bytes in {output}")
