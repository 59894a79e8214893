"""Real servers of git for tests: over HTTP, with and without TLS, over ssh, and LFS."""

import base64
import contextlib
import datetime
import getpass
import hashlib
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import threading

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from given import eventually


class GitOverHttp(ThreadingHTTPServer):
    """Serves the repositories below *root* by git's own CGI program."""

    def __init__(self, root, *, login="", protocol_2=True, authority=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.scheme = "http"
        self.moved = {}
        """Where a path that begins so is now."""
        self.told = []
        """Path and credentials of every request."""
        self.sent = 0
        """Bytes of all answers of git."""
        self.large = {}
        """What LFS has, by SHA-256."""
        if authority:
            self.scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(authority.server)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.login = login
        self.protocol_2 = protocol_2
        self.arguments = set()
        """Command lines of what this process started, seen while it was asked."""

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """A client that does not like our certificate hangs up."""

    def url(self, path, host="127.0.0.1"):
        return f"{self.scheme}://{host}:{self.server_port}/{path}"

    @contextlib.contextmanager
    def serving(self):
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/lfs-objects/"):  # whoever knows it needs no login
            return self._answer(200, self.server.large[self.path.rpartition("/")[2]])
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.server.arguments.add("\0".join(process.cmdline()))
        wanted = "Basic " + base64.b64encode(self.server.login.encode()).decode()
        if self.server.login and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        self.server.told.append((path, self.headers.get("Authorization", "")))
        for old, new in self.server.moved.items():
            if path.startswith(old):
                return self._answer(302, b"", Location=new + self.path)
        if path.endswith("/info/lfs/objects/batch"):
            return self._lfs_batch()
        length = int(self.headers.get("Content-Length", 0))
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "0",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(length),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        if self.server.protocol_2:
            environment["HTTP_GIT_PROTOCOL"] = self.headers.get("Git-Protocol", "")
        answer = subprocess.run(
            ["git", "http-backend"],
            env=environment,
            input=self.rfile.read(length),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        head, _, body = answer.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.server.sent += len(body)
        self.wfile.write(body)

    do_POST = do_GET

    def _answer(self, status, body, **fields):
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _lfs_batch(self):
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        objects = []
        for each in wanted["objects"]:
            if each["oid"] in self.server.large:
                href = self.server.url(f"lfs-objects/{each['oid']}")
                found = {"actions": {"download": {"href": href}}}
            else:
                found = {"error": {"code": 404, "message": "there is no such object"}}
            objects.append(each | {"authenticated": True} | found)
        body = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self._answer(200, body, Content_Type="application/vnd.git-lfs+json")

    def log_message(self, *_):
        pass


class Silent:
    """Takes connections and never answers; a context manager."""

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.asked = threading.Event()
        self._connections = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    @property
    def port(self):
        return self._listener.getsockname()[1]

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for connection in (*self._connections, self._listener):
            connection.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                self._connections.append(self._listener.accept()[0])
                self.asked.set()


def pointer(content):
    """What git keeps of a file that LFS has."""
    oid = hashlib.sha256(content).hexdigest()
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\n"
    return oid, f"{text}size {len(content)}\n".encode()


class Authority:
    """A certificate authority, and a certificate by it for this machine."""

    def __init__(self, folder, *hosts):
        now = datetime.datetime.now(datetime.UTC)
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
        names = [
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
            for name in ("An authority of the tests", "server")
        ]
        listed = [x509.DNSName(host) for host in hosts or ("localhost",)]
        if not hosts:
            listed.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        made = []
        for key, name in zip(keys, names, strict=True):
            builder = (
                x509.CertificateBuilder()
                .subject_name(name)
                .issuer_name(names[0])
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(hours=1))
                .not_valid_after(now + datetime.timedelta(days=1))
                .add_extension(
                    x509.BasicConstraints(ca=key is keys[0], path_length=None), True
                )
            )
            if key is keys[1]:
                builder = builder.add_extension(
                    x509.SubjectAlternativeName(listed), False
                )
            certificate = builder.sign(keys[0], hashes.SHA256())
            made.append(certificate.public_bytes(serialization.Encoding.PEM))
        self.root = made[0].decode()
        self.server = folder / "server.pem"
        private = keys[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.server.write_bytes(made[1] + private)


class Sshd:
    """The distribution's own ssh server, for one key; a context manager."""

    def __init__(self, folder):
        self._folder = folder
        self.host_key = self._key("host")
        self.user_key = self._key("user")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def _key(self, name):
        path = self._folder / name
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path]
        subprocess.run(command, check=True)
        return path

    @property
    def private_key(self):
        return self.user_key.read_text()

    @property
    def known(self):
        kind, key, *_ = self.host_key.with_suffix(".pub").read_text().split()
        return f"[127.0.0.1]:{self.port} {kind} {key}"

    def url(self, path):
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{path}"

    def __enter__(self):
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        settings = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "HostKey": self.host_key,
            "AuthorizedKeysFile": self.user_key.with_suffix(".pub"),
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "yes",
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
        }
        config = self._folder / "sshd_config"
        config.write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
        self._log = (self._folder / "sshd.log").open("wb")
        self._process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", config], stderr=self._log
        )
        eventually(self._listens, "sshd does not listen")
        return self

    def _listens(self):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        self._log.close()
