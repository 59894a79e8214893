"""A control plane to test against: the real server, database and repositories."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

from dataclasses import dataclass, field
from pathlib import Path

import urllib3
import yaml

from support.pool_keys import KEY, credentials, credentials_of, request

from launcher.controlplane import desired_state, pool_tokens
from launcher.controlplane.serve import Loop, Servers, address_of, bound
from launcher.controlplane.services import Limits, control_plane
from launcher.sealing import box
from launcher.wire.messages import (
    PREFIX,
    TOKEN_HEADER,
    VERSION_HEADER,
    for_job,
    for_plan_answer,
)


ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
ENVIRON = {
    "CI_SECRET": "hunter2-of-the-key",
    "STACK_SECRET": "hunter2-of-the-stack",
    "PATH": os.environ["PATH"],
}
PATIENCE = 100.0
"""Seconds: a server that starts on a machine with much else to do may need most."""


def eventually(condition, what="it never happened"):
    """Wait until *condition* holds and return its value."""
    pause, end = threading.Event(), time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, what
        pause.wait(0.01)
    return value


class Repository:
    """A git repository with a branch main."""

    def __init__(self, path):
        self.path = path
        self.url = f"file://{path}"
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments):
        done = subprocess.run(
            ["git", "-c", "user.name=Ann Author", "-c", "user.email=a@b", *arguments],
            cwd=self.path,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, message="Update main.tf"):
        (self.path / "main.tf").write_text(f"# {message} {time.monotonic_ns()}\n")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")


def stack(origin, slug="testing-spacelift", **changes):
    return {
        "slug": slug,
        "name": slug.replace("-", " ").title(),
        "repository": f"acme/{slug}",
        "source": {"git": origin.url},
        "branch": "main",
        "worker_pool": "default",
        **changes,
    }


def configuration(stacks, **changes):
    return {
        "account": "acme",
        "api_keys": [{"id": "ci", "secret_env": "CI_SECRET"}],
        "worker_pools": [{"name": "default"}, {"name": "other"}],
        "stacks": stacks,
        **changes,
    }


def policy(name, body, kind="plan", **more):
    return {"name": name, "type": kind, "body": f"package spacelift\n{body}", **more}


DENY = policy(
    "no-nulls",
    """deny[sprintf("%s is not wanted", [resource.address])] {
  resource := created_resources[_]
  resource.type == "null_resource"
}
sample { true }
""",
)
WARN = policy("careful", 'warn["look at it"] { true }\nflag["seen"] { true }')
APPROVE = policy(
    "two-eyes",
    """approve { count(input.reviews.current.approvals) > 0 }
reject { count(input.reviews.current.rejections) > 0 }
sample { true }
""",
    "approval",
)


class Refused(Exception):
    """A GraphQL answer with an error."""


class Api:
    """A client of the GraphQL API."""

    def __init__(self, base, http, slug="testing-spacelift"):
        self.base = base
        self.http = http
        self.slug = slug
        self.jwt = ""

    def post(self, document, variables=None, headers=None):
        body = {"query": document}
        if variables:
            body["variables"] = variables
        bearer = {"Authorization": f"Bearer {self.jwt}"} if self.jwt else {}
        return self.http.request(
            "POST",
            f"{self.base}/graphql",
            body=json.dumps(body) + "\n",
            headers={"Content-Type": "application/json", **bearer, **(headers or {})},
        )

    def __call__(self, document, variables=None, headers=None):
        response = self.post(document, variables, headers)
        assert response.status == 200, response.data
        answer = response.json()
        if answer.get("errors"):
            raise Refused(answer["errors"][0]["message"])
        return answer["data"]

    def sign_in(self, key="ci", secret=ENVIRON["CI_SECRET"]):
        document = (
            "mutation($id:ID!$secret:String!)"
            "{apiKeyUser(id: $id, secret: $secret){jwt,validUntil}}"
        )
        self.jwt = self(document, {"id": key, "secret": secret})["apiKeyUser"]["jwt"]
        return self

    def trigger(self, stack=None, metadata=None, **variables):
        document = (
            "mutation($sha:String$stack:ID!$type:RunType)"
            "{runTrigger(stack: $stack, commitSha: $sha, runType: $type){id}}"
        )
        header = "Spacelift-User-Provided-Run-Metadata"
        headers = {header: metadata.encode()} if metadata is not None else None
        return self(document, {"stack": stack or self.slug, **variables}, headers)[
            "runTrigger"
        ]["id"]

    def change(self, what, run, stack=None):
        name = f"run{what.capitalize()}"
        document = (
            f"mutation($run:ID!$stack:ID!){{{name}(stack: $stack, run: $run){{id}}}}"
        )
        return self(document, {"run": run, "stack": stack or self.slug})

    def history(self, run, stack=None):
        document = (
            "query($run:ID!$stack:ID!){stack(id: $stack){run(id: $run)"
            "{history{hasLogs,note,state,stateVersion,terminal,timestamp,username}}}}"
        )
        answer = self(document, {"run": run, "stack": stack or self.slug})
        return answer["stack"]["run"]["history"]

    def states(self, run, stack=None):
        """Oldest first."""
        return [entry["state"] for entry in reversed(self.history(run, stack))]

    def state(self, run, stack=None):
        return self.history(run, stack)[0]["state"]

    def log_page(self, run, entry, token=None, stack=None):
        document = (
            "query($run:ID!$stack:ID!$state:RunState!$stateVersion:Int!$token:String)"
            "{stack(id: $stack){run(id: $run){logs(state: $state, token: $token, "
            "stateVersion: $stateVersion)"
            "{exists,finished,hasMore,messages{message},nextToken}}}}"
        )
        variables = {
            "run": run,
            "stack": stack or self.slug,
            "state": entry["state"],
            "stateVersion": entry["stateVersion"],
            "token": token,
        }
        return self(document, variables)["stack"]["run"]["logs"]

    def read_log(self, run, state):
        """Everything a state has printed, page by page, as spacectl reads it."""
        entry = next(each for each in self.history(run) if each["state"] == state)
        assert entry["hasLogs"]
        text, token = "", None
        while True:
            page = self.log_page(run, entry, token)
            text += "".join(message["message"] for message in page["messages"])
            if page["finished"]:
                return text
            token = page["nextToken"]
            assert token is not None


@dataclass
class Worker:
    """One slot of a launcher, as far as the protocol sees it."""

    base: str
    http: object
    key: object = KEY
    instance: str = "i-0"
    slot: int = 0
    id: str = ""

    def raw(self, method, path, body=b"", *, token="", **headers):
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.request(
            method,
            self.base + PREFIX + path,
            body=sent,
            headers={
                VERSION_HEADER: "1",
                **({TOKEN_HEADER: token} if token else {}),
                **headers,
            },
        )

    def __call__(self, method, path, body=b"", *, token="", **headers):
        response = self.raw(method, path, body, token=token, **headers)
        assert response.status == 200, response.data
        return response.json()

    def refused(self, method, path, body=b"", *, token="", **headers):
        """Status, code and next offset of a refusal."""
        response = self.raw(method, path, body, token=token, **headers)
        failure = response.json()
        return response.status, failure["code"]

    def register(self):
        registration = {
            "instance": self.instance,
            "slot": self.slot,
            "version": "0.1.0",
            "metadata": {"host": "here"},
        }
        self.id = self("POST", "/workers", registration)["worker"]
        return self

    def poll(self, seconds=5.0):
        answer = self("POST", f"/workers/{self.id}/poll", {"wait_seconds": seconds})
        return answer["offer"]

    def claim(self, job, claim="c-1"):
        body = {"worker": self.id, "claim": claim}
        claimed = self("POST", f"/jobs/{job}/claim", body)
        sealed = base64.b64decode(claimed.pop("sealed_job"))
        opened = box.opened(sealed, purpose=for_job(job), key=self.key)
        return {**claimed, "job": json.loads(opened)}

    def take(self, seconds=10.0):
        """Wait for a job, claim it, and return it as something to work on."""
        offer = self.poll(seconds)
        assert offer is not None
        return Held(self, self.claim(offer["job"]))


@dataclass
class Held:
    """A claimed job."""

    worker: Worker
    claimed: dict
    offset: int = 0
    sent: list = field(default_factory=list)

    @property
    def job(self):
        return self.claimed["job"]

    @property
    def path(self):
        return f"/jobs/{self.job['id']}"

    @property
    def run(self):
        return self.job["run"]["id"]

    @property
    def token(self):
        return self.claimed["token"]

    def post(self, what, body):
        return self.worker("POST", f"{self.path}/{what}", body, token=self.token)

    def refused(self, what, body):
        return self.worker.refused(
            "POST", f"{self.path}/{what}", body, token=self.token
        )

    def log(self, data):
        path = f"{self.path}/log?offset={self.offset}"
        answer = self.worker("PUT", path, data, token=self.token)
        self.offset = answer["next_offset"]
        return answer

    def enter(self, state):
        return self.post("state", {"state": state, "log_offset": self.offset})

    def plan(self, *, changes=True, applies_here=True):
        change = {
            "action": "added",
            "address": "null_resource.a",
            "type": "null_resource",
        }
        report = {
            "has_changes": changes,
            "changes": [change] if changes else [],
            "applies_here": applies_here,
        }
        answer = self.post("plan", report)
        answer["environment"] = []
        if sealed := base64.b64decode(answer.pop("sealed_environment")):
            purpose = for_plan_answer(self.job["id"])
            opened = box.opened(sealed, purpose=purpose, key=self.worker.key)
            answer["environment"] = json.loads(opened)
        return answer

    def part(self, data, *, upload="u-1", offset=0):
        path = f"{self.path}/workspace?upload={upload}&offset={offset}"
        return self.worker("PUT", path, data, token=self.token)

    def store(self, data=b"workspace", upload="u-1"):
        self.part(data, upload=upload)
        return self.store_rest(data, upload)

    def store_rest(self, data, upload="u-1"):
        """End an upload, all of which was sent."""
        sha256 = hashlib.sha256(data).hexdigest()
        return self.post(
            "workspace", {"upload": upload, "size": len(data), "sha256": sha256}
        )

    def settle(self, verdict, **more):
        body = {"verdict": verdict, "log_length": self.offset, **more}
        return self.post("settle", body)

    def planned(self, **plan):
        """Go through initializing and planning, printing a line in each state."""
        self.log(b"preparing\n")
        self.enter("INITIALIZING")
        self.log(b"initializing\n")
        self.enter("PLANNING")
        self.log(b"planning\n")
        return self.plan(**plan)

    def handed_over(self):
        assert self.planned()["next"] == "hand_over"
        self.store()
        self.settle("handed_over")

    def performed(self):
        """Initialize unless told otherwise, and run the task's command."""
        if "initialize" in self.job["phases"]:
            self.enter("INITIALIZING")
        self.enter("PERFORMING")
        self.log(b"performing\n")
        self.settle("finished")

    def destroyed(self):
        self.enter("DESTROYING")
        self.log(b"destroying\n")
        self.settle("finished")

    def applied(self):
        self.log(b"preparing apply\n")
        self.enter("APPLYING")
        self.log(b"applying\n")
        self.settle("finished")


@dataclass
class Site:
    """A running control plane, in this process."""

    folder: Path
    base: str
    plane: object
    http: object
    workers: str
    """Base of the listener for workers."""
    slug: str = "testing-spacelift"
    pool: str = "default"
    opened: list = field(default_factory=list)

    def api(self):
        return self.stranger().sign_in()

    def stranger(self):
        return Api(self.base, self.http, self.slug)

    def worker(self, pool=None, key=KEY, **names):
        return Worker(
            self.workers, self.connections(pool, key=key), key, **names
        ).register()

    def connections(self, pool=None, **given):
        """Connections of a launcher of *pool*, with its certificate."""
        known = credentials(self.plane, self.workers, pool or self.pool, **given)
        return self.connections_with(known.context())

    @contextlib.contextmanager
    def connected(self):
        """A connection of a launcher of the pool, without anything on top."""
        host, _, port = self.workers.removeprefix("https://").partition(":")
        context = credentials(self.plane, self.workers, self.pool).context()
        with (
            socket.create_connection((host, int(port))) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            yield connection

    def connections_with(self, context):
        self.opened.append(pooled(ssl_context=context))
        return self.opened[-1]

    @property
    def variables(self):
        return {"id": self.slug}

    def configure(self, repository, *, contexts=(), **changes):
        """Give the stack other settings."""
        pools = [{"name": self.pool}, {"name": "other"}]
        one = stack(repository, self.slug, worker_pool=self.pool, **changes)
        self.apply(configuration([one], worker_pools=pools, contexts=list(contexts)))

    def apply(self, given):
        self.plane.apply(
            desired_state.parse(yaml.safe_dump(given), self.folder, ENVIRON)
        )


def pooled(**given):
    return urllib3.PoolManager(maxsize=50, retries=False, timeout=60, **given)


class Backend:
    """The kind of database that sites have; `conftest` switches it."""

    postgres = None
    """A `support.postgres.Postgres`; None: SQLite."""


def database(folder):
    """The URL of the database of the control plane in *folder*."""
    if Backend.postgres is not None:
        return Backend.postgres.url(folder)
    return f"sqlite:///{folder / 'control-plane.db'}"


def data_of(folder):
    """Its data directory: on SQLite the one beside the database."""
    return folder / "control-plane.db.data"


def placed(folder, given):
    """*given*, a configuration, with a place for data wherever one is needed."""
    if Backend.postgres is None or isinstance(given, str):
        return given
    return {"data_directory": str(data_of(folder)), **given}


@contextlib.contextmanager
def running(folder, given, limits=None):
    """Serve *given*, a configuration, until the end of the block."""
    text = yaml.safe_dump(placed(folder, given))
    desired = desired_state.parse(text, folder, ENVIRON)
    with bound("127.0.0.1:0") as people, bound("127.0.0.1:0") as workers:
        base = address_of(people, "http")
        with control_plane(
            desired,
            database(folder),
            endpoint=base,
            environ=ENVIRON,
            limits=limits or Limits(),
        ) as plane:
            running = []

            async def serve():
                servers = Servers(plane, people, workers)
                running.extend((asyncio.get_running_loop(), servers))
                await servers.serve()

            def run():
                with asyncio.Runner(loop_factory=Loop) as runner:
                    runner.run(serve())

            thread = threading.Thread(target=run)
            thread.start()
            http = pooled()
            try:
                eventually(
                    lambda: running and running[1].started or not thread.is_alive()
                )
                site = Site(folder, base, plane, http, address_of(workers, "https"))
                yield site
            finally:
                for each in (http, *site.opened):
                    each.clear()
                loop, servers = running
                loop.call_soon_threadsafe(servers.stop)
                thread.join()


class Process:
    """A control plane in a process of its own."""

    def __init__(
        self, folder, given, listen="127.0.0.1:0", listen_workers="127.0.0.1:0"
    ):
        self.folder = folder
        self.config = folder / "control-plane.yaml"
        self.write(given)
        code = (
            "import sys; from pathlib import Path; from launcher import telemetry; "
            "telemetry.configure(); from launcher.controlplane.serve import serve; "
            "serve(Path(sys.argv[1]), *sys.argv[2:])"
        )
        arguments = [str(self.config), database(folder), listen, listen_workers]
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env={**os.environ, **ENVIRON, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.http = pooled()
        self._opened = [self.http]
        self.base = self.workers = ""

    def write(self, given):
        placed_there = placed(self.folder, given)
        text = given if isinstance(given, str) else yaml.safe_dump(placed_there)
        self.config.write_text(text)

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.decode())

    def events(self, name):
        parsed = []
        for line in list(self.lines):
            with contextlib.suppress(ValueError):
                parsed.append(json.loads(line))
        return [event for event in parsed if event.get("msg") == name]

    def started(self):
        def look():
            assert self.process.poll() is None, "".join(self.lines)
            return self.events("server.listening")

        event = eventually(look)[0]
        self.base, self.workers = event["endpoint"], event["workers_endpoint"]
        return self

    def connections(self):
        """Connections of a launcher of the pool, as `pool create` lets it in."""
        wanted = pool_tokens.Request(
            pool="default", endpoint=self.workers, csr=request(self.folder)
        )
        made = pool_tokens.create(database(self.folder), data_of(self.folder), wanted)
        self._opened.append(pooled(ssl_context=credentials_of(made).context()))
        return self._opened[-1]

    def worker(self, **names):
        return Worker(self.workers, self.connections(), **names).register()

    def api(self):
        return Api(self.base, self.http).sign_in()

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """Kill it, and clean up."""
        for each in self._opened:
            each.clear()
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
