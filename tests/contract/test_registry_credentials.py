import base64
import json
import time
import traceback

import pytest

from hypothesis import given
from hypothesis import strategies as st

from launcher.adapters.credentials.chain import chain
from launcher.adapters.credentials.docker_config import ConfigurationFile
from launcher.adapters.credentials.docker_config import DockerConfigCredentials
from launcher.adapters.credentials.helpers import Helpers
from launcher.credentials import NoCredentials, longest
from launcher.errors import ImageUnavailable, LauncherError
from launcher.images import Reference
from launcher.secret import Secret
from launcher.settings import ImageSettings
from launcher.testing.credentials import ScriptedCredentials
from launcher.wire.jobs import RegistryLogin


def image(text):
    return Reference.parse(text)


def from_directory(folder):
    return chain(ImageSettings(docker_config_dir=folder), {"PATH": str(folder)})


def from_text(document):
    text = document if isinstance(document, str) else json.dumps(document)
    return chain(ImageSettings(docker_auth_config=Secret(text)), {"PATH": "/nowhere"})


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
        self.port = from_directory(directory)

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


def test_what_was_renewed_meanwhile(source):
    """
    A login that was refused is replaced by the one there is now, and by no other.
    """
    reference = image("a.example.com/x")
    source.store({"a.example.com": ("anna", "old")})
    refused = source.port.for_image(reference)

    assert None is source.port.renewed(reference, refused)
    source.store({"a.example.com": ("anna", "newer")})
    assert "newer" == source.port.renewed(reference, refused).password.reveal()
    assert None is source.port.renewed(image("b.example.com/x"), None)


def test_found_is_not_fetched(source):
    """
    Where a login is from can be told without the login; nothing secret is in it.
    """
    source.store({"a.example.com": ("anna", "hunter2")})

    [found] = source.port.found(image("a.example.com/x"))

    assert ("a.example.com", True) == (found.entry, found.configured)
    assert "hunter2" not in repr(found) + str(found)
    assert [] == list(source.port.found(image("b.example.com/x")))


def test_nobody():
    """
    Without any source every registry is asked anonymously.
    """
    nobody, reference = NoCredentials(), image("a.example.com/x")

    assert None is nobody.for_image(reference)
    assert None is nobody.renewed(reference, None)
    assert () == nobody.found(reference)


def auth(user, password="p"):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


class TestLongestPrefix:
    AUTHS = {
        "x.org": auth("host"),
        "x.org/team": auth("team"),
        "x.org/team/app": auth("app"),
        "https://y.org": auth("scheme"),
        "docker.io/acme": auth("acme"),
        "https://index.docker.io/v1/": auth("hub"),
        "x.org:5000": auth("port"),
    }

    @pytest.mark.parametrize(
        ("name", "user"),
        [
            ("x.org/other", "host"),
            ("x.org/team", "team"),
            ("x.org/team/other", "team"),
            ("x.org/team/app", "app"),
            ("x.org/team/app/deep:1", "app"),
            ("x.org/teams/app", "host"),
            ("x.org/team/application", "team"),
            ("x.org:5000/team/app", "port"),
            ("y.org/team", "scheme"),
            ("acme/x", "acme"),
            ("docker.io/acme/x", "acme"),
            ("acmes/x", "hub"),
            ("alpine", "hub"),
            ("registry-1.docker.io/acme/x", "acme"),
            ("sub.x.org/team", None),
            ("x.org.evil.org/team", None),
        ],
    )
    def test_whole_parts_of_the_name(self, name, user):
        """
        The entry that names most of an image wins, counted in whole parts.
        """
        login = from_text({"auths": self.AUTHS}).for_image(image(name))

        assert user == (login and login.username)

    @given(
        st.lists(st.from_regex("[a-z]{1,3}", fullmatch=True), min_size=1, max_size=3),
        st.lists(st.from_regex("[a-z]{1,3}", fullmatch=True), min_size=1, max_size=3),
    )
    def test_no_login_strays(self, entry, path):
        """
        A login for a path is given to that path and what is below it, to nothing else.
        """
        name = "/".join(["x.org", *path])
        found = longest(["/".join(["x.org", *entry])], image(name))

        assert (found is not None) == (path[: len(entry)] == entry)


class TestOrder:
    def test_the_job_comes_first(self, tmp_path):
        """
        The job's own, then the setting, then the file; each one hides the next.
        """
        (tmp_path / "config.json").write_text(
            json.dumps({"auths": {"x.org": auth("file"), "z.org": auth("file")}})
        )
        text = {"auths": {"x.org": auth("setting"), "y.org": auth("setting")}}
        credentials = chain(
            ImageSettings(
                docker_config_dir=tmp_path, docker_auth_config=Secret(json.dumps(text))
            ),
            {},
        )
        given = [RegistryLogin(registry="x.org/team", username="job", password="p")]

        def who(name):
            return credentials.for_image(image(name), given).username

        assert "job" == who("x.org/team/app")
        assert "setting" == who("x.org/app")
        assert "setting" == who("y.org/app")
        assert "file" == who("z.org/app")

    def test_every_source_is_named(self, tmp_path):
        """
        Who wonders can read which sources there are, in the order they are asked.
        """
        (tmp_path / "config.json").write_text(json.dumps({"credsStore": "desktop"}))
        credentials = chain(
            ImageSettings(
                docker_config_dir=tmp_path,
                docker_auth_config=Secret(json.dumps({"auths": {ECR: auth("a")}})),
            ),
            {},
        )
        given = [RegistryLogin(registry=ECR, username="job", password="p")]

        found = list(credentials.found(image(f"{ECR}/x"), given))

        assert [
            "the job",
            "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG",
            "SPACELIFT_DOCKER_CONFIG_DIR",
            "ECR",
        ] == [each.source for each in found]
        # Only a registry that its owner wrote down is one that its owner knows.
        assert [False, True, False, False] == [each.configured for each in found]


ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"

HELPER = """#!/bin/sh
read -r server
echo "$1 $server" >> "{folder}/calls"
{body}
"""


@pytest.mark.processes
class TestHelpers:
    """Real executables, found by their names."""

    @pytest.fixture
    def helper(self, tmp_path):
        def helper(name, body):
            path = tmp_path / "bin" / f"docker-credential-{name}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(HELPER.format(folder=tmp_path, body=body))
            path.chmod(0o755)
            return path

        return helper

    @pytest.fixture
    def ask(self, tmp_path):
        def ask(document, name, *, seconds=10.0):
            (tmp_path / "config.json").write_text(json.dumps(document))
            search = f"{tmp_path}/bin:/usr/bin:/bin"
            credentials = DockerConfigCredentials(
                ConfigurationFile("a test", tmp_path),
                Helpers({"PATH": search, "MARK": "seen"}, seconds=seconds),
            )
            logins = (found.fetch() for found in credentials.found(image(name)))
            return next((login for login in logins if login), None)

        return ask

    @staticmethod
    def calls(tmp_path):
        return (tmp_path / "calls").read_text().splitlines()

    def test_helper_for_a_registry(self, helper, ask, tmp_path):
        """
        The helper of a registry is asked for it, and comes before what is written down.
        """
        helper("here", """echo '{"Username":"anna","Secret":"'$MARK'"}'""")
        document = {"credHelpers": {"x.org": "here"}, "auths": {"x.org": auth("no")}}

        login = ask(document, "x.org/a")

        assert ("anna", "seen") == (login.username, login.password.reveal())
        assert ["get x.org"] == self.calls(tmp_path)
        assert None is ask({"credHelpers": {"x.org": "here"}}, "y.org/a")

    def test_store_for_all(self, helper, ask, tmp_path):
        """
        The store is asked for every registry that nothing else is known of.
        """
        helper("all", """echo '{"Username":"<token>","Secret":"refresh"}'""")
        document = {"credsStore": "all", "auths": {"x.org": {}, "y.org": auth("y")}}

        token = ask(document, "x.org/a")

        assert "refresh" == token.identity_token.reveal()
        assert "y" == ask(document, "y.org/a").username
        assert ask(document, "alpine")
        assert ["get x.org", "get https://index.docker.io/v1/"] == self.calls(tmp_path)

    def test_a_store_that_knows_nothing(self, helper, ask):
        """
        That there is no login in the store is an answer, not an error.
        """
        helper("all", "echo 'credentials not found in native keychain'; exit 1")

        assert None is ask({"credsStore": "all"}, "x.org/a")

    @pytest.mark.parametrize(
        "body",
        [
            "echo '{}'",
            "echo hunter2",
            "echo hunter2; exit 1",
            'echo \'{"Secret": "hunter2"}\'',
            "kill -9 $$",
        ],
    )
    def test_a_helper_that_fails(self, helper, ask, body):
        """
        What a broken helper says is shown to nobody: it may be half of a secret.
        """
        helper("bad", body)

        with pytest.raises(ImageUnavailable) as caught:
            ask({"credHelpers": {"x.org": "bad"}}, "x.org/a")

        assert "docker-credential-bad" in str(caught.value)
        told = "".join(traceback.format_exception(caught.value))
        assert "hunter2" not in told + caught.value.details

    def test_a_helper_that_hangs(self, helper, ask):
        """
        A helper has its time; then it ends, and what it has started, too.
        """
        helper("slow", "/bin/sleep 60 & echo $! >&2; /bin/sleep 60")

        begun = time.monotonic()
        with pytest.raises(ImageUnavailable) as caught:
            ask({"credHelpers": {"x.org": "slow"}}, "x.org/a", seconds=0.3)

        assert "no answer in 0.3 s" in caught.value.details
        assert time.monotonic() - begun < 20

    @pytest.mark.parametrize("name", ["not-there", "a"])
    def test_a_helper_that_is_not_there(self, ask, name):
        """
        A helper that cannot be found is an error with its name.
        """
        with pytest.raises(ImageUnavailable, match=f"docker-credential-{name}"):
            ask({"credHelpers": {"x.org": name}}, "x.org/a")

    @pytest.mark.parametrize(
        "name", ["../x", "/bin/x", "a/b", ".x", "-x", "", 7, "a b"]
    )
    def test_a_helper_is_no_path(self, helper, ask, name):
        """
        A name that leads out of PATH is refused, wherever it stands.
        """
        for document in ({"credHelpers": {"x.org": name}}, {"credsStore": name or "/"}):
            with pytest.raises(ImageUnavailable):
                ask(document, "x.org/a")


class TestDockerConfig:
    @pytest.fixture
    def write(self, tmp_path):
        def write(document):
            (tmp_path / "config.json").write_text(json.dumps(document))
            return from_directory(tmp_path)

        return write

    def test_no_file_yet(self, tmp_path):
        """
        A directory that nobody logged in with is as good as none.
        """
        assert None is from_directory(tmp_path).for_image(image("x.org/x"))

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
        ],
    )
    def test_entries_without_a_login(self, write, document):
        """
        An entry that holds nothing is as good as none.
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
