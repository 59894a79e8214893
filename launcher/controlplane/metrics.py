"""What is measured of a control plane; holds no secret, and no name of a stack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.requests import Request
from starlette.responses import Response

from launcher.controlplane.authority import Authority
from launcher.controlplane.errors import StoreAway
from launcher.controlplane.lanes import Lane
from launcher.controlplane.pool_counts import PoolCounts


class _Certificates:
    """Asks when certificates expire whenever somebody looks."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "spacelift_control_plane_certificate_expires_seconds",
            "When a certificate of the control plane expires, in seconds since 1970.",
            labels=["certificate"],
        )
        for name, ends in self._authority.expiries().items():
            family.add_metric([name], ends.timestamp())
        yield family


_OF_POOLS = {
    "runs_pending": "Runs that wait for a worker of the pool.",
    "workers": "Workers of the pool that are there: they wait, or have a run.",
    "workers_busy": "Workers of the pool that have a run.",
    "workers_drained": "Workers of the pool that are there and get no more runs.",
    "workers_free": "Workers of the pool that wait for a run and would get one.",
}
"""Named as by the product's exporter, if it has them: its dashboards then fit."""


class _Pools:
    """Counts workers and runs when somebody looks, once a second at most."""

    def __init__(self, counts: PoolCounts) -> None:
        self._counts = counts

    def describe(self) -> Iterator[GaugeMetricFamily]:
        # Without it the registry would ask the database when it is made.
        for name, text in _OF_POOLS.items():
            yield _family(name, text)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            counted = self._counts.now()
        except StoreAway:
            return  # what nobody knows is not said; the rest is
        for name, text in _OF_POOLS.items():
            family = _family(name, text)
            for each in counted:
                # A pool has no other id than its name, which the file gives it.
                family.add_metric([each.pool, each.pool], getattr(each, name))
            yield family


def _family(name: str, text: str) -> GaugeMetricFamily:
    labels = ["worker_pool_id", "worker_pool_name"]
    return GaugeMetricFamily(f"spacelift_worker_pool_{name}", text, labels=labels)


def endpoint(
    authority: Authority, counts: PoolCounts, lane: Lane
) -> Callable[[Request], Awaitable[Response]]:
    """What answers ``GET /metrics``."""
    registry = CollectorRegistry()
    registry.register(_Certificates(authority))
    registry.register(_Pools(counts))

    async def metrics(_: Request) -> Response:
        text = await lane.run(generate_latest, registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return metrics
