"""A stand-in for what issues ECR's tokens, whose password can be changed at any time."""

import base64
import contextlib
import http.server
import json
import re
import threading


ACCOUNT = "123456789012"
ECR = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com"


class TokenService:
    """Answers like ECR, and knows nothing else of AWS."""

    def __init__(self):
        self.password = "first-password"
        self.error = None
        """When set: the code of what goes wrong."""
        self.asked = []
        """The service and the region of each request, as they were signed."""
        self.hold = threading.Event()
        self.hold.set()
        """Cleared, it keeps whoever asks waiting."""

    @contextlib.contextmanager
    def serving(self):
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = service.answer(self.headers)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()

    def answer(self, headers):
        scope = re.search(
            r"Credential=[^/]+/[0-9]+/([^/]+)/([^/]+)/", headers["Authorization"]
        )
        self.asked.append((scope[2], scope[1]))
        self.hold.wait(10)
        if self.error:
            return 400, {"__type": self.error, "message": "no"}
        token = base64.b64encode(f"AWS:{self.password}".encode()).decode()
        one = {"authorizationToken": token, "expiresAt": 1420070400.0}
        if headers["X-Amz-Target"].startswith("SpencerFrontendService."):
            return 200, {"authorizationData": one}
        endpoint = f"https://{ACCOUNT}.dkr.ecr.{scope[1]}.amazonaws.com"
        return 200, {"authorizationData": [{**one, "proxyEndpoint": endpoint}]}


def identity(monkeypatch, endpoint, **further):
    """Give this process an AWS identity, and AWS an address."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "not-a-key",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        **further,
    }.items():
        monkeypatch.setenv(name, value)


def nobody(monkeypatch):
    """Take away every AWS identity that this process could find."""
    identity(monkeypatch, "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
