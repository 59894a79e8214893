import re

import pytest

from hypothesis import assume, example, given
from hypothesis import strategies as st

from launcher.ecr import EcrEndpoint
from launcher.errors import JobInvalid, JobRejected, LauncherError
from launcher.images import BUILT_IN, Pattern, Permit, Reference, permitted
from launcher.images import refuse_denied


HEX = "0123456789abcdef" * 4
SHA256 = f"sha256:{HEX}"
SHA512 = f"sha512:{HEX}{HEX}"


def parse(*patterns):
    return tuple(map(Pattern.parse, patterns))


def allowed(image, *patterns, **how):
    try:
        return permitted(image, parse(*patterns), **how).rule
    except LauncherError:
        return None


# --- references

# What github.com/distribution/reference makes of them, written out in full.
FULL = {
    "redis": "docker.io/library/redis:latest",
    "redis:7": "docker.io/library/redis:7",
    f"redis@{SHA256}": f"docker.io/library/redis@{SHA256}",
    f"busybox:latest@{SHA256}": f"docker.io/library/busybox:latest@{SHA256}",
    "docker.io/redis": "docker.io/library/redis:latest",
    "docker.io/library/redis:7": "docker.io/library/redis:7",
    "index.docker.io/redis": "docker.io/library/redis:latest",
    "index.docker.io/fooo/bar": "docker.io/fooo/bar:latest",
    "dmcgowan/myapp": "docker.io/dmcgowan/myapp:latest",
    "library/foo/bar": "docker.io/library/foo/bar:latest",
    "store/foo/bar": "docker.io/store/foo/bar:latest",
    "test_com": "docker.io/library/test_com:latest",
    "test_com/foo": "docker.io/test_com/foo:latest",
    "foo/foo_bar.com:8080": "docker.io/foo/foo_bar.com:8080",
    "docker---rules/docker": "docker.io/docker---rules/docker:latest",
    "dock__er/docker": "docker.io/dock__er/docker:latest",
    "d/docker": "docker.io/d/docker:latest",
    "lowercase:Uppercase": "docker.io/library/lowercase:Uppercase",
    "dbcc1": "docker.io/library/dbcc1:latest",
    HEX[:-1]: f"docker.io/library/{HEX[:-1]}:latest",
    f"docker.io/{HEX}": f"docker.io/library/{HEX}:latest",
    "localhost/x": "localhost/x:latest",
    "localhost:5000/x": "localhost:5000/x:latest",
    "test.com/repo:tag": "test.com/repo:tag",
    "test:5000/repo": "test:5000/repo:latest",
    f"test:5000/repo:tag@{SHA256}": f"test:5000/repo:tag@{SHA256}",
    "sub-dom1.foo.com/bar/baz/quux:some-long-tag": (
        "sub-dom1.foo.com/bar/baz/quux:some-long-tag"
    ),
    "b.gcr.io/test.example.com/my-app:test.example.com": (
        "b.gcr.io/test.example.com/my-app:test.example.com"
    ),
    "xn--n3h.com/myimage:xn--n3h.com": "xn--n3h.com/myimage:xn--n3h.com",
    f"xn--7o8h.com/myimage@{SHA512}": f"xn--7o8h.com/myimage@{SHA512}",
    "192.168.1.1:5000/repo:5050": "192.168.1.1:5000/repo:5050",
    "[2001:db8::1]/repo": "[2001:db8::1]/repo:latest",
    "[::1]:5000/repo:tag": "[::1]:5000/repo:tag",
    SHA256: SHA256,
    HEX: SHA256,
}

REFUSED_BY_DOCKER = [
    "",
    ":justtag",
    f"@{SHA256}",
    "repo@sha256:ffffffffffffffffffffffffffffffffff",
    f"validname@invaliddigest:{HEX}{HEX}",
    "Uppercase:tag",
    "test:5000/Uppercase/lowercase:tag",
    "a/" * 128 + "a:tag",
    "aa/asdf$$^/aa",
    "[2001:db8::1]",
    "[2001:db8::1]:5000",
    "[fe80::1%eth0]:5000/repo",
    "[2001:db8:3:4::192.0.2.33]:5000/debian",
    "fc00::1:5000/debian",
    "https://github.com/docker/docker",
    "docker/Docker",
    "-docker",
    "-docker/docker",
    "docker-/docker",
    "-docker.io/docker/docker",
    "docker///docker",
    "docker.io/docker///docker",
    "____/____",
    "_docker/_docker",
    "dock..er/docker",
    "dock_.er/docker",
    "docker/",
    "/docker",
    "docker:",
    "docker@",
    f"docker@{SHA256.upper()}",
    f"x:{'t' * 129}",
    f"{'n' * 256}/docker",
]

REFUSED_BY_US = [
    "DOCKER.IO/library/alpine",
    "Docker/docker",
    "test.com:5000",
    "192.168.1.1",
    "192.168.1.1:5000",
    "localhost",
    "localhost:5000",
    "sha256:0123",
    "sha256",
    f"sha512:{HEX}",
]

HOSTILE = [
    "alpine\n",
    "alpine:latest\n",
    " alpine",
    "alpine ",
    "alpine\x00",
    "al\u200bpine",
    "\u0430lpine",  # Cyrillic a
    "docker.\u0456o/x",  # Cyrillic i
    "\uff44ocker.io/x",  # full-width d
    "ghcr\uff0eio/x",  # full-width stop
    "ghcr.io\u2215evil.org/x",  # division slash
    "user@ghcr.io/x",
    "user:password@ghcr.io/x",
    "ghcr.io@evil.org/x",
    "ghcr.io#evil.org/x",
    "ghcr.io?evil.org/x",
    "ghcr.io\\evil.org/x",
    "ghcr.io%2fx",
    "ghcr.io/../evil/x",
    "ghcr.io/./x",
    "ghcr.io./x/y",
    ".ghcr.io/x",
    "ghcr.io:/x",
    "ghcr.io:evil.org/x",
    "ghcr.io:443:443/x",
    "ghcr.io/x:5000/y",
    "ghcr.io/x:1:2",
    f"ghcr.io/x@{SHA256}@{SHA256}",
    "--privileged",
    "-v/:/host",
    "$(id)",
    "x" * 100_000,
    "a." * 50_000 + "/x",
]


@pytest.mark.parametrize(("text", "full"), FULL.items())
def test_written_out_in_full(text, full):
    """
    A reference means here what it means to the engine.
    """
    assert full == str(Reference.parse(text))


@pytest.mark.parametrize("text", REFUSED_BY_DOCKER + REFUSED_BY_US + HOSTILE)
def test_not_a_reference(text):
    """
    What the engine refuses, or people misread, is no reference.
    """
    with pytest.raises(JobInvalid, match=r'^image ".*" is not a reference'):
        Reference.parse(text)


@pytest.mark.parametrize("text", REFUSED_BY_DOCKER + REFUSED_BY_US + HOSTILE)
def test_the_complaint_is_public(text):
    """
    The message is one short line of plain text, whatever was tried.
    """
    with pytest.raises(JobInvalid) as caught:
        Reference.parse(text)

    assert re.fullmatch(r"[ -~]{1,500}", str(caught.value))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://ghcr.io/x", "leave the scheme away"),
        ("ghcr.io/Acme/x", "must be lower case"),
        ("Acme/x:1", "must be lower case"),
        ("registry.example.com:5000", "it names no repository"),
        ("", "it is empty"),
    ],
)
def test_hints(text, hint):
    """
    The commonest mistakes are called by their name.
    """
    with pytest.raises(JobInvalid, match=hint):
        Reference.parse(text)


@given(st.sampled_from(sorted(FULL)))
def test_full_form_is_stable(text):
    """
    Parsing the full form gives the same reference again.
    """
    reference = Reference.parse(text)

    assert reference == Reference.parse(str(reference))
    assert reference == Reference.parse(reference.engine_name) or reference.tag


@given(st.text(alphabet="ab.:/@-_[]1A*!", max_size=40))
def test_any_text_is_read_or_refused(text):
    """
    No text breaks the parser, and what it accepts it accepts in full form, too.
    """
    try:
        reference = Reference.parse(text)
    except JobInvalid:
        return
    assert reference == Reference.parse(str(reference))
    assert reference.is_image_id or str(reference).startswith(f"{reference.registry}/")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        (f"alpine:3@{SHA256}", f"docker.io/library/alpine@{SHA256}"),
        (HEX, SHA256),
    ],
)
def test_engine_name(text, name):
    """
    The engine is told everything, and no tag beside a digest.
    """
    assert name == Reference.parse(text).engine_name


def test_pinned():
    """
    A resolved reference names the digest, and keeps the tag it was found by.
    """
    pinned = Reference.parse("ghcr.io/acme/x:1").pinned(SHA256)

    assert f"ghcr.io/acme/x:1@{SHA256}" == str(pinned)
    assert f"ghcr.io/acme/x@{SHA256}" == pinned.engine_name
    with pytest.raises(ValueError, match="not a digest"):
        pinned.pinned("latest")


# --- the built-in list

BUILT_IN_IMAGES = [
    "alpine",
    "acme/x",
    "docker.io/acme/x",
    "azurecr.io/x",
    "acme.azurecr.io/x",
    "acme-abc123.azurecr.io/team/x",
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com/x",
    "123456789012.dkr.ecr.us-gov-west-1.amazonaws.com/x",
    "123456789012.dkr.ecr.ap-southeast-10.amazonaws.com/x",
    "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/x",
    "docker.pkg.dev/p/r/x",
    "europe-west1-docker.pkg.dev/p/r/x",
    "us-docker.pkg.dev/p/r/x",
    "gcr.io/p/x",
    "eu.gcr.io/p/x",
    "us.gcr.io/p/x",
    "asia.gcr.io/p/x",
    "ghcr.io/acme/x",
    "public.ecr.aws/spacelift/runner-terraform",
    "quay.io/acme/x",
    "registry.gitlab.com/acme/x",
    "registry.hub.docker.com/acme/x",
]

NOT_BUILT_IN = [
    "registry.example.com/x",
    "registry.example.com.evil.org/x",
    "docker.io.evil.org/x",
    "evil.org/docker.io/x",
    "evil-docker.io/x",
    "xdocker.io/x",
    "a.docker.io/x",
    "registry-1.docker.io/x",
    "docker.io:443/x",
    "docker.io:5000/x",
    "ghcr.io:443/acme/x",
    "a.ghcr.io/x",
    "ghcr.io.evil.org/x",
    "ghcr-io.evil.org/x",
    "evil.azurecr.io.evil.org/x",
    "a.b.azurecr.io/x",
    "xazurecr.io/x",
    "acme.azurecr.io:5000/x",
    "dkr.ecr.eu-west-1.amazonaws.com/x",
    "12345678901.dkr.ecr.eu-west-1.amazonaws.com/x",
    "1234567890123.dkr.ecr.eu-west-1.amazonaws.com/x",
    "evil.dkr.ecr.eu-west-1.amazonaws.com/x",
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.org/x",
    "123456789012.dkr.ecr.evil.amazonaws.com/x",
    "123456789012.dkr.ecr.eu-west-1.evil-1.amazonaws.com/x",
    "123456789012.dkr.ecr.eu-west-1.amazonaws.org/x",
    "123456789012xdkr.ecr.eu-west-1.amazonaws.com/x",
    "public.ecr.aws.evil.org/x",
    "xpublic.ecr.aws/x",
    "pkg.dev/x",
    "evil.docker.pkg.dev/x",
    "evildocker.pkg.dev/x",
    "-docker.pkg.dev.evil.org/x",
    "evil.gcr.io/x",
    "usgcr.io/x",
    "quay.io.evil.org/x",
    "gitlab.com/x",
    "hub.docker.com/x",
    "localhost/x",
    "127.0.0.1:5000/x",
    "[::1]/x",
    SHA256,
    HEX,
]


@pytest.mark.parametrize("image", BUILT_IN_IMAGES)
def test_built_in(image):
    """
    The registries of the product's list are allowed, whatever their region.
    """
    rule = allowed(image)

    assert rule is not None
    assert rule.removeprefix("built-in list: ") in BUILT_IN


@pytest.mark.parametrize("image", NOT_BUILT_IN)
def test_not_built_in(image):
    """
    Everything else is refused, and so is whatever only looks similar.
    """
    assert None is allowed(image)


def test_every_entry_of_the_list_is_reachable():
    """
    No entry of the built-in list is there in vain.
    """
    rules = {allowed(image) for image in BUILT_IN_IMAGES}

    assert {f"built-in list: {entry}" for entry in BUILT_IN} == rules


def test_the_sentence():
    """
    The owner of the run reads which registry it was, as they wrote it.
    """
    with pytest.raises(JobRejected) as caught:
        permitted("registry.example.com:5000/team/x")

    assert (
        'image "registry.example.com:5000/team/x" comes from registry'
        " registry.example.com:5000, which is not allowed on this worker"
    ) == str(caught.value)


# --- patterns


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        ("r.example.com/*", "r.example.com/x"),
        ("r.example.com/*", "r.example.com/a/b/c:1"),
        ("r.example.com/*", f"r.example.com/a/b@{SHA256}"),
        ("r.example.com/**", "r.example.com/a/b"),
        ("r.example.com:5000/*", "r.example.com:5000/x"),
        ("r.example.com/a", "r.example.com/a:1"),
        ("r.example.com/a", f"r.example.com/a:1@{SHA256}"),
        ("r.example.com/a:1.*", "r.example.com/a:1.2.3"),
        ("r.example.com/a:latest", "r.example.com/a"),
        ("r.example.com/a:1.*@*", f"r.example.com/a:1.2@{SHA256}"),
        ("r.example.com/a@*", f"r.example.com/a@{SHA256}"),
        (f"r.example.com/a@{SHA256}", f"r.example.com/a:1@{SHA256}"),
        ("r.example.com/run*-tf", "r.example.com/runner-tf"),
        ("*.example.com/*", "a.example.com/x"),
        ("r-*.example.com/*", "r-1.example.com/x"),
        ("localhost:5000/*", "localhost:5000/x"),
        ("[::1]:5000/*", "[::1]:5000/x"),
        ("10.0.0.1/*", "10.0.0.1/x"),
        (SHA256, HEX),
        ("sha256:*", SHA256),
    ],
)
def test_pattern_allows(pattern, image):
    """
    A pattern allows what it matches, and is named as the reason.
    """
    assert pattern == allowed(image, pattern)


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        ("r.example.com/*", "r.example.com:5000/x"),
        ("r.example.com:5000/*", "r.example.com/x"),
        ("r.example.com/*", "a.r.example.com/x"),
        ("r.example.com/*", "r.example.com.evil.org/x"),
        ("r.example.com/*", "evil.org/r.example.com/x"),
        ("r.example.com/*", "rxexample.com/x"),
        ("*.example.com/*", "example.com/x"),
        ("*.example.com/*", "a.b.example.com/x"),
        ("*.example.com/*", "evil.org/a.example.com/x"),
        ("*.example.com/*", "a.example.com:5000/x"),
        ("*.example.com/*", "a.example.com.evil.org/x"),
        ("r.example.com/a", "r.example.com/a/b"),
        ("r.example.com/a", "r.example.com/ab"),
        ("r.example.com/a/*", "r.example.com/a"),
        ("r.example.com/a:1.*", "r.example.com/a:2.1"),
        ("r.example.com/a:1.*", "r.example.com/a:1x1"),
        ("r.example.com/a:1.*", f"r.example.com/a:1.1@{SHA256}"),
        ("r.example.com/a:*", f"r.example.com/a@{SHA256}"),
        ("r.example.com/a@*", "r.example.com/a:1"),
        ("r.example.com/a:*@*", "r.example.com/a:1"),
        ("r.example.com/*", SHA256),
        (f"sha256:{'0' * 64}", SHA256),
    ],
)
def test_pattern_does_not_allow(pattern, image):
    """
    A pattern allows nothing beyond what it says, least of all other hosts.
    """
    assert None is allowed(image, pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "!",
        "*",
        "**",
        "*/*",
        "!*/*",
        "alpine",
        "alpine:*",
        "acme/*",
        "ghcr.io",
        "ghcr.io/",
        "*.io/*",
        "ghcr.*/*",
        "*.*.com/*",
        "g*cr.io/*",
        "ghcr.io:*/x",
        "GHCR.io/x",
        "https://ghcr.io/*",
        "user@ghcr.io/*",
        "ghcr.io/Acme/*",
        "ghcr.io/x:",
        "ghcr.io/x@",
        "ghcr.io/x:a/b",
        "ghcr.io/x@latest",
        "ghcr.io/x y",
        "docker.io/alpine",
        "sha256:0123",
        "!!ghcr.io/*",
        "ghcr.io/[a-z]",
        "ghcr.io/a?",
    ],
)
def test_not_a_pattern(pattern):
    """
    What would match nothing, or registries of others, is refused with a reason.
    """
    with pytest.raises(ValueError, match=r"^[ -~]+$"):
        Pattern.parse(pattern)


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
HOST = st.builds(
    lambda labels, port: ".".join(labels) + port,
    st.lists(LABEL, min_size=2, max_size=4),
    st.sampled_from(["", ":443", ":5000"]),
)
PATH = st.from_regex(r"[a-z0-9]{1,4}([._/-][a-z0-9]{1,4}){0,3}", fullmatch=True)
GLOB = st.from_regex(r"[a-z0-9*]{1,4}([/-][a-z0-9*]{1,4}){0,2}", fullmatch=True)
SUFFIX = st.sampled_from(["", ":1", ":*", ":1.*", "@*", f"@{SHA256}", ":*@*"])


@given(HOST, GLOB, SUFFIX, HOST, PATH, st.sampled_from(["", ":1", f"@{SHA256}"]))
@example("a.com", "*", "", "b.com", "a.com/x", "")
def test_no_pattern_reaches_another_host(host, glob, suffix, other, path, end):
    """
    Whatever the rest of a pattern, its registry admits no other registry.
    """
    assume(host != other)
    assume(host not in ("docker.io", "index.docker.io"))
    pattern = Pattern.parse(f"{host}/{glob}{suffix}")

    assert not pattern.matches(Reference.parse(f"{other}/{path}{end}"))


@given(LABEL, LABEL, LABEL, st.lists(LABEL, min_size=1, max_size=4), PATH)
def test_a_star_is_one_label(label, domain, top, labels, path):
    """
    A star in the registry stands for one label below a domain that is spelt out.
    """
    pattern = Pattern.parse(f"*.{domain}.{top}/*")
    host = ".".join(labels)

    same = labels[-2:] == [domain, top] and len(labels) == 3
    try:
        reference = Reference.parse(f"{host}:1/{path}")
    except JobInvalid:
        assume(False)
    assert not pattern.matches(reference)
    if len(labels) > 1:
        assert same == pattern.matches(Reference.parse(f"{host}/{path}"))
    assert pattern.matches(Reference.parse(f"{label}.{domain}.{top}/{path}"))


# --- order


def test_digest_is_asked_for_first():
    """
    Where a digest is required, no pattern makes up for its absence.
    """
    with pytest.raises(JobRejected, match="not pinned by a digest"):
        permitted("ghcr.io/x/y:1", parse("ghcr.io/x/*"), require_digest=True)

    assert allowed(f"ghcr.io/x/y@{SHA256}", require_digest=True)
    assert allowed(HEX, SHA256, require_digest=True)


@pytest.mark.parametrize(
    "image",
    ["ghcr.io/evil/x", "ghcr.io/evil/a/b:1", f"ghcr.io/evil/x@{SHA256}"],
)
def test_denial_wins(image):
    """
    A pattern that denies comes before one that allows, and before the list.
    """
    assert None is allowed(image, "ghcr.io/*", "!ghcr.io/evil/*")
    assert None is allowed(image, "!ghcr.io/evil/*")
    assert "ghcr.io/*" == allowed("ghcr.io/good/x", "!ghcr.io/evil/*", "ghcr.io/*")


def test_denial_by_tag():
    """
    A denied tag is denied with a digest beside it, too.
    """
    assert None is allowed(f"ghcr.io/a/x:bad@{SHA256}", "!ghcr.io/a/x:bad")
    assert None is allowed("alpine", "!docker.io/library/alpine:latest")
    assert allowed("alpine:3", "!docker.io/library/alpine:latest")


@pytest.mark.parametrize(
    "image",
    [
        "evil/x",
        "index.docker.io/evil/x",
        "registry.hub.docker.com/evil/x",
        "registry-1.docker.io/evil/x",
    ],
)
def test_denial_reaches_docker_hub_by_every_name(image):
    """
    What is denied on Docker Hub is denied under its other host names as well.
    """
    patterns = ("!docker.io/evil/*", "registry-1.docker.io/*")

    assert None is allowed(image, *patterns)
    assert allowed(image.replace("evil", "good"), *patterns)


def test_denied_digest_of_a_tag():
    """
    Once a tag is resolved, the digest it stands for may turn out to be denied.
    """
    patterns = parse(f"!ghcr.io/a/x@{SHA256}")
    reference = permitted("ghcr.io/a/x:1", patterns).reference

    with pytest.raises(
        JobRejected, match=f'"ghcr.io/a/x:1" is denied.*by !ghcr.io/a/x@{SHA256}'
    ):
        refuse_denied(reference.pinned(SHA256), patterns)


def test_without_the_built_in_list():
    """
    With `!*` only what a pattern names is allowed.
    """
    assert None is allowed("alpine", "!*")
    assert None is allowed("alpine", "ghcr.io/acme/*", "!*")
    assert "ghcr.io/acme/*" == allowed("ghcr.io/acme/x", "!*", "ghcr.io/acme/*")


def test_permit():
    """
    A permit says what was allowed, and by which rule.
    """
    assert Permit(
        reference=Reference.parse("alpine"), rule="built-in list: docker.io"
    ) == permitted("alpine")


# --- registries that their owner knows, and ECR

ECR = "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com"


def knows(*registries):
    return lambda reference: (
        f"a login for {reference.registry}"
        if reference.registry in registries
        else None
    )


def test_a_registry_that_is_known():
    """
    A registry that its owner has a login for is allowed, after everything else.
    """
    known = knows("r.example.com", "ghcr.io")

    assert "a login for r.example.com" == allowed("r.example.com/x", configured=known)
    assert "r.example.com/*" == allowed(
        "r.example.com/x", "r.example.com/*", configured=known
    )
    assert "built-in list: ghcr.io" == allowed("ghcr.io/x/y", configured=known)
    assert None is allowed("r.example.com/x", "!r.example.com/*", configured=known)
    assert None is allowed("r.example.com/x", "!*", configured=known)
    assert None is allowed("r.example.com/x", require_digest=True, configured=known)
    assert None is allowed("other.example.com/x", configured=known)
    assert None is allowed(SHA256, configured=lambda _: "everything")


@pytest.mark.parametrize(
    "registry",
    [
        ECR,
        "123456789012.dkr-ecr.eu-west-1.on.aws",
        "123456789012.dkr-ecr-fips.us-gov-west-1.on.aws",
        "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
        "123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu",
    ],
)
def test_ecr_by_its_other_names(registry):
    """
    Names of ECR that are not in the built-in list are allowed unless denied.
    """
    assert f"ECR: {registry}" == allowed(f"{registry}/x")
    assert None is allowed(f"{registry}/x", f"!{registry}/*")
    assert None is allowed(f"{registry}/x", "!*")
    assert None is allowed(f"{registry}.evil.org/x")
    assert None is allowed(f"{registry}:443/x")
    assert None is allowed(f"evil-{registry}/x")


@given(HOST, PATH, SUFFIX)
def test_without_settings_only_known_hosts(host, path, suffix):
    """
    Without settings nothing is allowed but what the list and ECR's names are for.
    """
    assume("*" not in suffix)
    reference = Reference.parse(f"{host}/{path}{suffix}")
    known = any(hosts.fullmatch(reference.registry) for hosts in BUILT_IN.values())

    assert (known or EcrEndpoint.of(reference.registry) is not None) == (
        allowed(reference) is not None
    )


@given(
    st.sampled_from(["docker.io", "ghcr.io", "public.ecr.aws", ECR, "azurecr.io"]),
    st.text(st.sampled_from("abz019.-_/:@[]%#?*\\ \u0430\u2215\uff0e"), max_size=8),
    st.text(st.sampled_from("abz019.-_/:@[]%#?*\\ \u0430\u2215\uff0e"), max_size=8),
    PATH,
)
@example("ghcr.io", "user@", "", "x")
@example("ghcr.io", "", ".evil.org", "x")
@example("ghcr.io", "", "@evil.org", "x")
@example("ghcr.io", "evil.org/", "", "x")
@example("docker.io", "", ":5000", "x")
@example("ghcr.io", "", "\u2215evil.org", "x")
def test_what_is_around_a_known_host(host, before, after, path):
    """
    Whatever somebody puts around a known name, it is that very registry or refused.
    """
    text = f"{before}{host}{after}/{path}"
    rule = allowed(text)

    if rule is not None:
        registry = Reference.parse(text).registry
        # Docker Hub is what every engine takes for a first part that is no host.
        assert registry in text.split("/")[0] or registry == "docker.io"
        assert any(
            hosts.fullmatch(registry) for hosts in BUILT_IN.values()
        ) or EcrEndpoint.of(registry)
