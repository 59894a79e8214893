import base64
import copy
import json
import pickle
import re

from pathlib import Path

import pytest

from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ConfigurationError
from launcher.images import Reference
from launcher.model import NOWHERE, Address, Mount
from launcher.parsing import headers_of
from launcher.secret import Secret
from launcher.settings import (
    GitProtocol,
    ObservabilityVendor,
    PullPolicy,
    RegoVersion,
    Settings,
    VcsMapping,
    documentation,
)
from launcher.wire.jobs import Scope, Variable


PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def read(**variables):
    return Settings.from_environ(variables)


def complaint(**variables):
    with pytest.raises(ConfigurationError) as caught:
        read(**variables)
    return str(caught.value)


# --- the whole


def test_nothing_is_needed():
    """
    Without any variable, every setting has its documented default.
    """
    assert Settings() == read()


def test_defaults():
    """
    The defaults are the product's, and ours where it has none.
    """
    settings = Settings()

    assert (1, 4200.0, 420.0, 1 << 30) == (
        settings.run.workers,
        settings.run.run_timeout,
        settings.run.logs_timeout,
        settings.run.log_limit,
    )
    assert (None, (), RegoVersion.AUTO, None) == (
        settings.policy.timeout,
        settings.policy.exec_allowed,
        settings.policy.rego_version,
        settings.policy.path,
    )
    assert "public.ecr.aws/spacelift/runner-terraform:latest" == str(
        settings.images.default_runner_image
    )
    assert "public.ecr.aws/spacelift/runner-ansible:latest" == str(
        settings.images.default_ansible_runner_image
    )
    assert (GitProtocol.HTTPS, GitProtocol.SSH) == settings.source.git_protocols
    assert Path("/var/lib/spacelift-launcher") == settings.host.state_dir
    assert 100 == settings.host.disk_usage_threshold
    assert None is settings.container.network
    assert ObservabilityVendor.DISABLED is settings.telemetry.vendor
    assert "127.0.0.1:1986" == str(settings.telemetry.listen)


def test_all_problems_at_once():
    """
    Whoever has to fix the settings sees everything that is wrong in one go.
    """
    text = complaint(
        SPACELIFT_LAUNCHER_RUN_TIMEOUT="70",
        SPACELIFT_LAUNCHER_WORKERS="none",
        SPACELIFT_LAUNCHER_WORKER="2",
        ADDITIONAL_ROOT_CAS="hunter2",
        SPACELIFT_WORKER_EXTRA_MOUNTS="a:b,/a:/mnt",
    )

    assert text.startswith("5 settings are wrong:\n- ")
    for part in (
        "SPACELIFT_LAUNCHER_RUN_TIMEOUT: a duration needs a unit",
        "(example: SPACELIFT_LAUNCHER_RUN_TIMEOUT=120m)",
        "SPACELIFT_LAUNCHER_WORKERS: must be a whole number from 1 to 1000",
        "SPACELIFT_LAUNCHER_WORKER: unknown; did you mean SPACELIFT_LAUNCHER_WORKERS?",
        "ADDITIONAL_ROOT_CAS: something in it is not a certificate",
        '"a:b": both paths of a mount must be absolute',
        '"/a:/mnt": the launcher itself mounts /mnt/workspace',
    ):
        assert part in text
    assert "hunter2" not in text


def test_empty_is_unset():
    """
    A variable that is set to nothing has its default, as templates leave it.
    """
    assert read() == read(
        SPACELIFT_LAUNCHER_WORKERS="",
        SPACELIFT_LAUNCHER_RUN_TIMEOUT="  ",
        SPACELIFT_WORKER_NETWORK="",
        SPACELIFT_WHITELIST_ENVS="",
    )


def test_an_empty_policy_is_a_mistake():
    """
    Only silence means "no policy": an empty name is a template gone wrong.
    """
    assert "it is empty; unset it" in complaint(
        SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY=""
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SPACELIFT_LAUNCHER_RUN_TIMOUT", "SPACELIFT_LAUNCHER_RUN_TIMEOUT"),
        ("SPACELIFT_LAUNCHER_ALLOWED_IMAGE", "SPACELIFT_LAUNCHER_ALLOWED_IMAGES"),
        ("SPACELIFT_LAUNCHER_COLOUR", None),
    ],
)
def test_unknown_names(name, hint):
    """
    A misspelt setting stops the start, with the name that was probably meant.
    """
    expected = f"{name}: unknown" + (f"; did you mean {hint}?" if hint else "")

    assert expected == complaint(**{name: "x"})


def test_service_links_of_kubernetes():
    """
    A Kubernetes service of our name puts variables into every pod; they are none
    of ours.
    """
    host, port = "SPACELIFT_LAUNCHER_SERVICE_HOST", "SPACELIFT_LAUNCHER_SERVICE_PORT"
    prefix = "SPACELIFT_LAUNCHER_PORT"
    links = [host, port, f"{port}_HTTP", prefix, f"{prefix}_8080_TCP"]
    links += [f"{prefix}_8080_TCP_{part}" for part in ("ADDR", "PORT", "PROTO")]

    assert read() == read(**dict.fromkeys(links, "tcp://10.0.0.1:8080"))


def test_other_names_are_left_alone():
    """
    Variables of other programs do not matter, whatever they hold.
    """
    assert read() == read(PATH="/bin", SPACELIFT_API_KEY_ID="x", LAUNCHER_WORKERS="x")


def test_near_misses_are_doubtful():
    """
    A name one letter off, outside our own prefix, earns a warning.
    """
    (warning,) = read(SPACELIFT_MASK_ENV="X").warnings

    assert "SPACELIFT_MASK_ENV is not used; did you mean SPACELIFT_MASK_ENVS?" == (
        warning
    )


@given(
    st.dictionaries(
        st.sampled_from(re.findall(r"`([A-Z_]+)`", documentation())),
        st.text(st.characters(exclude_characters="\0")),
    )
)
def test_any_value_is_read_or_refused(environ):
    """
    No value makes the reading fail in another way than by its own error.
    """
    try:
        Settings.from_environ(environ)
    except ConfigurationError:
        return


# --- identity


@pytest.mark.parametrize(
    ("name", "field"),
    [("SPACELIFT_TOKEN", "token"), ("SPACELIFT_POOL_PRIVATE_KEY", "private_key")],
)
def test_secrets_in_files(tmp_path, name, field):
    """
    Token and key may be in a variable, in a file, or among systemd's credentials.
    """
    file = tmp_path / name.lower()
    file.write_text("hunter2\n")
    for given in (
        {name: "hunter2"},
        {f"{name}_FILE": str(file)},
        {"CREDENTIALS_DIRECTORY": str(tmp_path)},
        {name: "hunter2", "CREDENTIALS_DIRECTORY": "/nonexistent"},
    ):
        assert Secret("hunter2") == getattr(read(**given).identity, field)
    assert None is getattr(read(CREDENTIALS_DIRECTORY="/").identity, field)
    assert (
        f"{name}_FILE: the file it names cannot be read"
        == complaint(**{f"{name}_FILE": str(tmp_path)}).partition(" (")[0]
    )
    assert f"{name}: set either this or {name}_FILE" == complaint(
        **{name: "x", f"{name}_FILE": str(file)}
    )
    file.unlink()
    file.symlink_to(file)
    assert (
        "CREDENTIALS_DIRECTORY: the file it names cannot be read"
        == complaint(CREDENTIALS_DIRECTORY=str(tmp_path)).partition(" (")[0]
    )


def test_metadata():
    """
    Every variable with the prefix is a tag, case and value as they are.
    """
    settings = read(SPACELIFT_METADATA_zone="a", SPACELIFT_METADATA_Team_X=" b ")

    assert {"Team_X": " b ", "zone": "a"} == dict(settings.identity.metadata)
    assert "the key is missing" in complaint(SPACELIFT_METADATA_="x")


# --- single values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1073741824", 1 << 30),
        ("1GiB", 1 << 30),
        ("1Gi", 1 << 30),
        ("1g", 1 << 30),
        ("1 GiB", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("1GB", 10**9),
        ("500MB", 500_000_000),
        ("64kB", 64_000),
        ("64KiB", 65_536),
        ("512m", 512 << 20),
        ("100B", 100),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text, expected):
    """
    Sizes take decimal and binary units, and single letters as Docker means them.
    """
    assert expected == read(SPACELIFT_LAUNCHER_LOG_LIMIT=text).run.log_limit


@pytest.mark.parametrize("text", ["0", "-1", "1 GiB x", "GiB", "1e9", "1G", "1XB", "∞"])
def test_sizes_that_are_refused(text):
    """
    A size that could mean two things, or nothing, is refused.
    """
    assert "SPACELIFT_LAUNCHER_LOG_LIMIT: must be " in complaint(
        SPACELIFT_LAUNCHER_LOG_LIMIT=text
    )


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("SPACELIFT_LAUNCHER_RUN_TIMEOUT", "0s", "must be longer than nothing"),
        ("SPACELIFT_LAUNCHER_RUN_TIMEOUT", "-1m", "must be longer than nothing"),
        ("SPACELIFT_LAUNCHER_LOGS_TIMEOUT", "soon", "a duration is a number"),
        ("SPACELIFT_LAUNCHER_POLICY_TIMEOUT", "5", "a duration needs a unit"),
        ("SPACELIFT_LAUNCHER_POLICY_REGO_VERSION", "v2", "must be one of auto, v0, v1"),
        ("SPACELIFT_LAUNCHER_WORKERS", "0", "must be a whole number from 1"),
        ("SPACELIFT_LAUNCHER_WORKERS", "1.5", "must be a whole number from 1"),
        ("SPACELIFT_LAUNCHER_WORKERS", "٣", "must be a whole number from 1"),
        ("SPACELIFT_LAUNCHER_WORKER_CPUS", "0", "must be a number of processors"),
        ("SPACELIFT_LAUNCHER_WORKER_CPUS", "inf", "must be a number of processors"),
        ("SPACELIFT_LAUNCHER_WORKER_MEMORY", "lots", "must be a size"),
        ("SPACELIFT_LAUNCHER_DISK_USAGE_THRESHOLD", "0", "must be a percentage"),
        ("SPACELIFT_LAUNCHER_DISK_USAGE_THRESHOLD", "101%", "must be a percentage"),
        ("SPACELIFT_LAUNCHER_REQUIRE_IMAGE_DIGEST", "yes", "must be true or false"),
        ("SPACELIFT_LAUNCHER_PULL_POLICY", "Sometimes", "must be one of always"),
        ("SPACELIFT_LAUNCHER_STATE_DIR", "state", "must be an absolute path"),
        ("SPACELIFT_LAUNCHER_GIT_PROTOCOLS", "https,git", '"git": must be one of'),
        ("SPACELIFT_LAUNCHER_ALLOWED_IMAGES", "alpine", '"alpine": it names no'),
        ("SPACELIFT_DEFAULT_RUNNER_IMAGE", "Alpine", 'image "Alpine" is not a'),
        ("SPACELIFT_DOCKER_CONFIG_DIR", ".docker", "must be an absolute path"),
        ("SPACELIFT_WORKER_NETWORK", "container:x", "must be a name"),
        ("SPACELIFT_WORKER_RUNTIME", "--privileged", "must be a name"),
        ("SPACELIFT_DEBUG", "2", "must be true or false"),
        ("SPACELIFT_WHITELIST_ENVS", "A B", '"A B": not the name of a variable'),
        ("SPACELIFT_WHITELIST_ENVS", "ro_", '"ro_": not the name of a variable'),
        ("SPACELIFT_MASK_ENVS", "A=b", '"A=b": not the name of a variable'),
        ("OBSERVABILITY_VENDOR", "Grafana", "must be one of Disabled, Datadog"),
        *(
            ("SPACELIFT_LAUNCHER_LISTEN", text, "must be an address and a port")
            for text in ("1986", ":1986", "here", "a:b", "::1:80", "h:70000", "h:1/x")
        ),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector", "must be a URL"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "must be name=value"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c", "must be name=value"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%0d%0a", "the value of a header has"),
        ("HTTPS_PROXY", "socks5://x", "must be a URL that begins with https://"),
        ("ADDITIONAL_ROOT_CAS", "x", "something in it is not a certificate"),
    ],
)
def test_values_that_are_refused(name, text, problem):
    """
    A bad value is refused with its name, what is wrong with it, and an example.
    """
    message = complaint(**{name: text})

    assert message.startswith(f"{name}: {problem}")
    assert f"(example: {name}=" in message


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90%", 90), ("1 %", 1)])
def test_percentage(text, value):
    """
    A percentage is written with or without its sign.
    """
    settings = read(SPACELIFT_LAUNCHER_DISK_USAGE_THRESHOLD=text)

    assert value == settings.host.disk_usage_threshold


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), ("T", True), ("false", False), ("F", False)],
)
def test_booleans(text, value):
    """
    True and false are written as Go programs take them.
    """
    assert value is read(SPACELIFT_DEBUG=text).run.debug


def test_values_that_are_taken():
    """
    Every other variable reaches the field it is meant for.
    """
    settings = read(
        SPACELIFT_LAUNCHER_WORKERS="4",
        SPACELIFT_LAUNCHER_RUN_TIMEOUT="2h",
        SPACELIFT_LAUNCHER_LOGS_TIMEOUT="1000s",
        SPACELIFT_RUN_LOGS_ON_STANDARD_OUTPUT_ENABLED="true",
        SPACELIFT_SENSITIVE_OUTPUT_UPLOAD_ENABLED="true",
        SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY="/etc/p.rego",
        SPACELIFT_LAUNCHER_POLICY_TIMEOUT="1500ms",
        SPACELIFT_LAUNCHER_POLICY_REGO_VERSION="V0",
        SPACELIFT_DEFAULT_RUNNER_IMAGE="ghcr.io/acme/x:1",
        SPACELIFT_DEFAULT_ANSIBLE_RUNNER_IMAGE="ghcr.io/acme/y:1",
        SPACELIFT_LAUNCHER_ALLOWED_IMAGES="r.example.com/*, !ghcr.io/evil/*,",
        SPACELIFT_LAUNCHER_PULL_POLICY="never",
        SPACELIFT_DOCKER_CONFIG_DIR="/root/.docker/",
        SPACELIFT_WORKER_RUNTIME="runsc",
        SPACELIFT_LAUNCHER_WORKER_MEMORY="2GiB",
        SPACELIFT_LAUNCHER_WORKER_CPUS="1.5",
        SPACELIFT_LAUNCHER_GIT_PROTOCOLS="file,https",
        SPACELIFT_LAUNCHER_STATE_DIR="/srv/state",
        OBSERVABILITY_VENDOR="opentelemetry",
        OTEL_EXPORTER_OTLP_ENDPOINT="https://collector.example.com:4318",
        OTEL_EXPORTER_OTLP_HEADERS="Api-Key=top%20down, x-tenant = a=b",
        OTEL_SERVICE_NAME="workers-of-acme",
        NO_PROXY="localhost, .example.com",
    )

    assert (4, 7200.0, 1000.0, True, True) == (
        settings.run.workers,
        settings.run.run_timeout,
        settings.run.logs_timeout,
        settings.run.logs_on_standard_output,
        settings.run.sensitive_output_upload,
    )
    assert (Path("/etc/p.rego"), 1.5, RegoVersion.V0) == (
        settings.policy.path,
        settings.policy.timeout,
        settings.policy.rego_version,
    )
    assert Reference.parse("ghcr.io/acme/x:1") == settings.images.default_runner_image
    assert ["r.example.com/*", "!ghcr.io/evil/*"] == [
        pattern.text for pattern in settings.images.allowed_images
    ]
    assert Path("/root/.docker") == settings.images.docker_config_dir
    assert ("runsc", 2 << 30, 1.5) == (
        settings.container.runtime,
        settings.container.worker_memory,
        settings.container.worker_cpus,
    )
    assert (GitProtocol.FILE, GitProtocol.HTTPS) == settings.source.git_protocols
    assert Path("/srv/state") == settings.host.state_dir
    assert (
        ObservabilityVendor.OPENTELEMETRY,
        "https://collector.example.com:4318",
        "workers-of-acme",
    ) == (
        settings.telemetry.vendor,
        settings.telemetry.otlp_endpoint,
        settings.telemetry.service,
    )
    assert {"api-key": "top down", "x-tenant": "a=b"} == headers_of(
        settings.telemetry.otlp_headers.reveal()
    )
    assert ("localhost", ".example.com") == settings.network.no_proxy
    assert () == settings.warnings


@pytest.mark.parametrize(
    ("policy", "image", "expected"),
    [
        ("", "ghcr.io/a/x:1", PullPolicy.ALWAYS),
        ("", f"ghcr.io/a/x@sha256:{'a' * 64}", PullPolicy.IF_NOT_PRESENT),
        ("never", "ghcr.io/a/x:1", PullPolicy.NEVER),
        ("always", f"ghcr.io/a/x@sha256:{'a' * 64}", PullPolicy.ALWAYS),
    ],
)
def test_pull_policy(policy, image, expected):
    """
    Unless told otherwise, a tag is looked up each time and a digest is not.
    """
    images = read(SPACELIFT_LAUNCHER_PULL_POLICY=policy).images

    assert expected is images.pull_policy_for(Reference.parse(image))


def test_state_directory_of_systemd():
    """
    Without a word from us, systemd's state directory is used; ours wins.
    """
    given = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}

    assert Path("/var/lib/a") == read(**given).host.state_dir
    assert (
        Path("/srv/x")
        == read(**given, SPACELIFT_LAUNCHER_STATE_DIR="/srv/x").host.state_dir
    )


def test_engine():
    """
    The engine's client gets the variables it knows, and nothing else.
    """
    given = {
        "DOCKER_HOST": "tcp://docker:2376",
        "DOCKER_TLS_VERIFY": "1",
        "DOCKER_CERT_PATH": "/certs/client",
    }

    assert given == read(**given, DOCKER_CONFIG="/x").host.docker_environment
    assert {} == read(DOCKER_TLS_VERIFY="0").host.docker_environment


# --- mounts


def test_mounts_by_kind_of_run():
    """
    Runs that read and runs that write see what is meant for them.
    """
    container = read(
        SPACELIFT_WORKER_EXTRA_MOUNTS="/a:/x, /b/:/y/z/",
        SPACELIFT_WORKER_RO_EXTRA_MOUNTS="/r:/secrets",
        SPACELIFT_WORKER_WO_EXTRA_MOUNTS="/w:/secrets",
    ).container
    both = (Mount(source="/a", target="/x"), Mount(source="/b", target="/y/z"))

    assert (*both, Mount(source="/r", target="/secrets")) == container.mounts_for(
        writing=False
    )
    assert (*both, Mount(source="/w", target="/secrets")) == container.mounts_for(
        writing=True
    )


@pytest.mark.parametrize(
    ("mount", "problem"),
    [
        ("/a", "a mount is "),
        ("/a:/b:ro", "a mount is "),
        ("a:/b", "both paths of a mount must be absolute"),
        ("/a:b", "both paths of a mount must be absolute"),
        ("/a:", "both paths of a mount must be absolute"),
        ("/a/../b:/c", "the paths of a mount must not hold .."),
        ("/a:/mnt/x/../workspace", "the paths of a mount must not hold .."),
        ("/a:/mnt/workspace", "the launcher itself mounts /mnt/workspace"),
        ("/a:/mnt/workspace/source", "the launcher itself mounts /mnt/workspace"),
        ("/a:/mnt//workspace/./x", "the launcher itself mounts /mnt/workspace"),
        ("/a://mnt/workspace", "the launcher itself mounts /mnt/workspace"),
        ("/a:/mnt", "the launcher itself mounts /mnt/workspace"),
        ("/a:/", "the launcher itself mounts /mnt/workspace"),
        ("/a:/mnt/spacelift-log", "the launcher itself mounts /mnt/spacelift-log"),
        ("/a:/run/spacelift/x", "the launcher itself mounts /run/spacelift"),
        ("/a:/run", "the launcher itself mounts /run/spacelift"),
        ("/a:/proc/sys", "nothing can be mounted over /proc/sys"),
        ("/var/run/docker.sock:/x", "whoever has the container engine's socket"),
        ("/run/docker.sock:/x", "whoever has the container engine's socket"),
        ("//run//docker.sock/:/x", "whoever has the container engine's socket"),
        ("/srv/docker.sock:/x", "whoever has the container engine's socket"),
        ("/run/podman/podman.sock:/x", "whoever has the container engine's socket"),
        ("/run/containerd/containerd.sock:/x", "whoever has the container engine's"),
        ("/run:/x", "whoever has the container engine's socket"),
        ("/var/run:/x", "whoever has the container engine's socket"),
        ("/var:/x", "whoever has the container engine's socket"),
        ("/:/x", "whoever has the container engine's socket"),
    ],
)
def test_mounts_that_are_refused(mount, problem):
    """
    A mount that gives the machine away, or hides what is ours, is refused.
    """
    assert f'SPACELIFT_WORKER_EXTRA_MOUNTS: "{mount}": {problem}' in complaint(
        SPACELIFT_WORKER_EXTRA_MOUNTS=mount
    )


def test_two_mounts_in_one_place():
    """
    Two mounts that one container would see at one path are refused.
    """
    assert "two mounts, with SPACELIFT_WORKER_EXTRA_MOUNTS, are at /x" in complaint(
        SPACELIFT_WORKER_EXTRA_MOUNTS="/a:/x", SPACELIFT_WORKER_WO_EXTRA_MOUNTS="/b:/x/"
    )


# --- variables that runs get


def test_passed_through():
    """
    Listed variables reach runs with their values, scopes and secrecy.
    """
    container = read(
        SPACELIFT_WHITELIST_ENVS="A, ro_B,wo_C ,MISSING",
        SPACELIFT_MASK_ENVS="B, C",
        A="1",
        B=" 2 ",
        C="",
    ).container

    assert (
        Variable(name="A", value="1"),
        Variable(name="B", value=" 2 ", secret=True, scope=Scope.READ),
        Variable(name="C", value="", secret=True, scope=Scope.WRITE),
    ) == container.passed_through


@pytest.mark.parametrize("prefix", ["", "ro_", "wo_"])
@pytest.mark.parametrize("name", ["SPACELIFT_TOKEN", "SPACELIFT_POOL_PRIVATE_KEY_FILE"])
def test_what_no_run_may_know(name, prefix):
    """
    The launcher's own secrets cannot be passed to runs.
    """
    assert f"SPACELIFT_WHITELIST_ENVS: no run may know {name}" in complaint(
        SPACELIFT_WHITELIST_ENVS=f"{prefix}{name}"
    )


def test_mask_with_a_prefix():
    """
    [capability 12] A name is masked however the list of what is let through spells it.
    """
    container = read(
        SPACELIFT_WHITELIST_ENVS="wo_C", SPACELIFT_MASK_ENVS="wo_C", C="value"
    ).container

    assert container.passed_through[0].secret


def test_mask_without_passing():
    """
    Masking what is not passed is doubtful: one of the two names is misspelt.
    """
    (warning,) = read(SPACELIFT_MASK_ENVS="TOKEN").warnings

    assert "SPACELIFT_MASK_ENVS names TOKEN, which is not passed to runs" == warning


# --- doubts


def test_own_network_is_doubtful():
    """
    Whoever brings a network is told what it has to take care of.
    """
    (warning,) = read(SPACELIFT_WORKER_NETWORK="runners").warnings

    assert "SPACELIFT_WORKER_NETWORK" in warning


def test_runs_with_the_machines_identity_are_doubtful():
    """
    Whoever lets runs reach the metadata service is told what that means.
    """
    (warning,) = read(SPACELIFT_RUNS_MAY_REACH_METADATA="true").warnings

    assert "every run may have this machine's identity" in warning


def test_default_images_that_are_refused():
    """
    A default image that no run could use is doubtful.
    """
    warnings = read(SPACELIFT_LAUNCHER_REQUIRE_IMAGE_DIGEST="true").warnings

    assert 2 == len(warnings)
    assert all("a default image is of no use" in warning for warning in warnings)


# --- the network


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
@pytest.mark.parametrize("text", ["http://p.example.com:3128", "p.example.com:3128"])
def test_proxies(name, text):
    """
    A proxy is found in both spellings, with or without a scheme.
    """
    proxy = read(**{name: text}).network.https_proxy

    assert Secret("http://p.example.com:3128") == proxy


@pytest.mark.parametrize(
    "text",
    [
        "http://user:12/ss@p.example.com:3128",
        "http://user:12?ss@p.example.com:3128",
        "http://user:12#ss@p.example.com:3128",
        "user:12/ss@p.example.com:3128",
        "https://p.example.com:3128/12",
        "http://user:ss@p.example.com/?",
        "http://user:ss/@p.example.com",
    ],
)
def test_proxies_with_more_than_a_host(text):
    """
    A password that is not encoded is no host and port, and is not shown.
    """
    message = complaint(HTTPS_PROXY=text)

    assert message.startswith("HTTPS_PROXY: ")
    for part in ("user", "12", "ss@", "ss/"):
        assert part not in message.replace(":3128", "")


def test_vcs_mappings():
    """
    Pairs of names and endpoints are put together in the order of their numbers.
    """
    prefix = "SPACELIFT_PRIVATEVCS_MAPPING_"
    pairs = {
        f"{prefix}NAME_10": "late",
        f"{prefix}BASE_ENDPOINT_10": "http://late.example.com",
        f"{prefix}NAME_2": "early",
        f"{prefix}BASE_ENDPOINT_2": "https://early.example.com/",
    }

    assert (
        VcsMapping(pool="early", base_endpoint="https://early.example.com"),
        VcsMapping(pool="late", base_endpoint="http://late.example.com"),
    ) == read(**pairs).source.vcs_mappings


@pytest.mark.parametrize(
    "given",
    [
        {"NAME_0": "x"},
        {"BASE_ENDPOINT_0": "https://x"},
        {"NAME_0": "x", "BASE_ENDPOINT_1": "https://x"},
        {"NAME_x": "x", "BASE_ENDPOINT_x": "https://x"},
        {"NAME_0": "x", "BASE_ENDPOINT_0": "git.example.com"},
        {"NAME_0": "x", "BASE_ENDPOINT_0": "file:///x"},
        {"ENDPOINT_0": "https://x"},
    ],
)
def test_halves_of_vcs_mappings(given):
    """
    Half a pair, or an endpoint without a scheme, is refused.
    """
    prefix = "SPACELIFT_PRIVATEVCS_MAPPING_"

    assert prefix in complaint(
        **{prefix + name: value for name, value in given.items()}
    )


@pytest.fixture(scope="module")
def certificate():
    """
    A certificate that OpenSSL can read.
    """
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ours")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM).decode()


def test_root_certificates(certificate, tmp_path):
    """
    Certificates come as base64 of JSON, as JSON or PEM, in a variable or a file.
    """
    entry = base64.b64encode(certificate.encode()).decode()
    document = json.dumps({"caCertificates": [entry, entry]})
    wrapped = base64.b64encode(document.encode()).decode()
    file = tmp_path / "ca.pem"
    file.write_text(certificate * 2)

    for given in (
        {"ADDITIONAL_ROOT_CAS": wrapped},
        {"ADDITIONAL_ROOT_CAS": document},
        {"ADDITIONAL_ROOT_CAS": certificate * 2},
        {"ADDITIONAL_ROOT_CAS_FILE": str(file)},
    ):
        assert (certificate, certificate) == read(**given).network.root_certificates


def test_root_certificates_that_are_refused(certificate):
    """
    One unreadable certificate stops the start, for one is probably the needed one.
    """
    good = base64.b64encode(certificate.encode()).decode()
    bad = base64.b64encode(certificate.replace("M", "N").encode()).decode()

    for certificates in ([good, bad], ["x"], [], [1], "x", None):
        document = json.dumps({"caCertificates": certificates})
        assert "certificate" in complaint(ADDITIONAL_ROOT_CAS=document)


# --- secrets


def test_settings_can_be_printed():
    """
    The settings may end up in a log line without giving anything away.
    """
    settings = read(
        SPACELIFT_TOKEN="hunter2",
        SPACELIFT_POOL_PRIVATE_KEY="hunter2",
        HTTP_PROXY="http://user:hunter2@proxy",
        SPACELIFT_WHITELIST_ENVS="A",
        SPACELIFT_MASK_ENVS="A",
        A="hunter2",
    )

    assert "hunter2" not in f"{settings} {settings!r}"


@pytest.mark.parametrize(
    "show", [str, repr, "{}".format, "{:>20}".format, "%s".__mod__, lambda s: f"{s!r}"]
)
def test_a_secret_shows_nothing(show):
    """
    A secret refuses to be seen in any of the usual ways.
    """
    assert "hunter2" not in show(Secret("hunter2"))


def test_a_secret_stays_where_it_is():
    """
    A secret is neither pickled nor copied; it is compared, and revealed on purpose.
    """
    secret = Secret("hunter2")

    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(secret)
    assert Secret("hunter2") == secret
    assert {Secret("hunter2")} == {secret}
    assert Secret("other") != secret
    assert "hunter2" != secret
    assert not Secret("")
    assert "hunter2" == secret.reveal()


# --- listening


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("localhost:9100", "localhost", 9100),
        (" [::1]:1986 ", "::1", 1986),
    ],
)
def test_listening_on_loopback(text, host, port):
    """
    An address of this machine alone is taken as it is.
    """
    settings = read(SPACELIFT_LAUNCHER_LISTEN=text)

    assert Address(host=host, port=port) == settings.telemetry.listen
    assert text.strip() == str(settings.telemetry.listen)
    assert () == settings.warnings


@pytest.mark.parametrize("text", ["0.0.0.0:1986", "[::]:1986", "worker-1:1986"])
def test_listening_for_others(text):
    """
    An address that others reach is allowed, and said.
    """
    (warning,) = read(SPACELIFT_LAUNCHER_LISTEN=text).warnings

    assert warning.startswith("SPACELIFT_LAUNCHER_LISTEN is not an address of this")


@pytest.mark.parametrize("vendor", ["Datadog", "AWS", "OpenTelemetry"])
def test_a_vendor_without_a_collector(vendor):
    """
    Whoever names a vendor and no collector is told that nothing will be traced.
    """
    (warning,) = read(OBSERVABILITY_VENDOR=vendor).warnings

    assert warning.startswith(f"OBSERVABILITY_VENDOR is {vendor} and OTEL_EXPORTER")


@pytest.mark.parametrize("text", ["", " "])
def test_listening_nowhere(text):
    """
    An empty address switches listening off.
    """
    settings = read(SPACELIFT_LAUNCHER_LISTEN=text)

    assert NOWHERE == settings.telemetry.listen
    assert () == settings.warnings


# --- the page


def test_the_page_is_true():
    """
    docs/configuration.md holds the tables that the code gives.
    """
    page = PAGE.read_text()
    begin, end = "<!-- made from launcher/settings.py -->\n", "<!-- end -->\n"
    between = page.partition(begin)[2].partition(end)[0]

    assert f"\n{documentation()}\n" == between, (
        "bring it up to date: scripts/document-settings"
    )


def test_every_field_is_explained():
    """
    No variable is without a meaning and an example.
    """
    rows = re.findall(r"^\| `.*$", documentation(), re.M)

    assert 72 == len(rows)
    for row in rows:
        _, _, default, meaning, _ = row.split("|")
        assert default.strip()
        assert "Example: `" in meaning
        assert len(meaning) > 40


def test_examples_work():
    """
    Every example in the documentation is a value that is taken.
    """
    rows = re.findall(r"^\| `([A-Z_]+)` .*Example: `([^`]*)`", documentation(), re.M)
    environ = {name: value for name, value in rows if not value.endswith("…")}

    assert 30 < len(environ)
    Settings.from_environ(environ)
