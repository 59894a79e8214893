"""A proxy between launcher and control plane that loses requests and answers."""

import contextlib
import http.client
import http.server
import re
import threading

from collections import defaultdict, deque
from urllib.parse import urlsplit

from launcher.testing.control_plane import Trouble


CALLS = {
    "receive": ("POST", r"/workers/[^/]+/poll"),
    "claim": ("POST", r"/jobs/[^/]+/claim"),
    "renew": ("POST", r"/jobs/[^/]+/renew"),
    "entered": ("POST", r"/jobs/[^/]+/state"),
    "planned": ("POST", r"/jobs/[^/]+/plan"),
    "settle": ("POST", r"/jobs/[^/]+/settle"),
    "append": ("PUT", r"/jobs/[^/]+/log"),
    "save": ("PUT", r"/jobs/[^/]+/workspace"),
    "saved": ("POST", r"/jobs/[^/]+/workspace"),
    "restore": ("GET", r"/jobs/[^/]+/workspace"),
}
SORRY = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self):
        body = self._body()
        trouble = self.server.proxy.trouble_of(self.command, self.path)
        if trouble is Trouble.REQUEST_LOST:
            self._say(502, {"Content-Type": "text/html"}, SORRY)
            return
        status, headers, answer = self.server.proxy.forwarded(
            self.command, self.path, body, dict(self.headers)
        )
        if trouble is Trouble.ANSWER_LOST:
            self.close_connection = True
            return
        self._say(status, headers, answer)

    do_GET = do_POST = do_PUT = _handle

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _say(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in (
                "content-length",
                "transfer-encoding",
                "connection",
            ):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Proxy:
    """Stands at `base`, in front of the control plane at *target*."""

    def __init__(self, target):
        self._target = urlsplit(target)
        self._lock = threading.Lock()
        self._troubles = defaultdict(deque)
        self._away = False
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.base = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def trouble(self, call, *troubles):
        with self._lock:
            self._troubles[call].extend(troubles)

    @contextlib.contextmanager
    def outage(self):
        self._away = True
        try:
            yield
        finally:
            self._away = False

    def trouble_of(self, method, path):
        if self._away:
            return Trouble.REQUEST_LOST
        plain = urlsplit(path).path
        with self._lock:
            for call, (verb, pattern) in CALLS.items():
                if (
                    verb == method
                    and re.search(pattern + "$", plain)
                    and self._troubles[call]
                ):
                    return self._troubles[call].popleft()
        return None

    def forwarded(self, method, path, body, headers):
        headers = {
            name: value
            for name, value in headers.items()
            if name.lower()
            not in ("transfer-encoding", "content-length", "host", "connection")
        }
        with contextlib.closing(
            http.client.HTTPConnection(
                self._target.hostname, self._target.port, timeout=60
            )
        ) as there:
            there.request(method, path, body=body, headers=headers)
            response = there.getresponse()
            return response.status, dict(response.headers), response.read()
