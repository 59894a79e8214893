"""``support-bundle``: what helps whoever has to find out what is the matter."""

from __future__ import annotations

import sys

from pathlib import Path

import click

from launcher.commands.admin import at_state_dir


@click.command("support-bundle")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@at_state_dir
def support_bundle(file: Path, folder: Path) -> None:
    """
    Write FILE, a .tar.gz for whoever helps, with no secret in it.

    In it are versions, settings without secret values, what /readyz and /metrics
    say, how far jobs at work have got, the last lines of the launcher's log, and
    what engine and disks say.  Nothing that a run has printed is in it.  The launcher
    on this machine is asked; without one, only what can be found out beside it is
    collected.  Look through it before you send it: names of runs, stacks, images
    and hosts are in it.

    Ends with 0 when it was written, and with 1 when it cannot be.

    \b
    Example:
      sudo spacelift-launcher support-bundle /tmp/launcher.tar.gz
    """
    from launcher.commands import support_work  # noqa: PLC0415 (imports the world)

    sys.exit(support_work.write(file, folder))
