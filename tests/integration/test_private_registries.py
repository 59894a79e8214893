"""A real registry over TLS with a password, pulled from by a real engine."""

import base64
import json

import pytest

from given import a_job
from launcher import admission, vendors
from launcher.adapters.credentials.chain import chain
from launcher.adapters.engines.docker_images import DockerImages
from launcher.cancel import CancelToken
from launcher.errors import (
    ImageAccessDenied,
    ImageNotFound,
    RegistryNotTrusted,
)
from launcher.image_access import ImageAccess
from launcher.secret import Secret
from launcher.settings import ImageSettings, Settings
from launcher.wire.jobs import RegistryLogin
from support.aws import ECR, TokenService, identity
from support.ecr_site import PRIVATE, UNTRUSTED, ecr_site


pytestmark = pytest.mark.services


@pytest.fixture(name="site", scope="module")
def _site():
    with ecr_site() as site:
        yield site


@pytest.fixture(autouse=True)
def _first_password(site):
    site.passwords("first-password")


@pytest.fixture(name="service")
def _service(monkeypatch):
    service = TokenService()
    with service.serving() as address:
        identity(monkeypatch, address)
        yield service


class Worker:
    """One launcher: all of its jobs share what it knows."""

    def __init__(self, site, **images):
        self.settings = Settings(images=ImageSettings(**images))
        self.credentials = chain(self.settings.images, {"PATH": "/usr/bin:/bin"})
        self.engine = DockerImages(site.api, self.settings.images)
        self.said = []

    def job(self, image, **job):
        """The part of a job's way that is about its image, up to where it is here."""
        job = a_job(docker_image=image, **job)
        vendor = vendors.table(job.vendor, job.phases)
        permitted = admission.permit(job, vendor, self.settings, self.credentials)
        access = ImageAccess(
            job,
            self.engine,
            self.credentials,
            say=self.said.append,
            cancel=CancelToken(),
        )
        resolved = admission.resolve(permitted, access, self.settings)
        return Prepared(permitted.image.rule, resolved.image, access)


class Prepared:
    def __init__(self, rule, image, access):
        self.rule, self.image, self._access = rule, image, access

    def pull(self):
        self._access.pull(self.image)
        return self.image


def here(site, image):
    return image.runnable in site.api.inspect_image(image.runnable)["RepoDigests"]


def auth_config(site, registry=PRIVATE, password=None):
    pair = f"{site.user}:{password or site.password}".encode()
    entry = {"auth": base64.b64encode(pair).decode()}
    return Secret(json.dumps({"auths": {registry: entry}}))


# --- a private registry


def test_a_configured_registry(site):
    """A registry that its owner wrote a login down for is admitted by it, and pulled from."""
    digest = site.push(f"{PRIVATE}/team/runner:1", b"private")
    worker = Worker(site, docker_auth_config=auth_config(site, f"{PRIVATE}/team"))

    job = worker.job(f"{PRIVATE}/team/runner:1")

    assert digest == job.image.digest
    assert f"credentials configured: {PRIVATE}/team" in job.rule
    assert here(site, job.pull())


def test_the_jobs_own_login(site):
    """A login that comes with a job is used for it, and lets nobody else in."""
    site.push(f"{PRIVATE}/team/runner:1", b"private")
    allowed = Settings.from_environ(
        {"SPACELIFT_LAUNCHER_ALLOWED_IMAGES": f"{PRIVATE}/*"}
    ).images.allowed_images
    worker = Worker(site, allowed_images=allowed)
    login = RegistryLogin(registry=PRIVATE, username=site.user, password=site.password)

    job = worker.job(f"{PRIVATE}/team/runner:1", registry_logins=(login,))
    assert here(site, job.pull())
    with pytest.raises(ImageAccessDenied, match="without a login"):
        worker.job(f"{PRIVATE}/team/runner:1")
    # What is here by its digest is still only for those who may have it.
    with pytest.raises(ImageAccessDenied):
        worker.job(f"{PRIVATE}/team/runner@{job.image.digest}")


def test_the_refused_login_is_named(site):
    """Who reads that a login was refused reads which one, and no password."""
    site.push(f"{PRIVATE}/team/runner:1", b"private")
    wrong = auth_config(site, password="hunter2-is-wrong")
    worker = Worker(site, docker_auth_config=wrong)

    with pytest.raises(ImageAccessDenied) as caught:
        worker.job(f"{PRIVATE}/team/runner:1")

    assert "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG" in str(caught.value)
    assert "hunter2" not in str(caught.value) + caught.value.details


def test_not_there(site):
    """What a private registry does not have is told from what it refuses."""
    worker = Worker(site, docker_auth_config=auth_config(site))

    with pytest.raises(ImageNotFound):
        worker.job(f"{PRIVATE}/team/nothing:1")


def test_an_authority_that_nobody_trusts(site):
    """A registry whose certificate the engine does not trust is said to be that."""
    worker = Worker(site, docker_auth_config=auth_config(site, UNTRUSTED))

    with pytest.raises(RegistryNotTrusted, match=r"certs\.d"):
        worker.job(f"{UNTRUSTED}/team/runner:1")


# --- ECR


def test_ecr(site, service):
    """An image on ECR needs nothing but an AWS identity, and one token a job at most."""
    digest = site.push(f"{ECR}/acme/runner:1", b"one")
    worker = Worker(site)

    job = worker.job(f"{ECR}/acme/runner:1")

    assert here(site, job.pull())
    assert digest == job.image.digest
    assert "built-in list: dkr.ecr.<region>.amazonaws.com" == job.rule
    assert [("ecr", "eu-west-1")] == service.asked


def test_a_job_after_the_rotation(site, service):
    """When the registry takes another password, the next job gets a new token and runs."""
    site.push(f"{ECR}/acme/runner:1", b"one")
    worker = Worker(site)
    worker.job(f"{ECR}/acme/runner:1").pull()
    site.passwords("second-password")
    service.password = "second-password"
    site.push(f"{ECR}/acme/runner:1", b"two")

    assert here(site, worker.job(f"{ECR}/acme/runner:1").pull())
    assert 2 == len(service.asked)


def test_a_job_amid_the_rotation(site, service):
    """A job that began with the old password succeeds when it tries again."""
    site.push(f"{ECR}/acme/runner:1", b"three")
    worker = Worker(site)
    job = worker.job(f"{ECR}/acme/runner:1")
    site.passwords("second-password")
    service.password = "second-password"

    assert here(site, job.pull())
    assert 2 == len(service.asked)


def test_a_rotation_that_does_not_end(site, service):
    """A job replaces its token once; when the new one is refused, too, it gives up."""
    site.push(f"{ECR}/acme/runner:1", b"four")
    worker = Worker(site)
    job = worker.job(f"{ECR}/acme/runner:1")
    site.passwords("second-password")
    service.password = "another-password"

    with pytest.raises(ImageAccessDenied, match="with the login from ECR"):
        job.pull()
    assert 2 == len(service.asked)


def test_nothing_is_left_of_a_password(site, service):
    """No password is in what the engine knows of an image, nor in the run's log."""
    site.push(f"{ECR}/acme/runner:1", b"five")
    worker = Worker(site)
    image = worker.job(f"{ECR}/acme/runner:1").pull()

    told = json.dumps(site.api.inspect_image(image.runnable)) + "".join(worker.said)
    assert site.password not in told + repr(image) + str(image)
    assert site.password not in (site.folder / "log").read_text()
