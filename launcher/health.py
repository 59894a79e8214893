"""
How the launcher is doing, for whoever supervises it.

``/livez`` says that the process answers, ``/readyz`` whether it should get runs,
``/metrics`` what was measured.  A part that can be unwell registers a check, a
function that returns a public sentence about what is the matter, or None; one line
in `launcher.bootstrap` each.  Checks are asked when somebody looks, so that nothing
runs when nobody does.

What is answered here is read by people and machines that may see no run, so it holds
no secret, and no name of a run or stack: every label has a handful of values.
"""

from __future__ import annotations

import collections
import errno
import json
import platform
import socket
import threading
import time

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from launcher import __version__
from launcher.errors import AddressUnavailable, ConfigurationError
from launcher.metrics import PREFIX
from launcher.model import NOWHERE, Address
from launcher.policy import Evaluation, Outcome, PolicyEngine
from launcher.threads import helper


log = structlog.get_logger()

Check = Callable[[], str | None]

_AT_ONCE = 16
"""Connections that are served beside each other; more are closed."""
_PER_CLIENT = 4
"""And of those, from one address: so that whoever holds his leaves room for probes."""
_PATIENCE = 5.0
"""Seconds a client may take to ask, and to take the answer."""
_LOOKS = 0.25
"""Seconds between two looks at whether to stop listening."""


class Health:
    """The checks and metrics of one launcher."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._checks: dict[str, Check] = {}
        # When each series was made interests nobody, and doubles their number.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        ProcessCollector(registry=self.registry)
        self.registry.register(_Readiness(self))
        Gauge(
            f"{PREFIX}build_info",
            "What runs; always 1.",
            ["version", "python"],
            registry=self.registry,
        ).labels(__version__, platform.python_version()).set(1)

    def check(self, name: str, ask: Check) -> None:
        """Let *ask* say what is the matter with *name*; None is nothing."""
        self._checks[name] = ask

    def gauge(self, name: str, meaning: str, ask: Callable[[], float]) -> None:
        """Publish what *ask* says whenever somebody looks."""
        gauge = Gauge(f"{PREFIX}{name}", meaning, registry=self.registry)
        gauge.set_function(lambda: float(ask()))

    @property
    def checks(self) -> tuple[str, ...]:
        """Names of everything that is looked at."""
        return tuple(self._checks)

    def reasons(self) -> dict[str, str]:
        """Return why it should get no runs, by check; empty when it should."""
        found = {}
        for name, ask in list(self._checks.items()):
            try:
                reason = ask()
            except Exception as exc:  # a check that fails is no good sign
                log.warning("health.check_failed", check=name, exc_info=True)
                reason = f"the check failed: {type(exc).__name__}"
            if reason is not None:
                found[name] = reason
        return found

    def metrics(self) -> bytes:
        """Everything measured, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Readiness(Collector):
    """What ``/readyz`` says, as numbers; asked once for all of them."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def describe(self) -> Iterator[Metric]:
        """Say nothing: the checks need not be asked for that."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        reasons = self._health.reasons()
        yield GaugeMetricFamily(
            f"{PREFIX}ready", "Whether it may get runs.", value=not reasons
        )
        checks = GaugeMetricFamily(
            f"{PREFIX}check_ok", "1 for what is well, else 0.", labels=["check"]
        )
        for name in self._health.checks:
            checks.add_metric([name], name not in reasons)
        yield checks


class MeasuredPolicy:
    """A policy whose answers are counted and timed."""

    def __init__(self, policy: PolicyEngine, health: Health) -> None:
        self._policy = policy
        self._verdicts = Counter(
            f"{PREFIX}policy_verdicts",
            "What the policy said.",
            ["outcome"],
            registry=health.registry,
        )
        for outcome in Outcome:
            self._verdicts.labels(outcome)
        self._seconds = Histogram(
            f"{PREFIX}policy_evaluation_seconds",
            "How long the policy took to say it.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.025, 0.1, 0.5, 1, 5, 20),
            registry=health.registry,
        )

    def evaluate(self, document: Mapping[str, Any], /) -> Evaluation:
        begun = time.perf_counter()
        evaluation = self._policy.evaluate(document)
        self._seconds.observe(time.perf_counter() - begun)
        self._verdicts.labels(evaluation.outcome).inc()
        return evaluation


@contextmanager
def listening(address: Address, health: Health) -> Iterator[int]:
    """
    Answer at *address* for as long as the block runs; yields the port.

    At `NOWHERE` nobody is answered, and the port is 0.

    Raises:
        AddressUnavailable: somebody else listens there, or this machine has no such
            address yet.
        ConfigurationError: this machine guards it.
    """
    if address == NOWHERE:
        yield 0
        return
    server = _bound(address, health)
    port = int(server.server_address[1])
    with server:
        log.info("health.listening", address=str(replace(address, port=port)))
        with helper("health", lambda: server.serve_forever(_LOOKS), server.shutdown):
            yield port


def _bound(address: Address, health: Health) -> _Server:
    try:
        return _Server(address, health)
    except OSError as exc:
        problem = (
            f"cannot listen for SPACELIFT_LAUNCHER_LISTEN at {address}: {exc.strerror};"
            " choose another address, or set it to nothing to do without"
        )
        if exc.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            raise AddressUnavailable(problem) from exc
        raise ConfigurationError(problem) from exc


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Address, health: Health) -> None:
        self.health = health
        self._served = collections.Counter[str]()
        self._serving = threading.Lock()
        if ":" in address.host:
            self.address_family = socket.AF_INET6
        super().__init__((address.host, address.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if self._let_in(client_address[0]):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._serving:
                # Whoever is left with none is forgotten.
                self._served -= {client_address[0]: 1}

    def _let_in(self, client: str) -> bool:
        with self._serving:
            room = self._served.total() < _AT_ONCE
            if room and self._served[client] < _PER_CLIENT:
                self._served[client] += 1
                return True
            return False

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Say nothing: the client has left, and there is nobody to tell."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE

    def do_GET(self) -> None:
        health = self.server.health
        match self.path.partition("?")[0]:
            case "/livez":
                self._answer(HTTPStatus.OK, "text/plain", b"ok\n")
            case "/readyz":
                reasons = health.reasons()
                status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
                answer = {
                    "ready": not reasons,
                    "reasons": [
                        {"check": name, "reason": reason}
                        for name, reason in sorted(reasons.items())
                    ],
                }
                body = json.dumps(answer).encode() + b"\n"
                self._answer(status, "application/json", body)
            case "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, health.metrics())
            case _:
                body = b"there are /livez, /readyz and /metrics\n"
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "spacelift-launcher"

    def log_message(self, *_: object) -> None:
        """Say nothing: probes come every few seconds."""
