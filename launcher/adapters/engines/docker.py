"""
Containers, by way of the Docker Engine API (and whatever else speaks it).

Facts this module is built around, tried on engine 20.10 with docker-py 7.2:

- Log drivers alter or lose what is printed, and an attached stream loses what is
  printed while nobody listens.  So the driver is ``none`` and the entry script
  appends both streams to a file in a volume, which an exec of ``tail`` follows.
- The archive calls reach the volumes of a container that was never started, and
  unpack as root inside of that container's file system.  So volumes are filled
  through a helper container of their own, where nothing else can be overwritten.
- Values of variables show in ``inspect`` and lie in the engine's files.  So they
  travel by standard input, and the entry script keeps them on a tmpfs.
- With StdinOnce off, standard input stays open when its writer goes away.
- ``user=1983`` alone means group 0.
- An init forwards signals to its child only, or to a whole process group, of which
  ``timeout`` is no part, and in which wrappers forward them once more.  So a program
  of ours, run by an exec, picks who gets them.
- The client's timeout does not apply to streams, and a ``wait()`` that times out
  raises an exception of requests.
- An archive that is being read keeps every other call about its container waiting.
- A stream or socket of docker-py leaks its connection unless its response is
  closed as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import select
import socket
import tarfile
import tempfile
import time

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import docker
import docker.errors
import docker.types
import msgspec
import structlog

from docker.types import CancellableStream
from docker.utils import kwargs_from_env, version_lt

from launcher import sight
from launcher.adapters.engines.bounds import Bound, BoundedClient
from launcher.adapters.engines.docker_errors import VENDOR_ERRORS, translated
from launcher.adapters.engines.docker_images import DockerImages
from launcher.adapters.engines.entry import (
    EXIT,
    PROGRAM,
    SENT,
    SIGNALLER,
    Entry,
    finish,
)
from launcher.adapters.engines.frames import Printed, frames
from launcher.adapters.engines.ladder import STOP_SECONDS, descending
from launcher.adapters.engines.pulled_images import PulledImages
from launcher.cancel import CancelToken
from launcher.credentials import Login
from launcher.environment import WRITING
from launcher.errors import (
    CreateTimeout,
    EngineError,
    EngineTimeout,
    EngineUnusable,
    ImageUnavailable,
    LauncherError,
    StartTimeout,
    StopTimeout,
    WorkspaceUnusable,
)
from launcher.heartbeat import beat, pausing, watching
from launcher.images import Permit
from launcher.model import (
    GID,
    INTERRUPTED,
    UID,
    WORKSPACE,
    Exit,
    Found,
    Origin,
    PhaseScript,
    ResolvedImage,
    SandboxSpec,
)
from launcher.ports import Output, Sandbox
from launcher.reaper import Leftover
from launcher.retry import Pauses
from launcher.settings import ContainerSettings, HostSettings, Settings
from launcher.sight import Stage
from launcher.tarstream import ChunkReader
from launcher.threads import helper


log = structlog.get_logger()

LABEL = "spacelift.launcher"
BRIDGES = "spl-"
"""How the interfaces of runs' networks begin, by which packet filters know them."""
_OWNER = f"{LABEL}.instance"
_ORIGIN = f"{LABEL}.origin"
_NONCE_AT = 2  # of the entrypoint's words
_LOG_FOLDER = "/mnt/spacelift-log"
_LOG_FILE = f"{_LOG_FOLDER}/output"
_ENTRY_FILE = f"{_LOG_FOLDER}/entry"
_SIGNAL_FILE = f"{_LOG_FOLDER}/signal"
_RESERVE_FILE = f"{_LOG_FOLDER}/reserve"
_RESERVE = 1 << 16  # bytes, a multiple of a tar's block
# What does not begin like this is not the log but the engine, about its troubles.
_READER_BEGINS = b"\0"
_READER = f"printf '\\0' && exec tail -c \"+$1\" -f {_LOG_FILE}"
_NOTHING_STARTED = (126, 127)  # says the init
_ARCHIVE_CHUNK = 1 << 18
_REST_IN_MEMORY = 1 << 24
_OLDEST_API = "1.41"
_TIMEOUT_SECONDS = 60
_PING_SECONDS = 10.0
_DESCRIBE_SECONDS = 3.0
_DESCRIPTION = (
    *("OperatingSystem", "OSType", "Architecture", "KernelVersion", "NCPU", "MemTotal"),
    *("Driver", "CgroupDriver", "CgroupVersion", "DockerRootDir", "SecurityOptions"),
    *("DefaultRuntime", "Containers", "ContainersRunning", "Images", "Warnings"),
)
"""Of what it says; its proxies and registries may have passwords in them."""
_TELL_SECONDS = 30.0
"""How long the signaller may take, which walks a tree of processes."""
_LISTEN_SECONDS = 20.0
"""How long a silent container is listened to at once."""
_BEGIN_SECONDS = 10.0
_PATIENCE_SECONDS = 300.0
"""How long an engine that does not answer is waited for in the middle of a job."""
# Between a pull and the container, which keeps its image by itself.
_GRACE_SECONDS = 900.0


def connect(
    host: HostSettings, *, connections: int, timeout_seconds: int = _TIMEOUT_SECONDS
) -> docker.APIClient:
    """
    Connect to the engine that DOCKER_HOST, or else the default socket, names.

    No single answer may take longer than *timeout_seconds*.

    Raises:
        EngineUnusable: it does not answer, or is too old.
    """
    environment = {
        "DOCKER_HOST": host.docker_host or "",
        "DOCKER_TLS_VERIFY": "1" if host.docker_tls_verify else "",
        "DOCKER_CERT_PATH": str(host.docker_cert_path or ""),
    }
    given = {name: value for name, value in environment.items() if value}
    try:
        api = BoundedClient(
            version="auto",
            timeout=timeout_seconds,
            num_pools=connections,
            **kwargs_from_env(environment=given),
        )
        version = str(api.api_version)
        # The engine is named, never found through a proxy; and to look for one
        # at every call costs more than the call.
        api.trust_env = False
    except VENDOR_ERRORS as exc:
        raise EngineUnusable(
            "no container engine answers; is it running, and is DOCKER_HOST right?",
            details=str(exc),
        ) from exc
    if version_lt(version, _OLDEST_API):
        raise EngineUnusable(
            f"the container engine speaks API {version}; {_OLDEST_API} is the oldest"
            " that works"
        )
    return api


def described(api: docker.APIClient) -> dict[str, Any]:
    """
    Return what an engine says about itself that can be no secret.

    Raises:
        EngineError: it does not within a few seconds.
    """
    within = Bound(EngineTimeout, "describe itself", _DESCRIBE_SECONDS)
    with translated("describing itself"), within.held():
        machine, version = api.info(), api.version()
    shown = {name: machine.get(name) for name in _DESCRIPTION}
    return {"Version": version.get("Version"), "ApiVersion": api.api_version, **shown}


class DockerEngine:
    """
    Implements `launcher.ports.ContainerEngine` and `launcher.reaper.Objects`.

    Everything it makes carries *instance* in its labels, and it never touches
    what does not.
    """

    def __init__(
        self,
        api: docker.APIClient,
        settings: Settings,
        *,
        instance: str,
        pool: str,
        stop_seconds: float = STOP_SECONDS,
        patience_seconds: float = _PATIENCE_SECONDS,
        pulled: PulledImages | None = None,
    ) -> None:
        self._api = api
        self._stop_seconds = stop_seconds
        self._patience_seconds = patience_seconds
        self._images = DockerImages(api, settings.images, pulled)
        self._run_seconds = settings.run.run_timeout
        self._settings = settings.container
        self._instance = instance
        self._pool = pool
        workers = settings.run.workers
        with translated("asking for the machine's size"):
            machine = api.info()
        self.data = Path(machine["DockerRootDir"])
        # A tenth is for the engine, the launcher and the machine itself.
        share = int(machine["MemTotal"] * 0.9 / workers)
        self._memory = self._settings.worker_memory or share
        cpus = self._settings.worker_cpus or machine["NCPU"] / workers
        self._nano_cpus = int(cpus * 1_000_000_000)
        if self._settings.network:
            log.warning("network.not_ours", network=self._settings.network)
        self._network = self._settings.network or self._own_network()

    def ping(self) -> None:
        """
        Ask the engine whether it is there.

        Raises:
            EngineError: it does not say so within a few seconds.
        """
        within = Bound(EngineTimeout, "answer", _PING_SECONDS)
        with translated("asking whether it is there"), within.held():
            self._api.ping()

    def describe(self) -> dict[str, Any]:
        """Do what `described` does."""
        return described(self._api)

    # --- images

    def resolve(self, image: Permit, login: Login | None) -> ResolvedImage:
        return self._images.resolve(image, login)

    def pull(
        self,
        image: ResolvedImage,
        *,
        say: Callable[[str], None] = lambda _: None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._images.pull(image, say=say, cancel=cancel)

    def collect_images(self, used: Callable[[], float]) -> int:
        """Remove images of ours while *used*, per cent of the disk, is too much."""
        return self._images.collect(used, grace=self._run_seconds + _GRACE_SECONDS)

    # --- networks

    def _own_network(self) -> str:
        """One network for all runs of this launcher, on which they are strangers."""
        name = f"spacelift-runs-{self._instance.lower()}"
        bridge = f"{BRIDGES}{self._instance.lower()[-11:]}"  # 15 characters at most
        with translated("making the network for runs"):
            if not self._api.networks(names=[name]):
                self._api.create_network(
                    name,
                    driver="bridge",
                    options={
                        "com.docker.network.bridge.enable_icc": "false",
                        "com.docker.network.bridge.name": bridge,
                    },
                    labels=self._labels(),
                    check_duplicate=True,
                )
        return name

    def close(self) -> None:
        """Remove the network, if it is ours; containers of ours keep it alive."""
        if not self._settings.network:
            with contextlib.suppress(*VENDOR_ERRORS):
                self._api.remove_network(self._network)
        self._api.close()

    # --- sandboxes

    @contextmanager
    def sandbox(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        job = spec.admitted.job.id
        name = f"spacelift-{job.lower()}"
        labels = self._labels(
            job=job, run=spec.admitted.job.run.id, phase=spec.phase_class
        )
        with self._removing(job) as undo:
            creating = Bound(
                CreateTimeout, "make the container", self._settings.create_timeout
            )
            for volume in _volumes(name):
                with translated("making a volume"), creating.held():
                    self._api.create_volume(volume, labels=labels)
            sandbox = _DockerSandbox(
                self._api,
                name,
                creating=creating,
                settings=self._settings,
                stop_seconds=self._stop_seconds,
                patience_seconds=self._patience_seconds,
            )
            undo.callback(sandbox.close)
            sandbox.prepare(
                functools.partial(self._config, spec, {**labels, **_described(spec)})
            )
            yield sandbox

    @contextmanager
    def adopt(self, job: str) -> Iterator[Sandbox | None]:
        name = f"spacelift-{job.lower()}"
        with translated("looking for the container"):
            try:
                container = self._api.inspect_container(name)
            except docker.errors.NotFound:
                container = None
        if container and container["Config"]["Labels"].get(_OWNER) != self._instance:
            raise EngineError("the container is another launcher's", details=name)
        with self._removing(job) as undo:
            if container is None or container["State"]["Status"] == "created":
                yield None
                return
            sandbox = _DockerSandbox(
                self._api,
                name,
                nonce=container["Config"]["Entrypoint"][_NONCE_AT],
                settings=self._settings,
                stop_seconds=self._stop_seconds,
                patience_seconds=self._patience_seconds,
            )
            undo.callback(sandbox.close)
            yield sandbox

    def found(self) -> tuple[Found, ...]:
        label = [f"{_OWNER}={self._instance}", _ORIGIN]
        with translated("looking for containers"):
            containers = self._api.containers(all=True, filters={"label": label})
        return tuple(
            _found(container["Labels"])
            for container in containers
            if container["State"] != "created"
        )

    @contextmanager
    def _removing(self, job: str) -> Iterator[contextlib.ExitStack]:
        """Leave nothing of *job* behind; what cannot be removed in time is reaped."""
        name = f"spacelift-{job.lower()}"
        try:
            with contextlib.ExitStack() as undo:
                yield undo
        finally:
            removing = _ending(self._settings)
            for container in (name, f"{name}-filler"):
                self._remove_container(container, removing)
            for volume in reversed(_volumes(name)):
                self._remove_volume(volume, removing)

    def leftovers(self) -> tuple[Leftover, ...]:
        """Everything that carries *instance*, but for the network that is in use."""
        ours = {"label": [f"{_OWNER}={self._instance}"]}
        with translated("looking for leftovers"):
            containers = self._api.containers(all=True, filters=ours)
            volumes = self._api.volumes(filters=ours)["Volumes"] or []
            networks = self._api.networks(filters=ours)
        return (
            *(
                Leftover(
                    kind="container",
                    name=each["Names"][0].lstrip("/"),
                    job=each["Labels"].get(f"{LABEL}.job", ""),
                    created_at=float(each["Created"]),
                    running=each["State"] == "running",
                )
                for each in containers
            ),
            *(
                Leftover(
                    kind="volume",
                    name=each["Name"],
                    job=each["Labels"].get(f"{LABEL}.job", ""),
                    created_at=_seconds(each["CreatedAt"]),
                )
                for each in volumes
            ),
            *(
                Leftover(
                    kind="network",
                    name=each["Name"],
                    job=each["Labels"].get(f"{LABEL}.job", ""),
                    created_at=_seconds(each["Created"]),
                )
                for each in networks
                if each["Name"] != self._network
            ),
        )

    def changing(self, leftover: Leftover) -> bool:
        try:
            with translated("reading a leftover's log"):
                config = self._api.inspect_container(leftover.name)["Config"]
                sandbox = _DockerSandbox(
                    self._api,
                    leftover.name,
                    nonce=config["Entrypoint"][_NONCE_AT],
                    settings=self._settings,
                    stop_seconds=self._stop_seconds,
                    patience_seconds=self._patience_seconds,
                )
                return not WRITING.isdisjoint(sandbox.unfinished())
        # While it goes, its log may be gone already, or be half of one.
        except (LauncherError, tarfile.TarError, LookupError, TypeError) as exc:
            log.warning("leftover.unknown", name=leftover.name, error=str(exc))
            return True

    def remove(self, leftover: Leftover) -> bool:
        removing = _ending(self._settings)
        match leftover.kind:
            case "container":
                return self._remove_container(leftover.name, removing)
            case "volume":
                return self._remove_volume(leftover.name, removing)
            case _:
                return self._insist(
                    leftover.name,
                    lambda: self._api.remove_network(leftover.name),
                    removing,
                )

    def _labels(self, **facts: str) -> dict[str, str]:
        given = {"instance": self._instance, "pool": self._pool, **facts}
        return {f"{LABEL}.{name}": value for name, value in given.items()}

    def _config(
        self, spec: SandboxSpec, labels: Mapping[str, str], entry: Entry
    ) -> _Config:
        name = f"spacelift-{spec.admitted.job.id.lower()}"
        volumes = [
            docker.types.Mount(target, f"{name}-{kind}", type="volume", no_copy=True)
            for target, kind in ((WORKSPACE, "workspace"), (_LOG_FOLDER, "log"))
        ]
        extra = [
            docker.types.Mount(
                mount.target, mount.source, type="bind", read_only=mount.read_only
            )
            for mount in spec.mounts
        ]
        host = self._api.create_host_config(
            mounts=[*volumes, *extra],
            log_config=docker.types.LogConfig(type="none"),
            network_mode=self._network,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            pids_limit=self._settings.worker_pids,
            mem_limit=self._memory,
            memswap_limit=self._memory,
            nano_cpus=self._nano_cpus,
            ipc_mode="private",
            init=True,
            runtime=self._settings.runtime or None,
            tmpfs={
                "/run/spacelift": "rw,noexec,nosuid,nodev,size=16m,mode=0700,"
                f"uid={UID},gid={GID}"
            },
        )
        config = {
            "Image": spec.admitted.image.runnable,
            "User": f"{UID}:{GID}",
            "WorkingDir": WORKSPACE,
            "Entrypoint": ["/bin/sh", _ENTRY_FILE, *entry.arguments(spec)],
            "Cmd": [],
            "Env": ["TINI_KILL_PROCESS_GROUP=1"],
            "Labels": dict(labels),
            "Healthcheck": {"Test": ["NONE"]},
            "OpenStdin": True,
            "StdinOnce": False,
            "AttachStdin": True,
            "AttachStdout": False,
            "AttachStderr": False,
            "Tty": False,
            "HostConfig": host,
        }
        filler = {
            "Image": spec.admitted.image.runnable,
            "Entrypoint": ["/never-started"],
            "Labels": dict(labels),
            "NetworkDisabled": True,
            "HostConfig": self._api.create_host_config(
                mounts=volumes,
                network_mode="none",
                log_config=docker.types.LogConfig(type="none"),
            ),
        }
        return _Config(container=config, filler=filler)

    def _remove_container(self, name: str, within: Bound) -> bool:
        return self._insist(
            name, lambda: self._api.remove_container(name, v=True, force=True), within
        )

    def _remove_volume(self, name: str, within: Bound) -> bool:
        return self._insist(
            name, lambda: self._api.remove_volume(name, force=True), within
        )

    def _insist(self, name: str, remove: Callable[[], None], within: Bound) -> bool:
        """Try twice; what stays is the reaper's, and the operator is told."""
        for last in (False, True):
            try:
                with within.held():
                    remove()
            except docker.errors.NotFound:
                return True
            except (EngineError, *VENDOR_ERRORS) as exc:
                if last:
                    log.warning("engine.not_removed", object=name, error=str(exc))
            else:
                return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    container: dict[str, Any]
    filler: dict[str, Any]


class _DockerSandbox:
    """One job's container.  Implements `launcher.ports.Sandbox`."""

    def __init__(
        self,
        api: docker.APIClient,
        name: str,
        *,
        nonce: str = "",
        creating: Bound | None = None,
        settings: ContainerSettings,
        stop_seconds: float,
        patience_seconds: float,
    ) -> None:
        self._since = sight.now()
        self._api = api
        self._name = name
        self._creating = creating
        self._settings = settings
        self._stop_seconds = stop_seconds
        self._stdin: _Stdin | None = None
        self._read = 0  # bytes of the log file that were followed
        self._reader: Any = None  # the stream that is being followed
        self._given_up = False
        self._incomplete = False
        self._patience_seconds = patience_seconds
        self._printed = self._follow()
        self._entry = Entry(self._printed, nonce)
        self._config: _Config | None = None

    def prepare(self, make_config: Callable[[Entry], _Config]) -> None:
        """Find out what the container is made of; one that is there needs nothing."""
        self._config = make_config(self._entry)

    def fill(self, archive: Iterable[bytes]) -> None:
        if self._config is None or self._creating is None:
            raise EngineError("a sandbox that was adopted is filled already")
        filler = f"{self._name}-filler"
        with (
            sight.stage(Stage.CREATE, since=self._since),
            translated("preparing the workspace"),
            self._creating.held(),
        ):
            self._create(filler, self._config.filler)
            self._api.put_archive(filler, "/", _with_own_files(archive))
            self._api.remove_container(filler, v=True, force=True)
            self._create(self._name, self._config.container)
        seconds = self._settings.start_timeout
        starting = Bound(StartTimeout, "start the container", seconds)
        with (
            sight.stage(Stage.START),
            translated("starting the container"),
            starting.held(),
        ):
            self._stdin = _Stdin(self._api, self._name)
            self._api.start(self._name)

    def _create(self, name: str, config: dict[str, Any]) -> None:
        self._api.create_container_from_config(  # type: ignore[no-untyped-call]
            config, name
        )

    def run(
        self,
        script: PhaseScript,
        output: Output,
        cancel: CancelToken,
        *,
        sent: bool = False,
    ) -> Exit:
        if cancel.cancelled and not sent:
            return Exit(code=INTERRUPTED)
        begun = CancelToken()
        with (
            translated(f"running {script.name}"),
            descending(
                script,
                cancel,
                begun,
                self._signal,
                give_up=self._stop_listening,
                stop_seconds=self._stop_seconds,
            ),
            self._never_beginning(script.name, begun) if sent else _nothing() as never,
        ):
            if not sent:
                # Should nobody read it any more, what follows finds out why.
                self._send(self._entry.phase(script))
            ended = self._entry.listen(script, output, begun)
            if ended is None:
                ended = self._ended_early()
            return dataclasses.replace(
                ended,
                log_incomplete=ended.log_incomplete or self._incomplete,
                unbegun=never.cancelled,
            )

    def begun(self) -> tuple[str, ...]:
        with translated("reading the log"):
            return self._entry.begun(self._rest())

    def unfinished(self) -> tuple[str, ...]:
        """Names of phases that have begun and not ended."""
        with translated("reading the log"):
            return self._entry.unfinished(self._rest())

    def conclude(self, phases: int, output: Output) -> bool:
        ending, over = _ending(self._settings), CancelToken()
        half = self._settings.stop_timeout / 2

        def insist() -> None:
            if pausing(over, half):
                return
            try:
                with ending.held(), translated("ending the container"):
                    self._api.kill(self._name, "SIGKILL")
            except EngineError as exc:
                log.warning("container.not_killed", error=str(exc))
            if not pausing(over, half):
                self._stop_listening()

        name = f"end-{self._name}"
        with (
            translated("ending the container"),
            helper(name, watching(name, insist), lambda: over.cancel("over")),
        ):
            self._send(finish(phases))
            self._entry.rest(output)
        with translated("ending the container"), ending.held():
            return bool(self._state()["ExitCode"] == 0)

    @contextmanager
    def _never_beginning(self, phase: str, begun: CancelToken) -> Iterator[CancelToken]:
        """
        End the container when *phase* does not begin; the token says that it did not.

        It may have been handed over in part, and would take whatever is sent next
        for the rest of it.
        """
        over, never = CancelToken(), CancelToken()
        size = self._size()

        def look() -> None:
            until = time.monotonic() + _BEGIN_SECONDS
            while not over.wait(0.1) and not begun.cancelled:
                beat()
                if self._read < size:  # the mark may be among what is still to be read
                    until = time.monotonic() + _BEGIN_SECONDS
                elif time.monotonic() > until:
                    log.warning("phase.never_began", phase=phase)
                    never.cancel("never began")
                    self._kill(over)
                    return

        name = f"begin-{phase}"
        with helper(name, watching(name, look), lambda: over.cancel("over")):
            yield never

    def _size(self) -> int:
        """Bytes of the log by now."""
        try:
            stream, found = self._api.get_archive(self._name, _LOG_FILE)
        except docker.errors.NotFound:
            return 0
        stream.close()
        return int(found["size"])

    def read_file(self, path: str, *, limit: int) -> bytes | None:
        with translated("reading a file of the workspace"):
            try:
                stream, _ = self._api.get_archive(self._name, path)
            except docker.errors.NotFound:
                return None
            except docker.errors.APIError as exc:
                if "not a directory" in str(exc):
                    return None
                raise
            with contextlib.closing(stream), _first_member(stream) as (tar, member):
                if not member.isreg() or member.size > limit:
                    raise WorkspaceUnusable(
                        f"{path} is not a regular file of at most {limit} bytes"
                    )
                content = tar.extractfile(member)
                return content.read() if content else b""

    def write_file(self, name: str, content: bytes) -> None:
        # Unpacked in the container's own root, and in place of whatever has the name:
        # the job owns the folder, but it can lead nowhere else.
        file = tarfile.TarInfo(name)
        file.mode, file.uid, file.gid = 0o600, UID, GID
        file.size, file.mtime = len(content), int(time.time())
        padding = bytes(-file.size % tarfile.BLOCKSIZE)
        archive = file.tobuf() + content + padding + bytes(2 * tarfile.BLOCKSIZE)
        with translated("writing a file of the workspace"):
            self._api.put_archive(self._name, WORKSPACE, archive)

    @contextmanager
    def workspace(self) -> Iterator[Iterator[bytes]]:
        with translated("reading the workspace"):
            self._send(EXIT)
            with _ending(self._settings).held():
                self._api.stop(self._name, timeout=int(self._stop_seconds))
            stream, _ = self._api.get_archive(self._name, WORKSPACE, _ARCHIVE_CHUNK)
            with contextlib.closing(stream):
                yield stream

    def close(self) -> None:
        self._printed.close()
        if self._stdin:
            self._stdin.close()

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(*VENDOR_ERRORS):  # the container may have ended
            if self._stdin is None:
                self._stdin = _Stdin(self._api, self._name)
            self._stdin.send(data)

    def _signal(self, signal: str) -> None:
        with translated("signalling the container"):
            if signal == "SIGKILL" or not self._told(signal.removeprefix("SIG")):
                self._api.kill(self._name, signal)

    def _kill(self, over: CancelToken) -> None:
        """End the container, as soon as there is an engine that does it."""
        for pause in Pauses():
            try:
                self._signal("SIGKILL")
            except EngineError as exc:
                log.warning("container.not_killed", error=exc.details)
            if over.wait(pause):
                return

    def _told(self, signal: str) -> bool:
        """Let the signaller tell the phase; False when it cannot even start."""
        command = ["/bin/sh", _SIGNAL_FILE, signal]
        signaller = self._api.exec_create(self._name, command)["Id"]
        try:
            stream = self._api.exec_start(signaller, stream=True)
        except docker.errors.APIError:  # there is no room for another process
            return False
        over = CancelToken()

        def cut() -> None:
            if not over.wait(_TELL_SECONDS):
                stream.close()

        with (
            _closing(stream),
            helper(f"tell-{self._name}", cut, lambda: over.cancel("told")),
        ):
            said = b""
            for part in stream:
                said += part
                if SENT in said:
                    return True
        return bool(self._api.exec_inspect(signaller)["ExitCode"] == 0)

    def _stop_listening(self) -> None:
        """The container cannot be ended, or its engine does not answer any more."""
        self._given_up = True
        if self._reader is not None:
            self._reader.close()

    def _follow(self) -> Generator[bytes]:
        """
        Everything the container prints, until it is gone and all is read.

        One for all phases: the next one goes on where the last one stopped.
        """
        while True:
            try:
                for chunk in self._tail():
                    self._read += len(chunk)
                    yield chunk
            except docker.errors.APIError:
                raise
            except VENDOR_ERRORS as exc:
                self._wait_for_the_engine(exc)
                continue
            # The reader ended: with its container, or killed by the job, or by us.
            if self._given_up:
                raise _ending(self._settings).over()
            if not self._running():
                break
            _pause()
        yield from self._rest()

    def _running(self) -> bool:
        """Whether the container runs, as soon as there is an engine to say so."""
        while True:
            try:
                return bool(self._state()["Running"])
            except docker.errors.APIError:
                raise
            except VENDOR_ERRORS as exc:
                self._wait_for_the_engine(exc)

    def _wait_for_the_engine(self, trouble: Exception) -> None:
        """
        Wait until the engine answers again: it may be in the middle of a restart.

        Raises *trouble* when it takes too long, or when nobody wants to wait.
        """
        log.warning("engine.out_of_reach", error=str(trouble))
        # What was connected to the engine is not connected to the next one.
        if self._stdin:
            with contextlib.suppress(*VENDOR_ERRORS):
                self._stdin.close()
            self._stdin = None
        until = time.monotonic() + self._patience_seconds
        while not self._given_up and time.monotonic() < until:
            _pause()
            with contextlib.suppress(*VENDOR_ERRORS):
                self._api.ping()
                log.info("engine.back")
                return
        if self._given_up:
            raise _ending(self._settings).over() from trouble
        raise trouble

    def _tail(self) -> Iterator[bytes]:
        command = ["/bin/sh", "-c", _READER, "reader", str(self._read + 1)]
        try:
            reader = self._api.exec_create(self._name, command)
            stream = self._api.exec_start(reader["Id"], stream=True, demux=True)
            self._reader = stream
            if self._given_up:
                stream.close()
        except docker.errors.APIError:
            if self._state()["Running"]:
                raise
            return
        with _closing(stream):
            begun = False
            for printed, complaint in followed(stream):
                if complaint:
                    log.warning("container.log_disturbed", said=complaint[:200])
                    self._incomplete = True
                if printed and not begun:
                    if not printed.startswith(_READER_BEGINS):
                        log.warning("container.not_followed", said=printed[:200])
                        return
                    begun = True
                    yield printed.removeprefix(_READER_BEGINS)
                elif printed:
                    yield printed

    def _rest(self) -> Iterator[bytes]:
        """What the container printed last, once it is gone."""
        try:
            stream, stat = self._api.get_archive(self._name, _LOG_FILE, _ARCHIVE_CHUNK)
        except docker.errors.NotFound:
            self._incomplete = True
            return
        # Kept here, because nothing else can be asked about the container for as long
        # as the stream is open, and whoever listens may take his time.
        with tempfile.SpooledTemporaryFile(max_size=_REST_IN_MEMORY) as rest:
            with contextlib.closing(stream):
                if stat["size"] < self._read:
                    self._incomplete = True
                if stat["size"] > self._read:
                    _copy_file(stream, rest, skip=self._read)
            rest.seek(0)
            while part := rest.read(_ARCHIVE_CHUNK):
                yield part

    def _ended_early(self) -> Exit:
        state = self._state()
        if self._entry.lacking:
            raise ImageUnavailable(
                f"the image lacks {self._entry.lacking}, without which no run can be"
                " carried out in it"
            )
        if not self._read and state["ExitCode"] in _NOTHING_STARTED:
            raise ImageUnavailable(
                "nothing can be started in the image; it needs a /bin/sh"
            )
        return Exit(
            code=state["ExitCode"],
            oom_killed=state["OOMKilled"],
            container_lost=True,
        )

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = self._api.inspect_container(self._name)["State"]
        except docker.errors.NotFound:
            return {"Running": False, "ExitCode": 137, "OOMKilled": False}
        return state


class _Stdin:
    """The container's standard input, for as long as we want to write to it."""

    def __init__(self, api: docker.APIClient, container: str) -> None:
        self._stream = api.attach_socket(container, {"stdin": 1, "stream": 1})
        self._socket: socket.socket = getattr(self._stream, "_sock", self._stream)
        self._socket.settimeout(_TIMEOUT_SECONDS)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        # Closing a stream twice is harmless, closing its response after it is not.
        if (response := getattr(self._stream, "_response", None)) is not None:
            response.close()
        self._stream.close()


def _with_own_files(archive: Iterable[bytes]) -> Iterator[bytes]:
    """The log and the entry script, in a folder in which a job replaces nothing."""
    folder = tarfile.TarInfo(_LOG_FOLDER.strip("/"))
    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    output = tarfile.TarInfo(_LOG_FILE.strip("/"))
    output.mode, output.uid, output.gid = 0o644, UID, GID
    entry = tarfile.TarInfo(_ENTRY_FILE.strip("/"))
    entry.mode, entry.size = 0o555, len(PROGRAM)
    reserve = tarfile.TarInfo(_RESERVE_FILE.strip("/"))
    reserve.mode, reserve.uid, reserve.gid = 0o644, UID, GID
    reserve.size = _RESERVE
    signaller = tarfile.TarInfo(_SIGNAL_FILE.strip("/"))
    signaller.mode, signaller.size = 0o555, len(SIGNALLER)
    yield folder.tobuf() + output.tobuf()
    for member, content in ((entry, PROGRAM), (signaller, SIGNALLER)):
        yield member.tobuf() + content + bytes(-member.size % tarfile.BLOCKSIZE)
    yield reserve.tobuf() + b"-" * _RESERVE
    yield from archive


def _ending(settings: ContainerSettings) -> Bound:
    """From now on a container is ended, or removed."""
    return Bound(StopTimeout, "end the container", settings.stop_timeout)


def _volumes(name: str) -> tuple[str, str]:
    return f"{name}-workspace", f"{name}-log"


@contextmanager
def _nothing() -> Iterator[CancelToken]:
    yield CancelToken()


def _described(spec: SandboxSpec) -> dict[str, str]:
    """Labels with which the container can be adopted by who knows nothing else."""
    image, origin = spec.admitted.image, spec.origin
    facts = {
        "origin": origin,
        "image": dataclasses.replace(image, login=None),
        "receipt": spec.admitted.receipt,
    }
    return {
        f"{LABEL}.attempt": str(origin.attempt),
        _ORIGIN: msgspec.json.encode(facts).decode(),
    }


def _seconds(moment: str) -> float:
    """Seconds since 1970 of a time as the engine writes it."""
    return datetime.fromisoformat(moment).timestamp()


class _Facts(msgspec.Struct, frozen=True):
    origin: Origin
    image: ResolvedImage
    receipt: str


def _found(labels: Mapping[str, str]) -> Found:
    facts = msgspec.json.decode(labels[_ORIGIN], type=_Facts)
    return Found(
        job=labels[f"{LABEL}.job"],
        run=labels[f"{LABEL}.run"],
        phase_class=labels[f"{LABEL}.phase"],
        image=facts.image,
        receipt=facts.receipt,
        origin=facts.origin,
    )


@contextmanager
def _closing(stream: CancellableStream[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        stream.close()
        stream._response.close()  # type: ignore[attr-defined] # noqa: SLF001


def followed(stream: CancellableStream[Any]) -> Iterator[Printed]:
    """What docker-py would read from *stream*, which ends when it breaks, too."""
    connection = stream._response.raw._fp.fp  # type: ignore[attr-defined] # noqa: SLF001
    used: socket.socket = connection.raw._sock  # noqa: SLF001
    used.settimeout(0)
    with contextlib.suppress(OSError):
        yield from frames(connection, lambda: _listen(used))


def _listen(used: socket.socket) -> None:
    """
    Wait until there is something to read, for a while; whoever waits is alive.

    Raises:
        OSError: the connection was closed.
    """
    beat()
    number = used.fileno()
    if number < 0:
        raise OSError(errno.EBADF, "closed meanwhile")
    poll = select.poll()
    poll.register(number, select.POLLIN | select.POLLPRI)
    poll.poll(_LISTEN_SECONDS * 1000)


@contextmanager
def _first_member(
    stream: Iterable[bytes],
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with tarfile.open(fileobj=ChunkReader(stream), mode="r|") as tar:
        member = tar.next()
        if member is None:
            raise WorkspaceUnusable("the container engine gave an empty archive")
        yield tar, member


def _copy_file(archive: Iterable[bytes], into: IO[bytes], *, skip: int) -> None:
    """Copy an archive's only file, but for its first *skip* bytes."""
    with _first_member(archive) as (tar, member):
        content = tar.extractfile(member)
        while content and (part := content.read(_ARCHIVE_CHUNK)):
            into.write(part[skip:])
            skip = max(skip - len(part), 0)


def _pause() -> None:
    CancelToken().wait(0.2)
