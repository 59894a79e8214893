"""What stacks tell others: the outputs that a worker reports after an apply."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
import structlog

from launcher.controlplane.clock import now
from launcher.controlplane.holding import current, wrong_state
from launcher.controlplane.keys import Keyring
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store
from launcher.wire.jobs import RunState
from launcher.wire.messages import Ack, OutputsReport, StackOutput


log = structlog.get_logger()


class Outputs:
    """Stores outputs sealed, since some of them are secret."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring

    def report(self, pool: str, job_id: str, token: str, report: OutputsReport) -> Ack:
        """
        Keep what the job's run has told; the last report counts.

        Raises:
            WorkerRefused: WRONG_STATE when the run has applied nothing.
        """
        plain = msgspec.json.encode(report)
        with self._store.write() as tx:
            _, run = current(tx, pool, job_id, token)
            if run.state is not RunState.APPLYING:
                raise wrong_state(f"a run that is {run.state} has no outputs")
            tx.connection.execute(sa.delete(t.outputs).where(t.outputs.c.run == run.id))
            tx.connection.execute(
                sa.insert(t.outputs).values(
                    run=run.id,
                    sealed=self._keyring.seal(plain, _purpose(run.id)),
                    stored_at=now(),
                )
            )
        log.info("run.told", run=run.id, job=job_id, outputs=len(report.outputs))
        return Ack()

    def of_stack(self, connection: sa.Connection, slug: str) -> tuple[StackOutput, ...]:
        """What the last run of a stack that finished with an apply has told."""
        query = (
            sa.select(t.outputs.c.run, t.outputs.c.sealed)
            .join(t.runs, t.runs.c.id == t.outputs.c.run)
            .where(t.runs.c.stack == slug, t.runs.c.state == RunState.FINISHED)
            .order_by(t.runs.c.number.desc())
            .limit(1)
        )
        found = connection.execute(query).one_or_none()
        if found is None:
            return ()
        plain = self._keyring.open(found.sealed, _purpose(found.run))
        return msgspec.json.decode(plain, type=OutputsReport).outputs


def _purpose(run: str) -> str:
    return f"outputs {run}"
