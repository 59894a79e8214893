"""
``check``: would a launcher with these settings work on this machine, now?

What it does is in `launcher.commands.check_work`, imported when it is called.
"""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(as_json: bool) -> None:
    """
    Look at everything that a launcher needs, and say what to do about the rest.

    Reads the variables that "run" reads, talks to the engine and the control
    plane, and changes nothing: it may be called beside a launcher that runs.  Ends
    with 0 when a launcher would work, and with 1 when it would not.

    \b
    Examples:
      spacelift-launcher check
      spacelift-launcher check --json | jq '.checks[] | select(.outcome == "failed")'
    """
    from launcher.commands import check_work  # noqa: PLC0415 (imports the world)

    sys.exit(check_work.run(as_json=as_json))
