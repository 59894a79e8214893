"""What it costs that a worker has to prove who it is."""

from __future__ import annotations

import time

from collections.abc import Iterator

from benchmarks.report import Row
from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.credentials import Credentials
from launcher.wire.messages import Registered, Registration


REPETITIONS = 5
REGISTRATIONS = 1_000


def registrations(known: Credentials) -> Iterator[Row]:
    """A thousand slots, one after the other, each time over a fresh connection."""
    times, handshakes = [], []
    for repetition in range(REPETITIONS):
        client = Client(known, connections=2)
        begun = time.perf_counter()
        for slot in range(REGISTRATIONS):
            client.call(
                "POST",
                "/workers",
                Registered,
                body=Registration(
                    instance=f"bench-{repetition}", slot=slot, version="bench"
                ),
            )
        times.append(time.perf_counter() - begun)
        handshakes.append(float(client.connections_made))
        client.close()
    yield Row(
        name=f"{REGISTRATIONS} registrations over mutual TLS",
        unit="s",
        values=tuple(times),
        target="at most 30",
    )
    yield Row(
        name=f"handshakes for {REGISTRATIONS} registrations",
        unit="handshakes",
        values=tuple(handshakes),
        target="1 for a worker, not for a request",
    )
