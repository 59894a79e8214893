"""A registry that does whatever a test wants it to, with one small image."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading

from dataclasses import dataclass


MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def digest_of(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Answer:
    """What is sent instead of what was asked for."""

    status: int = 200
    body: bytes = b"{}"
    headers: tuple = ()


def refusal(status, code, message="no"):
    return Answer(
        status, json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    )


class ShakyRegistry:
    """
    Serves ``/shaky``, on loopback, by every tag.

    *meddle* is called with what was asked for and may give another `Answer`, or
    wait, or raise what ends the connection.
    """

    def __init__(self, *, architecture="amd64", size=1 << 16):
        self.meddle = lambda path: None
        self.asked = []
        self.let_go = threading.Event()
        """Set at the end, for those that stall."""
        content = os.urandom(size)
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            entry = tarfile.TarInfo("content")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        self.layer = gzip.compress(tar.getvalue(), 1)
        self.config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(tar.getvalue())]},
                "history": [{"created_by": "a test"}],
            }
        ).encode()
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": described(CONFIG, self.config),
                "layers": [described(LAYER, self.layer)],
            }
        ).encode()
        self.digest = digest_of(self.manifest)

    @contextlib.contextmanager
    def serving(self, listener=None):
        """Serve until the end of the block; at *listener*, a socket, if one is given."""
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                registry.asked.append((self.command, self.path))
                with contextlib.suppress(ConnectionError):
                    self.answer(registry.meddle(self.path) or registry.found(self.path))

            do_HEAD = do_GET

            def answer(self, answer):
                self.send_response(answer.status)
                self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
                for header in answer.headers:
                    self.send_header(*header)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command == "GET":
                    self.send(answer)

            def send(self, answer):
                half = len(answer.body) // 2
                self.wfile.write(answer.body[:half])
                self.wfile.flush()
                registry.half_way(self.path)
                self.wfile.write(answer.body[half:])

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), Handler, bind_and_activate=listener is None
        ) as server:
            if listener is not None:
                server.socket.close()
                server.socket = listener
                server.server_port = listener.getsockname()[1]
            server.daemon_threads = True
            server.handle_error = lambda *_: None
            self.host = f"127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield self
            finally:
                self.let_go.set()
                server.shutdown()
                thread.join()

    @property
    def name(self):
        return f"{self.host}/shaky"

    def half_way(self, path):
        """What happens in the middle of every answer; for tests to replace."""

    def found(self, path):
        if path == "/v2/":
            return Answer()
        if "/manifests/" in path:
            return Answer(
                body=self.manifest,
                headers=(
                    ("Content-Type", MANIFEST),
                    ("Docker-Content-Digest", self.digest),
                ),
            )
        for blob in (self.config, self.layer):
            if path.endswith(digest_of(blob)):
                return Answer(
                    body=blob, headers=(("Content-Type", "application/octet-stream"),)
                )
        return refusal(404, "BLOB_UNKNOWN")

    def fetched(self, blob):
        return self.asked.count(("GET", f"/v2/shaky/blobs/{digest_of(blob)}"))

    def stall(self, path):
        """Wait for the end of the test."""
        self.let_go.wait(60)


def described(kind, content):
    return {"mediaType": kind, "size": len(content), "digest": digest_of(content)}
