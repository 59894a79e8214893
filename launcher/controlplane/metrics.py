"""What is measured of a control plane; holds no secret, and no name of a stack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.requests import Request
from starlette.responses import Response

from launcher.controlplane.authority import Authority
from launcher.controlplane.lanes import Lane


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


def endpoint(
    authority: Authority, lane: Lane
) -> Callable[[Request], Awaitable[Response]]:
    """What answers ``GET /metrics``."""
    registry = CollectorRegistry()
    registry.register(_Certificates(authority))

    async def metrics(_: Request) -> Response:
        text = await lane.run(generate_latest, registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return metrics
