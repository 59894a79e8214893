"""``check-network``: what runs on this machine can reach, and should not."""

from __future__ import annotations

import os
import sys

import click


@click.command("check-network")
@click.option("--image", help="Try it in this image instead of the default one.")
def check_network(image: str | None) -> None:
    """
    Prove that runs reach neither the metadata service nor this machine.

    Starts a container on a network like that of runs, and lets it try the
    metadata addresses of clouds and a service that is opened for the purpose on
    this machine.  The image must be in the engine already.  Ends with 0 when
    everything is blocked, or allowed by SPACELIFT_RUNS_MAY_REACH_METADATA; with
    1 when something is not; with 2 when nobody can tell.

    \b
    Example:
      spacelift-launcher check-network --image registry.example.com/runner:1.4
    """
    from launcher.commands.network_work import (  # noqa: PLC0415 (imports the world)
        METADATA,
        reached,
    )
    from launcher.errors import LauncherError  # noqa: PLC0415

    try:
        found = reached(os.environ, image)
    except LauncherError as exc:
        click.echo(f"spacelift-launcher: {exc}", err=True)
        if exc.details:
            click.echo(exc.details, err=True)
        sys.exit(2)
    for address in METADATA:
        verdict = "blocked"
        if address in found.metadata:
            verdict = "open, as allowed" if found.allowed else "OPEN"
        click.echo(f"metadata  {address:<16} {verdict}")
    for address in found.host:
        click.echo(f"machine   {address:<16} OPEN")
    if not found.host:
        click.echo(f"machine   {'':<16} blocked")
    if not found.blocked:
        click.echo(
            "spacelift-launcher: runs reach what they should not; start"
            " spacelift-launcher-network.service or, in a pod, its engine again",
            err=True,
        )
        sys.exit(1)
