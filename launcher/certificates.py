"""When a certificate is to be replaced; the same on both sides."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509


WARN_BEFORE = timedelta(days=21)
"""How long before its end an operator hears of a certificate."""


def is_due(certificate: x509.Certificate) -> bool:
    """Whether less than a third of its life is left to *certificate*."""
    ends = certificate.not_valid_after_utc
    return datetime.now(UTC) > ends - (ends - certificate.not_valid_before_utc) / 3
