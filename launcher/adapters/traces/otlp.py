"""
One trace for each run, sent to a collector as OTLP over HTTP.

A stage becomes a span when it is over, in a queue of a few thousand.  A thread sends
them; a collector that is slow or away costs spans, and nothing else: what does not
fit into the queue or is not taken is dropped and counted.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time

from collections.abc import Iterable, Mapping, Sequence

import requests
import structlog

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from requests.adapters import HTTPAdapter
from urllib3 import ProxyManager

from launcher import __version__, failures
from launcher.proxies import Proxies, Proxy
from launcher.sight import ABANDONED, Ended, Facts, Seen
from launcher.threads import spawn
from launcher.trace_context import span_id, trace_id
from launcher.wire.messages import Verdict


log = structlog.get_logger()

_QUEUE = 4096
_BATCH = 512
_DELAY_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
_LAST_SECONDS = 5.0
"""How long the end of the launcher waits for what is not sent yet."""
_COMPLAIN_EVERY_SECONDS = 60.0
_LONGEST = 200
"""Characters of what comes from a job."""
_UNFINISHED = frozenset({Verdict.HANDED_OVER.value, ABANDONED})


class Traces:
    """Implements `launcher.sight.Observer`."""

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str],
        roots: Iterable[str] = (),
        proxies: Proxies | None = None,
        service: str,
        instance: str,
        pool: str,
    ) -> None:
        """
        Send to the collector at *endpoint*, a base URL, with *headers*.

        *roots* are authorities, in PEM, that it may be certified by, too.
        """
        self._exporter = _Counting(
            OTLPSpanExporter(
                endpoint=f"{endpoint.rstrip('/')}/v1/traces",
                headers=dict(headers),
                timeout=_ANSWER_SECONDS,
                session=_session(roots, (proxies or Proxies()).of(endpoint)),
            )
        )
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=_QUEUE,
            schedule_delay_millis=_DELAY_SECONDS * 1000,
            max_export_batch_size=_BATCH,
            export_timeout_millis=_ANSWER_SECONDS * 1000,
        )
        self._resource = Resource(
            {
                "service.name": service,
                "service.version": __version__,
                "service.instance.id": instance,
                "spacelift.worker_pool.id": pool,
            }
        )
        self._scope = InstrumentationScope("spacelift-launcher", __version__)

    @property
    def lost(self) -> int:
        """How many spans no collector has taken."""
        return self._exporter.lost

    def close(self) -> None:
        """Send what is there, unless that takes too long."""
        sending = spawn("traces", self._processor.shutdown)
        sending.join(_LAST_SECONDS)

    def claimed(self, job: Facts, at: int, /) -> None:
        waited = job.waited_seconds
        if waited is not None and 0 <= waited <= at / 1e9:
            self._span(
                "queued",
                job,
                span_id("queued", job.job),
                span_id("run", job.run),
                times=(at - int(waited * 1e9), at),
            )

    def seen(self, job: Facts, stage: Seen, /) -> None:
        name = f"{stage.stage} {stage.phase}".strip()
        self._span(
            name,
            job,
            span_id("stage", job.job, name, str(stage.begun_at)),
            span_id("job", job.job),
            times=(stage.begun_at, stage.ended_at),
            code=stage.failure,
            attributes={"spacelift.phase": stage.phase} if stage.phase else None,
        )

    def ended(self, job: Facts, ended: Ended, /) -> None:
        outcome = {"spacelift.outcome": ended.verdict}
        whole = span_id("run", job.run)
        self._span(
            "job",
            job,
            span_id("job", job.job),
            whole,
            times=(ended.begun_at, ended.ended_at),
            code=ended.code,
            attributes={**outcome, "spacelift.job.resumed": ended.resumed},
        )
        if ended.verdict not in _UNFINISHED:
            self._span(
                "run",
                job,
                whole,
                None,
                times=(job.created_at, ended.ended_at),
                code=ended.code,
                attributes=outcome,
            )

    def _span(
        self,
        name: str,
        job: Facts,
        span: int,
        parent: int | None,
        *,
        times: tuple[int, int],
        code: str = "",
        attributes: Mapping[str, str | bool] | None = None,
    ) -> None:
        trace = trace_id(job.run)
        begun, ended = times
        blame = {"spacelift.failure.blame": failures.of(code).blame} if code else {}
        made = ReadableSpan(
            name=name,
            context=_context(trace, span),
            parent=None if parent is None else _context(trace, parent),
            resource=self._resource,
            attributes={
                "spacelift.run.id": job.run[:_LONGEST],
                "spacelift.run.type": job.kind.value,
                "spacelift.job.id": job.job[:_LONGEST],
                "spacelift.stack.slug": job.stack[:_LONGEST],
                **(attributes or {}),
                **({"spacelift.failure.code": code} if code else {}),
                **blame,
            },
            kind=SpanKind.CONSUMER if parent is None else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, code) if code else Status(),
            # Some of it is the control plane's word.
            start_time=min(max(begun, 0), ended),
            end_time=ended,
            instrumentation_scope=self._scope,
        )
        if self._exporter.has_room():
            self._processor.on_end(made)


def _context(trace: int, span: int) -> SpanContext:
    return SpanContext(
        trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )


class _Counting(SpanExporter):
    """Counts what is not taken, and says so now and then."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lock = threading.Lock()
        self._quiet_until = 0.0
        self._waiting = 0
        self.lost = 0
        # It would say the same for every batch, with the collector's own words.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def has_room(self) -> bool:
        """Take a place for one more span; without one, it is lost."""
        # The queue itself would drop the oldest one, and tell nobody.
        with self._lock:
            if self._waiting < _QUEUE:
                self._waiting += 1
                return True
        self._lose(1)
        return False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            with self._lock:
                self._waiting -= len(spans)
            if result is not SpanExportResult.SUCCESS:
                self._lose(len(spans))
        return result

    def _lose(self, count: int) -> None:
        with self._lock:
            self.lost += count
            now = time.monotonic()
            due = now >= self._quiet_until
            if due:
                self._quiet_until = now + _COMPLAIN_EVERY_SECONDS
        if due:
            log.warning("traces.not_sent", lost=self.lost)

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Trusting(HTTPAdapter):
    """Trusts some authorities on top of those of the system."""

    def __init__(self, roots: Iterable[str], proxy: Proxy | None) -> None:
        self._roots = tuple(roots)
        self._proxy = proxy
        super().__init__()

    def init_poolmanager(self, *given: object, **options: object) -> None:
        super().init_poolmanager(*given, **options, ssl_context=self._context())  # type: ignore[arg-type]

    def proxy_manager_for(self, proxy: str, **options: object) -> ProxyManager:
        made: ProxyManager = super().proxy_manager_for(
            proxy,
            **options,
            ssl_context=self._context(),
            proxy_ssl_context=self._context(),
        )
        return made

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        return dict(self._proxy.headers()) if self._proxy else {}

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        for root in self._roots:
            context.load_verify_locations(cadata=root)
        return context


def _session(roots: Iterable[str], proxy: Proxy | None) -> requests.Session:
    """Asks the collector by *proxy* or itself: no redirect, no password file."""
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    for scheme in ("http", "https"):
        session.mount(f"{scheme}://", _Trusting(roots, proxy))
        if proxy:
            session.proxies[scheme] = proxy.url
    return session
