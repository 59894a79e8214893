"""SIGKILL at any moment: no run is stuck, no event is lost, and nothing happens twice."""

import contextlib
import json
import random
import signal
import threading

import urllib3

from controlplane.site import (
    Api,
    Held,
    Process,
    Worker,
    configuration,
    eventually,
    stack,
)
from controlplane.test_webhooks import receiver


AWAY = (urllib3.exceptions.HTTPError, OSError)


class Mortal:
    """A server that is killed when told, while a request is under way, and started again."""

    def __init__(self, folder, given, scope):
        self._folder, self._given, self._scope = folder, given, scope
        self._chance = random.Random(8)  # noqa: S311 (moments, not secrets)
        self._listen = {}
        self._start()

    def _start(self):
        self.process = Process(self._folder, self._given, **self._listen)
        self._scope.callback(self.process.end)
        self.process.started()
        self._listen = {
            "listen": self.process.base.removeprefix("http://"),
            "listen_workers": self.process.workers.removeprefix("https://"),
        }
        api = self.process.api()
        self.api = Api(api.base, api.http)
        self.api.jwt = api.jwt
        self.connections = self.process.connections()

    def during(self, request):
        """
        Do *request*, and kill the server somewhere in it; repeat until it is answered.

        *request* gets the server, and must be one that may be repeated.
        """
        answers = []

        def attempt():
            with contextlib.suppress(*AWAY):
                answers.append(request(self))

        asking = threading.Thread(target=attempt)
        asking.start()
        asking.join(self._chance.uniform(0, 0.06))
        self.process.signal(signal.SIGKILL)
        self.process.process.wait()
        asking.join()
        self._start()
        return request(self)


def test_a_run_survives_a_server_that_dies_at_every_step(tmp_path, repository):
    """Killed in the middle of each request of a run's life, it comes out as if nothing had been."""
    with receiver() as (url, got), contextlib.ExitStack() as scope:
        hook = {
            "name": "ops",
            "url": url,
            "secret_env": "CI_SECRET",
            "allow_local": True,
        }
        given = configuration([stack(repository)], webhooks=[hook])
        server = Mortal(tmp_path, given, scope)

        def trigger(server):
            """Whether the first one was heard of, nobody knows: look before the second."""
            query = '{stack(id: "testing-spacelift"){runs{id}}}'
            runs = [each["id"] for each in server.api(query)["stack"]["runs"]]
            return runs[0] if runs else server.api.trigger(metadata="why")

        run = server.during(trigger)
        eventually(lambda: server.api.state(run) == "READY")
        first = server.process.worker()

        def worker(server):
            return Worker(
                server.process.workers, server.connections, first.key, first.instance
            ).register()

        assert server.during(worker).id == first.id

        offer = worker(server).poll(20)
        claimed = server.during(lambda s: worker(s).claim(offer["job"]))

        def held(server, offset):
            return Held(worker(server), claimed, offset)

        lines = [f"line {number}\n".encode() * 2000 for number in range(3)]
        sent = 0
        for line in lines:
            at = sent
            server.during(lambda s, at=at, line=line: held(s, at).log(line))
            sent += len(line)
        for state in ("INITIALIZING", "PLANNING"):
            server.during(lambda s, state=state: held(s, sent).enter(state))
        answer = server.during(lambda s: held(s, sent).plan())
        assert answer["next"] == "hand_over"

        def store(server):
            """As launchers do: what was being finished when it died is sent once more."""
            one = held(server, sent)
            part = f"{one.path}/workspace?upload=u-1&offset=0"
            one.worker.raw("PUT", part, b"the workspace", token=one.token)
            return one.store(b"the workspace")

        server.during(store)
        server.during(lambda s: held(s, sent).settle("handed_over"))

        def confirm(server):
            if server.api.state(run) == "UNCONFIRMED":
                server.api.change("confirm", run)

        server.during(confirm)
        offer = worker(server).poll(20)
        claimed = server.during(lambda s: worker(s).claim(offer["job"], "c-2"))
        server.during(lambda s: held(s, 0).enter("APPLYING"))
        server.during(lambda s: held(s, 0).settle("finished"))

        states = [
            "QUEUED", "READY", "PREPARING", "INITIALIZING", "PLANNING",
            "UNCONFIRMED", "CONFIRMED", "PREPARING_APPLY", "APPLYING", "FINISHED",
        ]  # fmt: skip
        assert server.api.states(run) == states
        assert server.api.read_log(run, "PREPARING") == b"".join(lines).decode()
        told = lambda: {  # noqa: E731
            event["stateVersion"]: event["state"]
            for event in (json.loads(body) for _, body in list(got))
        }
        eventually(lambda: len(told()) == len(states))
        assert [told()[number] for number in sorted(told())] == states
        # And the next one finds its way free.
        following = server.api.trigger()
        assert worker(server).take(20).run == following
