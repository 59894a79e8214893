"""
``policy eval``, ``lint``, ``replay`` and ``schema``: options in, exit code out.

What they do is in `launcher.commands.policy_work`, imported when one is called.
"""

from __future__ import annotations

import sys

from collections.abc import Callable
from pathlib import Path
from typing import IO

import click


CHECKS = (
    "unsigned-run",
    "unbound-token",
    "evaded",
    "default-image",
    "unknown-input",
    "never-true",
    "no-answer",
)


@click.group()
def policy() -> None:
    """Try initialization policies: no token, engine or network needed, no effects."""


def _engine_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--exec-allowed",
            "exec_allowed",
            default="",
            metavar="PATHS",
            help="Commands that exec() really runs, written as in"
            " SPACELIFT_LAUNCHER_POLICY_EXEC_ALLOWED; none unless given here.",
        ),
        click.option(
            "--rego-version",
            "rego_version",
            type=click.Choice(["auto", "v0", "v1"]),
            envvar="SPACELIFT_LAUNCHER_POLICY_REGO_VERSION",
            default="auto",
            show_default=True,
            help="Dialect of the policy.",
        ),
        click.option(
            "--timeout",
            "timeout",
            default="",
            metavar="DURATION",
            help="How long one evaluation may take, for example 5s.",
        ),
    ):
        command = option(command)
    return command


_policy_option = click.option(
    "--policy",
    "path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Rego, a directory of it, or what was compiled of it.",
)


@policy.command("eval")
@_policy_option
@click.option(
    "--input",
    "document",
    required=True,
    type=click.File("rb"),
    help="The input as JSON; - for standard input.",
)
@click.option("--explain", "explain", is_flag=True, help="Show which rules fired.")
@_engine_options
def evaluate(path: Path, document: IO[bytes], explain: bool, **engine: str) -> None:
    """
    Print what a policy says about one input.

    Prints {"outcome", "results", "error"} and ends with 0 for allow, with 1 for
    deny, and with 2 for an error, which denies, too.  With --explain, the rules
    and whether they fired are on standard error; that takes the opa command.

    \b
    Example:
      jq -c 'select(.sample).sample.input' launcher.log | tail -n 1 |
        spacelift-launcher policy eval --policy policy.rego --input - --explain
    """
    from launcher.commands import policy_work  # noqa: PLC0415

    sys.exit(policy_work.evaluate(path, document.read(), engine, explain=explain))


@policy.command("lint")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--ignore",
    "ignored",
    multiple=True,
    type=click.Choice(CHECKS),
    help="A kind of finding that you accept; may be given again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print findings as JSON lines.")
@_engine_options
def lint(path: Path, ignored: tuple[str, ...], as_json: bool, **engine: str) -> None:
    """
    Find out how a policy lets runs through that nobody has proven.

    Asks the policy about hostile inputs and reads its text.  Each finding is a
    sentence, and the input that was let in or the line that is wrong.  Ends
    with 0 when there is none, with 1 when there is one, and with 2 when the
    policy cannot be loaded.

    \b
    Examples:
      spacelift-launcher policy lint policy.rego
      spacelift-launcher policy lint --ignore unsigned-run images-only.rego
    """
    from launcher.commands import policy_work  # noqa: PLC0415

    sys.exit(policy_work.lint(path, ignored, engine, as_json=as_json))


@policy.command("replay")
@_policy_option
@click.argument("logs", metavar="LOG…", nargs=-1, required=True, type=click.File("rb"))
@_engine_options
def replay(path: Path, logs: tuple[IO[bytes], ...], **engine: str) -> None:
    """
    Show what a new policy would have said otherwise about runs of the past.

    LOG is what launchers print, with - for standard input; all lines but
    samples are passed over.  Ends with 0 when nothing would change, with 1 when
    something would, and with 2 when the policy cannot be loaded, a sample is
    damaged, or there is none.

    \b
    Example:
      journalctl -u spacelift-launcher -o cat |
        spacelift-launcher policy replay --policy new.rego -
    """
    from launcher.commands import policy_work  # noqa: PLC0415

    sys.exit(policy_work.replay(path, logs, engine))


@policy.command("schema")
def schema() -> None:
    """
    Print the JSON Schema of a policy's input.

    \b
    Example:
      spacelift-launcher policy schema > schema.json
      opa check --schema schema.json policy.rego
    """
    from launcher.commands import policy_work  # noqa: PLC0415

    policy_work.schema()
