"""A collector that speaks OTLP over HTTP, on loopback, and keeps what it gets."""

import contextlib
import threading

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, kw_only=True)
class Span:
    name: str
    trace: str
    id: str
    parent: str
    begun: int
    ended: int
    attributes: dict
    resource: dict
    failed: bool


@dataclass
class Collector:
    url: str = ""
    status: int = 200
    headers: list = field(default_factory=list)
    bodies: list = field(default_factory=list)

    @property
    def spans(self):
        """Everything so far, in the order in which it came."""
        found = []
        for body in list(self.bodies):
            request = ExportTraceServiceRequest.FromString(body)
            for part in request.resource_spans:
                resource = _values(part.resource.attributes)
                for scope in part.scope_spans:
                    found += [_span(span, resource) for span in scope.spans]
        return found

    def named(self, name):
        return [span for span in self.spans if span.name == name]


def _values(attributes):
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value"))
        for each in attributes
    }


def _span(span, resource):
    return Span(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        begun=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        resource=resource,
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
    )


@contextlib.contextmanager
def collecting():
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            known = self.path == "/v1/traces" and (
                self.headers["Content-Type"] == "application/x-protobuf"
            )
            status = collector.status if known else 404
            if status == 200:
                collector.headers.append(dict(self.headers))
                collector.bodies.append(body)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "http://127.0.0.1:9/v1/traces")
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
