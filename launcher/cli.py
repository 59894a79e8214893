"""The command line: arguments in, exit code out."""

from __future__ import annotations

import os
import sys

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypedDict, Unpack

import click
import structlog

from launcher import __version__, memory, process_environment, telemetry
from launcher.commands import admin
from launcher.commands.check import check
from launcher.commands.database import database
from launcher.commands.image import image
from launcher.commands.network import check_network
from launcher.commands.policy import policy
from launcher.commands.rescued import rescued
from launcher.commands.support import support_bundle
from launcher.commands.verify_run import verify_run
from launcher.errors import LauncherError


if TYPE_CHECKING:  # they import the world
    from launcher.controlplane.pool_tokens import Made, Request

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
      spacelift-launcher pool create default --endpoint https://127.0.0.1:8443
    """
    telemetry.configure()
    if context.invoked_subcommand is None:
        context.invoke(run)


main.add_command(database)
main.add_command(image)
main.add_command(check_network)
main.add_command(policy)
main.add_command(verify_run)
main.add_command(admin.status)
main.add_command(admin.drain)
main.add_command(admin.undrain)
main.add_command(admin.dismiss)
main.add_command(rescued)
main.add_command(check)
main.add_command(support_bundle)


@main.command()
@_fails_in_the_log
def run() -> None:
    """
    Be the launcher: poll for jobs and execute them, until told to stop.

    Configured by environment variables only; docs/configuration.md lists them.
    The first SIGTERM or SIGINT drains: running jobs finish, no new one begins.
    The second one ends running jobs, letting their tools save their state.  The
    third one ends the launcher at once; containers stay as they are.

    \b
    Example:
      SPACELIFT_TOKEN=… \\
      SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY=/etc/spacelift/policy.rego \\
      spacelift-launcher run
    """
    with memory.lasting():
        from launcher.bootstrap import run_launcher  # noqa: PLC0415 (imports the world)
        from launcher.settings import Settings  # noqa: PLC0415

    environment = dict(os.environ)
    process_environment.forget(
        (
            "SPACELIFT_TOKEN",
            "SPACELIFT_POOL_PRIVATE_KEY",
            "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG",
            "OTEL_EXPORTER_OTLP_HEADERS",
        )
    )
    settings = Settings.from_environ(environment)
    sys.exit(run_launcher(settings, environment))


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
    help="For people and their tools; port 0 takes a free one and logs it.",
)
@click.option(
    "--behind-proxy",
    "behind_proxy",
    is_flag=True,
    help="A proxy with TLS is in front: --listen may be any address, and the"
    " configuration names the proxy's https URL as its endpoint.",
)
@click.option(
    "--listen-workers",
    "listen_workers",
    default="127.0.0.1:8443",
    show_default=True,
    help="For launchers, with mutual TLS.",
)
@click.option(
    "--dry-run",
    "dry_run",
    is_flag=True,
    help="Print what applying the configuration would change, and change nothing.",
)
def server(
    config: Path,
    database: str,
    listen: str,
    listen_workers: str,
    *,
    behind_proxy: bool,
    dry_run: bool,
) -> None:
    """
    Be the control plane that spacectl and launchers talk to.

    With --dry-run it ends with 0 when nothing would change, with 1 when something
    would, and with 2 when the configuration is wrong; a running server is not
    disturbed.

    \b
    Examples:
      spacelift-launcher server --config control-plane.yaml
      spacelift-launcher server --config control-plane.yaml --dry-run
    """
    if dry_run:
        _print_differences(config, database)
    else:
        _serve(config, database, listen, listen_workers, behind_proxy=behind_proxy)


@_fails_in_the_log
def _serve(
    config: Path, database: str, listen: str, listen_workers: str, *, behind_proxy: bool
) -> None:
    from launcher.controlplane.serve import serve  # noqa: PLC0415

    serve(config, database, listen, listen_workers, behind_proxy=behind_proxy)


@_fails_clearly
def _print_differences(config: Path, database: str) -> None:
    from launcher.controlplane import serve  # noqa: PLC0415

    lines = serve.dry_run(config, database)
    for line in lines:
        click.echo(line)
    click.echo(f"{len(lines) or 'no'} difference{'s' * (len(lines) != 1)}", err=True)
    sys.exit(1 if lines else 0)


@main.group()
def pool() -> None:
    """Make and reset the tokens of worker pools."""


class _TokenOptions(TypedDict):
    name: str
    endpoint: str
    csr: Path | None
    sign_requests: bool
    allowed_hosts: tuple[str, ...]
    database: str
    data_directory: Path | None


def _token_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.argument("name"),
        click.option(
            "--endpoint",
            required=True,
            help="How workers reach the control plane, as https://host:8443",
        ),
        click.option(
            "--csr",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A signing request by a key of yours.  Without it, a key is made.",
        ),
        click.option(
            "--sign-requests",
            is_flag=True,
            help="For an endpoint at which TLS ends, or has none (this machine only).",
        ),
        click.option(
            "--allowed-host",
            "allowed_hosts",
            multiple=True,
            help="A further host that launchers may be sent to.  May be repeated.",
        ),
        click.option(
            "--database",
            default="sqlite:///control-plane.db",
            show_default=True,
            help="The control plane's database.",
        ),
        click.option(
            "--data-directory",
            type=click.Path(file_okay=False, path_type=Path),
            help="The control plane's, if its configuration names one.",
        ),
    ):
        command = option(command)
    return command


@pool.command("create")
@_token_options
@_fails_clearly
def create(**options: Unpack[_TokenOptions]) -> None:
    """
    Print what launchers of the pool NAME are given: a token, and maybe a key.

    Both are printed as variables, once; the key is kept nowhere.  A pool has one
    key: with a request by the same key, it gets a token with a fresh certificate.

    \b
    Examples:
      spacelift-launcher pool create default --endpoint https://cp.example.com:8443
      openssl req -new -newkey rsa:4096 -nodes -subj /CN=default \\
        -keyout pool.key -out pool.csr
      spacelift-launcher pool create default --csr pool.csr \\
        --endpoint https://cp.example.com:8443
    """
    from launcher.controlplane import pool_tokens  # noqa: PLC0415

    _print_token(pool_tokens.create, options)


@pool.command("reset")
@_token_options
@_fails_clearly
def reset(**options: Unpack[_TokenOptions]) -> None:
    """
    Give the pool NAME another key and shut out workers with the old one.

    Takes effect within seconds.  Runs that wait for a confirmation fail, since
    what they would start from is sealed to the old key.

    \b
    Example:
      spacelift-launcher pool reset default --endpoint https://cp.example.com:8443
    """
    from launcher.controlplane import pool_tokens  # noqa: PLC0415

    _print_token(pool_tokens.reset, options)


def _print_token(
    make: Callable[[str, Path | None, Request], Made], options: _TokenOptions
) -> None:
    from launcher.controlplane.pool_tokens import Request  # noqa: PLC0415
    from launcher.wire.messages import Proof  # noqa: PLC0415

    made = make(
        options["database"],
        options["data_directory"],
        Request(
            pool=options["name"],
            endpoint=options["endpoint"],
            csr=options["csr"],
            proof=Proof.SIGNATURE if options["sign_requests"] else Proof.CERTIFICATE,
            allowed_hosts=options["allowed_hosts"],
        ),
    )
    click.echo(f"SPACELIFT_TOKEN={made.token}")
    if made.private_key:
        click.echo(f"SPACELIFT_POOL_PRIVATE_KEY={made.private_key}")
