"""
Why an image cannot be had, told apart by what the engine says.

The engine passes on what the registry said as text, with a status of its own that
often is 500.  So the text decides, and the status only where the text says nothing.
What matters to the launcher: may another login help, may waiting help; what matters
to people: whose fault it is.  The texts are those of the engine 20.10 to 28, of the
registry it comes with, and of ECR, Docker Hub and GHCR.
"""

from __future__ import annotations

import re

from dataclasses import dataclass

from launcher.credentials import Login
from launcher.durations import parse_duration
from launcher.errors import (
    DiskFull,
    ImageAccessDenied,
    ImageNotFound,
    ImagePullTimeout,
    ImageUnavailable,
    ImageWrongPlatform,
    RegistryNotTrusted,
    RegistryRateLimited,
    RegistryUnreachable,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    kind: type[ImageUnavailable]
    hint: str
    passes: bool = False
    """True when the same call may succeed a little later."""


WRONG_PLATFORM = Trouble(
    kind=ImageWrongPlatform,
    hint="it is not built for this worker's processor, and would end with"
    " `exec format error`; build it for {platform}",
)
DISK_FULL = Trouble(kind=DiskFull, hint="the worker's disk is full")
RATE_LIMITED = Trouble(
    kind=RegistryRateLimited,
    hint="the registry's rate limit is reached; let the worker log in to it, or pull"
    " through a mirror",
    passes=True,
)
DENIED = Trouble(
    kind=ImageAccessDenied,
    hint="the registry gives no access to it {login}; it may also not exist, which"
    " some registries do not tell strangers",
)
UNREACHABLE = Trouble(
    kind=RegistryUnreachable,
    hint="the registry cannot be reached from this worker's container engine; see to"
    " its name, its network and its proxy",
    passes=True,
)
NOT_TRUSTED = Trouble(
    kind=RegistryNotTrusted,
    hint="this worker's container engine does not trust the registry's certificate;"
    " its authority belongs into the engine's certs.d",
)
NOT_FOUND = Trouble(
    kind=ImageNotFound,
    hint="the registry does not have it; see to the repository's name and the tag",
)
OTHER_CONTENT = Trouble(
    kind=ImageUnavailable,
    hint="what the registry sends is not what the digest stands for",
)
FAILING = Trouble(
    kind=RegistryUnreachable,
    hint="the registry fails; it may work again later",
    passes=True,
)
STALLED = Trouble(kind=ImagePullTimeout, hint="nothing of it arrived for {seconds:g} s")
TOO_SLOW = Trouble(kind=ImagePullTimeout, hint="it did not arrive within {seconds:g} s")
UNKNOWN = Trouble(
    kind=ImageUnavailable, hint="the operator's log has the container engine's words"
)

_BY_TEXT = [
    (re.compile("|".join(patterns)), trouble)
    for trouble, patterns in (
        (
            WRONG_PLATFORM,
            (
                "no matching manifest for",
                "does not match the specified platform",
                "no match for platform",
                "cannot be used on this platform",
            ),
        ),
        (DISK_FULL, ("no space left on device",)),
        (RATE_LIMITED, ("toomanyrequests", "too many requests", r"\b429\b")),
        (
            OTHER_CONTENT,
            (
                "verification failed",
                "failed to verify",
                "unexpected commit digest",
                "digest mismatch",
            ),
        ),
        (
            DENIED,
            (
                "unauthorized",
                "authentication required",
                "no basic auth credentials",
                r"\bdenied\b",
                r"\bforbidden\b",
                "incorrect username or password",
                r"status: 40[13]\b",
            ),
        ),
        (
            UNREACHABLE,
            (
                "tls handshake timeout",
                "i/o timeout",
                "connection refused",
                "connection reset",
                "broken pipe",
                "no such host",
                "network is unreachable",
                "no route to host",
                "server misbehaving",
                "deadline exceeded",
                r"client\.timeout",
                r"\beof\b",
                "request canceled while waiting for connection",
                "temporary failure in name resolution",
            ),
        ),
        (
            NOT_TRUSTED,
            (
                "x509:",
                "tls: ",
                "certificate",
                "server gave http response to https client",
            ),
        ),
        (
            NOT_FOUND,
            ("manifest unknown", "name unknown", "not found", "does not exist"),
        ),
        (
            FAILING,
            (
                r"status:? (?:code )?5[0-9]{2}\b",
                "internal server error",
                "bad gateway",
                "service unavailable",
                "gateway timeout",
            ),
        ),
    )
]
_BY_STATUS = {401: DENIED, 403: DENIED, 404: NOT_FOUND, 429: RATE_LIMITED}
_RETRY_AFTER = re.compile(r"retry-after:? *([0-9][0-9a-zµ.]*)")
_QUERY = re.compile(r"\?[^\s\"']*")


def classified(text: str, status: int | None = None) -> Trouble:
    """Tell which trouble the engine's *text* and *status* stand for."""
    lower = text.lower()
    for pattern, trouble in _BY_TEXT:
        if pattern.search(lower):
            return trouble
    return _BY_STATUS.get(status or 0, UNKNOWN)


def retry_after(text: str) -> float:
    """
    Seconds to wait that a registry asks for in its own words; 0 when it does not.

    The engine keeps the header of that name to itself; some registries say it twice.
    """
    found = _RETRY_AFTER.search(text.lower())
    if found is None:
        return 0.0
    if found[1].isdigit():
        return float(found[1])
    try:
        return parse_duration(found[1])
    except ValueError:
        return 0.0


def unavailable(
    image: str,
    trouble: Trouble,
    *,
    login: Login | None = None,
    details: str = "",
    **facts: object,
) -> ImageUnavailable:
    """Return the error for *trouble*: a public sentence with what would help."""
    how = "without a login" if login is None else f"with the login from {login.source}"
    hint = trouble.hint.format(login=how, **facts)
    return trouble.kind(
        f"image {image} cannot be pulled: {hint}", details=without_queries(details)
    )


def without_queries(text: str) -> str:
    """Return *text* without the part of URLs that may be a key to what they name."""
    return _QUERY.sub("?…", text)
