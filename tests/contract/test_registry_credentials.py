import base64
import json

import pytest

from launcher.adapters.credentials.docker_config import DockerConfigCredentials
from launcher.credentials import NoCredentials
from launcher.errors import ImageUnavailable, LauncherError
from launcher.images import Reference
from launcher.testing.credentials import ScriptedCredentials


def image(text):
    return Reference.parse(text)


class Fake:
    def __init__(self):
        self.port = ScriptedCredentials()

    def store(self, logins):
        self.port.logins = dict(logins)

    def damage(self):
        self.port.broken = "not JSON: hunter2"


class DockerConfig:
    def __init__(self, directory):
        self.file = directory / "config.json"
        self.port = DockerConfigCredentials(directory)

    def store(self, logins):
        auths = {
            "https://index.docker.io/v1/" if host == "docker.io" else host: {
                "auth": base64.b64encode(":".join(login).encode()).decode()
            }
            for host, login in logins.items()
        }
        self.file.write_text(json.dumps({"auths": auths}))

    def damage(self):
        self.file.write_text('{"auths": "hunter2')


@pytest.fixture(params=["scripted", "docker-config"])
def source(request, tmp_path):
    return Fake() if request.param == "scripted" else DockerConfig(tmp_path)


def test_login_of_the_images_registry(source):
    """
    The login for the registry that the reference names is given, and no other.
    """
    source.store(
        {"a.example.com:5000": ("anna", "one"), "b.example.com": ("ben", "two")}
    )

    login = source.port.for_image(image("a.example.com:5000/x:1"))

    assert ("anna", "one", "a.example.com:5000") == (
        login.username,
        login.password.reveal(),
        login.registry,
    )


def test_docker_hub_in_all_its_spellings(source):
    """
    Docker Hub is one registry, however the image's name is shortened.
    """
    source.store({"docker.io": ("hub", "secret")})

    for name in ("alpine", "acme/x", "docker.io/acme/x", "index.docker.io/acme/x"):
        assert "hub" == source.port.for_image(image(name)).username


@pytest.mark.parametrize(
    "name",
    [
        "other.example.com/x",
        "a.example.com/x",
        "a.example.com:5001/x",
        "sub.a.example.com/x",
        "a.example.com.evil.org/x",
        "sha256:" + "a" * 64,
    ],
)
def test_no_login_for_other_registries(source, name):
    """
    A registry nobody logged in to is asked anonymously; near misses get nothing.
    """
    source.store({"a.example.com:5000": ("anna", "one")})

    assert None is source.port.for_image(image(name))


def test_a_renewed_password_is_seen(source):
    """
    Every call looks anew, so that the next job has the new password.
    """
    reference = image("a.example.com/x")
    source.store({"a.example.com": ("anna", "old")})
    source.port.for_image(reference)
    source.store({"a.example.com": ("anna", "new")})

    assert "new" == source.port.for_image(reference).password.reveal()


def test_password_with_colons(source):
    """
    Only the first colon separates; passwords may hold more of them.
    """
    source.store({"a.example.com": ("AWS", "ab:cd:=")})

    login = source.port.for_image(image("a.example.com/x"))

    assert "ab:cd:=" == login.password.reveal()


def test_nothing_is_printed(source):
    """
    A login may end up in a log line without giving anything away.
    """
    source.store({"a.example.com": ("anna", "hunter2")})

    login = source.port.for_image(image("a.example.com/x"))

    assert "hunter2" not in f"{login} {login!r} {login.password:>20}"


def test_unusable_configuration(source):
    """
    Credentials that cannot be read are an error with a public sentence.
    """
    source.damage()

    with pytest.raises(LauncherError) as caught:
        source.port.for_image(image("a.example.com/x"))

    assert caught.type is ImageUnavailable
    assert "the registry credentials of this worker cannot be read" == str(caught.value)


def test_nobody():
    """
    Without any source every registry is asked anonymously.
    """
    assert None is NoCredentials().for_image(image("a.example.com/x"))


class TestDockerConfig:
    @pytest.fixture
    def write(self, tmp_path):
        def write(document):
            (tmp_path / "config.json").write_text(json.dumps(document))
            return DockerConfigCredentials(tmp_path)

        return write

    def test_no_file_yet(self, tmp_path):
        """
        A directory that nobody logged in with is as good as none.
        """
        assert None is DockerConfigCredentials(tmp_path).for_image(image("x.org/x"))

    @pytest.mark.parametrize(
        "key", ["x.org:5000", "https://x.org:5000", "http://x.org:5000/v2/"]
    )
    def test_spellings_of_a_key(self, write, key):
        """
        Keys with scheme and path name the same registry.
        """
        config = write({"auths": {key: {"auth": "YTpi"}}})

        assert "a" == config.for_image(image("x.org:5000/x")).username

    def test_the_exact_key_wins(self, write):
        """
        What else the client keeps under the host of Docker Hub is no login.
        """
        auths = {
            "https://index.docker.io/v1/access-token": {"auth": "bm90OnRoaXM="},
            "https://index.docker.io/v1/": {"auth": "dGhpczpvbmU="},
        }

        assert "this" == write({"auths": auths}).for_image(image("alpine")).username

    def test_identity_token(self, write):
        """
        A refresh token is handed on beside the user it belongs to.
        """
        entry = {"auth": "MDAwMDA6", "identitytoken": "refresh"}

        login = write({"auths": {"x.azurecr.io": entry}}).for_image(
            image("x.azurecr.io/x")
        )

        assert ("00000", "refresh") == (login.username, login.identity_token.reveal())

    @pytest.mark.parametrize(
        "document",
        [
            {},
            {"auths": {}},
            {"auths": {"x.org": {}}},
            {"credsStore": "desktop", "auths": {"x.org": {}}},
            {"credHelpers": {"x.org": "ecr-login"}},
        ],
    )
    def test_entries_without_a_login(self, write, document):
        """
        What a credential helper keeps is not ours to give, nor an error.
        """
        assert None is write(document).for_image(image("x.org/x"))

    @pytest.mark.parametrize(
        "document",
        [
            [],
            {"auths": []},
            {"auths": {"x.org": "a:b"}},
            {"auths": {"x.org": {"auth": "no base64!"}}},
            {"auths": {"x.org": {"auth": "bm9jb2xvbg=="}}},
            {"auths": {"x.org": {"auth": 7}}},
            {"auths": {"x.org": {"identitytoken": 7, "auth": "YTpi"}}},
        ],
    )
    def test_malformed(self, write, document):
        """
        A configuration of another shape is an error of ours and no crash.
        """
        with pytest.raises(ImageUnavailable):
            write(document).for_image(image("x.org/x"))

    def test_a_broken_entry_of_somebody_else(self, write):
        """
        Damage in the entry of one registry does not keep others from working.
        """
        auths = {"broken.org": {"auth": "!"}, "x.org": {"auth": "YTpi"}}

        assert "a" == write({"auths": auths}).for_image(image("x.org/x")).username
