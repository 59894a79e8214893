"""A TCP forwarder between launcher and control plane that keeps an eye on both."""

import contextlib
import socket
import threading


class Tunnel:
    """
    Stands at `address` in front of *port*; a context manager.  TLS ends here, with *tls*.

    `connections` counts what was accepted, `sent` holds each one's bytes.
    """

    def __init__(self, port, host="127.0.0.1", tls=None):
        self._port, self._tls = port, tls
        self._listener = socket.create_server((host, 0))
        self._open, self._threads = [], []
        self.connections = 0
        self.sent = []
        self.address = f"{host}:{self._listener.getsockname()[1]}"

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (*self._open, self._listener):
            each.close()

    def _start(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._tls:
                    near = self._secured(near)
                    if near is None:
                        continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._open += [near, far]
                self.connections += 1
                self.sent.append(bytearray())
                self._start(self._copy, near, far, self.sent[-1])
                self._start(self._copy, far, near, bytearray())

    def _secured(self, near):
        try:
            return self._tls.wrap_socket(near, server_side=True)
        except OSError:  # whoever calls does not trust us
            near.close()
            return None

    def _copy(self, source, target, kept):
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                kept += part
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)
