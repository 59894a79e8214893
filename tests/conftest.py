"""What all tests share."""

import os
import signal

from pathlib import Path

import pytest
import structlog

from hypothesis import settings


# Nothing is timed: a busy machine is no reason to fail.
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")


@pytest.fixture(scope="session", autouse=True)
def _signals_are_not_ignored():
    """Processes that tests start hear signals, however the tests were started."""
    # What is started in the background or by nohup inherits deaf ears.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _bytecode_is_kept():
    """Python compiles the launcher once, and not in each of hundreds of processes."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def _plain_logs():
    """The daemon's log as plain lines: tracebacks without a picture of every variable."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(),
    )
    yield
    structlog.reset_defaults()


_STARTING_PROCESSES = (
    "controlplane",
    "helm",
    "integration",
    "packaging",
    "policytools",
    "signing",
)
_LONGEST_FIRST = ("systemd", "e2e", "integration", "contract", "controlplane")


def pytest_collection_modifyitems(items):
    """
    Mark what starts processes of its own, for `make test-fast` to leave out.

    Files with much to wait for come first, so that processes which share the tests
    are busy until the end.
    """
    for item in items:
        real = {"shell", "http", "git"} & _parameters(item)
        if real or _folder(item) in _STARTING_PROCESSES:
            item.add_marker("processes")
    items.sort(key=_place)


def _folder(item):
    return item.path.relative_to(Path(__file__).parent).parts[0]


def _place(item):
    folder = _folder(item)
    longest = len(_LONGEST_FIRST)
    return _LONGEST_FIRST.index(folder) if folder in _LONGEST_FIRST else longest


def _parameters(item):
    return set(item.callspec.id.split("-")) if hasattr(item, "callspec") else set()
