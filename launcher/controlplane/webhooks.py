"""
Telling others about runs: a signed POST for every state that a run enters.

What is to be told is written down with the change itself, so no crash loses it; a
receiver may hear of a state twice, and orders by ``stateVersion``.  A webhook whose
deliveries fail ten times in a row is turned off until its configuration changes.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import ssl
import threading

from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import sqlalchemy as sa
import structlog

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from launcher.cancel import CancelToken
from launcher.controlplane.clock import now
from launcher.controlplane.keys import Keyring
from launcher.controlplane.outbox import purpose
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store
from launcher.errors import LauncherError
from launcher.heartbeat import beat, watching
from launcher.threads import spawn


log = structlog.get_logger()

ATTEMPTS = 4
"""The first one, and three more."""
FAILURES = 10
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 1.0
PAUSE_SECONDS = 5.0
"""Before the second attempt; twice as long before each further one."""
_JOIN_SECONDS = 2.0
_METADATA = ipaddress.ip_network("fd00:ec2::/32")
"""Amazon's metadata service, which is as near as a link-local address."""
_TRANSLATED = (ipaddress.ip_network("::/96"), ipaddress.ip_network("64:ff9b::/96"))
"""Where the last four bytes are an IPv4 address."""


class _Undelivered(LauncherError):
    """The receiver did not take it."""


class _AddressRefused(_Undelivered):
    """A name of the receiver's leads to where nothing is sent."""


class Webhooks:
    """Delivers, in a thread of its own."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring
        self._closing = CancelToken()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = spawn("webhooks", watching("webhooks", self._work))

    def close(self) -> None:
        """End; what was not delivered is delivered after the next start."""
        self._closing.cancel("closing")
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)

    def deliver_due(self) -> None:
        """Try everything whose time has come, once."""
        columns = t.deliveries.c
        query = (
            sa.select(t.deliveries, t.webhooks)
            .join(t.webhooks, t.webhooks.c.name == columns.webhook)
            .where(columns.due_at <= now(), sa.not_(t.webhooks.c.disabled))
            .order_by(columns.id)
            .limit(1)
        )
        while not self._closing.cancelled:
            # One by one: each may turn off the webhook of the next.
            with self._store.read() as connection:
                row = connection.execute(query).one_or_none()
            if row is None:
                return
            beat()
            self._deliver(row)

    def _work(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            beat()
            try:
                self.deliver_due()
            except Exception:  # the next look may do better
                log.exception("webhooks.crashed")

    def _deliver(self, row: sa.Row[Any]) -> None:
        try:
            self._post(row)
        except (_Undelivered, HTTPError, OSError) as exc:
            self._failed(row, type(exc).__name__)
            return
        with self._store.write() as tx:
            tx.change(sa.delete(t.deliveries).where(t.deliveries.c.id == row.id))
            tx.change(
                sa.update(t.webhooks)
                .where(t.webhooks.c.name == row.name)
                .values(failures=0)
            )

    def _post(self, row: sa.Row[Any]) -> None:
        body = row.body.encode()
        secret = self._keyring.open(row.secret, purpose(row.name))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "spacelift-launcher",
        }
        for name, algorithm in (("X-Signature", "sha1"), ("X-Signature-256", "sha256")):
            digest = hmac.new(secret, body, getattr(hashlib, algorithm)).hexdigest()
            headers[name] = f"{algorithm}={digest}"
        parts = urlsplit(row.url)
        headers["Host"] = parts.netloc
        pool = _connections(parts, allow_local=row.allow_local)
        answer = pool.request(
            "POST",
            urlunsplit(("", "", parts.path or "/", parts.query, "")),
            body=body,
            headers=headers,
            redirect=False,
            preload_content=False,
        )
        try:
            if not 200 <= answer.status < 300:
                raise _Undelivered(f"answered {answer.status}")
        finally:
            answer.close()
            pool.close()

    def _failed(self, row: sa.Row[Any], why: str) -> None:
        attempts = row.attempts + 1
        over = attempts >= ATTEMPTS
        failures = row.failures + over
        with self._store.write() as tx:
            this = t.deliveries.c.id == row.id
            if over:
                tx.change(sa.delete(t.deliveries).where(this))
            else:
                pause = PAUSE_SECONDS * 2 ** (attempts - 1)
                due = now() + int(pause * 1_000_000_000)
                tx.change(
                    sa.update(t.deliveries)
                    .where(this)
                    .values(attempts=attempts, due_at=due)
                )
            off = failures >= FAILURES
            tx.change(
                sa.update(t.webhooks)
                .where(t.webhooks.c.name == row.name)
                .values(failures=failures, disabled=off)
            )
        log.warning("webhook.failed", webhook=row.name, reason=why, given_up=over)
        if off:
            log.error("webhook.disabled", webhook=row.name, failures=failures)


def _connections(parts: SplitResult, *, allow_local: bool) -> HTTPConnectionPool:
    """
    Connections to the very address that was looked at.

    Raises:
        _AddressRefused: it is this machine, or one that only this machine reaches.
    """
    secure, host = parts.scheme == "https", parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not allow_local and any(map(is_local, addresses)):
        raise _AddressRefused("its address is not allowed")
    if not secure:
        return HTTPConnectionPool(
            addresses[0], port, timeout=ANSWER_SECONDS, retries=False
        )
    return HTTPSConnectionPool(
        addresses[0],
        port,
        timeout=ANSWER_SECONDS,
        retries=False,
        ssl_context=ssl.create_default_context(),
        server_hostname=host,
        assert_hostname=host,
    )


def is_local(address: str) -> bool:
    """Whether *address* is of this machine or its link, in whatever notation."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found in _METADATA:
            return True
        found = _inside(found) or found
    return (
        found.is_loopback
        or found.is_link_local
        or found.is_multicast
        or found.is_unspecified
    )


def _inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that *address* stands for, if it is made of one."""
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    # Not of ::1, which is made of nothing.
    if any(address in net for net in _TRANSLATED) and int(address) > 0xFFFF:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
