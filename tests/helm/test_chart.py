"""The chart: what it renders is what Kubernetes and the launcher understand."""

import copy
import json
import os
import shutil
import subprocess

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from launcher import __version__
from launcher.adapters.policies.loading import follow
from launcher.cli import server
from launcher.controlplane import desired_state
from launcher.settings import _OWN_SECRETS, PolicySettings, Settings
from support.chart import (
    CHART,
    GOLDEN,
    NEWEST,
    OLDEST,
    ROOT,
    VALUES,
    helm,
    objects,
    refusal,
    rendered,
)


MINIMAL, COMPLETE, PLANE, SEVERAL = (
    ROOT / "tests" / "helm" / "values" / f"{name}.yaml"
    for name in ("minimal", "complete", "control-plane", "several-servers")
)
OURS = {"launcher", "control-plane"}
every_file = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)


def kinds(found):
    return {each["kind"] for each in found}


def one(found, kind, name=""):
    (chosen,) = [
        each
        for each in found
        if each["kind"] == kind and each["metadata"]["name"].endswith(name)
    ]
    return chosen


def pod(found, name=""):
    return one(found, "StatefulSet", name)["spec"]["template"]["spec"]


def containers(found):
    for each in found:
        if each["kind"] == "StatefulSet":
            spec = each["spec"]["template"]["spec"]
            yield from spec["containers"] + spec.get("initContainers", [])


def launcher(found):
    (container,) = [each for each in containers(found) if each["name"] == "launcher"]
    return container


def engine(found):
    (container,) = [
        each for each in pod(found)["initContainers"] if each["name"] == "engine"
    ]
    return container


def variables(container):
    return {each["name"]: each.get("value") for each in container.get("env", [])}


# --- as a chart


def test_it_is_of_this_version():
    """Chart, image and program have one version."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize("values", [None, *VALUES], ids=lambda path: path and path.stem)
def test_helm_finds_nothing_to_complain_about(values):
    """`helm lint --strict` passes, for the defaults as well."""
    helm("lint", "--strict", CHART, *([f"--values={values}"] if values else []))


@every_file
def test_it_renders_what_was_looked_at(values):
    """
    Each change of the output is seen before it is committed.

    `make golden` writes the files anew.
    """
    assert rendered(values) == (GOLDEN / values.name).read_text()


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@every_file
def test_kubernetes_takes_it(values, version):
    """The oldest and the newest supported Kubernetes know every field of every object."""
    checked = set()
    for each in objects(values, version=version):
        # Of the Prometheus operator, which has its own schema.
        if each["kind"] == "ServiceMonitor":
            continue
        kubernetes_validate.validate(each, version, strict=True)
        checked.add(each["kind"])
    assert "StatefulSet" in checked


def test_the_schemas_find_mistakes():
    """A field that no Kubernetes knows is no valid object."""
    broken = copy.deepcopy(one(objects(MINIMAL), "StatefulSet"))
    broken["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


def test_the_supported_versions_are_said():
    """Chart and page name the oldest, and the newest is the newest that has schemas."""
    oldest, newest = (each.rpartition(".")[0] for each in (OLDEST, NEWEST))
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={OLDEST}-0"
    page = (ROOT / "docs" / "install-kubernetes.md").read_text()
    assert f"Kubernetes {oldest} to {newest} and" in page
    assert kubernetes_validate.latest_version() == NEWEST


def test_older_kubernetes_is_refused():
    """Where init containers do not keep running, nothing is installed."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        rendered(MINIMAL, version="1.28.9")
    assert "requires kubeVersion" in caught.value.stderr


def test_every_value_has_a_schema_and_a_use():
    """Whatever values.yaml offers is checked, and appears in a template."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    templates = "".join(each.read_text() for each in CHART.glob("templates/*"))

    def walk(values, schema, path):
        while "$ref" in schema:
            schema = schema_of[schema["$ref"].rpartition("/")[2]]
        assert schema, path
        if not (isinstance(values, dict) and "properties" in schema):
            return
        assert schema["additionalProperties"] is False, path
        for key, value in values.items():
            assert key in schema["properties"], f"{path}.{key}"
            assert key in templates, f"{path}.{key}"
            # Handed on as they are.
            if key == "resources" or key.endswith("Probe"):
                continue
            walk(value, schema["properties"][key], f"{path}.{key}")

    schema_of = schema["definitions"]
    walk(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


PASSWORD = "postgresql+psycopg://spacelift:secret@db.example.com/spacelift"


@pytest.mark.parametrize(
    ("values", "also", "complaint"),
    [
        (MINIMAL, 'launcher.credentials.existingSecret=""', "launcher.credentials"),
        (MINIMAL, 'image.repository=""', "image.repository"),
        (MINIMAL, "launcher.terminationGracePeriodSeconds=7559", "has to be 7560"),
        (MINIMAL, "launcher.runTimeoutSeconds=0", "runTimeoutSeconds"),
        (MINIMAL, "launcher.werkers=2", "werkers"),
        (MINIMAL, 'launcher.settings={"SPACELIFT_TOKEN":"x"}', "launcher.credentials"),
        (
            MINIMAL,
            'launcher.extraEnv=[{"name":"SPACELIFT_LAUNCHER_RUN_TIMEOUT","value":"9h"}]',
            "is set by launcher.runTimeoutSeconds",
        ),
        (MINIMAL, 'engine.docker.extraArgs=["--host=tcp://0.0.0.0:2375"]', "extraArgs"),
        (
            MINIMAL,
            'launcher.settings={"SPACELIFT_RUNS_MAY_REACH_METADATA":"1"}',
            "launcher.runsMayReachMetadata",
        ),
        (MINIMAL, "engine.docker.entrypoint=[]", "entrypoint"),
        (MINIMAL, 'engine.docker.extraArgs=["-H","tcp://:2375"]', "extraArgs"),
        (MINIMAL, 'launcher.policy.files={"policy.rego":""}', "policy.rego"),
        (PLANE, "controlPlane.replicas=2", "PostgreSQL"),
        (PLANE, 'controlPlane.endpoint="http://plane"', "https URL"),
        (PLANE, f'controlPlane.database.url="{PASSWORD}"', "database"),
        (
            SEVERAL,
            'controlPlane.persistence.accessModes=["ReadWriteOnce"]',
            "ReadWriteMany",
        ),
    ],
)
def test_what_cannot_work_is_refused(values, also, complaint):
    """A mistake is named before anything is installed."""
    assert complaint in refusal(values, also=[also])


@pytest.mark.parametrize("name", sorted(_OWN_SECRETS))
@pytest.mark.parametrize(
    "also",
    ['launcher.settings={"%s":"x"}', 'launcher.extraEnv=[{"name":"%s","value":"x"}]'],
    ids=["settings", "extraEnv"],
)
def test_secrets_are_refused_in_plain_text(also, name):
    """A secret of the launcher comes from a Secret, and from no value that all may read."""
    assert f"{name} is s" in refusal(MINIMAL, also=[also % name])


def test_a_secret_without_a_value_of_its_own_comes_from_a_secret():
    """Headers of the collector arrive by reference."""
    name = "OTEL_EXPORTER_OTLP_HEADERS"
    given = {"name": name, "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
    also = [f"launcher.extraEnv={json.dumps([given])}"]
    assert given in launcher(objects(MINIMAL, also=also))["env"]


def test_large_numbers_are_written_out():
    """What is a whole number in the values is one for the launcher."""
    also = ['launcher.settings={"A":10000000,"B":-12345678,"C":1,"D":true,"E":"1e7"}']
    found = variables(launcher(objects(MINIMAL, also=also)))
    assert [found[name] for name in "ABCDE"] == [
        *("10000000", "-12345678", "1", "true", "1e7")
    ]


@pytest.mark.parametrize("release", ["r", "r" * 53])
def test_names_are_short_enough(release):
    """Also with the longest name that a release may have."""
    for each in objects(PLANE, release=release):
        assert len(each["metadata"]["name"]) <= 63
        if each["kind"] == "StatefulSet":
            # Its pods are labelled with it and the hash of a revision.
            assert len(each["metadata"]["name"]) <= 52


@every_file
def test_selectors_find_their_pods(values):
    """Services, budgets and network policies mean a workload that is there, and only it."""
    found = objects(values)
    pods = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in found
        if each["kind"] == "StatefulSet"
    ]
    for each in found:
        match each["kind"]:
            case "Service":
                selector = each["spec"]["selector"]
            case "NetworkPolicy":
                selector = each["spec"]["podSelector"]["matchLabels"]
            case "PodDisruptionBudget" | "StatefulSet":
                selector = each["spec"]["selector"]["matchLabels"]
            case _:
                continue
        assert sum(selector.items() <= labels.items() for labels in pods) == 1, each


@pytest.mark.parametrize(
    ("values", "port"),
    [(COMPLETE, "health"), (PLANE, "people")],
    ids=["launcher", "control-plane"],
)
def test_prometheus_finds_what_it_is_to_scrape(values, port):
    """A monitor means a service that is there, and a port by the name that it has."""
    found = objects(values)
    monitor = one(found, "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (port, "/metrics")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [
        each
        for each in found
        if each["kind"] == "Service" and wanted <= each["metadata"]["labels"].items()
    ]
    named = [
        each["metadata"]["name"]
        for each in services
        if port in [every["name"] for every in each["spec"]["ports"]]
    ]
    assert len(named) == 1


def test_notes_are_for_what_was_installed(tmp_path):
    """They warn of a missing policy, and give commands with the real names."""
    shutil.copytree(CHART, tmp_path / "chart")
    # Helm renders notes for those only who have a cluster.
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    (tmp_path / "chart" / "templates" / "notes.yaml").write_text(
        '{{- define "notes" }}' + notes + "{{ end }}\n"
        'notes: {{ include "notes" . | quote }}\n'
    )

    def said(values):
        (found,) = [
            each["notes"]
            for each in objects(values, chart=tmp_path / "chart", release="acme")
            if "notes" in each
        ]
        return found

    assert "WARNING: there is no initialization policy" in said(MINIMAL)
    assert "WARNING" not in said(PLANE)
    assert "may take 7560 seconds" in said(PLANE)
    assert "exec acme-spacelift-launcher-control-plane-0 -- " in said(PLANE)
    assert "acme-spacelift-launcher-control-plane-workers.spacelift.svc:8443" in said(
        PLANE
    )
    assert "launcher(s)" not in said(SEVERAL)


# --- hardening


@every_file
def test_our_own_containers_are_locked_down(values):
    """Not root, nothing writable but volumes, no capability, the default seccomp profile."""
    found = objects(values)
    ours = [each for each in containers(found) if each["name"] in OURS]
    assert ours
    for container in ours:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsGroup": 1983,
            "runAsNonRoot": True,
            "runAsUser": 1983,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    for each in found:
        if each["kind"] == "StatefulSet":
            spec = each["spec"]["template"]["spec"]
            assert spec["automountServiceAccountToken"] is False
            assert spec["enableServiceLinks"] is False
            assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
            assert not any("hostPath" in volume for volume in spec["volumes"])


def test_the_engine_is_beside_the_launcher_and_nowhere_else():
    """It starts before it and ends after it, and answers at a socket in a shared volume."""
    found = objects(MINIMAL)
    container = engine(found)
    assert container["restartPolicy"] == "Always"
    assert container["args"][0] == "dockerd"
    hosts = [each for each in container["args"] if each.startswith(("-H", "--host"))]
    assert hosts == ["--host=unix:///run/engine/docker.sock"]
    assert "ports" not in container
    assert "livenessProbe" not in container
    assert variables(launcher(found))["DOCKER_HOST"] == "unix:///run/engine/docker.sock"
    (socket,) = [
        each
        for each in launcher(found)["volumeMounts"]
        if each["name"] == "engine-socket"
    ]
    assert socket == {
        "name": "engine-socket",
        "mountPath": "/run/engine",
        "readOnly": True,
    }
    # Root of the node by way of the engine: nothing else of the pod sees its socket.
    assert "engine-socket" not in json.dumps(objects(SEVERAL))


def test_secrets_are_files():
    """What is inline ends in Secrets alone, and reaches the launcher as files."""
    found = objects(COMPLETE) + objects(PLANE)
    inline = ["eyJlbmRwb2ludCI6", "LS0tLS1CRUdJTiBQUklW", "dTpw", "not-a-real-secret"]
    for each in found:
        shown = [secret for secret in inline if secret in json.dumps(each)]
        assert not shown or each["kind"] == "Secret"
    names = variables(launcher(objects(COMPLETE)))
    assert "SPACELIFT_TOKEN" not in names
    for volume in pod(objects(COMPLETE))["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440


def test_existing_secrets_are_used():
    """Whoever has Secrets and ConfigMaps gets none made by the chart."""
    assert "Secret" not in kinds(objects(MINIMAL))
    # The packet filter's is nobody else's.
    assert one(objects(MINIMAL), "ConfigMap")["metadata"]["name"].endswith("-network")
    assert not {"Secret", "ConfigMap"} & kinds(objects(SEVERAL))
    names = {
        volume["secret"]["secretName"]
        for volume in pod(objects(PLANE), "launcher")["volumes"]
        if "secret" in volume
    }
    assert names == {"pool", "registries"}


def test_the_network_keeps_runs_from_metadata():
    """What leaves the pod reaches everything but the clouds' metadata addresses."""
    policy = one(objects(MINIMAL), "NetworkPolicy")["spec"]
    assert policy["ingress"] == []
    blocks = [
        peer["ipBlock"]
        for rule in policy["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert {block["cidr"] for block in blocks} == {"0.0.0.0/0", "::/0"}
    assert {address for block in blocks for address in block["except"]} == {
        "169.254.169.254/32",
        "169.254.170.2/32",
        "169.254.170.23/32",
        "fd00:ec2::254/128",
        "fd00:ec2::23/128",
    }


def test_the_pods_network_is_closed_first():
    """
    The engine's container begins with the machine's own rules, and ends without them.

    What they do there is tried in tests/integration/test_pod_network.py.
    """
    container = engine(objects(COMPLETE))
    *shell, script, name, entry = container["command"]
    assert ["/bin/sh", "-ec"] == shell
    (path, rest) = script.removeprefix("sh ").split(maxsplit=1)
    assert 'up; exec "$@"' == rest
    assert ("engine", "dockerd-entrypoint.sh") == (name, entry)
    (mount,) = [
        each
        for each in container["volumeMounts"]
        if path == f"{each['mountPath']}/network"
    ]
    assert mount["readOnly"]
    files = one(objects(COMPLETE), "ConfigMap", "-network")["data"]
    assert (ROOT / "systemd" / "network").read_text().rstrip() == (
        files["network"].rstrip()
    )


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("")])
def test_a_chart_without_the_rules_is_refused(tmp_path, damage):
    """A copy that has lost them installs no engine that would do without."""
    shutil.copytree(CHART, tmp_path / "chart")
    damage(tmp_path / "chart" / "files" / "network")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        rendered(MINIMAL, chart=tmp_path / "chart")
    assert "files/network is missing" in caught.value.stderr


@pytest.mark.parametrize("allowed", [False, True])
def test_the_identity_of_the_pod_can_be_had(allowed, tmp_path):
    """One value opens filter and network policy, and has the launcher warn of it."""
    found = objects(
        MINIMAL, also=[f"launcher.runsMayReachMetadata={json.dumps(allowed)}"]
    )
    name = "SPACELIFT_RUNS_MAY_REACH_METADATA"
    assert variables(engine(found))[name] == json.dumps(allowed)
    read = settings(launcher(found), tmp_path)
    assert read.container.metadata_reachable == allowed
    policy = json.dumps(one(found, "NetworkPolicy"))
    assert ("169.254" not in policy) == allowed


# --- what the programs make of it


def settings(container, tmp_path):
    """The launcher's, from a container's variables with its files in *tmp_path*."""
    found = variables(container)
    contents = {
        "SPACELIFT_TOKEN_FILE": "token",
        "SPACELIFT_POOL_PRIVATE_KEY_FILE": "key",
        "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG_FILE": '{"auths":{}}',
    }
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    for name in found.keys() & {*contents, "ADDITIONAL_ROOT_CAS_FILE"}:
        assert any(found[name].startswith(f"{each}/") for each in mounts), name
    found.pop("ADDITIONAL_ROOT_CAS_FILE", None)
    for name, content in contents.items():
        if name in found:
            (tmp_path / name).write_text(content)
            found[name] = str(tmp_path / name)
    return Settings.from_environ(
        {name: value or "from elsewhere" for name, value in found.items()}
    )


@pytest.mark.parametrize(
    "values", [MINIMAL, COMPLETE, PLANE], ids=lambda path: path.stem
)
def test_the_launcher_understands_its_variables(values, tmp_path):
    """Each is a setting, with a value that is one."""
    read = settings(launcher(objects(values)), tmp_path)
    assert str(read.host.state_dir) == "/var/lib/spacelift-launcher/state"
    assert set(read.identity.metadata) >= {"namespace", "node", "pod"}
    assert read.telemetry.listen.port == 1986
    if values == COMPLETE:
        assert (read.run.workers, read.run.run_timeout) == (4, 7200)
        assert read.container.worker_memory == 2 << 30
        assert read.container.worker_cpus == 1.5
        assert read.network.no_proxy == (".svc", "10.0.0.0/8")
        assert read.images.require_digest
        assert str(read.policy.path) == "/etc/spacelift-launcher/policy"


def test_defaults_are_the_launchers(tmp_path):
    """The chart changes how long runs may take for nobody who does not ask for it."""
    read = settings(launcher(objects(MINIMAL)), tmp_path)
    given = Settings()
    assert read.run == given.run
    assert limits(read) == limits(given)


def limits(settings):
    """What may pass before the first phase, and what stopping a container may take."""
    images, source, container = settings.images, settings.source, settings.container
    before = (
        *(images.pull_timeout, source.timeout),
        *(container.create_timeout, container.start_timeout),
    )
    return before, container.stop_timeout


def test_a_drain_has_the_time_it_takes():
    """
    Kubernetes and systemd wait longer than a run may take.

    Kubernetes waits for a whole drain: a run that was just claimed, its grace, and its
    report.  systemd is asked for more while there is progress, so that its own time
    needs to do for the phases alone.
    """
    given = Settings()
    before, stop = limits(given)
    phases = given.run.run_timeout + given.run.apply_grace + 2 * stop
    assert pod(objects(MINIMAL))["terminationGracePeriodSeconds"] == (
        sum(before) + phases + 600
    )
    unit = ROOT / "systemd" / "spacelift-launcher.service"
    assert stop_timeout(unit.read_text()) > phases


@pytest.mark.parametrize(
    ("value", "variable", "times"),
    [
        ("runTimeoutSeconds", "RUN_TIMEOUT", 1),
        ("applyGraceSeconds", "APPLY_GRACE", 1),
        ("pullTimeoutSeconds", "PULL_TIMEOUT", 1),
        ("sourceTimeoutSeconds", "SOURCE_TIMEOUT", 1),
        ("createTimeoutSeconds", "CREATE_TIMEOUT", 1),
        ("startTimeoutSeconds", "START_TIMEOUT", 1),
        ("stopTimeoutSeconds", "STOP_TIMEOUT", 2),
        ("planGraceSeconds", "PLAN_GRACE", 1),
    ],
)
def test_each_limit_counts_for_a_drain(value, variable, times):
    """A longer limit is a longer drain, and cannot be had without one."""
    normal = yaml.safe_load((CHART / "values.yaml").read_text())["launcher"]
    # Of the two graces the longer one counts.
    base = normal["applyGraceSeconds" if "Grace" in value else value]
    found = objects(MINIMAL, also=[f"launcher.{value}={base + 1000}"])
    assert pod(found)["terminationGracePeriodSeconds"] == 7560 + times * 1000
    name = f"SPACELIFT_LAUNCHER_{variable}"
    assert variables(launcher(found))[name] == f"{base + 1000}s"
    also = [f'launcher.settings={{"{name}":"9h"}}']
    assert f"{name} is set by launcher.{value}" in refusal(MINIMAL, also=also)


def stop_timeout(unit):
    """Seconds that systemd waits for a service to stop."""
    (text,) = [
        line.partition("=")[2].strip()
        for line in unit.splitlines()
        if line.startswith("TimeoutStopSec=")
    ]
    if text == "infinity":
        return float("inf")
    units = {"h": 3600, "min": 60, "m": 60, "s": 1, "": 1}
    seconds = 0
    for part in text.split():
        number = part.rstrip("abcdefghijklmnopqrstuvwxyz")
        seconds += int(number) * units[part[len(number) :]]
    return seconds


@pytest.mark.parametrize("values", [PLANE, SEVERAL], ids=lambda path: path.stem)
def test_the_control_plane_understands_its_arguments(values):
    """Its command line is one, and what it names is mounted."""
    (container,) = [
        each for each in containers(objects(values)) if each["name"] == "control-plane"
    ]
    assert container["args"][0] == "server"
    given = {
        name: value
        for name, _, value in (each.partition("=") for each in container["args"][1:])
    }
    known = {option for each in server.params for option in each.opts}
    assert given.keys() <= known
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert given["--config"].rpartition("/")[0] in mounts


def test_the_control_plane_understands_its_configuration(tmp_path):
    """What the chart makes of `config` is accepted, with the chart's own keys in it."""
    plane = one(objects(PLANE), "ConfigMap", "-control-plane")
    text = plane["data"]["control-plane.yaml"]
    folder = "/etc/spacelift-control-plane/secrets"
    assert folder in text
    (tmp_path / "ci").write_text("not-a-real-secret")
    config = tmp_path / "control-plane.yaml"
    config.write_text(text.replace(folder, str(tmp_path)))
    desired = desired_state.load(config, os.environ)
    assert desired.endpoint == "https://spacelift.example.com"
    mounts = {
        mount["mountPath"]
        for each in containers(objects(PLANE))
        for mount in each["volumeMounts"]
    }
    assert {folder, str(desired.data_directory.parent)} <= mounts


@pytest.mark.services
def test_a_changed_policy_arrives_by_itself(tmp_path):
    """
    The ConfigMap is mounted as a whole, and followed as kubelets change it.

    They make a new folder and turn one link over.
    """
    (mount,) = [
        each
        for each in launcher(objects(COMPLETE))["volumeMounts"]
        if each["name"] == "policy"
    ]
    assert "subPath" not in mount
    files = one(objects(COMPLETE), "ConfigMap", "-policy")["data"]
    mounted = tmp_path / "mounted"
    mounted.mkdir()

    def show(version, files):
        (mounted / f"..{version}").mkdir()
        for name, content in files.items():
            (mounted / f"..{version}" / name).write_text(content)
        (mounted / "..new").symlink_to(f"..{version}")
        (mounted / "..new").rename(mounted / "..data")
        for name in files:
            if not (mounted / name).is_symlink():
                (mounted / name).symlink_to(f"..data/{name}")

    show("2026_01", files)
    policy = follow(PolicySettings(path=mounted), mounted, tmp_path, secret=b"k" * 32)
    task = {"run": {"type": "TASK"}}
    assert policy.evaluate(task).outcome == "deny"
    changed = files["policy.rego"].replace("TASK", "DESTROY")
    show("2026_02", files | {"policy.rego": changed})
    assert policy.evaluate(task).outcome == "allow"
    assert policy.trouble() is None
