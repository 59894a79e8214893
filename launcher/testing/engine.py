"""
An engine without containers: a job is plain processes in a folder of its own.

For tests only, since nothing is isolated: a job may do what the test may do.  It
runs the very program that containers run, with the paths of a container replaced
by folders below a temporary one, and obeys the same signals.  A process that
leaves its process group is not found again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launcher import sight
from launcher.adapters.engines.entry import (
    EXIT,
    PROGRAM,
    SIGNALLER,
    Entry,
    finish,
)
from launcher.adapters.engines.ladder import STOP_SECONDS, descending
from launcher.cancel import CancelToken
from launcher.credentials import Login
from launcher.errors import EngineError, ImageUnavailable, WorkspaceUnusable
from launcher.heartbeat import beat
from launcher.images import Permit
from launcher.model import (
    INTERRUPTED,
    WORKSPACE,
    Exit,
    Found,
    PhaseScript,
    ResolvedImage,
    SandboxSpec,
)
from launcher.ports import Output, Sandbox
from launcher.sight import Stage
from launcher.tarstream import ChunkReader
from launcher.threads import helper


_LOG = "/mnt/spacelift-log"
_PRIVATE = "/run/spacelift"
_MOVED = (WORKSPACE, _LOG, _PRIVATE)
_EVERY_PROCESS, _OUR_GROUP = b" -- -1 ", b" 0 "
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 1 << 16
_LOOK_SECONDS = 0.01
_BEGIN_SECONDS = 2.0
_CONCLUDE_SECONDS = 10.0


class ShellEngine:
    """
    Implements `launcher.ports.ContainerEngine`.

    Jobs live in folders below *folder*.  Every image exists and is the machine
    itself, except for those named in `missing`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        self._folder = folder
        self._environment = {"PATH": _PATH, **(environment or {})}
        self._stop_seconds = stop_seconds
        self._running: dict[str, ShellSandbox] = {}
        self.missing: set[str] = set()
        self.moved: dict[str, str] = {}
        """Digests that names point to by now."""
        self.broken = ""
        """When set: why nothing works."""
        self.logins: list[Login | None] = []
        self.pulled: list[str] = []
        self.specs: list[SandboxSpec] = []

    def resolve(self, image: Permit, login: Login | None) -> ResolvedImage:
        self._check("resolving the image")
        self.logins.append(login)
        reference = image.reference
        if str(reference) in self.missing:
            raise ImageUnavailable(f"image {reference} does not exist")
        name = str(reference)
        made_up = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        digest = reference.digest or self.moved.get(name, made_up)
        return ResolvedImage(
            reference=str(reference),
            digest=digest,
            runnable=reference.pinned(digest).engine_name,
            local=reference.is_image_id,
            login=login,
        )

    def pull(
        self,
        image: ResolvedImage,
        *,
        say: Callable[[str], None] = lambda _: None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._check("pulling the image")
        if not image.local:
            self.pulled.append(image.runnable)

    @contextmanager
    def sandbox(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        self._check("making a sandbox")
        self.specs.append(spec)
        job = spec.admitted.job.id
        root = Path(tempfile.mkdtemp(prefix=f"{job.lower()}-", dir=self._folder))
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, root, ignore_errors=True)
            sandbox = ShellSandbox(
                root, spec, self._environment, stop_seconds=self._stop_seconds
            )
            undo.callback(sandbox.close)
            self._running[job] = sandbox
            undo.callback(self._running.pop, job, None)
            yield sandbox

    @contextmanager
    def adopt(self, job: str) -> Iterator[Sandbox | None]:
        self._check("looking for the container")
        before = self._running.get(job)
        if before is None:
            yield None
            return
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, before.root, ignore_errors=True)
            undo.callback(self._running.pop, job, None)
            sandbox = before.adopted()
            undo.callback(sandbox.close)
            self._running[job] = sandbox
            yield sandbox

    def found(self) -> tuple[Found, ...]:
        self._check("looking for containers")
        return tuple(
            Found(
                job=job,
                run=sandbox.spec.admitted.job.run.id,
                phase_class=sandbox.spec.phase_class,
                image=sandbox.spec.admitted.image,
                receipt=sandbox.spec.admitted.receipt,
                origin=sandbox.spec.origin,
            )
            for job, sandbox in self._running.items()
            if sandbox.filled
        )

    def kill(self, job: str) -> None:
        """End a job's processes, as somebody might who has nothing to do with us."""
        self._running[job].kill()

    def _check(self, doing: str) -> None:
        if self.broken:
            raise EngineError(
                f"the container engine failed while {doing}", details=self.broken
            )


class ShellSandbox:
    """One job's processes.  Implements `launcher.ports.Sandbox`."""

    def __init__(
        self,
        root: Path,
        spec: SandboxSpec,
        environment: Mapping[str, str],
        *,
        stop_seconds: float,
    ) -> None:
        self.root = root
        self.spec = spec
        self._environment = {"HOME": str(root), **environment}
        self._stop_seconds = stop_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._signallers: list[subprocess.Popen[bytes]] = []
        self._killed = False
        self._read = 0
        self._incomplete = False
        self._entry = Entry(self._printed())
        for folder, mode in zip(_MOVED, (0o755, 0o755, 0o700), strict=True):
            self._path(folder).mkdir(parents=True, exist_ok=True)
            self._path(folder).chmod(mode)
        self._path(f"{_LOG}/output").touch()
        # Held open, so that a job which removes the file removes no output.
        self._log = self._path(f"{_LOG}/output").open("rb")

    def fill(self, archive: Iterable[bytes]) -> None:
        try:
            with (
                sight.stage(Stage.CREATE),
                tarfile.open(fileobj=ChunkReader(archive), mode="r|") as tar,
            ):
                tar.extractall(self.root, filter=_of_nobody)  # noqa: S202
        except (tarfile.TarError, OSError) as exc:
            raise EngineError(
                "the container engine failed while preparing the workspace",
                details=str(exc),
            ) from exc
        program = self._path(f"{_LOG}/entry")
        program.write_bytes(self._moved(_tamed(PROGRAM)))
        self._path(f"{_LOG}/signal").write_bytes(self._moved(SIGNALLER))
        with sight.stage(Stage.START):
            self._process = subprocess.Popen(
                ["/bin/sh", program, *self._entry.arguments(self.spec)],
                cwd=self._path(WORKSPACE),
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )

    def adopted(self) -> ShellSandbox:
        """The same processes, as a later life finds them: nothing is read yet."""
        again = ShellSandbox(
            self.root, self.spec, self._environment, stop_seconds=self._stop_seconds
        )
        again._entry = Entry(again._printed(), self._entry.nonce)
        again._process = self._process
        return again

    @property
    def filled(self) -> bool:
        return self._process is not None

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
            descending(
                script,
                cancel,
                begun,
                self._signal,
                give_up=self.kill,
                stop_seconds=self._stop_seconds,
            ),
            self._never_beginning(begun)
            if sent
            else contextlib.nullcontext(CancelToken()) as never,
        ):
            if not sent:
                self._send(self._moved(self._entry.phase(script)))
            ended = self._entry.listen(script, output, begun)
        code = ended.code if ended else self._started.wait()
        return Exit(
            code=128 - code if code < 0 else code,
            oom_killed=ended.oom_killed if ended else False,
            container_lost=ended is None,
            volume_full=ended.volume_full if ended else False,
            log_incomplete=self._incomplete,
            unbegun=never.cancelled,
            at=ended.at if ended else None,
        )

    def begun(self) -> tuple[str, ...]:
        return self._entry.begun([self._path(f"{_LOG}/output").read_bytes()])

    def conclude(self, phases: int, output: Output) -> bool:
        self._send(finish(phases))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._started.wait(_CONCLUDE_SECONDS)
        self.kill()
        self._entry.rest(output)
        return self._started.wait() == 0

    @contextmanager
    def _never_beginning(self, begun: CancelToken) -> Iterator[CancelToken]:
        never = CancelToken()

        def look() -> None:
            if not begun.wait(_BEGIN_SECONDS):
                never.cancel("never began")
                self.kill()

        with helper("begin", look, lambda: begun.cancel("over")):
            yield never

    def read_file(self, path: str, *, limit: int) -> bytes | None:
        file = self._path(path)
        try:
            status = file.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise WorkspaceUnusable(
                f"{path} is not a regular file of at most {limit} bytes"
            )
        return file.read_bytes()

    def write_file(self, name: str, content: bytes) -> None:
        file = self._path(f"{WORKSPACE}/{name}")
        try:
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            else:
                file.unlink(missing_ok=True)
            file.touch(mode=0o600)
            file.write_bytes(content)
        except OSError as exc:
            raise EngineError(
                "the container engine failed while writing a file of the workspace",
                details=str(exc),
            ) from exc

    @contextmanager
    def workspace(self) -> Iterator[Iterator[bytes]]:
        self._send(EXIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._started.wait(self._stop_seconds)
        self.kill()
        with tempfile.TemporaryFile(dir=self.root) as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                tar.add(self._path(WORKSPACE), arcname=Path(WORKSPACE).name)
            file.seek(0)
            yield iter(functools.partial(file.read, _CHUNK), b"")

    def kill(self) -> None:
        """Like the end of a container: whoever is in it ends, too."""
        if self._process is not None and not self._killed:
            self._killed = True
            self._signal("SIGKILL")
            self._process.wait()
            for signaller in self._signallers:
                signaller.kill()
                signaller.wait()

    def close(self) -> None:
        self.kill()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._log.close()

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EngineError("a sandbox is filled before it is used")
        return self._process

    def _send(self, data: bytes) -> None:
        stdin = self._started.stdin
        with contextlib.suppress(BrokenPipeError):
            if stdin is not None:
                stdin.write(data)

    def _signal(self, name: str) -> None:
        if name == "SIGKILL":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._started.pid, signal.SIGKILL)
            return
        signaller = subprocess.Popen(
            ["/bin/sh", self._path(f"{_LOG}/signal"), name.removeprefix("SIG")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._signallers.append(signaller)
        if signaller.stdout is not None:
            with signaller.stdout:
                signaller.stdout.readline()

    def _printed(self) -> Iterator[bytes]:
        while self._started.poll() is None:
            yield from self._unread()
            beat()
            CancelToken().wait(_LOOK_SECONDS)
        self.kill()
        yield from self._unread()

    def _unread(self) -> Iterator[bytes]:
        if os.fstat(self._log.fileno()).st_size < self._read:
            self._incomplete, self._read = True, 0
        self._log.seek(self._read)
        while chunk := self._log.read(_CHUNK):
            self._read += len(chunk)
            yield chunk

    def _path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _moved(self, text: bytes) -> bytes:
        for path in _MOVED:
            text = text.replace(path.encode(), str(self._path(path)).encode())
        return text


def _tamed(program: bytes) -> bytes:
    """Out of its container the program must not signal every process there is."""
    if program.count(_EVERY_PROCESS) != 1:
        raise EngineError("the entry program cannot be run outside of a container")
    return program.replace(_EVERY_PROCESS, _OUR_GROUP)


def _of_nobody(member: tarfile.TarInfo, _: str) -> tarfile.TarInfo:
    # None leaves the owner to whoever unpacks; the stubs do not know.
    return member.replace(
        name=member.name.lstrip("/"),
        uid=None,  # type: ignore[arg-type]
        gid=None,  # type: ignore[arg-type]
        uname=None,  # type: ignore[arg-type]
        gname=None,  # type: ignore[arg-type]
        deep=False,
    )
