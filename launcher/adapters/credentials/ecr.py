"""
Logins for Amazon's registries, by the identity that this machine has anyway.

Facts this is built around:

- A token is good for all registries of a region that the identity may pull from.  It
  claims to be good for twelve hours, but a role that was taken away, or a clock that
  is wrong, ends it earlier, and stand-ins for AWS claim dates in the past.  So what an
  answer says about its end is not believed: a token serves the jobs that start within
  five minutes, and is replaced at once when a registry refuses it.
- boto3 takes 8 MB and a quarter of a second to import; most launchers never need it.
- The public registry gives anonymous users the same images, only fewer of them.  To
  look for an identity where there is none takes seconds, and the import; so it is
  looked for only where something speaks for one.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from launcher.credentials import Found, Login
from launcher.ecr import EcrEndpoint
from launcher.errors import ImageUnavailable
from launcher.images import Reference
from launcher.secret import Secret


if TYPE_CHECKING:  # it imports boto3
    from launcher.adapters.credentials.aws import AwsClients

log = structlog.get_logger()

SHARED_SECONDS = 300.0

_IDENTITY_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
)
_USER = "AWS"


@dataclass(slots=True)
class _Region:
    """The token of one endpoint; whoever holds the lock is the one who asks for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    client: Any = None
    token: Secret | None = None
    expires_at: float = 0.0
    """What the answer said, for people to read: see above."""
    asked: float | None = None
    """When, by the monotonic clock; None: not yet."""
    failed: ImageUnavailable | None = None
    failed_at: float = 0.0


class EcrCredentials:
    """Asks for tokens, once for all jobs that start within five minutes."""

    def __init__(
        self,
        assume_role: str | None = None,
        *,
        roots: Sequence[str] = (),
        identity_likely: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*roots* are authorities, in PEM, that AWS may be certified by, too."""
        self._role = assume_role
        self._roots = roots
        self._identity_likely = identity_likely
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: AwsClients | None = None
        self._regions: dict[EcrEndpoint, _Region] = {}

    def prepare(self, registries: Iterable[str]) -> None:
        """
        Make the clients for private *registries*; call it in the main thread.

        Nobody is asked for anything yet.
        """
        for registry in registries:
            endpoint = EcrEndpoint.of(registry)
            if endpoint is not None and not endpoint.public:
                region = self._region(endpoint)
                with region.lock:
                    try:
                        self._client(endpoint, region)
                    except ImageUnavailable as exc:
                        log.warning("ecr.not_prepared", error=str(exc))

    def found(self, reference: Reference) -> Iterator[Found]:
        """Yield that there is a token to be had, if *reference* is on ECR."""
        endpoint = EcrEndpoint.of(reference.registry)
        if endpoint is None:
            return
        whose = "the role that was set" if self._role else "this machine's AWS identity"
        yield Found(
            source="ECR",
            entry=reference.registry,
            means=f"a token from {endpoint.region} for {whose}"
            + (", or else anonymous" if endpoint.public else ""),
            expires="serves jobs that start within 5 minutes",
            configured=False,
            fetch=lambda: self._login(endpoint, reference.registry, None),
        )

    def renewed(self, reference: Reference, refused: Login | None) -> Login | None:
        """Return a login with another token than that of *refused*."""
        endpoint = EcrEndpoint.of(reference.registry)
        if endpoint is None or refused is None:
            return None
        return self._login(endpoint, reference.registry, refused.password)

    def _login(
        self, endpoint: EcrEndpoint, registry: str, refused: Secret | None
    ) -> Login | None:
        if endpoint.public and not self._identity_likely():
            return None
        region, begun = self._region(endpoint), self._clock()
        with region.lock:
            if region.failed is not None and region.failed_at >= begun:
                # Whoever was asked while we waited would say the same again.
                raise region.failed
            # Somebody else may have replaced what was refused to us.
            stale = refused is not None and refused == region.token
            now = self._clock()
            if (
                region.asked is None
                or stale
                or not 0 <= now - region.asked < SHARED_SECONDS
            ):
                region.token = self._asked_for(endpoint, region)
                region.asked = now
            token = region.token
        if token is None:
            return None
        return Login(
            username=_USER,
            password=token,
            registry=registry,
            expires_at=region.expires_at,
        )

    def _asked_for(self, endpoint: EcrEndpoint, region: _Region) -> Secret | None:
        from launcher.adapters.credentials import aws  # noqa: PLC0415

        begun = time.monotonic()
        try:
            answer = self._client(endpoint, region).get_authorization_token()
        except aws.FAILURES as exc:
            if endpoint.public:
                log.info("ecr.anonymous", error=str(exc))
                return None
            region.failed, region.failed_at = _no_token(endpoint, exc), self._clock()
            raise region.failed from exc
        data = answer["authorizationData"]
        granted = data if endpoint.public else data[0]
        text, expires = granted["authorizationToken"], granted.get("expiresAt")
        region.expires_at = expires.timestamp() if expires else 0.0
        log.info(
            "ecr.token",
            region=endpoint.region,
            public=endpoint.public,
            seconds=round(time.monotonic() - begun, 3),
        )
        return _password(endpoint, text)

    def _region(self, endpoint: EcrEndpoint) -> _Region:
        with self._lock:
            return self._regions.setdefault(endpoint, _Region())

    def _client(self, endpoint: EcrEndpoint, region: _Region) -> Any:  # noqa: ANN401
        if region.client is None:
            from launcher.adapters.credentials import aws  # noqa: PLC0415

            with self._lock:
                if self._clients is None:
                    self._clients = aws.AwsClients(self._role, roots=self._roots)
            try:
                region.client = self._clients.for_tokens(endpoint)
            except (*aws.FAILURES, OSError) as exc:
                raise _no_token(endpoint, exc) from exc
        return region.client


def identity_likely(environment: Mapping[str, str]) -> bool:
    """Tell whether variables or files speak for an AWS identity."""
    if any(name in environment for name in _IDENTITY_VARIABLES):
        return True
    home = Path(environment.get("HOME", "/"))
    return any((home / ".aws" / name).exists() for name in ("credentials", "config"))


def _password(endpoint: EcrEndpoint, token: str) -> Secret:
    try:
        user, colon, password = base64.b64decode(token).decode().partition(":")
    except (binascii.Error, ValueError):
        user = colon = password = ""
    if user != _USER or not colon or not password:
        raise ImageUnavailable(
            f"what ECR in {endpoint.region} issued is not a token for its registries"
        )
    return Secret(password)


def _no_token(endpoint: EcrEndpoint, exc: Exception) -> ImageUnavailable:
    name = type(exc).__name__
    response = getattr(exc, "response", None)
    code = response.get("Error", {}).get("Code", name) if response else name
    if "NoCredentials" in name:
        why = "this worker has no AWS identity"
    elif "AccessDenied" in code:
        why = "this worker's AWS identity may not call ecr:GetAuthorizationToken"
    else:
        why = f"AWS answers {code}" if response else f"AWS cannot be asked: {code}"
    return ImageUnavailable(
        f"no token for ECR in {endpoint.region} can be had: {why}",
        details=f"{name}: {exc}",
    )
