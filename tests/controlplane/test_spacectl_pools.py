"""What the real spacectl sends about worker pools, replayed word for word."""

import pytest

from controlplane.site import Refused, eventually
from support.pool_keys import KEY, credentials

from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.jobs import HttpJobSource
from launcher.errors import Cycled


POSITION = {"field": "position", "direction": "ASC"}


def asked(**changes):
    return {
        "first": 100,
        "after": None,
        "fullTextSearch": None,
        "predicates": None,
        "orderBy": POSITION,
        **changes,
    }


def test_a_queue_is_watched(site, api, spacectl, worker):
    """[capability 56] [capability 71] What workers hold, then what waits, in order."""
    runs = [api.trigger(type="PROPOSED") for _ in range(3)]
    for run in runs:
        eventually(lambda: api.state(run) == "READY")
    held = worker.take()

    def seen(**changes):
        return spacectl("Q.privatePoolRuns", id=site.pool, input=asked(**changes))[
            "workerPool"
        ]["searchSchedulableRuns"]

    nodes = [edge["node"] for edge in seen()["edges"]]
    assert [node["run"]["id"] for node in nodes] == [
        held.run,
        *(run for run in runs if run != held.run),
    ]
    assert [node["position"] for node in nodes] == [0, 1, 2]
    assert {node["stackId"] for node in nodes} == {site.slug}
    assert nodes[0]["run"]["state"] == "PREPARING"
    first = seen(first=2)
    assert first["pageInfo"]["hasNextPage"]
    rest = seen(first=2, after=first["pageInfo"]["endCursor"])
    assert [edge["node"] for edge in rest["edges"]] == nodes[2:]
    nobody = spacectl("Q.publicPoolRuns", input=asked())
    assert nobody["publicWorkerPool"]["searchSchedulableRuns"]["edges"] == []
    unknown = spacectl("Q.privatePoolRuns", id="nope", input=asked())
    assert unknown == {"workerPool": None}


def test_a_worker_is_drained(site, api, spacectl, worker):
    """[capability 50] [capability 52] [capability 53] Its run finishes, and no other begins."""
    api.trigger(type="PROPOSED")
    held = worker.take()
    change = lambda drain, **more: spacectl(  # noqa: E731
        "M.workerDrainSet",
        **{"workerPool": site.pool, "worker": worker.id, "drain": drain, **more},
    )
    assert change(True) == {"workerDrainSet": {"id": worker.id}}

    def standing():
        (one,) = spacectl("Q.workerDrainPoll", workerPool=site.pool)["workerPool"][
            "workers"
        ]
        return one["busy"], one["drained"]

    assert standing() == (True, True)
    held.planned(changes=False)
    held.settle("finished")
    assert standing() == (False, True)
    run = api.trigger(type="PROPOSED")
    eventually(lambda: api.state(run) == "READY")
    assert worker.poll(0.1) is None
    worker.register()
    assert worker.poll(0.1) is None, "it stays drained over a restart"
    change(False)
    assert worker.take().run == run
    for wrong in ({"worker": "01NOPE"}, {"workerPool": "other"}):
        with pytest.raises(Refused, match="was not found"):
            change(True, **wrong)


def test_a_pool_is_cycled(site, api, spacectl, worker):
    """[capability 55] Every launcher is told to end once, and comes back as new."""
    assert spacectl("M.workerPoolCycle", workerPoolId=site.pool) == {
        "workerPoolCycle": True
    }
    api.trigger(type="PROPOSED")
    path = f"/workers/{worker.id}/poll"
    polled = worker("POST", path, {"wait_seconds": 15})
    assert polled == {"offer": None, "cycle": True}
    worker.register()
    worker.take()
    with pytest.raises(Refused, match="was not found"):
        spacectl("M.workerPoolCycle", workerPoolId="nope")


def test_a_launcher_hears_that_it_is_cycled(site, spacectl):
    """[capability 55] As an exception of its own, until it has registered again."""
    client = Client(
        credentials(site.plane, site.workers, site.pool),
        connections=2,
        answer_seconds=30,
    )
    try:
        source = HttpJobSource(client, KEY, instance="i-9", metadata={})
        assert source.receive(0, wait=0.0) is None
        spacectl("M.workerPoolCycle", workerPoolId=site.pool)
        with pytest.raises(Cycled):
            source.receive(0, wait=15.0)
        restarted = HttpJobSource(client, KEY, instance="i-9", metadata={})
        assert restarted.receive(0, wait=0.0) is None
    finally:
        client.close()
