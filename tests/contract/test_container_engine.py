"""What every engine promises; the fake one first, then the real one."""

import contextlib
import os
import secrets
import tarfile
import threading
import time

from given import PATIENCE, a_job, eventually
from support.engines import DockerSite, Printed, ShellSite, files, permit, run
from support.hearts import Watching
from ulid import ULID

import pytest

from launcher.adapters.engines import docker
from launcher.cancel import CancelToken
from launcher.errors import EngineError, ImageUnavailable, WorkspaceUnusable
from launcher.heartbeat import watched
from launcher.model import WORKSPACE, Origin
from launcher.tarstream import Archive, ChunkReader


PLAN = f"{WORKSPACE}/plan"
SAVING_TOOL = b"""#!/bin/sh
trap 'echo saving; echo state >saved; exit 3' INT
echo ready
while :; do sleep 0.05; done
"""
STUBBORN_TOOL = b"""#!/bin/sh
trap 'echo no' INT
trap 'echo well; exit 4' TERM
echo ready
while :; do sleep 0.05; done
"""
DEAF_TOOL = b"""#!/bin/sh
trap '' INT TERM
echo ready
while :; do sleep 0.05; done
"""


@pytest.fixture(
    name="site",
    scope="module",
    params=["shell", pytest.param("docker", marks=pytest.mark.services)],
)
def _site(request, tmp_path_factory):
    if request.param == "shell":
        yield ShellSite(tmp_path_factory.mktemp("engine"))
        return
    with contextlib.closing(DockerSite()) as site:
        yield site


@pytest.fixture(name="sandbox")
def _sandbox(site):
    with site.sandbox() as sandbox:
        yield sandbox


# --- after a restart of the launcher


def test_adopted_container_goes_on(site):
    """Another life sees each phase that was sent, byte for byte, and sends the next."""
    with site.sandbox() as first:
        run(first, "echo one", "export KEPT=kept", name="initialize")
        run(first, "echo two", "(exit 3)", name="plan")
        with site.engine.adopt(first.job) as second:
            assert ("initialize", "plan") == second.begun()
            result, printed = run(second, name="initialize", sent=True)
            assert (0, b"one\n") == (result.code, printed)
            result, printed = run(second, name="plan", sent=True)
            assert (3, b"two\n") == (result.code, printed)
            result, printed = run(second, "echo three $KEPT", name="after_run")
            assert (True, b"three kept\n") == (result.ok, printed)
    assert [] == site.leftovers()


def test_adopted_phase_is_awaited(site):
    """A phase that is under way when its launcher comes back is followed to its end."""
    with site.sandbox() as first, contextlib.ExitStack() as later:
        begun = threading.Event()
        hook = "echo begun; sleep 1; echo ended"
        thread = threading.Thread(
            target=run, args=(first, hook), kwargs={"on": {b"begun": begun.set}}
        )
        thread.start()
        later.callback(thread.join)
        assert begun.wait(PATIENCE)
        with site.engine.adopt(first.job) as second:
            result, printed = run(second, sent=True)
            assert (True, b"begun\nended\n") == (result.ok, printed)


def test_adopted_phase_can_be_cancelled(site):
    """The ladder is there for a phase that an earlier life has sent, too."""
    with site.sandbox(files(tool=SAVING_TOOL)) as first, contextlib.ExitStack() as end:
        begun, cancel = threading.Event(), CancelToken()
        thread = threading.Thread(
            target=run, args=(first, "./tool"), kwargs={"on": {b"ready": begun.set}}
        )
        thread.start()
        end.callback(thread.join)
        assert begun.wait(PATIENCE)
        cancel.cancel("before anybody listens")
        with site.engine.adopt(first.job) as second:
            result, printed = run(second, sent=True, cancel=cancel)
            assert (3, b"ready\nsaving\n") == (result.code, printed)


def test_phase_that_never_began(site):
    """What was sent and has not begun is not sent again, and never begins."""
    with site.sandbox() as first:
        run(first, "echo one", name="initialize")
        with site.engine.adopt(first.job) as second:
            run(second, name="initialize", sent=True)
            result, printed = run(second, "echo never", name="plan", sent=True)
            assert (True, False, b"") == (result.unbegun, result.ok, printed)
            assert run(second, "echo never", name="after_run")[1] == b""


def test_adopted_container_that_has_ended(site):
    """What a container printed before it ended is all there, and so are its files."""
    with site.sandbox() as first:
        run(first, "echo one; echo kept >plan", name="initialize")
        run(first, "seq 100000", name="plan")
        site.kill(first)
        with site.engine.adopt(first.job) as second:
            assert ("initialize", "plan") == second.begun()
            assert b"one\n" == run(second, name="initialize", sent=True)[1]
            assert b"kept\n" == second.read_file(PLAN, limit=100)
            result, printed = run(second, name="plan", sent=True)
            assert (True, 100_000) == (result.ok, printed.count(b"\n"))
            assert run(second, name="apply", sent=True)[0].container_lost
            assert not second.conclude(2, Printed())
    assert [] == site.leftovers()


def test_nothing_to_adopt(site):
    """A container that is not there any more is no error."""
    with site.engine.adopt(str(ULID())) as nothing:
        assert nothing is None


def test_containers_are_found(site):
    """Labels say of a container all that is needed to go on with it."""
    origin = Origin(slot=3, claim="01CLAIM", attempt=2)
    with site.sandbox(origin=origin) as sandbox:
        run(sandbox, "true")
        (found,) = [each for each in site.engine.found() if each.job == sandbox.job]
        assert origin == found.origin
        assert ("01RUN", "plan") == (found.run, found.phase_class)
        assert site.engine.resolve(permit(site.image), None) == found.image
        assert "0" * 64 == found.receipt
    assert sandbox.job not in [each.job for each in site.engine.found()]


# --- whether all went well


@pytest.mark.parametrize(
    ("commands", "phases", "confirmed"),
    [
        ((("plan", "true"), ("after_run", "exit 1")), 1, True),
        ((("plan", "true"), ("apply", "true")), 2, True),
        ((("plan", "true"),), 2, False),
        ((("plan", "false"), ("apply", "true")), 2, False),
    ],
)
def test_container_confirms(sandbox, commands, phases, confirmed):
    """The container's own exit code says whether all phases ran, and ran well."""
    for name, command in commands:
        run(sandbox, command, name=name)
    assert confirmed == sandbox.conclude(phases, Printed())
    assert confirmed == sandbox.conclude(phases, Printed())


def test_forged_success_is_not_confirmed(sandbox):
    """A job that writes the mark of a success itself, and then fails, has failed."""
    result, _ = run(sandbox, forging("end plan 0"), "exit 1")
    assert result.ok
    assert not sandbox.conclude(1, Printed())


def test_forged_end_does_not_cut_the_phase(sandbox):
    """A phase that says too early that it is over is waited for, and heard, all the same."""
    printed = Printed()
    run(sandbox, forging("end plan 0"), "sleep 0.5", "echo late")
    assert sandbox.conclude(1, printed)
    assert printed.text.endswith(b"late\n")


# --- what is printed


def test_delivers_all_output_before_returning(sandbox):
    """When run() returns, the output has seen every byte."""
    result, printed = run(sandbox, "echo hello")

    assert (0, b"hello\n") == (result.code, printed)
    assert result.ok


def test_both_streams_in_one_order(sandbox):
    """Standard output and standard error arrive as one stream, as they were written."""
    _, printed = run(sandbox, "echo 1; echo 2 >&2; echo 3; echo 4 >&2")

    assert b"1\n2\n3\n4\n" == printed


def test_five_megabytes_without_a_newline(sandbox):
    """A line of any length arrives as it was printed."""
    _, printed = run(sandbox, "head -c 5000000 /dev/zero | tr '\\0' x")

    assert b"x" * 5_000_000 == printed


def test_any_byte_arrives(site):
    """NUL bytes, invalid UTF-8 and our own marks' edge arrive as they were printed."""
    content = bytes(range(256)) * 1000 + os.urandom(1_000_000) + b"\x1e"

    with site.sandbox(files(blob=content)) as sandbox:
        _, printed = run(sandbox, "cat blob")

    assert content == printed


def test_output_belongs_to_its_phase(sandbox):
    """What a phase prints is delivered by the call that runs it, and by no other."""
    printed = [
        run(sandbox, f"echo {name}", name=name)[1] for name in ("initialize", "plan")
    ]

    assert [b"initialize\n", b"plan\n"] == printed


def test_leftovers_of_a_phase_come_with_the_next(sandbox):
    """What a background process prints between two phases is not lost."""
    run(sandbox, "(while [ ! -e go ]; do sleep 0.05; done; echo late; touch gone) &")

    _, printed = run(
        sandbox, "touch go; while [ ! -e gone ]; do sleep 0.05; done; echo end"
    )

    assert b"late\nend\n" == printed


def test_two_jobs_are_strangers(site):
    """Jobs that run at the same time get their own output and their own workspace."""
    with site.sandbox() as one, site.sandbox() as other:
        run(one, "echo one >name")
        run(other, "echo other >name")

        assert b"one\n" == run(one, "cat name")[1]
        assert b"other\n" == run(other, "cat name")[1]


# --- how a phase ends


@pytest.mark.parametrize("command", ["exit 7", "sh -c 'exit 7'", "(exit 7)"])
def test_failure_is_a_result(sandbox, command):
    """A non-zero exit code is returned and not raised, and ends the phase there."""
    result, printed = run(sandbox, command, "echo never")

    assert (7, b"") == (result.code, printed)
    assert not result.ok
    assert not result.container_lost


def test_early_exit_is_no_success(sandbox):
    """A command that ends the shell with 0 does not make a phase succeed."""
    result, printed = run(sandbox, "exit 0", "echo never")

    assert 1 == result.code
    assert b"A command ended the shell before the phase was complete.\n" == printed


def test_failed_phase_is_not_the_last(sandbox):
    """After a phase that failed, another one runs."""
    run(sandbox, "false")

    assert run(sandbox, "echo still there")[0].ok


def test_background_process_does_not_hold_the_phase(sandbox):
    """A phase ends with its shell, whatever it left running."""
    start = time.monotonic()

    assert run(sandbox, "sleep 60 &", "echo done")[0].ok
    assert time.monotonic() - start < PATIENCE


def test_nothing_to_read(sandbox):
    """A tool that asks a question learns at once that nobody answers."""
    result, printed = run(sandbox, "read answer || echo nobody")

    assert (0, b"nobody\n") == (result.code, printed)


# --- the environment


def test_environment_persists(sandbox):
    """What one phase exports by itself is there in the next, and not what it was given."""
    run(sandbox, 'export OWN="$GIVEN"', export={"GIVEN": 'it\'s "given"\n$HOME `x`'})

    _, printed = run(sandbox, 'printf "%s/%s" "$OWN" "${GIVEN-}"')

    assert b'it\'s "given"\n$HOME `x`/' == printed


def test_environment_can_be_taken_back(sandbox):
    """A variable that a later phase must not know is gone in it."""
    run(sandbox, "true", export={"ONLY_READING": "x"})

    _, printed = run(sandbox, "env", unset=["ONLY_READING"])

    assert b"ONLY_READING" not in printed


def test_large_environment(sandbox):
    """A script far larger than a pipe's buffer gets through."""
    value = "0123456789" * 10_000

    _, printed = run(sandbox, 'printf "%s" "$LARGE"', export={"LARGE": value})

    assert value.encode() == printed


# --- cancelling


def cancelling(sandbox, tool, **options):
    cancel = CancelToken()
    result, printed = run(
        sandbox,
        tool,
        "echo never",
        cancel=cancel,
        on={b"ready\n": lambda: cancel.cancel("test")},
        **options,
    )
    return result, printed


def test_tool_may_save_its_state(site):
    """A cancelled tool is interrupted first, and its own exit code is reported."""
    with site.sandbox(files(tool=SAVING_TOOL)) as sandbox:
        result, printed = cancelling(sandbox, "./tool")

        assert (3, b"ready\nsaving\n") == (result.code, printed)
        assert b"state\n" == sandbox.read_file(f"{WORKSPACE}/saved", limit=100)


def test_a_silent_phase_is_waited_for(sandbox, monkeypatch):
    """However long nothing is printed, whoever listens is seen to be alive."""
    monkeypatch.setattr(docker, "_LISTEN_SECONDS", 0.05)
    heart, alive = Watching(), []

    def wait_long():
        alive.append(heart.endures("job"))
        sandbox.write_file("go", b"")

    with heart.listening(), watched("job", 300):
        result, printed = run(
            sandbox,
            "echo ready; until [ -e /mnt/workspace/go ]; do sleep 0.02; done; echo end",
            on={b"ready\n": threading.Thread(target=wait_long).start},
        )

    assert (True, b"ready\nend\n") == (result.ok, printed)
    assert [True] == alive


def test_who_is_stuck_beside_a_phase_is_missed(sandbox, monkeypatch):
    """A thread that does not come back to listening is late within minutes."""
    monkeypatch.setattr(docker, "_LISTEN_SECONDS", 0.05)
    heart, missed = Watching(), []

    with heart.listening(), watched("job", 300):
        result, _ = run(
            sandbox,
            "echo ready; sleep 0.5; echo end",
            on={b"ready\n": lambda: missed.extend(heart.misses())},
        )

    assert result.ok
    assert ["job"] == missed


def test_cancel_ends_a_silent_phase(sandbox):
    """Cancelling ends a phase that prints nothing, and promptly."""
    start = time.monotonic()

    result, _ = cancelling(sandbox, "echo ready; sleep 60")

    assert not result.ok
    assert not result.container_lost
    assert time.monotonic() - start < PATIENCE


def test_stubborn_tool_is_terminated(site):
    """A tool that will not be interrupted is asked to terminate after its grace."""
    with site.sandbox(files(tool=STUBBORN_TOOL)) as sandbox:
        result, printed = cancelling(sandbox, "./tool", grace=0.3)

    assert 4 == result.code
    assert {b"ready", b"no", b"well"} <= set(printed.split())


def test_deaf_tool_is_killed(site):
    """A tool that hears nothing is killed in the end, with all of its container."""
    with site.sandbox(files(tool=DEAF_TOOL)) as sandbox:
        result, printed = cancelling(sandbox, "./tool", grace=0.3)

    assert not result.ok
    assert (137, True) == (result.code, result.container_lost)
    assert b"ready\n" == printed


def test_phase_after_a_cancelled_one(sandbox):
    """A cancelled phase that ended by itself leaves room for the last hooks."""
    cancelling(sandbox, "echo ready; sleep 60")

    assert (True, b"hook\n") == ((after := run(sandbox, "echo hook"))[0].ok, after[1])


def test_already_cancelled(sandbox):
    """With a token that fired before, nothing is started."""
    cancel = CancelToken()
    cancel.cancel("test")

    result, printed = run(sandbox, "touch started", cancel=cancel)

    assert (False, b"") == (result.ok, printed)
    assert sandbox.read_file(f"{WORKSPACE}/started", limit=1) is None
    assert run(sandbox, "true")[0].ok


def test_no_cancel_comes_too_early(sandbox):
    """A cancel is never lost, wherever in its beginning it meets the phase."""
    for _ in range(10):
        cancel = CancelToken()
        early = threading.Thread(target=cancel.cancel, args=("test",))
        early.start()

        result, _ = run(sandbox, "sleep 60", cancel=cancel, grace=60)

        early.join()
        assert not result.ok
        assert not result.container_lost


def test_cancel_after_the_end_changes_nothing(sandbox):
    """A token that fires after a phase has ended does not disturb the next one."""
    cancel = CancelToken()
    run(sandbox, "true", cancel=cancel)
    cancel.cancel("too late")

    assert run(sandbox, "echo next")[0].ok


# --- containers that end by themselves, or by others


def test_ended_from_outside(site, sandbox):
    """A container that somebody else ended is reported as lost, with all it printed."""
    kill = {b"ready\n": lambda: site.kill(sandbox)}

    result, printed = run(sandbox, "echo ready; sleep 60", on=kill)

    assert result.container_lost
    assert not result.ok
    assert b"ready\n" == printed
    assert not result.log_incomplete


def test_phase_in_a_lost_container(site, sandbox):
    """In a container that is gone, a phase fails at once."""
    site.kill(sandbox)

    result, printed = run(sandbox, "echo never")

    assert result.container_lost
    assert b"" == printed


def test_deadline_ends_an_orphan(site):
    """After its deadline a container ends what it does, although nobody asks it to."""
    with site.sandbox(deadline_seconds=0) as sandbox:
        result, _ = run(sandbox, "sleep 60")

    assert not result.ok


def test_log_limit_ends_an_orphan(site):
    """A container that printed more than it may ends, although nobody asks it to."""
    with site.sandbox(log_limit=1000) as sandbox:
        result, printed = run(sandbox, "head -c 1001 /dev/zero; sleep 60")

    assert not result.ok
    assert bytes(1001) == printed[:1001]


# --- what a job may try


def forging(*marks):
    """A command that prints marks like the entry program's; it can know the nonce."""
    nonce = "nonce=$(tr '\\0' '\\n' </proc/$PPID/cmdline | sed -n 3p)"
    return "; ".join(
        [nonce, *(f"printf '\\036%s {mark}\\037' $nonce" for mark in marks)]
    )


def test_forged_mark_ends_the_phase_only(sandbox):
    """A job that forges the end of its phase ends it, and gets nothing for it."""
    result, _ = run(
        sandbox, "echo before", forging("end plan 5"), "sleep 0.3; echo after"
    )

    assert (5, False) == (result.code, result.ok)

    _, printed = run(sandbox, "echo apply", name="apply")

    assert b"after\napply\n" == printed


def test_mark_of_another_phase_is_no_end(sandbox):
    """A forged mark about another phase, or of no meaning, changes nothing."""
    forged = forging("end apply 0", "begin", "finished", "")

    result, printed = run(sandbox, forged, "echo end", "exit 4")

    assert (4, b"end\n") == (result.code, printed)


@pytest.mark.parametrize("code", ["x", "-1", "1e3", "9" * 20])
def test_forged_exit_code(sandbox, code):
    """A mark whose exit code is not one can only be a failure."""
    result, _ = run(sandbox, forging(f"end plan {code}"), "sleep 0.3")

    assert not result.ok


def test_truncated_log_is_noticed(sandbox):
    """A job that shortens its own log is marked as one with an incomplete log."""
    result, printed = run(
        sandbox,
        "head -c 100000 /dev/zero | tr '\\0' x; echo ready",
        # Who has read little finds the file no shorter, and misses its end.
        "until [ -e /mnt/workspace/read ]; do sleep 0.02; done",
        ": >/mnt/spacelift-log/output",
        "echo end",
        on={b"ready\n": lambda: sandbox.write_file("read", b"")},
    )

    assert result.log_incomplete or printed.endswith(b"end\n")
    again, printed = run(sandbox, "echo and on")
    assert printed.endswith(b"and on\n")
    assert again.ok


def test_log_cannot_be_removed(sandbox):
    """Whatever a job tries with the file of its log, its output arrives."""
    result, printed = run(
        sandbox,
        "echo before",
        "rm -f /mnt/spacelift-log/output 2>/dev/null; mv /mnt/spacelift-log/output x"
        " 2>/dev/null; echo after",
    )

    assert (0, b"before\nafter\n") == (result.code, printed)


# --- files


def test_reads_a_file(sandbox):
    """A regular file is read, whole and exact, also while the container runs."""
    run(sandbox, "printf 'a\\0b' >plan; : >empty")

    assert b"a\0b" == sandbox.read_file(PLAN, limit=3)
    assert b"" == sandbox.read_file(f"{WORKSPACE}/empty", limit=0)


@pytest.mark.parametrize("path", ["missing", "missing/folder/plan", "file/plan"])
def test_missing_file(sandbox, path):
    """Where there is no file there is no content, and no error."""
    run(sandbox, "touch file")

    assert sandbox.read_file(f"{WORKSPACE}/{path}", limit=100) is None


@pytest.mark.parametrize(
    "made",
    [
        "mkdir plan",
        "ln -s /etc/passwd plan",
        "ln -s nowhere plan",
        "mkfifo plan",
        "printf 12345 >plan",
        "truncate -s 10G plan",
    ],
)
def test_unreadable_file(sandbox, made):
    """What is not a regular file, or too large, is refused without being read."""
    run(sandbox, made)

    with pytest.raises(WorkspaceUnusable) as caught:
        sandbox.read_file(PLAN, limit=4)

    assert PLAN in str(caught.value)


def described(chunks):
    with tarfile.open(fileobj=ChunkReader(chunks), mode="r|") as tar:
        return {
            entry.name: (
                entry.type,
                oct(entry.mode & 0o777),
                entry.linkname,
                tar.extractfile(entry).read() if entry.isreg() else b"",
            )
            for entry in tar
        }


def test_workspace_round_trip(site):
    """What one sandbox leaves, the next one starts from: content, modes and links."""
    makings = (
        "mkdir -p source/deep && cd source",
        "printf 'x\\0y' >data && chmod 640 data",
        "printf '#!/bin/sh\\necho tool ran\\n' >deep/tool && chmod 755 deep/tool",
        "ln -s deep/tool short && ln -s /etc/hostname absolute && ln data hard",
        "touch 'a name with spaces' é $(printf '%0200d' 7)",
        "chmod 700 deep",
    )
    with site.sandbox() as first:
        assert run(first, *makings)[0].ok
        with first.workspace() as stream:
            stored = list(stream)
        with first.workspace() as stream:
            assert described(stored) == described(stream)

    archive = Archive()
    archive.tree(stored, below=WORKSPACE.strip("/"), strip="workspace")
    with site.sandbox(archive) as second:
        _, printed = run(
            second, "cd source", "./short", "cat hard", "readlink absolute"
        )
        with second.workspace() as stream:
            again = described(stream)

    assert b"tool ran\nx\0y/etc/hostname\n" == printed
    assert {"workspace/source/data", "workspace/source/é"} < again.keys()
    assert "0o640" == again["workspace/source/data"][1]
    assert "0o700" == again["workspace/source/deep"][1]
    before = described(stored)
    assert before == again


def test_workspace_belongs_to_the_run(sandbox):
    """The run's user may write into the workspace it is given."""
    assert run(sandbox, "mkdir new && touch new/file && rm -r new")[0].ok


def test_what_is_wrong_with_the_archive_comes_out(site):
    """An archive that cannot be made fails with its own reason."""

    def damaged():
        yield from files(a=b"x")
        raise WorkspaceUnusable("the stored workspace is damaged")

    with pytest.raises(WorkspaceUnusable) as caught, site.sandbox(damaged()):
        pass

    assert "the stored workspace is damaged" == str(caught.value)
    assert [] == site.leftovers()


# --- what is left


def test_nothing_is_left(site):
    """When the block is left, the engine has nothing of the job any more."""
    with site.sandbox() as sandbox:
        run(sandbox, "sleep 60 &")
        assert [] != site.leftovers()

    assert [] == site.leftovers()


def test_nothing_is_left_after_a_failure(site):
    """The same is true when the block fails in the middle."""
    with pytest.raises(ZeroDivisionError), site.sandbox():
        raise ZeroDivisionError

    assert [] == site.leftovers()


def test_nothing_runs_on(site):
    """What a job left running ends with its sandbox."""
    mark = f"60.{secrets.randbelow(10**9)}"
    with site.sandbox() as sandbox:
        run(sandbox, f"sleep {mark} &")
        eventually(lambda: running(mark))

    eventually(lambda: not running(mark))


def running(argument):
    """Processes of this machine with that argument; containers share its kernel."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if argument.encode() in file.read().split(b"\0"):
                found.append(pid)
    return found


# --- images


def test_image_is_pinned(site):
    """An image is resolved to a digest, and what runs is named by it."""
    image = site.engine.resolve(permit(site.image), None)

    assert image.digest.startswith("sha256:")
    assert image.digest in image.runnable


def test_same_job_twice(site):
    """A job's name is free again when its sandbox is gone."""
    job = a_job(id=str(ULID()))
    for _ in range(2):
        with site.sandbox(job=job) as sandbox:
            assert run(sandbox, "true")[0].ok


def test_missing_image(site):
    """An image that is nowhere is unavailable, by a public sentence that names it."""
    missing = "registry.invalid/missing/image:1"
    if isinstance(site, ShellSite):
        site.engine.missing.add(missing)

    with pytest.raises(ImageUnavailable) as caught:
        site.engine.resolve(permit(missing), None)

    assert "registry.invalid/missing/image:1" in str(caught.value)


def test_a_file_is_written_beside_a_phase(sandbox):
    """A file is replaced while a phase runs, whatever was in its place, for its user only."""
    sandbox.write_file("token", b"first")
    places = (
        "cat token; echo",
        "ln -sf target token && echo untouched >target",
        "rm -f token && mkdir -p token/folder",
    )
    for number, place in enumerate(places):
        written = b"written-%d" % number
        seen, printed = run(
            sandbox,
            place,
            "echo placed; while ! grep -q written-%d token 2>/dev/null; do sleep 0.05; done"
            % number,
            "stat -c %a token; cat token; echo; cat target 2>/dev/null || true",
            on={
                b"placed": lambda content=written: sandbox.write_file("token", content)
            },
        )
        assert seen.ok, printed
        assert b"600\n" + written in printed
        assert b"untouched" in printed or number != 1


def test_no_file_is_written_where_nothing_is(site):
    """Once the container is gone, whoever writes to it is told."""
    with site.sandbox() as sandbox:
        pass
    with pytest.raises(EngineError):
        sandbox.write_file("token", b"late")
