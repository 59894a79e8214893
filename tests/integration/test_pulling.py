"""A real engine pulls from a registry that misbehaves, and the run's log says how."""

import contextlib
import threading
import time

import docker
import pytest

from given import eventually
from launcher.adapters.engines import docker_images
from launcher.adapters.engines.docker_images import DockerImages
from launcher.adapters.engines.pulled_images import PulledImages
from launcher.cancel import CancelToken
from launcher.errors import (
    ImageAccessDenied,
    ImageNotFound,
    ImagePullTimeout,
    ImageUnavailable,
    ImageWrongPlatform,
    RegistryRateLimited,
    RegistryUnreachable,
)
from launcher.heartbeat import watching
from launcher.settings import ImageSettings
from launcher.threads import spawn
from support.engines import DockerSite, permit
from support.hearts import Watching
from support.shaky_registry import Answer, ShakyRegistry, digest_of, refusal


pytestmark = pytest.mark.services


@pytest.fixture(name="site", scope="module")
def _site():
    with contextlib.closing(DockerSite()) as site:
        yield site


@pytest.fixture(name="forgetting")
def _forgetting(site):
    registries = []
    yield registries.append
    for image in site.api.images():
        names = [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]
        if any(
            name.startswith(registry.name) for name in names for registry in registries
        ):
            site.api.remove_image(image["Id"], force=True)


@pytest.fixture(name="registry")
def _registry(forgetting):
    with ShakyRegistry().serving() as registry:
        forgetting(registry)
        yield registry


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(docker_images, "_FIRST_PAUSE", 0.05)


def images(site, **settings):
    return DockerImages(site.api, ImageSettings(**settings), PulledImages())


def pull(site, registry, **settings):
    """Resolve and pull as a job does; returns what its log was told."""
    here, said = images(site, **settings), []
    here.pull(here.resolve(permit(f"{registry.name}:1"), None), say=said.append)
    return said


def only_when(part, answer, times=1_000):
    left = [times]

    def meddle(path):
        if part not in path or left[0] == 0:
            return None
        left[0] -= 1
        return answer

    return meddle


def is_layer(registry, path):
    return path.endswith(digest_of(registry.layer))


def test_it_arrives(site, registry):
    """An image is pulled once, and the run's log says how long it took."""
    said = pull(site, registry)

    assert said[-1].startswith("Pulled the image in ")
    assert [] == pull(site, registry)
    assert 1 == registry.fetched(registry.layer)


def test_a_crowd(site, registry):
    """Twenty jobs that need the same new image cause one pull, and all get it."""
    here, held = images(site), threading.Event()
    registry.half_way = lambda path: is_layer(registry, path) and held.wait(30)
    image = here.resolve(permit(f"{registry.name}:1"), None)
    ended, said = [], []

    def job():
        here.pull(image, say=said.append)
        ended.append(site.api.inspect_image(image.runnable)["Id"])

    jobs = [threading.Thread(target=job) for _ in range(20)]
    for thread in jobs:
        thread.start()
    waiting = "Another run on this worker pulls the same image; waiting for it"
    eventually(lambda: said.count(waiting) == 19)
    held.set()
    for thread in jobs:
        thread.join()

    assert 20 == len(ended)
    assert 1 == registry.fetched(registry.layer)


@pytest.mark.parametrize(
    "answer",
    [
        refusal(429, "TOOMANYREQUESTS", "retry-after: 20ms, allowed: 1/minute"),
        Answer(429, b"slow down"),
        refusal(500, "UNKNOWN"),
        Answer(503, b"<html>later</html>"),
    ],
)
def test_trouble_that_passes(site, registry, answer):
    """A rate limit and a failing registry are waited for, when resolving and pulling."""
    here, said = images(site), []
    registry.meddle = only_when("/manifests/", answer, times=1)
    image = here.resolve(permit(f"{registry.name}:1"), None)
    registry.meddle = only_when("/manifests/", answer, times=1)

    here.pull(image, say=said.append)

    assert any(line.startswith("Trying again in ") for line in said)
    assert said[-1].startswith("Pulled the image in ")


@pytest.mark.parametrize(
    ("answer", "error", "hint"),
    [
        (refusal(429, "TOOMANYREQUESTS"), RegistryRateLimited, "rate limit"),
        (refusal(500, "UNKNOWN"), RegistryUnreachable, "fails"),
    ],
)
def test_trouble_that_stays(site, registry, answer, error, hint):
    """After some attempts the run's log says what the trouble is."""
    registry.meddle = only_when("/manifests/", answer)

    with pytest.raises(error, match=hint):
        pull(site, registry)
    assert sum("/manifests/" in path for _, path in registry.asked) >= 3


@pytest.mark.parametrize(
    ("answer", "error", "hint"),
    [
        (refusal(401, "UNAUTHORIZED"), ImageAccessDenied, "without a login"),
        (refusal(403, "DENIED"), ImageAccessDenied, "without a login"),
        (refusal(404, "MANIFEST_UNKNOWN"), ImageNotFound, "does not have it"),
    ],
)
def test_answers_that_stay(site, registry, answer, error, hint):
    """Who is refused, or told that there is nothing, does not ask again."""
    registry.meddle = only_when("/manifests/", answer)

    begun = time.monotonic()
    with pytest.raises(error, match=hint):
        pull(site, registry)
    paths = [path for _, path in registry.asked if "/manifests/" in path]
    # The engine itself asks twice, in two ways.
    assert len(paths) <= 3
    assert time.monotonic() - begun < 10


def test_stalled(site, registry):
    """A pull in which nothing arrives ends by its own limit, and says so."""
    registry.half_way = lambda path: is_layer(registry, path) and registry.stall(path)

    begun = time.monotonic()
    with pytest.raises(ImagePullTimeout, match="nothing of it arrived for 1 s"):
        pull(site, registry, pull_stall_timeout=1.0)
    assert time.monotonic() - begun < 10


def test_how_far_it_is(site, registry, monkeypatch):
    """A pull that takes its time says every few seconds how far it is, in one line."""
    monkeypatch.setattr(docker_images, "LINE_SECONDS", 0.2)
    here, said, held = images(site), [], threading.Event()
    registry.half_way = lambda path: is_layer(registry, path) and held.wait(30)
    image = here.resolve(permit(f"{registry.name}:1"), None)

    def say(line):
        said.append(line)
        if len(of_layers()) == 3:
            held.set()

    def of_layers():
        return [line for line in said if "of 1 layers" in line]

    here.pull(image, say=say)

    assert 3 <= len(of_layers()) < 10


def test_a_long_pull_is_waited_for(site, registry, monkeypatch):
    """Who pulls, and who waits for the pull of another run, is alive however long it takes."""
    monkeypatch.setattr(docker_images, "_LOOK_SECONDS", 0.05)
    here, held, heart = images(site), threading.Event(), Watching()
    registry.half_way = lambda path: is_layer(registry, path) and held.wait(60)
    image = here.resolve(permit(f"{registry.name}:1"), None)
    said = []

    with heart.listening():
        first = spawn("first", watching("first", lambda: here.pull(image)))
        eventually(lambda: any(is_layer(registry, path) for _, path in registry.asked))
        second = spawn(
            "second",
            watching("second", lambda: here.pull(image, say=said.append)),
        )
        eventually(lambda: any("Another run" in line for line in said))
        alive = [heart.endures(name) for name in ("first", "second")]
        held.set()
        first.join(60)
        second.join(60)

    assert [True, True] == alive
    assert site.api.inspect_image(image.runnable)


def test_too_slow(site, registry):
    """A pull that takes too long ends, even while something arrives."""
    registry.half_way = lambda path: is_layer(registry, path) and registry.stall(path)

    with pytest.raises(ImagePullTimeout, match="did not arrive within 1 s"):
        pull(site, registry, pull_timeout=1.0)


def test_cancelled(site, registry):
    """A job that is ended does not wait for its image; another one still gets it."""
    here, cancel, held = images(site), CancelToken(), threading.Event()
    registry.half_way = lambda path: is_layer(registry, path) and held.wait(30)
    image = here.resolve(permit(f"{registry.name}:1"), None)
    failed, said, ended = [], [], []

    def first():
        try:
            here.pull(image, cancel=cancel)
        except ImageUnavailable as exc:
            failed.append(exc)

    def second():
        here.pull(image, say=said.append)
        ended.append(True)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    eventually(lambda: registry.fetched(registry.layer))
    threads[1].start()
    eventually(lambda: said)
    cancel.cancel("a test")
    threads[0].join()
    held.set()
    threads[1].join()

    assert failed
    assert ended


def test_other_content(site, registry):
    """What is not what its digest says is not taken, and not asked for again."""
    wrong = Answer(
        body=registry.manifest.replace(b'"schemaVersion"', b' "schemaVersion"'),
        headers=(
            ("Content-Type", "application/vnd.docker.distribution.manifest.v2+json"),
        ),
    )
    here, said = images(site), []
    image = here.resolve(permit(f"{registry.name}:1"), None)
    registry.meddle = only_when("/manifests/", wrong)

    with pytest.raises(ImageUnavailable, match="not what the digest stands for"):
        here.pull(image, say=said.append)
    assert [] == said


def test_a_layer_of_other_content(site, registry):
    """A layer that somebody has replaced does not get into the engine."""
    other = Answer(body=b"x" * len(registry.layer))
    registry.meddle = lambda path: other if is_layer(registry, path) else None

    with pytest.raises(ImageUnavailable):
        pull(site, registry)


def test_wrong_architecture(site, forgetting):
    """An image for another processor is refused before a container is made of it."""
    with ShakyRegistry(architecture="s390x").serving() as registry:
        forgetting(registry)
        with pytest.raises(ImageWrongPlatform, match="exec format error.*linux/amd64"):
            pull(site, registry)
        # Now it is here, which makes it no better.
        with pytest.raises(ImageWrongPlatform):
            pull(site, registry)


def test_nobody_there(site):
    """A registry that does not answer is told from one that says no."""
    with ShakyRegistry().serving() as registry:
        pass

    with pytest.raises(RegistryUnreachable, match="cannot be reached"):
        pull(site, registry)


# --- removing what nobody uses


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(name="clock")
def _clock():
    return Clock()


def test_least_recently_used(site, clock, forgetting, tmp_path):
    """On a full disk what was not used for longest goes first, until there is room."""
    record = PulledImages(tmp_path / "pulled.json", clock=clock)
    here = DockerImages(site.api, ImageSettings(gc_threshold=80), record)
    with contextlib.ExitStack() as serving:
        known = []
        for _ in range(3):
            registry = serving.enter_context(ShakyRegistry().serving())
            forgetting(registry)
            known.append(here.resolve(permit(f"{registry.name}:1"), None))
            here.pull(known[-1])
            clock.now += 100
        here.pull(known[0])  # used again
        clock.now += 100
        readings = iter([90, 79])

        assert 1 == here.collect(lambda: next(readings), grace=50)
        assert [True, False, True] == [present(site, image) for image in known]
        # What is young stays, however full it is.
        assert 1 == here.collect(lambda: 99, grace=150)
        assert [True, False, False] == [present(site, image) for image in known]


@pytest.mark.parametrize("by", ["digest", "id"])
def test_used_by_another_name(site, registry, clock, tmp_path, by):
    """An image counts as used by whatever name a job calls it, pulled anew or not."""
    record = PulledImages(tmp_path / "pulled.json", clock=clock)
    here = DockerImages(site.api, ImageSettings(gc_threshold=1), record)
    image = here.resolve(permit(f"{registry.name}:1"), None)
    here.pull(image)
    clock.now += 1000
    name = {
        "digest": f"{registry.name}@{image.digest}",
        "id": site.api.inspect_image(image.runnable)["Id"],
    }[by]

    again = here.resolve(permit(name), None)
    assert again.local
    assert 0 == here.collect(lambda: 99, grace=500)
    clock.now += 1000
    here.pull(again)
    assert 0 == here.collect(lambda: 99, grace=500)
    assert present(site, image)


def test_only_what_we_pulled(site, registry, clock, tmp_path):
    """An image that somebody else brought is never removed, used by runs or not."""
    record = PulledImages(tmp_path / "pulled.json", clock=clock)
    here = DockerImages(site.api, ImageSettings(gc_threshold=1), record)
    site.api.pull(registry.name, tag="1")
    image = here.resolve(permit(f"{registry.name}:1"), None)
    here.pull(image)
    clock.now += 1000

    assert 0 == here.collect(lambda: 99, grace=1)
    assert present(site, image)


def test_never_one_in_use(site, registry, clock, tmp_path):
    """An image that a container is made of stays, and so does one with a tag."""
    record = PulledImages(tmp_path / "pulled.json", clock=clock)
    here = DockerImages(site.api, ImageSettings(gc_threshold=1), record)
    image = here.resolve(permit(f"{registry.name}:1"), None)
    here.pull(image)
    clock.now += 1000
    container = site.api.create_container(image.runnable, ["x"])["Id"]
    try:
        assert 0 == here.collect(lambda: 99, grace=1)
        assert present(site, image)
    finally:
        site.api.remove_container(container)
    site.api.tag(image.runnable, registry.name, "somebodys")
    here.collect(lambda: 99, grace=1)
    assert site.api.inspect_image(f"{registry.name}:somebodys")


def test_the_record_outlives_the_launcher(site, registry, clock, tmp_path):
    """What was pulled before a restart is still known to be ours, and nothing else."""
    file = tmp_path / "pulled.json"
    here = DockerImages(site.api, ImageSettings(), PulledImages(file, clock=clock))
    image = here.resolve(permit(f"{registry.name}:1"), None)
    here.pull(image)
    clock.now += 1000

    again = DockerImages(
        site.api, ImageSettings(gc_threshold=1), PulledImages(file, clock=clock)
    )
    assert 1 == again.collect(lambda: 99, grace=1)
    assert not present(site, image)
    assert 0o600 == file.stat().st_mode & 0o777
    file.write_text("[1, 2")
    assert [] == PulledImages(file, clock=clock).unused_for(0)


def present(site, image):
    try:
        return bool(site.api.inspect_image(image.runnable))
    except docker.errors.ImageNotFound:
        return False
