import ipaddress
import os

import pytest

from launcher.adapters.sources.git import GitSource
from launcher.errors import SourceUnavailable
from launcher.fetching.addresses import Remote
from launcher.settings import Settings
from launcher.source_rules import SourcePattern, SourceRules


PUBLIC, INNER, METADATA = "140.82.112.3", "10.1.2.3", "169.254.169.254"


def refusal(host, *addresses, listed=(), port=443, trusted=()):
    rules = SourceRules(
        patterns=tuple(map(SourcePattern.parse, listed)),
        trusted=tuple(map(SourcePattern.parse, trusted)),
    )
    return rules.refusal(host, port, tuple(map(ipaddress.ip_address, addresses)))


@pytest.mark.parametrize(
    ("host", "address", "listed"),
    [
        ("github.com", PUBLIC, ()),
        ("github.com", PUBLIC, ("github.com",)),
        ("github.com", PUBLIC, ("*",)),
        ("git.corp", INNER, ("git.corp",)),
        ("git.corp", INNER, ("*.corp",)),
        ("git.corp", INNER, ("git.corp:443",)),
        ("git.corp", INNER, ("10.0.0.0/8",)),
        (INNER, INNER, ("10.1.2.3",)),
        ("::1", "::1", ("[::1]",)),
        ("::1", "::1", ("::1",)),
        (METADATA, METADATA, ("169.254.169.254",)),
    ],
)
def test_allowed(host, address, listed):
    """Public hosts are allowed where nothing is listed, and what is listed always is."""
    assert "" == refusal(host, address, listed=listed)


@pytest.mark.parametrize(
    ("host", "address", "listed", "why"),
    [
        ("git.corp", INNER, (), "private network"),
        ("localhost", "127.0.0.1", (), "private network"),
        ("git.corp", "::1", (), "private network"),
        ("git.corp", "fd12::1", (), "private network"),
        ("git.corp", "::ffff:10.0.0.1", (), "private network"),
        ("git.corp", "64:ff9b::a00:1", (), "private network"),
        ("git.corp", "2002:a00:1::", (), "private network"),
        ("git.corp", "224.0.0.1", (), "private network"),
        ("git.corp", INNER, ("*",), "private network"),
        (INNER, INNER, (), "private network"),
        ("github.com", PUBLIC, ("gitlab.com",), "ALLOWED_SOURCES"),
        ("github.com", PUBLIC, ("github.com:8443",), "ALLOWED_SOURCES"),
        ("evil-github.com", PUBLIC, ("github.com",), "ALLOWED_SOURCES"),
        ("github.com", PUBLIC, ("file:///srv",), "ALLOWED_SOURCES"),
        ("git.corp", INNER, ("10.2.0.0/16",), "ALLOWED_SOURCES"),
        ("git.corp", METADATA, (), "link-local"),
        ("git.corp", METADATA, ("git.corp",), "link-local"),
        ("git.corp", METADATA, ("*", "*.corp"), "link-local"),
        ("git.corp", "fe80::1", ("git.corp",), "link-local"),
        ("git.corp", "fd00:ec2::254", ("git.corp",), "link-local"),
        ("git.corp", "::ffff:169.254.169.254", ("git.corp",), "link-local"),
        ("git.corp", "0.0.0.0", ("git.corp",), "link-local"),  # noqa: S104
    ],
)
def test_refused(host, address, listed, why):
    """What is neither public nor listed is refused, and no name opens a link-local one."""
    assert why in refusal(host, address, listed=listed)


def test_one_bad_address_is_enough():
    """A name that stands for a public and a private address is refused."""
    assert "private network" in refusal("git.corp", PUBLIC, INNER)
    assert "link-local" in refusal("git.corp", INNER, METADATA, listed=("git.corp",))


def test_behind_a_proxy_the_name_is_judged():
    """Where a proxy finds the address, names have to be listed if any are."""
    assert "" == refusal("github.com")
    assert "ALLOWED_SOURCES" in refusal("github.com", listed=("gitlab.com",))
    assert "link-local" in refusal(METADATA)
    assert "private network" in refusal("127.0.0.1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "http://x",
        "file://x/y",
        "file:///a/../b",
        "1.2.3",
        "x:0",
        "x:99999",
        "10.0.0.1/8",
    ],
)
def test_what_is_no_pattern(text):
    """What is neither host nor network nor folder is refused at the start."""
    with pytest.raises(ValueError):
        SourcePattern.parse(text)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "-u./x",
        "--upload-pack=x",
        "ext::sh -c x",
        "fd::7",
        "file::/etc",
        "/srv/x",
        "../x",
        "host:path",
        "https://",
        "https://host",
        "https://host/",
        "https:///x",
        "https://-x/y",
        "https://h o/x",
        "https://host/x?y",
        "https://host/x#y",
        "https://host\\@evil/x",
        "https://host:0/x",
        "https://host:99999/x",
        "https://[::1/x",
        "ssh://-oProxyCommand=x/y",
        "ssh://-x@host/y",
        "ssh://u:p@host/y",
        "file://host/x",
        "https://host/\nx",
        "https://h\u0430st/\u202ex",
        "x" * 5000,
    ],
)
def test_what_is_no_repository(url):
    """What git might take for an option, a command or another host is no URL here."""
    with pytest.raises(ValueError):
        Remote.parse(url)


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://GitHub.com/a/b.git", "https://github.com/a/b.git"),
        ("https://u:p@github.com:443/a", "https://github.com/a"),
        ("git@github.com:a/b.git", "ssh://git@github.com/a/b.git"),
        ("ssh://git@[::1]:22/x", "ssh://git@[::1]/x"),
        ("https://github.com./a", "https://github.com/a"),
        ("file:///srv/x", "file:///srv/x"),
    ],
)
def test_one_url_for_one_repository(url, same):
    """Different ways to write a URL are the same, without what is secret in it."""
    assert same == Remote.parse(url).url


def test_what_a_url_tells_stays_out_of_sight():
    """Credentials of a URL are not in what is printed of it."""
    assert "hunter2" not in repr(Remote.parse("https://u:hunter2@h/x"))


def git_source(tmp_path, **settings):
    source = Settings.from_environ(settings).source
    pools = {one.pool: one.base_endpoint for one in source.vcs_mappings}
    return GitSource(
        tmp_path,
        protocols=source.git_protocols,
        environment={"PATH": os.environ["PATH"]},
        rules=SourceRules.of(source.allowed, endpoints=pools.values()),
        pools=pools,
    )


MAPPING = {
    "SPACELIFT_PRIVATEVCS_MAPPING_NAME_0": "git-pool",
    "SPACELIFT_PRIVATEVCS_MAPPING_BASE_ENDPOINT_0": "http://10.1.2.3:8080/git/",
}


@pytest.mark.parametrize("listed", [{}, {"SPACELIFT_LAUNCHER_ALLOWED_SOURCES": "x.y"}])
def test_agent_pools_are_mapped(tmp_path, listed):
    """[capability 102] A URL of a VCS agent pool means the endpoint that the operator gave."""
    git = git_source(tmp_path, **MAPPING, **listed)

    remote = git.checked("private://git-pool/acme/infra.git", "x")

    assert "http://10.1.2.3:8080/git/acme/infra.git" == remote.url
    assert git.addresses(remote, "x")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("private://other/acme/infra.git", "agent pool 'other', which is not mapped"),
        ("http://10.1.2.3:8080/git/acme/infra.git", "not fetched by 'http'"),
    ],
)
def test_only_agent_pools_are_mapped(tmp_path, url, why):
    """[capability 102] Other pools, and the endpoint itself by another way, stay shut."""
    with pytest.raises(SourceUnavailable, match=why):
        git_source(tmp_path, **MAPPING).checked(url, "x")


@pytest.mark.parametrize(
    ("listed", "url", "opened"),
    [
        ({}, "file:///srv/git/x", False),
        ({"SPACELIFT_LAUNCHER_GIT_PROTOCOLS": "file"}, "file:///srv/git/x", True),
        (
            {"SPACELIFT_LAUNCHER_ALLOWED_SOURCES": "file:///srv/git"},
            "file:///srv/git/x",
            True,
        ),
        (
            {"SPACELIFT_LAUNCHER_ALLOWED_SOURCES": "file:///srv/git"},
            "file:///srv/git",
            True,
        ),
        (
            {"SPACELIFT_LAUNCHER_ALLOWED_SOURCES": "file:///srv/git"},
            "file:///srv/gitx",
            False,
        ),
        (
            {"SPACELIFT_LAUNCHER_ALLOWED_SOURCES": "file:///srv/git"},
            "file:///srv/git/../x",
            False,
        ),
        (
            {
                "SPACELIFT_LAUNCHER_ALLOWED_SOURCES": "x.y",
                "SPACELIFT_LAUNCHER_GIT_PROTOCOLS": "file",
            },
            "file:///srv/git/x",
            False,
        ),
    ],
)
def test_files_are_fetched_only_when_listed(tmp_path, listed, url, opened):
    """Repositories on this machine are shut, unless their folder or all are opened."""
    git = git_source(tmp_path, **listed)
    if opened:
        assert url == git.checked(url, "x").url
    else:
        with pytest.raises(SourceUnavailable):
            git.checked(url, "x")
