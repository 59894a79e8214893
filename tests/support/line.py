"""The launcher's whole line on fakes: a job goes in, and what became of it comes out."""

import contextlib
import threading

from dataclasses import dataclass, field, replace

from given import A_KEY, a_job, a_run, eventually

import msgspec

from launcher.cancel import CancelToken
from launcher.images import Pattern
from launcher.output.spool import Spools
from launcher.journal import Journal
from launcher.pipeline import run_job
from launcher.ports import Ports
from launcher.sealing.keys import PoolKey
from launcher.settings import Settings
from launcher.sight import Sight
from launcher.testing.control_plane import MemoryControlPlane
from launcher.testing.credentials import ScriptedCredentials
from launcher.testing.engine import ShellEngine
from launcher.testing.policies import ScriptedPolicy
from launcher.testing.sources import MemorySource
from launcher.wire.jobs import Hooks, Source, Variable
from launcher.wire.messages import NextStep


COMMIT = "7d629c6c3f3b6da07e28a87727f0586e577d98c1"
IMAGE = "registry.example/runner:1"

# Says how it is called, and does what the file <command>.sh says.  Of state and
# outputs it tells in silence what the files of these names say.
TERRAFORM = b"""#!/bin/sh
case $* in
"show -json") cat state.json 2>/dev/null || echo '{"format_version":"1.0"}' ; exit ;;
"output -json") cat outputs.json 2>/dev/null || echo '{}' ; exit ;;
esac
echo "+ terraform $*" >&2
case $1 in
show) cat plan.json ;;
*) [ ! -e "$1.sh" ] || . "./$1.sh" ;;
esac
"""


def plan(*actions):
    """What `terraform show -json` prints of a plan."""
    return msgspec.json.encode(
        {
            "format_version": "1.2",
            "resource_changes": [
                {
                    "address": f"null_resource.r{number}",
                    "type": "null_resource",
                    "change": {"actions": [action]},
                }
                for number, action in enumerate(actions)
            ],
        }
    )


CHANGES, NO_CHANGES = plan("create"), plan("no-op")
STUBBORN = b"trap 'echo saving; exit 3' INT; echo ready; while :; do sleep 0.02; done\n"


@dataclass
class Line:
    """Ports, settings and a way to run a job through all of it."""

    plane: MemoryControlPlane
    engine: ShellEngine
    folder: object
    source: MemorySource = field(default_factory=MemorySource)
    policy: ScriptedPolicy = field(default_factory=ScriptedPolicy.denying)
    credentials: ScriptedCredentials = field(default_factory=ScriptedCredentials)
    key: PoolKey = A_KEY
    abort: CancelToken = field(default_factory=CancelToken)
    ended: threading.Event = field(default_factory=threading.Event)
    journal: Journal = None
    sight: Sight = field(default_factory=Sight)
    settings: Settings = field(
        default_factory=lambda: Settings(
            images=replace(
                Settings().images, allowed_images=(Pattern.parse("registry.example/*"),)
            )
        )
    )

    def limited(self, **run):
        """Change the settings about runs."""
        self.settings = replace(self.settings, run=replace(self.settings.run, **run))

    def job(self, files=None, *, environment=(), tree=None, **changes):
        """A job on a repository with *files*, and with the fake tool in it."""
        self.source.commits[COMMIT] = tree or {
            "bin/terraform": TERRAFORM,
            "plan.json": CHANGES,
            **(files or {}),
        }
        job = a_job()
        path = Variable(name="PATH", value="/mnt/workspace/source/bin:/usr/bin:/bin")
        given = {
            "docker_image": IMAGE,
            "hooks": Hooks(),
            "environment": (path, *environment),
            "mounted_files": (),
            "stack": msgspec.structs.replace(job.stack, project_root=""),
            "source": Source(url="https://git.example/acme/testing-spacelift.git"),
            "run": a_run(),
            **changes,
        }
        return msgspec.structs.replace(job, **given)

    def run(self, job, **script):
        """Offer *job* and run it to its end."""
        with self.running(job, **script) as record:
            pass
        return record

    @contextlib.contextmanager
    def running(self, job, *, offer=None, **script):
        """Run *job* beside the block, and see it end."""
        offer = offer or self.plane.add(job, **script)
        ports = self.ports()
        self.ended.clear()

        def work():
            run_job(0, offer, ports, self.settings, self.abort)
            self.ended.set()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield self.plane.jobs[offer.job]
        finally:
            thread.join(60)
        assert self.ended.is_set()
        assert [] == list(self.folder.iterdir())
        assert [] == self.spools.remaining()

    def ports(self):
        """The world as it is now."""
        return Ports(
            source=self.plane,
            progress=self.plane,
            log=self.plane,
            workspaces=self.plane,
            code=self.source,
            credentials=self.credentials,
            policy=self.policy,
            engine=self.engine,
            endpoint="https://spacelift.example.com",
            journal=self.journal,
            key=self.key,
            scratch=self.folder,
            rescued=self.folder.parent / "rescued",
            spools=self.spools,
            sight=self.sight,
        )

    @property
    def spools(self):
        folder = self.folder.with_name(f"{self.folder.name}-spools")
        return Spools(folder, per_job=1 << 30, total=1 << 30)

    def journaled(self, record, step):
        """Whether the journal has that step of the job."""
        return any(
            step in dict(self.journal.steps(entry.past.identity))
            for entry in self.journal.unfinished()
            if entry.past.offer.job == record.job.id
        )

    def prints(self, record, text):
        """Wait until *text* is in the log."""
        eventually(
            lambda: text in bytes(record.log), f"no {text!r} in {bytes(record.log)!r}"
        )

    def apply_of(self, record):
        """The job that goes on where *record*'s handed over."""
        offer = self.plane.confirm(record.job.id, f"{record.job.id}-apply")
        with self.running(None, offer=offer) as applying:
            pass
        return applying


AUTODEPLOY = {"next_step": NextStep.APPLY}
HAND_OVER = {"next_step": NextStep.HAND_OVER}
