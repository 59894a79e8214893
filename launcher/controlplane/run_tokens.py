"""
What a run proves with who it is: to this control plane, and to clouds.

Both tokens belong to one job.  The one for the API is good for as long as a worker
holds that job, and for its stack only; what clouds make of theirs is up to them.
"""

from __future__ import annotations

import time

import jwt
import msgspec
import sqlalchemy as sa

from launcher.controlplane.actors import Actor
from launcher.controlplane.clock import new_id
from launcher.controlplane.holding import seen
from launcher.controlplane.identity_provider import IdentityProvider
from launcher.controlplane.keys import Keyring
from launcher.controlplane.lifecycle import LIFECYCLE
from launcher.controlplane.pools import key_of
from launcher.controlplane.specs import Specs
from launcher.controlplane.stack_spec import StackSpec
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store
from launcher.sealing import box
from launcher.wire.jobs import RunType, Tokens
from launcher.wire.messages import TokensIssued, for_tokens


API_SECONDS = 3 * 3600
OIDC_SECONDS = 3600
SPACE = "root"
_ALGORITHM = "HS256"


class RunTokens:
    """Issues both, and knows whose the one for the API is."""

    def __init__(
        self,
        store: Store,
        specs: Specs,
        keyring: Keyring,
        provider: IdentityProvider,
        endpoint: str,
        *,
        oidc_seconds: int = OIDC_SECONDS,
    ) -> None:
        self._store = store
        self._specs = specs
        self._keyring = keyring
        self._provider = provider
        self._endpoint = endpoint
        self._oidc_seconds = oidc_seconds

    def of_claim(self, job: t.Job, run: t.Run, spec: StackSpec) -> Tokens:
        """The tokens that a claim of *job* is answered with: always the same."""
        issued = (job.claimed_at or run.updated_at) // 1_000_000_000
        return self._made(job, run, spec, identity=job.id, issued=issued)

    def fresh(self, pool: str, job_id: str, token: str) -> TokensIssued:
        """
        New tokens for a job that is held.

        Raises:
            WorkerRefused: UNKNOWN_JOB, STALE_TOKEN.
        """
        with self._store.read() as connection:
            job, run = seen(connection, pool, job_id, token)
            spec = self._specs.of_run(connection, run)
            _, key = key_of(connection, pool)
        made = self._made(job, run, spec, identity=new_id(), issued=int(time.time()))
        return TokensIssued(
            sealed_tokens=box.seal(
                msgspec.json.encode(made), purpose=for_tokens(job_id), to=key
            )
        )

    def actor(self, token: str) -> Actor | None:
        """The run whose token this is; None when it is none, or not any more."""
        try:
            claims = jwt.decode(
                token,
                self._keyring.jwt,
                algorithms=[_ALGORITHM],
                audience=self._endpoint,
                options={"require": ["exp", "aud", "sub", "job"]},
            )
        except jwt.InvalidTokenError:
            return None
        query = (
            sa.select(t.runs.c.id, t.runs.c.stack, t.runs.c.state)
            .join(t.jobs, t.jobs.c.run == t.runs.c.id)
            .where(
                t.jobs.c.id == str(claims["job"]), t.jobs.c.state == t.JobState.CLAIMED
            )
        )
        with self._store.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or not LIFECYCLE[row.state].on_worker:
            return None
        return Actor.of_run(row.id, row.stack)

    def _made(
        self, job: t.Job, run: t.Run, spec: StackSpec, *, identity: str, issued: int
    ) -> Tokens:
        facts = {
            "spaceId": SPACE,
            "spacePath": SPACE,
            "callerType": "stack",
            "callerId": spec.slug,
            "runId": run.id,
            "runType": run.type.value,
            "scope": "write" if _writes(job, run, spec) else "read",
        }
        claims = {
            "aud": self._endpoint,
            "sub": f"run::{run.id}",
            "job": job.id,
            "iat": issued,
            "exp": issued + API_SECONDS,
            "jti": identity,
        }
        return Tokens(
            api=jwt.encode(claims, self._keyring.jwt, algorithm=_ALGORITHM),
            oidc=self._provider.token(
                facts, identity=identity, issued=issued, seconds=self._oidc_seconds
            ),
            graphql_endpoint=f"{self._endpoint}/graphql",
            refresh_seconds=max(self._oidc_seconds * 2 // 3, 1),
        )


def _writes(job: t.Job, run: t.Run, spec: StackSpec) -> bool:
    """
    Whether the job may change things.

    A plan that is confirmed by somebody does not; one that deploys by itself is
    followed by its apply in the same job.
    """
    if run.type is RunType.PROPOSED:
        return False
    plans = run.type is RunType.TRACKED and job.kind is t.JobKind.PLAN
    return not plans or spec.autodeploy
