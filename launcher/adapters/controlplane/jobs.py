"""The worker protocol's conversation about jobs, from the worker's side."""

from __future__ import annotations

import hashlib
import threading

from collections.abc import Callable, Mapping
from itertools import islice
from typing import TypeVar

import msgspec
import structlog
import zstandard

from launcher import __version__
from launcher.adapters.controlplane.client import Client, Refusal
from launcher.cancel import CancelToken
from launcher.errors import ControlPlaneUnavailable, Cycled, SealBroken
from launcher.model import Claim, PlanDecision
from launcher.retry import Pauses
from launcher.sealing import box
from launcher.sealing.keys import PoolKey
from launcher.wire.jobs import Job, RunState, Tokens, Variable
from launcher.wire.messages import (
    CHECKSUM_HEADER,
    ENCODING_HEADER,
    LOG_ENCODING,
    MAX_LOG_CHUNK,
    MAX_PACKED_LOG,
    Ack,
    Claimed,
    ClaimRequest,
    ErrorCode,
    LogAck,
    NextStep,
    Offer,
    OutputsReport,
    PlanAnswer,
    PlanReport,
    Poll,
    Polled,
    Registered,
    Registration,
    Settlement,
    StateReport,
    TokensIssued,
    Verdict,
    for_job,
    for_plan_answer,
    for_tokens,
)


T = TypeVar("T")
log = structlog.get_logger()

_CLAIM_REPEATED = 5
_SAMPLE = 64 << 10
"""The first bytes of a part of a log, by which the rest is judged."""
_WORTH_WHILE = 0.8
"""What is not compressed to this share of its size is sent as it is."""

# What a control plane asks for is heeded within these bounds, in seconds: it shall
# neither keep a launcher from noticing that nobody answers, nor busy for nothing.
_LEASE = (1.0, 3600.0)
_RENEW = (0.2, 60.0)
_POLL = (1.0, 60.0)
_RENEWAL_ANSWER = (5.0, 30.0)


class HttpJobSource:
    """Implements `launcher.ports.JobSource`."""

    def __init__(
        self,
        client: Client,
        key: PoolKey,
        *,
        instance: str,
        metadata: Mapping[str, str],
    ) -> None:
        self._client = client
        self._key = key
        self._instance = instance
        self._metadata = dict(metadata)
        self._lock = threading.Lock()
        self._workers: dict[int, Registered] = {}

    def receive(self, slot: int, *, wait: float) -> Offer | None:
        def poll() -> Offer | None:
            worker = self._registered(slot)
            seconds = min(wait, _within(_POLL, worker.poll_seconds))
            polled = self._client.call(
                "POST",
                f"/workers/{worker.worker}/poll",
                Polled,
                body=Poll(wait_seconds=seconds),
                answer_seconds=seconds + 15,
            )
            if polled.cycle:
                raise Cycled("the worker pool is cycled")
            return polled.offer

        # The clock is compared here and in no call about a job: what a job has to
        # say must arrive, whatever the time is.
        try:
            offer = self._as_known_worker(slot, poll)
        except ControlPlaneUnavailable:
            self._client.require_clock()
            raise
        self._client.require_clock()
        return offer

    def claim(self, slot: int, offer: Offer, identity: str) -> Claim | None:
        for pause in islice(Pauses(), _CLAIM_REPEATED):
            try:
                return self._claim_as(identity, slot, offer)
            except ControlPlaneUnavailable:
                # The claim may have arrived: the same one again finds out.
                CancelToken().wait(pause)
        return self._claim_as(identity, slot, offer)

    def _claim_as(self, identity: str, slot: int, offer: Offer) -> Claim | None:
        def take() -> Claimed:
            return self._client.call(
                "POST",
                f"/jobs/{offer.job}/claim",
                Claimed,
                body=ClaimRequest(worker=self._registered(slot).worker, claim=identity),
            )

        try:
            claimed = self._as_known_worker(slot, take)
        except Refusal as exc:
            if exc.failure.code in (ErrorCode.TAKEN, ErrorCode.UNKNOWN_JOB):
                return None
            raise
        try:
            job = opened_as(
                Job, claimed.sealed_job, purpose=for_job(offer.job), key=self._key
            )
        except SealBroken as exc:
            # Nobody can do it, so nobody should have to wait for the lease to end.
            log.error("job.unreadable", job=offer.job, error=str(exc))  # noqa: TRY400
            self._settle(
                offer.job,
                claimed.token,
                Settlement(
                    verdict=Verdict.FAILED,
                    log_length=0,
                    reason=str(exc),
                    code=exc.code,
                ),
            )
            return None
        lease_seconds = _within(_LEASE, claimed.lease_seconds)
        return Claim(
            job=job,
            token=claimed.token,
            lease_seconds=lease_seconds,
            # Two renewals may get lost on their way.
            renew_seconds=min(
                _within(_RENEW, claimed.renew_seconds), lease_seconds / 3
            ),
            waited_seconds=claimed.waited_seconds,
        )

    def renew(self, claim: Claim) -> str | None:
        return self._client.call(
            "POST",
            f"/jobs/{claim.job.id}/renew",
            Ack,
            token=claim.token,
            answer_seconds=_within(_RENEWAL_ANSWER, claim.renew_seconds),
        ).stop

    def settle(self, claim: Claim, settlement: Settlement) -> None:
        self._settle(claim.job.id, claim.token, settlement)

    def _settle(self, job: str, token: str, settlement: Settlement) -> None:
        self._client.call(
            "POST", f"/jobs/{job}/settle", Ack, body=settlement, token=token
        )

    def _registered(self, slot: int) -> Registered:
        with self._lock:
            if slot not in self._workers:
                self._workers[slot] = self._client.call(
                    "POST",
                    "/workers",
                    Registered,
                    body=Registration(
                        instance=self._instance,
                        slot=slot,
                        version=__version__,
                        metadata=self._metadata,
                    ),
                )
            return self._workers[slot]

    def _as_known_worker(self, slot: int, call: Callable[[], T]) -> T:
        """Register again when the control plane has forgotten the worker."""
        try:
            return call()
        except Refusal as exc:
            if exc.failure.code != ErrorCode.UNKNOWN_WORKER:
                raise
            with self._lock:
                self._workers.pop(slot, None)
            return call()


class HttpProgress:
    """Implements `launcher.ports.Progress`."""

    def __init__(self, client: Client, key: PoolKey) -> None:
        self._client = client
        self._key = key

    def entered(
        self, claim: Claim, state: RunState, *, log_offset: int, image_digest: str = ""
    ) -> str | None:
        return self._client.call(
            "POST",
            f"/jobs/{claim.job.id}/state",
            Ack,
            body=StateReport(
                state=state, log_offset=log_offset, image_digest=image_digest
            ),
            token=claim.token,
        ).stop

    def planned(self, claim: Claim, report: PlanReport) -> PlanDecision:
        answer = self._client.call(
            "POST",
            f"/jobs/{claim.job.id}/plan",
            PlanAnswer,
            body=report,
            token=claim.token,
        )
        if answer.next is not NextStep.APPLY:
            return PlanDecision(next=answer.next, denied=answer.denied)
        environment = opened_as(
            tuple[Variable, ...],
            answer.sealed_environment,
            purpose=for_plan_answer(claim.job.id),
            key=self._key,
        )
        return PlanDecision(next=answer.next, environment=environment)

    def tokens(self, claim: Claim) -> Tokens:
        issued = self._client.call(
            "POST", f"/jobs/{claim.job.id}/tokens", TokensIssued, token=claim.token
        )
        return opened_as(
            Tokens,
            issued.sealed_tokens,
            purpose=for_tokens(claim.job.id),
            key=self._key,
        )

    def told(self, claim: Claim, report: OutputsReport) -> None:
        self._client.call(
            "POST",
            f"/jobs/{claim.job.id}/outputs",
            Ack,
            body=report,
            token=claim.token,
        )


class HttpLogSink:
    """Implements `launcher.ports.LogSink`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._packed = 0  # what the control plane has said: see `LogAck.packed`

    def append(self, claim: Claim, offset: int, data: bytes) -> LogAck:
        """As the port says; takes as much of *data* as one upload may hold."""
        taken = data[: self._packed]
        body = _compressed(taken)
        if body is None:
            taken = body = data[:MAX_LOG_CHUNK]
        packed = {} if body is taken else {ENCODING_HEADER: LOG_ENCODING}
        try:
            ack = self._client.call(
                "PUT",
                f"/jobs/{claim.job.id}/log?offset={offset}",
                LogAck,
                body=body,
                token=claim.token,
                headers={
                    "Content-Type": "application/octet-stream",
                    CHECKSUM_HEADER: hashlib.sha256(taken).hexdigest(),
                    **packed,
                },
            )
        except Refusal as exc:
            if exc.failure.code != ErrorCode.WRONG_CHECKSUM:
                raise
            # Or it is a server of an earlier version, which took this one's place.
            self._packed = 0
            raise ControlPlaneUnavailable(
                "a part of the log was damaged on its way", details=exc.details
            ) from exc
        self._packed = max(0, min(ack.packed, MAX_PACKED_LOG))
        return ack


def _compressed(data: bytes) -> bytes | None:
    """*data* as the body of one upload; None when it is better sent as it is."""
    compressor, sample = zstandard.ZstdCompressor(level=1), data[:_SAMPLE]
    if len(compressor.compress(sample)) > len(sample) * _WORTH_WHILE:
        return None
    packed = compressor.compress(data)
    return packed if len(packed) <= MAX_LOG_CHUNK else None


def _within(bounds: tuple[float, float], asked: float) -> float:
    least, most = bounds
    return min(max(asked, least), most)


def opened_as(kind: type[T], sealed: bytes, *, purpose: str, key: PoolKey) -> T:
    """
    What is in a box, as a *kind*.

    Raises:
        SealBroken: the box is not for us and *purpose*, or holds something else.
    """
    try:
        return msgspec.json.decode(
            box.opened(sealed, purpose=purpose, key=key), type=kind
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise SealBroken(
            "what the control plane has sealed cannot be understood"
        ) from exc
