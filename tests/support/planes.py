"""Control planes under test, in memory and over HTTP, with the same handles."""

import contextlib
import itertools

from controlplane.site import Repository, configuration, eventually, running, stack
from given import a_job, a_run
from support.pool_keys import KEY, credentials
from support.proxy import Proxy

from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.jobs import HttpJobSource, HttpLogSink, HttpProgress
from launcher.adapters.controlplane.presigned import PresignedUrls
from launcher.adapters.controlplane.workspaces import HttpWorkspaceStore
from launcher.controlplane.leases import LeaseTerms
from launcher.controlplane.services import Limits
from launcher.errors import ControlPlaneUnavailable
from launcher.testing.control_plane import MemoryControlPlane
from launcher.wire.jobs import Scope, Tokens, Variable
from launcher.wire.messages import NextStep


WRITE_KEY = "only-for-writing"


class MemoryPlane:
    """`MemoryControlPlane`, spoken to as if it was the real one."""

    def __init__(self, lease_seconds):
        self._numbers = itertools.count(1)
        self.plane = MemoryControlPlane(lease_seconds=lease_seconds, renew_seconds=20)
        self.source = self.progress = self.log = self.workspaces = self.plane
        self.trouble, self.outage = self.plane.trouble, self.plane.outage

    def another_launcher(self):
        return self.plane

    def trigger(self, *, autodeploy=False, denied=False):
        number = next(self._numbers)
        tokens = Tokens(
            api="a", oidc="o", graphql_endpoint="https://x/graphql", refresh_seconds=9
        )
        job = a_job(id=f"job-{number}", run=a_run(id=f"run-{number}"), tokens=tokens)
        key = Variable(name="WRITE_KEY", value=WRITE_KEY, scope=Scope.WRITE)
        self.plane.add(
            job,
            next_step=NextStep.APPLY if autodeploy else NextStep.HAND_OVER,
            environment=(key,),
            denied=denied,
        )
        return job.run.id

    def _records(self, run):
        return [each for each in self.plane.jobs.values() if each.job.run.id == run]

    def confirm(self, run):
        planned = self._records(run)[0].job.id
        self.plane.confirm(planned, f"{planned}-apply")

    def request_stop(self, run):
        self.plane.request_stop(self._records(run)[0].job.id)

    def outputs(self, claim):
        """What the stack of a job tells others."""
        found = self.plane.jobs[claim.job.id].outputs.outputs
        return [(each.name, each.sensitive) for each in found]

    def printed(self, run, state):
        """What was printed in a state, as text."""
        (found,) = [r for r in self._records(run) if state in [e[0] for e in r.entered]]
        return found.section(state).decode()

    def states(self, run):
        return [
            entered[0] for record in self._records(run) for entered in record.entered
        ]


class HttpPlane:
    """The real server, its adapters, and a proxy between them; *number* has a pool."""

    def __init__(self, site, proxy, number):
        self._site, self._proxy, self._number = site, proxy, number
        self._api = site.api()
        self._stacks = {}
        self._clients = contextlib.ExitStack()
        self.trouble, self.outage = proxy.trouble, proxy.outage
        client = self._client()
        self.source = HttpJobSource(client, KEY, instance=f"i-{number}", metadata={})
        self.progress = HttpProgress(client, KEY)
        self.log = HttpLogSink(client)
        self.workspaces = HttpWorkspaceStore(client, PresignedUrls([]))

    def _client(self):
        # Where there is a proxy, requests are signed.
        known = credentials(
            self._site.plane,
            self._proxy.base,
            f"pool-{self._number}",
            proof="signature",
        )
        client = Client(known, connections=4, answer_seconds=30)
        self._clients.callback(client.close)
        return client

    def close(self):
        self._clients.close()

    def another_launcher(self):
        return HttpJobSource(
            self._client(), KEY, instance=f"j-{self._number}", metadata={}
        )

    def trigger(self, *, autodeploy=False, denied=False):
        kind = "autodeployed" if autodeploy else "confirmed"
        kind = "denied" if denied else kind
        slug = f"{kind}-{self._number}"
        run = self._api.trigger(slug)
        self._stacks[run] = slug
        return run

    def confirm(self, run):
        self._api.change("confirm", run, self._stacks[run])

    def request_stop(self, run):
        self._api.change("stop", run, self._stacks[run])

    def outputs(self, claim):
        found = self._site.plane.products.outputs(claim.job.stack.slug)
        return [(each["id"], each["sensitive"]) for each in found]

    def printed(self, run, state):
        history = self._api.history(run, self._stacks[run])
        (entry,) = [each for each in history if each["state"] == state]
        text, token = "", None
        while True:
            page = self._api.log_page(run, entry, token, self._stacks[run])
            text += "".join(message["message"] for message in page["messages"])
            if page["finished"]:
                return text
            token = page["nextToken"]

    def states(self, run):
        return [
            state
            for state in self._api.states(run, self._stacks[run])
            if state in ("INITIALIZING", "PLANNING", "APPLYING")
        ]


def _stacks(repository, count):
    for number in range(count):
        given = {
            "repository": "acme/testing-spacelift",
            "worker_pool": f"pool-{number}",
        }
        yield stack(repository, slug=f"confirmed-{number}", **given)
        yield stack(
            repository,
            slug=f"autodeployed-{number}",
            autodeploy=True,
            environment=[{"name": "wo_WRITE_KEY", "value": WRITE_KEY}],
            **given,
        )
        yield stack(repository, slug=f"denied-{number}", policies=["never"], **given)


def _heard(plane):
    """Wait until signatures are old enough for a server that has just started."""

    def answered():
        with contextlib.suppress(ControlPlaneUnavailable):
            plane.source.receive(99, wait=0)
            return True

    with contextlib.closing(plane):
        eventually(answered)


@contextlib.contextmanager
def http_planes(folder, *, count, lease_seconds=90.0):
    """A server with *count* worker pools, each with stacks of its own."""
    repository = Repository(folder / "source")
    repository.commit()
    pools = [{"name": f"pool-{number}"} for number in range(count)]
    body = 'package spacelift\ndeny["never"] { true }\n'
    given = configuration(
        list(_stacks(repository, count)),
        worker_pools=pools,
        policies=[{"name": "never", "type": "plan", "body": body}],
    )
    terms = LeaseTerms(
        lease_seconds=lease_seconds, stop_grace_seconds=0, sweep_seconds=0.05
    )
    limits = Limits(lease_terms=terms, ahead_seconds=0)
    with (
        running(folder, given, limits) as site,
        Proxy(site.base) as proxy,
        contextlib.ExitStack() as opened,
    ):
        _heard(HttpPlane(site, proxy, 0))
        yield (
            opened.enter_context(contextlib.closing(HttpPlane(site, proxy, number)))
            for number in range(count)
        )
