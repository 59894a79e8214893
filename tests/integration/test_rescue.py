"""What becomes of a state that a tool could not store."""

import contextlib

import pytest

from click.testing import CliRunner

from given import A_KEY
from launcher.cli import main
from launcher.errors import RescueUnusable, SealBroken
from launcher.rescue import Rescued, opened, place
from launcher.testing.control_plane import MemoryControlPlane
from launcher.testing.engine import ShellEngine
from support.engines import DockerSite
from support.journals import a_journal
from support.line import AUTODEPLOY, Line


STATE = b'{"version": 4, "secret": "hunter2-in-the-state"}\n'
LEAVE = b"printf '%s\\n' '" + STATE.strip() + b"' >errored.tfstate\nexit 1\n"
LOCKED = (
    b'echo \'{"ID": "0b1c2d3e-1111-2222-3333-444455556666"}\''
    b" >.terraform.tfstate.lock.info\nexit 1\n"
)


@pytest.fixture(
    name="line", params=["shell", pytest.param("docker", marks=pytest.mark.services)]
)
def _line(request, tmp_path):
    plane = MemoryControlPlane(lease_seconds=90, renew_seconds=0.02)
    folder = tmp_path / "engine"
    folder.mkdir()
    with contextlib.ExitStack() as closing:
        journal = closing.enter_context(a_journal())
        if request.param == "shell":
            engine = ShellEngine(folder)
            yield Line(plane=plane, engine=engine, folder=folder, journal=journal)
            return
        site = closing.enter_context(contextlib.closing(DockerSite()))
        line = Line(plane=plane, engine=site.engine, folder=folder, journal=journal)
        yield on_real_engine(line, site.image)


def on_real_engine(line, image):
    """The same line, with jobs for an image that exists."""
    import dataclasses

    from launcher.images import Pattern
    from launcher.settings import PullPolicy

    images = dataclasses.replace(
        line.settings.images,
        allowed_images=(Pattern.parse(image),),
        pull_policy=PullPolicy.NEVER,
    )
    line.settings = dataclasses.replace(line.settings, images=images)
    make = line.job
    line.job = lambda *given, **more: make(*given, docker_image=image, **more)
    return line


def applied(line, script):
    record = line.run(line.job({"apply.sh": script}), **AUTODEPLOY)
    return record, bytes(record.log).decode()


def test_a_state_is_rescued(line):
    """A state that a failed apply left is kept, sealed, and its owner is told how to get it."""
    record, text = applied(line, LEAVE)
    run = record.job.run.id
    folder = line.folder.parent / "rescued"

    assert f"errored.tfstate of {len(STATE)} bytes" in text
    assert f"spacelift-launcher rescued open {run}" in text
    assert "hunter2" not in text
    path = place(folder, run)
    assert 0o600 == path.stat().st_mode & 0o777
    assert 0o700 == folder.stat().st_mode & 0o777
    assert b"hunter2" not in path.read_bytes()
    assert STATE == opened(folder, run, A_KEY)


def test_a_lock_is_named(line):
    """A lock that a failed apply left is named by its id."""
    _, text = applied(line, LOCKED)

    assert "force-unlock 0b1c2d3e-1111-2222-3333-444455556666" in text


@pytest.mark.parametrize(
    "lock", [b"", b"{}", b"[]", b"nonsense", b'{"ID": "x; rm -rf /"}', b'{"ID": 5.5}']
)
def test_a_lock_that_is_none_is_not_repeated(tmp_path, lock):
    """Only what looks like an id is shown as a command that somebody may copy."""
    folder = tmp_path / "engine"
    folder.mkdir()
    plane = MemoryControlPlane(lease_seconds=90, renew_seconds=0.02)
    script = b"cat <<'END' >.terraform.tfstate.lock.info\n" + lock + b"\nEND\nexit 1\n"
    with a_journal() as journal:
        engine = ShellEngine(folder)
        line = Line(plane=plane, engine=engine, folder=folder, journal=journal)
        assert "force-unlock" not in applied(line, script)[1]


def test_something_else_by_that_name(line):
    """What is no regular file is not read, and the owner is told."""
    _, text = applied(line, b"ln -s /etc/passwd errored.tfstate\nexit 1\n")

    assert "which was not rescued" in text
    assert not (line.folder.parent / "rescued").exists()


def test_a_success_leaves_nothing(line):
    """After an apply that did its work nothing is kept."""
    applied(line, LEAVE.replace(b"exit 1", b"true"))

    assert not (line.folder.parent / "rescued").exists()


def test_only_its_own_run_and_pool_open_it(tmp_path):
    """What was sealed for one run and pool opens for no other."""
    Rescued(tmp_path, A_KEY.public).keep("RUN", STATE)
    place(tmp_path, "RUN").parent.rename(tmp_path / "OTHER")

    with pytest.raises(SealBroken):
        opened(tmp_path, "OTHER", A_KEY)
    with pytest.raises(RescueUnusable):
        opened(tmp_path, "RUN", A_KEY)


def test_a_run_cannot_choose_the_place(tmp_path):
    """The name of a run never leads out of the folder."""
    for run in ("../../etc", "/etc", "", ".", "a/b", "x" * 300):
        assert tmp_path in place(tmp_path, run).resolve().parents


def test_the_command_opens_it(tmp_path):
    """The operator gets the state in a file that nobody else may read."""
    Rescued(tmp_path / "rescued", A_KEY.public).keep("RUN", STATE)
    key, output = tmp_path / "pool.key", tmp_path / "state"
    key.write_bytes(A_KEY.pem())
    arguments = ["rescued", "open", "RUN", "--state-dir", str(tmp_path)]
    arguments += ["--output", str(output)]

    done = CliRunner().invoke(main, [*arguments, "--key", str(key)])
    assert (0, STATE) == (done.exit_code, output.read_bytes())
    assert 0o600 == output.stat().st_mode & 0o777
    assert 2 == CliRunner().invoke(main, arguments).exit_code
    arguments[2] = "NEVER"
    missing = CliRunner().invoke(main, [*arguments, "--key", str(key)])
    assert 1 == missing.exit_code
    assert "cannot be read" in missing.output
