"""What a launcher remembers over a crash, and who else can read it."""

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap

from pathlib import Path

import pytest

from structlog.testing import capture_logs

from given import A_KEY, a_claim, a_job
from launcher.errors import JournalUnusable, StateDirectoryUnusable
from launcher.journal import Held, Journal, Made, boot_id
from launcher.model import Found, Origin, Outcome, PlanDecision, ResolvedImage
from launcher.sealing.keys import PoolKey
from launcher.wire.jobs import RunState, Tokens, Variable
from launcher.wire.messages import NextStep, Offer, Settlement, Verdict


OFFER = Offer(job="01JOB", run="01RUN")
IMAGE = ResolvedImage(
    reference="registry.example/runner:1", digest="sha256:a", runnable="r", local=True
)
MADE = Made(image=IMAGE, receipt="0" * 64, at=5.0)
SECRET = Variable(name="TOKEN", value="hunter2-hunter2", secret=True)
PASSED = Variable(name="PASSED", value="passed-through-secret", secret=True)
HELD = Held(claim=a_claim(a_job()), passed_through=(PASSED,))
DECISION = PlanDecision(next=NextStep.APPLY, environment=(SECRET,), denied=True)
TOKENS = Tokens(api="hunter2-api", oidc="hunter2-oidc", refresh_seconds=9)
SETTLEMENT = Settlement(verdict=Verdict.FAILED, log_length=3, reason="r", code="c")


@pytest.fixture(name="path")
def _path(tmp_path):
    return tmp_path / "journal.db"


@contextlib.contextmanager
def opened(path, key=A_KEY):
    with contextlib.closing(Journal.opened(path, key)) as journal:
        yield journal


def full(journal):
    """An entry with every step in it."""
    entry = journal.claiming(2, OFFER, "01CLAIM")
    entry.claimed(HELD)
    entry.created(MADE)
    entry.entered(RunState.INITIALIZING)
    entry.sending("initialize")
    entry.ended("initialize", 0)
    entry.sending("plan")
    entry.planned(DECISION)
    entry.issued(TOKENS)
    entry.issued(TOKENS)
    entry.cancelled("too long")
    entry.decided(Outcome(verdict=Verdict.FAILED, reason="r", code="c"))
    entry.exited(SETTLEMENT)
    return entry


def test_the_next_life_knows_what_this_one_did(path):
    """Everything that was written is read again, by another process with the same key."""
    with opened(path) as journal:
        written = full(journal).past
    with opened(path) as journal:
        (entry,) = journal.unfinished()
        entry.remembered()

    past = entry.past
    assert past.resumed
    assert not written.resumed
    assert (2, OFFER, "01CLAIM", boot_id()) == (
        past.slot,
        past.offer,
        past.identity,
        past.boot,
    )
    for name in (
        *("held", "made", "attempts", "entered", "sent", "decision", "cancelled"),
        *("outcome", "settlement", "tokens"),
    ):
        assert getattr(written, name) == getattr(past, name), name
    assert not past.rebooted


def test_a_job_that_is_over_is_forgotten(path):
    """Nothing of a job stays, and other jobs do."""
    with opened(path) as journal:
        entry = full(journal)
        journal.claiming(0, Offer(job="02JOB", run="02RUN"), "02CLAIM")
        assert {"01JOB", "02JOB"} == journal.live()
        entry.over()
        assert {"02JOB"} == journal.live()
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert [(0,)] == database.execute("SELECT count(*) FROM steps").fetchall()


def test_what_a_newer_launcher_wrote_is_passed_over(path):
    """
    After going back a version, unknown steps, states and keys hide nothing of the rest.
    """
    with opened(path) as journal:
        written = full(journal).past
    newer = [
        ("entered", b"STATE_OF_TOMORROW"),
        ("step_of_tomorrow", b"{}"),
        ("decided", b'{"verdict":"failed","reason":"r","code":"c","of_tomorrow":1}'),
    ]
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT INTO steps (claim, step, fact) VALUES ('01CLAIM', ?, ?)", newer
        )
    with opened(path) as journal, capture_logs() as logs:
        (entry,) = journal.unfinished()
        entry.remembered()
    assert [line["step"] for line in logs] == ["entered"]
    assert entry.past.entered == written.entered
    assert entry.past.sent == written.sent
    assert entry.past.outcome == written.outcome


def test_two_claims_of_one_job_are_two_entries(path):
    """A slot that was too late for a job takes nothing from the one that has it."""
    with opened(path) as journal:
        winner = full(journal)
        journal.claiming(1, OFFER, "late").over()
        winner.sending("apply")
        assert {"01JOB"} == journal.live()


def test_secrets_are_sealed(path):
    """Neither the job, its token nor any secret can be read without the pool's key."""
    with opened(path) as journal:
        full(journal)
        bytes_on_disk = b"".join(
            file.read_bytes() for file in path.parent.iterdir() if file.is_file()
        )
    for secret in (
        *("hunter2-hunter2", "fencing-token", "passed-through-secret"),
        *("hunter2-api", "hunter2-oidc"),
    ):
        assert secret.encode() not in bytes_on_disk
    with opened(path, PoolKey.make()) as journal, capture_logs() as logs:
        (entry,) = journal.unfinished()
        entry.remembered()
    assert (None, None) == (entry.past.held, entry.past.decision)
    sealed = ["claimed", "created", "planned", "issued", "issued"]
    assert sealed == [line["step"] for line in logs]


def test_nobody_else_may_read_it(path):
    """The journal's files are for their owner only."""
    before = os.umask(0)
    try:
        with opened(path) as journal:
            full(journal)
            modes = {
                f.name: stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()
            }
    finally:
        os.umask(before)
    assert {"journal.db", "journal.db-wal", "journal.db-shm"} == modes.keys()
    assert {0o600} == set(modes.values())


def test_a_step_is_on_the_disk_when_the_call_returns(path):
    """A process that is killed right after a step has not lost it."""
    program = """
        import os, signal, sys
        from pathlib import Path
        from given import A_KEY
        from launcher.journal import Journal
        from launcher.wire.messages import Offer
        journal = Journal.opened(Path(sys.argv[1]), A_KEY)
        entry = journal.claiming(0, Offer(job="01JOB", run="01RUN"), "01CLAIM")
        entry.sending("plan")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert -signal.SIGKILL == killed.returncode
    with opened(path) as journal:
        (entry,) = journal.unfinished()
        entry.remembered()
    assert ("plan",) == entry.past.sent


def test_every_commit_is_synced(path):
    """A power cut loses nothing either: each commit waits for the disk."""
    with opened(path) as journal:
        (level,) = journal._connection.execute("PRAGMA synchronous").fetchone()
        (mode,) = journal._connection.execute("PRAGMA journal_mode").fetchone()
    assert (2, "wal") == (level, mode)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no database at all" * 1000),
        lambda path: os.truncate(path, 5000),
        lambda path: path.write_bytes(path.read_bytes().replace(b"claim", b"clam!")),
    ],
)
def test_a_damaged_journal_is_moved_aside(path, damage):
    """A journal that cannot be read is kept for the operator, and a new one begun."""
    with opened(path) as journal:
        full(journal)
    damage(path)
    with capture_logs() as logs, opened(path) as journal:
        assert [] == journal.unfinished()
        full(journal)
    assert ["journal.damaged"] == [line["event"] for line in logs]
    assert path.with_name("journal.db.damaged").exists()


def test_no_journal_no_start(tmp_path):
    """A launcher that cannot have a journal does not start."""
    with pytest.raises(StateDirectoryUnusable, match="journal"):
        Journal.opened(tmp_path / "missing" / "journal.db", A_KEY)


def test_what_cannot_be_written_is_not_done(path):
    """When a step cannot be written the caller learns of it, before it goes on."""
    with opened(path) as journal:
        entry = full(journal)
        journal._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(JournalUnusable, match="the worker's disk is full"):
            for _ in range(1000):
                entry.sending("plan" * 100)
        assert "plan" * 100 not in {entry.past.sent[-1]} or entry.past.sent.count(
            "plan" * 100
        ) == len(_sent_on_disk(journal))


def _sent_on_disk(journal):
    return [s for s, fact in journal.steps("01CLAIM") if fact == b"plan" * 100]


def test_labels_are_enough(path):
    """An entry can be made of what a container's labels say, and is remembered as such."""
    found = Found(
        job="01JOB",
        run="01RUN",
        phase_class="plan",
        image=IMAGE,
        receipt="0" * 64,
        origin=Origin(slot=4, claim="01CLAIM", attempt=2),
    )
    with opened(path) as journal:
        journal.from_labels(found)
    with opened(path) as journal:
        (entry,) = journal.unfinished()
        entry.remembered()
    assert entry.past.from_labels
    assert (4, "01CLAIM", IMAGE) == (
        entry.past.slot,
        entry.past.identity,
        entry.past.made.image,
    )


def test_a_restart_of_the_machine_shows(path, monkeypatch):
    """Whether the machine was started since a job was taken is known."""
    with opened(path) as journal:
        full(journal)
    other = path.with_name("boot")
    other.write_text("another boot\n")
    monkeypatch.setattr("launcher.journal._BOOT", other)
    with opened(path) as journal:
        (entry,) = journal.unfinished()
    assert entry.past.rebooted
    monkeypatch.setattr("launcher.journal._BOOT", Path("/nowhere"))
    assert "" == boot_id()


def test_many_entries_are_read_at_once(path):
    """A start that reads many entries in as many threads, all for the first time, lives."""
    with opened(path) as journal:
        for number in range(8):
            offer = Offer(job=f"{number}", run="01RUN")
            entry = journal.claiming(number, offer, f"claim {number}")
            entry.claimed(HELD)
            entry.planned(DECISION)
    program = """
        import sys, threading
        from pathlib import Path
        sys.setswitchinterval(1e-6)
        from given import A_KEY
        from launcher.journal import Journal
        entries = Journal.opened(Path(sys.argv[1]), A_KEY).unfinished()
        ready = threading.Barrier(len(entries))
        def read(entry):
            ready.wait()
            entry.remembered()
        threads = [threading.Thread(target=read, args=(each,)) for each in entries]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(each.past.decision for each in entries)
    """
    for _ in range(3):
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
        )
