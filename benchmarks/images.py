"""What it costs a job that its image is judged, asked for and found."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import tarfile
import threading
import time

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import urllib3
import yaml

from benchmarks.report import Row
from launcher.adapters.credentials.chain import CredentialChain, chain
from launcher.adapters.credentials.ecr import EcrCredentials
from launcher.adapters.engines.docker_images import DockerImages
from launcher.cancel import CancelToken
from launcher.credentials import Login, configured_rule
from launcher.images import Pattern, Permit, Reference, permitted
from launcher.model import ResolvedImage
from launcher.secret import Secret
from launcher.settings import ImageSettings


CALLS = 2_000
JOBS = 60
CROWD = 20
CROWDS = 5
LAYER = 4 << 20

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/infra/runner:1"


def images(folder: Path, api: docker.APIClient) -> Iterator[Row]:
    yield admission()
    yield shared_token()
    with registry(folder) as host:
        yield from pulls(api, host)


def admission() -> Row:
    """Parse and judge, by the last of a hundred patterns."""
    patterns = tuple(
        Pattern.parse(f"registry-{number}.example.com/team/*") for number in range(100)
    )
    configured = configured_rule(chain(ImageSettings(), {}))
    image = "registry-99.example.com/team/runner:1.4"
    return Row(
        name="admission by the last of 100 patterns",
        unit="ms",
        values=timed(CALLS, lambda: permitted(image, patterns, configured=configured)),
        quantile=0.99,
        target="at most 0.2",
    )


class _KnownToken(EcrCredentials):
    """Has been given a token a moment ago."""

    def _asked_for(self, *_: Any) -> Secret:  # noqa: ANN401
        return Secret("a token")


def shared_token() -> Row:
    credentials = CredentialChain([], _KnownToken())
    reference = Reference.parse(ECR)
    return Row(
        name="a login for ECR with a shared token",
        unit="ms",
        values=timed(CALLS, lambda: credentials.for_image(reference)),
        quantile=0.99,
        target="at most 1",
    )


def pulls(api: docker.APIClient, host: str) -> Iterator[Row]:
    settings = ImageSettings(
        docker_auth_config=Secret(
            json.dumps(
                {"auths": {host: {"auth": base64.b64encode(b"anna:any").decode()}}}
            )
        )
    )
    credentials = chain(settings, {})
    engine = DockerImages(api, settings)
    digest = push(api, f"{host}/bench/runner:1", b"x")
    image = f"{host}/bench/runner@{digest}"

    def job() -> None:
        permit = permitted(image, configured=configured_rule(credentials))
        login = credentials.for_image(permit.reference)
        engine.pull(engine.resolve(permit, login))

    job()  # pulls it
    yield Row(
        name="judged, logged in and found present",
        unit="ms",
        values=timed(JOBS, job),
        target="at most 30",
    )
    remove(api, image)
    started = []
    for number in range(CROWDS):
        name = f"{host}/bench/crowd-{number}:1"
        push(api, name, os.urandom(LAYER))
        started.append(float(crowd(engine, name, credentials)))
    yield Row(
        name=f"pulls for {CROWD} jobs at once with one new image",
        unit="pulls",
        values=tuple(started),
        target="1",
    )
    for name in list(api_names(api, host)):
        remove(api, name)


def crowd(engine: DockerImages, name: str, credentials: CredentialChain) -> int:
    """Return how many of the jobs pulled it themselves."""
    permit = Permit(reference=Reference.parse(name), rule="bench")
    login: Login | None = credentials.for_image(permit.reference)
    image: ResolvedImage = engine.resolve(permit, login)
    said: list[str] = []
    ready = threading.Barrier(CROWD)

    def job() -> None:
        ready.wait()
        engine.pull(image, say=said.append)

    jobs = [threading.Thread(target=job) for _ in range(CROWD)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    return sum(line.startswith("Pulled the image") for line in said)


def timed(times: int, once: Callable[[], object]) -> tuple[float, ...]:
    once()
    values = []
    for _ in range(times):
        begun = time.perf_counter()
        once()
        values.append((time.perf_counter() - begun) * 1000)
    return tuple(values)


# --- a registry on this machine


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    configuration = folder / "registry.yml"
    configuration.write_text(
        yaml.safe_dump(
            {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
                "http": {"addr": host},
            }
        )
    )
    with subprocess.Popen(
        ["docker-registry", "serve", str(configuration)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            while not answers(host):
                CancelToken().wait(0.05)
            yield host
        finally:
            process.kill()


def answers(host: str) -> bool:
    with (
        urllib3.PoolManager(retries=False) as http,
        contextlib.suppress(urllib3.exceptions.HTTPError),
    ):
        return http.request("GET", f"http://{host}/v2/").status == 200
    return False


def push(api: docker.APIClient, name: str, content: bytes) -> str:
    """Make an image with one file, push it and forget it here; return its digest."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("content")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    repository, _, tag = name.rpartition(":")
    said = api.import_image_from_data(archive.getvalue(), repository, tag)
    made = json.loads(said.splitlines()[-1])["status"]
    digest = ""
    for line in api.push(repository, tag=tag, stream=True, decode=True):
        digest = line.get("aux", {}).get("Digest", digest)
    api.remove_image(made, force=True)
    return digest


def api_names(api: docker.APIClient, host: str) -> Iterator[str]:
    for image in api.images():
        for name in image["RepoDigests"] or []:
            if name.startswith(f"{host}/"):
                yield name


def remove(api: docker.APIClient, name: str) -> None:
    api.remove_image(name, force=True)
