"""Whatever users and workers do, in whatever order: some things always hold."""

import functools
import hashlib
import itertools
import random

from collections import Counter
from types import SimpleNamespace

import msgspec
import pytest

from controlplane.site import configuration, stack
from support.pool_keys import KEY
from launcher.controlplane import run_logs
from launcher.controlplane.actors import Actor
from launcher.controlplane.errors import RequestRefused, WorkerRefused
from launcher.controlplane.log_chunks import Part
from launcher.controlplane.lifecycle import BLOCKS, LIFECYCLE
from launcher.controlplane.new_runs import Order
from launcher.controlplane.pools import Standing
from launcher.controlplane.runs import Runs
from launcher.controlplane.store import tables as t
from launcher.sealing import box
from launcher.wire.jobs import Commit, Job, RunState, RunType
from launcher.wire.messages import (
    ClaimRequest,
    PlanReport,
    Registration,
    Settlement,
    StateReport,
    Verdict,
    WorkspaceUploaded,
    for_job,
)


S = RunState
WRITING = {state for state, traits in LIFECYCLE.items() if traits.writes}
ACTOR = Actor.of_api_key("ci")
HERE = Standing(drained=False, cycled=False)
COMMIT = Commit(hash="0" * 40, branch="main", author="", message="", created_at=0)


class OneCommit:
    """Finds the same commit at once."""

    def of_branch(self, **_):
        return COMMIT

    def file(self, **_):
        return None


class Chaos:
    """A user and a worker, neither of whom keeps to any order."""

    def __init__(self, site, repository, seed):
        self.random = random.Random(seed)
        self.slug = f"chaos-{seed}"
        self.autodeploy = seed % 3 == 0
        one = stack(repository, self.slug, autodeploy=self.autodeploy)
        site.apply(configuration([one]))
        plane = site.plane
        plane.pools.create("default", KEY.public)
        specs = plane.claims._specs
        self.plane = plane
        self.users = Runs(
            plane.store, specs, OneCommit(), lambda run, stack: None, plane.approvals
        )
        self.worker = plane.pools.register(
            "default", Registration(instance="i", slot=0, version="")
        )
        # Each walk has a theme, so that all of them together see everything.
        self.kinds = [RunType.TRACKED, RunType.TRACKED, list(RunType)[seed % 5]]
        self.runs, self.held, self.over = [], [], {}
        self.logs, self.changes, self.planned = {}, {}, set()

    def attempt(self, call, *arguments, **named):
        try:
            return call(*arguments, **named)
        except (RequestRefused, WorkerRefused):
            return None

    def act(self):
        """Do something, sensible more often than not."""
        actions = {
            self.trigger: 2,
            self.take: 4,
            self.advance: 8 * bool(self.held),
            self.confirm: 2 * bool(self.runs),
            self.decide: bool(self.runs),
            self.misreport: bool(self.held),
            self.misplan: bool(self.held),
            self.misstore: bool(self.held),
            self.missettle: bool(self.held),
        }
        (action,) = self.random.choices(list(actions), list(actions.values()))
        action()

    def any(self, options):
        return self.random.choice(list(options))

    def output(self):
        return self.random.randbytes(self.random.randrange(6))

    def trigger(self):
        if len(self.runs) < 6:
            kind = self.any(self.kinds)
            order = Order(type=kind, command="x", skip_init=self.any([True, False]))
            run = self.users.order(self.slug, ACTOR, order).id
            self.users.look_up(run)
            self.runs.append(run)

    def decide(self):
        what = self.any([self.users.stop, self.users.discard, self.users.cancel])
        self.attempt(what, self.slug, self.any(self.runs), ACTOR)

    def confirm(self):
        for run in self.runs:
            if self.random.random() < 0.5:
                self.attempt(self.users.confirm, self.slug, run, ACTOR)
            else:
                self.attempt(self.users.replan, self.slug, run, ACTOR, ["a.b"])

    def take(self):
        offer = self.plane.claims.poll("default", self.worker, HERE).polled.offer
        if offer is not None and offer.run in self.runs:
            claim = ClaimRequest(worker=self.worker, claim=offer.job)
            claimed = self.attempt(self.plane.claims.claim, "default", offer.job, claim)
            if claimed is not None:
                sealed, purpose = claimed.sealed_job, for_job(offer.job)
                plain = box.opened(sealed, purpose=purpose, key=KEY)
                job = msgspec.json.decode(plain, type=Job)
                self.held.append(SimpleNamespace(job=job, token=claimed.token))
                self.logs[offer.job] = b""

    def state_of(self, claimed):
        with self.plane.store.read() as connection:
            return run_logs.history(connection, claimed.job.run.id)[0].state

    def append(self, claimed, output):
        """Send *output*, and two bytes that are there already once more."""
        job, known = claimed.job.id, self.logs[claimed.job.id]
        about = ("default", job, claimed.token)
        offset = max(0, len(known) - 2)
        again = known[offset:] + output
        if (
            self.attempt(self.plane.reports.append, *about, offset, Part(again))
            is not None
        ):
            self.logs[job] += output

    def report(self, claimed, state):
        self.attempt(
            self.plane.reports.state,
            "default",
            claimed.job.id,
            claimed.token,
            StateReport(state=state, log_offset=len(self.logs[claimed.job.id])),
        )

    def advance(self):
        """What a good worker does next with its newest job."""
        claimed = self.held[-1]
        self.append(claimed, self.output())
        run = claimed.job.run.id
        match self.state_of(claimed):
            case S.PREPARING | S.PREPARING_REPLAN if claimed.job.phases[0] != "perform":
                self.report(claimed, S.INITIALIZING)
            case S.INITIALIZING | S.PREPARING if claimed.job.phases[-1] == "perform":
                self.report(claimed, S.PERFORMING)
            case S.INITIALIZING:
                self.report(claimed, S.PLANNING)
            case S.PREPARING_APPLY if claimed.job.phases[-1] == "destroy":
                self.report(claimed, S.DESTROYING)
            case S.PREPARING_APPLY:
                self.report(claimed, S.APPLYING)
            case S.PLANNING if claimed.job.id not in self.planned:
                self.send_plan(claimed, changes=self.random.random() < 0.8, here=True)
                self.report(claimed, S.APPLYING)
            case S.APPLYING if claimed.job.phases[-1] == "destroy":
                self.report(claimed, S.DESTROYING)
            case S.PLANNING if self.changes[run] or claimed.job.run.type == "DESTROY":
                self.send_workspace(claimed)
                self.send_verdict(claimed, Verdict.HANDED_OVER)
            case _:
                self.send_verdict(claimed, Verdict.FINISHED)

    def misreport(self):
        claimed = self.any(self.held)
        self.append(claimed, self.output())
        self.report(claimed, self.any(S))

    def misplan(self):
        changes, here = self.any([True, False]), self.any([True, False])
        self.send_plan(self.any(self.held), changes=changes, here=here)

    def send_plan(self, claimed, *, changes, here):
        report = PlanReport(has_changes=changes, applies_here=here)
        about = ("default", claimed.job.id, claimed.token)
        if self.attempt(self.plane.reports.plan, *about, report) is not None:
            self.changes[claimed.job.run.id] = changes
            self.planned.add(claimed.job.id)

    def misstore(self):
        self.send_workspace(self.any(self.held))

    def send_workspace(self, claimed):
        about, store = ("default", claimed.job.id, claimed.token), self.plane.workspaces
        append = functools.partial(store.append, to="u", offset=0)
        if self.attempt(append, *about, b"x") is not None:
            sent = WorkspaceUploaded(
                upload="u", size=1, sha256=hashlib.sha256(b"x").hexdigest()
            )
            self.attempt(store.finish, *about, sent)

    def missettle(self):
        early = self.any([True, False])
        verdict = self.any([*Verdict, Verdict.FAILED, Verdict.FAILED])
        self.send_verdict(self.any(self.held[-2:]), verdict, early=early)

    def send_verdict(self, claimed, verdict, *, early=False):
        length = len(self.logs[claimed.job.id]) + early
        self.attempt(
            self.plane.settling.settle,
            "default",
            claimed.job.id,
            claimed.token,
            Settlement(verdict=verdict, log_length=length),
        )

    def histories(self):
        with self.plane.store.read() as connection:
            return {run: run_logs.history(connection, run)[::-1] for run in self.runs}

    def every_step_is_in_the_table(self):
        for run, history in self.histories().items():
            states = [entry.state for entry in history]
            assert states[0] is S.QUEUED
            for before, after in itertools.pairwise(states):
                assert after in LIFECYCLE[before].leads_to.values()
            assert [entry.version for entry in history] == [
                number + 1 for number in range(len(history))
            ]
            if run in self.over:
                assert states == self.over[run], "what is over stays as it is"
            elif LIFECYCLE[states[-1]].terminal:
                self.over[run] = states

    def one_tracked_run_holds_the_stack(self):
        with self.plane.store.read() as connection:
            rows = connection.execute(
                t.runs.select().where(t.runs.c.stack == self.slug)
            ).all()
            blocker = (
                connection.execute(
                    t.stacks.select().where(t.stacks.c.slug == self.slug)
                )
                .one()
                .blocker
            )
        active = [
            row.id
            for row in rows
            if row.type in BLOCKS and LIFECYCLE[row.state].holds_lock
        ]
        waiting = [
            row.id for row in rows if row.type in BLOCKS and row.state is S.QUEUED
        ]
        assert active == ([blocker] if blocker else [])
        assert blocker or not waiting, "somebody waits for nobody"

    def nothing_is_applied_that_nobody_wanted(self):
        for run, history in self.histories().items():
            states = [entry.state for entry in history]
            for writing in WRITING:
                assert states.count(writing) < 2
            kind = self.type_of(run)
            if S.APPLYING in states and kind is RunType.TRACKED:
                assert S.CONFIRMED in states or self.autodeploy
            if S.DESTROYING in states and kind is RunType.DESTROY:
                assert S.CONFIRMED in states
            assert kind is not RunType.PROPOSED or WRITING.isdisjoint(states)
            if S.STOPPED in states:
                assert WRITING.isdisjoint(states)

    def finished_means_done(self):
        last = {
            RunType.TASK: S.PERFORMING,
            RunType.TESTING: S.DESTROYING,
            RunType.DESTROY: S.DESTROYING,
        }
        for run, history in self.histories().items():
            states = [entry.state for entry in history]
            if states[-1] is not S.FINISHED:
                continue
            kind = self.type_of(run)
            if kind in last:
                assert states[-2] is last[kind]
            elif S.APPLYING not in states:
                assert kind is RunType.PROPOSED or not self.changes[run]

    def type_of(self, run):
        query = t.runs.select().where(t.runs.c.id == run)
        with self.plane.store.read() as connection:
            return connection.execute(query).one().type

    def every_byte_is_there_once(self):
        texts = {}
        for run, history in self.histories().items():
            for entry in history:
                if entry.job is not None:
                    with self.plane.store.read() as connection:
                        end = run_logs.read(
                            connection, run, entry.state, entry.version, None
                        )
                    texts.setdefault(entry.job, []).append((entry, end))
        for job, pages in texts.items():
            expected = self.logs.get(job, b"")
            starts = [entry.log_start for entry, _ in pages] + [len(expected)]
            for (_, page), (start, end) in zip(
                pages, itertools.pairwise(starts), strict=True
            ):
                whole = expected[start:end].decode(errors="replace")
                assert whole.startswith(page.text)
                assert page.text == whole or not page.finished

    def check(self):
        self.every_step_is_in_the_table()
        self.one_tracked_run_holds_the_stack()
        self.nothing_is_applied_that_nobody_wanted()
        self.finished_means_done()


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Offers are made again at once: nobody else is there to take them."""
    monkeypatch.setattr("launcher.controlplane.claims.OFFERED_SECONDS", 0)


def test_the_invariants_hold(shared_site, repository):
    """No order of requests leads anywhere that the table does not."""
    reached = Counter()
    for seed in range(15):
        chaos = Chaos(shared_site, repository, seed)
        for number in range(60):
            chaos.act()
            chaos.check()
            if number % 6 == 5:
                chaos.every_byte_is_there_once()
        for history in chaos.histories().values():
            reached.update({entry.state for entry in history})
    by_policy = {S.PENDING_REVIEW, S.SKIPPED}
    assert set(reached) == set(LIFECYCLE) - by_policy, "the walk must have seen it all"
