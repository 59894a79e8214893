"""Commands that talk to the launcher on this machine, over its admin socket."""

from __future__ import annotations

import json
import os
import sys
import time

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


def _state_dir() -> str:
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return given or "/var/lib/spacelift-launcher"


at_state_dir = click.option(
    "--state-dir",
    "folder",
    envvar="SPACELIFT_LAUNCHER_STATE_DIR",
    default=_state_dir,
    show_default="$STATE_DIRECTORY, else /var/lib/spacelift-launcher",
    type=click.Path(path_type=Path),
    help="The launcher's state directory.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _said(folder: Path, command: str) -> dict[str, Any]:
    from launcher.admin import ask  # noqa: PLC0415 (--help can do without)
    from launcher.errors import NoLauncherAnswers  # noqa: PLC0415

    try:
        return ask(folder, command)
    except NoLauncherAnswers as exc:
        click.echo(f"spacelift-launcher: {exc}", err=True)
        sys.exit(exc.exit_code)


@click.command()
@at_state_dir
@_as_json
def status(folder: Path, as_json: bool) -> None:
    """
    Show what the launcher on this machine is doing.

    Ends with 0 when it answers, with 1 when none does, and with 2 when the
    arguments are wrong.

    \b
    Examples:
      spacelift-launcher status
      sudo spacelift-launcher status --json | jq '.slots[] | select(.run)'
    """
    said = _said(folder, "status")
    if as_json:
        click.echo(json.dumps(said))
        return
    click.echo(f"version   {said['version']}")
    click.echo(f"instance  {said['instance']}")
    click.echo(f"pool      {said['pool']}")
    click.echo(f"draining  {'yes' if said['draining'] else 'no'}")
    _show_reasons("held by", said["holds"])
    click.echo(f"ready     {'yes' if said['ready'] else 'no'}")
    _show_reasons("because", said["reasons"])
    # One that was started before an update says less.
    well = [name for name, reason in said.get("checks", {}).items() if not reason]
    click.echo(f"well      {', '.join(well) or 'nothing'}")
    for name, value in _told(said["facts"]) if "facts" in said else ():
        click.echo(f"{name:<9} {value}")
    for slot in said["slots"]:
        doing = "idle"
        if slot["run"]:
            phase = slot["phase"] or "PREPARING"
            doing = f"run {slot['run']}, job {slot['job']}, {phase}"
            doing += f" since {slot['since']}"
        click.echo(f"slot {slot['slot']:<4} {doing}")


def _told(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    heard = facts["control_plane_answered_at"]
    ago = "not yet" if heard is None else f"{max(time.time() - heard, 0):.0f} s ago"
    skew = facts["clock_skew_seconds"]
    yield "answered", f"{ago}, by a clock that is {abs(skew):.0f} s off"
    days = (facts["certificate_expires_at"] - time.time()) / 86400
    yield "pool key", f"its certificate ends in {days:.0f} days"
    waiting, age = facts["log_backlog_bytes"], facts["log_oldest_unsent_seconds"]
    yield "log", f"{waiting:.0f} bytes wait to be stored, for {age:.0f} s"
    if (slack := facts["lease_slack_seconds"]) is not None:
        yield "lease", f"lost after {slack:.0f} s more of silence"
    yield "disk", f"{facts['disk_used_percent']:.0f} % in use"


def _show_reasons(title: str, reasons: dict[str, str]) -> None:
    for name, reason in sorted(reasons.items()):
        click.echo(f"  {title} {name}: {reason}")


@click.command()
@at_state_dir
def drain(folder: Path) -> None:
    """
    Let the launcher on this machine take no more jobs.

    Running jobs finish, and the launcher stays; "undrain" lets it take jobs
    again, and SIGTERM ends it.  Ends with 0 when that was done, with 1 when no
    launcher answers, and with 2 when the arguments are wrong.

    \b
    Example:
      spacelift-launcher drain && spacelift-launcher status
    """
    busy = sum(bool(slot["run"]) for slot in _said(folder, "drain")["slots"])
    click.echo(f"draining; jobs at work: {busy}")


@click.command()
@at_state_dir
def undrain(folder: Path) -> None:
    """
    Let the launcher on this machine take jobs again, after "drain".

    Also after a rebalance recommendation; not once a signal or the end of the
    machine was announced.  Ends with 0 when jobs are taken, with 1 when no
    launcher answers or jobs are still not taken, and with 2 when the arguments
    are wrong.

    \b
    Example:
      spacelift-launcher undrain
    """
    said = _said(folder, "undrain")
    if said["draining"]:
        _show_reasons("still held by", said["holds"])
        sys.exit(1)
    click.echo("taking jobs")


@click.command()
@at_state_dir
def dismiss(folder: Path) -> None:
    """
    Let the launcher on this machine end for good, once its jobs have finished.

    It ends with exit code 21, after which systemd does not start it again, and
    the machine is powered off where that is set up.  "systemctl stop" ends it
    just as gently, and powers nothing off.  This command does not wait.  Ends with
    0 when that was done, with 1 when no launcher answers, and with 2 when the
    arguments are wrong.

    \b
    Example:
      spacelift-launcher dismiss && spacelift-launcher status
    """
    busy = sum(bool(slot["run"]) for slot in _said(folder, "dismiss")["slots"])
    click.echo(f"ending; jobs at work: {busy}")
