"""
``image check``: a reference in, and what this worker would do with it out.

What it does is in `launcher.commands.image_work`, imported when it is called.
"""

from __future__ import annotations

import sys

import click


@click.group()
def image() -> None:
    """Ask about images: no token, engine or network needed, no effects."""


@image.command("check")
@click.argument("reference", metavar="REF")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(reference: str, as_json: bool) -> None:
    """
    Say whether REF may run here, and with which login it would be pulled.

    Judged by the variables the launcher is configured with, which have to be set
    as for "run".  Logins are named, never fetched or printed; those that come with
    a job are not known here.  Ends with 0 when the image is admitted, with 1 when
    it is refused, and with 2 when REF is not a reference or a setting is wrong.

    \b
    Examples:
      spacelift-launcher image check ghcr.io/acme/runner:1.4
      SPACELIFT_LAUNCHER_ALLOWED_IMAGES='registry.example.com/infra/*' \\
        spacelift-launcher image check --json registry.example.com/infra/runner
    """
    from launcher.commands import image_work  # noqa: PLC0415

    sys.exit(image_work.check(reference, as_json=as_json))
