"""A bucket for tests: moto as a server, with TLS and with S3's own checks in front."""

import base64
import contextlib
import hashlib
import hmac
import io
import ssl
import threading

from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

import boto3

from botocore.config import Config
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from launcher.controlplane.authority import Authority


NAME = "workspaces"
REGION = "eu-west-1"
SECRET = "not-a-key"  # noqa: S105


class _Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


class S3:
    """
    Answers like S3, and refuses as S3 does what moto lets through.

    That is a URL that has expired, was signed by somebody else or for another
    request, and a body that does not have the checksum it came with.
    """

    def __init__(self, folder):
        authority = Authority(folder)
        self.authority = folder / "authority.pem"
        self.context = ssl.create_default_context(cadata=authority.pem)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._certificate = str(folder / "server.pem"), str(folder / "server-key.pem")
        self.seen = []
        """Method, path and query of each request."""
        self.before = lambda method, path: None
        """May return status, headers and body in moto's place."""
        self.late = timedelta()
        """How far the server's clock is ahead."""

    @contextlib.contextmanager
    def serving(self):
        server = make_server(
            "127.0.0.1",
            0,
            self,
            threaded=True,
            ssl_context=self._certificate,
            request_handler=_Quiet,
        )
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.endpoint = f"https://127.0.0.1:{server.port}"
        try:
            self.client().create_bucket(
                Bucket=NAME, CreateBucketConfiguration={"LocationConstraint": REGION}
            )
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
            aws_secret_access_key=SECRET,
            verify=str(self.authority),
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        query = environ["QUERY_STRING"]
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        self.seen.append((method, path, query))
        given = self.before(method, path)
        status = self._refusal(environ, method, path, query, body)
        if given is not None:
            start_response(*given[:2])
            return [given[2]]
        if status:
            start_response(status, [("Content-Length", "0")])
            return [b""]
        environ["wsgi.input"] = io.BytesIO(body)
        return self._moto(environ, start_response)

    def _refusal(self, environ, method, path, query, body):
        checksum = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if checksum is not None and checksum != digest:
            return "400 BadDigest"
        if "X-Amz-Signature" not in query:
            return None
        fields = dict(
            (unquote(name), unquote(value))
            for name, _, value in (each.partition("=") for each in query.split("&"))
        )
        signature = fields.pop("X-Amz-Signature")
        made = datetime.strptime(fields["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
        ends = made.replace(tzinfo=UTC) + timedelta(
            seconds=int(fields["X-Amz-Expires"])
        )
        if datetime.now(UTC) + self.late > ends:
            return "403 Forbidden"
        names = fields["X-Amz-SignedHeaders"].split(";")
        headers = {name: environ.get(_as_wsgi(name), "") for name in names}
        expected = _signature(method, path, fields, headers)
        return None if hmac.compare_digest(signature, expected) else "403 Forbidden"


def _as_wsgi(name):
    return "HTTP_" + name.upper().replace("-", "_")


def _signature(method, path, fields, headers):
    """What AWS's Signature Version 4 makes of a request by URL."""
    query = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(fields.items())
    )
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    names = ";".join(sorted(headers))
    request = "\n".join(
        (method, quote(path, safe="/-_.~"), query, lines, names, "UNSIGNED-PAYLOAD")
    )
    _, _, scope = fields["X-Amz-Credential"].partition("/")
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join(
        (
            "AWS4-HMAC-SHA256",
            fields["X-Amz-Date"],
            scope,
            hashlib.sha256(request.encode()).hexdigest(),
        )
    )
    return hmac.digest(key, text.encode(), "sha256").hex()
