"""
May this job run, by the signatures it brings?

Each job needs one.  A job that plans, performs or destroys is proven by the
first entry of the metadata, which came with the trigger.  A job that applies is
proven by the last one, which must not be the first: it came with the
confirmation, is for the phase ``apply``, and names the run.  Other entries are
not looked at.
"""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.signing.claims import Claims, Subject, differences
from launcher.signing.keys import KeySet
from launcher.signing.replay import ReplayCache
from launcher.signing.tokens import NotSigned, read
from launcher.wire.jobs import Phase


SKEW = 60
"""Seconds by which a signer's clock may be ahead of ours."""

LONGEST = 24 * 60 * 60
"""Seconds between signing and expiry, unless told otherwise."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    valid: bool
    reason: str = ""
    """Why not, for the owner of the run; nothing of a token or key is in it."""
    kid: str = ""
    """The key that vouched; empty unless valid, and for a key without a name."""
    expires: int = 0


def refused(reason: str) -> Verdict:
    return Verdict(valid=False, reason=reason)


def verify(
    document: bytes,
    keys: KeySet,
    cache: ReplayCache,
    *,
    now: float,
    longest: float = LONGEST,
) -> Verdict:
    """
    Judge *document*, the policy's input as JSON.

    Raises:
        ReplayCacheUnusable: everything else holds, and nobody can tell whether
            the signature was used before.
    """
    try:
        content: dict[str, Any] = msgspec.json.decode(document, type=dict[str, Any])
        subject = Subject.of(content)
    except msgspec.ValidationError as exc:
        return refused(f"this is not the input of a policy: {exc}")
    except (ValueError, LookupError, RecursionError) as exc:
        why = str(exc) if type(exc) is ValueError else "malformed or incomplete"
        return refused(f"this is not the input of a policy: {why}")
    try:
        claims, kid = read(_chosen(subject), keys)
        _check_time(claims, now, longest)
    except NotSigned as exc:
        return refused(str(exc))
    if found := list(differences(claims, subject, content)):
        return refused("; ".join(found))
    if not cache.claim(claims.jti, subject.run, expires=claims.exp, now=now):
        return refused("the signature was used for another run")
    return Verdict(valid=True, kid=kid, expires=claims.exp)


def _chosen(subject: Subject) -> str:
    entries = subject.metadata
    if not entries:
        raise NotSigned("the run carries no signature")
    if subject.phase is not Phase.APPLY:
        return entries[0]
    if len(entries) == 1:
        raise NotSigned("the apply was confirmed without a signature of its own")
    return entries[-1]


def _check_time(claims: Claims, now: float, longest: float) -> None:
    if claims.exp <= now:
        raise NotSigned("the signature has expired")
    if claims.iat > now + SKEW:
        raise NotSigned("the signature is from the future")
    if claims.exp - claims.iat > longest:
        raise NotSigned("the signature is valid for too long")
