"""The units as files: how exposed they are, and whether their numbers fit ours."""

import re
import subprocess

import pytest

from launcher.durations import parse_duration
from launcher.errors import LauncherError
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
    ("code", "status", "powers"),
    [
        ("exited", "21", True),
        ("exited", "20", True),
        ("exited", "2", True),
        ("exited", "0", False),
        ("exited", "1", False),
        ("killed", "TERM", False),
        ("killed", "20", False),
    ],
)
def test_powering_off(tmp_path, code, status, powers):
    """
    Only an end by itself with one of the codes counts, neither a stop nor a signal.
    """
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n')
    program.chmod(0o755)
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
