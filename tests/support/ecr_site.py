"""
A registry that is called like one of Amazon's, and an engine that can reach it.

Both live in a network and a mount namespace of their own, in which ``/etc`` is a copy:
the registry's names lead to the loopback device there, its port is 443, and the engine
trusts a certificate authority that nobody else has heard of.  The address is none of
127.0.0.0/8, for which engines check no certificate.
"""

import contextlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile

from pathlib import Path

import bcrypt
import yaml

from given import eventually
from launcher.adapters.engines.docker import connect
from launcher.settings import HostSettings
from support.aws import ECR
from support.private_engine import PrivateEngine, small_disk


PRIVATE, UNTRUSTED = "registry.example.com", "untrusted.example.com"
ADDRESS = "198.51.100.1"
NAMES = (ECR, PRIVATE, UNTRUSTED)

_ENTER = """
mount --bind "$1/etc" /etc
ip link set lo up
ip address add "$2/32" dev lo
shift 2
exec dockerd "$@"
"""


class EcrSite:
    """Serves until the end of the block; pushes with whatever password is in force."""

    def __init__(self, folder):
        self.folder = folder
        self._etc()
        self._certificates()
        self.passwords("first-password")
        self.engine = PrivateEngine(
            folder,
            command=(
                "unshare",
                "--net",
                "--mount",
                "sh",
                "-ec",
                _ENTER,
                "enter",
                str(folder),
                ADDRESS,
            ),
        )
        (folder / "registry.yml").write_text(yaml.safe_dump(self._configuration()))
        inside = ("nsenter", f"--target={self.engine.process.pid}", "--net", "--mount")
        self._registry = subprocess.Popen(
            [*inside, "docker-registry", "serve", str(folder / "registry.yml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.api = connect(HostSettings(docker_host=self.engine.host), connections=32)
        asking = [*inside, "openssl", "s_client", "-connect", f"{ECR}:443"]
        eventually(
            lambda: (
                0
                == subprocess.run(
                    asking, stdin=subprocess.DEVNULL, capture_output=True, check=False
                ).returncode
            )
        )

    def _etc(self):
        etc = self.folder / "etc"
        shutil.copytree("/etc", etc, symlinks=True, ignore_dangling_symlinks=True)
        (etc / "hosts").write_text(
            f"127.0.0.1 localhost\n{ADDRESS} {' '.join(NAMES)}\n"
        )
        (etc / "docker" / "daemon.json").unlink(missing_ok=True)
        for name in (ECR, PRIVATE):
            (etc / "docker" / "certs.d" / name).mkdir(parents=True)

    def _certificates(self):
        curve = ("-newkey", "ec", "-nodes", "-pkeyopt", "ec_paramgen_curve:prime256v1")
        for arguments in (
            (
                *("req", "-x509", *curve, "-subj", "/CN=An authority of the tests"),
                *("-keyout", "ca.key", "-out", "ca.pem"),
            ),
            (
                *("req", "-x509", *curve, "-subj", "/CN=registry"),
                *("-CA", "ca.pem", "-CAkey", "ca.key"),
                *("-addext", "basicConstraints=critical,CA:FALSE"),
                *("-addext", f"subjectAltName=DNS:{',DNS:'.join(NAMES)}"),
                *("-keyout", "key.pem", "-out", "certificate.pem"),
            ),
        ):
            subprocess.run(
                ["openssl", *arguments],
                cwd=self.folder,
                check=True,
                capture_output=True,
            )
        for name in (ECR, PRIVATE):
            shutil.copy(
                self.folder / "ca.pem",
                self.folder / "etc" / "docker" / "certs.d" / name / "ca.crt",
            )

    def passwords(self, password, user="AWS"):
        """From now on the registry takes this one, and no other."""
        self.password, self.user = password, user
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        new = self.folder / "htpasswd.new"
        new.write_text(f"{user}:{hashed.replace('$2b$', '$2y$')}\n")
        new.replace(self.folder / "htpasswd")

    def _configuration(self):
        return {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "stored")}},
            "http": {
                "addr": f"{ADDRESS}:443",
                "secret": "of the tests",
                "tls": {
                    "certificate": str(self.folder / "certificate.pem"),
                    "key": str(self.folder / "key.pem"),
                },
            },
            "auth": {
                "htpasswd": {"realm": "ECR", "path": str(self.folder / "htpasswd")}
            },
        }

    def push(self, name, content):
        """Make an image with one file of *content*, push it, and forget it here."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo("content")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        repository, _, tag = name.rpartition(":")
        said = self.api.import_image_from_data(archive.getvalue(), repository, tag)
        made = json.loads(said.splitlines()[-1])["status"]
        auth = {"username": self.user, "password": self.password}
        digest = ""
        for line in self.api.push(
            repository, tag=tag, stream=True, decode=True, auth_config=auth
        ):
            assert "error" not in line, line
            digest = line.get("aux", {}).get("Digest", digest)
        self.api.remove_image(made, force=True)
        return digest

    def close(self):
        self.api.close()
        self._registry.kill()
        self._registry.wait()
        self.engine.close()


@contextlib.contextmanager
def ecr_site():
    folder = Path(tempfile.mkdtemp(prefix="ecr-", dir="/tmp"))
    try:
        with small_disk(folder, "256m"):
            site = EcrSite(folder)
            try:
                yield site
            finally:
                site.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
