"""
Sign-in: an API key and its secret are exchanged for a token of one hour.

The token is signed with a key of this installation only, and it ends early when
its API key is taken out of the configuration or gets another secret.  What its owner
may do is looked up at every request: another role counts at once.
"""

from __future__ import annotations

import time

from dataclasses import dataclass

import jwt
import sqlalchemy as sa
import structlog

from launcher.controlplane.actors import Actor
from launcher.controlplane.errors import Unauthorized
from launcher.controlplane.keys import Keyring, secret_matches
from launcher.controlplane.run_tokens import RunTokens
from launcher.controlplane.store import tables as t
from launcher.controlplane.store.database import Store


log = structlog.get_logger()

VALID_SECONDS = 3600
_ALGORITHM = "HS256"
_API_KEY = sa.select(t.api_keys).where(t.api_keys.c.id == sa.bindparam("key"))


@dataclass(frozen=True, slots=True)
class Session:
    token: str
    valid_until: int

    def __repr__(self) -> str:
        return f"Session(token=…, valid_until={self.valid_until})"


class SignIn:
    """Makes and checks the tokens of GraphQL's callers."""

    def __init__(
        self, store: Store, keyring: Keyring, endpoint: str, runs: RunTokens
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._endpoint = endpoint
        self._runs = runs

    def exchange(self, key: str, secret: str) -> Session:
        """
        Sign in with an API key.

        Raises:
            Unauthorized: there is no such key, or this is not its secret.
        """
        found = self._api_key(key)
        if (
            not secret_matches(secret, found["secret_hash"] if found else None)
            or not found
        ):
            log.warning("sign_in.refused", key=key[:255])
            raise Unauthorized
        issued = int(time.time())
        claims = {
            "aud": self._endpoint,
            "sub": key,
            "gen": found["generation"],
            "iat": issued,
            "exp": issued + VALID_SECONDS,
        }
        token = jwt.encode(claims, self._keyring.jwt, algorithm=_ALGORITHM)
        return Session(token, issued + VALID_SECONDS)

    def actor(self, token: str) -> Actor | None:
        """Whose token this is; None when it is nobody's, or not any more."""
        try:
            claims = jwt.decode(
                token,
                self._keyring.jwt,
                algorithms=[_ALGORITHM],
                audience=self._endpoint,
                options={"require": ["exp", "aud", "sub"]},
            )
        except jwt.InvalidTokenError:
            return None
        if "job" in claims:  # no API key's token has one
            return self._runs.actor(token)
        found = self._api_key(claims["sub"])
        if found is None or found["generation"] != claims.get("gen"):
            return None
        return Actor.of_api_key(claims["sub"], found["role"])

    def _api_key(self, key: str) -> sa.RowMapping | None:
        with self._store.glance() as connection:
            return connection.execute(_API_KEY, {"key": key}).mappings().one_or_none()
