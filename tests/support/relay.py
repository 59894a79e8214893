"""A relay in front of a container engine or a control plane, which can be cut."""

import contextlib
import os
import selectors
import socket
import threading

from urllib.parse import urlsplit


def connected(host):
    """A socket to the engine at *host*, a DOCKER_HOST."""
    url = urlsplit(host)
    if url.scheme == "unix":
        there = socket.socket(socket.AF_UNIX)
        there.connect(url.path)
        return there
    return socket.create_connection((url.hostname, url.port))


class Relay:
    """Listens on a port of its own; a context manager.  *target* is a DOCKER_HOST."""

    def __init__(self, target=None):
        self._target = target or os.environ["DOCKER_HOST"]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._sockets = []
        self._away = False
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self.cut()
        for thread in list(self._threads):
            thread.join()

    def cut(self):
        """End every connection, and take no more."""
        with self._lock:
            for each in [self._listener, *self._sockets]:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    @contextlib.contextmanager
    def outage(self):
        """Nobody gets through during the block; connections that there were end."""
        with self._lock:
            self._away = True
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            self._away = False

    def _accept(self):
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            try:
                there = connected(self._target)
            except OSError:
                here.close()
                continue
            thread = threading.Thread(target=self._pass_on, args=(here, there))
            with self._lock:
                self._sockets += [here, there]
                self._threads.append(thread)
                if self._away:
                    for each in (here, there):
                        with contextlib.suppress(OSError):
                            each.shutdown(socket.SHUT_RDWR)
            thread.start()

    def _pass_on(self, here, there):
        other = {here: there, there: here}
        with (
            here,
            there,
            selectors.DefaultSelector() as ready,
            contextlib.suppress(OSError),
        ):
            for side in other:
                ready.register(side, selectors.EVENT_READ)
            while ready.get_map():
                for key, _ in ready.select():
                    if data := key.fileobj.recv(1 << 16):
                        other[key.fileobj].sendall(data)
                    else:
                        ready.unregister(key.fileobj)
                        other[key.fileobj].shutdown(socket.SHUT_WR)
