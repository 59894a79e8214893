"""A job's way to its image: one login, replaced once."""

import pytest

from given import a_job
from launcher.admission import permit, resolve
from launcher.cancel import CancelToken
from launcher.errors import ImageAccessDenied, ImageNotFound, JobRejected
from launcher.image_access import ImageAccess
from launcher.images import Permit, Reference
from launcher.settings import Settings
from launcher.testing.credentials import ScriptedCredentials
from launcher.testing.engine import ShellEngine
from launcher.vendors import table
from launcher.wire.jobs import RegistryLogin


IMAGE = Permit(reference=Reference.parse("registry.example/runner:1"), rule="tests")


class Engine(ShellEngine):
    """Has a registry that takes one password."""

    accepts = "one"

    def resolve(self, image, login):
        self.check(login)
        return super().resolve(image, login)

    def pull(self, image, **how):
        self.check(image.login)
        super().pull(image, **how)

    def check(self, login):
        self.logins.append(login and login.password.reveal())
        if login is None or login.password.reveal() != self.accepts:
            raise ImageAccessDenied("no")


@pytest.fixture(name="engine")
def _engine(tmp_path):
    return Engine(tmp_path)


@pytest.fixture(name="credentials")
def _credentials():
    return ScriptedCredentials({"registry.example": ("anna", "one")})


def access(engine, credentials, **more):
    return ImageAccess(
        a_job(), engine, credentials, say=lambda _: None, cancel=CancelToken(), **more
    )


def test_one_login_for_a_job(engine, credentials):
    """Resolving and pulling use the login that was found first."""
    job = access(engine, credentials)
    image = job.resolve(IMAGE)
    credentials.logins["registry.example"] = ("anna", "two")
    job.pull(image)

    assert ["one", "one"] == [each for each in engine.logins if isinstance(each, str)]


def test_a_refused_login_is_replaced(engine, credentials):
    """When the password changes amid a job, it goes on with the new one, masked too."""
    known = []
    job = access(engine, credentials, logged_in=known.append)
    image = job.resolve(IMAGE)
    engine.accepts = "two"
    credentials.logins["registry.example"] = ("anna", "two")

    job.pull(image)

    assert image.runnable in engine.pulled
    assert ["one", "two"] == [login.password.reveal() for login in known]


def test_once_only(engine, credentials):
    """A job replaces its login once, so that it does not lock anybody out."""
    job = access(engine, credentials)
    engine.accepts = "three"
    with pytest.raises(ImageAccessDenied):
        job.resolve(IMAGE)
    assert ["one"] == engine.logins

    credentials.logins["registry.example"] = ("anna", "two")
    with pytest.raises(ImageAccessDenied):
        job.resolve(IMAGE)
    assert ["one", "one"] == engine.logins


def test_other_trouble_keeps_the_login(engine, credentials):
    """Only a refusal is a reason for another login."""
    engine.check = lambda login: (_ for _ in ()).throw(ImageNotFound("no"))
    credentials.renewed = None

    with pytest.raises(ImageNotFound):
        access(engine, credentials).resolve(IMAGE)


def test_what_admits():
    """A login of the owner's admits a registry; one that came with the job does not."""
    login = RegistryLogin(registry="registry.example", username="anna", password="p")
    job = a_job(registry_logins=(login,))
    vendor = table(job.vendor, job.phases)

    permitted = permit(
        job, vendor, Settings(), ScriptedCredentials({"registry.example": ("a", "b")})
    )
    assert "credentials configured: registry.example" in permitted.image.rule
    with pytest.raises(JobRejected, match="not allowed"):
        permit(job, vendor, Settings(), ScriptedCredentials())


def test_admission_resolves_as_the_job(engine, credentials):
    """The digest that is judged is what the job's own login may see."""
    job = a_job(docker_image="registry.example/runner:1")
    permitted = permit(job, table(job.vendor, job.phases), Settings(), credentials)

    resolved = resolve(permitted, access(engine, credentials), Settings())

    assert resolved.image.digest.startswith("sha256:")
    assert ["one"] == engine.logins[:1]
