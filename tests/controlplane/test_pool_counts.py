"""How many workers and runs there are, as Prometheus is told."""

import re

import pytest

from controlplane.site import eventually
from launcher.controlplane.errors import StoreAway
from launcher.controlplane.pool_counts import KNOWN_SECONDS, PoolCount, PoolCounts


_LINE = re.compile(
    r'spacelift_worker_pool_(?P<name>\w+)\{worker_pool_id="(?P<id>[^"]*)",'
    r'worker_pool_name="(?P<pool>[^"]*)"\} (?P<value>\S+)'
)


def told(site):
    """The gauges of the site's pool, and every pool that there are gauges of."""
    text = site.http.request("GET", f"{site.base}/metrics").data.decode()
    found = [match for line in text.splitlines() if (match := _LINE.fullmatch(line))]
    assert all(match["id"] == match["pool"] for match in found)
    ours = {m["name"]: float(m["value"]) for m in found if m["pool"] == site.pool}
    return ours, {match["pool"] for match in found}


def test_pools_are_counted(site, api, spacectl, worker):
    """[capability 226] Pending runs, and workers: there, busy, drained, and free."""
    idle = site.worker(slot=1)
    drain = {"workerPool": site.pool, "worker": idle.id, "drain": True}
    spacectl("M.workerDrainSet", **drain)
    runs = [api.trigger(type="PROPOSED") for _ in range(3)]
    eventually(lambda: {api.state(run) for run in runs} == {"READY"})
    worker.take()

    counted, pools = eventually(
        lambda: (told(site)[0].get("workers_busy"), told(site))
    )[1]

    assert counted == {
        "runs_pending": 2,
        "workers": 2,
        "workers_busy": 1,
        "workers_drained": 1,
        "workers_free": 0,
    }
    assert pools == {site.pool, "other"}, "those of the configuration, and no more"


def test_free_workers_are_those_that_would_get_a_run(site, api, spacectl, worker):
    """A drained worker that still has its run is not taken for one of the others."""
    site.worker(slot=1)
    run = api.trigger(type="PROPOSED")
    eventually(lambda: api.state(run) == "READY")
    worker.take()
    drain = {"workerPool": site.pool, "worker": worker.id, "drain": True}
    spacectl("M.workerDrainSet", **drain)

    counts = PoolCounts(site.plane.store).now()
    assert PoolCount(site.pool, 0, 2, 1, 1, 1) in counts


def test_workers_that_are_gone_are_not_counted(site, worker, monkeypatch):
    """Whoever was silent for too long is not there, unless it has a run."""
    counts = PoolCounts(site.plane.store)
    of_pool = lambda: next(c for c in counts.now() if c.pool == site.pool)  # noqa: E731
    assert of_pool().workers == 1
    monkeypatch.setattr("launcher.controlplane.pool_counts.GONE_AFTER", 0)
    counts = PoolCounts(site.plane.store)
    assert of_pool() == PoolCount(site.pool, 0, 0, 0, 0, 0)


def test_the_database_is_asked_once_a_second(site):
    """However many look, the answer is given again until it is old."""
    at = [100.0]
    counts = PoolCounts(site.plane.store, clock=lambda: at[0])
    of_pool = lambda: next(c for c in counts.now() if c.pool == site.pool)  # noqa: E731
    assert of_pool().workers == 0
    site.worker()
    at[0] += KNOWN_SECONDS / 2
    assert of_pool().workers == 0
    at[0] += KNOWN_SECONDS / 2
    assert of_pool().workers == 1


def test_without_a_database_the_rest_is_told(site, monkeypatch):
    """What cannot be counted is left out; when certificates expire is still said."""

    def away():
        raise StoreAway

    monkeypatch.setattr(site.plane.pool_counts, "now", away)
    response = site.http.request("GET", f"{site.base}/metrics")
    assert response.status == 200
    assert b"certificate_expires_seconds" in response.data
    assert b"spacelift_worker_pool" not in response.data
    with pytest.raises(StoreAway):
        site.plane.pool_counts.now()
