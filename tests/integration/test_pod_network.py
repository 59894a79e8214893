"""What runs on Kubernetes reach: the chart's own script and command, and a real engine."""

import shutil
import subprocess

import pytest

from support.machine import METADATA, METADATA_6
from support.pod import GATEWAYS, OUTSIDE, OUTSIDE_6, POD, POD_6, a_pod


pytestmark = pytest.mark.services
_NAMES = [
    f"{tables}{part}"
    for tables in ("iptables", "ip6tables")
    for part in ("", "-save", "-restore")
]
# As an engine's image may have it: with one of the kernel's two ways to filter packets,
# or with the older one in a place of its own, for kernels that do not have the other.
KINDS = {
    kind: {
        name: f"/usr/sbin/{name.replace('tables', f'tables-{kind}')}" for name in _NAMES
    }
    for kind in ("nft", "legacy")
}

one_kind = pytest.mark.parametrize("pod", ["nft"], indirect=True)


@pytest.fixture(name="pod", scope="module", params=KINDS)
def _pod(request):
    with a_pod(KINDS[request.param]) as pod:
        pod.start()
        pod.load()
        yield pod


def verdict(pod, network="six", **environment):
    """
    How the launcher's check ends, and its words for metadata addresses and pod.

    Without *network*, it is one that the check makes, which has no IPv6.
    """
    said = pod.checked(SPACELIFT_WORKER_NETWORK=network, **environment)
    assert said.returncode in (0, 1), said.stderr
    lines = [line.split(maxsplit=1) for line in said.stdout.splitlines()]
    assert [*METADATA, *METADATA_6] == [
        rest.split()[0] for kind, rest in lines if kind == "metadata"
    ]
    metadata = {rest.split(maxsplit=1)[1] for kind, rest in lines[:5]}
    machine = {rest.split()[-1] for kind, rest in lines[5:]}
    return said.returncode, metadata, machine


def test_runs_reach_neither_metadata_nor_pod(pod):
    """
    The launcher's check finds everything blocked, and all of it open without the rules.

    With what lies beside it, nothing has changed.
    """
    blocked = (0, {"blocked"}, {"blocked"})
    assert blocked == verdict(pod, "") == verdict(pod)
    with pod.listening(1986):
        for address in (POD, POD_6, *GATEWAYS):
            assert not pod.reaches(address, 1986), address
    assert pod.reaches(OUTSIDE, 80)
    assert pod.reaches(OUTSIDE_6, 80)

    pod.sh(f"sh {pod.script} down")
    assert (1, {"OPEN"}, {"OPEN"}) == verdict(pod)
    with pod.listening(1986):
        for address in (POD, POD_6, *GATEWAYS):
            assert pod.reaches(address, 1986), address

    pod.sh(f"sh {pod.script} up")
    assert not pod.reaches(METADATA[0], 80)


@one_kind
def test_rules_outlive_the_engine_and_are_made_once(pod):
    """An engine that starts anew has the same rules, first of all."""
    before = pod.sh("iptables -S | grep SPACELIFT").stdout
    pod.stop()
    pod.start()

    assert before == pod.sh("iptables -S | grep SPACELIFT").stdout
    assert 3 == before.count("-i spl-+ -j SPACELIFT-RUNS\n")
    assert not pod.reaches("169.254.169.254", 80)


@one_kind
def test_ports_of_other_containers_are_closed_too(pod):
    """What a container publishes is reached at no address of the pod."""
    listen = "while :; do nc -l -p 9; done"
    pod.sh(
        "docker run --detach --rm --name other --network six -p 8009:9 tiny:1"
        f" sh -c '{listen}'"
    )
    try:
        assert not pod.reaches(POD, 8009)
        pod.sh(f"sh {pod.script} down")
        assert pod.reaches(POD, 8009)
    finally:
        pod.sh(f"docker rm --force other; sh {pod.script} up")


@one_kind
def test_names_are_resolved_by_the_pod_itself(pod):
    """A name server in the pod is one for runs, and nothing more."""
    names = pod.folder / "resolv.conf"
    names.write_text(f"nameserver {POD}\n")
    with pod.listening(53, 54):
        pod.sh(
            f"unshare --mount sh -ec 'mount --bind {names} /etc/resolv.conf;"
            f" sh {pod.script} up'"
        )
        assert pod.reaches(POD, 53)
        assert not pod.reaches(POD, 54)
        pod.sh(f"sh {pod.script} up")
        assert not pod.reaches(POD, 53)


@one_kind
def test_the_identity_of_the_pod_can_be_had(pod):
    """Who wants runs to have it says so, is warned of it, and gets nothing else."""
    given = {"SPACELIFT_RUNS_MAY_REACH_METADATA": "true"}
    warned = pod.sh(f"sh {pod.script} up", **given).stderr
    found = verdict(pod, **given)
    pod.sh(f"sh {pod.script} up")

    assert "identity of this machine" in warned
    assert (0, {"open, as allowed"}, {"blocked"}) == found


@one_kind
def test_the_engine_is_started_as_its_image_does(pod):
    """The image's entry point has the last word, and is told which engine to start."""
    asked = (pod.folder / "asked").read_text().split()

    assert "dockerd" == asked[0]
    assert f"--host={pod.host}" in asked
    assert "--group=1983" in asked


@pytest.mark.parametrize(
    ("environment", "status"),
    [({}, 1), ({"SPACELIFT_RUNS_MAY_REACH_METADATA": "maybe"}, 2)],
    ids=["no packet filter", "no answer"],
)
def test_without_rules_there_is_no_engine(environment, status):
    """Where runs cannot be kept from metadata and pod, no engine takes them."""
    tools = KINDS["nft"] if environment else dict.fromkeys(_NAMES, "/bin/false")
    with a_pod(tools) as pod:
        done = subprocess.run(
            pod.command(),
            env=pod.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert status == done.returncode
        assert done.stderr.strip()
        assert not (pod.folder / "asked").exists()


@pytest.mark.parametrize("tools", KINDS.values(), ids=KINDS)
def test_nothing_is_left(tools):
    """Without rules there is all that was there before, others' rules included."""
    everything = "for each in iptables ip6tables; do $each -w -S; done"
    others = "iptables -N DOCKER-USER; iptables -A DOCKER-USER -j DROP"
    used = "ip6tables -N DOCKER-USER; ip6tables -A FORWARD -j DOCKER-USER"
    with a_pod(tools) as pod:
        for prepared in (":", others, used):
            pod.sh(prepared)
            before = pod.sh(everything).stdout
            pod.sh(f"sh {pod.script} up")
            assert before != pod.sh(everything).stdout
            pod.sh(f"sh {pod.script} down; sh {pod.script} down")
            assert before == pod.sh(everything).stdout


def test_the_older_packet_filter_is_found():
    """
    Where the newer one does not work, that of the image's own place is used.

    Everything else is what such an image has: one small program by many names.
    """
    place = "/usr/local/sbin/.iptables-legacy"
    links = "; ".join(
        f"ln -s {path} {place}/{name}" for name, path in KINDS["legacy"].items()
    )
    tools = dict.fromkeys(("sh", "awk", "tr", "cat"), shutil.which("busybox"))
    with a_pod(tools | dict.fromkeys(_NAMES, "/bin/false")) as pod:
        pod.sh(
            f"unshare --mount sh -ec 'mount -t tmpfs none /usr/local/sbin; mkdir {place};"
            f" {links}; sh {pod.script} up'"
        )

        for tool in ("iptables-legacy", "ip6tables-legacy"):
            assert (
                "-A FORWARD -i spl-+ -j SPACELIFT-RUNS" in pod.sh(f"{tool} -S").stdout
            )
