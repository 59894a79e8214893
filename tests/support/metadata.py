"""A stand-in for EC2's instance metadata service, on loopback."""

import contextlib
import json
import secrets
import threading

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from launcher.model import Address


class Service(ThreadingHTTPServer):
    """Answers documents to who has a token, as version 2 does."""

    daemon_threads = True

    def __init__(self):
        self.documents = {}
        self.tokens = set()
        self.asked = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self):
        return Address(host="127.0.0.1", port=self.server_address[1])

    @property
    def url(self):
        return f"http://{self.address}"

    def interrupt(self, time, action="terminate"):
        self.documents["spot/instance-action"] = {"action": action, "time": time}

    def recommend(self):
        notice = {"noticeTime": "2026-11-05T08:22:00Z"}
        self.documents["events/recommendations/rebalance"] = notice


class _Handler(BaseHTTPRequestHandler):
    def do_PUT(self):
        self.server.asked.append(("PUT", self.path))
        seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.path != "/latest/api/token" or not seconds.isdigit():
            self.answer(400, b"")
            return
        token = secrets.token_urlsafe()
        self.server.tokens.add(token)
        self.answer(200, token.encode())

    def do_GET(self):
        self.server.asked.append(("GET", self.path))
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
            self.answer(401, b"")
            return
        name = self.path.removeprefix("/latest/meta-data/")
        document = self.server.documents.get(name)
        if document is None:
            self.answer(404, b"<html>404 - Not Found</html>")
        elif isinstance(document, bytes):
            self.answer(200, document)
        else:
            self.answer(200, json.dumps(document).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def metadata_service():
    with Service() as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield service
        finally:
            service.shutdown()
            thread.join()
