"""
The work behind the ``policy`` commands: prints, and returns an exit code.

They ask the engine that the daemon asks.  What a policy calls with ``exec``
might have effects, so the daemon's own setting for it does not count here.
"""

from __future__ import annotations

import json

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import click

from launcher.adapters.policies.loading import load, load_trusting
from launcher.errors import ConfigurationError, LauncherError, PolicyUnusable
from launcher.policy import Evaluation, Outcome, PolicyEngine
from launcher.policytools import lint as linting
from launcher.policytools import schema as schemas
from launcher.policytools.lint import Check, Finding
from launcher.policytools.opa import OpaMissing, PolicyText
from launcher.policytools.replay import Replayed, SampleDamaged
from launcher.policytools.replay import replay as replayed
from launcher.settings import PolicySettings, RegoVersion, Settings


NOTHING, FOUND, UNUSABLE = 0, 1, 2

_CODES = {Outcome.ALLOW: NOTHING, Outcome.DENY: FOUND, Outcome.ERROR: UNUSABLE}

Options = Mapping[str, str]


def evaluate(path: Path, document: bytes, options: Options, *, explain: bool) -> int:
    try:
        settings = _settings(path, options)
        engine, content = load(settings), _input(document)
    except LauncherError as exc:
        _print_answer(Evaluation.failed(str(exc)))
        _complain(exc)
        return UNUSABLE
    evaluation = engine.evaluate(content)
    _print_answer(evaluation)
    if explain:
        _explain(path, settings.rego_version, content)
    return _CODES[evaluation.outcome]


def lint(path: Path, ignored: Iterable[str], options: Options, *, as_json: bool) -> int:
    try:
        settings = _settings(path, options)
        engine = load(settings)
        text = _text(path, settings.rego_version)
        if text and text.calls("exec") and not options["exec_allowed"]:
            _note("the policy calls exec, which fails here without --exec-allowed")
        findings = linting.lint(
            engine, text, map(Check, ignored), trusting=load_trusting(settings)
        )
    except LauncherError as exc:
        _complain(exc)
        return UNUSABLE
    for finding in findings:
        click.echo(_as_json(finding) if as_json else _as_text(finding))
    if not as_json:
        click.echo(f"{len(findings)} findings" if findings else "nothing found")
    return FOUND if findings else NOTHING


def replay(path: Path, logs: Iterable[IO[bytes]], options: Options) -> int:
    samples = changes = 0
    try:
        engine = load(_settings(path, options))
        for log in logs:
            for sample in _samples(log, engine):
                samples += 1
                if sample.changed:
                    changes += 1
                    click.echo(f"{log.name}:{sample.line}: {_change(sample)}")
    except LauncherError as exc:
        _complain(exc)
        return UNUSABLE
    if not samples:
        _note("there is no sample in it: does the policy say sample := true?")
        return UNUSABLE
    click.echo(f"{samples} samples, {changes} would change")
    return FOUND if changes else NOTHING


def schema() -> None:
    click.echo(json.dumps(schemas.schema(), indent=2, ensure_ascii=False))


def _settings(path: Path, options: Options) -> PolicySettings:
    """The settings of a daemon with these options, read by the same code."""
    given = {
        "SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY": str(path),
        "SPACELIFT_LAUNCHER_POLICY_REGO_VERSION": options["rego_version"],
        "SPACELIFT_LAUNCHER_POLICY_TIMEOUT": options["timeout"],
        "SPACELIFT_LAUNCHER_POLICY_EXEC_ALLOWED": options["exec_allowed"],
    }
    environ = {name: value for name, value in given.items() if value}
    return Settings.from_environ(environ).policy


def _input(document: bytes) -> dict[str, Any]:
    try:
        content = json.loads(document)
    except (ValueError, RecursionError) as exc:
        raise ConfigurationError("the input is not JSON") from exc
    if not isinstance(content, dict):
        raise ConfigurationError("the input is not a JSON object")
    return content


def _text(path: Path, version: RegoVersion) -> PolicyText | None:
    try:
        text = PolicyText.of(path, version)
    except OpaMissing as exc:
        _note(f"{exc}; what the policy asks for was not compared with the input")
        return None
    if text is None:
        _note("a compiled policy has no text to read: only its answers were judged")
    return text


def _explain(path: Path, version: RegoVersion, content: Mapping[str, Any]) -> None:
    try:
        text = PolicyText.of(path, version)
        if text is None:
            _note("a compiled policy has no text, so its rules cannot be shown")
            return
        if text.calls("exec"):
            _note("exec is not called again: rules that need its answer do not fire")
        for rule in text.rules(content):
            fired = "fired" if rule.fired else "  -  "
            click.echo(f"{fired}  {rule.place}  {rule.name}", err=True)
    except PolicyUnusable as exc:
        _note(f"no explanation: {exc}")


def _samples(log: IO[bytes], engine: PolicyEngine) -> Iterator[Replayed]:
    try:
        yield from replayed(log, engine)
    except SampleDamaged as exc:
        raise ConfigurationError(f"{log.name}: {exc}") from exc
    except OSError as exc:
        raise ConfigurationError(f"{log.name} cannot be read: {exc.strerror}") from exc


def _change(sample: Replayed) -> str:
    before = _with_reasons(sample.before, sample.reasons_before)
    now = sample.now
    after = _with_reasons(str(now.outcome), [now.error] if now.error else now.deny)
    return f"{sample.run}: {before} -> {after}"


def _with_reasons(outcome: str, reasons: Iterable[str]) -> str:
    return f"{outcome} ({'; '.join(reasons)})" if reasons else outcome


def _as_json(finding: Finding) -> str:
    return json.dumps(
        {
            "check": str(finding.check),
            "sentence": finding.sentence,
            "place": finding.place,
            "input": finding.input,
        }
    )


def _as_text(finding: Finding) -> str:
    place = f"{finding.place}: " if finding.place else ""
    proof = ""
    if finding.input is not None:
        proof = f"\n  {json.dumps(finding.input, separators=(',', ':'))}"
    return f"{finding.check}: {place}{finding.sentence}{proof}"


def _print_answer(evaluation: Evaluation) -> None:
    answer = {
        "outcome": str(evaluation.outcome),
        "results": dict(evaluation.results),
        "error": evaluation.error,
    }
    click.echo(json.dumps(answer))


def _complain(exc: LauncherError) -> None:
    click.echo(f"spacelift-launcher: {exc}", err=True)
    if exc.details:
        click.echo(exc.details, err=True)


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)
