"""
Who gets a job, and for how long: offers, claims, and leases.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass

import msgspec
import sqlalchemy as sa
import structlog

from launcher.controlplane import bell
from launcher.controlplane.clock import now
from launcher.controlplane.errors import WorkerRefused
from launcher.controlplane.hand_over import job_of, metadata_of
from launcher.controlplane.holding import (
    LOCKED,
    lock_stack_of_job,
    locked,
    moved,
    pair,
    seen,
    stop_reason,
    unknown_job,
    unknown_worker,
)
from launcher.controlplane.job_kinds import CONTENTS
from launcher.controlplane.leases import Leases, Overdue
from launcher.controlplane.lifecycle import LIFECYCLE, Event
from launcher.controlplane.pools import Standing, public_key
from launcher.controlplane.products import Products
from launcher.controlplane.queues import Queued, queued
from launcher.controlplane.run_tokens import RunTokens
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store, Transaction
from launcher.controlplane.transitions import move
from launcher.sealing import box
from launcher.sealing.keys import PoolPublicKey
from launcher.wire.jobs import Job
from launcher.wire.messages import (
    Ack,
    Claimed,
    ClaimRequest,
    ErrorCode,
    Offer,
    Polled,
    for_job,
)


log = structlog.get_logger()

OFFERED_SECONDS = 5.0
"""How long a job is not offered to others after it was offered to one."""
_SPARE = 16
"""Jobs that are looked at because others may be offered some meanwhile."""

_WORKER = sa.select(t.workers.c.id).where(t.workers.c.id == sa.bindparam("worker"))
_WANTED = (
    LOCKED.add_columns(
        t.stacks.c.pool.label("pool_of_stack"),
        t.stacks.c.revision.label("revision_of_stack"),
        t.runtime_configs.c.sealed,
        t.pools.c.public_key,
        sa.exists().where(t.run_metadata.c.run == t.runs.c.id).label("has_metadata"),
    )
    .join(t.stacks, t.stacks.c.slug == t.runs.c.stack)
    .outerjoin(t.runtime_configs, t.runtime_configs.c.run == t.runs.c.id)
    .outerjoin(
        t.workers,
        sa.and_(
            t.workers.c.id == sa.bindparam("worker"),
            t.workers.c.pool == sa.bindparam("pool"),
        ),
    )
    .outerjoin(t.pools, t.pools.c.name == t.workers.c.pool)
)
"""All that a claim has to know, in one question: each costs a trip to the database."""
_TAKE = (
    sa.update(t.jobs)
    .where(t.jobs.c.id == sa.bindparam("job_id"), t.jobs.c.state == t.JobState.OPEN)
    .values(
        {
            name: sa.bindparam(name)
            for name in ("state", "pool", "worker", "claim", "token", "claimed_at")
        }
    )
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a worker that waits has found."""

    polled: Polled
    _: KW_ONLY
    takes_part: bool
    """Whether it would be given a job, if it were its turn."""
    others_should: bool
    """Whether there may be jobs for other workers."""


class Claims:
    """The use cases.  Refusals are `WorkerRefused`, with what to do as code."""

    def __init__(
        self,
        store: Store,
        specs: Specs,
        leases: Leases,
        *,
        tokens: RunTokens,
        products: Products,
    ) -> None:
        self._products = products
        self._store = store
        self._specs = specs
        self._leases = leases
        self._tokens = tokens
        self._offered: dict[str, float] = {}
        self._idle: dict[str, list[str]] = {}
        """Workers that wait, by pool, the oldest first."""
        self._offering = threading.Lock()

    @contextmanager
    def waiting(self, pool: str, worker: str) -> Iterator[None]:
        """Count *worker* among those of *pool* that wait for an offer."""
        with self._offering:
            insort(self._idle.setdefault(pool, []), worker)
        try:
            yield
        finally:
            with self._offering:
                self._leave(pool, worker)

    def poll(self, pool: str, worker: str, standing: Standing) -> Look:
        """
        What there is for *worker*: the most urgent job of *pool*, if it is its turn.

        The newest of the workers that wait is served first, as far as there are jobs
        that were not offered to another just now.  One that is drained gets none.
        """
        with self._offering:
            most = self._newer(pool, worker) + len(self._offered) + _SPARE
        takes_part = not (standing.drained or standing.cycled)
        rows = []
        if takes_part:
            with self._store.glance() as connection:
                rows = queued(connection, pool, most)
        with self._offering:
            free = self._free(rows)
            offer = None
            if len(free) > self._newer(pool, worker):
                offer = Offer(job=free[0].job, run=free[0].run)
                self._offered[offer.job] = time.monotonic() + OFFERED_SECONDS
            if offer is not None or not takes_part:
                self._leave(pool, worker)
        left = len(free) - (offer is not None)
        return Look(
            Polled(offer=offer, cycle=standing.cycled),
            takes_part=takes_part,
            others_should=left > 0 or len(rows) == most or not takes_part,
        )

    def _free(self, rows: list[Queued]) -> list[Queued]:
        at = time.monotonic()
        self._offered = {
            job: until for job, until in self._offered.items() if until > at
        }
        return [row for row in rows if row.job not in self._offered]

    def _newer(self, pool: str, worker: str) -> int:
        """How many that wait registered after *worker*: ids are made of time."""
        idle = self._idle.get(pool, [])
        return len(idle) - bisect_right(idle, worker)

    def _leave(self, pool: str, worker: str) -> None:
        idle = self._idle.get(pool, [])
        place = bisect_left(idle, worker)
        if idle[place : place + 1] == [worker]:
            del idle[place]
        if not idle:
            self._idle.pop(pool, None)

    def take_back(self, offer: Offer) -> None:
        """Let *offer*, which reached nobody, be made to another at once."""
        with self._offering:
            self._offered.pop(offer.job, None)

    def claim(self, pool: str, job_id: str, request: ClaimRequest) -> Claimed:
        """
        Give the job to a worker; the same claim again gets the same answer.

        Raises:
            WorkerRefused: UNKNOWN_WORKER, UNKNOWN_JOB, or TAKEN.
        """
        given = self._store.together(lambda tx: self._given(tx, pool, job_id, request))
        if given is None:  # seldom: anew, with the locks of whoever ends a run
            given = self._store.together(
                lambda tx: self._given(tx, pool, job_id, request, ends=True)
            )
        if given is None:
            raise WorkerRefused(ErrorCode.TAKEN, "the run has failed meanwhile")
        job, run, spec, wire, key = given
        self._leases.begin(job.id)
        log.info("job.claimed", job=job.id, run=run.id, worker=request.worker)
        terms = self._leases.terms
        # The same claim gets the same tokens: nobody need wait while they are signed.
        whole = msgspec.structs.replace(
            wire, tokens=self._tokens.of_claim(job, run, spec)
        )
        return Claimed(
            token=job.token or "",
            sealed_job=box.seal(
                msgspec.json.encode(whole), purpose=for_job(job.id), to=key
            ),
            lease_seconds=terms.lease_seconds,
            renew_seconds=terms.renew_seconds,
            waited_seconds=max((job.claimed_at or now()) - job.created_at, 0) / 1e9,
        )

    def _given(
        self,
        tx: Transaction,
        pool: str,
        job_id: str,
        request: ClaimRequest,
        *,
        ends: bool = False,
    ) -> tuple[t.Job, t.Run, StackSpec, Job, PoolPublicKey] | None:
        """What is taken by a claim; None if the run must fail instead, if it *ends*."""
        if ends:
            lock_stack_of_job(tx, job_id)
        named = {"job_id": job_id, "worker": request.worker, "pool": pool}
        found = tx.connection.execute(_WANTED, named).one_or_none()
        if found is None:
            _require_registered(tx.connection, request.worker)
            raise unknown_job(job_id)
        if found.public_key is None:
            raise unknown_worker()
        job, run = pair(found)
        if (job.pool or found.pool_of_stack) != pool:
            raise unknown_job(job_id)
        again = (request.worker, request.claim) == (job.worker, job.claim)
        if not (job.state is t.JobState.CLAIMED and again):
            if job.state is not t.JobState.OPEN:
                raise WorkerRefused(
                    ErrorCode.TAKEN, "the job is not there for the taking any more"
                )
            run, missing = self._pinned(
                tx.connection, run, run.revision or found.revision_of_stack
            )
            if missing and not ends:
                return None
            if missing:
                what = ", ".join(missing)
                note = (
                    f"job assignment failed: the following inputs are missing: {what}"
                )
                move(tx, run, Event.FAIL, note=note, text=f"{note}\n")
                return None
            job, run = _taken(tx, job, run, request, pool=pool)
        config = self._specs.opened_runtime_config(run.id, found.sealed)
        spec = self._specs.of_run(tx.connection, run, config)
        said = metadata_of(tx.connection, run.id) if found.has_metadata else ()
        wire = msgspec.structs.replace(
            job_of(tx.connection, job, run, spec, said),
            runtime_config_sha256=config.sha256,
            # Whoever reads the log of the plan has read them.
            notes=() if CONTENTS[job.kind].restores else config.notes,
        )
        return job, run, spec, wire, public_key(found.public_key)

    def _pinned(
        self, connection: sa.Connection, run: t.Run, revision: int
    ) -> tuple[t.Run, list[str]]:
        """
        *run* with what all of its jobs are to see, to be moved like that.

        Also which inputs are missing.
        """
        if run.revision is not None:
            return run, []
        spec = self._specs.at(connection, revision)
        variables, missing = self._products.inputs(connection, spec)
        inputs = self._products.sealed_inputs(variables)
        return dataclasses.replace(run, revision=revision, inputs=inputs), missing

    def renew(self, pool: str, job_id: str, token: str) -> Ack:
        """Extend the lease; say whether the run should be stopped."""
        with self._store.read() as connection:
            _, run = seen(connection, pool, job_id, token)
        self._leases.renew(job_id)
        if run.unreachable_since is not None:
            with self._store.write() as tx:
                tx.change(
                    sa.update(t.runs)
                    .where(t.runs.c.job == job_id)
                    .values(unreachable_since=None)
                )
                tx.wake(bell.of_run(run.id))
            log.info("worker.reachable_again", job=job_id, run=run.id)
        return Ack(stop=stop_reason(run))

    def resume(self) -> None:
        """Give every claimed job a fresh lease, after a start."""
        query = sa.select(t.jobs.c.id).where(t.jobs.c.state == t.JobState.CLAIMED)
        with self._store.read() as connection:
            for job in connection.execute(query).scalars():
                self._leases.begin(job)

    def sweep(self) -> None:
        """Draw the consequences of every lease that has run out."""
        for overdue in self._leases.overdue():
            self._expire(overdue)

    def _expire(self, overdue: Overdue) -> None:
        with self._store.write() as tx:
            job, run = locked(tx, overdue.job, ends=True)
            if job.state is not t.JobState.CLAIMED:
                self._leases.end(job.id)
                return
            if not self._leases.still_overdue(job.id):
                return
            writes = LIFECYCLE[run.state].writes
            if writes and run.unreachable_since is None:
                tx.change(
                    sa.update(t.runs)
                    .where(t.runs.c.id == run.id)
                    .values(unreachable_since=now())
                )
                tx.wake(bell.of_run(run.id))
                log.warning("worker.unreachable", job=job.id, run=run.id)
            if not (overdue.over_limit if writes else overdue.hopeless):
                return
            tx.change(
                sa.update(t.jobs)
                .where(t.jobs.c.id == job.id)
                .values(state=t.JobState.LOST)
            )
            move(tx, run, Event.FAIL, note="the worker was lost: it stopped answering")
        self._leases.end(job.id)
        log.error("worker.lost", job=job.id, run=run.id, worker=job.worker)


def _require_registered(connection: sa.Connection, worker: str) -> None:
    if connection.execute(_WORKER, {"worker": worker}).first() is None:
        raise unknown_worker()


def _taken(
    tx: Transaction,
    job: t.Job,
    run: t.Run,
    request: ClaimRequest,
    *,
    pool: str,
) -> tuple[t.Job, t.Run]:
    """The job and its run once the worker has it."""
    taken = dataclasses.replace(
        job,
        state=t.JobState.CLAIMED,
        pool=pool,
        worker=request.worker,
        claim=request.claim,
        token=secrets.token_urlsafe(32),
        claimed_at=now(),
    )
    values = {
        name: getattr(taken, name)
        for name in ("state", "pool", "worker", "claim", "token", "claimed_at")
    }
    if tx.change(_TAKE, {"job_id": job.id, **values}) != 1:
        raise WorkerRefused(ErrorCode.TAKEN, "another worker has claimed the job")
    return taken, moved(tx, run, Event.CLAIM, job=job.id)
