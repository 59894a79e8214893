"""PostgreSQL for tests: a server of their own, which nobody else can reach."""

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time

from pathlib import Path

import psycopg


PATIENCE = 60.0


class Postgres:
    """One server in a folder of its own, reached by a socket in there."""

    def __init__(self, *, durable=False):
        self._durable = durable
        self._folder = Path(tempfile.mkdtemp(prefix="spacelift-postgres-"))
        self._programs = _programs()
        # It refuses to be run by root.
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []}
        if os.geteuid() != 0:
            self._as = {}
        else:
            entry = pwd.getpwnam("postgres")
            os.chown(self._folder, entry.pw_uid, entry.pw_gid)
        self._process = None
        self._known = set()

    def __enter__(self):
        try:
            self._run(
                "initdb",
                "--username=spacelift",
                "--auth=trust",  # whoever gets at the socket is us
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                f"--pgdata={self._folder / 'data'}",
            )
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop(signal.SIGQUIT)  # nothing of it will be needed
        shutil.rmtree(self._folder)

    def start(self):
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._folder),
            "max_connections": "400",
            "shared_buffers": "64MB",
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
        }
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres",
                    "-D",
                    self._folder / "data",
                    *[f"-c{name}={value}" for name, value in options.items()],
                ],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as,
            )
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self._connected("postgres").close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < end, self.log()
                time.sleep(0.05)
            else:
                return

    def stop(self, number=signal.SIGINT):
        """End it as a machine that is shut down would; sessions are cut off."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def log(self):
        return (self._folder / "log").read_text()

    def url(self, key):
        """The URL of a database that belongs to *key*, made when it is first asked for."""
        name = "t" + hashlib.sha256(str(key).encode()).hexdigest()[:16]
        if name not in self._known:
            self.execute(
                f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
            )
            self._known.add(name)
        return f"postgresql+psycopg://spacelift@/{name}?host={self._folder}"

    def execute(self, statement, database="postgres"):
        with self._connected(database) as connection:
            return connection.execute(statement)

    def drop_all(self):
        for name in self._known:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")
        self._known.clear()

    def _connected(self, database):
        return psycopg.connect(
            host=str(self._folder), dbname=database, user="spacelift", autocommit=True
        )

    def _run(self, program, *arguments):
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            **self._as,
        )
        assert done.returncode == 0, done.stderr


def _programs():
    """Where the newest PostgreSQL of the distribution has its programs."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    with contextlib.suppress(ValueError):
        return max(found, key=lambda path: int(path.parts[-3])).parent
    program = shutil.which("postgres")
    assert program, "PostgreSQL is missing: scripts/setup-test-services installs it"
    return Path(program).resolve().parent
