"""The command line: arguments in, exit code out."""

from __future__ import annotations

import os
import sys

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click
import structlog

from launcher import __version__, telemetry
from launcher.commands.policy import policy
from launcher.commands.verify_run import verify_run
from launcher.errors import LauncherError


P = ParamSpec("P")


def _fails_clearly(command: Callable[P, None]) -> Callable[P, None]:
    """Turn an error into its sentence and its exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except LauncherError as exc:
            click.echo(f"spacelift-launcher: {exc}", err=True)
            if exc.details:
                click.echo(exc.details, err=True)
            sys.exit(exc.exit_code)

    return wrapped


def _fails_in_the_log(command: Callable[P, None]) -> Callable[P, None]:
    """The same for daemons, whose standard error is their log."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except LauncherError as exc:
            structlog.get_logger().error(
                "daemon.failed",
                error=str(exc),
                details=exc.details,
                exit_code=exc.exit_code,
            )
            sys.exit(exc.exit_code)

    return wrapped


@click.group(invoke_without_command=True)
@click.version_option(__version__, prog_name="spacelift-launcher")
@click.pass_context
def main(context: click.Context) -> None:
    """
    Take infrastructure runs and execute each in a container you can trust.

    Without a command, it is the daemon, like "run".

    \b
    Examples:
      spacelift-launcher run
      spacelift-launcher server --config control-plane.yaml
      spacelift-launcher pool create default --endpoint http://127.0.0.1:8080
    """
    telemetry.configure()
    if context.invoked_subcommand is None:
        context.invoke(run)


main.add_command(policy)
main.add_command(verify_run)


@main.command()
@_fails_in_the_log
def run() -> None:
    """
    Be the launcher: poll for jobs and execute them, until told to stop.

    Configured by environment variables only; docs/configuration.md lists them.
    The first SIGTERM or SIGINT drains: running jobs finish, no new one begins.
    The second one ends running jobs, letting their tools save their state.

    \b
    Example:
      SPACELIFT_TOKEN=… \\
      SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY=/etc/spacelift/policy.rego \\
      spacelift-launcher run
    """
    from launcher.bootstrap import run_launcher  # noqa: PLC0415 (imports the world)
    from launcher.settings import Settings  # noqa: PLC0415

    environment = dict(os.environ)
    _forget_secrets()
    settings = Settings.from_environ(environment)
    run_launcher(settings, environment)


@main.command()
@click.option(
    "--config",
    "config",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The desired state: accounts, keys, pools, stacks.  Read again on SIGHUP.",
)
@click.option(
    "--database",
    "database",
    default="sqlite:///control-plane.db",
    show_default=True,
    help="Where runs are kept, as an SQLAlchemy URL.",
)
@click.option(
    "--listen",
    "listen",
    default="127.0.0.1:8080",
    show_default=True,
    help="Address and port; port 0 takes a free one and logs it.",
)
@_fails_in_the_log
def server(config: Path, database: str, listen: str) -> None:
    """
    Be the control plane that spacectl and launchers talk to.

    \b
    Example:
      spacelift-launcher server --config control-plane.yaml
    """
    from launcher.controlplane.serve import serve  # noqa: PLC0415

    serve(config, database, listen)


@main.group()
def pool() -> None:
    """Make and reset the tokens of worker pools."""


def _token_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.argument("name"),
        click.option(
            "--database",
            default="sqlite:///control-plane.db",
            show_default=True,
            help="The control plane's database.",
        ),
        click.option(
            "--endpoint",
            required=True,
            help="How workers reach the control plane, for example http://127.0.0.1:8080",
        ),
    ):
        command = option(command)
    return command


@pool.command("create")
@_token_options
@_fails_clearly
def create(name: str, database: str, endpoint: str) -> None:
    """
    Print a token for the pool NAME, to be given to launchers as SPACELIFT_TOKEN.

    It is shown once.  A pool has one token: making another one resets the pool.

    \b
    Example:
      spacelift-launcher pool create default --endpoint http://127.0.0.1:8080
    """
    from launcher.controlplane.pools import create_token  # noqa: PLC0415

    click.echo(create_token(database, name, endpoint))


@pool.command("reset")
@_token_options
@_fails_clearly
def reset(name: str, database: str, endpoint: str) -> None:
    """
    Print a new token for the pool NAME and shut out workers with the old one.

    \b
    Example:
      spacelift-launcher pool reset default --endpoint http://127.0.0.1:8080
    """
    from launcher.controlplane.pools import create_token  # noqa: PLC0415

    click.echo(create_token(database, name, endpoint))


def _forget_secrets() -> None:
    """What a child process could inherit, it must not find."""
    for name in ("SPACELIFT_TOKEN", "SPACELIFT_POOL_PRIVATE_KEY"):
        os.environ.pop(name, None)
