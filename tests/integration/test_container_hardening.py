"""Promise 6, asserted from inside of the real container."""

import contextlib
import json

from support.engines import DockerSite, run

import pytest

from launcher.adapters.engines.docker import LABEL
from launcher.errors import EngineError
from launcher.model import WORKSPACE, Mount


pytestmark = pytest.mark.services

MEMORY, CPUS = 256 << 20, 0.5


@pytest.fixture(name="site", scope="module")
def _site():
    with contextlib.closing(DockerSite(worker_memory=MEMORY, worker_cpus=CPUS)) as site:
        yield site


@pytest.fixture(name="sandbox", scope="module")
def _sandbox(site):
    with site.sandbox() as sandbox:
        yield sandbox


def inside(sandbox, *commands, **given):
    """What the commands print; they have to succeed."""
    result, printed = run(sandbox, *commands, **given)
    assert result.ok, printed.decode()
    return printed.decode().strip()


@pytest.fixture(name="status", scope="module")
def _status(sandbox):
    """``/proc/self/status`` of a phase's process."""
    lines = inside(sandbox, "cat /proc/self/status").splitlines()
    return {
        name: value.split()
        for name, _, value in (line.partition(":") for line in lines)
    }


@pytest.fixture(name="inspected", scope="module")
def _inspected(site, sandbox):
    return site.api.inspect_container(site.container(sandbox))


def test_unprivileged_user(status, sandbox):
    """Every process of a job runs as 1983:1983, in every respect and without groups."""
    assert ["1983"] * 4 == status["Uid"]
    assert ["1983"] * 4 == status["Gid"]
    assert status["Groups"] in ([], ["1983"])
    users = set(inside(sandbox, "ps -e -o uid=,gid=,comm=").splitlines())
    assert {" ".join(user.split()[:2]) for user in users} == {"1983 1983"}


@pytest.mark.parametrize("which", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_no_capabilities(status, which):
    """A job has no capability, and can get none."""
    assert 0 == int(status[which][0], 16)


def test_no_new_privileges(status):
    """No program gives a job more rights than it has."""
    assert ["1"] == status["NoNewPrivs"]


def test_default_seccomp_profile(status, inspected, sandbox):
    """The engine's filter of system calls is on."""
    assert ["2"] == status["Seccomp"]
    assert ["no-new-privileges:true"] == inspected["HostConfig"]["SecurityOpt"]
    result, printed = run(sandbox, "unshare --user true")
    assert not result.ok, printed


def test_setuid_does_not_elevate(site):
    """A setuid program is an ordinary one."""
    with site.sandbox() as sandbox:
        mine = inside(
            sandbox,
            f"cp /usr/bin/id {WORKSPACE}/id",
            "chmod 6755 id",
            "./id -u; ./id -G",
        )
        everywhere = inside(
            sandbox, "find / -xdev -perm /6000 -type f 2>/dev/null | head; true"
        )

    assert "1983\n1983" == mine
    assert "" == everywhere


def test_limits_as_the_job_sees_them(sandbox):
    """Processes, memory and processors of a job are limited by the kernel."""
    read = (
        "cd /sys/fs/cgroup",
        "cat pids/pids.max pids.max 2>/dev/null; true",
        "cat memory/memory.limit_in_bytes memory.max 2>/dev/null; true",
        "cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu.max 2>/dev/null; true",
    )
    pids, memory, quota, period = inside(sandbox, *read).split()

    assert (2048, MEMORY) == (int(pids), int(memory))
    assert CPUS == int(quota) / int(period)


def test_limits_without_settings():
    """Without settings, a job gets its share of the machine, and never all of it."""
    with contextlib.closing(DockerSite()) as site, site.sandbox() as sandbox:
        host = site.api.inspect_container(site.container(sandbox))["HostConfig"]
        machine = site.api.info()

    assert 2048 == host["PidsLimit"]
    assert 0 < host["Memory"] < machine["MemTotal"]
    assert host["MemorySwap"] == host["Memory"]
    assert machine["NCPU"] * 1_000_000_000 == host["NanoCpus"]


def test_no_way_to_the_engine(sandbox, inspected):
    """Neither the engine's socket nor anything else of the host is in the container."""
    mounts = inspected["Mounts"]
    assert {"volume"} == {mount["Type"] for mount in mounts}
    assert {"/mnt/workspace", "/mnt/spacelift-log"} == {
        m["Destination"] for m in mounts
    }
    assert not inspected["HostConfig"]["Privileged"]
    assert not inspected["HostConfig"].get("Devices")
    sockets = inside(sandbox, "find / -xdev -type s 2>/dev/null; true")
    assert "" == sockets


@pytest.mark.parametrize("which", ["PidMode", "UTSMode", "UsernsMode"])
def test_own_namespaces(inspected, which):
    """A job shares no namespace with the host."""
    assert "host" != inspected["HostConfig"][which]
    assert "private" == inspected["HostConfig"]["IpcMode"]


def test_engine_keeps_no_log(inspected):
    """The engine stores nothing of what a job prints."""
    assert "none" == inspected["HostConfig"]["LogConfig"]["Type"]


def test_inspect_holds_no_variables(site, inspected):
    """What the engine knows of a container is its image, its limits and our labels."""
    image = site.api.inspect_image(site.image)["Config"]["Env"] or []
    added = [entry for entry in inspected["Config"]["Env"] if entry not in image]

    assert ["TINI_KILL_PROCESS_GROUP=1"] == added
    labels = inspected["Config"]["Labels"]
    assert {
        f"{LABEL}.{name}"
        for name in ("instance", "pool", "job", "run", "phase", "attempt", "origin")
    } == {label for label in labels if label.startswith(LABEL)}
    assert "hunter2" not in json.dumps(inspected)


def test_secrets_are_in_memory_only(sandbox):
    """What a phase is given lies on a tmpfs that only the job's user can read, and nowhere else."""
    kind, mode, owner = inside(
        sandbox,
        "stat --file-system --format %T /run/spacelift; stat --format '%a %u:%g' /run/spacelift",
    ).split()
    options = (
        inside(sandbox, "grep ' /run/spacelift ' /proc/self/mounts")
        .split()[3]
        .split(",")
    )

    assert ("tmpfs", "700", "1983:1983") == (kind, mode, owner)
    assert {"noexec", "nosuid", "nodev"} <= set(options)
    secret = {"TOKEN": "given-in-a-variable"}
    assert "600 /run/spacelift/script" == inside(
        sandbox,
        'stat --format "%a %n" $(grep -rl "$TOKEN" /run/spacelift)',
        export=secret,
    )
    found = inside(sandbox, "grep -rl given-in-a /mnt /tmp 2>/dev/null || true")
    assert not found


def test_environment_of_the_program_holds_nothing(sandbox):
    """No variable of a phase is in the environment of the container's first processes."""
    found = inside(
        sandbox,
        "export TOKEN=hunter2",
        "for pid in 1 $PPID; do tr '\\0' '\\n' </proc/$pid/environ; done | grep -c hunter2 || true",
    )

    assert "0" == found


@pytest.mark.parametrize(
    "attempt",
    [
        "echo 1 >/proc/sys/kernel/randomize_va_space",
        "echo 1 >/proc/sysrq-trigger",
        "echo x >/sys/kernel/uevent_helper",
        "mkdir /sys/fs/cgroup/memory/mine || mkdir /sys/fs/cgroup/mine",
        "mount -t tmpfs tmpfs /mnt",
        "mknod /tmp/null c 1 3",
        "chown 0:0 /mnt/workspace",
        "touch /etc/passwd",
        "touch /usr/bin/terraform",
        "touch /mnt/spacelift-log/other",
        "echo x >/mnt/spacelift-log/entry",
        "mv /mnt/spacelift-log/entry /tmp",
        "dmesg",
        "cat /proc/kcore",
        "kill -0 0 && su -c true",
        "setpriv --reuid 0 true",
        "chroot / true",
        "date -s 2001-01-01",
    ],
)
def test_refused(sandbox, attempt):
    """What would change the machine, or the container around the job, is refused."""
    result, printed = run(sandbox, f"({attempt}) 2>&1")

    assert not result.ok, printed.decode()


def test_jobs_cannot_talk_to_each_other(site):
    """No traffic goes from one job to another, although they share a network."""
    listen = (
        "python3 -c '\nimport socket\n"
        'server = socket.create_server(("0.0.0.0", 8000))\n'
        "import threading, time\n"
        "threading.Thread(target=lambda: [server.accept() for _ in range(9)], daemon=True).start()\n"
        'socket.create_connection(("127.0.0.1", 8000), 2)\n'
        'open("listening", "w").close()\n'
        "time.sleep(60)\n' & "
        "while [ ! -e listening ]; do sleep 0.05; done"
    )
    connect = (
        "python3 -c '\nimport socket\n"
        'try:\n    socket.create_connection(("{address}", 8000), 2)\n'
        'except OSError as exc:\n    print("refused", exc)\n'
        'else:\n    print("connected")\n\''
    )
    with site.sandbox() as one, site.sandbox() as other:
        inside(one, listen)
        networks = site.api.inspect_container(site.container(one))["NetworkSettings"][
            "Networks"
        ]
        ((network, endpoint),) = networks.items()
        address = endpoint["IPAddress"]
        assert "connected" == inside(one, connect.format(address=address))

        assert inside(other, connect.format(address=address)).startswith("refused")

    options = site.api.inspect_network(network)["Options"]
    assert "false" == options["com.docker.network.bridge.enable_icc"]


def test_own_network_of_the_operator(site):
    """[capability 122] An operator's network is used as it is, and not removed."""
    name = f"operators-{site.instance.lower()}"
    network = site.api.create_network(name, driver="bridge")["Id"]
    try:
        with (
            contextlib.closing(DockerSite(network=name)) as theirs,
            theirs.sandbox() as sandbox,
        ):
            found = theirs.api.inspect_container(theirs.container(sandbox))
        assert [name] == list(found["NetworkSettings"]["Networks"])
        assert [] == site.api.networks(
            filters={"label": [f"spacelift.launcher.instance={theirs.instance}"]}
        )
    finally:
        site.api.remove_network(network)


def test_mounts_of_the_operator(site):
    """[capability 124] An operator's mounts are there, with the rights they were given."""
    mount = Mount(source="/etc", target="/host-etc", read_only=True)
    with site.sandbox(mounts=(mount,)) as sandbox:
        assert inside(sandbox, "test -e /host-etc/hostname && echo there") == "there"
        assert not run(sandbox, "touch /host-etc/x")[0].ok


def test_runtime_of_the_operator():
    """[capability 123] The runtime that the operator names is used, or nothing is."""
    with contextlib.closing(DockerSite(runtime="runc")) as site, site.sandbox() as one:
        found = site.api.inspect_container(site.container(one))
        assert "runc" == found["HostConfig"]["Runtime"]
        assert "1983" == inside(one, "id -u")
    with (
        contextlib.closing(DockerSite(runtime="not-installed")) as site,
        pytest.raises(EngineError),
        site.sandbox(),
    ):
        pass


@pytest.mark.parametrize("pids", [64, 4096])
def test_processes_by_the_setting(pids):
    """A container may have as many processes as the operator says."""
    with (
        contextlib.closing(DockerSite(worker_pids=pids)) as site,
        site.sandbox() as one,
    ):
        read = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null"
        assert str(pids) == inside(one, f"{read}; true")
        host = site.api.inspect_container(site.container(one))["HostConfig"]
        assert pids == host["PidsLimit"]
        if pids == 64:
            forks = "i=0; while [ $i -lt 80 ]; do sleep 30 & i=$((i+1)); done"
            result, printed = run(one, forks)
            assert not result.ok
            assert b"fork" in printed.lower()
