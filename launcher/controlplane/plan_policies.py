"""What plan policies mean for a run: denied, warned, flagged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from launcher.controlplane.hand_over import metadata_of, plan_of
from launcher.controlplane.policies import Policies, Verdict
from launcher.controlplane.policy_documents import Previous, about_plan
from launcher.controlplane.specs import Specs
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, one
from launcher.wire.jobs import RunType
from launcher.wire.messages import PlanReport


_LONGEST = 500
_MOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    denials: tuple[str, ...] = ()
    """Sentences, each with its policy's name; any of them fails the run."""
    warnings: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    """All flags of the run from now on."""


class PlanPolicies:
    """Asks the policies of a run's stack about its plan."""

    def __init__(self, store: Store, specs: Specs, policies: Policies) -> None:
        self._store = store
        self._specs = specs
        self._policies = policies

    def judge(self, run: t.Run, report: PlanReport) -> Judgement:
        """What the policies say; it takes a while, so no transaction may be open."""
        with self._store.read() as connection:
            names = self._specs.policies_of(connection, run)
            attached = self._policies.attached(connection, names, "PLAN")
            if not attached:
                return Judgement(flags=tuple(run.flags))
            stack = self._specs.row(connection, run.stack)
            spec = self._specs.of_run(connection, run)
            metadata = metadata_of(connection, run.id)
            previous = _before(connection, run)
        document = about_plan(run, stack, spec, report, metadata, previous=previous)
        verdicts = self._policies.ask(
            attached, document, run=run.id, outcome=outcome_of
        )
        return Judgement(
            denials=_sentences(verdicts, "deny"),
            warnings=_sentences(verdicts, "warn"),
            flags=flags_after(run.flags, verdicts),
        )


def _before(connection: sa.Connection, run: t.Run) -> Previous | None:
    columns = t.runs.c
    query = sa.select(t.runs).where(
        columns.stack == run.stack,
        columns.type == RunType.TRACKED,
        columns.number < run.number,
    )
    found = one(connection, t.Run, query.order_by(columns.number.desc()).limit(1))
    if found is None:
        return None
    return Previous(
        run=found,
        report=plan_of(connection, found.id),
        metadata=metadata_of(connection, found.id),
    )


def outcome_of(verdict: Verdict) -> str:
    """As samples show it."""
    if verdict.texts("deny"):
        return "deny"
    return "warn" if verdict.texts("warn") else "allow"


def flags_after(before: Sequence[str], verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    """Flags that are reset go first, those that are set come after."""
    verdicts = list(verdicts)
    reset = {flag for each in verdicts for flag in each.texts("reset_flag")}
    added = [flag for each in verdicts for flag in each.texts("flag")]
    kept = [flag for flag in before if flag not in reset]
    flags = [flag[:_LONGEST] for flag in dict.fromkeys([*kept, *added])]
    return tuple(flags[:_MOST])


def _sentences(verdicts: Iterable[Verdict], name: str) -> tuple[str, ...]:
    found = [
        f"{each.policy}: {text[:_LONGEST]}"
        for each in verdicts
        for text in each.texts(name)
    ]
    if name == "deny":
        found += [f"{each.policy}: {each.error}" for each in verdicts if each.error]
    return tuple(found[:_MOST])
