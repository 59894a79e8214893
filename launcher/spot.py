"""
What the machine's cloud announces: that it takes the machine away, or may soon.

Asks the instance metadata service of EC2, version 2: a token first, then two small
documents.  It is link-local, so no proxy is ever used; whoever is not on EC2 asks
nobody.
"""

from __future__ import annotations

import http.client
import json
import time

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import structlog

from launcher.activity import Intake
from launcher.cancel import CancelToken
from launcher.heartbeat import pausing
from launcher.lease import Ended
from launcher.model import Address
from launcher.threads import spawn


log = structlog.get_logger()

HOST = "host"
"""Who holds the intake when the machine's end was announced."""
REBALANCE = "rebalance"

WARNING_SECONDS = 45.0
"""How long before the announced end what still runs is interrupted."""

_EVERY_SECONDS = 5.0
_AFTER_FAILURE_SECONDS = 60.0
_TIMEOUT_SECONDS = 2.0
_TOKEN_SECONDS = 21600
_LARGEST = 1 << 16
_VENDORS = ("sys_vendor", "board_vendor", "bios_vendor")


class MetadataUnavailable(Exception):
    """The service gave no answer that can be used; it may be asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notices:
    """What was announced."""

    ends: float | None = None
    """When the machine is taken away, in seconds of `time.time`."""
    action: str = ""
    """What becomes of it then: ``terminate``, ``stop`` or ``hibernate``."""
    rebalance: bool = False
    """Whether that has become more likely."""


def on_ec2(dmi: Path = Path("/sys/class/dmi/id")) -> bool:
    """Whether the firmware says so; asks nobody."""
    for name in _VENDORS:
        try:
            if "amazon ec2" in (dmi / name).read_text("utf-8", "replace").lower():
                return True
        except OSError:
            continue
    return False


class Metadata:
    """The metadata service at *address*."""

    def __init__(self, address: Address, *, timeout: float = _TIMEOUT_SECONDS) -> None:
        self._address = address
        self._timeout = timeout
        self._token: str | None = None

    def notices(self) -> Notices:
        """
        What is announced now.

        Raises:
            MetadataUnavailable: unknown.
        """
        try:
            action = self._document("spot/instance-action")
            rebalance = self._document("events/recommendations/rebalance")
            if action is None:
                return Notices(rebalance=rebalance is not None)
            return Notices(
                ends=datetime.fromisoformat(action["time"]).timestamp(),
                action=str(action["action"]),
                rebalance=rebalance is not None,
            )
        except (OSError, http.client.HTTPException) as exc:
            raise MetadataUnavailable(str(exc) or type(exc).__name__) from exc
        except (ValueError, LookupError, TypeError, RecursionError) as exc:
            raise MetadataUnavailable(
                f"it cannot be understood: {type(exc).__name__}"
            ) from exc

    def _document(self, name: str) -> dict[str, str] | None:
        status, body = self._with_token(name)
        if status == HTTPStatus.UNAUTHORIZED:  # the token has expired
            self._token = None
            status, body = self._with_token(name)
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            raise MetadataUnavailable(f"HTTP {status}")
        found: dict[str, str] = json.loads(body)
        return found

    def _with_token(self, name: str) -> tuple[int, bytes]:
        if self._token is None:
            self._token = self._new_token()
        return self._ask(
            "GET",
            f"/latest/meta-data/{name}",
            {"X-aws-ec2-metadata-token": self._token},
        )

    def _new_token(self) -> str:
        seconds = str(_TOKEN_SECONDS)
        status, body = self._ask(
            "PUT",
            "/latest/api/token",
            {"X-aws-ec2-metadata-token-ttl-seconds": seconds},
        )
        if status != HTTPStatus.OK:
            raise MetadataUnavailable(f"HTTP {status} instead of a token")
        return body.decode("ascii").strip()

    def _ask(
        self, method: str, path: str, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            self._address.host, self._address.port, timeout=self._timeout
        )
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_LARGEST)
        finally:
            connection.close()


class SpotWatcher:
    """Lets the launcher act on notices, each once."""

    def __init__(
        self,
        metadata: Metadata,
        intake: Intake,
        abort: CancelToken,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._metadata = metadata
        self._intake = intake
        self._abort = abort
        self._clock = clock
        self._seen = Notices()
        self._silent = False

    def until(self, done: CancelToken) -> None:
        """Look every few seconds, until *done* fires."""
        pause = 0.0
        while not pausing(done, pause):
            try:
                pause = self.look()
            except Exception:  # the next look may do better
                log.exception("spot.crashed")
                pause = _AFTER_FAILURE_SECONDS

    def look(self) -> float:
        """Act on what is announced; return in how many seconds to look again."""
        try:
            notices = self._metadata.notices()
        except MetadataUnavailable as exc:
            if not self._silent:
                log.warning("spot.unknown", error=str(exc))
            self._silent = True
            if self._seen.ends is None:
                return _AFTER_FAILURE_SECONDS
            notices = self._seen  # an end that was announced does come
        else:
            self._silent = False
        self._act(notices)
        if notices.ends is None:
            return _EVERY_SECONDS
        left = notices.ends - WARNING_SECONDS - self._clock()
        return min(left, _EVERY_SECONDS) if left > 0 else _EVERY_SECONDS

    def _act(self, notices: Notices) -> None:
        seen, self._seen = self._seen, notices
        if notices.rebalance and not seen.rebalance:
            log.warning("spot.rebalance_recommended")
            self._intake.hold(
                REBALANCE, "the cloud recommends to leave this machine; see undrain"
            )
        if notices.ends is None:
            if seen.ends is not None:
                log.info("spot.interruption_withdrawn")
                self._intake.release(HOST)
            return
        if notices.ends != seen.ends:
            ends = datetime.fromtimestamp(notices.ends, UTC).isoformat()
            log.warning("spot.interruption", action=notices.action, ends=ends)
            self._intake.hold(HOST, f"the cloud will {notices.action} it at {ends}")
        due = self._clock() >= notices.ends - WARNING_SECONDS
        if due and not self._abort.cancelled:
            # Aborting talks to the engine, which must not keep us from looking.
            spawn("abort", lambda: self._abort.cancel(Ended.HOST_VANISHES))
