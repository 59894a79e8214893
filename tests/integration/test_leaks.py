"""No secret leaves the process, whichever way what a job did gets out of it."""

import base64
import subprocess
import sys
import textwrap
import urllib.parse

from pathlib import Path

import pytest


STACK = "st4ck/Sécret+&"
ADDED = "added-at-run-time-1"
FILE = "line one of a file\nline two of it"
URL_PASSWORD = "s0urce-p@ss"
REGISTRY = "registry-passw0rd"
SECRETS = (STACK, ADDED, *FILE.split("\n"), URL_PASSWORD, REGISTRY)

PRELUDE = """
    import pathlib, sys, tempfile
    import msgspec
    from launcher import telemetry
    from launcher.errors import SourceUnavailable
    from launcher.policy import Evaluation
    from launcher.testing.control_plane import MemoryControlPlane
    from launcher.testing.engine import ShellEngine
    from launcher.testing.policies import ScriptedPolicy
    from launcher.wire.jobs import Hooks, MountedFile, Source, Variable
    from given import A_KEY
    from launcher.journal import Journal
    from support.line import *

    telemetry.configure("debug")
    folder = pathlib.Path(tempfile.mkdtemp())
    engine = ShellEngine(folder, stop_seconds=0.5)
    journal = Journal.opened(folder.with_name(folder.name + ".db"), A_KEY)
    line = Line(
        plane=MemoryControlPlane(), engine=engine, folder=folder, journal=journal
    )
    line.credentials.logins = {"registry.example": ("anna", REGISTRY)}

    def job(files=None, **changes):
        return line.job(
            files,
            **{
                "environment": (Variable(name="TOKEN", value=STACK, secret=True),),
                "mounted_files": (
                    MountedFile(path="key", content=FILE.encode(), secret=True),
                ),
                "source": Source(url=SOURCE),
                **changes,
            },
        )

    def ran(job, **script):
        record = line.run(job, **script)
        print(bytes(record.log).decode("utf-8", "replace"))
        print(repr(record.settlement), repr(record.plan), repr(record.entered))
        print(repr(line.plane.calls))
        return record
"""

PRINTING = """
    show = (
        'printf "%s\\\\n" "$TOKEN"; cat ../key; printf "%s" "$TOKEN" | base64;'
        f' echo "::add-mask {ADDED}"; echo it is {ADDED}; '
        f' printf %s {ADDED} | base64'
    )
    plan = CHANGES.replace(b"null_resource.r0", f"a.b[{ADDED}]".encode())
    record = ran(
        job({"plan.json": plan}, hooks=Hooks(before_init=(show,))), **HAND_OVER
    )
    assert "handed_over" == record.settlement.verdict, record.settlement
    second = job(hooks=Hooks(before_apply=(f"echo still {ADDED}",)))
    offer = line.plane.confirm(record.job.id, "01APPLY")
    with line.running(line.plane.jobs["01APPLY"].job, offer=offer) as applied:
        pass
    print(bytes(applied.log).decode(), repr(applied.settlement))
    assert "finished" == applied.settlement.verdict, applied.settlement
"""

DENYING = """
    def deny(_):
        return Evaluation(
            body=STACK, sample=True, results={"deny": [STACK, FILE], "sample": True}
        )

    line.policy = ScriptedPolicy(deny)
    ran(job())
"""

CRASHING = """
    def crash(_):
        raise ZeroDivisionError(f"{STACK} {REGISTRY} {FILE}")

    line.policy = ScriptedPolicy(crash)
    ran(job())
"""

BROKEN = """
    engine.broken = f"no {STACK} {URL_PASSWORD} {REGISTRY}"
    ran(job())
"""

UNFETCHED = """
    line.source.commits = {}
    line.source.fetch = lambda job, *_: (_ for _ in ()).throw(
        SourceUnavailable(f"no {job.source.url}", details=job.source.url)
    )
    ran(job())
"""

HOOK = """
    ran(job(hooks=Hooks(before_init=(f"echo {STACK!r}; exit 3",), after_run=("exit 4",))))
"""


def forms(secret):
    raw = secret.encode()
    yield secret
    yield base64.b64encode(raw).decode()[:-4]
    yield urllib.parse.quote(secret, safe="")
    yield repr(secret)[1:-1]


@pytest.mark.processes
@pytest.mark.parametrize(
    "program",
    [PRINTING, DENYING, CRASHING, BROKEN, UNFETCHED, HOOK],
    ids=["printing", "denying", "crashing", "broken", "unfetched", "hook"],
)
def test_nothing_that_leaves_the_process_holds_a_secret(program, tmp_path):
    """Log, reports, outcome, samples, daemon's log and exceptions are searched for all."""
    source = f"https://anna:{urllib.parse.quote(URL_PASSWORD)}@git.example/a/b.git"
    values = "\n".join(
        f"{name} = {value!r}"
        for name, value in {
            "STACK": STACK,
            "ADDED": ADDED,
            "FILE": FILE,
            "URL_PASSWORD": URL_PASSWORD,
            "REGISTRY": REGISTRY,
            "SOURCE": source,
        }.items()
    )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(PRELUDE + program).replace(
                "\nfrom launcher import telemetry",
                f"\n{values}\nfrom launcher import telemetry",
                1,
            ),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env={
            "PYTHONPATH": "tests:.",
            "PATH": "/usr/bin:/bin",
            "TMPDIR": str(tmp_path),
        },
        check=False,
    )
    everything = result.stdout + result.stderr
    assert 0 == result.returncode, everything
    assert '"msg": "job.settled"' in result.stderr
    assert "*****" in everything
    for secret in SECRETS:
        for form in forms(secret):
            assert form not in everything, (form, everything)
