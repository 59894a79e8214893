"""Images of a real registry: found by name, pinned, pulled, and refused."""

import contextlib

from dataclasses import replace

from support.engines import DockerSite, permit
from support.registry import PASSWORD, USER, Registry

import docker
import pytest

from launcher.adapters.engines import docker_images
from launcher.adapters.engines.docker import DockerEngine
from launcher.credentials import Login
from launcher.errors import ImageAccessDenied, ImageNotFound, ImageUnavailable
from launcher.errors import RegistryUnreachable
from launcher.secret import Secret
from launcher.settings import PullPolicy, Settings


pytestmark = pytest.mark.services


@pytest.fixture(name="site", scope="module")
def _site():
    with contextlib.closing(DockerSite()) as site:
        yield site


@pytest.fixture(name="registry")
def _registry(site, tmp_path):
    with Registry(tmp_path) as registry:
        yield registry
        registry.forget(site.api)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(docker_images, "_FIRST_PAUSE", 0.05)


def login(registry, password=PASSWORD):
    return Login(
        username=USER,
        password=Secret(password),
        registry=registry.host,
        source="a test",
    )


def engine_with(site, policy):
    """Another engine of the same launcher, with a pull policy."""
    settings = Settings()
    return DockerEngine(
        site.api,
        replace(settings, images=replace(settings.images, pull_policy=policy)),
        instance=site.instance,
        pool="tests",
    )


def has(site, image):
    try:
        return site.api.inspect_image(image.runnable)
    except docker.errors.ImageNotFound:
        return None


def test_resolved_then_pulled(site, registry):
    """An image is resolved to its digest without pulling it, and then pulled by it."""
    digest = registry.push(site.api, "acme/runner:1", b"one")

    image = site.engine.resolve(
        permit(f"{registry.host}/acme/runner:1"), login(registry)
    )

    assert (digest, False) == (image.digest, image.local)
    assert f"{registry.host}/acme/runner@{digest}" == image.runnable
    assert not has(site, image)
    site.engine.pull(image)
    site.engine.pull(image)
    assert [image.runnable] == has(site, image)["RepoDigests"]


def test_tag_that_moves(site, registry):
    """What was judged is what is pulled, wherever the tag points meanwhile."""
    registry.push(site.api, "acme/runner:1", b"one")
    image = site.engine.resolve(
        permit(f"{registry.host}/acme/runner:1"), login(registry)
    )
    other = registry.push(site.api, "acme/runner:1", b"two")

    site.engine.pull(image)

    assert other != image.digest
    assert [image.runnable] == has(site, image)["RepoDigests"]


def test_pinned_image(site, registry):
    """An image that is pinned in the job is pulled by that digest, whatever the tag says."""
    digest = registry.push(site.api, "acme/runner:1", b"one")
    registry.push(site.api, "acme/runner:1", b"two")
    name = f"{registry.host}/acme/runner:1@{digest}"

    image = site.engine.resolve(permit(name), login(registry))
    site.engine.pull(image)

    assert digest == image.digest
    assert has(site, image)


def anonymous(_):
    return None


def wrong(registry):
    return login(registry, "wrong-password")


@pytest.mark.parametrize("as_whom", [anonymous, wrong])
def test_no_access(site, registry, as_whom):
    """Without the right password an image is unavailable, and no password is told."""
    digest = registry.push(site.api, "acme/runner:1", b"one")
    given = as_whom(registry)

    named = permit(f"{registry.host}/acme/runner:1")
    pinned = permit(f"{registry.host}/acme/runner@{digest}")
    known = site.engine.resolve(named, login(registry))

    with pytest.raises(ImageAccessDenied) as resolving:
        site.engine.resolve(named, given)
    with pytest.raises(ImageAccessDenied) as resolving_pinned:
        site.engine.resolve(pinned, given)
    with pytest.raises(ImageAccessDenied) as pulling:
        site.engine.pull(replace(known, login=given))

    for caught in (resolving, resolving_pinned, pulling):
        said = str(caught.value) + caught.value.details
        assert f"{registry.host}/acme/runner" in str(caught.value)
        assert "wrong-password" not in said
        assert ("without a login" if given is None else "a test") in str(caught.value)
    assert not has(site, known)


@pytest.mark.parametrize("name", ["acme/runner:2", "acme/other:1", "other:latest"])
def test_image_that_is_not_there(site, registry, name):
    """An image that the registry does not have is unavailable."""
    registry.push(site.api, "acme/runner:1", b"one")

    with pytest.raises(ImageNotFound) as caught:
        site.engine.resolve(permit(f"{registry.host}/{name}"), login(registry))

    assert f"{registry.host}/{name}" in str(caught.value)


def test_digest_that_is_not_there(site, registry):
    """A digest that the registry does not have is unavailable, at the latest when pulled."""
    registry.push(site.api, "acme/runner:1", b"one")
    name = f"{registry.host}/acme/runner@sha256:{'0' * 64}"

    with pytest.raises(ImageUnavailable):
        site.engine.pull(site.engine.resolve(permit(name), login(registry)))


def test_registry_that_goes_away(site, registry):
    """A registry that goes away between resolving and pulling is no failure of the engine."""
    registry.push(site.api, "acme/runner:1", b"one")
    image = site.engine.resolve(
        permit(f"{registry.host}/acme/runner:1"), login(registry)
    )
    registry.stop()

    with pytest.raises(RegistryUnreachable):
        site.engine.pull(image)
    with pytest.raises(RegistryUnreachable):
        site.engine.resolve(permit(f"{registry.host}/acme/runner:1"), login(registry))


def test_never_pulled(site, registry):
    """With the policy `never`, only what is in the engine is used."""
    digest = registry.push(site.api, "acme/runner:1", b"one")
    engine = engine_with(site, PullPolicy.NEVER)
    name = f"{registry.host}/acme/runner:1"

    with pytest.raises(ImageUnavailable) as caught:
        engine.resolve(permit(name), login(registry))
    assert "must not pull" in str(caught.value)

    site.engine.pull(site.engine.resolve(permit(f"{name}@{digest}"), login(registry)))
    pinned = engine.resolve(permit(f"{registry.host}/acme/runner@{digest}"), None)
    assert pinned.local
    assert has(site, pinned)


def test_pulled_if_not_present(site, registry):
    """With the policy `if-not-present`, the registry is asked for what is not there."""
    digest = registry.push(site.api, "acme/runner:1", b"one")
    engine = engine_with(site, PullPolicy.IF_NOT_PRESENT)
    name = permit(f"{registry.host}/acme/runner@{digest}")

    first = engine.resolve(name, login(registry))
    engine.pull(first)
    again = engine.resolve(name, login(registry))

    assert (False, True) == (first.local, again.local)
    assert {digest} == {first.digest, again.digest}


@pytest.mark.parametrize("as_whom", [anonymous, wrong])
def test_what_another_job_pulled(site, registry, as_whom):
    """An image that is here already is not for a job that could not pull it."""
    digest = registry.push(site.api, "acme/runner:1", b"one")
    engine = engine_with(site, PullPolicy.IF_NOT_PRESENT)
    name = permit(f"{registry.host}/acme/runner@{digest}")
    engine.pull(engine.resolve(name, login(registry)))

    with pytest.raises(ImageAccessDenied):
        engine.resolve(name, as_whom(registry))


@pytest.mark.parametrize("policy", [PullPolicy.NEVER, PullPolicy.IF_NOT_PRESENT])
def test_a_tag_that_is_here(site, registry, policy):
    """A tag in the engine has the digest that its registry knows it by, on every host."""
    digest = registry.push(site.api, "acme/runner:1", b"one")
    name = f"{registry.host}/acme/runner"
    for _ in site.api.pull(name, tag="1", auth_config=registry.auth, stream=True):
        pass
    site.api.tag(f"{name}:1", f"{registry.host}/other/name", "2")
    engine = engine_with(site, policy)

    image = engine.resolve(permit(f"{name}:1"), login(registry))
    assert (digest, True) == (image.digest, image.local)
    assert [f"{name}@{digest}"] == has(site, image)["RepoDigests"]
    # What was never in a registry by that name has no digest there.
    other = engine.resolve(permit(f"{registry.host}/other/name:2"), login(registry))
    assert has(site, image)["Id"] == other.digest == other.runnable


def test_login_is_not_kept(site, registry):
    """A login is good for the call it is given to: the engine learns nothing from it."""
    registry.push(site.api, "acme/runner:1", b"one")
    name = permit(f"{registry.host}/acme/runner:1")
    site.engine.pull(site.engine.resolve(name, login(registry)))

    with pytest.raises(ImageUnavailable):
        site.engine.resolve(name, None)
