"""What an operator is shown and sends on, while real jobs with secrets are at work."""

import base64
import json
import os
import socket
import subprocess
import tarfile

from pathlib import Path

import pytest

from given import eventually
from support.collector import collecting
from support.registry import PASSWORD, USER
from support.relay import Relay

from examples.demo.processes import COMMAND
from launcher.output.needles import needles

from .conftest import SECRET, opened
from .test_private_image import _image, _marks, auth  # noqa: F401 (fixtures)


pytestmark = pytest.mark.services

FILE_SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\nof-a-mounted-file\n"
ADDED = "learned-by-the-run-0815"
OWNER_SECRET = "of-the-owner-of-the-machine-17"
COLLECTOR_SECRET = "of-the-collector's-key-4711"
PROXY_SECRET = "of-the-proxy-1234"
FILES = {
    f"spacelift-launcher/{name}"
    for name in (
        *("disks.json", "engine.json", "journal.json", "log.jsonl", "metrics.txt"),
        *("readyz.json", "settings.json", "versions.json"),
    )
}


def command(site, *arguments, name="launcher", **environment):
    """Run a command of the launcher's as its operator would."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": "/usr/bin:/bin",
            "SPACELIFT_LAUNCHER_STATE_DIR": str(site.folder / name),
            **environment,
        },
    )


def unpacked(path):
    with tarfile.open(path) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}


def test_a_bundle_has_no_secret(image, open_site, marks, tmp_path):  # noqa: F811
    """
    While and after a job with secrets of every kind, no spelling of one is in a bundle.
    """
    file = tmp_path / "mounted-secret"
    file.write_text(FILE_SECRET)
    # Whole, it is known to nobody before the run says it.
    begin, end = ADDED.split("-", 1)
    learn = f"v={begin}; v=$v-{end}; echo ::add-mask::$v"
    said = f"{learn}; echo $v $TOKEN $OWNERS; export -p"
    hold = ": >/marks/here; until [ -e /marks/go ]; do sleep 0.1; done; exit 3"
    site = open_site(
        [
            {
                "slug": "private",
                "runner_image": image,
                "hooks": {"before_init": [said, hold]},
                "environment": [{"name": "TOKEN", "secret_env": "STACK_SECRET"}],
                "mounted_files": [
                    {"path": "key", "file": str(file), "secret": True},
                ],
            }
        ]
    )
    host = image.partition("/")[0]
    with collecting() as collector:
        launcher = site.launcher(
            SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG=json.dumps(
                {"auths": {f"{host}/team": auth(PASSWORD)}}
            ),
            SPACELIFT_LAUNCHER_PULL_POLICY="always",
            SPACELIFT_WORKER_EXTRA_MOUNTS=f"{marks}:/marks",
            SPACELIFT_WHITELIST_ENVS="OWNERS",
            SPACELIFT_MASK_ENVS="OWNERS",
            OWNERS=OWNER_SECRET,
            SPACELIFT_METADATA_team="platform",
            HTTPS_PROXY=f"http://user:{PROXY_SECRET}@127.0.0.1:9",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_HEADERS=f"key={COLLECTOR_SECRET}",
        )
        run = site.api.trigger("private")
        eventually((marks / "here").exists)
        during = tmp_path / "during.tar.gz"
        done = command(site, "support-bundle", str(during))
        assert (0, "") == (done.returncode, done.stderr)
        (marks / "go").touch()
        site.follow("private", run)
        after = tmp_path / "after.tar.gz"
        assert 0 == command(site, "support-bundle", str(after)).returncode
        status = command(site, "status", "--json").stdout
        process = Path(f"/proc/{launcher.pid}/environ").read_bytes()
        assert COLLECTOR_SECRET.encode() not in process
        assert 0 == launcher.stop()
    pool = site.pool()
    pem = base64.b64decode(pool["SPACELIFT_POOL_PRIVATE_KEY"])
    secret = [
        *(SECRET, FILE_SECRET, ADDED, OWNER_SECRET, COLLECTOR_SECRET, PROXY_SECRET),
        *(PASSWORD, f"{USER}:{PASSWORD}", auth(PASSWORD)["auth"]),
        *(pool["SPACELIFT_TOKEN"], pool["SPACELIFT_POOL_PRIVATE_KEY"], pem.decode()),
        *pem.decode().splitlines()[1:-1],
    ]

    found = {path.name: unpacked(path) for path in (during, after)}
    log = launcher.log.read_bytes()
    assert COLLECTOR_SECRET == collector.headers[0]["key"]
    for forms in (needles([value.encode()]) for value in secret):
        for form in forms:
            for files in (*found.values(), {"log": log, "status": status.encode()}):
                for name, content in files.items():
                    assert form not in content, (name, form)
    for files in found.values():
        assert set(files) == FILES
    journal = json.loads(found["during.tar.gz"]["spacelift-launcher/journal.json"])
    assert [run] == [each["run"] for each in journal]
    assert "sending initialize" in journal[0]["steps"]
    assert [] == json.loads(found["after.tar.gz"]["spacelift-launcher/journal.json"])
    last = found["after.tar.gz"]
    assert b'"msg": "job.settled"' in last["spacelift-launcher/log.jsonl"]
    assert (
        b'failures_total{blame="stack",code="before_hook_failed"} 1.0'
        in (last["spacelift-launcher/metrics.txt"])
    )
    settings = json.loads(last["spacelift-launcher/settings.json"])
    assert "set, and secret" == settings["SPACELIFT_TOKEN"]
    assert ["OWNERS (its value is left out)"] == settings["SPACELIFT_WHITELIST_ENVS"]
    assert 0o600 == after.stat().st_mode & 0o777


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory):
    stacks = [
        {"slug": "quick", "hooks": {"before_init": ["echo trace $TRACEPARENT"]}},
    ]
    with opened(tmp_path_factory.mktemp("site"), stacks) as site:
        with Relay(site.addresses.workers.replace("https:", "tcp:")) as site.way:
            site.relay = site.way.host.replace("tcp:", "https:")
            yield site
            while site.launchers:
                site.launchers.pop().stop()


def environment(site, **more):
    """What the launcher of the site has, without starting one."""
    return {
        **site.pool(),
        "DOCKER_HOST": more.pop("DOCKER_HOST", os.environ["DOCKER_HOST"]),
        **more,
    }


def checked(done):
    said = json.loads(done.stdout)
    assert said["ok"] == (done.returncode == 0)
    return {each["name"]: (each["outcome"], each["said"]) for each in said["checks"]}


def test_a_check_that_goes_well(site):
    """
    Where everything is there, each check says so, and nobody learns that it was asked.
    """
    before = site.api.query("{ workerPools { id workers { id } } }", {})
    done = command(site, "check", "--json", **environment(site))
    found = checked(done)

    assert 0 == done.returncode, done.stdout
    assert {"ok"} == {
        outcome for name, (outcome, _) in found.items() if name not in ("policy",)
    }
    assert "doubtful" == found["policy"][0]
    assert found.keys() == {
        *("settings", "token and key", "state directory", "git", "policy"),
        *("container engine", "disk", "image", "certificate", "control plane", "clock"),
    }
    assert before == site.api.query("{ workerPools { id workers { id } } }", {})
    people = command(site, "check", **environment(site))
    assert "container engine  ok        version" in people.stdout


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"SPACELIFT_LAUNCHER_WORKERS": "none"}, "settings"),
        ({"SPACELIFT_TOKEN": "x"}, "token and key"),
        ({"SPACELIFT_POOL_PRIVATE_KEY": ""}, "token and key"),
        ({"SPACELIFT_LAUNCHER_STATE_DIR": "/proc/1/status/x"}, "state directory"),
        ({"PATH": "/nowhere"}, "git"),
        (
            {"SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY": "/nowhere/policy.rego"},
            "policy",
        ),
        ({"DOCKER_HOST": "tcp://127.0.0.1:9"}, "container engine"),
        ({"SPACELIFT_LAUNCHER_DISK_USAGE_THRESHOLD": "1"}, "disk"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_check_that_fails(site, changes, failed):
    """
    What a launcher could not work with is named, with what to do, and ends with 1.
    """
    done = command(site, "check", "--json", **{**environment(site), **changes})
    results = json.loads(done.stdout)["checks"]

    assert 1 == done.returncode
    assert [failed] == [each["name"] for each in results if each["outcome"] == "failed"]
    (result,) = [each for each in results if each["outcome"] == "failed"]
    assert result["said"]
    assert "Traceback" not in done.stdout + done.stderr


def test_a_check_of_images(site):
    """
    A default image that may not run here is doubtful, since runs may name others.
    """
    done = command(
        site,
        "check",
        "--json",
        **environment(site, SPACELIFT_LAUNCHER_ALLOWED_IMAGES="!*"),
    )

    assert "doubtful" == checked(done)["image"][0]
    assert 0 == done.returncode


def test_a_check_of_a_pool_that_was_reset(site):
    """
    A token that the control plane does not take any more is found out.
    """
    stale = site.pool("other")
    site.pool("other", "reset")
    done = command(site, "check", "--json", **{**environment(site), **stale})
    found = checked(done)

    assert 1 == done.returncode
    assert "failed" == found["control plane"][0]
    assert "does not accept" in found["control plane"][1]


def test_a_control_plane_that_is_away(site):
    """
    A control plane that does not answer is found out by all, and so is its coming back.
    """
    launcher = site.launcher("cut-off")
    eventually(lambda: [] == reasons(site, "cut-off"))
    with site.way.outage():
        assert ["control_plane"] == eventually(lambda: reasons(site, "cut-off"))
        found = checked(command(site, "check", "--json", **environment(site)))
        assert ("failed", "skipped") == (found["control plane"][0], found["clock"][0])
        text = command(site, "status", name="cut-off").stdout
        assert "because control_plane: the control plane has not answered" in text
    eventually(lambda: [] == reasons(site, "cut-off"))
    assert 0 == launcher.stop()


def reasons(site, name):
    done = command(site, "status", "--json", name=name)
    said = json.loads(done.stdout)
    assert set(said["checks"]) >= {
        *("engine", "disk", "policy", "control_plane", "clock", "certificate", "drain"),
    }
    return [check for check, reason in said["checks"].items() if reason]


def test_an_engine_that_is_away(site):
    """
    An engine that went away shows, and so does its coming back.
    """
    with Relay(os.environ["DOCKER_HOST"]) as relay:
        launcher = site.launcher("without-engine", DOCKER_HOST=relay.host)
        eventually(lambda: [] == reasons(site, "without-engine"))
        with relay.outage():
            assert ["engine"] == eventually(lambda: reasons(site, "without-engine"))
        eventually(lambda: [] == reasons(site, "without-engine"))
        assert 0 == launcher.stop()


def test_status_for_people(site):
    """
    People read how old the last answer is, when certificates end, and how full disks are.
    """
    launcher = site.launcher("shown")
    eventually(lambda: [] == reasons(site, "shown"))
    text = command(site, "status", name="shown").stdout

    for part in ("ready     yes", "answered", "its certificate ends in", "% in use"):
        assert part in text
    assert 0 == launcher.stop()


def test_without_a_launcher(site, tmp_path):
    """
    A bundle can be made without a launcher, and says what is missing.
    """
    path = tmp_path / "bundle.tar.gz"
    done = command(
        site, "support-bundle", str(path), name="nobody", **environment(site)
    )

    assert 0 == done.returncode
    assert "no launcher answers" in done.stderr
    files = unpacked(path)
    assert FILES == set(files)
    assert b"Version" in files["spacelift-launcher/engine.json"]
    assert site.pool()["SPACELIFT_TOKEN"].encode() not in b"".join(files.values())


def test_a_trace_of_a_real_run(site):
    """
    A run is one trace from its trigger to its end, and its container belongs to it.
    """
    with collecting() as collector:
        launcher = site.launcher("traced", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        run, texts = site.deploy("quick")
        site.api.confirm("quick", run)
        texts |= site.follow("quick", run)
        assert 0 == launcher.stop()

    spans = collector.spans
    (trace,) = {span.trace for span in spans}
    (whole,) = collector.named("run")
    assert 2 == len(collector.named("job")) == len(collector.named("queued"))
    assert {"phase initialize", "phase plan", "phase apply", "create", "start"} <= {
        span.name for span in spans
    }
    assert all(whole.begun <= span.begun <= span.ended <= whole.ended for span in spans)
    first = min(collector.named("job"), key=lambda span: span.begun)
    assert f"trace 00-{trace}-{first.id}-01\n" in texts["INITIALIZING"]


def test_a_collector_that_hangs(site):
    """
    A collector that takes connections and never answers delays neither run nor end.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        launcher = site.launcher("untraced", OTEL_EXPORTER_OTLP_ENDPOINT=url)
        run, _ = site.deploy("quick")
        site.api.discard("quick", run)
        assert 0 == launcher.stop()
