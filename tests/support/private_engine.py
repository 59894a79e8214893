"""An engine of the test's own, to be filled up, frozen and killed."""

import contextlib
import ctypes
import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading

from pathlib import Path

from given import eventually


IMAGE = "tiny:1"
APPLETS = (
    "sh",
    "tail",
    "stat",
    "cat",
    "sleep",
    "ps",
    "date",
    "ls",
    "rm",
    "printf",
    "seq",
    "kill",
    "sed",
    "grep",
)


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a file system of *size* at *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class PrivateEngine:
    """
    A dockerd below a folder, and in a network namespace of its own.

    In the machine's one it would take away the default bridge of the engine there.
    """

    def __init__(self, folder, *options, command=("unshare", "--net", "dockerd")):
        self._command = command
        self.folder = folder
        self.host = f"unix://{folder}/socket"
        self._options = options
        self.start()
        subprocess.run(
            ["docker", "-H", self.host, "import", "-", IMAGE],
            input=tiny_image(),
            check=True,
            capture_output=True,
        )

    def start(self):
        """Start it, or start it again after `kill`."""
        # The numbers of those that were killed, which others may have by now.
        for pid in ("pid", "exec/containerd/containerd.pid"):
            (self.folder / pid).unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._command,
                    f"--host={self.host}",
                    f"--data-root={self.folder}/data",
                    f"--exec-root={self.folder}/exec",
                    f"--pidfile={self.folder}/pid",
                    *("--bridge=none", "--iptables=false", "--ip-forward=false"),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(lambda: self.docker("version", check=False) is not None)

    def kill(self):
        self.process.kill()
        self.process.wait(30)

    def listener(self):
        """A socket of this process that listens on the loopback of the engine's network."""
        subprocess.run(
            [
                *("nsenter", f"--target={self.process.pid}", "--net"),
                *("ip", "link", "set", "lo", "up"),
            ],
            check=True,
        )
        made = []

        def enter():
            # Of this thread alone; a socket stays where it was made.
            with open(f"/proc/{self.process.pid}/ns/net", "rb") as network:  # noqa: PTH123
                assert 0 == ctypes.CDLL(None).setns(network.fileno(), 0)
            made.append(socket.create_server(("127.0.0.1", 0)))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return made[0]

    def docker(self, *arguments, check=True):
        done = subprocess.run(
            ["docker", "-H", self.host, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert 0 == done.returncode, done.stderr
        return done.stdout.strip() if done.returncode == 0 else None

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        self.thaw()
        self.process.terminate()
        self.process.wait(30)


@contextlib.contextmanager
def private_engine(*options, disk="256m"):
    # A socket's path must be short, so it cannot be below pytest's folder.
    folder = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))
    try:
        with small_disk(folder, disk):
            engine = PrivateEngine(folder, *options)
            try:
                yield engine
            finally:
                engine.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tiny_image(*more):
    """
    The machine's busybox and what it is linked with, as a root file system.

    And *more* of the machine's programs.
    """
    files = {}
    for name in ("busybox", *more):
        program = shutil.which(name)
        files[f"bin/{name}"] = Path(os.path.realpath(program))
        linked = subprocess.run(
            ["ldd", program], capture_output=True, text=True, check=False
        ).stdout
        for word in linked.split():
            if word.startswith("/"):
                files[word.lstrip("/")] = Path(os.path.realpath(word))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, source in files.items():
            entry = tar.gettarinfo(str(source), arcname=name)
            with source.open("rb") as content:
                tar.addfile(entry, content)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for folder in ("tmp", "proc", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(entry)
    return buffer.getvalue()
