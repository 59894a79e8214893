import contextlib
import socket
import stat
import threading
import time

import pytest

from click.testing import CliRunner

from launcher import admin
from launcher.admin import SOCKET, answering, ask
from launcher.cli import main
from launcher.errors import NoLauncherAnswers


STATUS = {
    "version": "1",
    "instance": "01INSTANCE",
    "pool": "01POOL",
    "draining": True,
    "holds": {"operator": "drained"},
    "ready": False,
    "reasons": {"drain": "draining"},
    "checks": {"drain": "draining", "disk": ""},
    "facts": {
        "control_plane_answered_at": None,
        "clock_skew_seconds": -2.0,
        "certificate_expires_at": time.time() + 10 * 86400 + 60,
        "log_backlog_bytes": 100.0,
        "log_oldest_unsent_seconds": 7.0,
        "lease_slack_seconds": 61.5,
        "disk_used_percent": 44.2,
    },
    "slots": [
        {"slot": 0, "run": None, "job": None, "phase": None, "since": None},
        {"slot": 1, "run": "RUN", "job": "JOB", "phase": "PLANNING", "since": "now"},
    ],
}


@pytest.fixture(name="folder")
def _folder(tmp_path):
    with answering(tmp_path, {"status": lambda: STATUS, "fail": lambda: 1 / 0}):
        yield tmp_path


@contextlib.contextmanager
def connected(folder):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(folder / SOCKET))
        yield client


def test_a_command_is_answered(folder):
    """Who asks gets what the launcher says."""
    assert STATUS == ask(folder, "status")


def test_nobody_else_may_open_it(folder):
    """The socket is its user's alone, by its mode."""
    status = (folder / SOCKET).stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert 0o600 == stat.S_IMODE(status.st_mode)


def test_nobody_else_is_answered(folder, monkeypatch):
    """Whoever got through all the same, but is neither root nor the user, is refused."""

    class Stranger:
        size = admin._CREDENTIALS.size

        def unpack(self, data):
            return 1, 54321, 54321

    monkeypatch.setattr(admin, "_CREDENTIALS", Stranger())
    with pytest.raises(NoLauncherAnswers) as caught:
        ask(folder, "status")

    assert "this is for the launcher's user" in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b'{"command": 1}\n',
        b'{"command": []}\n',
        b'{"command": "rm"}\n',
        b"[" * 4000 + b"\n",
        b"x" * 5000,
    ],
)
def test_nonsense_is_answered(folder, said):
    """Whatever is no command is answered with the list of commands."""
    with connected(folder) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        assert b"the commands are fail, status" in client.recv(4096)
    assert STATUS == ask(folder, "status")


def test_a_failing_command_is_answered(folder):
    """A bug behind a command is logged, and neither hangs the client nor the socket."""
    with pytest.raises(NoLauncherAnswers):
        ask(folder, "fail")
    assert STATUS == ask(folder, "status")


def test_silent_clients_lose_their_place(folder, monkeypatch):
    """Clients that never say anything keep others out for a moment only."""
    with contextlib.ExitStack() as crowd:
        monkeypatch.setattr(admin, "_PATIENCE", 0.5)
        for _ in range(admin._AT_ONCE):
            crowd.enter_context(connected(folder))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(NoLauncherAnswers):
                assert STATUS == ask(folder, "status")
                break
        else:
            pytest.fail("nobody was let in again")
        assert threading.active_count() < 30


def test_a_socket_that_was_left_is_replaced(tmp_path):
    """After a launcher that was killed, the next one answers at the same place."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET))
    with pytest.raises(NoLauncherAnswers):
        ask(tmp_path, "status")
    with answering(tmp_path, {"status": lambda: STATUS}):
        assert STATUS == ask(tmp_path, "status")
    assert not (tmp_path / SOCKET).exists()


def test_a_deep_directory_is_no_obstacle(tmp_path):
    """A state directory may be deeper than the address of a socket can be long."""
    folder = tmp_path / ("d" * 200)
    folder.mkdir()
    with answering(folder, {"status": lambda: STATUS}):
        assert STATUS == ask(folder, "status")


@pytest.mark.parametrize("command", ["status", "drain", "undrain", "dismiss"])
def test_without_a_launcher(tmp_path, command):
    """Where no launcher answers, commands say so and end with 1."""
    done = CliRunner().invoke(main, [command, "--state-dir", str(tmp_path)])

    assert 1 == done.exit_code
    assert "no launcher answers" in done.output


def test_wrong_arguments():
    """Arguments that are wrong end with 2."""
    assert 2 == CliRunner().invoke(main, ["status", "--nonsense"]).exit_code


def test_status_for_people(folder):
    """People read who holds the launcher, why it is not ready, and what slots do."""
    done = CliRunner().invoke(
        main, ["status"], env={"SPACELIFT_LAUNCHER_STATE_DIR": str(folder)}
    )

    assert 0 == done.exit_code
    for part in ("01INSTANCE", "held by operator: drained", "slot 0    idle"):
        assert part in done.output
    assert "run RUN, job JOB, PLANNING since now" in done.output
    lines = done.output.splitlines()
    start = lines.index("  because drain: draining")
    assert lines[start : start + 6] == [
        "  because drain: draining",
        "well      disk",
        "answered  not yet, by a clock that is 2 s off",
        "pool key  its certificate ends in 10 days",
        "log       100 bytes wait to be stored, for 7 s",
        "lease     lost after 62 s more of silence",
    ]


def test_status_of_an_earlier_version(tmp_path):
    """A launcher that was started before an update says less, and is understood."""
    less = {name: STATUS[name] for name in STATUS if name not in ("checks", "facts")}
    with answering(tmp_path, {"status": lambda: less}):
        done = CliRunner().invoke(
            main, ["status"], env={"SPACELIFT_LAUNCHER_STATE_DIR": str(tmp_path)}
        )

    assert 0 == done.exit_code
    assert "slot 1    run RUN" in done.output
