"""
Who looks at the pages: a cookie with the very token that GraphQL's callers send.

A form is believed only with the word that this session's pages carry, and only when the
browser does not say that another site has sent it.
"""

from __future__ import annotations

import hmac

from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from launcher.controlplane.actors import Actor
from launcher.controlplane.auth import VALID_SECONDS, Session, SignIn
from launcher.controlplane.errors import RequestRefused
from launcher.controlplane.lanes import Lanes


@dataclass(frozen=True, slots=True)
class Visitor:
    """A signed-in person."""

    actor: Actor
    form_word: str
    """What a form of this session must bring along."""


class Sessions:
    """The cookies of one installation, at *endpoint*."""

    def __init__(
        self, sign_in: SignIn, key: bytes, endpoint: str, lanes: Lanes
    ) -> None:
        self._sign_in = sign_in
        self._key = key
        self._lanes = lanes
        address = urlsplit(endpoint)
        self._host = address.netloc
        # Off loopback without TLS, browsers keep no cookie: nobody overhears one.
        self._secure = address.scheme == "https" or not _is_loopback(address.hostname)
        self._name = "__Host-session" if self._secure else "session"

    async def visitor(self, request: Request) -> Visitor | None:
        """Who has sent *request*; None when nobody knows."""
        token = request.cookies.get(self._name, "")
        if not token:
            return None
        actor = await self._lanes.people.run(self._sign_in.actor, token)
        # The token of a run is for its own questions, not for looking around.
        if actor is None or actor.stack:
            return None
        return Visitor(actor, self._form_word(token))

    async def begin(self, response: Response, key: str, secret: str) -> None:
        """
        Sign in with an API key, by a cookie of *response*.

        Raises:
            Unauthorized: there is no such key, or this is not its secret.
        """
        session: Session = await self._lanes.sign_in.run(
            self._sign_in.exchange, key, secret
        )
        response.set_cookie(
            self._name,
            session.token,
            max_age=VALID_SECONDS,
            httponly=True,
            secure=self._secure,
            samesite="strict",
        )

    def end(self, response: Response) -> None:
        response.delete_cookie(
            self._name, httponly=True, secure=self._secure, samesite="strict"
        )

    def check_origin(self, request: Request) -> None:
        """
        Raises:
            RequestRefused: the browser says that another site's page has sent this.
        """
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        origin = request.headers.get("Origin")
        ours = {self._host, request.headers.get("Host", "")}
        if site not in {"same-origin", "none"} or (
            origin is not None and urlsplit(origin).netloc not in ours
        ):
            raise RequestRefused("another site has sent this form")

    def check_form(self, request: Request, visitor: Visitor, word: str) -> None:
        """
        Raises:
            RequestRefused: *visitor* has not sent this from one of our pages.
        """
        self.check_origin(request)
        if not hmac.compare_digest(word.encode(), visitor.form_word.encode()):
            raise RequestRefused("this form is too old: load the page again")

    def _form_word(self, token: str) -> str:
        return hmac.new(self._key, token.encode(), sha256).hexdigest()


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False
