"""``database``: the revision of the control plane's database, and the way back."""

from __future__ import annotations

import sys

from pathlib import Path
from typing import NoReturn

import click

from launcher.errors import LauncherError


_at = click.option(
    "--database",
    "url",
    default="sqlite:///control-plane.db",
    show_default=True,
    help="The control plane's database, as an SQLAlchemy URL.",
)


@click.group()
def database() -> None:
    """Look after the control plane's database."""


@database.command("version")
@_at
def version(url: str) -> None:
    """
    Print the revision of the database's tables, and the one this program needs.

    Ends with 0 when they are the same, and with 1 when they are not.

    \b
    Example:
      spacelift-launcher database version --database sqlite:///control-plane.db
    """
    from launcher.controlplane.store import maintenance  # noqa: PLC0415

    try:
        found, needed = maintenance.version(url)
    except LauncherError as exc:
        _fail(exc)
    click.echo(f"{found or 'none'}, and this program needs {needed}")
    sys.exit(0 if found == needed else 1)


@database.command("downgrade")
@click.option(
    "--to",
    "to",
    required=True,
    help="The revision that the earlier program needs, such as 0004.",
)
@_at
@click.option(
    "--data-directory",
    "data",
    type=click.Path(file_okay=False, path_type=Path),
    help="The control plane's, if its configuration names one.",
)
@click.option("--yes", "yes", is_flag=True, help="Do not ask.")
def downgrade(to: str, url: str, data: Path | None, yes: bool) -> None:
    """
    Bring the tables back to what an earlier program needs.

    What only later revisions hold is lost, so it says what that is, and asks.  Stop
    every server first, and back up the database.

    \b
    Example:
      spacelift-launcher database downgrade --to 0004 \\
        --database sqlite:////var/lib/spacelift/control-plane.db
    """
    from launcher.controlplane.store import maintenance  # noqa: PLC0415

    try:
        for step in maintenance.steps_down(url, to):
            click.echo(f"- {step.revision}: {step.brought}", err=True)
        if not yes:
            click.confirm("These are undone, with what they hold.", abort=True)
        maintenance.go_back(url, data, to)
    except LauncherError as exc:
        _fail(exc)


def _fail(error: LauncherError) -> NoReturn:
    click.echo(f"spacelift-launcher: {error}", err=True)
    if error.details:
        click.echo(error.details, err=True)
    sys.exit(error.exit_code)
