"""
Failures of images, registries and engines, with the causes that they have in earnest.

A real engine in each: the tests' own, or one that is there to be frozen, filled up or
killed.  A cause is a context manager, which gives what to run and where.
"""

import base64
import contextlib
import json
import tempfile

from pathlib import Path

import docker

from given import a_run, eventually
from support.ecr_site import UNTRUSTED, ecr_site
from support.place import TERRAFORM, Place, SharedEngine, freezing
from support.private_engine import private_engine
from support.registry import PASSWORD, USER, Registry
from support.shaky_registry import ShakyRegistry, digest_of, refusal

from launcher.adapters.engines import docker as docker_engine
from launcher.adapters.engines import docker_images
from launcher.adapters.engines.docker import DockerEngine
from launcher.reaper import Reaper
from launcher.secret import Secret
from launcher.settings import PullPolicy


def _login(registry):
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    return Secret(json.dumps({"auths": {registry: {"auth": auth}}}))


# --- registries, and what is in them


@contextlib.contextmanager
def _asking_for(image, engine=None, **images):
    """A job that wants *image*, of a launcher with the settings *images*."""
    with contextlib.closing(
        Place(engine or SharedEngine(), image=image, images=images)
    ) as place:
        yield place, place.run("echo never")


@contextlib.contextmanager
def _registry():
    """One with a password, and with an image in it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Registry(Path(folder)) as registry,
        contextlib.closing(docker.APIClient(SharedEngine().host)) as api,
    ):
        registry.push(api, "acme/runner:1", b"one")
        yield registry


@contextlib.contextmanager
def _without_a_tag(_):
    with (
        _registry() as registry,
        _asking_for(
            f"{registry.host}/acme/runner:9", docker_auth_config=_login(registry.host)
        ) as found,
    ):
        yield found


@contextlib.contextmanager
def _without_a_login(_):
    with (
        _registry() as registry,
        _asking_for(f"{registry.host}/acme/runner:1") as found,
    ):
        yield found


@contextlib.contextmanager
def _never_pulled(_):
    with (
        _registry() as registry,
        _asking_for(
            f"{registry.host}/acme/runner:1",
            docker_auth_config=_login(registry.host),
            pull_policy=PullPolicy.NEVER,
        ) as found,
    ):
        yield found


@contextlib.contextmanager
def _stopped_registry(patch):
    patch.setattr(docker_images, "_FIRST_PAUSE", 0.05)
    with _registry() as registry:
        registry.stop()
        with _asking_for(f"{registry.host}/acme/runner:1") as found:
            yield found


@contextlib.contextmanager
def _strange_authority(_):
    with (
        ecr_site() as site,
        _asking_for(f"{UNTRUSTED}/team/runner:1", engine=site.engine) as found,
    ):
        yield found


@contextlib.contextmanager
def _shaky(behave, **made):
    """A registry that behaves as *behave* makes it, since no real one does so to order."""
    with ShakyRegistry(**made).serving() as registry:
        behave(registry)
        try:
            with _asking_for(
                f"{registry.name}:1", pull_stall_timeout=1.0, pull_timeout=20.0
            ) as found:
                yield found
        finally:
            SharedEngine().remove(registry.name)


def _is_limited(registry):
    registry.meddle = lambda path: (
        refusal(429, "TOOMANYREQUESTS") if "/manifests/" in path else None
    )


def _stalls(registry):
    registry.half_way = lambda path: (
        path.endswith(digest_of(registry.layer)) and registry.stall(path)
    )


@contextlib.contextmanager
def _limited(patch):
    patch.setattr(docker_images, "_FIRST_PAUSE", 0.05)
    with _shaky(_is_limited) as found:
        yield found


@contextlib.contextmanager
def _larger_than_the_disk(patch):
    patch.setattr(docker_images, "_FIRST_PAUSE", 0.05)
    with (
        private_engine(disk="48m") as engine,
        ShakyRegistry(size=96 << 20).serving(engine.listener()) as registry,
        _asking_for(f"{registry.name}:1", engine=engine) as found,
    ):
        yield found


# --- engines


@contextlib.contextmanager
def _private(*options, disk="256m", **place):
    with (
        private_engine(*options, disk=disk) as engine,
        contextlib.closing(Place(engine, **place)) as found,
    ):
        yield engine, found


@contextlib.contextmanager
def _killed(_):
    with _private(patience=1.0) as (engine, place):
        with place.working("echo begun; sleep 600") as record:
            engine.process.kill()
        yield place, record


@contextlib.contextmanager
def _frozen(_):
    with _private() as (engine, place):
        engine.freeze()
        record = place.run("echo never")
        engine.thaw()
        yield place, record


def _frozen_at(owner, name, what):
    """A cause: the engine freezes as it is about to *what* the container."""

    @contextlib.contextmanager
    def cause(patch):
        with _private(step=3.0) as (engine, place):
            place.code.commits[a_run().commit.hash]["bin/terraform"] = TERRAFORM
            with patch.context() as patched:
                patched.setattr(owner, name, freezing(engine, getattr(owner, name)))
                record = place.run()
            engine.thaw()
            reaper = Reaper(place.engine, place.journal, age_seconds=0)
            # What it was asked for while it was frozen, it does now, and then it is reaped.
            eventually(lambda: reaper.reap() == 0 and place.leftovers() == ["", ""])
            reason = f"the container engine did not {what} the container within 3 s"
            assert reason == record.settlement.reason
            yield place, record

    return cause


@contextlib.contextmanager
def _full_volume(_):
    with _private(disk="64m") as (_, place):
        record = place.run(
            "echo begin; cat /dev/zero > /mnt/workspace/zeros; seq 5000; exit 9"
        )
        assert "initialize: the workspace's disk is full" == record.settlement.reason
        assert not record.settlement.log_complete
        assert ["", ""] == place.leftovers()
        yield place, record


@contextlib.contextmanager
def _hungry(_):
    with _private(memory=32 << 20) as (_, place):
        yield place, place.run("tail /dev/zero")


@contextlib.contextmanager
def _ended_by_somebody(_):
    with _private() as (engine, place):
        with place.working("echo begun; sleep 600") as record:
            engine.docker("kill", "spacelift-01job")
        yield place, record


CAUSES = {
    "image_not_found": _without_a_tag,
    "image_wrong_platform": lambda _: _shaky(lambda _: None, architecture="s390x"),
    "image_unavailable": _never_pulled,
    "image_access_denied": _without_a_login,
    "registry_rate_limited": _limited,
    "registry_unreachable": _stopped_registry,
    "registry_not_trusted": _strange_authority,
    "image_pull_timeout": lambda _: _shaky(_stalls),
    "engine_failed": _killed,
    "engine_timeout": _frozen,
    "create_timeout": _frozen_at(DockerEngine, "_config", "make"),
    "start_timeout": _frozen_at(docker_engine, "_Stdin", "start"),
    "stop_timeout": _frozen_at(docker_engine, "finish", "end"),
    "container_lost": _ended_by_somebody,
    "disk_full": _larger_than_the_disk,
    "workspace_full": _full_volume,
    "out_of_memory": _hungry,
}
"""By code; each is given a monkeypatch, and gives the place and the record of the job."""
