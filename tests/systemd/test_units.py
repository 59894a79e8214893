"""The units as files: how exposed they are, and whether their numbers fit ours."""

import re
import subprocess

import pytest

from launcher.durations import parse_duration
from launcher.adapters.engines.docker import _ORIGIN
from launcher.errors import LauncherError
from launcher.parsing import _FALSE, _TRUE
from launcher.settings import Settings
from launcher.worker import EXIT_CODES
from support.machine import LAUNCHER, METADATA, METADATA_6, NETWORK, ROOT, SERVER


pytestmark = pytest.mark.processes
UNITS = ROOT / "systemd"


def unit(name):
    """The values of a unit's keys; those of a key that comes twice in one text."""
    found = {}
    for line in (UNITS / f"{name}.service").read_text().splitlines():
        key, given, value = line.partition("=")
        if given and not line.startswith("#"):
            found[key] = f"{found[key]} {value}" if key in found else value
    return found


def program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def rules(folder, **env):
    """What the script of the filter would load, or why it refuses to."""
    program(folder / "nft", "cat")
    return subprocess.run(
        [UNITS / "network", "up"],
        env={"PATH": f"{folder}:/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", [LAUNCHER, SERVER, NETWORK])
def test_exposure(name):
    """
    systemd itself thinks that the unit is exposed no more than 2.0 of 10.
    """
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=true", "--no-pager"),
            *("--threshold=20", UNITS / f"{name}.service"),
        ],
        capture_output=True,
        text=True,
    )
    assert 0 == done.returncode, done.stdout
    level = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert float(level[1]) <= 2.0


def test_a_stop_lasts_longer_than_an_apply():
    """
    The time to stop is more than phases may take that have just begun, by the defaults.

    For what comes before them the launcher asks for more while it makes progress.
    """
    settings = Settings()
    run, container = settings.run, settings.container
    longest = run.run_timeout + run.apply_grace + 2 * container.stop_timeout
    given = unit(LAUNCHER)

    assert longest < parse_duration(given["TimeoutStopSec"])
    assert "mixed" == given["KillMode"]


def test_what_is_not_started_again():
    """
    The codes of what cannot get better by itself, and of a launcher that was dismissed.
    """
    codes = {
        error.__name__: error.exit_code for error in LauncherError.__subclasses__()
    }
    pointless = ("ConfigurationError", "TokenUnusable", "PoolKeyUnusable")
    wanted = {codes[name] for name in (*pointless, "PoolKeyMismatch")}
    given = unit(LAUNCHER)

    prevented = {int(code) for code in given["RestartPreventExitStatus"].split()}
    assert wanted | {EXIT_CODES["dismissed"]} == prevented
    assert set(EXIT_CODES.values()) == {
        int(code) for code in given["SuccessExitStatus"].split()
    }
    assert "always" == given["Restart"]


def test_what_powers_the_machine_off():
    """
    Every end after which nothing is started again, and that of a cycled pool.
    """
    text = (UNITS / "power-off.conf").read_text()
    listed = re.search(r"SPACELIFT_POWER_OFF_ON=([0-9 ]+)", text)[1].split()
    kept = unit(LAUNCHER)["RestartPreventExitStatus"].split()

    assert {*kept, str(EXIT_CODES["cycled"])} == set(listed)
    assert f"RestartPreventExitStatus={EXIT_CODES['cycled']}" in text


@pytest.mark.parametrize(
    ("code", "status", "engine", "powers"),
    [
        ("exited", "21", "exit 1", True),
        ("exited", "20", "echo 0123", True),
        ("exited", "2", "exit 0", True),
        ("exited", "2", "echo 0123", False),
        ("exited", "11", "echo 0123", False),
        ("exited", "2", "exit 1", False),
        ("exited", "0", "exit 0", False),
        ("exited", "1", "exit 0", False),
        ("killed", "TERM", "exit 0", False),
        ("killed", "20", "exit 0", False),
    ],
)
def test_powering_off(tmp_path, code, status, engine, powers):
    """
    Only an end by itself with one of the codes counts, and only if no run is at work.
    """
    wanted = f"ps --quiet --filter label={_ORIGIN}"
    program(tmp_path / "docker", f'[ "$*" = "{wanted}" ] || exit 1\n{engine}')
    program(tmp_path / "systemctl", f'echo "$@" >{tmp_path}/asked')
    listed = re.search(
        r"SPACELIFT_POWER_OFF_ON=([0-9 ]+)", (UNITS / "power-off.conf").read_text()
    )
    subprocess.run(
        [UNITS / "power-off"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "EXIT_CODE": code,
            "EXIT_STATUS": status,
            "SPACELIFT_POWER_OFF_ON": listed[1],
        },
        check=True,
    )

    assert powers == (tmp_path / "asked").exists()


def test_codes_are_documented():
    """
    Each exit code that a unit names is on the page of exit codes.
    """
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    documented = set(re.findall(r"^\| (\d+) \|", page, re.M))
    for name in (LAUNCHER, SERVER):
        assert set(unit(name)["RestartPreventExitStatus"].split()) <= documented
    assert {str(code) for code in EXIT_CODES.values()} <= documented


def test_the_secrets_have_the_names_that_the_settings_know():
    """
    systemd's credentials are found by the launcher, and never variables.
    """
    page = (ROOT / "docs" / "configuration.md").read_text()
    names = [each.split(":")[0] for each in unit(LAUNCHER)["LoadCredential"].split()]

    assert ["spacelift_token", "spacelift_pool_private_key"] == names
    assert all(f"credential `{name}`" in page for name in names)


def test_the_filter_names_exactly_the_five():
    """
    The script blocks these addresses and no others.
    """
    script = (UNITS / "network").read_text()
    named = set(re.findall(r"169\.254\.\d+\.\d+|fd00:ec2::\d+", script))

    assert {*METADATA, *METADATA_6} == named


def test_the_filter_reads_words_as_settings_do(tmp_path):
    """
    What is true or false for the launcher is the same for the filter, and nothing else.
    """
    for word in (*_TRUE, *_FALSE, ""):
        loaded = rules(tmp_path, SPACELIFT_RUNS_MAY_REACH_METADATA=word)
        assert 0 == loaded.returncode, word
        verdict = re.search(r"ip daddr [{] 169.*[}] (.*)", loaded.stdout)[1]
        assert ("accept" == verdict) == (word in _TRUE), word
    for word in ("yes", "tRUE", "2"):
        loaded = rules(tmp_path, SPACELIFT_RUNS_MAY_REACH_METADATA=word)
        assert (2, "") == (loaded.returncode, loaded.stdout)


def test_a_shutdown_waits_longer_than_a_stop():
    """
    systemd forces no shutdown while the launcher may still take its time.
    """
    given = (UNITS / "shutdown.conf").read_text()
    seconds = parse_duration(re.search(r"^JobTimeoutSec=(.*)$", given, re.M)[1])

    assert seconds > parse_duration(unit(LAUNCHER)["TimeoutStopSec"])


def test_user_data_leaves_curl_alone():
    """
    Amazon Linux has a curl whose package conflicts with the one called so.
    """
    script = (ROOT / "examples" / "ec2" / "user-data").read_text()
    packages = re.search(r"dnf install -y -q (.*)", script)[1].split()

    assert "docker" in packages
    assert "curl" not in packages
