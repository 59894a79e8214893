"""Which way a connection takes, by what HTTPS_PROXY and NO_PROXY say."""

from types import SimpleNamespace

import pytest

from launcher.bootstrap import _git
from launcher.proxies import Proxies
from launcher.secret import Secret
from launcher.settings import Settings


PLAIN, SECURE = "http://plain.example:3128", "http://secure.example:3128"


def direct(url, *entries):
    proxies = Proxies(http=Secret(PLAIN), https=Secret(SECURE), direct=entries)
    return proxies.of(url) is None


def test_each_scheme_has_its_proxy():
    """A URL is reached by the proxy for its scheme, or by none if there is none."""
    both = Proxies(http=Secret(PLAIN), https=Secret(SECURE))
    assert PLAIN == both.of("http://plane.example/x").url
    assert SECURE == both.of("https://plane.example/x").url
    assert Proxies(http=Secret(PLAIN)).of("https://plane.example") is None
    assert Proxies().of("https://plane.example") is None


@pytest.mark.parametrize(
    ("entry", "hosts", "others"),
    [
        ("*", ["plane.example", "10.1.2.3"], []),
        (
            "example.com",
            ["example.com", "a.example.com", "EXAMPLE.com", "example.com."],
            ["notexample.com", "example.com.org", "com"],
        ),
        (".example.com", ["a.example.com", "example.com"], ["badexample.com"]),
        ("*.example.com", ["a.b.example.com"], ["example.org"]),
        ("Plane.Example", ["plane.example"], []),
        ("example.com.", ["example.com", "a.example.com"], ["badexample.com"]),
        ("one.example example.com", ["a.one.example", "example.com"], ["example"]),
        ("plane.example:443", ["plane.example"], ["plane.example:8443"]),
        ("10.0.0.0/8", ["10.1.2.3"], ["11.1.2.3", "10.example", "[fd00::1]"]),
        ("10.1.2.3", ["10.1.2.3"], ["10.1.2.33"]),
        ("10.1.2.3:8443", ["10.1.2.3:8443"], ["10.1.2.3"]),
        ("fd00::/8", ["[fd00::7]"], ["[fe00::7]", "10.1.2.3"]),
        ("[fd00::7]:443", ["[fd00::7]"], ["[fd00::7]:8443", "[fd00::8]"]),
        ("", [], ["plane.example"]),
        (".", [], ["plane.example"]),
    ],
)
def test_what_needs_no_proxy(entry, hosts, others):
    """Names stand for what is below them, networks for their addresses."""
    for host in hosts:
        assert direct(f"https://{host}/worker", "first.example", entry), host
    for host in others:
        assert not direct(f"https://{host}/worker", "first.example", entry), host


@pytest.mark.parametrize("host", ["localhost:4318", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_this_machine_needs_none(host):
    """What is on this machine is never asked for elsewhere."""
    assert direct(f"http://{host}/v1/traces")


def test_passwords_are_for_the_proxy_alone():
    """A proxy's password is no part of its address, nor of anything that is printed."""
    url = Secret("http://jane:p%40ss%3Aword@proxy.example:3128")
    proxy = Proxies(https=url).of("https://plane.example")
    assert "http://proxy.example:3128" == proxy.url
    # jane:p@ss:word
    assert {"proxy-authorization": "Basic amFuZTpwQHNzOndvcmQ="} == proxy.headers()
    assert "jane" not in repr(proxy) + repr(Proxies(https=url))
    assert {} == Proxies(https=Secret(SECURE)).of("https://plane.example").headers()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://proxy.example", "http://proxy.example:80"),
        ("http://jane@proxy.example/", "http://jane:@proxy.example:80"),
        ("https://[fd00::7]", "https://[fd00::7]:443"),
        ("https://proxy.example:3128", "https://proxy.example:3128"),
        ("http://j%40:p%3A%2F@proxy.example:", "http://j%40:p%3A%2F@proxy.example:80"),
    ],
)
def test_everybody_means_the_same_port(given, url):
    """The port is always said, as defaults differ; the credentials are as they were."""
    proxy = Proxies(https=Secret(given)).of("https://plane.example")
    assert Secret(url) == proxy.whole()


def test_they_are_settings():
    """The usual variables say it, in either case."""
    given = {
        "https_proxy": "proxy.example:3128",
        "NO_PROXY": "10.0.0.0/8, .svc,internal.example",
    }
    proxies = Settings.from_environ(given).network.proxies
    assert "http://proxy.example:3128" == proxies.of("https://plane.example").url
    for host in ("10.1.2.3", "plane.spacelift.svc", "internal.example"):
        assert proxies.of(f"https://{host}") is None


def test_git_is_told_by_the_launcher(tmp_path):
    """Git gets the proxies and the list in our reading, and none of the environment's."""
    given = {"https_proxy": "http://proxy.example:3128", "NO_PROXY": ".svc"}
    settings = Settings.from_environ(given)
    state = SimpleNamespace(scratch=tmp_path, mirrors=tmp_path / "mirrors")
    machine = _git(settings, state, given | {"PATH": "/bin"}).machine
    assert settings.network.proxies == machine.proxies
    assert {"PATH": "/bin"} == machine.environment
