"""What only a real engine can break."""

import contextlib
import gc
import io
import json
import socket
import tarfile
import threading
import warnings

from given import a_job, eventually
from support.engines import RUNNER, DockerSite, files, permit, remove_all, run
from support.journals import a_journal
from support.relay import Relay
from ulid import ULID

import pytest

from launcher.adapters.engines.docker import LABEL, DockerEngine, connect
from launcher.cancel import CancelToken
from launcher.errors import EngineError, EngineUnusable, ImageUnavailable, LauncherError
from launcher.model import WORKSPACE
from launcher.reaper import Reaper
from launcher.settings import HostSettings, Settings
from launcher.wire.messages import Offer


pytestmark = [
    pytest.mark.services,
    # docker-py leaves a socket to the garbage collector when it cannot connect.
    pytest.mark.filterwarnings("ignore:unclosed .*socket:ResourceWarning"),
]

SECRET = "hunter2-for-the-engine"


@pytest.fixture(name="open_site")
def _open_site():
    with contextlib.ExitStack() as closing:

        def opened(**options):
            return closing.enter_context(contextlib.closing(DockerSite(**options)))

        yield opened


@pytest.fixture(name="journal")
def _journal():
    with a_journal() as journal:
        yield journal


@pytest.fixture(name="site", scope="module")
def _site():
    with contextlib.closing(DockerSite()) as site:
        yield site


# --- secrets


def test_no_secret_in_the_engine(site):
    """No variable of a phase is in the container's configuration, labels or arguments."""
    with site.sandbox(files(key=SECRET.encode())) as sandbox:
        run(sandbox, "true", export={"TOKEN": SECRET})
        run(sandbox, f"echo {SECRET} >/dev/null")
        known = [
            site.api.inspect_container(site.container(sandbox)),
            site.api.top(site.container(sandbox)),
            *(
                site.api.inspect_volume(name)
                for name in site.leftovers()
                if isinstance(name, str)
            ),
        ]

    assert SECRET not in json.dumps(known)


# --- memory


def test_out_of_memory(open_site):
    """A phase whose tool was killed for want of memory says so, and the next one runs."""
    site = open_site(worker_memory=64 << 20)
    eat = "python3 -c 'bytearray(200 << 20)'"
    with site.sandbox() as sandbox:
        eaten, _ = run(sandbox, f"{eat}; exit $?")
        failed, _ = run(sandbox, "exit 3")
        fine, _ = run(sandbox, f"{eat} || true")

    assert (137, True) == (eaten.code, eaten.oom_killed)
    assert (3, False) == (failed.code, failed.oom_killed)
    assert (0, False) == (fine.code, fine.oom_killed)


# --- images that have ideas of their own


@pytest.fixture(name="opinionated")
def _opinionated(site):
    """An image with an entrypoint, a command, a health check, volumes and a user."""
    dockerfile = f"""
        FROM {site.image}
        LABEL {LABEL}.instance={site.instance}
        USER root
        ENV OF_THE_IMAGE=yes
        ENTRYPOINT ["/bin/sh", "-c", "echo entrypoint; exit 9"]
        CMD ["echo", "command"]
        HEALTHCHECK --interval=1s CMD touch {WORKSPACE}/checked
        VOLUME /data {WORKSPACE}
        WORKDIR /nowhere
        STOPSIGNAL SIGUSR1
    """
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        tar.addfile(entry, io.BytesIO(dockerfile.encode()))
    context.seek(0)
    tag = f"spacelift-launcher/opinionated:{site.instance.lower()}"
    progress = site.api.build(
        fileobj=context,
        custom_context=True,
        tag=tag,
        rm=True,
        forcerm=True,
        decode=True,
    )
    said = list(progress)
    assert not [line for line in said if "error" in line]
    yield site.api.inspect_image(tag)["Id"]
    site.api.remove_image(tag, force=True)


def test_image_decides_nothing(site, opinionated):
    """Entrypoint, command, user, health check and stop signal of the image are ignored."""
    image = site.engine.resolve(permit(opinionated), None)
    site_image, site.image = site.image, opinionated
    try:
        with site.sandbox() as sandbox:
            result, printed = run(sandbox, "id -u", 'echo "$OF_THE_IMAGE"', "sleep 1.2")
            state = site.api.inspect_container(site.container(sandbox))["State"]
            checked = sandbox.read_file(f"{WORKSPACE}/checked", limit=1)
    finally:
        site.image = site_image

    assert (opinionated, True) == (image.runnable, image.local)
    assert (0, b"1983\nyes\n") == (result.code, printed)
    assert "Health" not in state
    assert checked is None


def test_volumes_of_the_image_are_removed(site, opinionated):
    """Volumes that the image declares do not outlive the job."""

    def volumes():
        return {volume["Name"] for volume in site.api.volumes()["Volumes"] or []}

    before = volumes()
    site_image, site.image = site.image, opinionated
    try:
        with site.sandbox() as sandbox:
            job = site.api.inspect_container(site.container(sandbox))
            anonymous = {
                m["Name"] for m in job["Mounts"] if m["Destination"] == "/data"
            }
            assert anonymous
            appeared = volumes() - before
    finally:
        site.image = site_image

    assert not volumes() & anonymous
    # Some of those that appeared may be of other tests, which end as well.
    nameless = {name for name in appeared if len(name) == 64}
    eventually(lambda: not volumes() & nameless)


# --- the reader of the log


def test_reader_is_replaced(site):
    """When the job kills what reads its log, no byte is lost and none comes twice."""
    count = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done"
    with site.sandbox() as sandbox:
        result, printed = run(
            sandbox,
            f"({count}) & counting=$!",
            "for _ in 1 2 3 4 5 6; do pkill -KILL -x tail; sleep 0.15; done; wait $counting",
            "echo end",
        )

    lines = printed.decode().splitlines()
    assert [f"line {i + 1}" for i in range(3000)] == lines[:-1]
    assert "end" == lines[-1]
    assert (0, False) == (result.code, result.log_incomplete)


def test_truncated_log_is_marked(site):
    """A job that shortens its log gets a log that is marked as incomplete."""
    with site.sandbox() as sandbox:
        result, printed = run(
            sandbox,
            "seq 100000; sleep 0.3",
            ": >/mnt/spacelift-log/output",
            "sleep 1.2; echo end",
        )

    assert result.log_incomplete
    assert printed.endswith(b"end\n")


def test_removed_container(site):
    """A container that somebody removed is lost, and its log may be incomplete."""

    def remove():
        site.api.remove_container(site.container(sandbox), force=True)

    with site.sandbox() as sandbox:
        result, printed = run(sandbox, "echo ready; sleep 60", on={b"ready\n": remove})

    assert (True, True) == (result.container_lost, result.log_incomplete)
    assert b"ready\n" == printed
    assert [] == site.leftovers()


def test_crowded_container(site):
    """A job that uses up its processes is reported as it ended, and its output arrives."""
    bomb = "python3 -c 'import os,time\n" + (
        "for _ in range(5000):\n"
        "    try:\n"
        "        if not os.fork(): time.sleep(60)\n"
        "    except OSError: break\n"
        'print("crowded", flush=True)\n\''
    )
    with site.sandbox() as sandbox:
        result, printed = run(sandbox, bomb, "exit 5")

    assert (5, False) == (result.code, result.container_lost)
    assert b"crowded\n" == printed


def test_crowded_container_can_be_ended(site):
    """A job that uses up its processes is interrupted like any other."""
    # Thousands of tracebacks would take a while.
    bomb = "python3 -c 'import os,signal,time\n" + (
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "for _ in range(5000):\n"
        "    try:\n"
        "        if not os.fork(): time.sleep(60)\n"
        "    except OSError: break\n"
        'print("crowded", flush=True)\n'
        "time.sleep(60)'"
    )
    cancel = CancelToken()
    with site.sandbox() as sandbox:
        ready = {b"crowded\n": lambda: cancel.cancel("test")}
        result, _ = run(sandbox, bomb, cancel=cancel, on=ready, grace=120)

    assert (130, False) == (result.code, result.container_lost)


# --- what belongs to whom


@pytest.fixture(name="canaries")
def _canaries(site):
    """A container and a volume of somebody else, in the launcher's network."""
    name = f"canary-{ULID()}".lower()
    labels = {f"{LABEL}.job": "x", f"{LABEL}.pool": "tests", "canary": site.instance}
    site.api.create_volume(name, labels=labels)
    config = site.api.create_container_config(site.image, ["true"], labels=labels)
    site.api.create_container_from_config(config, name)
    yield name
    site.api.remove_container(name, force=True)
    site.api.remove_volume(name, force=True)


def abandoned(site):
    """What a launcher that was killed leaves: volumes, and a container that ended."""
    job = str(ULID())
    labels = {f"{LABEL}.instance": site.instance, f"{LABEL}.job": job}
    site.api.create_volume(f"spacelift-{job}-workspace".lower(), labels=labels)
    config = site.api.create_container_config(site.image, ["true"], labels=labels)
    site.api.create_container_from_config(config, f"spacelift-{job}".lower())


def reaper(site, journal, **options):
    return Reaper(site.engine, journal, **{"age_seconds": 0.0, **options})


def test_reaper_removes_what_was_left(open_site, journal):
    """Leftovers of an earlier life of this launcher are removed, and counted."""
    site = open_site()
    abandoned(site)
    network = site.api.create_network(
        f"leftover-{site.instance}".lower(), labels={f"{LABEL}.instance": site.instance}
    )
    looking = reaper(site, journal)
    assert [] != site.leftovers()

    assert 3 == looking.reap()

    assert [] == site.leftovers()
    assert [] == site.api.networks(ids=[network["Id"]])
    assert (0, 3, 0) == (looking.reap(), looking.removed, looking.waiting)


def test_reaper_spares_the_young(open_site, journal):
    """What was made a moment ago may be somebody's who has not said so yet."""
    site = open_site()
    abandoned(site)

    assert 0 == reaper(site, journal, age_seconds=60).reap()
    assert 2 == reaper(site, journal, age_seconds=0).reap()


def test_reaper_only_says_what_it_would_do(open_site, journal):
    """A dry run removes nothing, and counts what is waiting."""
    site = open_site()
    abandoned(site)
    looking = reaper(site, journal, dry_run=True)

    assert (0, 2) == (looking.reap(), looking.waiting)
    assert [] != site.leftovers()


def test_reaper_spares_the_living(open_site, journal):
    """A job that the journal knows is not disturbed, whichever moment a look comes in."""
    site, done = open_site(), CancelToken()
    job = a_job(id=str(ULID()))
    journal.claiming(0, Offer(job=job.id, run=job.run.id), "claim")

    def look():
        while not done.wait(0.01):
            assert 0 == reaper(site, journal).reap()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        with site.sandbox(job=job) as sandbox:
            assert run(sandbox, "echo alive")[0].ok
    finally:
        done.cancel("test over")
        looking.join()


@pytest.mark.parametrize("phase", ["plan", "apply"])
def test_reaper_spares_what_may_be_changing_things(open_site, journal, phase):
    """A container that nobody knows is ended, unless an apply has begun in it."""
    site = open_site()
    looking = reaper(site, journal)
    with site.sandbox() as sandbox:
        result, _ = run(
            sandbox,
            "echo begun; sleep 2; echo over",
            name=phase,
            on={b"begun": looking.reap},
        )
        assert (phase == "apply") == result.ok
        looking.reap()
        assert [] == site.api.containers(filters=site.ours)


def test_launchers_are_strangers(open_site, canaries, journal):
    """Two launchers on one engine, and everybody else, leave each other alone."""
    one, other = open_site(), open_site()
    abandoned(one)
    with other.sandbox() as sandbox:
        assert 2 == reaper(one, journal).reap()
        assert run(sandbox, "echo alive")[0].ok
    assert [] == other.leftovers()
    one.engine.close()

    assert [canaries] == [
        v["Name"] for v in one.api.volumes({"name": canaries})["Volumes"]
    ]
    assert one.api.inspect_container(canaries)["State"]["Status"] == "created"
    assert [other.engine._network] == [
        network["Name"] for network in other.api.networks(filters=other.ours)
    ]


def test_network_goes_with_its_launcher(open_site):
    """The launcher's own network is removed when it ends."""
    site = DockerSite()
    assert 1 == len(site.api.networks(filters=site.ours))

    site.close()

    assert [] == open_site().api.networks(filters=site.ours)


def test_network_is_found_again(site):
    """A launcher that starts again uses the network it made before."""
    again = DockerEngine(site.api, Settings(), instance=site.instance, pool="tests")

    assert again._network == site.engine._network
    assert 1 == len(site.api.networks(filters=site.ours))


def test_the_interface_of_the_network_is_known_by_its_name(site):
    """Packet filters of the machine know runs by where they come in."""
    (network,) = site.api.networks(filters=site.ours)
    name = network["Options"]["com.docker.network.bridge.name"]

    assert f"spl-{site.instance[-11:].lower()}" == name
    assert len(name) <= 15  # the longest that the kernel takes


def test_a_network_of_an_earlier_version_is_left_to_the_reaper(site):
    """Its interface has another name, so it is not used, and removed once it is free."""
    former = f"spacelift-{site.instance.lower()}"
    labels = {"spacelift.launcher.instance": site.instance}
    site.api.create_network(former, labels=labels)
    again = DockerEngine(site.api, Settings(), instance=site.instance, pool="tests")

    assert former != again._network
    (leftover,) = again.leftovers()
    assert ("network", former) == (leftover.kind, leftover.name)
    assert again.remove(leftover)


# --- engines that are not there


@pytest.mark.parametrize(
    "host",
    ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1", "tcp://", "nonsense://x"],
)
def test_no_engine(host):
    """Without an engine, connecting fails with a sentence and an exit code of its own."""
    with warnings.catch_warnings():
        # docker-py's own: it forgets the socket of a connection that failed.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(EngineUnusable) as caught:
            connect(HostSettings(docker_host=host), connections=1)
        code = caught.value.exit_code
        del caught
        gc.collect()

    assert 4 == code


def test_engine_that_is_something_else():
    """What answers but is no engine is as good as none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(EngineUnusable):
            connect(HostSettings(docker_host=f"tcp://127.0.0.1:{port}"), connections=1)
        thread.join()


@pytest.fixture(name="relayed")
def _relayed():
    """A launcher whose engine can be cut off, and the relay that does it."""
    with Relay() as relay, contextlib.closing(DockerSite()) as keeper:
        site = DockerSite(host=relay.host)
        yield site, relay
        site.api.close()
        remove_all(keeper.api, site.ours)


def test_no_vendor_exceptions(relayed):
    """Whatever fails in the engine, callers only need to know our own errors."""
    site, relay = relayed
    image = site.engine.resolve(permit(site.image), None)
    relay.cut()

    for call in (
        lambda: site.engine.resolve(permit(site.image), None),
        lambda: site.engine.resolve(permit("registry.invalid/x:1"), None),
        lambda: site.engine.pull(pulled(image)),
        lambda: site.engine.leftovers(),
        lambda: site.engine.found(),
        lambda: site.engine.adopt("01JOB").__enter__(),
        lambda: site.sandbox().__enter__(),
    ):
        with pytest.raises(LauncherError):
            call()


def pulled(image):
    return type(image)(
        reference=image.reference,
        digest=image.digest,
        runnable=f"registry.invalid/x@{image.digest}",
        local=False,
    )


@pytest.mark.parametrize("moment", ["run", "read_file", "workspace"])
def test_engine_lost_in_the_middle(relayed, moment):
    """An engine that goes away in the middle of a job is an error of ours, at once."""
    site, relay = relayed
    with pytest.raises(EngineError) as caught, site.sandbox() as sandbox:
        match moment:
            case "run":
                run(sandbox, "echo ready; sleep 60", on={b"ready\n": relay.cut})
            case "read_file":
                relay.cut()
                sandbox.read_file(f"{WORKSPACE}/x", limit=1)
            case "workspace":
                relay.cut()
                with sandbox.workspace():
                    pass

    assert str(site.host) not in str(caught.value)


def test_image_without_a_shell(site):
    """An image in which nothing can be started ends the job with a sentence about it."""
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("nothing"))
    tag = f"spacelift-launcher/empty:{site.instance.lower()}"
    said = site.api.import_image_from_data(empty.getvalue(), *tag.split(":"))
    image, site.image = site.image, json.loads(said.splitlines()[-1])["status"]
    try:
        with pytest.raises(ImageUnavailable) as caught, site.sandbox() as sandbox:
            run(sandbox, "true")
    finally:
        image, site.image = site.image, image
        site.api.remove_image(image, force=True)

    assert "/bin/sh" in str(caught.value)
    assert [] == site.leftovers()


def test_runner_image_is_there():
    """The image that the other tests use is in the engine."""
    with contextlib.closing(DockerSite()) as site:
        assert site.image == site.api.inspect_image(RUNNER)["Id"]


def test_job_id_cannot_name_other_objects(site):
    """A job's id that is not fit for a name is refused by the engine, and nothing made."""
    with pytest.raises(EngineError), site.sandbox(job=a_job(id="x/../../y")):
        pass

    eventually(lambda: [] == site.leftovers())
