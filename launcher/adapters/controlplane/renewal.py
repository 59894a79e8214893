"""Renewing a pool's certificate in time, beside everything else."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from launcher.adapters.controlplane.client import Client
from launcher.adapters.controlplane.credentials import Credentials
from launcher.cancel import CancelToken
from launcher.certificates import WARN_BEFORE, is_due
from launcher.errors import LauncherError
from launcher.heartbeat import pausing
from launcher.wire.messages import CertificateIssued, CertificateRequest


log = structlog.get_logger()

_LOOK_SECONDS = 3600.0


class Renewal:
    """Looks at the certificate every hour; asks for another one when it is due."""

    def __init__(self, client: Client, credentials: Credentials) -> None:
        self._client = client
        self._credentials = credentials

    def until(self, done: CancelToken) -> None:
        """Go on until *done*; nothing that goes wrong ends it."""
        while True:
            try:
                self.look()
            except Exception:  # there are weeks left for the next attempt
                log.exception("certificate.not_renewed")
            if pausing(done, _LOOK_SECONDS):
                return

    def look(self) -> None:
        """
        Renew the certificate if it is due, and warn if it ends soon.

        Raises:
            LauncherError: it could not be renewed this time.
        """
        if not is_due(self._credentials.certificate):
            return
        try:
            issued = self._client.call(
                "POST",
                "/certificate",
                CertificateIssued,
                body=CertificateRequest(csr=self._credentials.request()),
            )
            self._credentials.renewed(issued.certificate)
        except LauncherError:
            self._warn()
            raise
        self._client.present()
        log.info("certificate.renewed", expires=self._expires())

    def _warn(self) -> None:
        left = self._credentials.certificate.not_valid_after_utc - datetime.now(UTC)
        if left < WARN_BEFORE:
            log.warning(
                "certificate.expires_soon", expires=self._expires(), days_left=left.days
            )

    def _expires(self) -> str:
        return self._credentials.certificate.not_valid_after_utc.isoformat()
