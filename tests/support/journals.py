"""Journals for tests, in folders of their own."""

import contextlib
import tempfile

from pathlib import Path

from given import A_KEY

from launcher.journal import Journal


@contextlib.contextmanager
def a_journal():
    """A journal that nobody needs after the test."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Journal.opened(Path(folder) / "journal.db", A_KEY)) as made,
    ):
        yield made


class NoEngine:
    """An engine in which this launcher has nothing."""

    def found(self):
        return ()
