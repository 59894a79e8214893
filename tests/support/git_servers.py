"""git over HTTP for tests: one that answers, with a password, and one that never does."""

import base64
import contextlib
import os
import socket
import subprocess
import threading

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil


class GitOverHttp(ThreadingHTTPServer):
    """Serves the repositories below *root* by git's own CGI program."""

    def __init__(self, root, *, login="", protocol_2=True):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.login = login
        self.protocol_2 = protocol_2
        self.arguments = set()
        """Command lines of what this process started, seen while it was asked."""

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"

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
        self.wfile.write(body)

    do_POST = do_GET

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
