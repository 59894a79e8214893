"""A forward proxy on loopback, which makes tunnels and notes what it gets to see."""

import base64
import contextlib
import http.server
import socket
import threading

from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit


@dataclass
class ConnectProxy:
    """What it does, and what it saw."""

    places: dict
    """Ports on loopback, by the ``host:port`` that they stand for."""
    credentials: str = ""
    """``user:password`` that it wants; empty: it asks nobody."""
    mood: str = "willing"
    """Or ``refusing``, ``silent``, ``dripping`` or ``babbling``."""
    scheme: str = "http"
    port: int = 0
    asked: list = field(default_factory=list)
    """Method and target of each request."""
    seen: bytearray = field(default_factory=bytearray)
    """Everything that went to the other side."""
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self):
        user, colon, password = self.credentials.partition(":")
        who = f"{quote(user, safe='')}:{quote(password, safe='')}@" if colon else ""
        return f"{self.scheme}://{who}127.0.0.1:{self.port}"

    def admits(self, headers):
        wanted = base64.b64encode(self.credentials.encode()).decode()
        return not self.credentials or (
            headers["Proxy-Authorization"] == f"Basic {wanted}"
        )


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self):
        with contextlib.suppress(OSError):
            self._answer(self.path)

    def do_POST(self):
        with contextlib.suppress(OSError):
            self._answer(urlsplit(self.path).netloc)

    def _answer(self, place):
        proxy = self.server.proxy
        self.close_connection = True
        proxy.asked.append((self.command, self.path))
        match proxy.mood:
            case "silent":
                proxy.over.wait(60)
                return
            case "dripping":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
                while not proxy.over.wait(0.05):
                    self.wfile.write(b"x")
                return
            case "babbling":
                self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 1000)
                return
        if not proxy.admits(self.headers):
            self.send_response(407)
            self.send_header("Proxy-Authenticate", 'Basic realm="tests"')
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
        elif proxy.mood == "refusing" or place not in proxy.places:
            self.send_error(403)
        else:
            self._connect(proxy.places[place])

    def _connect(self, port):
        with socket.create_connection(("127.0.0.1", port)) as far:
            if self.command == "CONNECT":
                self.send_response(200, "Connection established")
                self.end_headers()
            else:
                lines = [f"POST {urlsplit(self.path).path} HTTP/1.1"]
                lines += [f"{name}: {value}" for name, value in self.headers.items()]
                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked = "\r\n".join([*lines, "", ""]).encode() + body
                self.server.proxy.seen += asked
                far.sendall(asked)
            back = threading.Thread(
                target=self._copy, args=(far.recv, self.wfile.write)
            )
            back.start()
            self._copy(self.rfile.read1, far.sendall, self.server.proxy.seen)
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_WR)
            back.join()

    def _copy(self, take, give, kept=None):
        with contextlib.suppress(OSError):
            while part := take(1 << 16):
                if kept is not None:
                    kept += part
                give(part)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def proxying(places, *, tls=None, **options):
    """Serve until the end of the block; with *tls*, by https."""
    proxy = ConnectProxy(places, **options)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.proxy = proxy
        server.daemon_threads = True
        if tls:
            server.socket = tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
            proxy.scheme = "https"
        proxy.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.over.set()
            server.shutdown()
            thread.join()
