"""A real image registry on this machine, with a password."""

import contextlib
import io
import json
import socket
import subprocess
import tarfile

import urllib3
import yaml

from given import eventually


USER, PASSWORD = "anna", "hunter2-of-the-registry"
_HASH = "$2y$04$m2T6XhWEYiNJ8CP3Z8CaeOcZr1cYHVAcVFKPhJ6Oh02lI.Dm2MrU2"


class Registry:
    """Serves until the end of the block."""

    def __init__(self, folder):
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.host = f"127.0.0.1:{free.getsockname()[1]}"
        (folder / "htpasswd").write_text(f"{USER}:{_HASH}\n")
        configuration = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {
                "filesystem": {"rootdirectory": str(folder / "data")},
                "delete": {"enabled": True},
            },
            "http": {"addr": self.host},
            "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}},
        }
        (folder / "config.yml").write_text(yaml.safe_dump(configuration))

    @property
    def auth(self):
        return {"username": USER, "password": PASSWORD, "serveraddress": self.host}

    def __enter__(self):
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(self._folder / "config.yml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers)
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()

    stop = __exit__

    def _answers(self):
        assert self._process.poll() is None
        with (
            urllib3.PoolManager(retries=False) as http,
            contextlib.suppress(urllib3.exceptions.HTTPError),
        ):
            return http.request("GET", f"http://{self.host}/v2/").status == 401

    def push(self, api, name, content):
        """Make an image with one file of *content*, push it, and forget it here."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo("content")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        repository, _, tag = f"{self.host}/{name}".rpartition(":")
        said = api.import_image_from_data(archive.getvalue(), repository, tag)
        made = json.loads(said.splitlines()[-1])["status"]
        digest = ""
        for line in api.push(
            repository, tag=tag, stream=True, decode=True, auth_config=self.auth
        ):
            assert "error" not in line, line
            digest = line.get("aux", {}).get("Digest", digest)
        api.remove_image(made, force=True)
        return digest

    def forget(self, api):
        """Remove what was pulled from here."""
        for image in api.images():
            names = [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]
            if any(name.startswith(f"{self.host}/") for name in names):
                api.remove_image(image["Id"], force=True)
