"""Lines of jobs whose control plane and engine are in this process."""

import pytest

from launcher.journal import Journal
from launcher.testing.control_plane import MemoryControlPlane
from launcher.testing.engine import ShellEngine
from given import A_KEY
from support.line import Line


@pytest.fixture(name="line")
def _line(tmp_path):
    """One that is empty; some modules have others by this name."""
    folder = tmp_path / "engine"
    folder.mkdir()
    journal = Journal.opened(tmp_path / "journal.db", A_KEY)
    yield Line(
        journal=journal,
        plane=MemoryControlPlane(lease_seconds=90, renew_seconds=0.02),
        engine=ShellEngine(folder, stop_seconds=0.5),
        folder=folder,
    )
    journal.close()
